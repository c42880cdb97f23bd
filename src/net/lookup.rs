//! The addresses of a remote `host:port`. A name is looked up when a connection needs it, and the addresses are used
//! for ten seconds.
//!
//! There is one look-up of a name at a time, on a task of its own. If the name server fails or does not answer, the
//! last addresses stay in use, so that no connection waits for a look-up whose result is not needed.
//!
//! An address on which this program itself listens is not used, since its connections would come back. This is checked
//! at every look-up, and as often for a host that is an address: addresses can move to this machine.

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

use super::{attempts::AddressHistory, own::OwnListeners, shortage::shortage};
use crate::log::Throttle;

/// How long the addresses of a name are used without another look-up.
const FRESH: Duration = Duration::from_secs(10);
/// How long a connection waits for a look-up when there are older addresses.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// A host has no address that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupError {
    /// The name has no address: what the name server, or the system's resolver, reported.
    NoAddress(String),
    /// The name was not looked up, because this machine lacks descriptors or memory: the system's error.
    Shortage(String),
    /// Its only addresses are such on which this program itself listens.
    Own {
        /// One of its addresses.
        address: SocketAddr,
        /// The listener that connections to this address come to.
        listener: SocketAddr,
    },
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress(error) => f.write_str(error),
            Self::Shortage(error) => write!(f, "its name was not looked up: {error}"),
            Self::Own { address, listener } => {
                write!(f, "{address} is this program itself, which listens on {listener}")
            }
        }
    }
}

impl std::error::Error for LookupError {}

/// A remote host and port: an address, or a name that is looked up.
pub struct RemoteHost {
    /// The address, if the host is not a name.
    fixed: Option<SocketAddr>,
    lookup: Arc<Lookup>,
    /// Matters only if there are several addresses.
    history: Mutex<AddressHistory>,
}

/// A name and the result of its look-ups.
struct Lookup {
    name: String,
    own: OwnListeners,
    resolution: Mutex<Resolution>,
    finished: Notify,
    /// For log lines about a name that cannot be resolved, or is this program itself.
    lines: Throttle,
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
/// An error with older addresses makes these fresh again, so that the next look-up is 10 s later. But if the name is this
/// program itself, the older addresses are forgotten.
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
        self.addresses.clone().ok_or_else(|| self.error.clone().unwrap_or(LookupError::NoAddress(String::new())))
    }

    /// A look-up is needed. Returns whether it has to be started; otherwise there is one already.
    fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.is_looking_up, true)
    }

    /// The look-up has ended. An error is returned if older addresses stay in use.
    fn finish(&mut self, found: Result<Arc<[SocketAddr]>, LookupError>, now: Instant) -> Option<LookupError> {
        self.is_looking_up = false;
        if matches!(found, Err(LookupError::Own { .. })) {
            self.addresses = None;
        }
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
        let found = self.look_up().await.and_then(|found| self.usable(found));
        let kept = self.resolution.lock().finish(found, Instant::now());
        if let Some(error) = kept
            && let Some(more) = self.lines.pass()
        {
            warn!(server = self.name, %error, more, "name not resolved: its last addresses stay in force");
        }
        self.finished.notify_waiters();
    }

    /// All addresses of the name.
    async fn look_up(&self) -> Result<Vec<SocketAddr>, LookupError> {
        let lacks = || shortage().map_or(Ok(()), |error| Err(LookupError::Shortage(error.to_string())));
        lacks()?;
        let found: io::Result<Vec<SocketAddr>> = lookup_host(&*self.name).await.map(Iterator::collect);
        if found.is_err() {
            // The resolver may not say that this is the reason.
            lacks()?;
        }
        found.map_err(|error| LookupError::NoAddress(error.to_string()))
    }

    /// The addresses of `found` that lead to another program, each of them once.
    fn usable(&self, found: Vec<SocketAddr>) -> Result<Arc<[SocketAddr]>, LookupError> {
        let (mut usable, mut own) = (Vec::new(), None);
        for address in found {
            match self.own.taking(address) {
                Some(listener) => own = Some(LookupError::Own { address, listener }),
                None if usable.contains(&address) => (),
                None => usable.push(address),
            }
        }
        match own {
            Some(own) if usable.is_empty() => return Err(own),
            Some(own) => {
                if let Some(more) = self.lines.pass() {
                    warn!(server = self.name, error = %own, more, "one address of the name is not used");
                }
            }
            None if usable.is_empty() => {
                return Err(LookupError::NoAddress("the name has no address".to_owned()));
            }
            None => (),
        }
        Ok(usable.into())
    }
}

