//! Accepts connections to the admin endpoint and serves their requests.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    ServerControl, pages,
    slots::{ConnectionSlot, ConnectionSlots, MAX_CONNECTIONS},
};
use crate::{
    log::{Throttle, Throttles},
    net::listen::accept_queued,
    telemetry::{
        Telemetry,
        outcome::{AcceptError, AdminClose, Outcome},
    },
};

/// Requests other than probes that are answered at the same time. Fewer than connections, so that there is always a
/// connection that can be closed for a probe.
const MAX_REQUESTS: usize = 48;
const _: () = assert!(MAX_REQUESTS < MAX_CONNECTIONS);
const MAX_HEAD: usize = 16 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long accepting pauses after an error, such as that no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests that were received may take when the endpoint is closed.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// The admin endpoint at one address.
pub struct AdminEndpoint {
    /// What it accepts on.
    pub sockets: Vec<Arc<TcpListener>>,
    /// Whether its address is a loopback one. Then everybody may read.
    pub is_on_loopback: bool,
    /// What it shows.
    pub server: Arc<dyn ServerControl>,
    /// What counts its connections.
    pub telemetry: Arc<Telemetry>,
}

/// The end of an endpoint: it accepts on these sockets for a while.
pub struct LastSockets {
    /// Those that no other endpoint has taken over.
    pub sockets: Vec<Arc<TcpListener>>,
    /// When they are closed.
    pub until: Instant,
}

/// Serves the endpoint until it is closed; its sockets are closed when this returns. If this future is dropped, its
/// connections end, too.
pub async fn serve(endpoint: AdminEndpoint, mut closing: oneshot::Receiver<LastSockets>) {
    let AdminEndpoint { mut sockets, is_on_loopback, server, telemetry } = endpoint;
    let mut connections = AdminConnections {
        context: Arc::new(AdminContext {
            is_on_loopback,
            server,
            telemetry,
            requests: Semaphore::new(MAX_REQUESTS),
            closed: Throttles::new(AdminClose::ALL.len()),
            unreadable_tokens: Throttle::default(),
        }),
        tasks: JoinSet::new(),
        slots: ConnectionSlots::default(),
        leaving: watch::Sender::new(false),
        accept_errors: Throttle::default(),
    };
    let last = loop {
        tokio::select! {
            accepted = accept(&sockets) => connections.accepted(accepted).await,
            last = &mut closing => break last,
        }
    };
    let Ok(last) = last else { return };
    sockets = last.sockets;
    let mut closed = pin!(tokio::time::sleep_until(last.until.into()));
    loop {
        tokio::select! {
            accepted = accept(&sockets) => connections.accepted(accepted).await,
            () = &mut closed => break,
        }
    }
    for socket in &sockets {
        while let Ok(Some(accepted)) = accept_queued(socket) {
            connections.accepted(Ok(accepted)).await;
        }
    }
    tokio::spawn(connections.leave());
}

/// The next connection on any of `sockets`.
async fn accept(sockets: &[Arc<TcpListener>]) -> io::Result<(TcpStream, SocketAddr)> {
    // Not `poll_accept`, which wakes only the last of those who wait: a socket that is handed over has two for a moment.
    let mut accepting: Vec<_> = sockets.iter().map(|socket| Box::pin(socket.accept())).collect();
    poll_fn(|cx| {
        let ready = accepting.iter_mut().map(|accepting| accepting.as_mut().poll(cx)).find(Poll::is_ready);
        ready.unwrap_or(Poll::Pending)
    })
    .await
}

/// What the connections of an endpoint share.
struct AdminContext {
    is_on_loopback: bool,
    server: Arc<dyn ServerControl>,
    telemetry: Arc<Telemetry>,
    requests: Semaphore,
    /// For log lines about connections that were closed, by [`AdminClose`].
    closed: Throttles,
    unreadable_tokens: Throttle,
}

impl AdminContext {
    /// Notes a connection that is closed for this reason.
    fn closed(&self, reason: AdminClose, slot: &ConnectionSlot) {
        self.telemetry.server.admin_closed.count(reason);
        let client = slot.peer;
        if reason == AdminClose::Idle {
            debug!(%client, %reason, "admin: a connection was closed");
        } else if let Some(more) = self.closed.pass(reason.index()) {
            warn!(%client, %reason, more, "admin: a connection was closed");
        }
    }
}

/// The connections of an endpoint.
struct AdminConnections {
    context: Arc<AdminContext>,
    tasks: JoinSet<()>,
    slots: ConnectionSlots,
    /// Whether each connection is to end after the request that it has.
    leaving: watch::Sender<bool>,
    accept_errors: Throttle,
}

impl AdminConnections {
    async fn accepted(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        while self.tasks.try_join_next().is_some() {}
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.context.telemetry.listeners.accept_errors.count(AcceptError::of(&error));
                if let Some(more) = self.accept_errors.pass() {
                    warn!(%error, more, "admin: can't accept");
                }
                return tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        };
        if let Some(evicted) = self.slots.make_room() {
            self.context.closed(AdminClose::Evicted, &evicted);
        }
        let slot = Arc::new(ConnectionSlot::new(peer.ip(), Instant::now()));
        let serving = serve_connection(tcp, Arc::clone(&slot), Arc::clone(&self.context), self.leaving.subscribe());
        let task = self.tasks.spawn(serving);
        self.slots.take(slot, task);
        // It runs before more connections are accepted: of many that come at once, none loses its place unserved.
        tokio::task::yield_now().await;
    }

    /// Lets each connection end after the request that it has.
    async fn leave(mut self) {
        self.leaving.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // Those that are left are dropped.
        let _ = timeout(LAST_REQUESTS, all).await;
    }
}

async fn serve_connection(
    tcp: TcpStream,
    slot: Arc<ConnectionSlot>,
    context: Arc<AdminContext>,
    mut leaving: watch::Receiver<bool>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (slot, context) = (&slot, &context);
        async move {
            slot.answers();
            let (head, _body) = request.into_parts();
            // It is held while the request is answered.
            let permit = context.requests.try_acquire();
            let response = match pages::is_probe(&head) || permit.is_ok() {
                true => {
                    pages::respond(&*context.server, &head, context.is_on_loopback, &context.unreadable_tokens).await
                }
                false => pages::busy(),
            };
            slot.waits(Instant::now());
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(tcp), service);
    let (mut connection, mut is_leaving) = (pin!(connection), false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                return match ended {
                    Ok(()) => (),
                    Err(error) if error.is_timeout() => context.closed(AdminClose::Idle, &slot),
                    Err(error) => debug!(%error, "admin: connection ended"),
                };
            }
            () = slot.stalled() => return context.closed(AdminClose::Stalled, &slot),
            _ = leaving.wait_for(|leaving| *leaving), if !is_leaving => {
                is_leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
