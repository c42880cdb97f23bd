//! The client's address, where HTTP proxies name it in X-Forwarded-For.

use std::net::{IpAddr, SocketAddr};

use hyper::header::HeaderName;
use ipnet::IpNet;

use crate::{
    ingress::Origin,
    net::address::{canonical, lies_in},
};

/// The header in which proxies name their client.
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client of a request on the connection of `origin`. `lines` are the values of X-Forwarded-For in their order. Another
/// node of the cluster names the client of each request that it passes, as the only address.
pub(super) fn client_behind<'a, L>(trusted: &[IpNet], mut lines: L, origin: &Origin) -> SocketAddr
where
    L: DoubleEndedIterator<Item = &'a [u8]>,
{
    if !origin.is_peer {
        return client_of(trusted, lines, origin.client);
    }
    let named = lines.next_back().and_then(|line| std::str::from_utf8(line).ok());
    named.and_then(|line| hop_address(line.trim())).unwrap_or(origin.client)
}

/// The client behind trusted proxies: the last address in X-Forwarded-For that is not a trusted proxy's. Addresses in
/// front of it are not used, since anybody can invent them. `lines` are the header's values in their order.
///
/// For example, `6.6.6.6, 1.2.3.4, 10.0.0.2` from the peer `10.0.0.1` means `1.2.3.4` when `10.0.0.0/8` is trusted,
/// and `10.0.0.1` when no proxy is.
fn client_of<'a, L>(trusted: &[IpNet], lines: L, peer: SocketAddr) -> SocketAddr
where
    L: DoubleEndedIterator<Item = &'a [u8]>,
{
    let mut client = peer;
    for hop in lines.rev().flat_map(|line| line.rsplit(|&b| b == b',')) {
        if !lies_in(trusted, client.ip()) {
            break;
        }
        let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| hop_address(hop.trim())) else { break };
        client = address;
    }
    client
}

/// Reads `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]` or `[::1]:5`.
fn hop_address(hop: &str) -> Option<SocketAddr> {
    let ip = |text: &str| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0));
    let address = hop.parse().ok().or_else(|| ip(hop)).or_else(|| ip(hop.strip_prefix('[')?.strip_suffix(']')?));
    address.map(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let peer: SocketAddr = "10.0.0.1:5000".parse().expect("address");
        let proxies = ["10.0.0.0/8".parse().expect("network")];
        let client = |trusted: &[IpNet], lines: &[&str]| {
            client_of(trusted, lines.iter().map(|line| line.as_bytes()), peer).ip().to_string()
        };
        assert_eq!(client(&[], &["1.2.3.4"]), "10.0.0.1");
        assert_eq!(client(&proxies, &[]), "10.0.0.1");
        assert_eq!(client(&proxies, &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client(&proxies, &["6.6.6.6, 1.2.3.4, 10.0.0.2"]), "1.2.3.4");
        assert_eq!(client(&proxies, &["6.6.6.6", "[2001:db8::1]:99, 10.9.9.9"]), "2001:db8::1");
        assert_eq!(client(&proxies, &["1.2.3.4, rubbish"]), "10.0.0.1");
        for mapped in ["::ffff:1.2.3.4", "[::ffff:1.2.3.4]", "[::ffff:1.2.3.4]:5", "1.2.3.4:5"] {
            assert_eq!(client(&proxies, &[mapped]), "1.2.3.4", "{mapped}");
        }
    }
}
