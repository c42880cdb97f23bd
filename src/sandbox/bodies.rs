//! The bodies of messages that the sandbox reads and writes: log-ins, statuses and channels. Those on awareness and
//! resolve channels have files of their own.
//!
//! The layouts are those that Java clients (toolkits 7.0 and 9.0) and libmeanwhile all take; `tests/sandbox.rs`
//! re-enacts recorded Java clients.

use std::ops::RangeInclusive;

use super::ECHO;
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

/// The newest version of awareness that the sandbox has. The version in the AcceptCnl decides how clients read entries:
/// from 0x30006 on, entries have one more string.
const AWARENESS_VERSION: u32 = 0x0003_0005;

/// The status of a user who has set none.
const STATUS_ACTIVE: u16 = 0x0020;
/// The status text of a user who has set none.
const STATUS_TEXT: &[u8] = b"I am active";

/// The additional data of an AcceptCnl for instant messages: three words, then the acceptor's status.
const IM_ACCEPTED: [u8; 12] = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2];
/// The end of an AcceptCnl for a channel that is not encrypted, behind the acceptor's login info block. libmeanwhile
/// warns of the short form that Java clients send.
const ACCEPTED_UNENCRYPTED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
/// The end of a CreateCnl that offers no encryption, behind the creator's login info block.
const OFFERED_UNENCRYPTED: [u8; 11] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// The login type of the sandbox itself and of `echo`: a Java application.
const OWN_TYPE: u16 = 0x1003;
/// Their address: 127.0.0.1.
const OWN_ADDRESS: u32 = 0x7F00_0001;

/// One log-in of a user, as other users see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: Vec<u8>,
    /// The id of the log-in. Clients derive keys from its first five bytes.
    login_id: Vec<u8>,
    login_type: u16,
    /// The client's IPv4 address.
    address: u32,
    /// Status, time and text, as the client set them.
    pub(super) status: Vec<u8>,
}

impl User {
    /// A user who has set no status.
    pub(super) fn new(name: &[u8], login_id: &[u8], login_type: u16, address: u32) -> Self {
        let mut status = Writer::new();
        status.u16(STATUS_ACTIVE).u32(0).string(STATUS_TEXT);
        Self { name: name.to_vec(), login_id: login_id.to_vec(), login_type, address, status: status.0 }
    }

    /// The user that is always on line.
    pub(super) fn echo() -> Self {
        Self::new(ECHO, b"SANDBOX-ECHO", OWN_TYPE, OWN_ADDRESS)
    }

    /// The sandbox itself, which accepts the channels of its services.
    fn server() -> Self {
        Self::new(b"sandbox", b"SANDBOX-SERVER", OWN_TYPE, OWN_ADDRESS)
    }

    /// The bytes that it holds.
    pub(super) fn size(&self) -> usize {
        self.name.len() + self.login_id.len() + self.status.len()
    }

    /// Writes a login info block: login id, login type, user id, user name, community, then the byte 1 and the full
    /// part (description, address, server id).
    fn write_info<'w>(&self, out: &'w mut Writer) -> &'w mut Writer {
        out.string(&self.login_id).u16(self.login_type).string(&self.name).string(&self.name).string(b"");
        out.u8(1).string(b"").u32(self.address).string(b"sandbox")
    }

    /// The body of a LoginAck for this user.
    pub(super) fn login_ack(&self) -> Vec<u8> {
        let mut out = Writer::new();
        self.write_info(&mut out).u16(0).u8(0).u32(0).raw(&self.status);
        out.0
    }

    /// The body of a CreateCnl for the channel `id` of `receiver`, made of the fields that this user, who creates it,
    /// sent, with the user's login info block between them.
    ///
    /// Encryption is offered only to a client of the same kind: the kinds have different ciphers.
    pub(super) fn create(&self, id: u32, front: &[u8], back: &[u8], receiver: &Self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u32(0).u32(id).raw(front).u8(1);
        let offers_encryption = back.iter().take(ENCRYPTION_OFFER).any(|byte| *byte != 0);
        let is_same_kind = self.login_type == receiver.login_type;
        self.write_info(&mut out).raw(if offers_encryption && !is_same_kind { &OFFERED_UNENCRYPTED } else { back });
        out.0
    }
}

/// The first bytes of an offer of encryption: `u16` mode and the length of the list of ciphers. If they are 0, it offers
/// none.
const ENCRYPTION_OFFER: usize = 6;

/// Reads over the login info block that may follow: the byte 0 and nothing, or the byte 1 and the block.
fn skip_info(reader: &mut Reader<'_>) -> Option<()> {
    if reader.u8()? != 0 {
        let _login_id = (reader.string()?, reader.u16()?, reader.string()?, reader.string()?, reader.string()?);
        if reader.u8()? != 0 {
            let _full = (reader.string()?, reader.u32()?, reader.string()?);
        }
    }
    Some(())
}

/// Completes the body of an AcceptCnl that `user` sent, for the creator of the channel: the server side adds who
/// accepts, and the acceptor's status if it is missing. Returns it, and whether the channel is encrypted; `None` if the
/// body is cut off.
pub(super) fn completed_accept(body: &[u8], user: &User) -> Option<(Vec<u8>, bool)> {
    let mut reader = Reader(body);
    let (service, protocol, version) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let additional = reader.opaque()?;
    skip_info(&mut reader)?;
    let encryption = reader.0;
    let is_encrypted = reader.u16().is_some_and(|mode| mode != 0);
    let mut out = Writer::new();
    out.u32(service).u32(protocol).u32(version);
    if service == INSTANT_MESSAGES && lacks_status(additional) {
        out.opaque(&[&IM_ACCEPTED[..], &user.status].concat());
    } else {
        out.opaque(additional);
    }
    user.write_info(out.u8(1)).raw(if is_encrypted { encryption } else { &ACCEPTED_UNENCRYPTED });
    Some((out.0, is_encrypted))
}

