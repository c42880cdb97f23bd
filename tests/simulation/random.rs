//! Makes scripts from seeds, and shrinks those that fail.

use std::time::{Duration, Instant};

use super::{
    script::{Fate, Script, Step, Way},
    world::{self, Report},
};

/// How long a script may be shrunk.
const PATIENCE: Duration = Duration::from_secs(30);

/// A generator of numbers: the same seed, the same numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("small")]
    }

    fn size(&mut self, from: u64, to: u64) -> usize {
        usize::try_from(from + self.below(to - from)).expect("small")
    }

    /// The size of a frame: mostly small, larger where there is much to say.
    fn frame(&mut self, much: u64) -> usize {
        match self.below(100) + 24 * much {
            0..70 => self.size(13, 200),
            70..90 => self.size(200, 5_000),
            90..98 => self.size(5_000, 40_000),
            98.. => self.size(40_000, 150_012),
        }
    }

    /// How a slow reader reads: so many bytes, every so many milliseconds.
    fn pace(&mut self) -> (usize, u64) {
        (self.size(100, 8_000), self.below(1_500))
    }

    fn time(&mut self) -> u64 {
        match self.below(10) {
            0..5 => self.below(200),
            5..8 => self.below(1_500),
            8 => self.below(5_000),
            _ => self.below(12_000),
        }
    }

    fn fate(&mut self) -> Fate {
        match self.below(7) {
            // Less than the second after which a hybrid client posts beside it.
            0 | 1 => Fate::Slow { up: self.below(700), down: self.below(2_000) },
            2 => Fate::RequestLost { after: self.below(800) },
            3 => Fate::ResponseLost,
            4 => Fate::Cut { after: self.time() },
            5 => Fate::Doubled { after: self.time() },
            _ => Fate::Late { after: self.time() },
        }
    }
}

/// A hybrid client that posts beside requests that wait for a slow server.
fn beside(random: &mut Random, window: usize) -> Vec<Step> {
    let rate = window / 8 + 1;
    let mut steps = vec![Step::ServerReads(random.size(1, 20) * rate / 10 + 1, 500), Step::ClientSays(window)];
    for _ in 0..3 + random.below(8) {
        let size = random.size(0, 2) * window / 2 + random.size(13, 2_000);
        steps.extend([Step::Wait(800 + random.below(1_200)), Step::ClientSays(size.max(13))]);
    }
    steps
}

/// The script of a seed.
pub fn script(seed: u64) -> Script {
    let random = &mut Random::new(seed);
    let way = random.of(&[Way::Raw, Way::Polling, Way::Hybrid, Way::Polling, Way::Hybrid, Way::Streaming]);
    let repeats = random.below(12) == 0;
    let mut script = Script {
        way,
        version: random.of(&[0, 0, 0, 1]),
        window: random.of(&[4_096, 16_384, 131_072, 131_072]),
        reply_wait: random.of(&[0, 100, 100, 100, 100, 400]),
        hold: random.of(&[25_000, 25_000, 25_000, 5_000]),
        held_bytes: random.of(&[0, 0, 0, 65_536]),
        buffer: random.of(&[500, 4_096, 16_384, 65_536]),
        answers_after: random.of(&[0, 0, 20, 1_500]),
        echoes: random.below(2) == 0,
        stays_stopped: random.below(20) == 0,
        steps: Vec::new(),
    };
    let (harm, slow) = (random.below(3), random.below(3));
    // A lot to say, much of it at once, is for some scripts.
    let much = random.of(&[0, 0, 0, 0, 1, 2, 3]);
    if way == Way::Hybrid && random.below(8) == 0 {
        script.steps = beside(random, script.window);
    }
    for _ in 0..2 + random.below(28) {
        let step = match random.below(20) {
            0..6 => Step::ClientSays(random.frame(much)),
            6..8 => Step::ServerSays(random.frame(much)),
            8..13 => Step::Wait(random.time()),
            13..18 if repeats => Step::ClientRepeats,
            13 if slow > 0 => {
                let (n, every) = random.pace();
                Step::ServerReads(n, every)
            }
            14 if slow > 0 => random.of(&[Step::ServerStops, Step::ServerGoes]),
            15 if slow > 0 && !way.acknowledges() => {
                let (n, every) = random.pace();
                Step::ClientReads(n, every)
            }
            15 | 16 if slow > 1 => random.of(&[Step::ClientStops, Step::ClientGoes]),
            _ if harm > 0 && way != Way::Raw => Step::Network(random.fate()),
            _ => Step::ClientSays(random.size(13, 60)),
        };
        script.steps.push(step);
    }
    if repeats {
        let twice = [Step::ClientRepeats, Step::Wait(1_000 + random.below(1_500)), Step::ClientRepeats];
        script.steps.extend([Step::Wait(3_000)].into_iter().chain(twice));
        // Identical requests are told apart only where neither the network nor the server delays them.
        script.reply_wait = random.of(&[100, 100, 1_000, 2_500]);
        script.steps.retain(|step| {
            !matches!(step, Step::Network(_) | Step::ServerStops | Step::ServerReads(..) | Step::ClientSays(200..))
        });
    }
    // Most sessions end in some way of their own, with something on the way.
    let ends = [
        Step::ClientCloses,
        Step::ClientHalfCloses,
        Step::ClientLogsOut,
        Step::ClientVanishes,
        Step::ServerCloses,
        Step::ServerHalfCloses,
        Step::ServerSaysGoodBye,
        Step::ServerVanishes,
    ];
    for _ in 0..random.of(&[0, 0, 1, 1, 2]) {
        script.steps.push(random.of(&ends));
        if random.below(2) == 0 {
            script.steps.push(Step::Wait(random.time()));
        }
    }
    script
}

