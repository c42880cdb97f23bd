//! The pages of the admin endpoint: which there are, who may have them, and their responses.
//!
//! To add a page, add it to [`Page`]; the compiler then names every place that has to know it.

use hyper::{Method, StatusCode, header, http::request};

use super::{
    ServerControl,
    auth::{self, Access, AccessRefusal},
    response::{AdminResponse, json, text, with_header},
};
use crate::{log::Throttle, telemetry::CONTENT_TYPE};

const INDEX: &str = "<!doctype html>
<html lang=\"en\"><meta charset=\"utf-8\"><title>sametime-mux</title>
<style>body{font:16px/1.6 system-ui,sans-serif;margin:3rem auto;max-width:34rem;padding:0 1rem}code{background:#eee;padding:.1em .3em}</style>
<h1>sametime-mux</h1>
<p>The admin endpoint.</p>
<ul>
<li><a href=\"/api/status\">/api/status</a>: ports, sessions, Community servers, as JSON
<li><a href=\"/metrics\">/metrics</a>: for Prometheus
<li><a href=\"/readyz\">/readyz</a>: whether clients can be served
<li><a href=\"/healthz\">/healthz</a>: whether the process is up
<li><code>POST /api/reload</code>: reads the configuration database again; needs the token
<li><code>POST /api/drain?server=HOST:PORT</code>, <code>POST /api/resume?server=HOST:PORT</code>: sends a Community
server no new clients and ends its sessions, or sends it clients again; needs the token
</ul>
<p>In a terminal: <code>sametime-mux status</code></p>
</html>
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Index,
    Health,
    Readiness,
    Metrics,
    Status,
    Reload,
    Drain,
    Resume,
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Index,
            "/healthz" => Self::Health,
            "/readyz" => Self::Readiness,
            "/metrics" => Self::Metrics,
            "/api/status" => Self::Status,
            "/api/reload" => Self::Reload,
            "/api/drain" => Self::Drain,
            "/api/resume" => Self::Resume,
            _ => return None,
        })
    }

    /// The methods of the page, as the header Allow lists them.
    fn methods(self) -> &'static str {
        match self {
            Self::Index | Self::Health | Self::Readiness | Self::Metrics | Self::Status => "GET, HEAD",
            Self::Reload | Self::Drain | Self::Resume => "POST",
        }
    }

    fn allows(self, method: &Method) -> bool {
        self.methods().split(", ").any(|name| name == method.as_str())
    }

    fn access(self) -> Access {
        match self {
            Self::Health | Self::Readiness => Access::Probe,
            Self::Index | Self::Metrics | Self::Status => Access::Read,
            Self::Reload | Self::Drain | Self::Resume => Access::Change,
        }
    }

    /// The page's response; `query` is what follows the path in the request.
    async fn content(self, server: &dyn ServerControl, query: &str) -> AdminResponse {
        match self {
            Self::Index => with_header(text(StatusCode::OK, INDEX), header::CONTENT_TYPE, "text/html; charset=utf-8"),
            Self::Health => text(StatusCode::OK, "up\n"),
            Self::Readiness => match server.readiness() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
            },
            Self::Metrics => with_header(text(StatusCode::OK, &server.metrics()), header::CONTENT_TYPE, CONTENT_TYPE),
            Self::Status => json(StatusCode::OK, &server.status()),
            Self::Reload => match server.reload().await {
                Ok(revision) => json(StatusCode::OK, &serde_json::json!({ "revision": revision })),
                Err(why) => text(StatusCode::UNPROCESSABLE_ENTITY, &format!("{why}\n")),
            },
            Self::Drain => of_server(query, |name| server.drain_server(name)),
            Self::Resume => of_server(query, |name| server.resume_server(name)),
        }
    }
}

/// The response to a request that has the server in its query: what `change` returns for it.
fn of_server(query: &str, change: impl FnOnce(&str) -> Result<u64, String>) -> AdminResponse {
    let Some(name) = query.split('&').find_map(|field| field.strip_prefix("server=")).and_then(decoded) else {
        return text(StatusCode::BAD_REQUEST, "Name the server, as in ?server=chat.example:1533\n");
    };
    match change(&name) {
        Ok(sessions) => json(StatusCode::OK, &serde_json::json!({ "server": name, "sessions": sessions })),
        Err(why) => text(StatusCode::UNPROCESSABLE_ENTITY, &format!("{why}\n")),
    }
}

/// The text of a value in a query (RFC 3986, section 2.1); `None` if it is none.
fn decoded(value: &str) -> Option<String> {
    let mut parts = value.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        // A sign is no digit, which the function below would take.
        let code = Some(code).filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Whether a request with this head is a health check.
pub(super) fn is_probe(head: &request::Parts) -> bool {
    Page::at(head.uri.path()).is_some_and(|page| page.access() == Access::Probe)
}

/// The response where too many requests are being answered.
pub(super) fn busy() -> AdminResponse {
    with_header(text(StatusCode::SERVICE_UNAVAILABLE, "Too many requests at once.\n"), header::RETRY_AFTER, "1")
}

/// The response to a request with this head. `is_on_loopback`: whether the endpoint's own address is a loopback one.
/// `unreadable` lets lines about a token file pass that can't be read.
pub(super) async fn respond(
    server: &dyn ServerControl,
    head: &request::Parts,
    is_on_loopback: bool,
    unreadable: &Throttle,
) -> AdminResponse {
    let Some(page) = Page::at(head.uri.path()) else { return text(StatusCode::NOT_FOUND, "No such page.\n") };
    if !page.allows(&head.method) {
        return with_header(text(StatusCode::METHOD_NOT_ALLOWED, ""), header::ALLOW, page.methods());
    }
    match auth::check(page.access(), &head.headers, is_on_loopback, || server.token_file(), unreadable).await {
        Ok(()) => page.content(server, head.uri.query().unwrap_or_default()).await,
        Err(refusal) => refused(refusal),
    }
}

fn refused(refusal: AccessRefusal) -> AdminResponse {
    let (status, why) = match refusal {
        AccessRefusal::Host => {
            (StatusCode::MISDIRECTED_REQUEST, "Use the endpoint's address, or localhost, as the host name.\n")
        }
        AccessRefusal::NoTokenFile => {
            (StatusCode::FORBIDDEN, "This needs a token: set admin.token_file in the configuration database.\n")
        }
        AccessRefusal::EmptyTokenFile => (StatusCode::FORBIDDEN, "The token file is empty.\n"),
        AccessRefusal::UnreadableTokenFile => (StatusCode::FORBIDDEN, "The token file can't be read.\n"),
        AccessRefusal::Token => (StatusCode::UNAUTHORIZED, "Authorization: Bearer TOKEN is needed.\n"),
        AccessRefusal::Origin => (StatusCode::FORBIDDEN, "A web page of another origin may not do this.\n"),
    };
    let response = text(status, why);
    match refusal {
        AccessRefusal::Token => with_header(response, header::WWW_AUTHENTICATE, "Bearer"),
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_query_are_decoded_and_nothing_else_is_one() {
        for (value, text) in [
            ("a:1533", Some("a:1533")),
            ("%5b%3A%3A1%5D:1533", Some("[::1]:1533")),
            ("", Some("")),
            ("%41%42", Some("AB")),
        ] {
            assert_eq!(decoded(value).as_deref(), text, "{value}");
        }
        for wrong in ["%", "%4", "a%", "%+1", "%-1", "%zz", "%ff", "%4\u{e9}", "%\u{e9}"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
    }
}
