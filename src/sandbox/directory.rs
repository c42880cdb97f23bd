//! The bodies of messages on resolve channels, with which clients look up names.

use super::{
    bodies::send,
    limits::{MAX_ASKED, MAX_MATCHES, MAX_NAME},
};
use crate::wire::{
    message::{Reader, Writer},
    reason::Reason,
};

/// The message type of requests and answers.
pub(super) const RESOLVE_ACTION: u16 = 0x02;
/// Flags of a request: the client wants no list of several matches; it looks for users; for groups.
const UNIQUE: u32 = 1;
const USERS: u32 = 8;
const GROUPS: u32 = 0x10;
/// The result for a name: the matches follow; there is none; there are several, and they are not listed.
const RESOLVED: u32 = 0;
const NO_MATCH: u32 = 0x8000_0000;
const SEVERAL: u32 = 0x8002_0000;
/// The type of a match: a user.
const MATCH_USER: u32 = 1;
/// The description of every user.
const DESCRIPTION: &[u8] = b"a person";

/// A request to look up names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LookUp<'a> {
    id: u32,
    names: Vec<&'a [u8]>,
    flags: u32,
}

/// Reads a request: `mark, u32 id, u32 count, Strings, u32 flags`.
///
/// # Errors
/// It is cut off, or asks for too much.
pub(super) fn look_up(data: &[u8]) -> Result<LookUp<'_>, Reason> {
    let mut reader = Reader(data);
    let mut word = || reader.u32().ok_or(Reason::ProtocolError);
    let (_mark, id, count) = (word()?, word()?, word()?);
    if count as usize > MAX_ASKED {
        return Err(Reason::MessageTooLarge);
    }
    let names = (0..count).map(|_| reader.string()).collect::<Option<Vec<_>>>().ok_or(Reason::ProtocolError)?;
    if names.iter().any(|name| name.len() > MAX_NAME) {
        return Err(Reason::MessageTooLarge);
    }
    Ok(LookUp { id, names, flags: reader.u32().unwrap_or(USERS) })
}

