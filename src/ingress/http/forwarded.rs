//! Who the client is, where HTTP proxies say so.

use std::net::{IpAddr, SocketAddr};

use hyper::header::HeaderName;
use ipnet::IpNet;

use crate::net::address::lies_in;

/// The header that proxies note their client in.
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client behind a believed proxy's X-Forwarded-For: the last address that is no believed
/// proxy's. Addresses in front of it could be anybody's invention. `lines` are the header's values
/// in their order.
pub(super) fn client_of<'a, L>(believed: &[IpNet], lines: L, peer: SocketAddr) -> SocketAddr
where
    L: DoubleEndedIterator<Item = &'a [u8]>,
{
    let mut client = peer;
    for hop in lines.rev().flat_map(|line| line.rsplit(|&b| b == b',')) {
        if !lies_in(believed, client.ip()) {
            break;
        }
        let Some(address) = std::str::from_utf8(hop).ok().and_then(|hop| hop_address(hop.trim())) else { break };
        client = address;
    }
    client
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]:5`.
fn hop_address(hop: &str) -> Option<SocketAddr> {
    let ip = |text: &str| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip.to_canonical(), 0));
    hop.parse().ok().or_else(|| ip(hop)).or_else(|| ip(hop.strip_prefix('[')?.strip_suffix(']')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_believed_proxies_name_the_client() {
        let peer: SocketAddr = "10.0.0.1:5000".parse().expect("address");
        let proxies = ["10.0.0.0/8".parse().expect("network")];
        let client = |believed: &[IpNet], lines: &[&str]| {
            client_of(believed, lines.iter().map(|line| line.as_bytes()), peer).ip().to_string()
        };
        assert_eq!(client(&[], &["1.2.3.4"]), "10.0.0.1");
        assert_eq!(client(&proxies, &[]), "10.0.0.1");
        assert_eq!(client(&proxies, &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(client(&proxies, &["6.6.6.6, 1.2.3.4, 10.0.0.2"]), "1.2.3.4");
        assert_eq!(client(&proxies, &["6.6.6.6", "[2001:db8::1]:99, 10.9.9.9"]), "2001:db8::1");
        assert_eq!(client(&proxies, &["1.2.3.4, rubbish"]), "10.0.0.1");
        assert_eq!(client(&proxies, &["::ffff:1.2.3.4"]), "1.2.3.4");
    }
}
