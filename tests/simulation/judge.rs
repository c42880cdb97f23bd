//! Decides whether what is seen is right.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    client::{MOST, Over},
    ledger::{Kind, To},
    script::{Step, Way},
    world::{AnyClient, World},
};

/// How long bytes may wait without any of them moving, while their receiver is ready and the network is well.
pub const PROGRESS: Duration = Duration::from_secs(20);
/// How long, from an orderly close, the other side may take to receive what was sent before.
pub const CLOSE: Duration = Duration::from_secs(20);
/// After so long without its requests, a tunnel's client cannot expect its session to be there.
const ASLEEP: Duration = Duration::from_secs(40);
/// What may be held beside windows: one read in each direction, and a little for each holder.
const BESIDE: usize = 2 * 32 * 1024 + 4 * 4096;

/// See the module's page.
pub struct Judge {
    /// Since when each direction could have moved and did not.
    since: [Instant; 2],
    most_held: usize,
    asleep: Option<Instant>,
    longest_sleep: Duration,
    /// The client had reason to give up: the network, or a server that stopped.
    gave_up: bool,
}

impl Judge {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { since: [now; 2], most_held: 0, asleep: None, longest_sleep: Duration::ZERO, gave_up: false }
    }

    /// What must hold at any moment.
    pub fn look(&mut self, world: &World) {
        self.memory(world);
        self.sleep(world);
        self.progress(world);
        self.nobody_ended(world);
    }

    fn memory(&mut self, world: &World) {
        let held = world.program.held_bytes();
        self.most_held = self.most_held.max(held);
        // A request's payload may go beyond the window, and a response is counted beside what it carries.
        let payload = world.largest.min(MOST) + 4096;
        let windows = 4 * world.script.window + payload + BESIDE;
        // A tunnel's client sends on without a response, and what it has sent is taken at once: only the limit bounds it.
        let taken = if world.script.way == Way::Raw { 0 } else { world.ledger.lock().missing(To::Server) };
        let limit = match world.script.held_bytes {
            0 => windows + taken,
            // While there is payload for the client, the limit of its address gives way.
            _ if world.ledger.lock().sent(To::Client) > 0 => windows + taken,
            limit => (windows + taken).min(limit + 2 * payload + 4 * world.script.window + BESIDE),
        };
        if held > limit {
            world.ledger.lock().fails(Kind::Memory, format!("{held} bytes are held, {limit} may be"));
        }
    }

    fn sleep(&mut self, world: &World) {
        let AnyClient::Tunnel(client) = &world.client else { return };
        if client.control.lock().stopped {
            let since = *self.asleep.get_or_insert_with(Instant::now);
            self.longest_sleep = self.longest_sleep.max(since.elapsed());
        } else {
            self.asleep = None;
        }
    }

    fn progress(&mut self, world: &World) {
        let mut ledger = world.ledger.lock();
        let (client_reads, client_sends) = match &world.client {
            AnyClient::Raw(client, _) => {
                let control = client.control.lock();
                let there = control.closed.is_none();
                (there && !control.stopped && control.saw_end.is_none(), there)
            }
            AnyClient::Tunnel(client) => {
                let control = client.control.lock();
                let there = control.over.is_none() && !control.stopped;
                (there, there)
            }
        };
        let server = &world.community.server;
        let (server_there, server_stopped) = {
            let control = server.control.lock();
            (control.closed.is_none(), control.stopped)
        };
        let up = ledger.missing(To::Server) > 0 && client_sends && server.wants_to_read();
        // A tunnel's response waits for room for what its request brought.
        let waits = world.script.way.acknowledges() && server_stopped && ledger.missing(To::Server) > 0;
        let down = ledger.missing(To::Client) > 0 && client_reads && server_there && !waits;
        for (to, may) in [(To::Server, up), (To::Client, down)] {
            let since = &mut self.since[to as usize];
            if !may {
                *since = Instant::now();
            }
            *since = (*since).max(ledger.progress(to)).max(ledger.trouble);
            if since.elapsed() > PROGRESS {
                let what = format!("{} bytes to the {to:?} do not move", ledger.missing(to));
                let answered = match &world.client {
                    AnyClient::Raw(..) => false,
                    AnyClient::Tunnel(client) => to == To::Server && client.is_answered(),
                };
                ledger.fails(if answered { Kind::Lost } else { Kind::Standstill }, what);
            }
        }
    }

    /// As long as nobody has ended the session, it goes on.
    fn nobody_ended(&mut self, world: &World) {
        let ended = world.ending.by_client.is_some() || world.ending.by_server.is_some();
        if ended || self.gave_up || self.longest_sleep > ASLEEP {
            return;
        }
        let over = match &world.client {
            AnyClient::Raw(_, watch) => watch.ended().map(|_| Over::Unknown),
            AnyClient::Tunnel(client) => client.control.lock().over.map(|(over, _)| over),
        };
        let over = over.or((world.program.sessions().0 == 0).then_some(Over::Unknown));
        if let Some(over) = over {
            let mut ledger = world.ledger.lock();
            let stopped = world.community.server.control.lock().stopped;
            self.gave_up = over == Over::GaveUp && (stopped || ledger.trouble.elapsed() < PROGRESS);
            if self.gave_up {
                return;
            }
            let ends: Vec<&str> = world.program.ends().iter().map(|(name, _)| *name).collect();
            // A server that takes nothing of a streaming client's request for so long ends the session.
            self.gave_up = world.script.way == Way::Streaming && ends == ["community_too_slow"];
            if self.gave_up {
                return;
            }
            ledger.fails(Kind::Ended, format!("the session ended by itself: {over:?}, {ends:?}"));
        }
    }

    /// What must hold when everything is over.
    pub fn end(&self, world: &World) {
        let mut ledger = world.ledger.lock();
        let held = world.program.held_bytes();
        if held > 0 {
            ledger.fails(Kind::Leftover, format!("{held} bytes are still held"));
        }
        let ends = world.program.ends();
        if self.gave_up && world.script.way == Way::Streaming {
            return;
        }
        let [(end, farewell)] = &ends[..] else {
            return ledger.fails(Kind::Outcome, format!("not one end: {ends:?}"));
        };
        let server = world.community.server.control.lock();
        let server_ended = world.community.watch.lock().as_ref().and_then(super::pipe::Watch::ended);
        let (by_client, by_server) = (world.ending.by_client, world.ending.by_server);
        let vanished = world.ending.vanished;
        // When each side wrote its last byte, in order; whether it was there to read to the end; when it was told that
        // there is no more.
        let (client_shut, client_reads, client_told) = match &world.client {
            AnyClient::Raw(client, watch) => {
                let control = client.control.lock();
                let reads =
                    control.saw_end.is_some() && by_client.is_none_or(|(step, _)| step == Step::ClientHalfCloses);
                (control.shut, reads, watch.ended())
            }
            AnyClient::Tunnel(client) => match client.control.lock().over {
                Some((Over::Closed, at)) => (Some(at), false, Some(at)),
                Some((Over::Unknown, at)) => (None, self.longest_sleep < ASLEEP, Some(at)),
                _ => (None, false, None),
            },
        };
        let early = |shut: Option<Instant>, told: Option<Instant>| match (shut, told) {
            (Some(shut), Some(told)) => told.saturating_duration_since(shut) < CLOSE,
            _ => false,
        };
        let server_reads = !server.stopped && by_server.is_none_or(|(step, _)| step == Step::ServerHalfCloses);
        if !vanished && server_reads && ledger.missing(To::Server) > 0 && early(client_shut, server_ended) {
            let (missing, sent) = (ledger.missing(To::Server), ledger.sent(To::Server));
            let what = format!("the server did not get {missing} of {sent} bytes that the client sent; {end}");
            ledger.fails(Kind::LostAtClose, what);
        }
        if !vanished && client_reads && ledger.missing(To::Client) > 0 && early(server.shut, client_told) {
            let (missing, sent) = (ledger.missing(To::Client), ledger.sent(To::Client));
            let what = format!("the client did not get {missing} of {sent} bytes that the server sent; {end}");
            ledger.fails(Kind::LostAtClose, what);
        }
        // The reason comes behind whole frames only, and only where the client still reads.
        let due = farewell.as_deref().unwrap_or_default();
        let due = if client_reads && ledger.at_boundary(To::Client) { due } else { &[] };
        if client_reads && !vanished && ledger.farewell != due {
            let what = format!("{end}: farewell {:?} instead of {due:?}", ledger.farewell);
            ledger.fails(Kind::Farewell, what);
        }
        if self.longest_sleep < ASLEEP
            && let Some(right) = right_ends(world, by_client.map(|(step, _)| step), by_server.map(|(step, _)| step))
            && !right.contains(end)
        {
            ledger.fails(Kind::Outcome, format!("{end} instead of {right:?}"));
        }
    }
}

