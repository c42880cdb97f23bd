//! Errors of a stream that this program makes itself. They are values of one type inside an [`io::Error`], and only
//! [`StreamError::of`] takes them out again. An `io::ErrorKind` has no meaning in this program.

use std::{fmt, io};

use rustix::io::Errno;

/// What a stream reports in addition to the errors of the system and of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// The client of a tunnel session sent no request within `tunnel.session_timeout`.
    SessionTimeout,
    /// The Community took nothing of what a streaming client sent within `tunnel.session_timeout`.
    CommunityTooSlow,
    /// The stream ended without TLS's close_notify. This is common among clients. A frame has a length, so a missing
    /// part is noticed without close_notify.
    Truncated,
    /// No request arrived on an HTTP connection within `limits.login_timeout`.
    NoRequest,
    /// The other end of a trunk has closed the stream, which takes no bytes any more.
    TrunkStreamClosed,
    /// The other end of a trunk sends more frames of a kind than any proper use needs.
    TrunkFlood,
    /// The client read nothing of a response within `limits.login_timeout`.
    ResponseNotTaken,
}

impl StreamError {
    /// The `StreamError` inside `error`; `None` if it is an error of the system or of TLS.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }

    /// The error of a read from rustls, or of its handshake. rustls reports an end without close_notify by this kind and by
    /// nothing else, so it is decoded where the read is.
    pub fn in_tls(error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated.into() } else { error }
    }
}

/// Whether `error` says only that the peer has left: it has reset the connection, or has closed it without
/// close_notify.
pub fn peer_has_left(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::CONNRESET | Errno::PIPE)) || StreamError::of(error) == Some(StreamError::Truncated)
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SessionTimeout => "no request within tunnel.session_timeout",
            Self::CommunityTooSlow => "the Community took nothing within tunnel.session_timeout",
            Self::Truncated => "TLS ended without close_notify",
            Self::NoRequest => "no request within limits.login_timeout",
            Self::TrunkStreamClosed => "the other end of the trunk has closed the stream",
            Self::TrunkFlood => "the other end of the trunk floods",
            Self::ResponseNotTaken => "the client took nothing of the response within limits.login_timeout",
        })
    }
}

impl std::error::Error for StreamError {}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_left_is_told_from_other_errors() {
        for left in [Errno::CONNRESET.into(), Errno::PIPE.into(), StreamError::Truncated.into()] {
            assert!(peer_has_left(&left), "{left}");
        }
        for other in [Errno::TIMEDOUT.into(), StreamError::NoRequest.into(), io::ErrorKind::ConnectionReset.into()] {
            assert!(!peer_has_left(&other), "{other}");
        }
    }

    #[test]
    fn an_error_of_ours_comes_back_and_the_systems_is_none() {
        assert_eq!(StreamError::of(&StreamError::SessionTimeout.into()), Some(StreamError::SessionTimeout));
        assert_eq!(StreamError::of(&io::ErrorKind::TimedOut.into()), None);
        assert_eq!(StreamError::of(&io::Error::other("another")), None);
    }
}
