//! The checks of values. Each converts a value as the file has it to the value that the settings hold, or returns
//! what is wrong with it.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};

use crate::{
    community::{ConfiguredServer, MAX_WEIGHT, ServerAddress},
    net::{
        address::{canonical, overlap},
        resolve::literal,
    },
};

/// The name of the embedded Community server in `community.servers`.
const SANDBOX: &str = "sandbox";
/// The prefix of the network of all IPv4-mapped addresses, in bits.
const IPV4_MAPPED_PREFIX: u8 = 96;

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
    // The system reads `127.1` and `0x7f000001` as addresses, and looks `10.0.0.256` up as a name: all are mistakes.
    let number = |label: &str| match label.strip_prefix("0x").or_else(|| label.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    };
    let bare = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253 && bare.split('.').all(label) && !bare.split('.').all(number)
}

/// The address that `host` is. An IPv6 address may have brackets. An IPv4-mapped address is the IPv4 address: a socket
/// for IPv6 alone can't be bound to it, and clients are known by the IPv4 address.
fn address(host: &str) -> Option<IpAddr> {
    let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bare) => bare.parse::<Ipv6Addr>().ok()?.into(),
        None => host.parse::<IpAddr>().ok()?,
    };
    Some(address.to_canonical())
}

/// An address, a host name, or `""`. Returns an address in its shortest form, without brackets.
pub(super) fn host(host: String) -> Result<String, String> {
    match address(&host) {
        Some(address) => Ok(address.to_string()),
        None if host.is_empty() || is_name(&host) => Ok(host),
        None => Err(format!("{host:?} is neither an address nor a name")),
    }
}

/// The name of a node of a cluster, which has the form of a host name. Returns it in small letters.
pub(super) fn node(name: &str) -> Result<String, String> {
    let is_legal = is_name(name) || (!name.is_empty() && name.len() <= 63 && name.bytes().all(|b| b.is_ascii_digit()));
    if is_legal { Ok(name.to_ascii_lowercase()) } else { Err(format!("{name:?} is no name of a node")) }
}

/// `address:port`; `""` is `None`.
pub(super) fn listen(text: String) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().map_err(|_| format!("{text:?} is no address with a port"))?;
    let address = canonical(address);
    if address.port() == 0 { Err(format!("{text:?} has no port")) } else { Ok(Some(address)) }
}

/// Whether two hosts, as [`host`] returns them, are the same name or the same address.
fn is_same(a: &str, b: &str) -> bool {
    let bare = |host| str::strip_suffix(host, ".").unwrap_or(host);
    bare(a).eq_ignore_ascii_case(bare(b))
}

/// Networks. A single address is the network that has only this address.
pub(super) fn networks(networks: Vec<String>) -> Result<Vec<IpNet>, String> {
    networks.iter().map(|text| network(text)).collect()
}

/// A network. One of IPv4-mapped addresses is the network of the IPv4 addresses, because clients are known by these.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| format!("{text:?} is no network"))?;
    let IpNet::V6(ipv6) = network else { return Ok(network) };
    let Some(ipv4) = ipv6.addr().to_ipv4_mapped() else { return Ok(network) };
    let prefix = ipv6.prefix_len().checked_sub(IPV4_MAPPED_PREFIX).and_then(|length| Ipv4Net::new(ipv4, length).ok());
    prefix
        .map(IpNet::V4)
        .ok_or_else(|| format!("{text:?} has IPv4-mapped addresses, and a prefix of less than 96 bits"))
}

/// A port as text, in digits alone.
fn port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&port| is_number && port > 0)
}

/// `host:port`, where an IPv6 address has brackets. Returns the two, the host as [`host`] does.
pub(super) fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (name, digits) = text.rsplit_once(':').ok_or(format!("{text:?} has no port"))?;
    let port = port(digits).ok_or(format!("{text:?} has no legal port"))?;
    let bracketed = name.starts_with('[') && name.ends_with(']');
    if name.is_empty() || (name.contains(':') && !bracketed) {
        return Err(format!("{text:?} has no legal host; an IPv6 address stands in brackets"));
    }
    Ok((host(name.to_owned())?, port))
}

/// Community servers: at least one, each of them once.
pub(super) fn servers(texts: Vec<String>) -> Result<Vec<ConfiguredServer>, String> {
    let (mut servers, mut places) = (Vec::<ConfiguredServer>::new(), Vec::<(String, u16)>::new());
    for text in texts {
        let (name, words) = text.split_once(char::is_whitespace).unwrap_or((&text, ""));
        let address = if name == SANDBOX {
            if servers.iter().any(|server| server.address == ServerAddress::Sandbox) {
                return Err(format!("{name:?} stands there twice"));
            }
            ServerAddress::Sandbox
        } else {
            let (host, port) = host_and_port(name)?;
            if places.iter().any(|(other, at)| *at == port && is_same(other, &host)) {
                return Err(format!("{name:?} stands there twice"));
            }
            places.push((host, port));
            ServerAddress::Address(name.to_owned())
        };
        servers.push(server(address, words).map_err(|what| format!("{text:?}: {what}"))?);
    }
    if servers.is_empty() { Err("there is no server".to_owned()) } else { Ok(servers) }
}

/// The server at `address`, with the words that follow the address in the file.
fn server(address: ServerAddress, words: &str) -> Result<ConfiguredServer, String> {
    let (mut server, mut seen) = (ConfiguredServer::from(address), Vec::new());
    for word in words.split_whitespace() {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("weight", Some(digits)) => {
                let weight = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
                let weight = weight.filter(|weight| (1..=MAX_WEIGHT).contains(weight));
                server.weight = weight.ok_or(format!("a weight is 1 to {MAX_WEIGHT}"))?;
            }
            _ => return Err(format!("{word:?} is no word for a server")),
        }
        if seen.contains(&key) {
            return Err(format!("{key:?} stands there twice"));
        }
        seen.push(key);
    }
    Ok(server)
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
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let is_whole = !authority.is_empty() && !authority.contains('@') && uri.path() == "/" && uri.query().is_none();
    // A fragment is in no part of the parsed URL.
    if !is_whole || url.contains('#') {
        return Err(format!("{url:?} is more, or less, than http://host:port"));
    }
    let has_port = !authority.ends_with(']') && authority.contains(':');
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    host_and_port(&authority).map_err(|error| format!("{url:?}: {error}"))?;
    Ok(Some(uri))
}
