//! The rule of the house: imports go down only, between rooms and inside them; a name belongs to one type; no
//! file grows beyond reading.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The rooms, from the top. A room imports only rooms that stand further down, and of those only the ones named.
const ROOMS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["server", "load", "config", "admin", "sandbox", "community", "cluster", "runtime", "net", "log", "wire"]),
    (
        "server",
        &[
            "config",
            "admin",
            "ingress",
            "mux",
            "community",
            "sandbox",
            "cluster",
            "trunk",
            "stream",
            "telemetry",
            "runtime",
            "net",
            "log",
            "wire",
        ],
    ),
    ("load", &["stream", "runtime", "net", "wire"]),
    ("config", &["admin", "ingress", "cluster", "mux", "community", "trunk", "net", "log", "wire"]),
    ("admin", &["telemetry", "net", "log"]),
    ("ingress", &["cluster", "trunk", "stream", "telemetry", "limits", "runtime", "net", "log", "wire"]),
    ("mux", &["stream", "telemetry", "limits", "runtime", "net", "log", "wire"]),
    ("community", &["trunk", "stream", "telemetry", "limits", "runtime", "net", "log", "wire"]),
    ("sandbox", &["stream", "limits", "runtime", "net", "log", "wire"]),
    ("trunk", &["stream", "telemetry", "runtime", "net", "log"]),
    ("cluster", &["telemetry", "limits", "runtime", "net", "log", "wire"]),
    ("stream", &["telemetry", "limits", "runtime", "net", "wire"]),
    ("telemetry", &["net", "wire"]),
    ("limits", &["net"]),
    ("runtime", &[]),
    ("net", &["log"]),
    ("log", &[]),
    ("wire", &[]),
];

/// Inside a room: its parts from the top, each a file or folder (`a/b` where a folder has parts of its own). A
/// part imports only parts that stand further down. Parts in one string stand side by side and import nothing
/// of each other. The room's own file, which declares the parts, may name all of them and is named by all: it
/// holds what they share.
const INSIDE: &[(&str, &[&str])] = &[
    (
        "ingress",
        &["accept peers", "connection trunk_listener", "http", "tls tunnel", "connection_limits identify", "detect"],
    ),
    ("cluster", &["peer", "handshake passing reach", "hello", "secret"]),
    ("ingress/tls", &["alert connection key_kind pair"]),
    (
        "ingress/http",
        &[
            "connection",
            "hyper_path streaming",
            "tunnel_request",
            "passing",
            "fast_path backend guard",
            "route framing forwarded",
            "response",
        ],
    ),
    ("ingress/http/backend", &["client forward", "request_body response_body connector origin_headers", "failures"]),
    ("ingress/http/framing", &["words"]),
    ("ingress/tunnel", &["service", "registry stream streaming", "handle", "live", "session response", "token"]),
    ("ingress/tunnel/streaming", &["connection", "body handle", "inbox"]),
    ("mux", &["session", "opening", "relay", "direction closing", "facts report", "end", "admission"]),
    ("community", &["pool", "endpoint balance", "direct health trust state_log", "failure"]),
    ("trunk", &["far near", "relay", "stream identity guard liveness"]),
    ("wire", &["tunnel", "reason", "message", "frame proxy_protocol transport"]),
    ("wire/tunnel", &["envelope stream", "cipher name"]),
    (
        "net",
        &[
            "connect",
            "listen lookup resolve",
            "own attempts loop_guard activation",
            "keepalive address pem port section shortage",
        ],
    ),
    ("limits", &["budget rate", "tally"]),
    ("runtime", &["workers scratch", "core_sharing"]),
    ("stream", &["admission link", "arrival refusal", "io", "error"]),
    ("telemetry", &["metrics", "outcome", "policy"]),
    ("log", &["subscriber", "lines throttle"]),
    ("config", &["schema", "section_reader own_targets", "reader legal ceiling"]),
    ("config/schema", &["community listeners", "trunk http_backend tls tunnel cluster admin log", "limits"]),
    ("admin", &["http", "pages slots", "auth response status"]),
    (
        "server",
        &[
            "compose reload drain",
            "prepare retry",
            "admin_service",
            "control",
            "ports certificate sandbox_service cluster_service reload_guard",
            "plan",
            "host_names own_sockets",
            "listener_error",
            "port_holder",
        ],
    ),
    (
        "load",
        &[
            "report",
            "run",
            "worker",
            "client hostile",
            "frame_connection pending",
            "tunnel streaming setup messages",
            "connect figures random",
            "scenario",
        ],
    ),
    ("load/report", &["html", "plot"]),
    ("sandbox", &["connection", "session", "community awareness directory", "bodies limits"]),
];

const LONGEST: usize = 500;

/// A module path: `["ingress", "http", "guard"]`.
type Place = Vec<String>;

/// `from` imports `to`.
#[derive(Debug, PartialEq, Eq)]
struct Arrow {
    from: Place,
    to: Place,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort();
    found
}

