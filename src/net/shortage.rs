//! Whether this machine lacks what a connection needs: descriptors or memory. Such a failure says nothing about the host
//! at the other end.

use std::io;

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

/// More sockets than a look-up needs at the same time, with some for the threads beside it.
const SOCKETS: usize = 4;

/// Whether descriptors or memory have run out, by the system's error.
pub fn is_shortage(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw_os_error(code)))
}

/// The error of the system if there are no descriptors, or no memory, for a few sockets now. A library that needs some
/// does not always report that it had none: the C library's look-up says that a name is not known.
pub fn shortage() -> Option<io::Error> {
    // All of them are open at the same time.
    let sockets: Result<Vec<Socket>, io::Error> =
        (0..SOCKETS).map(|_| Socket::new(Domain::IPV4, Type::DGRAM, None)).collect();
    sockets.err().filter(is_shortage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_refuses_is_no_shortage() {
        for (errno, expected) in [(Errno::MFILE, true), (Errno::NOBUFS, true), (Errno::CONNREFUSED, false)] {
            assert_eq!(is_shortage(&errno.into()), expected, "{errno}");
        }
        assert!(!is_shortage(&io::Error::other("a name that is not known")));
    }
}
