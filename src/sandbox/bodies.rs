//! The bodies of messages that the sandbox reads and writes.
//!
//! The layouts are those of draft-houri-sametime-community-client-00, and where it is silent, those that
//! libmeanwhile reads.

use std::ops::RangeInclusive;

use crate::wire::{
    message::{Reader, Writer},
    tunnel::cipher::{Cipher, FIRST_IV},
};

/// The services of channels, as numbers in a CreateCnl.
pub(super) const INSTANT_MESSAGES: u32 = 0x1000;
pub(super) const AWARENESS: u32 = 0x11;
pub(super) const RESOLVE: u32 = 0x15;

/// Bytes of an RC2 key.
const RC2_KEY: RangeInclusive<usize> = 1..=128;

/// Message types on the awareness channel.
pub(super) const AWARE_ADD: u16 = 0x0068;
pub(super) const AWARE_REMOVE: u16 = 0x0069;
const AWARE_SNAPSHOT: u16 = 0x01F4;
const AWARE_UPDATE: u16 = 0x01F5;
/// Message type on the resolve channel.
pub(super) const RESOLVE_ACTION: u16 = 0x02;

/// The status of a user who has set none.
const STATUS_ACTIVE: u16 = 0x0020;
/// The status text of a user who has set none.
const STATUS_TEXT: &[u8] = b"I am active";
/// The result for a name in a resolve response: there is one match, or none.
const RESOLVED: u32 = 0;
const NO_MATCH: u32 = 0x8000_0000;
/// The type of a match in a resolve response: a user.
const MATCH_USER: u32 = 1;

/// One log-in of a user, as other users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: Vec<u8>,
    /// The id of the log-in. Clients derive keys from it.
    login_id: Vec<u8>,
    login_type: u16,
    /// Status, time and text, as the client set them.
    pub(super) status: Vec<u8>,
}

impl User {
    /// A user who has set no status.
    pub(super) fn new(name: &[u8], login_id: &[u8], login_type: u16) -> Self {
        let mut status = Writer::new();
        status.u16(STATUS_ACTIVE).u32(0).string(STATUS_TEXT);
        Self { name: name.to_vec(), login_id: login_id.to_vec(), login_type, status: status.0 }
    }

    /// The bytes that it holds.
    pub(super) fn size(&self) -> usize {
        self.name.len() + self.login_id.len() + self.status.len()
    }

    /// Writes a login info block: login id, login type, user id, user name, community, then the byte 1 and the full
    /// part (description, address, server id).
    fn write_info<'w>(&self, out: &'w mut Writer, address: u32) -> &'w mut Writer {
        out.string(&self.login_id).u16(self.login_type).string(&self.name).string(&self.name).string(b"");
        out.u8(1).string(b"").u32(address).string(b"sandbox")
    }

    /// The body of a LoginAck for a client with this IPv4 address.
    pub(super) fn login_ack(&self, address: u32) -> Vec<u8> {
        let mut out = Writer::new();
        self.write_info(&mut out, address).u16(0).u8(0).u32(0).raw(&self.status);
        out.0
    }

    /// The body of a CreateCnl for the channel `id`, made of the fields that the creator sent, with the creator's
    /// login info block between them.
    pub(super) fn create(&self, id: u32, front: &[u8], back: &[u8]) -> Vec<u8> {
        let mut out = Writer::new();
        out.u32(0).u32(id).raw(front).u8(1);
        self.write_info(&mut out, 0).raw(back);
        out.0
    }
}

/// The body of an AcceptCnl that `user` sent, with the user's login info block added for the creator. The server
/// side writes this block, as in a CreateCnl. A body that has one, or has no place for it, stays unchanged.
pub(super) fn accept_with_user(body: &[u8], user: &User) -> Vec<u8> {
    let mut reader = Reader(body);
    let front = (reader.u32(), reader.u32(), reader.u32(), reader.opaque());
    let at = body.len() - reader.0.len();
    if front.3.is_none() || reader.u8() != Some(0) {
        return body.to_vec();
    }
    let mut out = Writer::new();
    out.raw(&body[..at]).u8(1);
    user.write_info(&mut out, 0).raw(reader.0);
    out.0
}

