//! `sametime-mux check`: validates the configuration database and the certificate that it names, and shows the ports, the
//! Community servers and the maximum memory.

use std::{path::Path, process::ExitCode};

use super::{BAD_USAGE, output, table};
use crate::{
    cluster::node_tags,
    community::ServerAddress,
    config::{self, ConfigError, ConfigErrors, ConfigPlace, Settings},
    server,
};

pub(super) fn run(file: &Path) -> ExitCode {
    let checked = config::load_and_look_up(file).and_then(|settings| {
        check_files(&settings)?;
        let nodes = nodes(&settings)?;
        Ok(report(&settings, nodes))
    });
    match checked {
        Ok(report) => output::print(&report, ExitCode::SUCCESS),
        Err(errors) => {
            output::complain(errors);
            ExitCode::from(BAD_USAGE)
        }
    }
}

/// Checks the files that the settings name. An error is reported at the head of the section.
fn check_files(settings: &Settings) -> Result<(), ConfigErrors> {
    const SECTION: &str = "tls";
    server::check_files(settings).map_err(|error| section_error(settings, SECTION, error.what))
}

/// The nodes of the cluster with their tags; an error is reported at the head of the section.
fn nodes(settings: &Settings) -> Result<Option<String>, ConfigErrors> {
    const SECTION: &str = "cluster";
    let Some(cluster) = &settings.cluster else { return Ok(None) };
    let tags = node_tags(cluster).map_err(|error| section_error(settings, SECTION, error.to_string()))?;
    let mut rows = vec![vec!["NODE".to_owned(), "TAG".to_owned(), "ADDRESS".to_owned()]];
    rows.extend(tags.into_iter().map(|(node, tag)| {
        let name = if node.name == cluster.node { format!("{} (this node)", node.name) } else { node.name };
        vec![name, tag.to_string(), node.address]
    }));
    Ok(Some(table(&rows)))
}

fn section_error(settings: &Settings, section: &str, what: String) -> ConfigErrors {
    let line = settings.form.sections.get(section);
    let fault = ConfigError {
        place: line.map_or(ConfigPlace::File, |line| ConfigPlace::Line(*line)),
        key: section.to_owned(),
        what,
        legal: String::new(),
    };
    ConfigErrors { file: settings.file.clone(), faults: vec![fault] }
}

fn report(settings: &Settings, nodes: Option<String>) -> String {
    let mut ports = vec![vec!["SECTION".to_owned(), "ADDRESS".to_owned(), "PORT".to_owned()]];
    ports.extend(settings.ingress.listeners.iter().map(|listener| {
        let address = if listener.host.is_empty() { "every address" } else { &listener.host };
        vec![listener.section.to_string(), address.to_owned(), listener.port.to_string()]
    }));
    let servers = settings.community.servers.iter().map(|server| {
        let address = match &server.address {
            ServerAddress::Sandbox => "sandbox (any password logs in)",
            ServerAddress::Address(address) => address,
        };
        if server.weight == 1 { address.to_owned() } else { format!("{address} (weight {})", server.weight) }
    });
    let admin = settings.admin.listen.map_or_else(|| "off".to_owned(), |address| address.to_string());
    let ceiling = settings.memory_ceiling();
    let mib = |bytes: u64| bytes.div_ceil(1024 * 1024);
    let facts = table(&[
        vec!["Community servers".to_owned(), servers.collect::<Vec<_>>().join(", ")],
        vec!["capacity".to_owned(), format!("{} clients", settings.mux.capacity)],
        vec!["admin endpoint".to_owned(), admin],
        vec![
            "memory at the most".to_owned(),
            format!("{} MiB, {} MiB if all use TLS", mib(ceiling.plain), mib(ceiling.tls)),
        ],
    ]);
    let nodes = nodes.map(|nodes| format!("\n{nodes}")).unwrap_or_default();
    format!("{}: fine\n\n{}\n{facts}{nodes}", settings.file.display(), table(&ports))
}
