//! `[trunk]`, `[trunk_listener]`.

use std::path::PathBuf;

use super::limits::LimitsSection;
use crate::{
    config::{legal, reader::KeyReader, section_reader::SectionReader},
    trunk::{TrunkListenerSettings, TrunkSettings},
};

/// The trunk's near end; `is_used` is whether `community.link` asks for it.
pub(super) fn near(reader: &mut KeyReader<'_>, is_used: bool) -> TrunkSettings {
    let mut section = SectionReader::new(reader, "trunk");
    let connections = section.number("connections", 2, "1 to 64", 1..=64);
    let tls = section.flag("tls", true);
    let legal = "a file, or \"\" for the system's roots";
    let certificate_authority = PathBuf::from(section.text("certificate_authority", "", legal));
    let legal = "a PEM file, or \"\" for no certificate";
    let certificate = PathBuf::from(section.text("certificate", "", legal));
    let private_key = PathBuf::from(section.text("private_key", "", legal));
    if certificate.as_os_str().is_empty() != private_key.as_os_str().is_empty() {
        section.conflict(
            "private_key",
            "trunk.certificate and trunk.private_key belong together: name both files, or none",
        );
    }
    let target = target(&mut section);
    TrunkSettings { is_used, connections, tls, certificate_authority, certificate, private_key, target }
}

/// The trunk's far end, without its ports, which are read with the other ports.
pub(super) fn far(reader: &mut KeyReader<'_>, limits: &LimitsSection, has_ports: bool) -> TrunkListenerSettings {
    let mut section = SectionReader::new(reader, "trunk_listener");
    let target = target(&mut section);
    let tls = section.flag("tls", true);
    let legal = "a PEM file with the authorities that sign the near ends' certificates; \"\" where there are no ports, or no TLS";
    let client_ca = PathBuf::from(section.text("client_ca", "", legal));
    if has_ports && tls && client_ca.as_os_str().is_empty() {
        section.conflict(
            "client_ca",
            "trunk_listener.ports has a port, and trunk_listener.tls is true: there must be a file",
        );
    }
    TrunkListenerSettings {
        tls,
        client_ca,
        target,
        streams: u32::try_from(limits.capacity).unwrap_or(u32::MAX),
        login_timeout: limits.login_timeout,
        drain_timeout: limits.drain_timeout,
    }
}

fn target(section: &mut SectionReader<'_, '_>) -> String {
    let default = "127.0.0.1:1533".to_owned();
    section.key("target", default, "\"host:port\"", |text: String| legal::host_and_port(&text).map(|_| text))
}
