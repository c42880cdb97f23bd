//! Cases that were found once, each as a script.

use super::{
    ledger::Kind,
    script::{Script, Step::*, Way},
};

/// The cases that the program does not pass yet. Each of them must fail: one that passes is to be removed here. A script
/// that fails in another way than one of these is an error.
pub const OPEN: &[&str] = &[];

/// Whether a case that the program does not pass yet fails in this way.
pub fn is_open(kind: Kind) -> bool {
    CASES.iter().any(|case| case.kind == kind && OPEN.contains(&case.name))
}

/// A case that was found once.
pub struct Case {
    pub name: &'static str,
    /// How it failed.
    pub kind: Kind,
    pub script: fn() -> Script,
}

/// All of them.
pub const CASES: &[Case] = &[
    Case { name: "hybrid_order", kind: Kind::Disorder, script: hybrid_order },
    Case { name: "polling_standstill", kind: Kind::Standstill, script: polling_standstill },
    Case { name: "hybrid_standstill", kind: Kind::Standstill, script: hybrid_standstill },
    Case { name: "raw_echo", kind: Kind::Standstill, script: raw_echo },
    Case { name: "close_to_server", kind: Kind::LostAtClose, script: close_to_server },
    Case { name: "close_to_client", kind: Kind::LostAtClose, script: close_to_client },
    Case { name: "close_with_words_left", kind: Kind::Farewell, script: close_with_words_left },
    Case { name: "close_by_the_server", kind: Kind::Outcome, script: close_by_the_server },
    Case { name: "same_words", kind: Kind::Lost, script: same_words },
    Case { name: "echo_over_the_limit", kind: Kind::Standstill, script: echo_over_the_limit },
    Case { name: "posts_that_wait_for_room", kind: Kind::Standstill, script: posts_that_wait_for_room },
    Case { name: "echo_of_posts_that_wait", kind: Kind::Standstill, script: echo_of_posts_that_wait },
];

/// Two requests of a hybrid client wait for room, each on its own: who wakes first is taken first.
fn hybrid_order() -> Script {
    let mut steps = vec![Wait(2_000), ServerReads(4_096, 500), ClientSays(150_000), Wait(1_500)];
    for _ in 0..12 {
        steps.extend([ClientSays(20_000), Wait(1_507)]);
    }
    Script { way: Way::Hybrid, steps, ..Script::default() }
}

/// A server that sends back what it reads, and reads on only when that has been taken. The acknowledgement that makes
/// room on the way down comes with a request that waits for room on the way up.
fn echo_jam(way: Way) -> Script {
    let steps = [vec![Wait(2_000)], vec![ClientSays(150_000); 8]].concat();
    Script { way, echoes: true, steps, ..Script::default() }
}

fn polling_standstill() -> Script {
    echo_jam(Way::Polling)
}

fn hybrid_standstill() -> Script {
    echo_jam(Way::Hybrid)
}

/// The same conversation without the tunnel, which has always passed.
fn raw_echo() -> Script {
    echo_jam(Way::Raw)
}

/// The client closes while the server is slow; then the server says something, and nobody is there to take it.
fn close_to_server() -> Script {
    let steps = vec![
        ServerReads(1_000, 100),
        ClientSays(40_000),
        Wait(200),
        ClientCloses,
        Wait(200),
        ServerSays(5_000),
        Wait(12_000),
    ];
    Script { steps, ..Script::default() }
}

/// The server closes while the client is slow; then the client says something, and nobody is there to take it.
fn close_to_client() -> Script {
    let steps = vec![
        ClientReads(1_000, 100),
        ServerSays(40_000),
        Wait(200),
        ServerCloses,
        Wait(200),
        ClientSays(5_000),
        Wait(12_000),
    ];
    Script { steps, ..Script::default() }
}

/// The same words twice, 1.2 s apart, are two messages: a request that is identical to the one before is a retry only
/// while that one has no response.
fn same_words() -> Script {
    let steps = vec![Wait(3_000), ClientRepeats, Wait(1_200), ClientRepeats, Wait(5_000)];
    Script { way: Way::Hybrid, reply_wait: 2_500, steps, ..Script::default() }
}

/// The server closes, and the client's next words find nobody: the session ends with a reason that cannot be sent any
/// more, since the client has been told already that the stream is over.
fn close_with_words_left() -> Script {
    Script { steps: vec![Wait(1), ClientSays(13), ServerCloses], ..Script::default() }
}

/// The server closes while a tunnel's client has everything: it was not the client that closed.
fn close_by_the_server() -> Script {
    Script { way: Way::Hybrid, steps: vec![Wait(1_000), ServerCloses], ..Script::default() }
}

/// A server that sends back what it reads, and a client that sends more than may be held for one address. The request
/// that brings it is refused, and so the client does not get the response that would make room.
fn echo_over_the_limit() -> Script {
    let steps = vec![Wait(1_513), ClientSays(127_073), ClientSays(144_416)];
    Script {
        way: Way::Hybrid,
        held_bytes: 65_536,
        buffer: 4_096,
        answers_after: 1_500,
        echoes: true,
        steps,
        ..Script::default()
    }
}

/// A slow server, and requests that wait for room one behind the other. Their client does not expect a response to any but
/// the last: if an earlier one is refused, its payload does not come again, and no later one can be taken.
fn posts_that_wait_for_room() -> Script {
    let steps = vec![
        ServerReads(16_386, 500),
        Wait(1_562),
        ClientSays(66_944),
        Wait(1_164),
        ClientSays(66_559),
        Wait(4_202),
        ClientSays(67_371),
        Wait(1_281),
        ClientSays(66_234),
    ];
    Script { way: Way::Hybrid, version: 1, hold: 5_000, held_bytes: 65_536, buffer: 500, steps, ..Script::default() }
}

/// The same, with a server that sends back what it reads.
fn echo_of_posts_that_wait() -> Script {
    let steps = vec![
        ServerReads(24_578, 500),
        ClientSays(13),
        Wait(217),
        ClientSays(67_094),
        Wait(1_799),
        ClientSays(66_904),
        Wait(3_633),
        ClientSays(65_798),
        Wait(2_808),
    ];
    Script {
        way: Way::Hybrid,
        reply_wait: 0,
        hold: 5_000,
        held_bytes: 65_536,
        buffer: 4_096,
        echoes: true,
        steps,
        ..Script::default()
    }
}
