//! A live session behind its lock, and the tasks that wait for it.
//!
//! [`LiveSession`] decides; here, requests and the core wait for its decisions and are woken. All changes go through
//! [`SessionHandle::change`] and [`SessionHandle::poll`], which wake whoever the change concerns.

use std::{
    future::poll_fn,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::{
    TunnelSettings,
    live::{HeldRequest, LiveSession, Received, Waiter},
    response::TunnelResponse,
    session::RequestError,
    token::random_token,
};
use crate::{telemetry::outcome::TunnelOutcome, wire::tunnel::envelope::TunnelKind};

/// How often a request whose payload has no room is received again. This is rare: `limits.held_bytes` is exhausted.
const ROOM_CHECK: Duration = Duration::from_millis(20);

/// A session as the registry, its requests and the core's stream hold it.
pub(super) struct SessionHandle(Mutex<Locked>);

struct Locked {
    live: LiveSession,
    /// Of each [`Waiter`] that waits.
    wakers: [Option<Waker>; Waiter::ALL.len()],
}

impl Locked {
    /// Wakes those that the last change concerns.
    fn wake(&mut self) {
        let wakes = self.live.take_wakes();
        if wakes.are_none() {
            return;
        }
        for waiter in Waiter::ALL {
            if wakes.include(waiter)
                && let Some(waker) = self.wakers[waiter as usize].take()
            {
                waker.wake();
            }
        }
    }
}

/// A request between its arrival and its response. When it is dropped, the request departs: also when its client
/// closes the connection.
struct InFlight<'a> {
    session: &'a SessionHandle,
    /// Whether the request is a sign of life of the session's client. A stranger's is not.
    is_of_client: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.session.change(|live| live.depart(self.is_of_client, Instant::now()));
    }
}

impl SessionHandle {
    pub(super) fn new(live: LiveSession) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Locked { live, wakers: [const { None }; _] })))
    }

    pub(super) fn kind(&self) -> TunnelKind {
        self.0.lock().live.kind()
    }

    /// The address that the first request came from.
    pub(super) fn client(&self) -> IpAddr {
        self.0.lock().live.client()
    }

    /// Changes the session, and wakes those that the change concerns.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut LiveSession) -> T) -> T {
        let mut locked = self.0.lock();
        let result = change(&mut locked.live);
        locked.wake();
        result
    }

    /// As [`Self::change`]. When the change returns `None`, `waiter` waits until the session wakes it.
    pub(super) fn poll<T>(
        &self,
        waiter: Waiter,
        cx: &mut Context<'_>,
        change: impl FnOnce(&mut LiveSession) -> Option<T>,
    ) -> Poll<T> {
        let mut locked = self.0.lock();
        let result = change(&mut locked.live);
        locked.wake();
        match result {
            Some(result) => Poll::Ready(result),
            None => {
                locked.wakers[waiter as usize] = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Receives a request with this body, and waits for its response. A request gets its response at once when there is
    /// payload; otherwise after `reply_wait` if it brought data, and after `hold` in a hybrid session. While the Community
    /// is slow, one that brought data waits longer, see [`super::live`].
    ///
    /// # Errors
    /// When the request is not one of this session's client. The session stays as it was.
    pub(super) async fn request(
        &self,
        body: impl AsRef<[u8]>,
        settings: &TunnelSettings,
    ) -> Result<TunnelResponse, RequestError> {
        self.change(LiveSession::arrive);
        let mut in_flight = InFlight { session: self, is_of_client: true };
        let mut deadline = None;
        let request = loop {
            match self.change(|live| live.receive(body.as_ref(), settings)) {
                Ok(Received::Held(request)) => break request,
                Ok(Received::Response(response)) => return Ok(response),
                Ok(Received::NoRoom) => {
                    // Its client may have sent another request meanwhile, and not expect a response to this one. Then its
                    // payload is lost if it is refused, and no later one can be taken.
                    let longest = settings.hold.max(settings.session_timeout);
                    if Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + longest) {
                        return Ok(TunnelResponse::Failed(TunnelOutcome::Busy));
                    }
                    sleep(ROOM_CHECK).await;
                }
                Err(error) => {
                    in_flight.is_of_client = false;
                    return Err(error);
                }
            }
        };
        // The body may be long, and so may the wait.
        drop(body);
        let response = self.wait_for_response(request).await;
        drop(in_flight);
        Ok(response)
    }

    /// Waits until a request has its response.
    async fn wait_for_response(&self, request: HeldRequest) -> TunnelResponse {
        let mut timer = (!request.timeout.is_zero()).then(|| Box::pin(sleep(request.timeout)));
        let (mut is_due, mut is_late) = (timer.is_none(), false);
        poll_fn(|cx| {
            loop {
                if let Some(running) = &mut timer
                    && running.as_mut().poll(cx).is_ready()
                {
                    timer = None;
                    (is_due, is_late) = (true, is_due);
                }
                let respond = |live: &mut LiveSession| live.respond(&request, is_due, is_late, random_token);
                match self.poll(Waiter::Request, cx, respond) {
                    // It waits for room in the inbox. That is rare, so the timer is not made before.
                    Poll::Pending if timer.is_none() && !is_late => {
                        timer = Some(Box::pin(sleep(request.longest - request.timeout)));
                    }
                    response => return response,
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests;
