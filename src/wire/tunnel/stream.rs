//! The streaming tunnel: the beginning of its endless response, and the bodies of its POST requests and their
//! responses.
//!
//! All integers are big-endian. String = `u16 length` + bytes.
//!
//! ```text
//! response to the GET     u8 0xFF, String name, 6 zero bytes, then the byte stream to the client
//! body of a POST          u8 0xFF, String name, then bytes of the stream to the Community
//! response to the POST    u8 0xFF, String name
//! ```
//! These forms were observed with clients of the toolkits 7.0 and 9.0. The client uses the name of the response to a
//! POST for its next POST.

use super::name::{SessionName, UrlName};
use crate::wire::message::{Reader, Writer};

/// The first byte of every body.
const MARK: u8 = 0xFF;
/// The bytes between the name and the stream. Clients take any value.
const RESERVED: [u8; 6] = [0; 6];

/// The body of a POST request.
#[derive(Debug, PartialEq, Eq)]
pub struct StreamPost {
    /// The session that it is for.
    pub name: UrlName,
    /// Where in the body the bytes for the Community begin.
    pub payload_at: usize,
}

/// Reads the body of a POST request. `None`: it does not have the form. Such a body has another first byte, or is cut
/// off, or has a name that is longer than [`UrlName::LONGEST`] or not of ASCII.
pub fn post(body: &[u8]) -> Option<StreamPost> {
    let mut reader = Reader(body);
    reader.u8().filter(|mark| *mark == MARK)?;
    let name = std::str::from_utf8(reader.string()?).ok().filter(|name| name.is_ascii())?;
    Some(StreamPost { name: UrlName::parse(name)?, payload_at: body.len() - reader.0.len() })
}

/// Writes the beginning of the response to the GET request.
pub fn beginning(name: &SessionName) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(3 + SessionName::DIGITS + RESERVED.len()));
    out.u8(MARK).string(&name.digits()).raw(&RESERVED);
    out.0
}

/// Writes the body of the response to a POST request.
pub fn post_response(name: &SessionName) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(3 + SessionName::DIGITS));
    out.u8(MARK).string(&name.digits());
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_recorded_post_is_read() {
        // From a recording: the session "S1", and a Sametime message behind it.
        let body = [&b"\xFF\0\x02S1"[..], &[0, 0, 0, 0x10, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(post(&body), Some(StreamPost { name: UrlName::NotAName { length: 2 }, payload_at: 5 }));
    }

    #[test]
    fn what_is_written_names_the_session() {
        let name = SessionName::random().expect("random");
        let expected = Some(StreamPost { name: UrlName::Session(name), payload_at: 35 });
        assert_eq!(post(&post_response(&name)), expected);
        assert_eq!(post(&beginning(&name)), expected);
        assert_eq!(beginning(&name)[35..], [0; 6]);
    }

    #[test]
    fn what_has_another_form_is_none() {
        let long = [&b"\xFF\0\x41"[..], &[b'a'; 65]].concat();
        for body in [&b""[..], b"\xFF", b"\xFF\0", b"\xFF\0\x02S", b"\x00\0\x02S1", b"\xFF\0\x02\xC3\xA9", &long] {
            assert_eq!(post(body), None, "{}", body.escape_ascii());
        }
        assert_eq!(post(b"\xFF\0\0"), Some(StreamPost { name: UrlName::Empty, payload_at: 3 }));
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(read) = post(&body) {
                prop_assert!((3..=body.len()).contains(&read.payload_at));
            }
        }
    }
}
