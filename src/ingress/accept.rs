//! Accepting connections on the bound ports.
//!
//! Each worker has its own socket on each port, and the kernel spreads connections over them: a worker does not wake
//! for a connection that another one accepts, and few connections have to be handed over to another worker.
//!
//! ```text
//!  accept ──▶ open ─┬─ close at a moment ──▶ accepts until then ──▶ empties the kernel's queue ──▶ closed
//!                   └─ leave ──▶ accepts nothing: the queue is for the next process that has the sockets
//! ```

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
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

use super::{Ingress, connection, trunk_listener};
use crate::{
    log::{Throttle, Throttles},
    net::{
        Port, Section,
        keepalive::watch_for_vanished,
        listen::{ListeningSockets, accept_queued, listen_beside},
    },
    runtime::Workers,
    telemetry::outcome::{AcceptError, Outcome},
};

/// How long accepting pauses when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What accepting needs beside the rest of the ingress.
pub(super) struct Accepting {
    workers: Workers,
    pauses: Throttle,
    /// By [`AcceptError`].
    errors: Throttles,
}

impl Accepting {
    pub(super) fn new(workers: Workers) -> Self {
        Self { workers, pauses: Throttle::default(), errors: Throttles::new(AcceptError::ALL.len()) }
    }

    /// The workers that serve connections.
    pub(super) fn workers(&self) -> &Workers {
        &self.workers
    }
}

/// A port on which connections are accepted.
pub struct OpenPort {
    /// At least one for each worker.
    sockets: Vec<Arc<TcpListener>>,
    are_passed: bool,
    tasks: Vec<JoinHandle<()>>,
    /// Whether near ends of trunks connect to it, and not clients.
    is_trunk: Arc<AtomicBool>,
    closes: watch::Sender<Option<Close>>,
}

/// How a port is closed.
#[derive(Debug, Clone, Copy)]
enum Close {
    /// Accepts until this moment, and then what the kernel has accepted already.
    At(Instant),
    /// Accepts nothing more: the kernel keeps the connections for the next process that has the socket.
    Leaving,
}

impl OpenPort {
    /// Its sockets. Whoever keeps one keeps the port open.
    pub fn sockets(&self) -> &[Arc<TcpListener>] {
        &self.sockets
    }

    /// Serves connections from now on as those of near ends of trunks, or of clients.
    pub fn set_section(&self, section: Section) {
        self.is_trunk.store(section == Section::TrunkListener, Relaxed);
    }

    /// Accepts until `at`, and then what the kernel has accepted already. The port is closed when the tasks have ended.
    #[must_use = "the port is closed when the tasks have ended"]
    pub fn close(self, at: Instant) -> Vec<JoinHandle<()>> {
        self.closes.send_replace(Some(Close::At(at)));
        self.tasks
    }

    /// Whether a service manager passed its sockets, and keeps them open.
    pub fn is_passed(&self) -> bool {
        self.are_passed
    }

    /// Accepts nothing more, and leaves what the kernel has accepted to the next process that has the sockets. When the
    /// tasks have ended, every connection that was accepted is counted, or on its way to another worker.
    #[must_use = "connections are accepted until the tasks have ended"]
    pub fn leave(&mut self) -> Vec<JoinHandle<()>> {
        self.closes.send_replace(Some(Close::Leaving));
        std::mem::take(&mut self.tasks)
    }

    /// Closes the port at once: what the kernel has accepted is reset. The port is closed when the tasks have ended.
    pub fn abort(self) -> Vec<JoinHandle<()>> {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.tasks
    }

    /// What ends its tasks, also after [`close`](Self::close).
    pub fn abort_handles(&self) -> impl Iterator<Item = AbortHandle> {
        self.tasks.iter().map(JoinHandle::abort_handle)
    }
}

/// Accepts connections on a port with one task on each worker, until the port is closed.
///
/// A socket that this process bound was bound alone, which detects a port that is in use. The sockets of the other workers
/// are bound here. From then on, another process of the same user that shares ports can bind the port, too.
///
/// Sockets that a service manager passed are spread over the workers. If there are fewer of them than workers, several
/// workers accept on the same one; if there are more, a worker accepts on several.
///
/// # Errors
/// Descriptors have run out.
pub fn accept(
    listener: ListeningSockets,
    port: Port,
    ingress: &Arc<Ingress>,
    accepted: &Arc<AtomicU64>,
    section: Section,
) -> io::Result<OpenPort> {
    let workers = &ingress.accepting.workers;
    let ListeningSockets { sockets: given, are_passed } = listener;
    let address = given[0].local_addr()?;
    if !are_passed && workers.runtimes().len() > 1 {
        SockRef::from(&given[0]).set_reuse_port(true)?;
    }
    let (closes, closing) = watch::channel(None);
    let sockets = RefCell::new(Vec::new());
    let is_trunk = Arc::new(AtomicBool::new(section == Section::TrunkListener));
    let count = workers.runtimes().len().max(given.len());
    let tasks = workers.spawn_in_turn(count, |number, worker| {
        let beside = if are_passed || number == 0 { Ok(None) } else { listen_beside(address).map(Some) };
        let beside = beside.unwrap_or_else(|error| {
            warn!(port = port.number, %error, "a worker has no socket of its own on the port: it uses the first worker's");
            None
        });
        let own = match beside {
            Some(beside) => beside,
            None => TcpListener::from_std(given[number % given.len()].try_clone()?)?,
        };
        let own = Arc::new(own);
        sockets.borrow_mut().push(Arc::clone(&own));
        let served = Served { port, is_trunk: Arc::clone(&is_trunk) };
        Ok(accept_on(worker, own, served, Arc::clone(ingress), Arc::clone(accepted), closing.clone()))
    })?;
    Ok(OpenPort { sockets: sockets.into_inner(), are_passed, tasks, is_trunk, closes })
}