/// Whether the additional data of an AcceptCnl for instant messages has no status, or an empty one, as libmeanwhile sends
/// it.
fn lacks_status(additional: &[u8]) -> bool {
    IM_ACCEPTED.starts_with(additional) || additional.strip_prefix(&IM_ACCEPTED) == Some(&[0; 8])
}

/// The status in the body of a SetUserStatus: `u16` status, `u32` time and a text; `None` if it is cut off.
pub(super) fn status(body: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(body);
    let _status = (reader.u16()?, reader.u32()?, reader.string()?);
    Some(&body[..body.len() - reader.0.len()])
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
    protocol: u32,
    version: u32,
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
    skip_info(&mut reader)?;
    Some(CreateBody { channel, target, service, protocol, version, front, back: reader.0 })
}

impl CreateBody<'_> {
    /// The body of the AcceptCnl with which the sandbox itself accepts the channel.
    pub(super) fn accept(&self) -> Vec<u8> {
        let (mut version, mut additional, mut acceptor) = (self.version, Writer::new(), User::server());
        match self.service {
            INSTANT_MESSAGES => {
                acceptor = User::echo();
                additional.raw(&IM_ACCEPTED).raw(&acceptor.status);
            }
            AWARENESS => {
                version = version.min(AWARENESS_VERSION);
                // The most bytes of attributes that the sandbox keeps: it keeps none.
                additional.marked(|additional| _ = additional.u32(0));
            }
            _ => (),
        }
        let mut out = Writer::new();
        out.u32(self.service).u32(self.protocol).u32(version).opaque(&additional.0);
        acceptor.write_info(out.u8(1)).raw(&ACCEPTED_UNENCRYPTED);
        out.0
    }
}

/// The body of a SendOnCnl with a message type and data.
pub(super) fn send(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut out = Writer::new();
    out.u16(kind).opaque(data);
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The login info block of `ann`, whose login id is `ID1`.
    fn info() -> Vec<u8> {
        let mut block = Writer::new();
        block.u8(1).string(b"ID1").u16(0x1700).string(b"ann").string(b"ann").string(b"");
        block.u8(1).string(b"").raw(&[10, 1, 2, 3]).string(b"sandbox");
        block.0
    }

    fn ann() -> User {
        User::new(b"ann", b"ID1", 0x1700, 0x0A01_0203)
    }

    #[test]
    fn an_accept_is_sent_on_with_the_user_who_accepted() {
        // The additional data that clients send, and what is sent on: with the status.
        let mut status = Writer::new();
        status.u16(0x20).u32(0).string(b"I am active");
        let whole = [&IM_ACCEPTED[..], &status.0].concat();
        let empty = [&IM_ACCEPTED[..], &[0; 8]].concat();
        for additional in [&whole[..], &empty, &IM_ACCEPTED, &IM_ACCEPTED[..8], b""] {
            // Java's end, libmeanwhile's, and none.
            for end in [&[0, 0, 7][..], &[0; 9], b""] {
                let mut body = Writer::new();
                body.u32(0x1000).u32(0x1000).u32(3).opaque(additional).u8(0).raw(end);
                let mut expected = Writer::new();
                expected.u32(0x1000).u32(0x1000).u32(3).opaque(&whole).raw(&info());
                expected.u16(0).u32(0).u32(0).u16(7);
                let sent_on = completed_accept(&body.0, &ann()).expect("whole");
                assert_eq!(sent_on, (expected.0.clone(), false), "{additional:x?} {end:x?}");
                assert_eq!(completed_accept(&expected.0, &ann()), Some(sent_on), "only once");
            }
        }
        let mut encrypted = Writer::new();
        encrypted.u32(0x1000).u32(0x1000).u32(3).opaque(b"other").u8(0).u16(0x1000).opaque(b"cipher").u16(0).u8(0);
        let (sent_on, is_encrypted) = completed_accept(&encrypted.0, &ann()).expect("whole");
        assert!(is_encrypted && sent_on.ends_with(&encrypted.0[22..]), "{sent_on:x?}");
        assert_eq!(completed_accept(b"with pleasure", &ann()), None);
    }

    #[test]
    fn encryption_is_offered_to_clients_of_the_same_kind_only() {
        let (java, offer) = (User::new(b"bea", b"ID2", 0x1001, 0), [&[0x10, 0, 0, 0, 0, 1][..], b"rest"].concat());
        assert!(ann().create(1, b"front", &offer, &ann()).ends_with(&offer));
        assert!(ann().create(1, b"front", &offer, &java).ends_with(&[&b"sandbox"[..], &OFFERED_UNENCRYPTED].concat()));
        assert!(ann().create(1, b"front", &[0; 9], &java).ends_with(&[&b"sandbox"[..], &[0; 9]].concat()), "as sent");
    }

    #[test]
    fn a_status_is_read_without_what_follows_it() {
        let mut body = Writer::new();
        body.u16(0x60).u32(9).string(b"at lunch");
        assert_eq!(status(&body.0), Some(&body.0[..]));
        assert_eq!(status(&[&body.0[..], b"more"].concat()), Some(&body.0[..]));
        assert_eq!(status(&body.0[..body.0.len() - 1]), None);
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
