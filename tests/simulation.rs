//! The tunnel and the relay on a clock and a network of their own: nothing is lost, reordered or invented, and nothing
//! stands still, whatever clients, network and Community server do.
//!
//! A case is a script, made from a seed. See docs/testing.md for long runs.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "simulation/adapter.rs"]
mod adapter;
#[path = "simulation/client.rs"]
mod client;
#[allow(dead_code, reason = "the fuzz targets use all of it")]
#[path = "../fuzz/src/client.rs"]
mod client_codec;
#[path = "simulation/judge.rs"]
mod judge;
#[path = "simulation/known.rs"]
mod known;
#[path = "simulation/ledger.rs"]
mod ledger;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/peer.rs"]
mod peer;
#[path = "simulation/pipe.rs"]
mod pipe;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/script.rs"]
mod script;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/streaming.rs"]
mod streaming;
#[path = "simulation/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use ledger::Kind;
use script::Script;
use world::Report;

/// The seed of the first script where none is set.
const SEED: u64 = 1;
/// How many exchanges are simulated where no number is set.
const EXCHANGES: usize = 20_000;
/// How many events of a trace are shown.
const LINES: usize = 60;
/// Of how many failing scripts of each kind the shrunk form is shown.
const SHOWN: usize = 3;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// The last events of a case.
fn trace(report: &Report) -> String {
    let from = report.trace.len().saturating_sub(LINES);
    let lines = report.trace[from..].iter().map(|event| {
        let [a, b] = event.numbers;
        format!("{:>10.3} s  {} {a} {b}\n", event.at.as_secs_f64(), event.what)
    });
    lines.collect()
}

/// Shrinks a script that fails and shows what is left of it.
fn show(seed: u64, script: &Script, report: &Report, found: Duration) {
    let began = Instant::now();
    let (small, tried) = random::shrink(script, report);
    let again = world::run(&small);
    let fault = again.fault.as_ref().map(ToString::to_string).unwrap_or_default();
    println!(
        "\nseed {seed}, found after {:.1} s; {} steps shrunk to {} by {tried} attempts in {:.1} s:\n{fault}\n{small}{}",
        found.as_secs_f64(),
        script.steps.len(),
        small.steps.len(),
        began.elapsed().as_secs_f64(),
        trace(&again),
    );
}

#[test]
fn what_was_found_once_is_right() {
    let mut wrong = Vec::new();
    for known::Case { name, kind, script } in known::CASES {
        let report = world::run(&script());
        match (&report.fault, known::OPEN.contains(name)) {
            (None, false) => (),
            (None, true) => wrong.push(format!("{name} passes: remove it from the list of open cases")),
            (Some(fault), true) if fault.kind == *kind => println!("{name}: {fault}"),
            (Some(fault), _) => wrong.push(format!("{name}: {fault}\n{}", trace(&report))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_seed_makes_the_same_run() {
    for seed in 0..60 {
        let script = random::script(seed);
        let (one, other) = (world::run(&script), world::run(&script));
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!((one.digest, one.fault), (other.digest, other.fault), "seed {seed}");
    }
}

#[test]
fn any_conversation_arrives_in_order_and_ends() {
    let set = (number("SAMETIME_MUX_SIMULATION_SEED"), number("SAMETIME_MUX_SIMULATION_EXCHANGES"));
    let (first, wanted) = (set.0.unwrap_or(SEED), set.1.map_or(EXCHANGES, |n| n.try_into().unwrap()));
    // While cases are open, scripts fail as they do as a matter of course: they are shown to those who ask.
    let asked = set != (None, None);
    let (since, mut showing, mut exchanges, mut scripts) = (Instant::now(), Duration::ZERO, 0, 0);
    let mut digest = 0u64;
    let mut failed: BTreeMap<Kind, Vec<u64>> = BTreeMap::new();
    while exchanges < wanted {
        let seed = first + scripts;
        scripts += 1;
        let script = random::script(seed);
        let report = world::run(&script);
        exchanges += report.exchanges;
        digest = digest.rotate_left(1) ^ report.digest;
        let Some(fault) = &report.fault else { continue };
        let of_kind = failed.entry(fault.kind).or_default();
        of_kind.push(seed);
        if (asked || !known::is_open(fault.kind)) && of_kind.len() <= SHOWN {
            let found = since.elapsed().saturating_sub(showing);
            let began = Instant::now();
            show(seed, &script, &report, found);
            showing += began.elapsed();
        }
    }
    let (last, took) = (first + scripts - 1, since.elapsed().saturating_sub(showing));
    println!("seeds {first} to {last}: {exchanges} exchanges in {:.1} s, digest {digest:016x}", took.as_secs_f64());
    for (kind, seeds) in &failed {
        println!("{kind:?}: {} of {scripts} scripts, seeds {:?}", seeds.len(), &seeds[..seeds.len().min(20)]);
    }
    failed.retain(|kind, _| !known::is_open(*kind));
    assert!(failed.is_empty(), "scripts failed: {failed:?}");
}