/// The ends that are right where only one side had a hand in it.
fn right_ends(world: &World, client: Option<Step>, server: Option<Step>) -> Option<&'static [&'static str]> {
    let is_raw = !world.script.way.acknowledges();
    let gave_up = match &world.client {
        AnyClient::Raw(..) => false,
        AnyClient::Tunnel(client) => client.control.lock().over.is_some_and(|(over, _)| over == Over::GaveUp),
    };
    if gave_up || world.script.stays_stopped {
        return None;
    }
    let vanished =
        world.ending.vanished && client != Some(Step::ClientVanishes) && server != Some(Step::ServerVanishes);
    match (client, server) {
        _ if vanished => None,
        // A server that sends back what nobody takes reads no further, and the log-out may not pass.
        (Some(Step::ClientLogsOut), None) if world.script.echoes => {
            Some(&["log_out", "session_timeout", "client_closed", "client_broken", "half_closed"])
        }
        (Some(Step::ClientLogsOut), None) => Some(&["log_out"]),
        (Some(Step::ClientCloses), None) if is_raw => Some(&["client_closed", "half_closed"]),
        (Some(Step::ClientVanishes), None) if world.ending.half_by_client => {
            Some(&["client_closed", "client_broken", "half_closed", "no_handshake"])
        }
        // It may close the connection of its GET request behind a request that was answered.
        (Some(Step::ClientVanishes | Step::ClientCloses), None) if world.script.way == Way::Streaming => {
            Some(&["client_broken", "client_closed", "half_closed", "no_handshake"])
        }
        (Some(Step::ClientVanishes), None) if is_raw => Some(&["client_broken", "no_handshake"]),
        (Some(Step::ClientCloses), None) => Some(&["session_timeout"]),
        // It may be gone before its first frame was there.
        (Some(Step::ClientVanishes), None) => Some(&["session_timeout", "login_timeout"]),
        // The client does not always follow within the time.
        (None, Some(Step::ServerCloses)) => Some(&["community_closed", "half_closed"]),
        (None, Some(Step::ServerSaysGoodBye)) => Some(&["community_closed"]),
        (None, Some(Step::ServerVanishes)) if world.ending.half_by_server => {
            Some(&["community_closed", "community_broken", "half_closed"])
        }
        (None, Some(Step::ServerVanishes)) => Some(&["community_broken"]),
        _ => None,
    }
}
