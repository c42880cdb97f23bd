//! HTTP as clients, web servers and browsers expect it: how connections end, and what reaches the web back end.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

#[path = "web/back_end.rs"]
mod back_end;
#[path = "web/closing.rs"]
mod closing;
#[path = "web/failures.rs"]
mod failures;
#[path = "web/loops.rs"]
mod loops;
#[path = "web/requests.rs"]
mod requests;
#[path = "web/tls_ends.rs"]
mod tls_ends;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use support::mux::{self, Mux};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A web back end that answers every request, without a look at its body, in the same way.
struct BackEnd {
    address: SocketAddr,
    /// The head of each request, in lower case, with the number of its connection.
    heads: Arc<Mutex<Vec<(usize, String)>>>,
}

impl BackEnd {
    /// Answers with `response` after `delay`. Closes a connection after `most` requests.
    async fn start(delay: Duration, response: &'static str, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let all = Arc::clone(&heads);
        tokio::spawn(async move {
            for connection in 0.. {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    for _ in 0..most {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            let Ok(byte) = tcp.read_u8().await else { return };
                            head.push(byte);
                        }
                        all.lock().push((connection, String::from_utf8(head).unwrap().to_lowercase()));
                        tokio::time::sleep(delay).await;
                        if tcp.write_all(response.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, heads }
    }

    /// Answers with 200, and keeps its connections.
    async fn plain() -> Self {
        Self::start(Duration::ZERO, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n", usize::MAX).await
    }

    /// The head of the last request.
    fn last(&self) -> String {
        self.heads.lock().last().expect("a request").1.clone()
    }
}

/// A multiplexer in front of a back end, with further settings.
async fn mux_before(back_end: SocketAddr, toml: &str) -> Mux {
    mux::start(&format!("[http_backend]\nurl = \"http://{back_end}\"\n{toml}")).await
}
