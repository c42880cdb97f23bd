//! Requests of commands to the admin endpoint of a running server.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::{BAD_USAGE, FAILED, output};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest response that is read, in bytes.
const MAX_RESPONSE: usize = 4 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct AdminArguments {
    /// The URL of the admin endpoint
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9533")]
    admin: String,
    /// The file with the token; needed to change something, and if the endpoint is not on loopback
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Sends a request for `page`, its path with its query. Returns what `read` makes of the response's body.
///
/// # Errors
/// The exit code; what is wrong was written to stderr.
pub(super) async fn ask<T>(
    arguments: &AdminArguments,
    method: Method,
    page: &str,
    read: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, ExitCode> {
    // A port that is none, such as 99999, is not in the parsed URL, and the default would take its place.
    let is_port = |url: &Uri| url.port_u16().is_some() || url.authority().is_some_and(|all| all.as_str() == all.host());
    let url = arguments.admin.parse::<Uri>().ok().filter(|url| url.scheme_str() == Some("http") && is_port(url));
    let Some(url) = url else {
        output::complain(format_args!(
            "sametime-mux: --admin {}: not of the form http://address:port",
            arguments.admin
        ));
        return Err(ExitCode::from(BAD_USAGE));
    };
    let fetched = timeout(RESPONSE_TIMEOUT, fetch(&url, method, page, arguments.token_file.as_ref())).await;
    let fetched =
        fetched.unwrap_or_else(|_| Err(AskFailure::Unreachable(format!("no response within {RESPONSE_TIMEOUT:?}"))));
    let failure = match fetched.map(|body| read(&body)) {
        Ok(Ok(result)) => return Ok(result),
        Ok(Err(why)) => AskFailure::Unreachable(why),
        Err(failure) => failure,
    };
    match failure {
        AskFailure::Refused(why) => output::complain(format_args!("sametime-mux: {url}: {why}")),
        AskFailure::Unreachable(why) => output::complain(format_args!(
            "sametime-mux: {url}: {why}\nIs the server running, and is this its admin.listen? Use --admin URL for another address."
        )),
    }
    Err(ExitCode::from(FAILED))
}

/// Why there is no result.
enum AskFailure {
    /// The endpoint has answered that it does not do this.
    Refused(String),
    /// There is no answer, or it is not that of an admin endpoint.
    Unreachable(String),
}

impl From<String> for AskFailure {
    fn from(why: String) -> Self {
        Self::Unreachable(why)
    }
}

async fn fetch(url: &Uri, method: Method, page: &str, token_file: Option<&PathBuf>) -> Result<Bytes, AskFailure> {
    let authority = url.authority().ok_or("no address".to_owned())?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let tcp = TcpStream::connect(&address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(page).header(header::HOST, authority.as_str());
    if let Some(file) = token_file {
        let token = std::fs::read_to_string(file);
        let token = token.map_err(|error| AskFailure::Refused(format!("{}: {error}", file.display())))?;
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await.map_err(|error| error.to_string())?;
    let body = body.to_bytes();
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::UNAUTHORIZED => Err(AskFailure::Refused(match token_file {
            Some(file) => format!("{status}: the token of {} is not that of admin.token_file", file.display()),
            None => format!("{status}: use --token-file FILE with the file that admin.token_file names"),
        })),
        StatusCode::NOT_FOUND => Err(AskFailure::Unreachable(status.to_string())),
        _ => Err(AskFailure::Refused(format!("{status}: {}", String::from_utf8_lossy(&body).trim()))),
    }
}
