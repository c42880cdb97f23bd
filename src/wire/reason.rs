//! The reasons that a client is given, in its own protocol, when its session can't be.
//!
//! The codes are Sametime's; libmeanwhile's `mw_error.h` names the same ones.

use super::{frame, message};

/// Why a session is refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// A frame over the limit.
    MessageTooLarge = 0x8000_0209,
    /// The server has as many clients as it may have.
    ServerFull = 0x8000_020B,
    /// The Community server does not answer, or this multiplexer is being stopped.
    NotResponding = 0x8000_020C,
    /// The Community server can't be reached.
    CannotConnect = 0x8000_020D,
    /// What was sent is not the protocol.
    ProtocolError = 0x8000_020F,
    /// The log-in was refused: wrong name or password.
    LoginRefused = 0x8000_0211,
    /// The client must use TLS, and a certificate of its own.
    EncryptionMismatch = 0x8000_0212,
    /// Nothing was heard for too long.
    IdleTooLong = 0x8000_0216,
    /// The connection to the Community broke.
    ConnectionBroken = 0x8000_0221,
    /// The client took too long.
    TimedOut = 0x8000_0225,
}

impl Reason {
    /// The code on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The DestroyCnl on the master channel that ends a session with this reason, 20 bytes.
    pub fn destroy(self) -> Vec<u8> {
        message::destroy(0, self.code())
    }
}

/// Reads the reason out of a whole DestroyCnl frame.
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
    }
}
