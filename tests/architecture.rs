//! The house's rule: imports go down only, and no file grows beyond reading.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Parts and the parts that they may import, from the top. A guest stands beside the floors.
const FLOORS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "server",
            "config",
            "admin",
            "sandbox",
            "load",
            "ingress",
            "mux",
            "community",
            "stream",
            "wire",
            "telemetry",
            "throttle",
        ],
    ),
    (
        "server",
        &["config", "admin", "sandbox", "ingress", "mux", "community", "stream", "wire", "telemetry", "throttle"],
    ),
    ("load", &["ingress", "stream", "wire"]),
    ("config", &["admin", "ingress", "mux", "community", "stream", "wire"]),
    ("admin", &["stream", "wire", "telemetry", "throttle"]),
    ("ingress", &["stream", "wire", "telemetry", "throttle", "turns"]),
    ("mux", &["stream", "wire", "telemetry", "throttle"]),
    ("community", &["stream", "wire", "telemetry", "throttle"]),
    ("sandbox", &["stream", "wire"]),
    ("telemetry", &["stream", "wire"]),
    ("stream", &["wire", "turns"]),
    ("throttle", &[]),
    ("turns", &[]),
    ("wire", &[]),
];
const LONGEST: usize = 500;

/// `from` imports `to`.
#[derive(Debug, PartialEq, Eq)]
struct Arrow {
    from: String,
    to: String,
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
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The part that a file belongs to: its first folder, or its own name there.
fn part(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// What a source names of other parts, by `crate::` and, in the binary, by the crate's name.
/// Its own tests, which stand last, are left out; so are comments.
fn arrows(part: &str, text: &str) -> Vec<Arrow> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join(" ").replace(' ', "");
    let mut found = Vec::new();
    for root in ["crate::", "sametime_mux::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            let names: Vec<String> = if let Some(group) = rest.strip_prefix('{') {
                top_names(group)
            } else {
                vec![rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()]
            };
            found.extend(names.into_iter().filter(|to| to != part).map(|to| Arrow { from: part.to_owned(), to }));
        }
    }
    found
}

/// The first names of a group's members: of `a::{b,c},d}` these are `a` and `d`.
fn top_names(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut name, mut done) = (0, Vec::new(), String::new(), false);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(std::mem::take(&mut name));
                done = false;
            }
            ':' if depth == 0 => done = true,
            c if depth == 0 && !done => name.push(c),
            _ => (),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty());
    names
}

fn goes_down(arrow: &Arrow) -> bool {
    let floor = FLOORS.iter().find(|(name, _)| *name == arrow.from);
    floor.is_some_and(|(_, below)| below.contains(&arrow.to.as_str()))
}

#[test]
fn imports_go_down_only() {
    let mut seen = 0;
    for (path, text) in sources() {
        let part = part(&path);
        if part == "lib" {
            continue;
        }
        for arrow in arrows(&part, &text) {
            seen += 1;
            assert!(goes_down(&arrow), "{}: {} imports {}", path.display(), arrow.from, arrow.to);
        }
    }
    assert!(seen > 50, "only {seen} arrows were seen: the scan is broken");
}

#[test]
fn every_part_stands_on_a_floor() {
    let mut parts: Vec<String> = sources().iter().map(|(path, _)| part(path)).filter(|part| part != "lib").collect();
    parts.sort();
    parts.dedup();
    let mut floors: Vec<&str> = FLOORS.iter().map(|(name, _)| *name).collect();
    floors.sort_unstable();
    assert_eq!(parts, floors);
    // A floor names only floors below it.
    for (i, (name, below)) in FLOORS.iter().enumerate() {
        for other in *below {
            let at = FLOORS.iter().position(|(name, _)| name == other).unwrap();
            assert!(at > i, "{name} > {other}");
        }
    }
}

#[test]
fn the_scan_sees_an_arrow_that_goes_up() {
    let wrong = "use crate::{\n    config::{self, Settings},\n    stream::Stream,\n};\nfn f() { crate::server::g(); } // crate::cli\n";
    let found = arrows("mux", wrong);
    let to: Vec<&str> = found.iter().map(|arrow| arrow.to.as_str()).collect();
    assert_eq!(to, ["config", "stream", "server"]);
    assert_eq!(found.iter().map(goes_down).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn no_file_grows_beyond_reading() {
    for (path, text) in sources() {
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().count();
        assert!(lines <= LONGEST || path.ends_with("tests.rs"), "{}: {lines} lines", path.display());
    }
}
