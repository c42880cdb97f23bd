//! The checks of values. Each converts a value as the file has it to the value that the settings hold, or returns
//! what is wrong with it.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    community::Server,
    net::{address::overlap, resolve::literal},
};

/// A number in a range.
pub(super) fn number<N>(range: RangeInclusive<i64>) -> impl Fn(i64) -> Result<N, String>
where
    N: TryFrom<i64, Error: Display>,
{
    move |n| {
        if !range.contains(&n) {
            return Err(format!("{n} is out of bounds"));
        }
        N::try_from(n).map_err(|error| error.to_string())
    }
}

/// A duration in a range, such as `"100ms"` or `"5m"`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(String) -> Result<Duration, String> {
    move |text| {
        let found = humantime::parse_duration(&text).map_err(|error| format!("{text:?} is no duration: {error}"))?;
        if range.contains(&found) { Ok(found) } else { Err(format!("{text:?} is out of bounds")) }
    }
}

/// As [`duration`]; 0 is `None`, which means never.
pub(super) fn duration_or_never(
    range: RangeInclusive<Duration>,
) -> impl Fn(String) -> Result<Option<Duration>, String> {
    let in_range = duration(range);
    move |text| match humantime::parse_duration(&text) {
        Ok(Duration::ZERO) => Ok(None),
        _ => in_range(text).map(Some),
    }
}

/// Ports, each of them once.
pub(super) fn ports(ports: Vec<i64>) -> Result<Vec<u16>, String> {
    let mut seen = Vec::new();
    for port in ports {
        let port = u16::try_from(port).ok().filter(|&port| port > 0).ok_or(format!("{port} is no port"))?;
        if seen.contains(&port) {
            return Err(format!("port {port} stands there twice"));
        }
        seen.push(port);
    }
    Ok(seen)
}

/// Whether a port on `host` and one on `other`, each an address or a name as the file has it, may be the same socket. A
/// name is known only when it is looked up, except that every address covers it.
pub(super) fn may_overlap(host: &str, other: &str) -> bool {
    let socket = |host: &str| literal(host).map(|ip| SocketAddr::new(ip, 0));
    let is_every = |address: SocketAddr| address == SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    match (socket(host), socket(other)) {
        (Some(host), Some(other)) => overlap(host, other),
        (Some(address), None) | (None, Some(address)) => is_every(address),
        (None, None) => host.eq_ignore_ascii_case(other),
    }
}

/// Whether `host` has the form of a host name. A label may contain an underscore, which names of internal networks do.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= 253 && host.trim_end_matches('.').split('.').all(label)
}

/// An address, a host name, or `""`. Returns an IPv6 address without its brackets.
pub(super) fn host(host: String) -> Result<String, String> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&host);
    if host.is_empty() || bare.parse::<IpAddr>().is_ok() || is_name(&host) {
        return Ok(bare.to_owned());
    }
    Err(format!("{host:?} is neither an address nor a name"))
}

/// Networks. A single address is the network that has only this address.
pub(super) fn networks(networks: Vec<String>) -> Result<Vec<IpNet>, String> {
    networks
        .into_iter()
        .map(|text| {
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| format!("{text:?} is no network"))
        })
        .collect()
}

/// `host:port`, where an IPv6 address has brackets.
pub(super) fn host_and_port(text: &str) -> Result<(), String> {
    let (name, port) = text.rsplit_once(':').ok_or(format!("{text:?} has no port"))?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(format!("{text:?} has no legal port"));
    }
    let bracketed = name.starts_with('[') && name.ends_with(']');
    if name.is_empty() || (name.contains(':') && !bracketed) {
        return Err(format!("{text:?} has no legal host; an IPv6 address stands in brackets"));
    }
    host(name.to_owned()).map(|_| ())
}

/// Community servers: at least one, each of them once.
pub(super) fn servers(names: Vec<String>) -> Result<Vec<Server>, String> {
    let mut servers = Vec::new();
    for name in names {
        let server = match name.as_str() {
            "sandbox" => Server::Sandbox,
            address => {
                host_and_port(address)?;
                Server::Address(address.to_owned())
            }
        };
        if servers.contains(&server) {
            return Err(format!("{name:?} stands there twice"));
        }
        servers.push(server);
    }
    if servers.is_empty() { Err("there is no server".to_owned()) } else { Ok(servers) }
}

/// `http://host[:port]`; `""` is `None`.
pub(super) fn backend(url: String) -> Result<Option<hyper::Uri>, String> {
    if url.is_empty() {
        return Ok(None);
    }
    let uri: hyper::Uri = url.parse().map_err(|error| format!("{url:?} is no URL: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url:?} does not begin with http://"));
    }
    let has_host = uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'));
    if !has_host || uri.path() != "/" || uri.query().is_some() {
        return Err(format!("{url:?} is more, or less, than http://host:port"));
    }
    Ok(Some(uri))
}