/// The fields of a Login that the sandbox reads.
pub(super) struct LoginBody<'a> {
    pub(super) login_type: u16,
    pub(super) name: &'a [u8],
    /// The password, in the form that `auth_type` gives.
    auth: &'a [u8],
    auth_type: u16,
}

/// Reads the body of a Login; `None` if it is cut off.
pub(super) fn login(body: &[u8]) -> Option<LoginBody<'_>> {
    let mut reader = Reader(body);
    let (login_type, name) = (reader.u16()?, reader.string()?);
    let auth = reader.opaque().unwrap_or_default();
    Some(LoginBody { login_type, name, auth, auth_type: reader.u16().unwrap_or_default() })
}

impl LoginBody<'_> {
    /// The password, if the sandbox can read it: type 0 is plain, type 2 is encrypted with RC2 under a key that the
    /// client sends with it.
    pub(super) fn password(&self) -> Option<Vec<u8>> {
        match self.auth_type {
            0 => Some(self.auth.to_vec()),
            2 => {
                let mut reader = Reader(self.auth);
                let (key, secret) = (reader.opaque()?, reader.opaque()?);
                RC2_KEY.contains(&key.len()).then(|| Cipher::new(key).decrypt(&mut FIRST_IV.clone(), secret))?
            }
            _ => None,
        }
    }
}

/// The fields of a CreateCnl.
pub(super) struct CreateBody<'a> {
    pub(super) channel: u32,
    pub(super) target: &'a [u8],
    pub(super) service: u32,
    pub(super) protocol: u32,
    pub(super) version: u32,
    /// The bytes from the target to the additional data.
    pub(super) front: &'a [u8],
    /// The bytes behind the creator block.
    pub(super) back: &'a [u8],
}

/// Reads the body of a CreateCnl; `None` if it is cut off.
pub(super) fn create(body: &[u8]) -> Option<CreateBody<'_>> {
    let mut reader = Reader(body);
    let (_, channel) = (reader.u32()?, reader.u32()?);
    let front = reader.0;
    let (target, _community) = (reader.string()?, reader.string()?);
    let (service, protocol, version, _options) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    reader.opaque()?;
    let front = &front[..front.len() - reader.0.len()];
    if reader.u8()? != 0 {
        let _login_id = (reader.string()?, reader.u16()?, reader.string()?, reader.string()?, reader.string()?);
        if reader.u8()? != 0 {
            let _full = (reader.string()?, reader.u32()?, reader.string()?);
        }
    }
    Some(CreateBody { channel, target, service, protocol, version, front, back: reader.0 })
}

/// The body of the AcceptCnl with which the sandbox itself accepts a channel.
pub(super) fn accept(create: &CreateBody<'_>) -> Vec<u8> {
    let mut additional = Writer::new();
    if create.service == INSTANT_MESSAGES {
        additional.u32(1).u32(1).u32(2);
    }
    let mut out = Writer::new();
    out.u32(create.service).u32(create.protocol).u32(create.version).opaque(&additional.0);
    out.u8(0).u16(0).u32(0).u32(0).u16(7);
    out.0
}

/// The body of a SendOnCnl with a message type and data.
pub(super) fn send(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u16(kind).opaque(data);
    out.0
}

/// The user names in an awareness list: `u32 count`, then for each user `u16 type, String user, String community`.
/// A list that is cut off ends at the last whole entry.
pub(super) fn aware_names(data: &[u8]) -> Vec<&[u8]> {
    let mut reader = Reader(data);
    let count = reader.u32().unwrap_or_default();
    (0..count)
        .map_while(|_| {
            let (_, user, _) = (reader.u16()?, reader.string()?, reader.string()?);
            Some(user)
        })
        .collect()
}