/// The module that a file is.
fn place(path: &Path) -> Place {
    let inside = path.strip_prefix(root()).unwrap().with_extension("");
    inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
}

/// A source without comments and without its own tests, which stand last.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    // A comment begins the line or follows a space; `"http://"` has none.
    let without_comment = |line: &str| format!(" {line}").split(" //").next().unwrap().to_owned();
    text.lines().map(without_comment).collect::<Vec<_>>().join(" ")
}

/// All paths of a `use` tree: of `a::{b, c::{d, e}}` these are `a::b`, `a::c::d`, `a::c::e`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((front, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap();
        return vec![path.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let front: Vec<String> =
        front.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    let group = &group[..group.rfind('}').unwrap()];
    let (mut depth, mut members, mut member) = (0, Vec::new(), String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(std::mem::take(&mut member));
                continue;
            }
            _ => (),
        }
        member.push(c);
    }
    members.push(member);
    let members = members.iter().filter(|member| !member.trim().is_empty());
    members.flat_map(|member| paths(member)).map(|path| [front.clone(), path].concat()).collect()
}

/// What the file at `from` names of the crate: by `crate::`, `super::` and `self::`, in `use` and elsewhere.
/// A file that is a folder's own (`http.rs` beside `http/`) names its parts by their bare names.
fn arrows(from: &Place, text: &str, modules: &BTreeSet<Place>) -> Vec<Arrow> {
    let code = code(text);
    let mut named: Vec<Vec<String>> = Vec::new();
    let mut rest = String::new();
    for (at, statement) in code.split(" use ").enumerate() {
        // What stands in front of the first `use` is none.
        match statement.split_once(';') {
            Some((tree, after)) if at > 0 && !tree.contains('(') => {
                named.extend(paths(tree));
                rest.push_str(after);
            }
            _ => rest.push_str(statement),
        }
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in rest.split(|c| !is_name(c)).filter(|word| word.contains("::")) {
        named.push(word.split("::").map(str::to_owned).collect());
    }
    let is_module = |place: &[String]| modules.contains(place);
    let mut found = Vec::new();
    for path in named {
        let mut base = match path[0].as_str() {
            "crate" | "sametime_mux" => Vec::new(),
            "super" | "self" => from.clone(),
            // A part of this folder by its bare name.
            name if is_module(&[&from[..], &[name.to_owned()]].concat()) => {
                found.push(Arrow { from: from.clone(), to: [&from[..], &[name.to_owned()]].concat() });
                continue;
            }
            _ => continue,
        };
        for part in &path {
            match part.as_str() {
                "crate" | "sametime_mux" | "self" => (),
                "super" => drop(base.pop()),
                part if is_module(&[&base[..], &[part.to_owned()]].concat()) => base.push(part.to_owned()),
                _ => break,
            }
        }
        let arrow = Arrow { from: from.clone(), to: base };
        if !arrow.to.is_empty() && arrow.to != *from && !found.contains(&arrow) {
            found.push(arrow);
        }
    }
    found
}

/// Whether an arrow between rooms goes down.
fn goes_down(arrow: &Arrow) -> bool {
    let (from, to) = (&arrow.from[0], &arrow.to[0]);
    from == to || ROOMS.iter().any(|(room, below)| room == from && below.contains(&to.as_str()))
}

/// Whether an arrow inside a room goes down, by the rule of each folder that both its ends are in.
fn goes_down_inside(arrow: &Arrow) -> bool {
    INSIDE.iter().all(|(folder, parts)| {
        let folder: Vec<&str> = folder.split('/').collect();
        let part = |place: &Place| {
            let inside = place.len() > folder.len() && place.iter().zip(&folder).all(|(a, b)| a == b);
            inside.then(|| place[folder.len()].clone())
        };
        let (Some(from), Some(to)) = (part(&arrow.from), part(&arrow.to)) else { return true };
        let floor = |name: &str| parts.iter().position(|floor| floor.split(' ').any(|part| part == name));
        from == to || matches!((floor(&from), floor(&to)), (Some(from), Some(to)) if from < to)
    })
}

fn all_arrows() -> Vec<(PathBuf, Arrow)> {
    let sources = sources();
    let modules: BTreeSet<Place> = sources.iter().map(|(path, _)| place(path)).collect();
    let files = sources.iter().map(|(path, text)| (path, place(path), text));
    files
        .filter(|(_, at, _)| at[0] != "lib" && at.last().unwrap() != "tests")
        .flat_map(|(path, at, text)| arrows(&at, text, &modules).into_iter().map(|arrow| (path.clone(), arrow)))
        .collect()
}

fn show(arrow: &Arrow) -> String {
    format!("{} imports {}", arrow.from.join("::"), arrow.to.join("::"))
}

#[test]
fn imports_go_down_only() {
    let arrows = all_arrows();
    let between = arrows.iter().filter(|(_, arrow)| arrow.from[0] != arrow.to[0]).count();
    assert!(between > 100, "only {between} arrows between rooms were seen: the scan is broken");
    let wrong: Vec<String> =
        arrows.iter().filter(|(_, arrow)| !goes_down(arrow)).map(|(_, arrow)| show(arrow)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_inside_a_room_go_down_only() {
    let arrows = all_arrows();
    let inside = arrows.iter().filter(|(_, arrow)| arrow.from[0] == arrow.to[0]).count();
    assert!(inside > 60, "only {inside} arrows inside rooms were seen: the scan is broken");
    let wrong: Vec<String> =
        arrows.iter().filter(|(_, arrow)| !goes_down_inside(arrow)).map(|(_, arrow)| show(arrow)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_stands_on_a_floor() {
    let rooms: BTreeSet<String> =
        sources().iter().map(|(path, _)| place(path)[0].clone()).filter(|room| room != "lib").collect();
    let floors: BTreeSet<String> = ROOMS.iter().map(|(room, _)| (*room).to_owned()).collect();
    assert_eq!(rooms, floors);
    // A room names only rooms below it.
    for (i, (room, below)) in ROOMS.iter().enumerate() {
        for other in *below {
            let at = ROOMS.iter().position(|(room, _)| room == other).unwrap();
            assert!(at > i, "{room} > {other}");
        }
    }
}

#[test]
fn every_part_of_a_room_with_a_rule_is_in_it() {
    let sources = sources();
    for (folder, parts) in INSIDE {
        let folder: Vec<&str> = folder.split('/').collect();
        let there: BTreeSet<String> = sources
            .iter()
            .map(|(path, _)| place(path))
            .filter(|place| place.len() > folder.len() && place.iter().zip(&folder).all(|(a, b)| a == b))
            .map(|place| place[folder.len()].clone())
            .filter(|part| part != "tests")
            .collect();
        let named: BTreeSet<String> = parts.iter().flat_map(|floor| floor.split(' ')).map(str::to_owned).collect();
        assert_eq!(there, named, "{folder:?}");
    }
}

#[test]
fn the_scan_sees_arrows_that_go_up() {
    let modules: BTreeSet<Place> = [
        "mux",
        "mux/relay",
        "mux/session",
        "config",
        "stream",
        "server",
        "cli",
        "ingress",
        "ingress/http",
        "ingress/http/guard",
        "ingress/http/connection",
        "ingress/tunnel",
        "ingress/connection",
    ]
    .iter()
    .map(|path| path.split('/').map(str::to_owned).collect())
    .collect();
    let see = |from: &str, text: &str| {
        let from: Place = from.split('/').map(str::to_owned).collect();
        let found = arrows(&from, text, &modules);
        found.iter().map(|arrow| (arrow.to.join("/"), goes_down(arrow), goes_down_inside(arrow))).collect::<Vec<_>>()
    };
    let wrong = "use crate::{\n    config::{self, Settings},\n    stream::Stream,\n};\nfn f() { crate::server::g(); } // crate::cli\n";
    let row = |to: &str, between, inside| (to.to_owned(), between, inside);
    assert_eq!(see("mux", wrong), [row("config", false, true), row("stream", true, true), row("server", false, true)]);
    // A room's lower part that imports an upper one, by each way to name it.
    for text in ["use super::session::run;", "use crate::mux::{session::run};", "fn f() { super::session::run() }"] {
        assert_eq!(see("mux/relay", text), [row("mux/session", true, false)], "{text}");
    }
    assert_eq!(
        see("ingress/http/guard", "use super::connection::serve;"),
        [row("ingress/http/connection", true, false)]
    );
    assert_eq!(see("ingress/tunnel", "use super::http::guard::Guarded;"), [row("ingress/http/guard", true, false)]);
    assert_eq!(see("ingress/http", "use connection::serve;\nfn f() { guard::g() }").len(), 2);
    let down = "use super::http::guard::{self, Guarded};";
    assert_eq!(see("ingress/connection", down), [row("ingress/http/guard", true, true)]);
}

#[test]
fn a_name_belongs_to_one_type() {
    let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources() {
        for line in code(&text).split([';', '{', '}']) {
            let words: Vec<&str> = line.split_whitespace().collect();
            for pair in words.windows(2).filter(|pair| ["struct", "enum", "trait"].contains(&pair[0])) {
                let name: String = pair[1].chars().take_while(|c| c.is_alphanumeric()).collect();
                if name.starts_with(char::is_uppercase) {
                    defined.entry(name).or_default().push(place(&path).join("::"));
                }
            }
        }
    }
    assert!(defined.len() > 150, "only {} types were seen: the scan is broken", defined.len());
    // Every command of the command line has its arguments.
    defined.remove("Arguments");
    let double: Vec<_> = defined.iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(double.is_empty(), "{double:#?}");
}

#[test]
fn no_file_grows_beyond_reading() {
    for (path, text) in sources() {
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().count();
        assert!(lines <= LONGEST || path.ends_with("tests.rs"), "{}: {lines} lines", path.display());
    }
}
