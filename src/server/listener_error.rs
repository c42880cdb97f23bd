//! Why a listener is down: a reason that is counted and logged, and a text for the admin.

use std::{fmt, fs, io, net::SocketAddr};

use rustix::io::Errno;

use super::port_holder::{PortHolder, port_holder};
use crate::{ingress::ListenerSettings, net::resolve::HostNameError, telemetry::outcome::ListenerFailure};

/// Why a listener is down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListenerError {
    /// The reason by which it is counted.
    pub(super) reason: ListenerFailure,
    /// For the admin: what is wrong, and what to do.
    pub(super) what: String,
}

impl ListenerError {
    /// `address` could not be bound. Looks for the process that holds it: this takes a while.
    pub(super) fn from_bind(error: &io::Error, address: SocketAddr) -> Self {
        match failure(error) {
            ListenerFailure::InUse => Self::in_use(address, port_holder(address)),
            reason => Self { reason, what: explain(reason, error, address) },
        }
    }

    /// Another socket is bound to `address`, or to one that overlaps with it.
    pub(super) fn in_use(address: SocketAddr, holder: Option<PortHolder>) -> Self {
        let port = address.port();
        let what = match holder {
            Some(PortHolder::Other(process)) => {
                format!("port {port} is in use by {process}: stop that, or choose another port")
            }
            // Its listeners are handed over, so it is the sandbox.
            Some(PortHolder::ThisProcess) => {
                format!("port {port} is taken by the sandbox Community server of this program: choose another port")
            }
            // A socket that is connected, not one that listens.
            None => {
                format!("port {port} is in use, as the near end of a connection: try again, or choose another port")
            }
        };
        Self { reason: ListenerFailure::InUse, what }
    }

    /// The service manager passed a socket on `passed`, which would take connections of `address`, too.
    pub(super) fn beside_passed(address: SocketAddr, passed: SocketAddr) -> Self {
        let what = format!(
            "the service manager passed a socket on {passed}, which overlaps with {address}: give ListenStream= of the socket unit and host_name the same address"
        );
        Self { reason: ListenerFailure::BesidePassed, what }
    }

    /// The listener was bound, but it can't listen, or no connection can be accepted on it.
    pub(super) fn from_listen(error: &io::Error) -> Self {
        Self { reason: failure(error), what: error.to_string() }
    }

    /// The `host_name` of the listener can't be resolved.
    pub(super) fn unresolved(settings: &ListenerSettings, error: &HostNameError) -> Self {
        let what = format!("[{}] host_name {:?}: {error}", settings.section, settings.host);
        Self { reason: ListenerFailure::Unresolved, what }
    }

    /// `address` overlaps with one of section `other`.
    pub(super) fn overlap(address: SocketAddr, other: &str) -> Self {
        let what = format!("port {} of {} is in [{other}], too", address.port(), address.ip());
        Self { reason: ListenerFailure::Overlap, what }
    }
}

impl fmt::Display for ListenerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ListenerError {}

/// The reason of an error of the system, by bind(2).
fn failure(error: &io::Error) -> ListenerFailure {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => ListenerFailure::InUse,
        Some(Errno::ACCESS | Errno::PERM) => ListenerFailure::NotPermitted,
        Some(Errno::ADDRNOTAVAIL) => ListenerFailure::NotAnAddress,
        _ => ListenerFailure::Other,
    }
}

fn explain(reason: ListenerFailure, error: &io::Error, address: SocketAddr) -> String {
    match reason {
        ListenerFailure::NotPermitted => format!(
            "port {} is below {} and this process may not bind it: give it CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE; by hand: setcap cap_net_bind_service=+ep on the binary), or choose a higher port",
            address.port(),
            first_unprivileged_port()
        ),
        ListenerFailure::NotAnAddress => {
            format!("{} is not an address of this machine: correct host_name, or set it to \"\"", address.ip())
        }
        ListenerFailure::InUse
        | ListenerFailure::Unresolved
        | ListenerFailure::Overlap
        | ListenerFailure::BesidePassed
        | ListenerFailure::Other => error.to_string(),
    }
}

/// The lowest port that a process without CAP_NET_BIND_SERVICE may bind; 1024 unless the system is configured otherwise.
fn first_unprivileged_port() -> u16 {
    let file = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    file.and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named_and_this_process_is_no_stranger() {
        let address = "192.0.2.1:80".parse().expect("address");
        let says = |holder| ListenerError::in_use(address, holder).what;
        let nginx = PortHolder::Other("nginx (process 4711)".to_owned());
        assert!(says(Some(nginx)).contains("port 80 is in use by nginx (process 4711): stop that"));
        assert!(says(Some(PortHolder::ThisProcess)).contains("of this program"));
        assert!(says(None).contains("near end of a connection"));
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = held.local_addr().expect("bound");
        let error = std::net::TcpListener::bind(address).expect_err("held");
        let error = ListenerError::from_bind(&error, address);
        assert_eq!(error.reason, ListenerFailure::InUse);
        assert!(!error.what.contains("(process "), "{error}");
    }

    #[test]
    fn a_missing_right_and_a_strange_address_are_explained() {
        let address = "192.0.2.1:80".parse().expect("address");
        let error = |errno: Errno| ListenerError::from_bind(&errno.into(), address);
        for (errno, reason, says) in [
            (Errno::ACCESS, ListenerFailure::NotPermitted, "CAP_NET_BIND_SERVICE"),
            (Errno::PERM, ListenerFailure::NotPermitted, "CAP_NET_BIND_SERVICE"),
            (Errno::ADDRNOTAVAIL, ListenerFailure::NotAnAddress, "192.0.2.1 is not an address of this machine"),
            (Errno::MFILE, ListenerFailure::Other, "Too many open files"),
        ] {
            let error = error(errno);
            assert_eq!(error.reason, reason, "{errno}");
            assert!(error.what.contains(says), "{error}");
        }
    }

    #[test]
    fn no_meaning_is_taken_from_a_kind() {
        let error = ListenerError::from_listen(&io::ErrorKind::AddrInUse.into());
        assert_eq!(error.reason, ListenerFailure::Other);
    }
}
