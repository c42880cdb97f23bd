//! The port at which other nodes of the cluster pass requests to this one.
//!
//! A connection first proves that it is a node's. Then it is an HTTP connection like that of a client behind a trusted
//! proxy, and the same code serves it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, error};

use super::{Ingress, Origin, http};
use crate::{
    cluster::Cluster,
    net::{
        address::canonical,
        keepalive::{MIN_VANISHED_TIMEOUT, watch_for_vanished},
    },
    stream::Replayed,
    telemetry::outcome::{AcceptError, Outcome, PeerRefusal},
};

/// How long accepting pauses after an error.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections of other nodes, and serves them on the workers in turn.
pub async fn accept(listener: TcpListener, port: u16, ingress: Arc<Ingress>, cluster: Arc<Cluster>) {
    let errors = crate::log::Throttles::new(AcceptError::ALL.len());
    let mut next = 0;
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(failed) => {
                let class = AcceptError::of(&failed);
                ingress.telemetry.listeners.accept_errors.count(class);
                if let Some(more) = errors.pass(class.index()) {
                    error!(port, reason = class.name(), %failed, more, "a node's connection was not accepted");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let workers = ingress.accepting.workers().runtimes();
        next = (next + 1) % workers.len();
        // A socket belongs to the I/O driver of one runtime: it is deregistered here and registered there.
        let (serving, nodes) = (Arc::clone(&ingress), Arc::clone(&cluster));
        match tcp.into_std() {
            Ok(tcp) => drop(workers[next].spawn(async move {
                match TcpStream::from_std(tcp) {
                    Ok(tcp) => serve(&serving, &nodes, tcp, canonical(from), port).await,
                    Err(error) => debug!(%from, port, %error, "the connection can't be registered"),
                }
            })),
            Err(error) => debug!(%from, port, %error, "the connection can't be handed over"),
        }
    }
}

/// Makes a connection prove that it is a node's, and serves its requests in a task of its own.
async fn serve(ingress: &Arc<Ingress>, cluster: &Cluster, mut tcp: TcpStream, from: SocketAddr, port: u16) {
    // A node has as many connections as requests are held: the limits per address do not apply.
    let Ok(place) = ingress.counters.enter(&ingress.settings.load().limits) else {
        return cluster.refuse(PeerRefusal::Connections, from, port);
    };
    let Some(first) = cluster.admit(&mut tcp, from, port).await else { return };
    let _ = tcp.set_nodelay(true);
    let _ = watch_for_vanished(SockRef::from(&tcp), MIN_VANISHED_TIMEOUT);
    let origin = Origin { client: from, port: port.into(), is_tls: false, is_peer: true, accepted: Instant::now() };
    tokio::spawn(http::serve(Arc::clone(&ingress.http), Replayed::new(first, tcp), origin, place));
}
