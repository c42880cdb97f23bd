//! Hostile input: the invariants of the fuzz targets, checked without a fuzzer over generated input and over every
//! input in the fuzz corpus.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../fuzz/src/lib.rs"]
mod invariants;

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*};

/// A target of `fuzz/`, and words that its generated inputs contain in addition to random bytes.
struct Target {
    name: &'static str,
    check: fn(&[u8]),
    words: &'static [&'static [u8]],
}

const TARGETS: [Target; 9] = [
    Target {
        name: "detect",
        check: invariants::detect::check,
        words: &[
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"\x21\x11\0\x0c",
            b"\x16\x03",
            b"P",
            b"\x80",
            b"\x80\x2E\x01\x03\x01",
            b"\x80\x2E\x01\0\x02",
            b"\r\n",
            b"GET /",
        ],
    },
    Target {
        name: "frames",
        check: invariants::frames::check,
        words: &[
            b"\0\0\0\x08\0\0\0\0\0\0\0\0",
            b"\0\0\0\x10\0\x01\0\0\0\0\0\x02",
            b"\x80",
            b"\0\0\0\x07",
            b"\xFF\xFF\xFF\xFF",
        ],
    },
    Target {
        name: "framing",
        check: invariants::framing::check,
        words: &[
            b"GET / HTTP/1.1\r\n",
            b"POST / HTTP/1.0\r\n",
            b"GET /a?b[]=\\ HTTP/1.1\r\n",
            b"GET /#",
            b"Host: x\r\n",
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n",
            b"abc",
            b"3\r\nabc\r\n",
            b"3;x=y\r\nabc\r\n",
            b"0\r\n\r\n",
            b" ",
            b"\n",
            b"\0",
        ],
    },
    Target {
        name: "envelope",
        check: invariants::envelope::check,
        words: &[
            b"\0\0\0\0",
            b"\0\0\0\x01",
            b"\0\0\0\x08abcdefgh",
            b"M\0\0\0\x01x",
            b"M\0\0\0\x06S\0\0\0\x01C",
            b"/CommunityCBR/",
            b"CC.39.",
        ],
    },
    Target { name: "session", check: invariants::session::check, words: &[] },
    Target { name: "tunnel", check: invariants::tunnel::check, words: &[] },
    Target {
        name: "streaming",
        check: invariants::streaming::check,
        words: &[b"\xFF\0\x20", b"0123456789abcdef0123456789abcdef", b"\0\x10", b"\x02\x3b", b"\x07\x0b", b"\x04\x20"],
    },
    Target {
        name: "proxy_protocol",
        check: invariants::proxy_protocol::check,
        words: &[
            b"PROXY ",
            b"TCP4 ",
            b"1.2.3.4 ",
            b"::1 ",
            b"1533",
            b"\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"\x21\x21\0\x24",
        ],
    },
    Target {
        name: "config",
        check: invariants::config::check,
        words: &[
            b"[limits]\n",
            b"capacity = ",
            b"[tunnel]\n",
            b"hold = ",
            b"\"25s\"\n",
            b"5\n",
            b"[]\n",
            b"[client_connections]\n",
            b"ports = [1533, 80]\n",
            b"\0LIMITS__CAPACITY=",
            b"\n",
        ],
    },
];

/// Random bytes, mixed with the words of a target.
fn input(words: &'static [&'static [u8]], longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let word = (0..words.len().max(1)).prop_map(move |at| words.get(at).map_or_else(Vec::new, |word| word.to_vec()));
    let piece = prop_oneof![1 => vec(any::<u8>(), 0..longest / 4 + 1), 3 => word];
    (any::<u8>(), vec(piece, 0..12)).prop_map(|(first, pieces)| [&[first][..], &pieces.concat()].concat())
}

/// Checks a target over `cases` generated inputs.
fn check_target(name: &str, cases: u32, longest: usize) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(input in input(target.words, longest))| (target.check)(&input));
}

#[test]
fn first_bytes_are_decided_once() {
    check_target("detect", 4_000, 60);
}

#[test]
fn frames_are_the_same_in_any_fragmentation() {
    check_target("frames", 4_000, 60);
}

#[test]
fn http_requests_end_where_a_plain_reader_ends_them() {
    check_target("framing", 8_000, 12);
}

#[test]
fn the_envelope_is_read_as_it_was_written() {
    check_target("envelope", 1_000, 120);
}

#[test]
fn proxy_headers_are_read_as_they_were_written() {
    check_target("proxy_protocol", 4_000, 60);
}

#[test]
fn a_configuration_is_legal_or_its_faults_are_named() {
    check_target("config", 150, 16);
}

#[test]
fn a_tunnel_session_loses_nothing() {
    check_target("session", 2_000, 1_000);
}

#[test]
fn the_tunnel_service_loses_nothing() {
    check_target("tunnel", 60, 300);
}

#[test]
fn the_streaming_tunnel_loses_nothing() {
    check_target("streaming", 400, 300);
}

#[test]
fn the_invariants_hold_for_every_input_of_the_corpus() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
        let mut seen = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            (target.check)(&fs::read(entry.unwrap().path()).unwrap());
            seen += 1;
        }
        assert!(seen > 5, "only {seen} inputs in {}", folder.display());
    }
}

#[test]
fn every_target_is_fuzzed_and_every_fuzz_target_is_here() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut files: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into())
        .collect();
    files.sort();
    let mut here = TARGETS.map(|target| target.name);
    here.sort_unstable();
    assert_eq!(files, here);
}
