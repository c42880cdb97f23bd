//! The multiplexer in this process, on free ports.

use std::{net::SocketAddr, path::Path};

use sametime_mux::{
    config::{self, Settings},
    net::Section,
    server::Server,
};
use tempfile::TempDir;

pub struct Mux {
    pub server: Server,
    pub folder: TempDir,
}

/// The settings of `toml`, with ports that the system chooses and a certificate in `folder`. If `toml` names no Community
/// servers, clients are sent to the sandbox.
pub fn settings(toml: &str, folder: &Path) -> Settings {
    let file = folder.join("stconfig.toml");
    let sandbox = ("SAMETIME_MUX__COMMUNITY__SERVERS".to_owned(), "sandbox".to_owned());
    let variables = (!toml.contains("\nservers = ")).then_some(sandbox);
    let settings = config::parse(toml, &file, variables.into_iter());
    let mut settings = settings.unwrap_or_else(|faults| panic!("{faults}"));
    for listener in &mut settings.ingress.listeners {
        listener.port = 0;
        listener.host = "127.0.0.1".to_owned();
    }
    settings.ingress.listeners.dedup();
    settings.ingress.tls.certificate = folder.join("server.pem");
    settings.ingress.tls.private_key = folder.join("server.key");
    if let Some(listen) = &mut settings.admin.listen {
        listen.set_port(0);
    }
    settings
}

/// Starts a multiplexer with the settings of `toml`. All other settings have their defaults.
pub async fn start(toml: &str) -> Mux {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(settings(toml, folder.path())).await.unwrap();
    Mux { server, folder }
}

impl Mux {
    /// The address of a port of `section`.
    pub fn port(&self, section: Section) -> SocketAddr {
        self.server.listeners().iter().find(|port| port.section == section).unwrap().address
    }

    /// The address of the Community port.
    pub fn raw(&self) -> SocketAddr {
        self.port(Section::ClientConnections)
    }

    /// Gets a page of the admin endpoint.
    pub async fn get(&self, path: &str) -> super::http::Response {
        let mut tcp = super::http::tcp(self.server.admin_address().unwrap()).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        super::http::exchange(&mut tcp, request.as_bytes()).await.unwrap()
    }

    /// The value of a metric, by its name with its labels; 0 if there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let body = String::from_utf8(self.get("/metrics").await.body).unwrap();
        let line = body.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// The sum of a metric over all its labels.
    pub async fn metric_sum(&self, name: &str) -> f64 {
        let body = String::from_utf8(self.get("/metrics").await.body).unwrap();
        let lines =
            body.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.server.stop();
    }
}
