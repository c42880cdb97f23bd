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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subscriber_is_one_address() {
        let counted = |text: &str| counted_address(text.parse().expect("address")).to_string();
        assert_eq!(counted("10.1.2.3"), "10.1.2.3");
        assert_eq!(counted("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:2::9"), "2001:db8:1:2::");
    }
}
