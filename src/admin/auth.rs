//! Who may use a page of the admin endpoint: the check of Host, token and Origin.

use std::{net::IpAddr, path::PathBuf};

use hyper::header::{self, HeaderMap};
use tracing::warn;

use crate::log::Throttle;

/// What a page is used for, which decides what a request for it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Health checks: they never need the token, because load balancers have none.
    Probe,
    /// Reading: it needs the token unless the endpoint listens on loopback.
    Read,
    /// Changing something: it always needs the token, and a request of a web page is refused.
    Change,
}

/// Why a request may not have a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AccessRefusal {
    /// The endpoint listens on loopback, and Host is a name other than localhost.
    Host,
    /// The token is needed, and the configuration has no token file.
    NoTokenFile,
    /// The token file is empty.
    EmptyTokenFile,
    /// The token file can't be read.
    UnreadableTokenFile,
    /// The request has no token, or a wrong one.
    Token,
    /// The request comes from a web page.
    Origin,
}

/// Checks a request. `token_file` is asked for only if the token is needed. `unreadable` lets lines about a file pass
/// that can't be read: anybody can ask.
///
/// The token file is read for each request, so that a new token needs no reload.
///
/// # Errors
/// What the request lacks.
pub(super) async fn check(
    access: Access,
    headers: &HeaderMap,
    is_on_loopback: bool,
    token_file: impl Fn() -> Option<PathBuf>,
    unreadable: &Throttle,
) -> Result<(), AccessRefusal> {
    // A web page of elsewhere can let its own host name resolve to a loopback address (DNS rebinding). The browser then
    // lets it read this endpoint, but sends the page's host name in Host.
    if is_on_loopback && !names_this_machine(headers) {
        return Err(AccessRefusal::Host);
    }
    let needs_token = match access {
        Access::Probe => false,
        Access::Read => !is_on_loopback,
        Access::Change => true,
    };
    if needs_token {
        check_token(headers, token_file(), unreadable).await?;
    }
    // A browser sends Origin with each POST of a page. The endpoint has no page of its own that posts.
    if access == Access::Change && headers.contains_key(header::ORIGIN) {
        return Err(AccessRefusal::Origin);
    }
    Ok(())
}

/// Whether Host is an address or localhost, or absent, as HTTP/1.0 allows.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    // `host:port`. An IPv6 address contains colons itself, so a port is only behind its brackets.
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

async fn check_token(
    headers: &HeaderMap,
    token_file: Option<PathBuf>,
    unreadable: &Throttle,
) -> Result<(), AccessRefusal> {
    let file = token_file.ok_or(AccessRefusal::NoTokenFile)?;
    let token = tokio::fs::read_to_string(&file).await.map_err(|error| {
        if let Some(more) = unreadable.pass() {
            warn!(file = %file.display(), %error, more, "admin: the token file can't be read");
        }
        AccessRefusal::UnreadableTokenFile
    })?;
    let token = token.trim();
    if token.is_empty() {
        return Err(AccessRefusal::EmptyTokenFile);
    }
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let is_right = sent.is_some_and(|sent| is_equal(sent.trim_ascii(), token.as_bytes()));
    if is_right { Ok(()) } else { Err(AccessRefusal::Token) }
}

/// Compares in a time that depends on the lengths only, not on where the first difference is.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_host_is_an_address_or_localhost() {
        for host in ["localhost", "LocalHost:9533", "127.0.0.1", "127.0.0.1:9533", "[::1]:9533", "[::1]", "::1"] {
            assert!(names_this_machine(&headers(&[(header::HOST, host)])), "{host}");
        }
        for host in ["evil.example", "evil.example:9533", "localhost.evil.example", ""] {
            assert!(!names_this_machine(&headers(&[(header::HOST, host)])), "{host}");
        }
        assert!(names_this_machine(&headers(&[])));
    }

    #[tokio::test]
    async fn each_access_needs_what_it_says() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "open sesame").expect("written");
        let token_file = || Some(file.path().to_owned());
        let nothing = headers(&[]);
        let wrong = headers(&[(header::AUTHORIZATION, "Bearer open sesam")]);
        let right = headers(&[(header::AUTHORIZATION, "Bearer open sesame")]);
        let of_a_page = headers(&[(header::AUTHORIZATION, "Bearer open sesame"), (header::ORIGIN, "null")]);
        for (access, on_loopback, headers, result) in [
            (Access::Probe, false, &nothing, Ok(())),
            (Access::Read, true, &nothing, Ok(())),
            (Access::Read, false, &nothing, Err(AccessRefusal::Token)),
            (Access::Read, false, &right, Ok(())),
            (Access::Change, true, &nothing, Err(AccessRefusal::Token)),
            (Access::Change, true, &wrong, Err(AccessRefusal::Token)),
            (Access::Change, true, &right, Ok(())),
            (Access::Change, true, &of_a_page, Err(AccessRefusal::Origin)),
        ] {
            assert_eq!(
                check(access, headers, on_loopback, token_file, &Throttle::default()).await,
                result,
                "{access:?}, {on_loopback}"
            );
        }
        let check = async |file: Option<PathBuf>| {
            check(Access::Change, &right, true, || file.clone(), &Throttle::default()).await
        };
        assert_eq!(check(None).await, Err(AccessRefusal::NoTokenFile));
        assert_eq!(check(Some("/nowhere".into())).await, Err(AccessRefusal::UnreadableTokenFile));
        assert_eq!(check(Some("/dev/null".into())).await, Err(AccessRefusal::EmptyTokenFile));
    }
}
