//! The addresses of a configured `host_name`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::lookup_host, time::timeout};

use super::address::canonical;

/// How long a look-up may take. The system's resolver may take longer, for example with two name servers that are both
/// silent.
pub const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a name has no addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostNameError {
    /// The system's resolver reports an error.
    Failed(String),
    /// There was no answer within [`LOOK_UP_TIMEOUT`].
    TimedOut,
    /// The name is known, but has no address.
    NoAddress,
}

impl fmt::Display for HostNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => f.write_str(error),
            Self::TimedOut => write!(f, "no answer of the name server within {} s", LOOK_UP_TIMEOUT.as_secs()),
            Self::NoAddress => f.write_str("the name has no address"),
        }
    }
}

impl std::error::Error for HostNameError {}

/// The address that `host` is; `None` if it is a name. Empty: every address, IPv4 and IPv6.
pub fn literal(host: &str) -> Option<IpAddr> {
    if host.is_empty() {
        return Some(Ipv6Addr::UNSPECIFIED.into());
    }
    host.trim_matches(['[', ']']).parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// Looks up a name, on a thread for blocking work. Returns each address once, with port 0: an IPv6 address may have the
/// number of its link.
///
/// # Errors
/// The name has no addresses, as far as is known.
pub async fn look_up(name: &str) -> Result<Vec<SocketAddr>, HostNameError> {
    let found = timeout(LOOK_UP_TIMEOUT, lookup_host((name, 0))).await.map_err(|_| HostNameError::TimedOut)?;
    let addresses = distinct(found.map_err(|error| HostNameError::Failed(error.to_string()))?);
    if addresses.is_empty() { Err(HostNameError::NoAddress) } else { Ok(addresses) }
}

/// Each address once: a name may stand in two lines of /etc/hosts.
fn distinct(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for address in found.map(canonical) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn addresses_are_not_looked_up_and_names_are() {
        let local = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(literal(""), Some(Ipv6Addr::UNSPECIFIED.into()));
        assert_eq!((literal("127.0.0.1"), literal("::ffff:127.0.0.1")), (local, local));
        assert_eq!(literal("[::1]"), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(literal("localhost"), None);
    }

    #[test]
    fn each_address_comes_once_in_the_order_of_the_answer() {
        let ips = ["127.0.0.2", "127.0.0.1", "::ffff:127.0.0.2", "::1", "127.0.0.1"];
        let found = distinct(ips.iter().map(|ip| SocketAddr::new(ip.parse().expect("address"), 0)));
        let found: Vec<String> = found.iter().map(|found| found.ip().to_string()).collect();
        assert_eq!(found, ["127.0.0.2", "127.0.0.1", "::1"]);
    }

    #[tokio::test]
    async fn localhost_has_addresses() {
        let found = look_up("localhost").await.expect("every machine has it");
        assert!(found.iter().all(|found| found.ip().is_loopback()), "{found:?}");
    }
}
