//! Which process listens on a port, as the files of /proc show it (proc(5)).

use std::{fs, io};

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// The process that listens on `port`, by name and number: `nginx (process 4711)`. Where this process may not look into
/// the other one, its user: `a process of user 0`. `None` if no listening socket is found.
pub(super) fn port_holder(port: u16) -> Option<String> {
    let (inode, uid) = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(table).ok()?;
        table.lines().skip(1).find_map(|line| {
            // Fields: number, local address and port in hexadecimal, remote address, state, ..., user (7), ..., inode
            // (9).
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1)?.rsplit(':').next()?;
            let is_it = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTENING;
            is_it.then(|| Some(((*fields.get(9)?).to_owned(), (*fields.get(7)?).to_owned())))?
        })
    })?;
    let socket = format!("socket:[{inode}]");
    let found = fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let is_socket = |fd: io::Result<fs::DirEntry>| {
            fd.and_then(|fd| fs::read_link(fd.path())).is_ok_and(|to| to.as_os_str() == socket.as_str())
        };
        if !fs::read_dir(process.path().join("fd")).ok()?.any(is_socket) {
            return None;
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        Some(format!("{} (process {pid})", name.trim()))
    });
    Some(found.unwrap_or_else(|| format!("a process of user {uid}")))
}