impl RemoteHost {
    /// The host and port in `text`: `name:port`, `1.2.3.4:port` or `[::1]:port`. Its addresses that are those of `own`
    /// are not used.
    pub fn new(text: &str, own: OwnListeners) -> Self {
        let (resolution, finished, lines) = (Mutex::default(), Notify::new(), Throttle::default());
        let lookup = Lookup { name: text.to_owned(), own, resolution, finished, lines };
        Self { fixed: text.parse().ok(), lookup: Arc::new(lookup), history: Mutex::default() }
    }

    /// The addresses, at least one. If a look-up fails or takes longer than a second, these are the last ones that were
    /// found. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The name has no address, and never had one; or all its addresses are those of this program.
    pub async fn addresses(&self) -> Result<Arc<[SocketAddr]>, LookupError> {
        let mut finished = pin!(self.lookup.finished.notified());
        let has_older = {
            let mut resolution = self.lookup.resolution.lock();
            if let Some(fresh) = resolution.fresh(Instant::now()) {
                return Ok(fresh);
            }
            if let Some(fixed) = self.fixed {
                resolution.finish(self.lookup.usable(vec![fixed]), Instant::now());
                return resolution.latest();
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

    /// `addresses` in the order in which they are tried.
    pub(super) fn in_order(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        self.history.lock().order(addresses)
    }

    /// Notes that a connection to one of several addresses was made.
    pub(super) fn connected(&self, address: SocketAddr) {
        self.history.lock().connected(address);
    }

    /// Reports whether a connection to `address` was useful. An address whose connection was not is tried last from then
    /// on, if the host has others.
    pub fn note_use(&self, address: SocketAddr, was_useful: bool) {
        let mut history = self.history.lock();
        if was_useful { history.useful(address) } else { history.useless(address) }
    }

    /// Reports that no address accepted a connection. The next connection looks the name up again.
    pub fn expire(&self) {
        self.lookup.resolution.lock().expire();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl RemoteHost {
        /// A host whose name was looked up and has these addresses.
        pub(in crate::net) fn of_addresses(addresses: &[SocketAddr]) -> Self {
            let host = Self::new("test:1", OwnListeners::default());
            host.lookup.resolution.lock().finish(Ok(addresses.into()), Instant::now());
            host
        }
    }

    fn found(n: u8) -> Result<Arc<[SocketAddr]>, LookupError> {
        Ok(Arc::from([SocketAddr::from(([192, 0, 2, n], 1533))]))
    }

    fn failed() -> Result<Arc<[SocketAddr]>, LookupError> {
        Err(LookupError::NoAddress("server failure".to_owned()))
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

    fn own(listener: SocketAddr) -> OwnListeners {
        let own = OwnListeners::default();
        own.set_source(move || vec![listener]);
        own
    }

    #[tokio::test]
    async fn addresses_of_this_program_are_not_used() {
        let [listener, other] = [1533, 1534].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let host = RemoteHost::new("127.0.0.1:1533", own(listener));
        let error = host.addresses().await.expect_err("this program");
        assert_eq!(error.to_string(), "127.0.0.1:1533 is this program itself, which listens on 127.0.0.1:1533");
        let host = RemoteHost::new("127.0.0.1:1534", own(listener));
        assert_eq!(*host.addresses().await.expect("another program"), [other]);
        // A name that has both, one of them twice.
        let usable = host.lookup.usable(vec![listener, other, other]).expect("another program");
        assert_eq!(*usable, [other]);
    }

    #[test]
    fn a_name_that_becomes_this_program_forgets_its_older_addresses() {
        let (mut resolution, start) = (Resolution::default(), Instant::now());
        resolution.begin();
        resolution.finish(found(1), start);
        resolution.begin();
        let address = SocketAddr::from(([127, 0, 0, 1], 1533));
        let own = LookupError::Own { address, listener: address };
        assert_eq!(resolution.finish(Err(own.clone()), start), None);
        assert_eq!((resolution.fresh(start), resolution.latest()), (None, Err(own)));
        // It moves away again.
        resolution.begin();
        resolution.finish(found(2), start);
        assert_eq!(resolution.fresh(start), found(2).ok());
    }
}