impl LookUp<'_> {
    /// The body of the SendOnCnl that answers: every name, with the users that `find` returns for it. The number of
    /// matches is there after a failure, too.
    pub(super) fn answer(&self, find: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> Vec<u8> {
        let only_groups = self.flags & GROUPS != 0 && self.flags & USERS == 0;
        let (mut listed, mut out) = (0, Writer::new());
        out.marked(|out| {
            out.u32(self.id).u32(0).u32(u32::try_from(self.names.len()).unwrap_or(u32::MAX));
            for &name in &self.names {
                let found = if only_groups { Vec::new() } else { find(name) };
                let (code, matches) = match found.len() {
                    0 => (NO_MATCH, &[][..]),
                    1 => (RESOLVED, &found[..]),
                    n if self.flags & UNIQUE != 0 || listed + n > MAX_MATCHES => (SEVERAL, &[][..]),
                    n => {
                        listed += n;
                        (RESOLVED, &found[..])
                    }
                };
                out.marked(|out| {
                    out.u32(code).string(name).u32(u32::try_from(matches.len()).unwrap_or(u32::MAX));
                    for user in matches {
                        out.string(user).string(user).string(DESCRIPTION).u32(MATCH_USER);
                    }
                });
            }
        });
        send(RESOLVE_ACTION, &out.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(names: &[&[u8]], flags: u32) -> Vec<u8> {
        let mut data = Writer::new();
        data.marked(|data| {
            data.u32(4).u32(u32::try_from(names.len()).expect("few"));
            names.iter().for_each(|name| _ = data.string(name));
            data.u32(flags);
        });
        data.0
    }

    fn find(name: &[u8]) -> Vec<Vec<u8>> {
        match name {
            b"one" => vec![b"one".to_vec()],
            b"b" => vec![b"bea".to_vec(), b"bob".to_vec()],
            _ => Vec::new(),
        }
    }

    /// Reads an answer: code, name and matches of each name. Checks every mark.
    fn results(body: &[u8]) -> Vec<(u32, Vec<u8>, Vec<Vec<u8>>)> {
        let mut reader = Reader(body);
        assert_eq!(reader.u16(), Some(RESOLVE_ACTION));
        let data = reader.opaque().expect("data");
        assert!(reader.0.is_empty());
        let mut reader = Reader(data);
        assert_eq!(reader.u32(), u32::try_from(data.len()).ok(), "the mark of all");
        assert_eq!((reader.u32(), reader.u32()), (Some(4), Some(0)));
        let count = reader.u32().expect("a count");
        let results = (0..count).map(|_| {
            let mark = reader.u32().expect("a mark") as usize;
            let (code, name) = (reader.u32().expect("a code"), reader.string().expect("a name").to_vec());
            let matches = (0..reader.u32().expect("a count")).map(|_| {
                let (id, name) = (reader.string().expect("an id"), reader.string());
                assert_eq!((name, reader.string(), reader.u32()), (Some(id), Some(DESCRIPTION), Some(MATCH_USER)));
                id.to_vec()
            });
            let matches = matches.collect();
            assert_eq!(mark, data.len() - reader.0.len(), "the mark of a name");
            (code, name, matches)
        });
        let results = results.collect();
        assert!(reader.0.is_empty(), "nothing behind the last name");
        results
    }

    #[test]
    fn every_name_is_answered_and_the_count_is_there_after_failures() {
        let asked = request(&[b"one", b"none", b"b", b"one"], USERS);
        let one = (RESOLVED, b"one".to_vec(), vec![b"one".to_vec()]);
        let none = (NO_MATCH, b"none".to_vec(), vec![]);
        let several = (RESOLVED, b"b".to_vec(), vec![b"bea".to_vec(), b"bob".to_vec()]);
        let answered = results(&look_up(&asked).expect("whole").answer(find));
        assert_eq!(answered, [one.clone(), none.clone(), several, one.clone()]);
        let unique = request(&[b"one", b"none", b"b"], USERS | UNIQUE);
        let answered = results(&look_up(&unique).expect("whole").answer(find));
        assert_eq!(answered, [one.clone(), none, (SEVERAL, b"b".to_vec(), vec![])]);
        let groups = request(&[b"one"], GROUPS);
        let answered = results(&look_up(&groups).expect("whole").answer(find));
        assert_eq!(answered, [(NO_MATCH, b"one".to_vec(), vec![])], "there are no groups");
        let both = request(&[b"one"], GROUPS | USERS);
        assert_eq!(results(&look_up(&both).expect("whole").answer(find)), [one]);
    }

    #[test]
    fn an_answer_lists_a_bounded_number_of_matches() {
        let names = vec![&b"b"[..]; MAX_ASKED];
        let asked = request(&names, USERS);
        let many = |_: &[u8]| vec![vec![b'b'; 9]; 20];
        let answered = results(&look_up(&asked).expect("whole").answer(many));
        assert_eq!(answered.len(), MAX_ASKED);
        assert_eq!(answered.iter().map(|(_, _, matches)| matches.len()).sum::<usize>(), MAX_MATCHES);
        assert_eq!(answered.last(), Some(&(SEVERAL, b"b".to_vec(), vec![])));
    }

    #[test]
    fn what_is_cut_off_or_too_much_is_an_error() {
        let whole = request(&[b"one"], USERS);
        for end in 0..whole.len() - 4 {
            assert_eq!(look_up(&whole[..end]), Err(Reason::ProtocolError), "{end} bytes");
        }
        assert!(look_up(&whole[..whole.len() - 4]).is_ok(), "without flags");
        assert_eq!(look_up(&[0xFF; 12]), Err(Reason::MessageTooLarge));
        assert_eq!(look_up(&request(&[&[b'n'; MAX_NAME + 1]], 0)), Err(Reason::MessageTooLarge));
    }
}
