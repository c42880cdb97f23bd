//! Accepting connections on the bound ports.
//!
//! ```text
//!  accept ──▶ open ── close at a moment ──▶ accepts until then ──▶ empties the kernel's queue ──▶ closed
//! ```

use std::{
    cell::RefCell,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinHandle},
};
use tracing::{debug, error, warn};

use super::{Ingress, connection};
use crate::{
    net::{
        Port,
        keepalive::watch_for_vanished,
        listen::{accept_queued, listen_beside},
    },
    telemetry::outcome::AcceptError,
};

/// How long accepting pauses when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A port on which connections are accepted.
pub struct OpenPort {
    /// One for each worker.
    sockets: Vec<Arc<TcpListener>>,
    tasks: Vec<JoinHandle<()>>,
    closes: watch::Sender<Option<Instant>>,
}

impl OpenPort {
    /// Its sockets. Whoever keeps one keeps the port open.
    pub fn sockets(&self) -> &[Arc<TcpListener>] {
        &self.sockets
    }

    /// Accepts until `at`, and then what the kernel has accepted already. The port is closed when the tasks have ended.
    #[must_use = "the port is closed when the tasks have ended"]
    pub fn close(self, at: Instant) -> Vec<JoinHandle<()>> {
        self.closes.send_replace(Some(at));
        self.tasks
    }

    /// Closes the port at once: what the kernel has accepted is reset.
    pub fn abort(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    /// What ends its tasks, also after [`close`](Self::close).
    pub fn abort_handles(&self) -> impl Iterator<Item = AbortHandle> {
        self.tasks.iter().map(JoinHandle::abort_handle)
    }
}

/// Accepts on `listener`, with a task on each of the workers' threads, until the port is closed. The one accept loop of
/// all ports.
///
/// Each thread has a socket of its own on the port, and the kernel spreads connections over them: no
/// thread is woken for what another has taken, and few connections have to be handed over. That the
/// port is free of others has been seen when the first one was bound: only then do more follow. From
/// then on another process of the same user that shares ports can join.
///
/// # Errors
/// Descriptors have run out.
pub fn accept(
    listener: StdListener,
    port: Port,
    ingress: &Arc<Ingress>,
    accepted: &Arc<AtomicU64>,
) -> io::Result<OpenPort> {
    if ingress.workers.runtimes().len() > 1 {
        SockRef::from(&listener).set_reuse_port(true)?;
    }
    let address = listener.local_addr()?;
    let (closes, closing) = watch::channel(None);
    let sockets = RefCell::new(Vec::new());
    let tasks = ingress.workers.spawn_on_each(|worker| {
        let another = if worker > 0 { listen_beside(address).map(Some) } else { Ok(None) };
        let another = another.unwrap_or_else(|error| {
            warn!(port = port.number, %error, "a thread has no socket of its own on the port: it accepts on the first one's");
            None
        });
        let own = match another {
            Some(another) => another,
            None => TcpListener::from_std(listener.try_clone()?)?,
        };
        let own = Arc::new(own);
        sockets.borrow_mut().push(Arc::clone(&own));
        Ok(accept_on(worker, own, port, Arc::clone(ingress), Arc::clone(accepted), closing.clone()))
    })?;
    Ok(OpenPort { sockets: sockets.into_inner(), tasks, closes })
}

async fn accept_on(
    worker: usize,
    listener: Arc<TcpListener>,
    port: Port,
    ingress: Arc<Ingress>,
    accepted: Arc<AtomicU64>,
    closing: watch::Receiver<Option<Instant>>,
) {
    let (mut vanished, mut closed) = (None, pin!(closed(closing)));
    loop {
        let after = ingress.settings.load().vanished_timeout;
        if vanished.replace(after) != Some(after)
            && let Err(failed) = watch_for_vanished(SockRef::from(&*listener), after)
        {
            warn!(port = port.number, %failed, "limits.vanished_timeout is not in force");
        }
        let next = tokio::select! {
            next = listener.accept() => next,
            () = &mut closed => break,
        };
        match next {
            Ok((tcp, peer)) => {
                accepted.fetch_add(1, Relaxed);
                let pause = ingress.counters.pause(&ingress.settings.load().limits);
                if let Some(pause) = pause {
                    ingress.paused(port.number);
                    tokio::time::sleep(pause).await;
                }
                serve(&ingress, worker, tcp, peer, port);
            }
            Err(failed) => {
                let class = AcceptError::of(&failed);
                ingress.telemetry.listeners.accept_errors.count(class);
                if let Some(more) = ingress.accept_errors.pass() {
                    let port = port.number;
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
    // For their clients, these connections were accepted before the port was closed.
    while let Ok(Some((tcp, peer))) = accept_queued(&listener) {
        accepted.fetch_add(1, Relaxed);
        serve(&ingress, worker, tcp, peer, port);
    }
}

/// Waits until the port is to be closed.
async fn closed(mut closing: watch::Receiver<Option<Instant>>) {
    let at = closing.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// Serves a connection on the thread that accepted it, or on one with less to do, which watches it
/// from then on.
fn serve(ingress: &Arc<Ingress>, worker: usize, tcp: TcpStream, peer: SocketAddr, port: Port) {
    let serving = Arc::clone(ingress);
    let Some(other) = ingress.workers.idler_than(worker) else {
        tokio::spawn(connection::serve(serving, tcp, peer, port));
        return;
    };
    let handed_over = tcp.into_std().map(|tcp| {
        other.spawn(async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => connection::serve(serving, tcp, peer, port).await,
                Err(error) => debug!(client = %peer, port = port.number, %error, "the connection can't be watched"),
            }
        });
    });
    if let Err(error) = handed_over {
        debug!(client = %peer, port = port.number, %error, "the connection can't be handed over");
    }
}
