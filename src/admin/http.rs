//! Answers the admin endpoint's requests.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tracing::{debug, warn};

use super::View;
use crate::telemetry::CONTENT_TYPE;

/// Connections at once: some scrapers and a person or two.
const MAX_CONNECTIONS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

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
</ul>
<p>In a terminal: <code>sametime-mux status</code></p>
</html>
";

/// Serves until dropped; connections end with it.
pub async fn serve(listener: TcpListener, view: Arc<dyn View>) {
    let local = listener.local_addr().map(|address| address.ip()).ok();
    let (mut connections, places) = (JoinSet::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    loop {
        while connections.try_join_next().is_some() {}
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                warn!(%error, "admin: can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let view = Arc::clone(&view);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let view = Arc::clone(&view);
                async move { Ok::<_, Infallible>(answer(&*view, request, local).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(tcp), service);
            if let Err(error) = connection.await {
                debug!(%error, "admin: connection ended");
            }
            drop(place);
        });
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(view: &dyn View, request: Request<Incoming>, local: Option<IpAddr>) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let allowed = match &*path {
        "/" | "/healthz" | "/readyz" | "/metrics" | "/api/status" => "GET, HEAD",
        "/api/reload" => "POST",
        _ => return text(StatusCode::NOT_FOUND, "No such page.\n"),
    };
    if !allowed.split(", ").any(|name| name == method.as_str()) {
        return with(text(StatusCode::METHOD_NOT_ALLOWED, ""), header::ALLOW, allowed);
    }
    let on_loopback = local.is_none_or(|ip| ip.to_canonical().is_loopback());
    // A page elsewhere can have its name point here; then the name is in Host.
    if on_loopback && !names_this_machine(&request) {
        return text(StatusCode::MISDIRECTED_REQUEST, "Ask for this endpoint by its address or as localhost.\n");
    }
    let must_prove = method == Method::POST || (!on_loopback && path != "/healthz" && path != "/readyz");
    if must_prove && let Err(refusal) = authorize(view, &request).await {
        return *refusal;
    }
    match &*path {
        "/" => with(text(StatusCode::OK, INDEX), header::CONTENT_TYPE, "text/html; charset=utf-8"),
        "/healthz" => text(StatusCode::OK, "up\n"),
        "/readyz" => match view.ready() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
        },
        "/metrics" => with(text(StatusCode::OK, &view.metrics()), header::CONTENT_TYPE, CONTENT_TYPE),
        "/api/status" => json(StatusCode::OK, &view.status()),
        _ if request.headers().contains_key(header::ORIGIN) => {
            text(StatusCode::FORBIDDEN, "Not from a web page of another place.\n")
        }
        _ => match view.reload().await {
            Ok(revision) => json(StatusCode::OK, &serde_json::json!({ "revision": revision })),
            Err(why) => text(StatusCode::UNPROCESSABLE_ENTITY, &format!("{why}\n")),
        },
    }
}

fn names_this_machine(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Whether the request carries the token. The file is read anew each time: a new token needs
/// no reload.
async fn authorize(view: &dyn View, request: &Request<Incoming>) -> Result<(), Box<Answer>> {
    let Some(file) = view.token_file() else {
        let why = "This needs a token: set admin.token_file in the configuration database.\n";
        return Err(Box::new(text(StatusCode::FORBIDDEN, why)));
    };
    let token = match tokio::fs::read_to_string(&file).await {
        Ok(token) if !token.trim().is_empty() => token.trim().to_owned(),
        Ok(_) => return Err(Box::new(text(StatusCode::FORBIDDEN, "The token file is empty.\n"))),
        Err(error) => {
            warn!(file = %file.display(), %error, "admin: the token file can't be read");
            return Err(Box::new(text(StatusCode::FORBIDDEN, "The token file can't be read.\n")));
        }
    };
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if sent.is_some_and(|sent| equal(sent.trim_ascii(), token.as_bytes())) {
        return Ok(());
    }
    let refusal = text(StatusCode::UNAUTHORIZED, "Authorization: Bearer TOKEN is needed.\n");
    Err(Box::new(with(refusal, header::WWW_AUTHENTICATE, "Bearer")))
}

/// Compares in a time that does not tell where the two differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y)) == 0
}

fn text(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = status;
    let answer = with(answer, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    let answer = with(answer, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    with(answer, header::CACHE_CONTROL, "no-store")
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_string_pretty(value) {
        Ok(body) => with(text(status, &body), header::CONTENT_TYPE, "application/json"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

fn with(mut answer: Answer, name: header::HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}
