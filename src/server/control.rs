//! What the admin endpoint sees of the server, and can ask of it.

use std::{collections::BTreeMap, future::Future, net::SocketAddr, path::PathBuf, pin::Pin, sync::Weak};

use super::{Server, ServerContext, VERSION, ports::ListenerSnapshot};
use crate::{
    admin::{ServerControl, status},
    cluster::Cluster,
    community::ServerState,
    net::{Section, address::overlap},
    telemetry::outcome::{Outcome, Refusal},
    wire::Transport,
};

/// The server as the admin endpoint has it: it does not keep the server alive.
pub(super) struct AdminControl(pub(super) Weak<ServerContext>);

impl ServerControl for AdminControl {
    fn readiness(&self) -> Result<(), String> {
        let server = self.0.upgrade().ok_or("stopped")?;
        let obstacles = server.obstacles();
        if obstacles.is_empty() { Ok(()) } else { Err(obstacles.join("\n")) }
    }

    fn status(&self) -> status::Status {
        let Some(server) = self.0.upgrade() else { return stopped() };
        let (settings, telemetry) = (server.settings.load(), &server.telemetry);
        let revision = server.revision.lock().clone();
        let listeners = server.ports.snapshot();
        let sessions = sessions_of(&listeners, &telemetry.sessions.by_listener());
        let listeners = listeners.into_iter().zip(sessions).map(|(listener, sessions)| status::ListenerStatus {
            section: listener.section,
            address: listener.address,
            port: listener.port,
            state: if listener.bound.is_some() { status::ListenerState::Up } else { status::ListenerState::Down },
            error: listener.error,
            sessions,
            accepted_total: listener.accepted,
        });
        let community = server.pool.status().into_iter().map(|server| status::CommunityServerStatus {
            address: server.address.to_string(),
            state: match server.state {
                ServerState::Up => "up",
                ServerState::Down => "down",
                ServerState::Draining => "draining",
            }
            .to_owned(),
            sessions: server.sessions,
            last_error: server.last_error,
        });
        status::Status {
            version: VERSION.to_owned(),
            uptime_seconds: telemetry.server.uptime().as_secs(),
            draining: server.mux.is_draining(),
            configuration: status::ConfigurationStatus {
                file: settings.file.display().to_string(),
                loaded_at: revision.loaded_at,
                revision: revision.number,
                last_error: revision.last_error,
            },
            listeners: listeners.collect(),
            sessions: status::SessionsStatus {
                total: telemetry.sessions.present(|_| true),
                capacity: settings.mux.capacity as u64,
                by_transport: Transport::ALL
                    .into_iter()
                    .map(|transport| (transport.name().to_owned(), telemetry.sessions.present(|via| via == transport)))
                    .collect(),
            },
            community: community.collect(),
            cluster: server.node.as_ref().map(|node| cluster_status(&node.cluster)),
            refused: Refusal::ALL
                .iter()
                .map(|refusal| (refusal.name().to_owned(), telemetry.sessions.refused.total(*refusal)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    fn metrics(&self) -> String {
        let Some(server) = self.0.upgrade() else { return String::new() };
        // Gauges of what other rooms count themselves are set when they are read.
        let servers = server.pool.status().into_iter();
        server
            .telemetry
            .community
            .set(servers.map(|server| (server.address.to_string(), server.state == ServerState::Up, server.sessions)));
        server.telemetry.connections.set_present(server.ingress.connections());
        server.telemetry.sessions.set_load(server.mux.logging_in(), server.mux.held_bytes());
        server.telemetry.tunnel.set_sessions(server.ingress.tunnel_sessions());
        if let Some(node) = &server.node {
            let others = node.cluster.nodes().into_iter().filter(|node| !node.is_this);
            server.telemetry.cluster.set_nodes(others.map(|node| (node.name, node.is_up)));
        }
        server.telemetry.encode()
    }

    fn token_file(&self) -> Option<PathBuf> {
        self.0.upgrade()?.settings.load().admin.token_file.clone()
    }

    fn drain_server(&self, name: &str) -> Result<u64, String> {
        let server = self.0.upgrade().ok_or("stopped")?;
        server.drain_server(name).map_err(|refusal| refusal.to_string())
    }

    fn resume_server(&self, name: &str) -> Result<u64, String> {
        let server = self.0.upgrade().ok_or("stopped")?;
        server.resume_server(name).map_err(|refusal| refusal.to_string())
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>> {
        Box::pin(async {
            let server = self.0.upgrade().ok_or("stopped")?;
            // The reload runs on its own task, because a reload that moves the admin endpoint drops the endpoint's
            // connections, and this future with them.
            let reloading = tokio::spawn(async move { Server(server).reload_file().await });
            reloading.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        })
    }
}

impl ServerContext {
    /// Why clients can't be served; empty if they can. The admin endpoint's `/readyz` and the tunnel's page say the same.
    pub(super) fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.mux.is_draining() {
            obstacles.push("draining".to_owned());
        }
        let down = self.ports.errors(Section::ClientConnections);
        obstacles.extend(down.into_iter().map(|error| format!("Community port down: {error}")));
        if !self.pool.any_up() {
            obstacles.push("no Community server is up".to_owned());
        }
        obstacles
    }
}

/// The sessions of each listener. Those of a listener that is no longer there belong to the one that serves its address
/// now, if there is one.
fn sessions_of(listeners: &[ListenerSnapshot], by_listener: &[(SocketAddr, u64)]) -> Vec<u64> {
    let mut sessions = vec![0; listeners.len()];
    for (address, count) in by_listener {
        let same = listeners.iter().position(|listener| listener.bound == Some(*address));
        let serves = || listeners.iter().position(|l| l.bound.is_some_and(|bound| overlap(bound, *address)));
        if let Some(at) = same.or_else(serves) {
            sessions[at] += count;
        }
    }
    sessions
}

fn cluster_status(cluster: &Cluster) -> status::ClusterStatus {
    let nodes = cluster.nodes();
    let name = nodes.iter().find(|node| node.is_this).map(|node| node.name.clone()).unwrap_or_default();
    let nodes = nodes.into_iter().map(|node| status::NodeStatus {
        state: match (node.is_this, node.is_up) {
            (true, _) => "this",
            (false, true) => "up",
            (false, false) => "down",
        }
        .to_owned(),
        tag: node.tag.to_string(),
        name: node.name,
        address: node.address,
        passed_total: node.passed,
        last_error: node.last_error,
    });
    status::ClusterStatus { node: name, nodes: nodes.collect() }
}

/// The status after the server's end.
fn stopped() -> status::Status {
    status::Status {
        version: VERSION.to_owned(),
        uptime_seconds: 0,
        draining: true,
        configuration: status::ConfigurationStatus { file: String::new(), loaded_at: 0, revision: 0, last_error: None },
        listeners: Vec::new(),
        sessions: status::SessionsStatus { total: 0, capacity: 0, by_transport: BTreeMap::new() },
        community: Vec::new(),
        cluster: None,
        refused: BTreeMap::new(),
    }
}
