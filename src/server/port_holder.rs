//! Which process listens on an address, as the files of /proc show it (proc(5)).

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use crate::net::address::overlap;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// Who listens on an address, or on one that overlaps with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PortHolder {
    /// Another process, by name and number: `nginx (process 4711)`. Where this process may not look into the other one,
    /// its user: `a process of user 0`.
    Other(String),
    /// This process, and no other.
    ThisProcess,
}

/// A listening socket.
#[derive(Debug, PartialEq, Eq)]
struct ListeningSocket {
    address: SocketAddr,
    user: String,
    inode: String,
}

/// Who listens on `address`; `None` if no listening socket is found. Looks through all processes: this takes a while.
pub(super) fn port_holder(address: SocketAddr) -> Option<PortHolder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let sockets = tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(listening_socket);
    let in_the_way: Vec<_> = sockets.filter(|socket| overlap(socket.address, address)).collect();
    let own = sockets_of(Path::new("/proc/self"));
    match in_the_way.iter().find(|socket| !own.contains(&socket.inode)) {
        Some(socket) => Some(PortHolder::Other(process(socket))),
        None => (!in_the_way.is_empty()).then_some(PortHolder::ThisProcess),
    }
}

/// The socket of a line in `/proc/net/tcp` or `/proc/net/tcp6`, if it listens.
fn listening_socket(line: &str) -> Option<ListeningSocket> {
    // Fields: number, local address and port, remote address, state, ..., user (7), ..., inode (9).
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != LISTENING {
        return None;
    }
    let (ip, port) = fields.get(1)?.split_once(':')?;
    // Numbers of 32 bits as the machine has them in memory, in hexadecimal.
    let words = ip.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match <[u8; 4]>::try_from(&*bytes) {
        Ok(bytes) => IpAddr::from(Ipv4Addr::from(bytes)),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&*bytes).ok()?).into(),
    };
    Some(ListeningSocket {
        address: SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?),
        user: (*fields.get(7)?).to_owned(),
        inode: (*fields.get(9)?).to_owned(),
    })
}

/// The inodes of a process's sockets; none if this process may not look into it.
fn sockets_of(process: &Path) -> BTreeSet<String> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let links = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    let socket = |link: &Path| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    links.filter_map(|link| socket(&link)).collect()
}

/// The process that has `socket`.
fn process(socket: &ListeningSocket) -> String {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        sockets_of(&entry.path()).contains(&socket.inode).then(|| format!("{} (process {pid})", name.trim()))
    });
    found.into_iter().next().unwrap_or_else(|| format!("a process of user {}", socket.user))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read() {
        let line =
            "   2: 0200007F:05FD 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000";
        let socket = listening_socket(line).expect("it listens");
        assert_eq!(
            (socket.address.to_string(), &*socket.user, &*socket.inode),
            ("127.0.0.2:1533".into(), "1000", "4711")
        );
        let line =
            "  1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 5 1 0";
        assert_eq!(listening_socket(line).expect("it listens").address.to_string(), "[::1]:80");
        for other in [line.replace(" 0A ", " 01 "), "  sl  local_address".to_owned(), String::new()] {
            assert_eq!(listening_socket(&other), None, "{other}");
        }
    }

    #[test]
    fn this_process_is_told_from_others_and_one_address_from_another() {
        let held = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("bound");
        let at = |ip: &str| port_holder(SocketAddr::new(ip.parse().expect("address"), address.port()));
        assert_eq!(at("127.0.0.1"), Some(PortHolder::ThisProcess));
        assert_eq!(at("::"), Some(PortHolder::ThisProcess));
        assert_eq!(at("127.0.0.2"), None);
        drop(held);
        assert_eq!(at("127.0.0.1"), None);
    }
}
