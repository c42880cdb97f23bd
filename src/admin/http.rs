//! Accepts connections to the admin endpoint and serves their requests.

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tracing::{debug, warn};

use super::{ServerControl, pages};

/// Connections at the same time: enough for some scrapers and a few people. Further ones are closed.
const MAX_CONNECTIONS: usize = 64;
const MAX_HEAD: usize = 16 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long accepting pauses after an error, such as that no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the endpoint until this future is dropped, which also ends its connections.
pub async fn serve(listener: TcpListener, server: Arc<dyn ServerControl>) {
    // An address that can't be read counts as loopback; the token is needed for a reload in any case.
    let is_on_loopback = listener.local_addr().map_or(true, |address| address.ip().to_canonical().is_loopback());
    let (mut connections, permits) = (JoinSet::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    loop {
        while connections.try_join_next().is_some() {}
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                warn!(%error, "admin: can't accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let server = Arc::clone(&server);
        connections.spawn(async move {
            serve_connection(tcp, &*server, is_on_loopback).await;
            drop(permit);
        });
    }
}

async fn serve_connection(tcp: TcpStream, server: &dyn ServerControl, is_on_loopback: bool) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let (head, _body) = request.into_parts();
        Ok::<_, Infallible>(pages::respond(server, &head, is_on_loopback).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(tcp), service);
    if let Err(error) = connection.await {
        debug!(%error, "admin: connection ended");
    }
}
