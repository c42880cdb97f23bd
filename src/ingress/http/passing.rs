//! Requests for sessions of other nodes of the cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;

use super::{HttpContext, fast_path::TunnelCall, response::PortResponse};
use crate::{
    cluster::{Owner, PassedRequest, PassedTo, Peer},
    ingress::{
        Origin,
        tunnel::{TunnelBody, transport},
    },
    limits::budget::HeldBytes,
    telemetry::outcome::{ClusterFailure, TunnelOutcome},
    wire::{
        Transport,
        tunnel::{
            name::{SessionName, UrlName},
            stream,
        },
    },
};

/// A request that is not for a session of this node.
pub(super) enum PassedOn {
    /// It is passed to this node.
    To(Arc<Peer>),
    /// Another node has passed it here by mistake, and it is not passed again.
    Refused,
}

/// Where a request is passed; `None`: it is for this node. Counts the requests of other nodes.
pub(super) fn destination(context: &HttpContext, call: TunnelCall, body: &[u8], origin: &Origin) -> Option<PassedOn> {
    let cluster = context.cluster.as_ref()?;
    if origin.is_peer {
        cluster.received();
    }
    let owner = cluster.owner(&name_of(call, body)?);
    match owner {
        Owner::Here => None,
        Owner::Peer(_) | Owner::Nobody if origin.is_peer => Some(PassedOn::Refused),
        Owner::Peer(peer) => Some(PassedOn::To(peer)),
        // A name of no node is unknown here, too.
        Owner::Nobody => None,
    }
}

/// The name of the session that a request is for.
fn name_of(call: TunnelCall, body: &[u8]) -> Option<SessionName> {
    let name = match call {
        TunnelCall::Named(_, name) => name,
        TunnelCall::Upload => stream::post(body)?.name,
    };
    match name {
        UrlName::Session(name) => Some(name),
        UrlName::Empty | UrlName::NotAName { .. } => None,
    }
}

/// Passes a request to `peer` and returns its response, which is counted.
///
/// # Errors
/// The node has not responded.
pub(super) async fn pass(
    context: &HttpContext,
    peer: &Peer,
    call: TunnelCall,
    body: impl AsRef<[u8]>,
    client: SocketAddr,
    port: u16,
) -> Result<PortResponse, TunnelOutcome> {
    let (Some(cluster), Some(to)) = (&context.cluster, passed_to(call)) else { return Err(TunnelOutcome::Unknown) };
    let settings = context.settings.load_full();
    let longest_response = settings.longest_passed;
    let request = PassedRequest { to, client, body: body.as_ref(), longest_response };
    let mut held = HeldBytes::none(&context.budget, client.ip());
    match cluster.pass(peer, &request, &mut held, settings.passed_timeout, port).await {
        Ok(response) => {
            let kind = match call {
                TunnelCall::Named(kind, _) => transport(kind),
                TunnelCall::Upload => Transport::HttpStreaming,
            };
            context.telemetry.tunnel.request(kind, TunnelOutcome::Passed);
            let status = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(PortResponse::passed(status, TunnelBody::counted(response.body, held)))
        }
        Err(ClusterFailure::Gone | ClusterFailure::NotProven) => Err(TunnelOutcome::NodeGone),
        Err(_) => Err(TunnelOutcome::NotPassed),
    }
}

fn passed_to(call: TunnelCall) -> Option<PassedTo> {
    match call {
        TunnelCall::Named(kind, UrlName::Session(name)) => Some(PassedTo::Session(kind, name)),
        TunnelCall::Named(..) => None,
        TunnelCall::Upload => Some(PassedTo::Upload),
    }
}
