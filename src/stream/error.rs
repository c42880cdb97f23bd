//! Errors of a stream that are not the system's: they travel inside an [`io::Error`] as values of one type, and
//! [`StreamError::of`] is the one place that takes them out again. No meaning lies in an `io::ErrorKind`.

use std::{fmt, io};

/// What a stream of ours reports beside the system's errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamError {
    /// A tunnel's client sent no request within `tunnel.session_timeout`.
    SessionTimeout,
    /// TLS ended without its close_notify. Common among clients, and no loss, since frames have lengths.
    Truncated,
    /// An HTTP connection brought no request within `limits.login_timeout`.
    NoRequest,
    /// The client took nothing of a response within `limits.login_timeout`.
    ResponseNotTaken,
    /// The client closed before it had its response.
    ClosedEarly,
}

impl StreamError {
    /// The error of ours that `error` carries; `None`: it is the system's, or TLS's.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SessionTimeout => "no request within tunnel.session_timeout",
            Self::Truncated => "TLS ended without close_notify",
            Self::NoRequest => "no request within limits.login_timeout",
            Self::ResponseNotTaken => "the client took nothing of the response within limits.login_timeout",
            Self::ClosedEarly => "the client closed before it had its response",
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
    fn an_error_of_ours_comes_back_and_the_systems_is_none() {
        assert_eq!(StreamError::of(&StreamError::SessionTimeout.into()), Some(StreamError::SessionTimeout));
        assert_eq!(StreamError::of(&io::ErrorKind::TimedOut.into()), None);
        assert_eq!(StreamError::of(&io::Error::other("another")), None);
    }
}
