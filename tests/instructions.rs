//! The hot paths need no more instructions and allocations than on record. callgrind counts both, so that other work on
//! the machine has no influence.
//!
//! After a change that costs more on purpose or makes a path cheaper, and after a change of the compiler,
//! `SAMETIME_MUX_RECORD=1 cargo test --test instructions` writes a new record.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.toml");
const PATHS: [&str; 4] = ["scan", "relay", "polling", "hybrid"];
/// The two counts of messages. The cost of start and log-in is the same in both, so the difference does not include it.
const FEW: u64 = 500;
const MANY: u64 = 2_500;
/// The share by which a path may be over its record, because compilers and C libraries differ.
const MARGIN: f64 = 0.10;
/// The number of allocations of a message that may be over the record. Half an allocation would be a new one for every
/// second message.
const ALLOCATIONS_MARGIN: f64 = 0.25;

/// The cost of one message.
#[derive(Debug, Clone, Copy)]
struct Cost {
    instructions: f64,
    allocations: f64,
}

/// Builds the driver in release mode. Returns its executable.
fn driver() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["bench", "--locked", "--no-run", "--bench", "instructions", "--message-format", "json"])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8(built.stdout).unwrap();
    let executable =
        messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(|message| {
            (message["target"]["name"] == "instructions").then(|| message["executable"].as_str().map(PathBuf::from))?
        });
    executable.expect("cargo names the driver's executable")
}

/// Counts instructions and allocations of a whole run.
fn count(driver: &Path, path: &str, messages: u64, folder: &Path) -> (u64, u64) {
    let out = folder.join(format!("{path}.{messages}"));
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(driver)
        .args([path, &messages.to_string()])
        .output()
        .unwrap();
    assert!(run.status.success(), "{path}: {}", String::from_utf8_lossy(&run.stderr));
    let profile = fs::read_to_string(&out).unwrap();
    (instructions(&profile), allocations(&profile))
}

fn instructions(profile: &str) -> u64 {
    let line = profile.lines().find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")));
    line.expect("a summary").split(' ').next().unwrap().parse().unwrap()
}

/// Counts the calls of the allocator in callgrind's format: `cfn=(12) malloc` or later `cfn=(12)`, each followed by
/// `calls=COUNT ...`.
fn allocations(profile: &str) -> u64 {
    let (mut names, mut callee, mut calls) = (HashMap::new(), "", 0);
    for line in profile.lines() {
        if let Some(call) = line.strip_prefix("calls=") {
            if matches!(callee, "malloc" | "calloc" | "realloc" | "aligned_alloc" | "posix_memalign") {
                calls += call.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
        } else if let Some((which, rest)) = line.split_once('=')
            && matches!(which, "fn" | "cfn")
        {
            let (id, name) = rest.split_once(' ').unwrap_or((rest, ""));
            if !name.is_empty() {
                // The names may end with glibc's version or with the number of a copy.
                names.insert(id, name.split(['@', '\'']).next().unwrap());
            }
            if which == "cfn" {
                callee = names[id];
            }
        }
    }
    calls
}

fn cost(driver: &Path, path: &str, folder: &Path) -> Cost {
    let (few, many) = (count(driver, path, FEW, folder), count(driver, path, MANY, folder));
    let each = |few: u64, many: u64| many.saturating_sub(few) as f64 / (MANY - FEW) as f64;
    Cost { instructions: each(few.0, many.0), allocations: each(few.1, many.1) }
}

fn write_record(costs: &[(&str, Cost)]) {
    let rustc = Command::new("rustc").arg("--version").output().unwrap();
    let mut text = format!(
        "# Instructions and allocations for each message, counted by callgrind with {}.\n\
         # Written by: SAMETIME_MUX_RECORD=1 cargo test --test instructions\n",
        String::from_utf8_lossy(&rustc.stdout).trim()
    );
    for (path, cost) in costs {
        text +=
            &format!("\n[{path}]\ninstructions = {:.0}\nallocations = {:.2}\n", cost.instructions, cost.allocations);
    }
    fs::write(RECORD, text).unwrap();
}

#[test]
fn hot_paths_cost_what_is_on_record() {
    if !support::has("valgrind", "valgrind") {
        return;
    }
    let (driver, folder) = (driver(), tempfile::tempdir().unwrap());
    let costs = PATHS.map(|path| (path, cost(&driver, path, folder.path())));
    for (path, cost) in &costs {
        println!("{path}: {:.0} instructions, {:.2} allocations for each message", cost.instructions, cost.allocations);
        assert!(cost.instructions > 10.0, "{path}: the count is broken");
    }
    if std::env::var_os("SAMETIME_MUX_RECORD").is_some() {
        return write_record(&costs);
    }
    let record: toml::Table = fs::read_to_string(RECORD).unwrap().parse().unwrap();
    let mut over = Vec::new();
    for (path, cost) in costs {
        let recorded = |what: &str| {
            let value = &record[path][what];
            value.as_float().or(value.as_integer().map(|n| n as f64)).unwrap()
        };
        let (instructions, allocations) = (recorded("instructions"), recorded("allocations"));
        if cost.instructions > instructions * (1.0 + MARGIN) {
            over.push(format!("{path}: {:.0} instructions a message, {instructions} on record", cost.instructions));
        }
        if cost.allocations > allocations + ALLOCATIONS_MARGIN {
            over.push(format!("{path}: {:.2} allocations a message, {allocations} on record", cost.allocations));
        }
        if cost.instructions < instructions * (1.0 - 2.0 * MARGIN) {
            println!("{path}: much below its record: write it anew, so that the gain is kept");
        }
    }
    assert!(
        over.is_empty(),
        "{}\nIf that is meant: SAMETIME_MUX_RECORD=1 cargo test --test instructions",
        over.join("\n")
    );
}

#[test]
fn calls_of_the_allocator_are_counted() {
    let profile = "fn=(1) main\n10 5\ncfn=(2) malloc\ncalls=3 0\n12 40\ncfn=(3) free\ncalls=9 0\n1 1\nfn=(4) f\ncfn=(2)\ncalls=4 0\n1 1\ncfn=(5) realloc'2\ncalls=2 0\n";
    assert_eq!(allocations(profile), 9);
    assert_eq!(instructions("events: Ir\nsummary: 1234\ntotals: 1234\n"), 1234);
}
