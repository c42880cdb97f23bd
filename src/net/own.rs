//! The addresses on which this program listens. A connection to one of them is a connection to this program itself.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
};

use super::address::canonical;

/// Returns the addresses of the listeners that are bound.
type ListenerSource = Box<dyn Fn() -> Vec<SocketAddr> + Send + Sync>;

/// The listeners of this program, as those see them who connect to other hosts. Clones are the same.
#[derive(Clone, Default)]
pub struct OwnListeners(Arc<OnceLock<ListenerSource>>);

impl OwnListeners {
    /// Sets where the addresses of the listeners come from. Until then there are none.
    pub fn set_source(&self, source: impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static) {
        // It is set once, at the start.
        let _ = self.0.set(Box::new(source));
    }

    /// The listener that a connection to `address` would come to; `None`: it leaves this program.
    pub fn taking(&self, address: SocketAddr) -> Option<SocketAddr> {
        listener_of(&self.0.get().map(|listeners| listeners()).unwrap_or_default(), address, is_of_this_machine)
    }
}

impl fmt::Debug for OwnListeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnListeners")
    }
}

/// The listener of `listeners` that a connection to `address` comes to. `is_local` tells whether an address is one of
/// this machine; it is asked only when a listener has the same port on every address.
pub fn listener_of(
    listeners: &[SocketAddr],
    address: SocketAddr,
    is_local: impl Fn(IpAddr) -> bool,
) -> Option<SocketAddr> {
    let to = match canonical(address).ip() {
        // Where nothing else is said, the system connects to itself.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let takes = |listener: &SocketAddr| match canonical(*listener).ip() {
        // It takes IPv4, too: see `listen::bind`.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => is_local(to),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => to.is_ipv4() && is_local(to),
        ip => ip == to,
    };
    listeners.iter().filter(|listener| listener.port() == address.port()).find(|listener| takes(listener)).copied()
}

/// Whether `address` is one of this machine's: loopback, or that of an interface.
pub fn is_of_this_machine(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback()
        // Without a list of interfaces, only loopback is known.
        || if_addrs::get_if_addrs().is_ok_and(|all| all.iter().any(|interface| interface.ip() == address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(listener: &str, address: &str) -> bool {
        let [listener, address] = [listener, address].map(|text| text.parse().expect("address"));
        let is_local = |ip: IpAddr| ip.is_loopback() || ["10.0.0.5", "fd00::5"].contains(&ip.to_string().as_str());
        listener_of(&[listener], address, is_local).is_some()
    }

    #[test]
    fn a_listener_takes_its_own_address_and_on_every_address_those_of_the_machine() {
        for (listener, address, expected) in [
            ("10.0.0.5:1533", "10.0.0.5:1533", true),
            ("10.0.0.5:1533", "[::ffff:10.0.0.5]:1533", true),
            ("10.0.0.5:1533", "10.0.0.5:1534", false),
            ("10.0.0.5:1533", "127.0.0.1:1533", false),
            ("10.0.0.6:1533", "10.0.0.5:1533", false),
            ("127.0.0.1:1533", "0.0.0.0:1533", true),
            ("127.0.0.1:1533", "127.0.0.2:1533", false),
            ("[::]:1533", "127.0.0.2:1533", true),
            ("[::]:1533", "10.0.0.5:1533", true),
            ("[::]:1533", "[fd00::5]:1533", true),
            ("[::]:1533", "[::]:1533", true),
            ("[::]:1533", "10.0.0.7:1533", false),
            ("0.0.0.0:1533", "10.0.0.5:1533", true),
            ("0.0.0.0:1533", "[::1]:1533", false),
            ("[::1]:1533", "[::1]:1533", true),
        ] {
            assert_eq!(takes(listener, address), expected, "{listener} {address}");
        }
    }

    #[test]
    fn the_addresses_of_this_machine_are_known() {
        assert!(is_of_this_machine(Ipv4Addr::new(127, 1, 2, 3).into()));
        assert!(is_of_this_machine(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()));
        assert!(!is_of_this_machine(Ipv4Addr::new(192, 0, 2, 1).into()), "an address for documents");
    }

    #[test]
    fn before_there_are_listeners_nothing_is_taken() {
        let (own, address) = (OwnListeners::default(), SocketAddr::from(([127, 0, 0, 1], 1533)));
        assert_eq!(own.taking(address), None);
        own.clone().set_source(move || vec![address]);
        assert_eq!(own.taking(address), Some(address));
    }
}
