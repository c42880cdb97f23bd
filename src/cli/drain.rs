//! `sametime-mux drain` and `sametime-mux resume`: a Community server gets no new clients, or gets them again.

use std::{fmt::Write, process::ExitCode};

use hyper::Method;
use serde::Deserialize;

use super::{
    admin_client::{self, AdminArguments},
    output,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The Community server, as in community.servers, without its weight
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    #[command(flatten)]
    admin: AdminArguments,
}

/// What the admin endpoint answers.
#[derive(Debug, Deserialize)]
struct Answer {
    server: String,
    sessions: u64,
}

pub(super) async fn drain(arguments: Arguments) -> ExitCode {
    let report = |Answer { server, sessions }| {
        format!("{server}: no new clients; its sessions are ended over community.drain_timeout: {sessions}\n")
    };
    ask(&arguments, "/api/drain", report).await
}

pub(super) async fn resume(arguments: Arguments) -> ExitCode {
    let report = |Answer { server, sessions }| format!("{server}: gets new clients; sessions: {sessions}\n");
    ask(&arguments, "/api/resume", report).await
}

async fn ask(arguments: &Arguments, page: &str, report: impl FnOnce(Answer) -> String) -> ExitCode {
    let mut page = format!("{page}?server=");
    for byte in arguments.server.bytes() {
        // RFC 3986, section 2.3, and the separator of the port.
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            page.push(char::from(byte));
        } else {
            let _ = write!(page, "%{byte:02X}");
        }
    }
    let read = |body: &[u8]| serde_json::from_slice::<Answer>(body).map_err(|error| error.to_string());
    match admin_client::ask(&arguments.admin, Method::POST, &page, read).await {
        Ok(answer) => output::print(&report(answer), ExitCode::SUCCESS),
        Err(code) => code,
    }
}
