//! The addresses of a remote `host:port`. A name is looked up when a connection needs it, and the addresses are used
//! for ten seconds.
//!
//! There is one look-up of a name at a time, on a task of its own. If the name server fails or does not answer, the
//! last addresses stay in use, so that no connection waits for a look-up whose result is not needed.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{net::lookup_host, sync::Notify, time::timeout};
use tracing::warn;

/// How long the addresses of a name are used without another look-up.
const FRESH: Duration = Duration::from_secs(10);
/// How long a connection waits for a look-up when there are older addresses.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// The name has no address: what the name server, or the system's resolver, reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupError(String);

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LookupError {}

/// A remote host and port: an address, or a name that is looked up.
pub struct RemoteHost {
    /// The address, if the host is not a name.
    fixed: Option<Arc<[SocketAddr]>>,
    lookup: Arc<Lookup>,
}

/// A name and the result of its look-ups.
struct Lookup {
    name: String,
    resolution: Mutex<Resolution>,
    finished: Notify,
}

/// What is known of a name's addresses. It does no I/O; time is an argument.
///
/// ```text
///             begin              finish: addresses
///  unknown ──────────► looking up ────────────────► fresh
///     ▲                 ▲  │  │                       │
///     └─────────────────┼──┘  │ finish: error, with   │ 10 s, or `expire`
///       finish: error,  │     │ older addresses       ▼
///       no addresses    │     └────────────────────► stale
///                       └───────────── begin ─────────┘
/// ```
///
/// An error with older addresses makes these fresh again, so that the next look-up is 10 s later.
#[derive(Default)]
struct Resolution {
    /// The addresses of the last look-up that found some.
    addresses: Option<Arc<[SocketAddr]>>,
    /// Until when they need no look-up.
    fresh_until: Option<Instant>,
    /// The error of the last look-up.
    error: Option<LookupError>,
    is_looking_up: bool,
}

impl Resolution {
    /// The addresses, if no look-up is needed.
    fn fresh(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        if self.fresh_until.is_some_and(|until| now < until) { self.addresses.clone() } else { None }
    }

    /// The last addresses that were found, fresh or not.
    fn latest(&self) -> Result<Arc<[SocketAddr]>, LookupError> {
        self.addresses.clone().ok_or_else(|| self.error.clone().unwrap_or(LookupError(String::new())))
    }

    /// A look-up is needed. Returns whether it has to be started; otherwise there is one already.
    fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.is_looking_up, true)
    }

    /// The look-up has ended. An error is returned if older addresses stay in use.
    fn finish(&mut self, found: Result<Arc<[SocketAddr]>, LookupError>, now: Instant) -> Option<LookupError> {
        self.is_looking_up = false;
        let has_older = self.addresses.is_some();
        match found {
            Ok(found) => (self.addresses, self.error) = (Some(found), None),
            Err(error) => self.error = Some(error),
        }
        // Without any address the next connection starts another look-up.
        self.fresh_until = self.addresses.is_some().then_some(now + FRESH);
        if has_older { self.error.clone() } else { None }
    }

    /// The look-up takes too long: the older addresses stay in use.
    fn keep(&mut self, now: Instant) {
        self.fresh_until = Some(now + FRESH);
    }

    /// The addresses accept no connection: the host may have moved.
    fn expire(&mut self) {
        self.fresh_until = None;
    }
}

impl Lookup {
    /// Looks the name up, with the system's resolver.
    async fn run(self: Arc<Self>) {
        let found: io::Result<Arc<[SocketAddr]>> = lookup_host(&*self.name).await.map(Iterator::collect);
        let found = match found {
            Ok(found) if found.is_empty() => Err(LookupError("the name has no address".to_owned())),
            Ok(found) => Ok(found),
            Err(error) => Err(LookupError(error.to_string())),
        };
        let kept = self.resolution.lock().finish(found, Instant::now());
        if let Some(LookupError(error)) = kept {
            warn!(server = self.name, error, "name not resolved: its last addresses stay in force");
        }
        self.finished.notify_waiters();
    }
}

