//! Every line of the log that is written without a throttle is one that only the admin, or this machine, can cause.

use std::{fs, path::Path};

/// Rooms whose lines are about what the admin does: starts, reloads, stops, and commands.
const OF_THE_ADMIN: [&str; 3] = ["server", "cli", "load"];

/// Lines of the other rooms that are not throttled, and why nobody outside can cause many of them.
const OTHERS: [(&str, &str); 6] = [
    ("lines of the log are missing here", "comes once for each 16 MiB of lines"),
    ("has no socket of its own on the port", "when a port is opened"),
    ("limits.vanished_timeout is not in force", "when a port is opened, and at a reload"),
    ("no session tickets can be made", "at the start, and at a reload"),
    ("the system has no random numbers", "at the start"),
    ("a self-signed one was made", "at a first start"),
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The calls of a macro that writes a line of this level or a more urgent one than debug, each up to its `;` or `,`
/// behind the closing parenthesis.
fn lines(source: &str) -> Vec<&str> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let mut found = Vec::new();
    for macro_name in ["error!(", "warn!(", "info!(", "$level!("] {
        for (at, _) in source.match_indices(macro_name) {
            if source[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                continue;
            }
            let (mut depth, mut is_text, start) = (0, false, at + macro_name.len() - 1);
            let end = source[start..].char_indices().find(|(_, c)| {
                match c {
                    '"' => is_text = !is_text,
                    '(' if !is_text => depth += 1,
                    ')' if !is_text => depth -= 1,
                    _ => (),
                }
                depth == 0
            });
            found.push(&source[at..=start + end.unwrap().0]);
        }
    }
    found
}

#[test]
fn each_line_that_outsiders_can_cause_says_how_many_are_missing() {
    let (root, mut files) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Vec::new());
    sources(&root, &mut files);
    let (mut throttled, mut used) = (0, [false; OTHERS.len()]);
    for (file, source) in &files {
        let file = file.strip_prefix(&format!("{}/", root.display())).unwrap();
        let room = file.split(['/', '.']).next().unwrap();
        if OF_THE_ADMIN.contains(&room) {
            continue;
        }
        for line in lines(source) {
            match OTHERS.iter().position(|(text, _)| line.contains(text)) {
                Some(other) => used[other] = true,
                // `more` is what a throttle returns.
                None => {
                    let fields = line.split('"').next().unwrap();
                    let has_more = fields.split([',', '(', ' ', '\n']).any(|field| field == "more");
                    assert!(has_more, "{file} has a line without a throttle: {line}");
                    throttled += 1;
                }
            }
        }
    }
    assert!(throttled >= 15, "{throttled} lines with a throttle were found");
    for (at, (text, _)) in OTHERS.iter().enumerate() {
        assert!(used[at], "no line has {text:?} any more");
    }
}
