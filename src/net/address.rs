//! Client addresses: one form for each address, and which addresses limits count as one.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The address in one form: `10.0.0.1` for `::ffff:10.0.0.1`, which is how a socket for both families shows it.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// The address that limits count for a client: its IPv4 address, or the network of 64 bits of its IPv6 address, which
/// belongs to one subscriber (RFC 6177, section 2).
pub fn counted_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        ip @ IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => {
            let network = u128::from(ip) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
    }
}

/// Whether `address` is in one of `networks`. An IPv4-mapped address counts as IPv4.
pub fn lies_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Whether a listener on `a` takes every connection that one on `b` takes. `[::]` takes IPv4, too.
pub fn covers(a: SocketAddr, b: SocketAddr) -> bool {
    let (a, b) = (canonical(a), canonical(b));
    let covers_ip = match a.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => true,
        IpAddr::V4(ip) if ip.is_unspecified() => b.is_ipv4(),
        ip => ip == b.ip(),
    };
    a.port() == b.port() && covers_ip
}

/// Whether there are connections that a listener on `a` and one on `b` would both take.
pub fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    covers(a, b) || covers(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_covers_each_of_its_family_and_the_empty_host_covers_all() {
        let is = |a: &str, b: &str| {
            let address = |text: &str| text.parse::<SocketAddr>().expect("address");
            let (a, b) = (address(a), address(b));
            assert_eq!(overlap(a, b), overlap(b, a));
            (covers(a, b), overlap(a, b))
        };
        assert_eq!(is("[::]:80", "127.0.0.1:80"), (true, true));
        assert_eq!(is("[::]:80", "0.0.0.0:80"), (true, true));
        assert_eq!(is("[::]:80", "[::1]:80"), (true, true));
        assert_eq!(is("0.0.0.0:80", "127.0.0.1:80"), (true, true));
        assert_eq!(is("0.0.0.0:80", "[::ffff:127.0.0.1]:80"), (true, true));
        assert_eq!(is("0.0.0.0:80", "[::]:80"), (false, true));
        assert_eq!(is("0.0.0.0:80", "[::1]:80"), (false, false));
        assert_eq!(is("127.0.0.1:80", "[::]:80"), (false, true));
        assert_eq!(is("127.0.0.1:80", "127.0.0.2:80"), (false, false));
        assert_eq!(is("127.0.0.1:80", "127.0.0.1:80"), (true, true));
        assert_eq!(is("[::]:80", "127.0.0.1:81"), (false, false));
    }

    #[test]
    fn one_subscriber_is_one_address() {
        let counted = |text: &str| counted_address(text.parse().expect("address")).to_string();
        assert_eq!(counted("10.1.2.3"), "10.1.2.3");
        assert_eq!(counted("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:2::9"), "2001:db8:1:2::");
    }
}
