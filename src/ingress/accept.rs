//! Accepting connections on the bound ports.
//!
//! Each worker has its own socket on each port, and the kernel spreads connections over them: a worker does not wake
//! for a connection that another one accepts, and few connections have to be handed over to another worker.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::io::Errno;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tracing::{debug, error, warn};

use super::{Ingress, connection};
use crate::{
    log::Throttle,
    net::{keepalive::watch_for_vanished, listen::bind_one},
    runtime::Workers,
    telemetry::outcome::AcceptError,
};

/// How long accepting pauses when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What accepting needs beside the rest of the ingress.
pub(super) struct Accepting {
    workers: Workers,
    pauses: Throttle,
    errors: Throttle,
}

impl Accepting {
    pub(super) fn new(workers: Workers) -> Self {
        Self { workers, pauses: Throttle::default(), errors: Throttle::default() }
    }
}

/// What an error of accept means.
fn classify(error: &io::Error) -> AcceptError {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    match code {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AcceptError::Exhausted,
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => AcceptError::Listener,
        // Linux returns network errors that a new connection already has from accept (accept(2)).
        _ => AcceptError::Connection,
    }
}

/// Accepts connections on a port with one task on each worker. The tasks run until they are aborted.
///
/// `listener` was bound alone, which detects a port that is in use. The sockets of the other workers are bound here.
/// From then on, another process of the same user that shares ports can bind the port, too.
///
/// # Errors
/// Descriptors have run out.
pub fn accept(
    listener: TcpListener,
    port: u16,
    ingress: &Arc<Ingress>,
    accepted: &Arc<AtomicU64>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let workers = &ingress.accepting.workers;
    if workers.runtimes().len() > 1 {
        SockRef::from(&listener).set_reuse_port(true)?;
    }
    let address = listener.local_addr()?;
    let listener = listener.into_std()?;
    workers.spawn_on_each(|worker| {
        let another = if worker > 0 { bind_one(address, true).map(Some) } else { Ok(None) };
        let another = another.unwrap_or_else(|error| {
            warn!(port, %error, "a worker has no socket of its own on the port: it uses the first worker's");
            None
        });
        let own = match another {
            Some(another) => another,
            None => TcpListener::from_std(listener.try_clone()?)?,
        };
        Ok(accept_on(worker, own, port, Arc::clone(ingress), Arc::clone(accepted)))
    })
}

async fn accept_on(worker: usize, listener: TcpListener, port: u16, ingress: Arc<Ingress>, accepted: Arc<AtomicU64>) {
    let mut vanished_timeout = None;
    loop {
        // Accepted sockets inherit it. It is set again after a reload has changed it.
        let after = ingress.settings.load().vanished_timeout;
        if vanished_timeout.replace(after) != Some(after)
            && let Err(failed) = watch_for_vanished(SockRef::from(&listener), after)
        {
            warn!(port, %failed, "limits.vanished_timeout is not in force");
        }
        match listener.accept().await {
            Ok((tcp, peer)) => {
                accepted.fetch_add(1, Relaxed);
                let (pause, after) = {
                    let settings = ingress.settings.load();
                    (ingress.counters.pause(&settings.limits), settings.vanished_timeout)
                };
                // It has the time that the listener had when the kernel accepted it: the former one after a reload.
                let socket = SockRef::from(&tcp);
                let inherited = socket.tcp_user_timeout().ok().flatten().map(|time| time.as_millis());
                if inherited != Some(after.as_millis()) {
                    let _ = watch_for_vanished(socket, after);
                }
                if let Some(pause) = pause {
                    report_pause(&ingress, port);
                    tokio::time::sleep(pause).await;
                }
                serve(&ingress, worker, tcp, peer, port);
            }
            Err(error) => {
                let class = classify(&error);
                report_error(&ingress, class, &error, port);
                if class != AcceptError::Connection {
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }
}

/// Counts and logs a connection that has to wait because of `limits.connection_rate`.
fn report_pause(ingress: &Ingress, port: u16) {
    ingress.telemetry.connections.delayed();
    if let Some(more) = ingress.accepting.pauses.pass() {
        warn!(port, more, "more connections than limits.connection_rate: they wait");
    }
}

/// Counts and logs an error of accept.
fn report_error(ingress: &Ingress, class: AcceptError, failed: &io::Error, port: u16) {
    ingress.telemetry.listeners.accept_errors.count(class);
    let Some(more) = ingress.accepting.errors.pass() else { return };
    match class {
        AcceptError::Connection => warn!(port, %failed, more, "a connection was gone before it was accepted"),
        AcceptError::Exhausted => error!(port, %failed, more,
            "out of descriptors or memory: accepting pauses; raise the limit (LimitNOFILE, ulimit -n) or lower limits.capacity"),
        AcceptError::Listener => error!(port, %failed, more, "the port can't accept"),
    }
}

/// Serves a connection on the worker that accepted it, or hands it over to a worker that is less busy.
fn serve(ingress: &Arc<Ingress>, worker: usize, tcp: TcpStream, peer: SocketAddr, port: u16) {
    let serving = Arc::clone(ingress);
    let Some(other) = ingress.accepting.workers.less_busy_than(worker) else {
        return connection::start(serving, tcp, peer, port);
    };
    // A socket belongs to the I/O driver of one runtime: it is deregistered here and registered there.
    let handed_over = tcp.into_std().map(|tcp| {
        other.spawn(async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => connection::start(serving, tcp, peer, port),
                Err(error) => debug!(client = %peer, port, %error, "the connection can't be registered"),
            }
        });
    });
    if let Err(error) = handed_over {
        debug!(client = %peer, port, %error, "the connection can't be handed over");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_are_classed() {
        for (errno, class) in [
            (Errno::MFILE, AcceptError::Exhausted),
            (Errno::NFILE, AcceptError::Exhausted),
            (Errno::CONNABORTED, AcceptError::Connection),
            (Errno::NETDOWN, AcceptError::Connection),
            (Errno::INVAL, AcceptError::Listener),
        ] {
            assert_eq!(classify(&errno.into()), class, "{errno}");
        }
    }
}
