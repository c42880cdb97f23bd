//! Why a port can't be bound, for an admin: who holds it, or which right is missing.

use std::{fs, io, net::SocketAddr};

/// `/proc/net/tcp`'s number for a listening socket.
const LISTENING: &str = "0A";

/// What went wrong and what to do.
pub(super) fn explain(error: &io::Error, address: SocketAddr) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = holder(port).unwrap_or_else(|| "another process".to_owned());
            format!("port {port} is in use by {holder}: stop that, or choose another port")
        }
        io::ErrorKind::PermissionDenied => format!(
            "port {port} is below {} and this process may not bind it: give it CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE; by hand: setcap cap_net_bind_service=+ep on the binary), or choose a higher port",
            first_free_for_all()
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is not an address of this machine: correct host_name, or set it to \"\"", address.ip())
        }
        _ => error.to_string(),
    }
}

fn first_free_for_all() -> u16 {
    let file = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    file.and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

/// The process that listens on `port`: its name and number, or its user where we may not look.
fn holder(port: u16) -> Option<String> {
    let (inode, uid) = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(table).ok()?;
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1)?.rsplit(':').next()?;
            let is_it = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTENING;
            is_it.then(|| Some(((*fields.get(9)?).to_owned(), (*fields.get(7)?).to_owned())))?
        })
    })?;
    let socket = format!("socket:[{inode}]");
    let found = fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let holds = |fd: io::Result<fs::DirEntry>| {
            fd.and_then(|fd| fs::read_link(fd.path())).is_ok_and(|to| to.as_os_str() == socket.as_str())
        };
        if !fs::read_dir(process.path().join("fd")).ok()?.any(holds) {
            return None;
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("{} (process {pid})", name.trim()))
    });
    Some(found.unwrap_or_else(|| format!("a process of user {uid}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("bound");
        let error = std::net::TcpListener::bind(address).expect_err("held");
        let says = explain(&error, address);
        assert!(says.contains(&format!("(process {})", std::process::id())), "{says}");
    }

    #[test]
    fn a_missing_right_and_a_strange_address_are_explained() {
        let says = |kind: io::ErrorKind| explain(&kind.into(), "192.0.2.1:80".parse().expect("address"));
        assert!(says(io::ErrorKind::PermissionDenied).contains("CAP_NET_BIND_SERVICE"));
        assert!(says(io::ErrorKind::AddrNotAvailable).contains("192.0.2.1 is not an address of this machine"));
    }
}
