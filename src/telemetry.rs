//! What happened: outcomes as closed enums, and the metrics, which every room writes and the admin endpoint reads.
//!
//! [`outcome`] has the reasons and what follows from each; [`metrics`] has one file for each domain.

use std::sync::Arc;

use prometheus_client::{encoding::text::encode, registry::Registry};

pub mod metrics;
pub mod outcome;
mod policy;

use metrics::{
    cluster::ClusterMetrics, community::CommunityMetrics, connections::ConnectionMetrics, http::HttpMetrics,
    listeners::ListenerMetrics, process::ProcessMetrics, server::ServerMetrics, sessions::SessionMetrics,
    tls::TlsMetrics, traffic::TrafficMetrics, trunk::TrunkMetrics, tunnel::TunnelMetrics,
};
pub use metrics::{sessions::SessionsGauge, traffic::Direction};

/// The media type of [`Telemetry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric.
pub struct Telemetry {
    registry: Registry,
    /// Relayed bytes and frames.
    pub traffic: TrafficMetrics,
    /// Sessions.
    pub sessions: SessionMetrics,
    /// Connections that are not a session.
    pub connections: ConnectionMetrics,
    /// TLS.
    pub tls: TlsMetrics,
    /// HTTP on client ports.
    pub http: HttpMetrics,
    /// The HTTP tunnel.
    pub tunnel: TunnelMetrics,
    /// The trunk.
    pub trunk: TrunkMetrics,
    /// The cluster.
    pub cluster: ClusterMetrics,
    /// Listeners.
    pub listeners: ListenerMetrics,
    /// Community servers.
    pub community: CommunityMetrics,
    /// The program.
    pub server: ServerMetrics,
    /// The process.
    pub process: ProcessMetrics,
}

impl Telemetry {
    /// All metrics with the value zero, for the given version of the program.
    pub fn new(version: &str) -> Arc<Self> {
        let mut all = Registry::with_prefix("sametime_mux");
        Arc::new(Self {
            server: ServerMetrics::register(&mut all, version),
            sessions: SessionMetrics::register(&mut all),
            traffic: TrafficMetrics::register(&mut all),
            connections: ConnectionMetrics::register(&mut all),
            tls: TlsMetrics::register(&mut all),
            http: HttpMetrics::register(&mut all),
            tunnel: TunnelMetrics::register(&mut all),
            trunk: TrunkMetrics::register(&mut all),
            cluster: ClusterMetrics::register(&mut all),
            listeners: ListenerMetrics::register(&mut all),
            community: CommunityMetrics::register(&mut all),
            process: ProcessMetrics::register(&mut all),
            registry: all,
        })
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        self.tls.refresh();
        self.server.refresh();
        self.process.refresh();
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests;
