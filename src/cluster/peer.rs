//! Another node: its connections, and requests that are passed to it.
//!
//! Each connection carries one request at a time, so there are as many as requests wait for their response. Those that
//! are idle are kept for the next request of the same thread.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Waker},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    NodeAddress, NodeState,
    handshake::{self, NoHello},
    passing::{PassedRequest, PassedResponse, ResponseHead, response_head},
    reach::Reach,
    secret::Secret,
};
use crate::{
    limits::budget::{HeldBytes, LITTLE},
    net::{
        connect::{ConnectFailure, connect},
        keepalive::{MIN_VANISHED_TIMEOUT, watch_for_vanished},
        lookup::{LookupError, RemoteHost},
        own::OwnListeners,
        shortage::is_shortage,
    },
    runtime::scratch,
    telemetry::outcome::ClusterFailure,
    wire::tunnel::name::NodeTag,
};

/// How long a node may take to accept a connection, and to prove who it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How many connections are made at the same time.
const MAX_CONNECTING: usize = 64;
/// How long a connection without a request is kept. The other node keeps it for longer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How many connections without a request each thread keeps.
const MAX_IDLE: usize = 512;
/// How long a long response waits for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a long response asks for room again.
const ROOM_CHECK: Duration = Duration::from_millis(20);

/// Why a request was not passed, and what the log says in addition.
pub(super) type NotPassed = (ClusterFailure, String);

/// A connection to the node.
struct PeerConnection {
    tcp: TcpStream,
    /// What has to be sent in front of the first request.
    first: Option<String>,
    idle_since: Instant,
}

impl PeerConnection {
    /// Whether the node has not closed it, and has sent nothing that no request asked for.
    fn is_usable(&mut self) -> bool {
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        Pin::new(&mut self.tcp).poll_read(&mut Context::from_waker(Waker::noop()), &mut read).is_pending()
    }
}

/// Another node.
pub struct Peer {
    node: NodeAddress,
    tag: NodeTag,
    host: RemoteHost,
    /// By the thread whose runtime they belong to.
    idle: Mutex<HashMap<ThreadId, Vec<PeerConnection>>>,
    connecting: Semaphore,
    reach: Mutex<Reach>,
    passed: AtomicU64,
}

impl Peer {
    pub(super) fn new(node: NodeAddress, tag: NodeTag) -> Self {
        Self {
            host: RemoteHost::new(&node.address, OwnListeners::default()),
            node,
            tag,
            idle: Mutex::default(),
            connecting: Semaphore::new(MAX_CONNECTING),
            reach: Mutex::default(),
            passed: AtomicU64::new(0),
        }
    }

    pub(super) fn address(&self) -> &NodeAddress {
        &self.node
    }

    pub(super) fn tag(&self) -> NodeTag {
        self.tag
    }

    pub(super) fn state(&self) -> NodeState {
        let reach = self.reach.lock();
        NodeState {
            name: self.node.name.clone(),
            tag: self.tag,
            address: self.node.address.clone(),
            is_this: false,
            is_up: reach.error().is_none(),
            last_error: reach.error().map(str::to_owned),
            passed: self.passed.load(Relaxed),
        }
    }

    /// Closes connections that were not used for a while.
    pub(super) fn sweep(&self, now: Instant) {
        self.idle.lock().retain(|_, kept| {
            kept.retain(|connection| now.duration_since(connection.idle_since) < IDLE_TIMEOUT);
            !kept.is_empty()
        });
    }

    /// Passes a request of the node `own.0`, and returns the response. `held` counts the response if it is long.
    ///
    /// A kept connection may break when a request is on its way. Then a request that may be repeated is sent again, on a
    /// new connection.
    ///
    /// # Errors
    /// There is no response.
    pub(super) async fn pass(
        &self,
        own: (&str, &Secret),
        request: &PassedRequest<'_>,
        held: &mut HeldBytes,
    ) -> Result<PassedResponse, NotPassed> {
        let kept = self.take_idle();
        let is_kept = kept.is_some();
        let connection = match kept {
            Some(connection) => connection,
            None => self.connect(own).await?,
        };
        let mut exchanged = self.exchange(connection, request, held).await;
        if is_kept && request.may_repeat() && matches!(exchanged, Err((ClusterFailure::NoResponse, _))) {
            let connection = self.connect(own).await?;
            exchanged = self.exchange(connection, request, held).await;
        }
        exchanged
    }