/// What an awareness message reports of one user; `None`: the user is offline.
fn aware_entry(name: &[u8], user: Option<&User>) -> Vec<u8> {
    const USER: u16 = 2;
    let mut entry = Writer::new();
    entry.u16(USER).string(name).string(b"").string(b"").u8(user.is_some().into());
    if let Some(user) = user {
        entry.string(name).raw(&user.status).string(name);
    }
    let mut out = Writer::new();
    // The length of an entry precedes it.
    out.opaque(&entry.0);
    out.0
}

/// The body of a SendOnCnl that reports all of `users`.
pub(super) fn aware_snapshot(users: &[(&[u8], Option<User>)]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u32(u32::try_from(users.len()).unwrap_or(u32::MAX));
    for (name, user) in users {
        out.raw(&aware_entry(name, user.as_ref()));
    }
    send(AWARE_SNAPSHOT, &out.0)
}

/// The body of a SendOnCnl that reports a change of one user.
pub(super) fn aware_update(name: &[u8], user: Option<&User>) -> Vec<u8> {
    send(AWARE_UPDATE, &aware_entry(name, user))
}

/// The names in a resolve request, whose data is `u32 0, u32 id, u32 count, Strings, u32 flags`, and its id; `None` if
/// the data is cut off before the names.
pub(super) fn resolve_names(data: &[u8]) -> Option<(u32, Vec<&[u8]>)> {
    let mut reader = Reader(data);
    let (_, id, count) = (reader.u32()?, reader.u32()?, reader.u32()?);
    Some((id, (0..count).map_while(|_| reader.string()).collect()))
}

/// The response to the resolve request `id` for `names`; `None` if there are too many.
pub(super) fn resolved(id: u32, names: Vec<&[u8]>, is_known: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let mut out = Writer::new();
    out.u32(0).u32(id).u32(0).u32(u32::try_from(names.len()).ok()?);
    for name in names {
        let known = is_known(name);
        out.u32(0).u32(if known { RESOLVED } else { NO_MATCH }).string(name).u32(known.into());
        if known {
            out.string(name).string(name).string(b"").u32(MATCH_USER);
        }
    }
    Some(send(RESOLVE_ACTION, &out.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accept_is_sent_on_with_the_user_who_accepted() {
        let (user, mut body) = (User::new(b"ann", b"ID1", 0x1700), Writer::new());
        body.u32(0x1000).u32(0x1000).u32(3).opaque(b"extra").u8(0).u16(0).u32(0);
        let sent_on = accept_with_user(&body.0, &user);
        let mut reader = Reader(&sent_on);
        assert_eq!((reader.bytes(12), reader.opaque(), reader.u8()), (body.0.get(..12), Some(&b"extra"[..]), Some(1)));
        assert_eq!(
            (reader.string(), reader.u16(), reader.string()),
            (Some(&b"ID1"[..]), Some(0x1700), Some(&b"ann"[..]))
        );
        assert_eq!(&sent_on[sent_on.len() - 6..], [0; 6], "the fields that follow");
        assert_eq!(accept_with_user(&sent_on, &user), sent_on, "only once");
        assert_eq!(accept_with_user(b"with pleasure", &user), b"with pleasure");
    }

    #[test]
    fn passwords_are_read_by_their_type() {
        let login = |auth_type, auth: &[u8]| {
            let mut body = Writer::new();
            body.u16(0x1700).string(b"bob").opaque(auth).u16(auth_type).u16(0);
            super::login(&body.0).expect("whole").password()
        };
        assert_eq!(login(0, b"wrong"), Some(b"wrong".to_vec()));
        // The key and the ciphertext that a real client sent.
        let mut auth = Writer::new();
        auth.opaque(&[0x85, 0xc0, 0xf2, 0x4e, 0x2c]).opaque(&[0x87, 0x91, 0xf6, 0xf4, 0xd3, 0x89, 0xab, 0x05]);
        assert_eq!(login(2, &auth.0), Some(b"secret".to_vec()));
        assert_eq!(login(1, b"token"), None);
        assert_eq!(login(2, b"rubbish"), None);
    }
}
