//! Runs a script: the program between a client and a Community server, and a judge that watches them.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{Arc, Once},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::{
    adapter::Program,
    client::Client,
    judge,
    ledger::{Event, Fault, Kind, Ledger, To},
    network::Network,
    peer::{Closing, Peer},
    pipe::{Watch, pipe},
    script::{Fate, Script, Step, Way},
    server::Community,
};

/// How often the judge looks.
const LOOK: Duration = Duration::from_millis(500);
/// How long everything that was sent may take to arrive once nobody is held back any more; see [`judge::PROGRESS`] for
/// what is demanded meanwhile.
const ARRIVAL: Duration = Duration::from_secs(3000);
/// How long the end of a session may take, until nothing is left of it: the idle time-out, and all that follows.
const END: Duration = Duration::from_secs(600);

/// A client of any transport. A streaming client is a raw one for the script: its requests are made for it.
pub enum AnyClient {
    Raw(Peer, Watch),
    Tunnel(Client),
}

/// What the script did to end the session, and when.
#[derive(Debug, Default)]
pub struct Ending {
    pub by_client: Option<(Step, Instant)>,
    pub by_server: Option<(Step, Instant)>,
    /// Whether that side had closed half before: then a session may have ended for that.
    pub half_by_client: bool,
    pub half_by_server: bool,
    /// Somebody was gone, whatever was on the way.
    pub vanished: bool,
}

/// Everything of a case.
pub struct World {
    pub script: Script,
    pub program: Arc<Program>,
    pub ledger: Arc<Mutex<Ledger>>,
    pub community: Arc<Community>,
    pub client: AnyClient,
    pub ending: Ending,
    pub largest: usize,
    fates: Arc<Mutex<VecDeque<Fate>>>,
}

/// What became of a case.
#[derive(Debug, Clone)]
pub struct Report {
    pub fault: Option<Fault>,
    pub exchanges: usize,
    /// The same for the same script, always.
    pub digest: u64,
    pub trace: Vec<Event>,
}

/// Runs `script` on a clock of its own.
pub fn run(script: &Script) -> Report {
    keep_panics();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    PANIC.set(Some(None));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut world = World::start(script.clone());
            world.play().await;
            let ledger = world.ledger.lock();
            Report {
                fault: ledger.fault.clone(),
                exchanges: ledger.exchanges,
                digest: ledger.digest(),
                trace: ledger.trace.clone(),
            }
        })
    }));
    let mut report = outcome.unwrap_or(Report { fault: None, exchanges: 1, digest: 0, trace: Vec::new() });
    if let Some(what) = PANIC.take().flatten() {
        report.fault = Some(Fault { kind: Kind::Broken, what });
    }
    report
}

thread_local! {
    /// While a case runs on this thread: what panicked first. Tasks that panic end in silence otherwise.
    static PANIC: Cell<Option<Option<String>>> = const { Cell::new(None) };
}

/// Keeps panics of cases for their reports.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match PANIC.take() {
            Some(first) => PANIC.set(Some(first.or_else(|| Some(info.to_string())))),
            None => usual(info),
        }));
    });
}

