//! What the admin endpoint sees of the server.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Weak};

use super::{Server, Shared, VERSION};
use crate::{
    admin::{View, status},
    community::ServerState,
    net::Section,
    telemetry::outcome::Outcome,
    wire::Transport,
};

/// The server, while it lives.
pub(super) struct Live(pub(super) Weak<Shared>);

impl View for Live {
    fn ready(&self) -> Result<(), String> {
        let shared = self.0.upgrade().ok_or("stopped")?;
        let mut reasons = Vec::new();
        if shared.mux.is_draining() {
            reasons.push("draining".to_owned());
        }
        let ports = shared.ports.status();
        for port in ports.iter().filter(|port| port.section == Section::ClientConnections) {
            if let Some(error) = &port.error {
                reasons.push(format!("Community port down: {error}"));
            }
        }
        if !shared.pool.any_up() {
            reasons.push("no Community server is up".to_owned());
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("\n")) }
    }

    fn status(&self) -> status::Status {
        let Some(shared) = self.0.upgrade() else { return stopped() };
        let (settings, telemetry) = (shared.settings.load(), &shared.telemetry);
        let loaded = shared.loaded.lock().clone();
        let listeners = shared.ports.status().into_iter().map(|port| status::Listener {
            section: port.section,
            address: port.address.ip().to_string(),
            port: port.address.port(),
            state: if port.error.is_none() { status::ListenerState::Up } else { status::ListenerState::Down },
            error: port.error,
            sessions: telemetry.sessions.present(|number, _| number == port.address.port()),
            accepted_total: port.accepted,
        });
        let community = shared.pool.status().into_iter().map(|server| status::Server {
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
            draining: shared.mux.is_draining(),
            configuration: status::Configuration {
                file: settings.file.display().to_string(),
                loaded_at: loaded.at,
                revision: loaded.revision,
                last_error: loaded.last_error,
            },
            listeners: listeners.collect(),
            sessions: status::Sessions {
                total: telemetry.sessions.present(|_, _| true),
                capacity: settings.mux.capacity as u64,
                by_transport: Transport::ALL
                    .into_iter()
                    .map(|transport| {
                        (transport.name().to_owned(), telemetry.sessions.present(|_, via| via == transport))
                    })
                    .collect(),
            },
            community: community.collect(),
            refused: telemetry
                .sessions
                .refused
                .counted()
                .map(|(refusal, count)| (refusal.name().to_owned(), count))
                .collect(),
        }
    }

    fn metrics(&self) -> String {
        let Some(shared) = self.0.upgrade() else { return String::new() };
        let servers = shared.pool.status().into_iter();
        shared
            .telemetry
            .community
            .set(servers.map(|server| (server.address.to_string(), server.state == ServerState::Up, server.sessions)));
        shared.telemetry.connections.set_present(shared.ingress.connections());
        shared.telemetry.sessions.set_load(shared.mux.logging_in(), shared.mux.held_bytes());
        shared.telemetry.tunnel.set_sessions(shared.ingress.tunnel_sessions());
        shared.telemetry.encode()
    }

    fn token_file(&self) -> Option<PathBuf> {
        self.0.upgrade()?.settings.load().admin.token_file.clone()
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>> {
        Box::pin(async {
            let shared = self.0.upgrade().ok_or("stopped")?;
            // On a task of its own: a reload that moves this endpoint ends its connections.
            let reloading = tokio::spawn(async move { Server(shared).reload_file().await });
            reloading.await.map_err(|error| error.to_string())?.map_err(|fault| fault.to_string())
        })
    }
}

fn stopped() -> status::Status {
    status::Status {
        version: VERSION.to_owned(),
        uptime_seconds: 0,
        draining: true,
        configuration: status::Configuration { file: String::new(), loaded_at: 0, revision: 0, last_error: None },
        listeners: Vec::new(),
        sessions: status::Sessions { total: 0, capacity: 0, by_transport: std::collections::BTreeMap::new() },
        community: Vec::new(),
        refused: std::collections::BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{config, telemetry::outcome::Refusal};

    #[tokio::test]
    async fn every_refusal_that_was_counted_is_in_the_status() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("stconfig.toml");
        let mut settings = config::parse("", &file, std::iter::empty()).expect("defaults");
        settings.ingress.listeners.clear();
        settings.ingress.tls.certificate = folder.path().join("server.pem");
        settings.ingress.tls.private_key = folder.path().join("server.key");
        settings.admin.listen = None;
        let server = Server::start(settings).await.expect("started");
        let live = Live(Arc::downgrade(&server.0));
        assert!(live.status().refused.is_empty(), "nothing was counted yet");
        for refusal in Refusal::ALL {
            server.0.telemetry.sessions.refused.count(*refusal);
        }
        let refused = live.status().refused;
        assert_eq!(refused.len(), Refusal::ALL.len());
        for refusal in Refusal::ALL {
            assert_eq!(refused.get(refusal.name()), Some(&1), "{refusal}");
        }
        server.stop();
    }
}
