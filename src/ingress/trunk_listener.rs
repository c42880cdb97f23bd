//! A connection that arrives on a port of `[trunk_listener]`: it is counted as every other one, and served by the far end
//! of trunks.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tracing::info;

use super::Ingress;
use crate::{
    net::{Port, address::canonical},
    telemetry::outcome::Outcome,
};

/// Serves a connection on the present runtime, in a task of its own.
pub(super) fn start(ingress: &Ingress, tcp: TcpStream, peer: SocketAddr, port: Port) {
    let (settings, client) = (ingress.settings.load(), canonical(peer));
    let permit = ingress.counters.enter(&settings.limits).and_then(|mut permit| {
        ingress.counters.claim(&mut permit, &settings.limits, client)?;
        // It does not become a session.
        permit.settle();
        Ok(permit)
    });
    let identity = ingress.tls.trunk();
    match permit {
        // Without its certificates, a listener that needs TLS does not exist.
        Ok(permit) if identity.is_some() || !settings.trunk_listener.tls => {
            ingress.trunk.serve(tcp, client, identity, permit);
        }
        Ok(_) => (),
        Err(reached) => {
            let outcome = reached.outcome();
            ingress.telemetry.connections.dropped.count(outcome);
            if let Some(more) = ingress.dropped.pass(outcome.index()) {
                info!(%client, port = port.number, reason = outcome.name(), more, "trunk connection dropped");
            }
        }
    }
}
