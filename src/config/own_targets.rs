//! Whether the settings make the program its own Community server or its own web back end: each of its clients would
//! come back to it, again and again.
//!
//! An address and `localhost` are checked whenever the settings are read. A name is looked up only by `sametime-mux
//! check`, since a start or a reload does not wait for a name server: the running program checks the addresses of a name
//! when it looks it up.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{Settings, reader::KeyReader};
use crate::{
    community::ServerAddress,
    net::own::{is_of_this_machine, listener_of},
};

/// How long a look-up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// What is done with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// Only its text is compared.
    Compared,
    /// It is looked up.
    LookedUp,
}

/// A listener of the settings.
struct OwnPort<'s> {
    /// As the error names it.
    name: String,
    /// As configured: an address, a name, or empty for every address.
    host: &'s str,
    /// Where it listens, as far as it is known.
    addresses: Vec<SocketAddr>,
}

/// Reports each Community server, and the web back end, that is a listener of the same settings.
pub(super) fn report(reader: &mut KeyReader<'_>, settings: &Settings, names: Names) {
    let listeners = settings.ingress.listeners.iter().map(|listener| OwnPort {
        name: format!("[{}] port {}", listener.section, listener.port),
        host: &listener.host,
        addresses: match listener.host.as_str() {
            "" => vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), listener.port)],
            host => addresses(host, listener.port, names),
        },
    });
    let admin = settings.admin.listen.map(|address| OwnPort {
        name: "admin.listen".to_owned(),
        host: "",
        addresses: vec![address],
    });
    let ports: Vec<OwnPort<'_>> = listeners.chain(admin).collect();
    for server in &settings.community.servers {
        if let ServerAddress::Address(text) = &server.address
            && let Some((host, port)) = text.rsplit_once(':')
            && let Some(port) = port.parse().ok().and_then(|port| own_port(&ports, (host, port), false, names))
        {
            reader.conflict("community", "servers", &format!("{text:?} is this program itself: {}", port.name));
        }
    }
    if let Some(url) = &settings.ingress.http_backend
        && let Some(authority) = url.authority()
        && let Some(port) = own_port(&ports, (authority.host(), authority.port_u16().unwrap_or(80)), true, names)
    {
        let text = url.to_string();
        let what = format!("{:?} is this program itself: {}", text.trim_end_matches('/'), port.name);
        reader.conflict("http_backend", "url", &what);
    }
}

/// The listener that connections to `host` and `port` come to. If some addresses of the host are those of another
/// program, this is a listener only `if_any` is true: of a Community server, the running program uses the others.
fn own_port<'p, 's>(
    ports: &'p [OwnPort<'s>],
    (host, port): (&str, u16),
    if_any: bool,
    names: Names,
) -> Option<&'p OwnPort<'s>> {
    let host = host.trim_matches(['[', ']']);
    let targets = addresses(host, port, names);
    let taking = |target: &SocketAddr| {
        ports.iter().find(|own| listener_of(&own.addresses, *target, is_of_this_machine).is_some())
    };
    let by_name = || {
        let is_same =
            |own: &&OwnPort<'_>| own.host.eq_ignore_ascii_case(host) && own.name.ends_with(&format!(" {port}"));
        ports.iter().filter(|own| !own.host.is_empty()).find(is_same)
    };
    let taken: Vec<_> = targets.iter().map(taking).collect();
    let is_own = if_any || taken.iter().all(Option::is_some);
    taken.into_iter().flatten().next().filter(|_| is_own).or_else(by_name)
}

/// The addresses of a host, as far as they are known without a look-up, or by one.
fn addresses(host: &str, port: u16, names: Names) -> Vec<SocketAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return vec![SocketAddr::new(address, port)];
    }
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        // RFC 6761, section 6.3.
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        return loopback.map(|ip| SocketAddr::new(ip, port)).into();
    }
    match names {
        Names::Compared => Vec::new(),
        Names::LookedUp => look_up(host.to_owned(), port),
    }
}

/// Looks a name up on a thread of its own, which is left alone if it takes too long. A name that has no address now may
/// have one later.
fn look_up(host: String, port: u16) -> Vec<SocketAddr> {
    let (found, result) = mpsc::channel();
    thread::spawn(move || {
        let addresses = (host, port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
        let _ = found.send(addresses);
    });
    result.recv_timeout(LOOKUP_TIMEOUT).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::parse;

    fn problem(toml: &str) -> Option<String> {
        parse(toml, Path::new("st.toml"), std::iter::empty()).err().map(|errors| errors.to_string())
    }

    #[test]
    fn a_server_that_is_a_listener_is_reported_with_its_line() {
        let problem = problem("[community]\nbalance = \"failover\"\nservers = [\"chat:1\", \"127.0.0.1:1533\"]\n");
        let expected = "st.toml:3: community.servers: \"127.0.0.1:1533\" is this program itself: \
                        [client_connections] port 1533 (a list of ";
        assert!(problem.as_deref().is_some_and(|problem| problem.starts_with(expected)), "{problem:?}");
    }

    #[test]
    fn the_host_name_of_a_section_counts() {
        let server = |host: &str, server: &str| {
            problem(&format!("[client_connections]\nhost_name = \"{host}\"\n[community]\nservers = [\"{server}\"]\n"))
        };
        assert!(server("192.0.2.1", "192.0.2.1:1533").is_some());
        assert!(server("192.0.2.1", "192.0.2.1:1534").is_none());
        assert!(server("192.0.2.1", "127.0.0.1:1533").is_none());
        assert!(server("127.0.0.1", "localhost:1533").is_none(), "its IPv6 address is another program's");
        assert!(server("mux.invalid", "MUX.invalid:1533").is_some());
        assert!(server("mux.invalid", "chat.invalid:1533").is_none());
    }

    #[test]
    fn every_section_and_the_admin_endpoint_count_for_the_web_back_end() {
        for (url, name) in [
            ("http://localhost", "[http_tunneled_client_connections] port 80"),
            ("http://[::1]:8082", "[http_tunneled_client_connections] port 8082"),
            ("http://127.0.0.1:443", "[https_tunneled_client_connections] port 443"),
            ("http://127.0.0.1:9533", "admin.listen"),
            ("http://localhost:9533", "admin.listen"),
        ] {
            let problem = problem(&format!("[http_backend]\nurl = \"{url}\"\n")).expect("refused");
            let expected = format!("st.toml:2: http_backend.url: {url:?} is this program itself: {name}");
            assert!(problem.starts_with(&expected), "{problem}");
        }
        let other = "[http_backend]\nurl = \"http://127.0.0.1:8088\"\n[community]\nservers = [\"chat:1\"]\n";
        assert_eq!(problem(other), None);
    }
}
