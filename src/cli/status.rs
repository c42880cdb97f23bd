//! `sametime-mux status`: the status of a running server, which its admin endpoint has as JSON, as tables.

use std::{process::ExitCode, time::Duration};

use hyper::Method;

use super::{
    admin_client::{self, AdminArguments},
    output, table,
};
use crate::admin::status::{ListenerState, Status};

pub(super) async fn run(arguments: AdminArguments) -> ExitCode {
    let read = |body: &[u8]| {
        serde_json::from_slice::<Status>(body)
            .map_err(|error| format!("this is not the status of a sametime-mux: {error}"))
    };
    match admin_client::ask(&arguments, Method::GET, "/api/status", read).await {
        Ok(status) => output::print(&report(&status), ExitCode::SUCCESS),
        Err(code) => code,
    }
}

/// The status as text.
fn report(status: &Status) -> String {
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let mut text = format!("sametime-mux {}, up {uptime}", status.version);
    text += if status.draining { ", DRAINING: no new clients\n" } else { "\n" };
    let configuration = &status.configuration;
    text += &format!("configuration {}, revision {}\n", configuration.file, configuration.revision);
    if let Some(error) = &configuration.last_error {
        text += &format!("the last reload was refused:\n{error}\n");
    }
    let mut listeners = vec![row(&["SECTION", "ADDRESS", "PORT", "STATE", "SESSIONS", "ACCEPTED", ""])];
    listeners.extend(status.listeners.iter().map(|listener| {
        vec![
            listener.section.to_string(),
            listener.address.clone(),
            listener.port.to_string(),
            if listener.state == ListenerState::Up { "up" } else { "DOWN" }.to_owned(),
            listener.sessions.to_string(),
            listener.accepted_total.to_string(),
            listener.error.clone().unwrap_or_default(),
        ]
    }));
    let mut servers = vec![row(&["COMMUNITY SERVER", "STATE", "SESSIONS", ""])];
    servers.extend(status.community.iter().map(|server| {
        let state = if server.state == "down" { "DOWN" } else { &server.state };
        let error = server.last_error.clone().unwrap_or_default();
        vec![server.address.clone(), state.to_owned(), server.sessions.to_string(), error]
    }));
    let mut sessions = vec![row(&["TRANSPORT", "SESSIONS"])];
    sessions.extend(status.sessions.by_transport.iter().map(|(name, count)| vec![name.clone(), count.to_string()]));
    sessions.push(vec!["all".to_owned(), format!("{} of {}", status.sessions.total, status.sessions.capacity)]);
    text += &format!("\n{}\n{}\n{}", table(&listeners), table(&servers), table(&sessions));
    if let Some(cluster) = &status.cluster {
        let mut nodes = vec![row(&["NODE", "TAG", "ADDRESS", "STATE", "PASSED", ""])];
        nodes.extend(cluster.nodes.iter().map(|node| {
            let state = if node.state == "down" { "DOWN" } else { &node.state };
            let (passed, error) = (node.passed_total.to_string(), node.last_error.clone().unwrap_or_default());
            vec![node.name.clone(), node.tag.clone(), node.address.clone(), state.to_owned(), passed, error]
        }));
        text += &format!("\n{}", table(&nodes));
    }
    if !status.refused.is_empty() {
        let mut refused = vec![row(&["REFUSED", "CLIENTS"])];
        refused.extend(status.refused.iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]));
        text += &format!("\n{}", table(&refused));
    }
    text
}