    fn take_idle(&self) -> Option<PeerConnection> {
        let mut idle = self.idle.lock();
        let kept = idle.get_mut(&thread::current().id())?;
        // The one that was used last: the others may become old.
        while let Some(mut connection) = kept.pop() {
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    fn keep(&self, mut connection: PeerConnection) {
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        let kept = idle.entry(thread::current().id()).or_default();
        if kept.len() < MAX_IDLE {
            kept.push(connection);
        }
    }

    /// Makes a connection, unless the last one has just failed.
    async fn connect(&self, own: (&str, &Secret)) -> Result<PeerConnection, NotPassed> {
        self.check()?;
        let _permit = self.connecting.acquire().await;
        // It may have turned out meanwhile that the node can't be reached.
        self.check()?;
        match timeout(2 * CONNECT_TIMEOUT, self.connect_now(own)).await {
            Ok(Ok(connection)) => {
                self.reach.lock().succeeded();
                Ok(connection)
            }
            Ok(Err((failure, error))) => Err(self.failed(failure, error)),
            Err(_) => Err(self.failed(ClusterFailure::Unreachable, "no answer in time".to_owned())),
        }
    }

    async fn connect_now(&self, (own, secret): (&str, &Secret)) -> Result<PeerConnection, NotPassed> {
        let (mut tcp, _) = connect(&self.host, CONNECT_TIMEOUT).await.map_err(|failure| unreached(&failure))?;
        // Without it, small requests are sent late.
        let _ = tcp.set_nodelay(true);
        // A node whose machine is gone has to be noticed while a request is held there.
        let _ = watch_for_vanished(SockRef::from(&tcp), MIN_VANISHED_TIMEOUT);
        let first = handshake::greet(&mut tcp, own, &self.node.name, secret).await.map_err(|why| match why {
            NoHello::Broken => {
                (ClusterFailure::Unreachable, "it closed the connection before it proved who it is".to_owned())
            }
            NoHello::NotProven => (
                ClusterFailure::NotProven,
                "another node or program is there, or cluster.secret_file has another secret".to_owned(),
            ),
        })?;
        Ok(PeerConnection { tcp, first: Some(first), idle_since: Instant::now() })
    }

    /// Whether a connection may be tried.
    fn check(&self) -> Result<(), NotPassed> {
        let (reach, now) = (self.reach.lock(), Instant::now());
        if reach.may_try(now) {
            return Ok(());
        }
        let failure = if reach.is_gone(now) { ClusterFailure::Gone } else { ClusterFailure::Unreachable };
        Err((failure, reach.error().unwrap_or_default().to_owned()))
    }

    fn failed(&self, failure: ClusterFailure, error: String) -> NotPassed {
        if failure == ClusterFailure::Shortage {
            return (failure, error);
        }
        let (mut reach, now) = (self.reach.lock(), Instant::now());
        reach.failed(now, matches!(failure, ClusterFailure::Gone | ClusterFailure::NotProven), error.clone());
        let is_gone = failure == ClusterFailure::Unreachable && reach.is_gone(now);
        (if is_gone { ClusterFailure::Gone } else { failure }, error)
    }

    async fn exchange(
        &self,
        mut connection: PeerConnection,
        request: &PassedRequest<'_>,
        held: &mut HeldBytes,
    ) -> Result<PassedResponse, NotPassed> {
        let no_response = |error: String| (ClusterFailure::NoResponse, error);
        let mut head = request.head(&connection.first.take().unwrap_or_default(), &self.node.address);
        if request.body.len() <= LITTLE {
            head.extend_from_slice(request.body);
        }
        let tcp = &mut connection.tcp;
        tcp.write_all(&head).await.map_err(|error| no_response(error.to_string()))?;
        if request.body.len() > LITTLE {
            tcp.write_all(request.body).await.map_err(|error| no_response(error.to_string()))?;
        }
        drop(head);
        let mut bytes = Vec::new();
        let (status, head, length) = loop {
            read(tcp, &mut bytes).await.map_err(no_response)?;
            match response_head(&bytes, request.longest_response) {
                ResponseHead::Incomplete => (),
                ResponseHead::Complete { status, head, body } => break (status, head, body),
                ResponseHead::Wrong => return Err(no_response("it did not send a response of a node".to_owned())),
            }
        };
        if length > LITTLE {
            // The client's next request gets the same payload, if there is no room for this response.
            let since = Instant::now();
            while !held.grow(length) {
                if since.elapsed() >= ROOM_TIMEOUT {
                    return Err((ClusterFailure::HeldBytes, String::new()));
                }
                sleep(ROOM_CHECK).await;
            }
        }
        while bytes.len() < head + length {
            read(tcp, &mut bytes).await.map_err(no_response)?;
        }
        if bytes.len() == head + length {
            self.keep(connection);
        }
        self.passed.fetch_add(1, Relaxed);
        bytes.truncate(head + length);
        bytes.drain(..head);
        Ok(PassedResponse { status, body: bytes })
    }
}

/// Reads some bytes. There is no buffer while they are waited for.
async fn read(tcp: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<(), String> {
    match poll_fn(|cx| scratch::poll_read(tcp, cx, |some, _| bytes.extend_from_slice(some))).await {
        Ok(Some(())) => Ok(()),
        Ok(None) => Err("it closed the connection".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What a failed connection means.
fn unreached(failure: &ConnectFailure) -> NotPassed {
    match failure {
        ConnectFailure::NotResolved(error @ LookupError::Shortage(_)) => (ClusterFailure::Shortage, error.to_string()),
        // The name of a node that was removed has no address any more.
        ConnectFailure::NotResolved(error) => (ClusterFailure::Gone, error.to_string()),
        ConnectFailure::LookupTimedOut(_) => {
            (ClusterFailure::Unreachable, "its name was not resolved in time".to_owned())
        }
        ConnectFailure::Unconnected(error) => {
            let errors = || error.attempts.iter().map(|attempt| attempt.error.as_ref());
            let refuses = |error: Option<&std::io::Error>| {
                error.and_then(std::io::Error::raw_os_error) == Some(Errno::CONNREFUSED.raw_os_error())
            };
            let failure = if errors().flatten().any(is_shortage) {
                ClusterFailure::Shortage
            } else if errors().all(refuses) {
                ClusterFailure::Gone
            } else {
                ClusterFailure::Unreachable
            };
            (failure, error.to_string())
        }
    }
}