impl World {
    fn start(script: Script) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::new()));
        let community = Community::new(&script, Arc::clone(&ledger));
        let program = Arc::new(Program::start(&script, Arc::clone(&community)));
        let fates = Arc::new(Mutex::new(VecDeque::new()));
        let client = if script.way == Way::Raw {
            let (ours, theirs) = pipe(script.buffer);
            let client = Peer::new(To::Client, false, Arc::clone(&ledger));
            client.first_words(&super::adapter::handshake());
            let watch = theirs.watch();
            tokio::spawn(client.clone().live(theirs));
            program.take(ours);
            AnyClient::Raw(client, watch)
        } else if script.way == Way::Streaming {
            let (ours, theirs) = pipe(script.buffer);
            let client = Peer::new(To::Client, false, Arc::clone(&ledger));
            client.first_words(&super::adapter::handshake());
            let watch = theirs.watch();
            tokio::spawn(client.clone().live(theirs));
            let (get, get_of_program) = pipe(script.buffer);
            let name = program.open_stream(get_of_program);
            let (program, fates) = (Arc::clone(&program), Arc::clone(&fates));
            tokio::spawn(super::streaming::live(program, name, ours, get, fates, Arc::clone(&ledger)));
            AnyClient::Raw(client, watch)
        } else {
            let client = Client::new(Arc::clone(&ledger));
            let (codec, name) = program.open(script.way);
            let network = Network::new(Arc::clone(&program), script.way, name, Arc::clone(&ledger), Arc::clone(&fates));
            tokio::spawn(client.clone().live(script.way, codec, network));
            AnyClient::Tunnel(client)
        };
        let largest = script.steps.iter().map(|step| if let Step::ClientSays(n) = step { *n } else { 0 }).sum();
        Self { script, program, ledger, community, client, ending: Ending::default(), largest, fates }
    }

    fn failed(&self) -> bool {
        self.ledger.lock().fault.is_some()
    }

    async fn play(&mut self) {
        let mut judge = judge::Judge::new();
        for step in self.script.steps.clone() {
            if let Step::Wait(ms) = step {
                let until = Instant::now() + Duration::from_millis(ms);
                while Instant::now() < until && !self.failed() {
                    sleep((until - Instant::now()).min(LOOK)).await;
                    judge.look(self);
                }
            } else {
                self.step(step);
            }
            if self.failed() {
                return;
            }
        }
        self.heal();
        let healed = Instant::now();
        while !self.is_quiet() {
            sleep(LOOK).await;
            judge.look(self);
            if healed.elapsed() > ARRIVAL {
                self.ledger.lock().fails(Kind::Standstill, "not everything arrived in the end");
            }
            if self.failed() {
                return;
            }
        }
        if self.ending.by_client.is_none() && self.ending.by_server.is_none() {
            self.step(Step::ClientLogsOut);
        }
        let ends = Instant::now();
        while self.program.sessions() != (0, 0) && !self.failed() {
            sleep(LOOK).await;
            judge.look(self);
            if ends.elapsed() > END {
                let left = format!("{:?} sessions of core and tunnel", self.program.sessions());
                self.ledger.lock().fails(Kind::Leftover, left);
            }
        }
        // What is still on the way arrives, or not.
        sleep(Duration::from_secs(10)).await;
        if !self.failed() {
            judge.end(self);
        }
    }

    /// Nobody is held back any more.
    fn heal(&mut self) {
        self.fates.lock().clear();
        if !self.script.stays_stopped {
            self.step(Step::ServerGoes);
        }
        self.step(Step::ServerReads(65_536, 0));
        self.step(Step::ClientGoes);
        self.step(Step::ClientReads(65_536, 0));
        self.ledger.lock().note("healed", [0; 2]);
    }

    /// Whether nothing is left to arrive; or somebody has ended the session, so that its end is to be awaited.
    fn is_quiet(&self) -> bool {
        let ledger = self.ledger.lock();
        let gone = match &self.client {
            AnyClient::Raw(..) => false,
            AnyClient::Tunnel(client) => client.control.lock().over.is_some(),
        };
        let ended = gone || self.ending.by_client.is_some() || self.ending.by_server.is_some();
        let up = ledger.missing(To::Server) == 0 || self.community.server.control.lock().stopped;
        ended || up && ledger.missing(To::Client) == 0
    }

    fn step(&mut self, step: Step) {
        self.ending.vanished |= matches!(step, Step::ClientVanishes | Step::ServerVanishes);
        let ms = Duration::from_millis;
        let server = self.community.server.clone();
        self.ledger.lock().note(step.name(), [0; 2]);
        match step {
            Step::Wait(_) => (),
            Step::Network(fate) => self.fates.lock().push_back(fate),
            Step::ServerSays(n) => server.say(To::Client, Some(n)),
            Step::ServerStops => server.tell(|server| server.stopped = true),
            Step::ServerGoes => server.tell(|server| server.stopped = false),
            Step::ServerReads(n, every) => server.tell(|server| (server.chunk, server.every) = (n, ms(every))),
            Step::ServerCloses | Step::ServerHalfCloses | Step::ServerSaysGoodBye | Step::ServerVanishes => {
                self.ending.half_by_server |= step == Step::ServerHalfCloses;
                note_end(&mut self.ending.by_server, step, server.is_ending());
                match step {
                    Step::ServerCloses => server.close(Closing::Whole),
                    Step::ServerHalfCloses => server.close(Closing::Half),
                    Step::ServerSaysGoodBye => server.good_bye(To::Client),
                    _ => server.vanish(),
                }
            }
            _ => self.client_step(step),
        }
    }

    fn client_step(&mut self, step: Step) {
        let ends =
            matches!(step, Step::ClientCloses | Step::ClientHalfCloses | Step::ClientLogsOut | Step::ClientVanishes);
        let is_ending = match &self.client {
            AnyClient::Raw(client, _) => client.is_ending(),
            AnyClient::Tunnel(client) => client.is_ending(),
        };
        if ends {
            // The tunnel has no half of a close.
            let is_half = step == Step::ClientHalfCloses && self.script.way == Way::Raw;
            let whole = if step == Step::ClientHalfCloses && !is_half { Step::ClientCloses } else { step };
            self.ending.half_by_client |= is_half;
            note_end(&mut self.ending.by_client, whole, is_ending);
        }
        let step =
            if step == Step::ClientHalfCloses && self.script.way != Way::Raw { Step::ClientCloses } else { step };
        match &self.client {
            AnyClient::Raw(client, _) => match step {
                Step::ClientSays(n) => client.say(To::Server, Some(n)),
                Step::ClientRepeats => client.say(To::Server, None),
                Step::ClientStops => client.tell(|client| client.stopped = true),
                Step::ClientGoes => client.tell(|client| client.stopped = false),
                Step::ClientReads(n, every) => {
                    client.tell(|client| (client.chunk, client.every) = (n, Duration::from_millis(every)));
                }
                Step::ClientCloses => client.close(Closing::Whole),
                Step::ClientHalfCloses => client.close(Closing::Half),
                Step::ClientLogsOut => client.good_bye(To::Server),
                _ => client.vanish(),
            },
            AnyClient::Tunnel(client) => match step {
                Step::ClientSays(n) => client.say(Some(n)),
                Step::ClientRepeats => client.say(None),
                Step::ClientStops => client.tell(|client| (client.stopped, client.ever_stopped) = (true, true)),
                Step::ClientGoes => client.tell(|client| client.stopped = false),
                Step::ClientReads(..) => (),
                Step::ClientCloses | Step::ClientHalfCloses => client.close(),
                Step::ClientLogsOut => client.log_out(),
                _ => client.vanish(),
            },
        }
    }
}

/// Notes how a side ends the session: as it did first, unless it was only half a close, and not all of it is over now.
fn note_end(end: &mut Option<(Step, Instant)>, step: Step, is_ending: bool) {
    let was_half = end.is_some_and(|(was, _)| matches!(was, Step::ClientHalfCloses | Step::ServerHalfCloses));
    let is_whole =
        matches!(step, Step::ClientCloses | Step::ClientVanishes | Step::ServerCloses | Step::ServerVanishes);
    if !is_ending || was_half && is_whole {
        *end = Some((step, Instant::now()));
    }
}