impl RemoteHost {
    /// The host and port in `text`: `name:port`, `1.2.3.4:port` or `[::1]:port`.
    pub fn new(text: &str) -> Self {
        let fixed = text.parse().ok().map(|address: SocketAddr| Arc::from([address]));
        let lookup = Lookup { name: text.to_owned(), resolution: Mutex::default(), finished: Notify::new() };
        Self { fixed, lookup: Arc::new(lookup) }
    }

    /// The addresses, at least one. If a look-up fails or takes longer than a second, these are the last ones that were
    /// found. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The name has no address, and never had one.
    pub async fn addresses(&self) -> Result<Arc<[SocketAddr]>, LookupError> {
        if let Some(fixed) = &self.fixed {
            return Ok(Arc::clone(fixed));
        }
        let mut finished = pin!(self.lookup.finished.notified());
        let has_older = {
            let mut resolution = self.lookup.resolution.lock();
            if let Some(fresh) = resolution.fresh(Instant::now()) {
                return Ok(fresh);
            }
            if resolution.begin() {
                tokio::spawn(Arc::clone(&self.lookup).run());
            }
            // Under the lock, so that the look-up cannot finish before this waits for it.
            finished.as_mut().enable();
            resolution.addresses.is_some()
        };
        if !has_older {
            finished.await;
        } else if timeout(LOOKUP_TIMEOUT, finished).await.is_err() {
            self.lookup.resolution.lock().keep(Instant::now());
        }
        self.lookup.resolution.lock().latest()
    }

    /// Reports that no address accepted a connection. The next connection looks the name up again.
    pub fn expire(&self) {
        self.lookup.resolution.lock().expire();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(n: u8) -> Result<Arc<[SocketAddr]>, LookupError> {
        Ok(Arc::from([SocketAddr::from(([192, 0, 2, n], 1533))]))
    }

    fn failed() -> Result<Arc<[SocketAddr]>, LookupError> {
        Err(LookupError("server failure".to_owned()))
    }

    #[test]
    fn addresses_are_fresh_for_ten_seconds() {
        let (mut resolution, start) = (Resolution::default(), Instant::now());
        assert!(resolution.fresh(start).is_none());
        assert!(resolution.begin() && !resolution.begin(), "one look-up at a time");
        assert_eq!(resolution.finish(found(1), start), None);
        assert_eq!(resolution.fresh(start + FRESH - Duration::from_nanos(1)), found(1).ok());
        assert_eq!(resolution.fresh(start + FRESH), None);
        assert!(resolution.begin());
        resolution.finish(found(2), start + FRESH);
        assert_eq!(resolution.fresh(start + FRESH), found(2).ok());
        resolution.expire();
        assert_eq!((resolution.fresh(start + FRESH), resolution.latest()), (None, found(2)));
    }

    #[test]
    fn an_error_leaves_the_last_addresses_in_use() {
        let (mut resolution, start) = (Resolution::default(), Instant::now());
        resolution.begin();
        resolution.finish(found(1), start);
        resolution.begin();
        let later = start + FRESH;
        assert_eq!(resolution.finish(failed(), later), failed().err(), "to be logged");
        assert_eq!(resolution.fresh(later), found(1).ok());
        // A look-up without an end, too.
        let later = later + FRESH;
        resolution.begin();
        resolution.keep(later);
        assert_eq!(resolution.fresh(later), found(1).ok());
    }

    #[test]
    fn without_any_address_each_connection_asks_again() {
        let (mut resolution, start) = (Resolution::default(), Instant::now());
        for _ in 0..2 {
            assert!(resolution.begin());
            assert_eq!(resolution.finish(failed(), start), None, "nothing stays in use");
            assert_eq!(resolution.fresh(start), None);
            assert_eq!(resolution.latest(), failed());
        }
    }
}