/// The port whose connections are served.
struct Served {
    port: Port,
    /// See [`OpenPort`].
    is_trunk: Arc<AtomicBool>,
}

impl Served {
    /// Serves a connection on the present runtime.
    fn start(ingress: Arc<Ingress>, tcp: TcpStream, peer: SocketAddr, port: Port, is_trunk: bool) {
        if is_trunk {
            trunk_listener::start(&ingress, tcp, peer, port);
        } else {
            connection::start(ingress, tcp, peer, port);
        }
    }
}

async fn accept_on(
    worker: usize,
    listener: Arc<TcpListener>,
    served: Served,
    ingress: Arc<Ingress>,
    accepted: Arc<AtomicU64>,
    closing: watch::Receiver<Option<Close>>,
) {
    let port = served.port;
    let (mut vanished_timeout, mut closed) = (None, pin!(closed(closing)));
    let leaves = loop {
        // Accepted sockets inherit it. It is set again after a reload has changed it.
        let after = ingress.settings.load().vanished_timeout;
        if vanished_timeout.replace(after) != Some(after)
            && let Err(failed) = watch_for_vanished(SockRef::from(&*listener), after)
        {
            warn!(port = port.number, %failed, "limits.vanished_timeout is not in force");
        }
        let next = tokio::select! {
            next = listener.accept() => next,
            leaves = &mut closed => break leaves,
        };
        match next {
            Ok((tcp, peer)) => {
                accepted.fetch_add(1, Relaxed);
                let pause = ingress.counters.pause(&ingress.settings.load().limits);
                apply_vanished_timeout(&ingress, &tcp);
                if let Some(pause) = pause {
                    report_pause(&ingress, port.number);
                    tokio::time::sleep(pause).await;
                }
                serve(&ingress, worker, tcp, peer, &served);
            }
            Err(error) => {
                let class = AcceptError::of(&error);
                report_error(&ingress, class, &error, port.number);
                if class != AcceptError::Connection {
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    };
    if leaves {
        return;
    }
    // For their clients, these connections were accepted before the port was closed.
    while let Ok(Some((tcp, peer))) = accept_queued(&listener) {
        accepted.fetch_add(1, Relaxed);
        apply_vanished_timeout(&ingress, &tcp);
        serve(&ingress, worker, tcp, peer, &served);
    }
}

/// Gives a connection `limits.vanished_timeout`. It has the time that the listener had when the kernel accepted it: the
/// former one after a reload.
fn apply_vanished_timeout(ingress: &Ingress, tcp: &TcpStream) {
    let (after, socket) = (ingress.settings.load().vanished_timeout, SockRef::from(tcp));
    let inherited = socket.tcp_user_timeout().ok().flatten().map(|time| time.as_millis());
    if inherited != Some(after.as_millis()) {
        let _ = watch_for_vanished(socket, after);
    }
}

/// Waits until the port is to be closed. Returns whether what the kernel has accepted is left to another process.
async fn closed(mut closing: watch::Receiver<Option<Close>>) -> bool {
    match closing.wait_for(Option::is_some).await.ok().and_then(|close| *close) {
        Some(Close::At(at)) => {
            tokio::time::sleep_until(at.into()).await;
            false
        }
        Some(Close::Leaving) => true,
        None => false,
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
    let Some(more) = ingress.accepting.errors.pass(class.index()) else { return };
    match class {
        AcceptError::Connection => warn!(port, %failed, more, "a connection was gone before it was accepted"),
        AcceptError::Exhausted => error!(port, %failed, more,
            "out of descriptors or memory: accepting pauses; raise the limit (LimitNOFILE, ulimit -n) or lower limits.capacity"),
        AcceptError::Listener => error!(port, %failed, more, "the port can't accept"),
    }
}

/// Serves a connection on the worker that accepted it, or hands it over to a worker that is less busy.
fn serve(ingress: &Arc<Ingress>, worker: usize, tcp: TcpStream, peer: SocketAddr, served: &Served) {
    let (port, is_trunk) = (served.port, served.is_trunk.load(Relaxed));
    let serving = Arc::clone(ingress);
    let Some(other) = ingress.accepting.workers.less_busy_than(worker) else {
        return Served::start(serving, tcp, peer, port, is_trunk);
    };
    // A socket belongs to the I/O driver of one runtime: it is deregistered here and registered there.
    let handed_over = tcp.into_std().map(|tcp| {
        other.spawn(async move {
            match TcpStream::from_std(tcp) {
                Ok(tcp) => Served::start(serving, tcp, peer, port, is_trunk),
                Err(error) => debug!(client = %peer, port = port.number, %error, "the connection can't be registered"),
            }
        });
    });
    if let Err(error) = handed_over {
        debug!(client = %peer, port = port.number, %error, "the connection can't be handed over");
    }
}
