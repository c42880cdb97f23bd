//! Accepting connections on the bound ports.

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
    net::{keepalive::watch_for_vanished, listen::bind_one},
    telemetry::outcome::AcceptError,
};

/// How long accepting pauses when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What an error of accept means for the loop.
fn classify(error: &io::Error) -> AcceptError {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    match code {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => AcceptError::Exhausted,
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => AcceptError::Listener,
        // accept(2): network errors of the new connection are passed on by accept.
        _ => AcceptError::Connection,
    }
}

/// Accepts for ever: returns a task on each of the workers' threads, which end when they are
/// aborted. The one accept loop of all ports.
///
/// Each thread has a socket of its own on the port, and the kernel spreads connections over them: no
/// thread is woken for what another has taken, and few connections have to be handed over. That the
/// port is free of others has been seen when the first one was bound: only then do more follow. From
/// then on another process of the same user that shares ports can join.
///
/// # Errors
/// Descriptors have run out.
pub fn accept(
    listener: TcpListener,
    port: u16,
    ingress: &Arc<Ingress>,
    accepted: &Arc<AtomicU64>,
) -> io::Result<Vec<JoinHandle<()>>> {
    if ingress.workers.runtimes().len() > 1 {
        SockRef::from(&listener).set_reuse_port(true)?;
    }
    let address = listener.local_addr()?;
    let listener = listener.into_std()?;
    ingress.workers.spawn_on_each(|worker| {
        let another = if worker > 0 { bind_one(address, true).map(Some) } else { Ok(None) };
        let another = another.unwrap_or_else(|error| {
            warn!(port, %error, "a thread has no socket of its own on the port: it accepts on the first one's");
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
    let mut vanished = None;
    loop {
        let after = ingress.settings.load().vanished_timeout;
        if vanished.replace(after) != Some(after)
            && let Err(failed) = watch_for_vanished(SockRef::from(&listener), after)
        {
            warn!(port, %failed, "limits.vanished_timeout is not in force");
        }
        match listener.accept().await {
            Ok((tcp, peer)) => {
                accepted.fetch_add(1, Relaxed);
                let pause = ingress.counters.pause(&ingress.settings.load().limits);
                if let Some(pause) = pause {
                    ingress.paused(port);
                    tokio::time::sleep(pause).await;
                }
                serve(&ingress, worker, tcp, peer, port);
            }
            Err(failed) => {
                let class = classify(&failed);
                ingress.telemetry.listeners.accept_errors.count(class);
                if let Some(more) = ingress.accept_errors.pass() {
                    match class {
                        AcceptError::Connection => {
                            warn!(port, %failed, more, "a connection was gone before it was accepted")
                        }
                        AcceptError::Exhausted => error!(port, %failed, more,
                            "out of descriptors or memory: accepting pauses; raise the limit (LimitNOFILE, ulimit -n) or lower limits.capacity"),
                        AcceptError::Listener => error!(port, %failed, more, "the port can't accept"),
                    }
                }
                if class != AcceptError::Connection {
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }
}

/// Serves a connection on the thread that accepted it, or on one with less to do, which watches it
/// from then on.
fn serve(ingress: &Arc<Ingress>, worker: usize, tcp: TcpStream, peer: SocketAddr, port: u16) {
    let serving = Arc::clone(ingress);
    let Some(other) = ingress.workers.less_busy_than(worker) else {
        tokio::spawn(connection::serve(serving, tcp, peer, port));
        return;
    };
    let handed_over = tcp.into_std().map(|tcp| {
        other.spawn(async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => connection::serve(serving, tcp, peer, port).await,
                Err(error) => debug!(client = %peer, port, %error, "the connection can't be watched"),
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
