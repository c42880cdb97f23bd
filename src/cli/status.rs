//! `sametime-mux status`: the status of a running server, which its admin endpoint has as JSON, as tables.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::{BAD_USAGE, FAILED, output, table};
use crate::admin::status::{ListenerState, Status};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest status that is read, in bytes.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The URL of the admin endpoint
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9533")]
    admin: String,
    /// The file with the token; needed if the endpoint is not on loopback
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

pub(super) async fn run(arguments: Arguments) -> ExitCode {
    // A port that is none, such as 99999, is not in the parsed URL, and the default would take its place.
    let is_port = |url: &Uri| url.port_u16().is_some() || url.authority().is_some_and(|all| all.as_str() == all.host());
    let url = arguments.admin.parse::<Uri>().ok().filter(|url| url.scheme_str() == Some("http") && is_port(url));
    let Some(url) = url else {
        output::complain(format_args!(
            "sametime-mux: --admin {}: not of the form http://address:port",
            arguments.admin
        ));
        return ExitCode::from(BAD_USAGE);
    };
    let fetched = timeout(RESPONSE_TIMEOUT, fetch(&url, arguments.token_file)).await;
    match fetched.unwrap_or_else(|_| Err(format!("no response within {RESPONSE_TIMEOUT:?}"))) {
        Ok(status) => output::print(&report(&status), ExitCode::SUCCESS),
        Err(why) => {
            output::complain(format_args!(
                "sametime-mux: {url}: {why}\nIs the server running, and is this its admin.listen? Use --admin URL for another address."
            ));
            ExitCode::from(FAILED)
        }
    }
}

/// Gets the status from the admin endpoint.
async fn fetch(url: &Uri, token_file: Option<PathBuf>) -> Result<Status, String> {
    let authority = url.authority().ok_or("no address")?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let tcp = TcpStream::connect(&address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let mut request = Request::get("/api/status").header(header::HOST, authority.as_str());
    if let Some(file) = token_file {
        let token = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await.map_err(|error| error.to_string())?;
    let body = body.to_bytes();
    if status != StatusCode::OK {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()));
    }
    serde_json::from_slice(&body).map_err(|error| format!("this is not the status of a sametime-mux: {error}"))
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
