//! The reasons that a client receives in a farewell message (DestroyCnl) when it is refused or its session is ended.
//!
//! The codes are those of Sametime; `mw_error.h` of libmeanwhile has the same ones.

use std::fmt;

use super::{frame, message};

/// Why a session is refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// A frame is longer than the limit.
    MessageTooLarge = 0x8000_0209,
    /// The server has no room for another client.
    ServerFull = 0x8000_020B,
    /// The Community server does not answer, or this program is being stopped.
    NotResponding = 0x8000_020C,
    /// The Community server cannot be reached.
    CannotConnect = 0x8000_020D,
    /// The client sent bytes that are not the protocol.
    ProtocolError = 0x8000_020F,
    /// The log-in was refused: the name or the password is wrong.
    LoginRefused = 0x8000_0211,
    /// The client has to use TLS, with a certificate of its own.
    EncryptionMismatch = 0x8000_0212,
    /// Nothing was sent for too long.
    IdleTooLong = 0x8000_0216,
    /// The link to the Community server broke.
    ConnectionBroken = 0x8000_0221,
    /// The client took too long.
    TimedOut = 0x8000_0225,
}

impl Reason {
    /// The code on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The farewell message with this reason: a DestroyCnl on the master channel, 20 bytes.
    pub fn destroy(self) -> Vec<u8> {
        message::destroy(0, self.code())
    }
}

/// Code and name, for example `0x8000020B server is full`.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::MessageTooLarge => "message too large",
            Self::ServerFull => "server is full",
            Self::NotResponding => "not responding",
            Self::CannotConnect => "cannot connect",
            Self::ProtocolError => "protocol error",
            Self::LoginRefused => "log-in refused",
            Self::EncryptionMismatch => "encryption mismatch",
            Self::IdleTooLong => "idle for too long",
            Self::ConnectionBroken => "connection broken",
            Self::TimedOut => "timed out",
        };
        write!(f, "{:#010X} {name}", self.code())
    }
}

/// The code of a whole DestroyCnl frame; `None` if the frame is too short for one.
pub fn read_destroy(bytes: &[u8]) -> Option<u32> {
    let head = frame::LENGTH + frame::HEADER;
    Some(u32::from_be_bytes(*bytes.get(head..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_destroy_on_the_master_channel() {
        let expected = [0, 0, 0, 16, 0, 3, 0, 0, 0, 0, 0, 0, 0x80, 0, 2, 0x0B, 0, 0, 0, 0];
        assert_eq!(Reason::ServerFull.destroy(), expected);
        assert_eq!(read_destroy(&expected), Some(Reason::ServerFull.code()));
        assert_eq!(Reason::ServerFull.to_string(), "0x8000020B server is full");
    }
}
