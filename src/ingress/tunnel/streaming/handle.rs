//! A streaming session as the registry, its requests and the core's stream hold it.

use std::{
    future::poll_fn,
    mem,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{io::ReadBuf, time::Instant};

use super::inbox::{Inbox, InboxRead, Upload};
use crate::{
    limits::{
        budget::{Exception, Exceptions},
        tally::Permit,
    },
    telemetry::outcome::TunnelOutcome,
};

/// The times that the sweep checks.
#[derive(Debug, Clone, Copy)]
pub(in crate::ingress::tunnel) struct StreamingTimes {
    /// How long a request may wait for the Community.
    pub(in crate::ingress::tunnel) session_timeout: Duration,
    /// After how long a silent response gets a keep-alive. `None`: never.
    pub(in crate::ingress::tunnel) keep_alive: Option<Duration>,
    /// How long a session that is over answers requests.
    pub(in crate::ingress::tunnel) linger: Duration,
}

/// A streaming session.
pub(in crate::ingress::tunnel) struct StreamingHandle {
    locked: Mutex<LockedInbox>,
    /// Whether bytes were written to the client since the last sweep.
    has_written: AtomicBool,
    /// Whether the sweep has found something, see [`Attention`].
    needs_attention: AtomicBool,
    client: IpAddr,
    /// By how much the bodies of its requests may exceed the limit of their address; made when it is first needed.
    exceptions: OnceLock<Arc<Exceptions>>,
    /// Counts the session until nobody can ask for it. `None`: it is refused.
    _place: Option<Permit>,
}

/// What the session's task has to do besides relaying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attention {
    /// Nothing.
    None,
    /// The response has been silent for so long that it needs a keep-alive.
    KeepAlive,
    /// The session has to end, because the Community takes nothing.
    Overdue,
}

struct LockedInbox {
    inbox: Inbox,
    /// The session's task.
    reader: Option<Waker>,
    /// The requests that wait for their bytes to be read.
    requests: Vec<Waker>,
    /// As the sweep knows it.
    silent_since: Instant,
}

impl LockedInbox {
    fn wake_requests(&mut self) {
        mem::take(&mut self.requests).into_iter().for_each(Waker::wake);
    }

    fn wake_reader(&self) {
        if let Some(reader) = &self.reader {
            reader.wake_by_ref();
        }
    }
}

impl StreamingHandle {
    pub(in crate::ingress::tunnel) fn new(client: IpAddr, place: Option<Permit>, now: Instant) -> Arc<Self> {
        let locked = LockedInbox { inbox: Inbox::new(), reader: None, requests: Vec::new(), silent_since: now };
        Arc::new(Self {
            locked: Mutex::new(locked),
            has_written: AtomicBool::new(false),
            needs_attention: AtomicBool::new(false),
            client,
            exceptions: OnceLock::new(),
            _place: place,
        })
    }

    /// The address that the GET request came from.
    pub(in crate::ingress::tunnel) fn client(&self) -> IpAddr {
        self.client
    }

    /// What a request may have whose body has no room in the budget: it may exceed the limit of its address as the only
    /// one of its session.
    pub(in crate::ingress::tunnel) fn exception(&self) -> Exception {
        self.exceptions.get_or_init(|| Exceptions::new(0)).none()
    }

    /// Takes the bytes of a request, and waits until the core has read them or the session has ended. The bytes stay
    /// taken when the request's connection breaks in the meantime.
    pub(in crate::ingress::tunnel) async fn take(&self, upload: Upload) -> TunnelOutcome {
        let number = {
            let mut locked = self.locked.lock();
            match locked.inbox.arrive(upload, Instant::now()) {
                Ok(number) => {
                    locked.wake_reader();
                    number
                }
                Err(outcome) => return outcome,
            }
        };
        poll_fn(|cx| {
            let mut locked = self.locked.lock();
            match locked.inbox.outcome(number) {
                Some(outcome) => Poll::Ready(outcome),
                None => {
                    if !locked.requests.iter().any(|waker| waker.will_wake(cx.waker())) {
                        locked.requests.push(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Reads what requests brought. `Pending`: nothing is there, and the session's task is woken when something is.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<InboxRead> {
        let mut locked = self.locked.lock();
        let (read, is_whole) = locked.inbox.read(buf);
        if is_whole {
            locked.wake_requests();
        }
        if read == InboxRead::Empty {
            // The session's task reads all the time, and its waker stays the same.
            if !locked.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                locked.reader = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(read)
    }

    /// Bytes were written to the client.
    pub(super) fn written(&self) {
        self.has_written.store(true, Relaxed);
    }

    /// What the sweep has found since the last call. A session that is overdue stays so.
    pub(super) fn attention(&self) -> Attention {
        // Nearly always nothing, and without the lock.
        if !self.needs_attention.load(Relaxed) {
            return Attention::None;
        }
        if self.locked.lock().inbox.is_overdue() {
            return Attention::Overdue;
        }
        if self.needs_attention.swap(false, Relaxed) { Attention::KeepAlive } else { Attention::None }
    }

    /// The core has let the session go.
    pub(super) fn end(&self) {
        let mut locked = self.locked.lock();
        locked.inbox.end(Instant::now());
        locked.reader = None;
        locked.wake_requests();
    }

    /// Looks whether a request, or the silence, has lasted too long. Returns whether the session can be forgotten.
    pub(in crate::ingress::tunnel) fn sweep(&self, now: Instant, times: &StreamingTimes) -> bool {
        let mut locked = self.locked.lock();
        if locked.inbox.is_forgotten(now, times.linger) {
            return true;
        }
        if locked.inbox.check(now, times.session_timeout) {
            self.needs_attention.store(true, Relaxed);
            locked.wake_requests();
            locked.wake_reader();
        }
        if self.has_written.swap(false, Relaxed) {
            locked.silent_since = now;
        } else if times.keep_alive.is_some_and(|most| now.duration_since(locked.silent_since) >= most) {
            locked.silent_since = now;
            self.needs_attention.store(true, Relaxed);
            locked.wake_reader();
        }
        false
    }
}
