//! The clients of the tunnel, paced as real ones are.

use std::{collections::VecDeque, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use super::{
    adapter::{self, Codec, Response},
    ledger::{Ledger, To},
    network::{Network, Posted},
    script::Way,
};

/// From a response to the next idle poll; between two ticks of a polling client's clock; how long a hybrid client's
/// data waits for the response to the request that is held.
const SECOND: Duration = Duration::from_secs(1);
/// Between the second copy of a request without a response and the third, and so on.
const RETRY: Duration = Duration::from_secs(3);
/// How many copies of a request a client sends.
const COPIES: usize = 7;
/// The most that a client puts into one request, in bytes.
pub const MOST: usize = 256 * 1024;

/// Why a client sends no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// It has closed, all that it sent being answered.
    Closed,
    /// It is gone, by the script.
    Vanished,
    /// The session is no more: 404.
    Unknown,
    /// No response to any copy of a request.
    GaveUp,
}

/// What the script has told a client, and what became of it.
#[derive(Debug, Default)]
pub struct Control {
    out: VecDeque<u8>,
    /// Since when there is something in `out`.
    since: Option<Instant>,
    /// Whether a request that brought data has no response yet.
    pub waits: bool,
    pub stopped: bool,
    pub ever_stopped: bool,
    closing: bool,
    vanishes: bool,
    pub over: Option<(Over, Instant)>,
}

/// A handle on a tunnel's client.
#[derive(Clone)]
pub struct Client {
    pub control: Arc<Mutex<Control>>,
    notify: Arc<Notify>,
    ledger: Arc<Mutex<Ledger>>,
}

/// Over: nothing more to do.
struct Done;

impl Client {
    pub fn new(ledger: Arc<Mutex<Ledger>>) -> Self {
        let client = Self { control: Arc::default(), notify: Arc::default(), ledger };
        client.tell(|control| control.out.extend(adapter::handshake()));
        client
    }

    pub fn tell(&self, change: impl FnOnce(&mut Control)) {
        let mut control = self.control.lock();
        change(&mut control);
        if !control.out.is_empty() {
            control.since.get_or_insert_with(Instant::now);
        }
        self.notify.notify_one();
    }

    /// Whether everything that it sent was answered with 200.
    pub fn is_answered(&self) -> bool {
        let control = self.control.lock();
        control.out.is_empty() && !control.waits
    }

    pub fn is_ending(&self) -> bool {
        let control = self.control.lock();
        control.closing || control.vanishes || control.over.is_some()
    }

    pub fn say(&self, size: Option<usize>) {
        if !self.is_ending() {
            let frame = self.ledger.lock().say(To::Server, size);
            self.tell(|control| control.out.extend(frame));
        }
    }

    pub fn log_out(&self) {
        if !self.is_ending() {
            let frame = adapter::good_bye(0);
            self.ledger.lock().sends(To::Server, &frame);
            self.tell(|control| control.out.extend(frame));
            self.close();
        }
    }

    pub fn close(&self) {
        self.tell(|control| control.closing = true);
    }

    pub fn vanish(&self) {
        self.tell(|control| control.vanishes = true);
    }

    /// Sends requests to its end.
    pub async fn live(self, way: Way, codec: Codec, network: Network) {
        let (control, ledger) = (Arc::clone(&self.control), Arc::clone(&self.ledger));
        let notify = Arc::clone(&self.notify);
        let mut driver = Driver { client: self, codec, network };
        let over = match way {
            Way::Polling => driver.polling().await,
            _ => driver.hybrid().await,
        };
        driver.network.hang_up();
        ledger.lock().note("client ends", [over as usize, 0]);
        control.lock().over = Some((over, Instant::now()));
        drop(notify);
    }
}

struct Driver {
    client: Client,
    codec: Codec,
    network: Network,
}

/// How a request ended for its client.
enum Ended {
    Body(Vec<u8>),
    Unknown,
    /// No response: the identical request is due again.
    Lost,
}

fn ended(response: Result<Response, tokio::sync::oneshot::error::RecvError>) -> Ended {
    match response {
        Ok(Response::Body(body)) => Ended::Body(body),
        Ok(Response::Unknown) => Ended::Unknown,
        Ok(Response::Unavailable | Response::Error(_)) | Err(_) => Ended::Lost,
    }
}

impl Driver {
    /// Takes what is to be sent.
    fn take(&self) -> Vec<u8> {
        let mut control = self.client.control.lock();
        let n = control.out.len().min(MOST);
        control.waits |= n > 0;
        let data = control.out.drain(..n).collect();
        control.since = (!control.out.is_empty()).then(Instant::now);
        data
    }

    fn since(&self) -> Option<Instant> {
        self.client.control.lock().since
    }

