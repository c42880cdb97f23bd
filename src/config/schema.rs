//! Every key, declared once with its default, what is legal and its check; and the settings that the keys become.
//!
//! There is one file for each group of sections. Where a section has keys of several rooms, its file returns the
//! section's values, and the settings of each room are built from them here or in the file.

use std::{path::Path, time::Duration};

use super::{Settings, reader::KeyReader};
use crate::ingress;

mod admin;
mod cluster;
mod community;
mod http_backend;
mod limits;
mod listeners;
mod log;
mod tls;
mod trunk;
mod tunnel;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const ANY_NUMBER: &str = "1 to 1000000";
const NETWORKS: &str = "a list of networks and addresses, e.g. [\"10.0.0.0/8\", \"::1\"]";

/// Reads every key, in the order of the shipped file. Errors are collected in `reader`.
pub(super) fn settings(reader: &mut KeyReader<'_>, file: &Path) -> Settings {
    let listeners = listeners::read(reader);
    let community = community::read(reader);
    let http_backend = http_backend::read(reader);
    let mut tls = tls::read(reader);
    let limits = limits::read(reader);
    let tunnel = tunnel::read(reader, &limits);
    let trunk_listener = trunk::far(reader, &limits, listeners.has_trunk());
    let admin = admin::read(reader, &listeners.listeners);
    let cluster = cluster::read(reader, &listeners.listeners, admin.listen);
    let log = log::read(reader);
    if listeners.has_trunk() && trunk_listener.tls {
        tls.trunk_client_ca.clone_from(&trunk_listener.client_ca);
    }
    let ingress = ingress::IngressSettings {
        listeners: listeners.listeners,
        require_all: listeners.require_all,
        share_ports: listeners.share_ports,
        proxy_protocol_from: listeners.proxy_protocol_from,
        forwarded_for_from: listeners.forwarded_for_from,
        limits: limits.connection_limits(),
        login_timeout: limits.login_timeout,
        vanished_timeout: limits.vanished_timeout,
        max_frame: limits.max_frame,
        tls,
        trunk_listener,
        http_backend: http_backend.url,
        http_backend_connections: http_backend.connections,
        http_backend_response_timeout: http_backend.response_timeout,
        tunnel,
    };
    let form = reader.form();
    Settings { file: file.to_owned(), form, ingress, mux: limits.mux_settings(), community, cluster, admin, log }
}