/// A smaller script that fails in the same way, and how many were tried.
pub fn shrink(script: &Script, report: &Report) -> (Script, usize) {
    let kind = report.fault.as_ref().map(|fault| fault.kind);
    let (mut best, mut tried) = (script.clone(), 0);
    let began = Instant::now();
    let mut attempt = |candidate: Script, best: &mut Script| {
        if began.elapsed() > PATIENCE {
            return false;
        }
        tried += 1;
        let fails = candidate != *best && world::run(&candidate).fault.map(|fault| fault.kind) == kind;
        if fails {
            *best = candidate;
        }
        fails
    };
    loop {
        let before = best.clone();
        // Many steps at once, then few.
        let mut many = best.steps.len();
        while many > 0 {
            let mut at = 0;
            while at < best.steps.len() {
                let mut candidate = best.clone();
                candidate.steps.drain(at..(at + many).min(best.steps.len()));
                if !attempt(candidate, &mut best) {
                    at += many;
                }
            }
            many /= 2;
        }
        for plain in plainer(&best) {
            attempt(plain, &mut best);
        }
        for at in 0..best.steps.len() {
            for _ in 0..20 {
                let smaller = smaller(best.steps[at]);
                let shrunk = smaller.into_iter().any(|step| {
                    let mut candidate = best.clone();
                    candidate.steps[at] = step;
                    attempt(candidate, &mut best)
                });
                if !shrunk {
                    break;
                }
            }
        }
        if best == before {
            return (best, tried);
        }
    }
}

/// The script with one setting less that is not usual.
fn plainer(script: &Script) -> Vec<Script> {
    let plain = Script::default();
    macro_rules! without {
        ($($field:ident)+) => { vec![$(Script { $field: plain.$field, ..script.clone() },)+] };
    }
    without!(version window reply_wait hold held_bytes buffer answers_after echoes stays_stopped)
}

/// Smaller forms of a step, the smallest first.
fn smaller(step: Step) -> Vec<Step> {
    let sizes = |n: usize| [13, n / 2, n - n / 8].into_iter().filter(move |m| *m < n && *m >= 13);
    let times = |n: u64| [0, n / 2, n - n / 8].into_iter().filter(move |m| *m < n);
    let pace = |n: usize, every: u64| {
        let slower = times(every).map(move |every| (n, every));
        slower.chain((n < 8_192).then_some((n * 2, every))).collect::<Vec<_>>()
    };
    match step {
        Step::Wait(n) => times(n).map(Step::Wait).collect(),
        Step::ClientSays(n) => sizes(n).map(Step::ClientSays).collect(),
        Step::ServerSays(n) => sizes(n).map(Step::ServerSays).collect(),
        Step::ClientReads(n, every) => {
            pace(n, every).into_iter().map(|(n, every)| Step::ClientReads(n, every)).collect()
        }
        Step::ServerReads(n, every) => {
            pace(n, every).into_iter().map(|(n, every)| Step::ServerReads(n, every)).collect()
        }
        Step::Network(Fate::Slow { up, down }) => {
            let ups = times(up).map(|up| Fate::Slow { up, down });
            ups.chain(times(down).map(|down| Fate::Slow { up, down })).map(Step::Network).collect()
        }
        Step::Network(Fate::RequestLost { after }) => {
            times(after).map(|after| Step::Network(Fate::RequestLost { after })).collect()
        }
        Step::Network(Fate::Cut { after }) => times(after).map(|after| Step::Network(Fate::Cut { after })).collect(),
        Step::Network(Fate::Doubled { after }) => {
            times(after).map(|after| Step::Network(Fate::Doubled { after })).collect()
        }
        Step::Network(Fate::Late { after }) => times(after).map(|after| Step::Network(Fate::Late { after })).collect(),
        _ => Vec::new(),
    }
}