    /// Reads a response; true if it was empty.
    fn read(&mut self, body: &[u8]) -> bool {
        let bytes = self.codec.response(body);
        self.client.control.lock().waits = false;
        if !bytes.is_empty() {
            self.client.ledger.lock().receives(To::Client, &bytes);
        }
        bytes.is_empty()
    }

    fn vanishes(&self) -> bool {
        self.client.control.lock().vanishes
    }

    fn is_done(&self) -> bool {
        let control = self.client.control.lock();
        control.closing && control.out.is_empty()
    }

    /// Waits while the client is stopped.
    async fn awake(&self) -> Result<(), Done> {
        loop {
            if self.vanishes() {
                return Err(Done);
            }
            if !self.client.control.lock().stopped {
                return Ok(());
            }
            self.client.notify.notified().await;
        }
    }

    /// The response, unless the client vanishes first.
    async fn response(&self, posted: &mut Posted) -> Result<Ended, Done> {
        loop {
            if self.vanishes() {
                return Err(Done);
            }
            tokio::select! {
                biased;
                response = &mut posted.response => return Ok(ended(response)),
                () = self.client.notify.notified() => (),
            }
        }
    }

    /// One request, with all its copies.
    async fn exchange(&mut self, body: &[u8]) -> Result<Vec<u8>, Over> {
        for copy in 0..COPIES {
            if copy > 1 {
                sleep(RETRY).await;
            }
            let mut posted = self.network.post(body);
            match self.response(&mut posted).await {
                Err(Done) => return Err(Over::Vanished),
                Ok(Ended::Body(body)) => return Ok(body),
                Ok(Ended::Unknown) => return Err(Over::Unknown),
                Ok(Ended::Lost) => (),
            }
        }
        Err(Over::GaveUp)
    }

    async fn polling(&mut self) -> Over {
        let started = Instant::now();
        let (mut was_empty, mut last) = (true, started);
        loop {
            loop {
                if self.awake().await.is_err() {
                    return Over::Vanished;
                }
                if self.is_done() {
                    return Over::Closed;
                }
                let due = match (self.since(), was_empty) {
                    (Some(_), true) => break,
                    (Some(since), false) => {
                        let since = since.max(last).duration_since(started);
                        started + SECOND * (u32::try_from(since.as_secs()).expect("a short run") + 1)
                    }
                    (None, _) => last + SECOND,
                };
                if Instant::now() >= due {
                    break;
                }
                let _ = timeout_at(due, self.client.notify.notified()).await;
            }
            let data = self.take();
            let body = self.codec.request(&data);
            match self.exchange(&body).await {
                Ok(body) => was_empty = self.read(&body),
                Err(over) => return over,
            }
            last = Instant::now();
        }
    }

    async fn hybrid(&mut self) -> Over {
        'request: loop {
            if self.awake().await.is_err() {
                return Over::Vanished;
            }
            if self.is_done() {
                return Over::Closed;
            }
            let mut body = self.request();
            let (mut copies, mut posted) = (1, self.network.post(&body));
            loop {
                if self.vanishes() {
                    return Over::Vanished;
                }
                // Nothing but an idle request is under way, or one that was answered.
                let beside = self.since().filter(|_| !self.client.control.lock().stopped).map(|since| since + SECOND);
                let next = beside.unwrap_or_else(|| Instant::now() + 3600 * SECOND);
                let response = tokio::select! {
                    biased;
                    response = &mut posted.response => response,
                    () = self.client.notify.notified() => {
                        if self.is_idle_and_done(&body) {
                            return Over::Closed;
                        }
                        continue;
                    }
                    () = tokio::time::sleep_until(next) => {
                        // What has not arrived within a second has broken, and is sent again first: the protocol
                        // knows no order of two requests that overtake each other.
                        if posted.arrived.load(Relaxed) {
                            body = self.request();
                            (copies, posted) = (1, self.network.post(&body));
                        } else {
                            sleep(Duration::from_millis(50)).await;
                        }
                        continue;
                    }
                };
                match ended(response) {
                    Ended::Body(response) => {
                        self.read(&response);
                        continue 'request;
                    }
                    Ended::Unknown => return Over::Unknown,
                    Ended::Lost if copies == COPIES => return Over::GaveUp,
                    Ended::Lost => {
                        if copies > 1 {
                            sleep(RETRY).await;
                        }
                        copies += 1;
                        posted = self.network.post(&body);
                    }
                }
            }
        }
    }

    fn request(&mut self) -> Vec<u8> {
        let data = self.take();
        self.codec.request(&data)
    }

    /// Whether the request that is held brought nothing, so that the client may close.
    fn is_idle_and_done(&self, body: &[u8]) -> bool {
        body.len() == 16 && self.is_done()
    }
}
