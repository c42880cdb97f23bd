//! Carries the requests of a tunnel's client: late, twice, not at all, or on connections that break.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    adapter::{Program, Response, SessionName},
    ledger::{Kind, Ledger},
    script::{Fate, Way},
};

/// What a request and its response take where nothing else is said, in milliseconds.
const USUAL: Fate = Fate::Slow { up: 1, down: 1 };

/// A request under way.
pub struct Posted {
    /// The response; an error says that the connection broke.
    pub response: oneshot::Receiver<Response>,
    /// Whether it has arrived.
    pub arrived: Arc<AtomicBool>,
}

/// See the module's page.
pub struct Network {
    program: Arc<Program>,
    way: Way,
    name: SessionName,
    ledger: Arc<Mutex<Ledger>>,
    /// What happens to the next requests.
    pub fates: Arc<Mutex<VecDeque<Fate>>>,
    under_way: Vec<JoinHandle<()>>,
}

/// One copy of a request.
#[derive(Clone)]
struct Copy {
    program: Arc<Program>,
    way: Way,
    name: SessionName,
    ledger: Arc<Mutex<Ledger>>,
    body: Vec<u8>,
    arrived: Arc<AtomicBool>,
}

impl Copy {
    async fn arrive(self) -> Response {
        self.arrived.store(true, Relaxed);
        {
            let mut ledger = self.ledger.lock();
            ledger.exchanges += 1;
            ledger.note("request arrives", [self.body.len(), 0]);
        }
        let response = self.program.request(self.way, self.name, self.body).await;
        let mut ledger = self.ledger.lock();
        match &response {
            Response::Body(body) => ledger.note("200", [body.len(), 0]),
            Response::Unknown => ledger.note("404", [0; 2]),
            Response::Unavailable => ledger.note("503", [0; 2]),
            Response::Error(what) => ledger.fails(Kind::Broken, what),
        }
        response
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Network {
    pub fn new(
        program: Arc<Program>,
        way: Way,
        name: SessionName,
        ledger: Arc<Mutex<Ledger>>,
        fates: Arc<Mutex<VecDeque<Fate>>>,
    ) -> Self {
        Self { program, way, name, ledger, fates, under_way: Vec::new() }
    }

    /// Sends a request.
    pub fn post(&mut self, body: &[u8]) -> Posted {
        let (send, response) = oneshot::channel();
        let arrived = Arc::new(AtomicBool::new(false));
        let copy = Copy {
            program: Arc::clone(&self.program),
            way: self.way,
            name: self.name,
            ledger: Arc::clone(&self.ledger),
            body: body.to_vec(),
            arrived: Arc::clone(&arrived),
        };
        let fate = self.fates.lock().pop_front().unwrap_or(USUAL);
        self.under_way.retain(|request| !request.is_finished());
        self.under_way.push(tokio::spawn(carry(copy, fate, send)));
        Posted { response, arrived }
    }

    /// The client closes its connections.
    pub fn hang_up(&mut self) {
        self.under_way.drain(..).for_each(|request| request.abort());
    }
}

/// To drop `send` is to break the connection.
async fn carry(copy: Copy, fate: Fate, send: oneshot::Sender<Response>) {
    let ledger = Arc::clone(&copy.ledger);
    let trouble = || ledger.lock().trouble = Instant::now();
    match fate {
        Fate::Slow { up, down } => {
            sleep(ms(up)).await;
            let response = copy.arrive().await;
            sleep(ms(down)).await;
            let _ = send.send(response);
        }
        Fate::RequestLost { after } => {
            sleep(ms(after)).await;
            trouble();
        }
        Fate::ResponseLost => {
            sleep(ms(1)).await;
            copy.arrive().await;
            trouble();
        }
        Fate::Cut { after } => {
            sleep(ms(1)).await;
            let _ = timeout(ms(after), copy.arrive()).await;
            trouble();
        }
        Fate::Doubled { after } => {
            let double = copy.clone();
            sleep(ms(1)).await;
            // Nobody's connection: it outlives the client's.
            tokio::spawn(async move {
                sleep(ms(after)).await;
                double.arrive().await;
            });
            let response = copy.arrive().await;
            sleep(ms(1)).await;
            let _ = send.send(response);
        }
        Fate::Late { after } => {
            sleep(ms(1)).await;
            trouble();
            tokio::spawn(async move {
                sleep(ms(after)).await;
                copy.arrive().await;
            });
        }
    }
}
