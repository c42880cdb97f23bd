//! Measurements in documents. They are between two marks, and are written if `SAMETIME_MUX_RECORD` is set.

use std::{
    fs::{self, File},
    path::PathBuf,
};

fn document(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Whether measurements are to be written.
pub fn is_asked_for() -> bool {
    std::env::var_os("SAMETIME_MUX_RECORD").is_some()
}

/// The text between the marks `name` of a document.
pub fn recorded(file: &str, name: &str) -> String {
    let text = fs::read_to_string(document(file)).unwrap();
    let (_, rest) = text.split_once(&format!("<!-- {name} -->\n")).unwrap();
    rest.split_once(&format!("<!-- end of {name} -->")).unwrap().0.to_owned()
}

/// Changes the text between the marks `name`.
fn change(file: &str, name: &str, change: impl FnOnce(&str) -> String) {
    // Tests run in parallel, also in different processes.
    let lock = File::open(document("Cargo.toml")).unwrap();
    lock.lock().unwrap();
    let (was, text) = (recorded(file, name), fs::read_to_string(document(file)).unwrap());
    let (head, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let is = format!("{head}{}\n{end}", change(&was).trim_end());
    fs::write(document(file), text.replacen(&format!("{head}{was}{end}"), &is, 1)).unwrap();
}

/// Writes `text` between the marks.
pub fn between(file: &str, name: &str, text: &str) {
    change(file, name, |_| text.to_owned());
}

/// Writes a table row in place of the row with the same first cell. Panics if there is none, so that the document and
/// the tests name the same things.
pub fn row(file: &str, name: &str, cells: &[&str]) {
    let row = format!("| {} |", cells.join(" | "));
    println!("{row}");
    let first = format!("| {} |", cells[0]);
    let there = recorded(file, name).lines().any(|line| line.starts_with(&first));
    assert!(there, "{file} has no row {first}");
    if is_asked_for() {
        change(file, name, |was| {
            let rows = was.lines().map(|line| if line.starts_with(&first) { &row } else { line });
            rows.collect::<Vec<_>>().join("\n")
        });
    }
}

/// Writes a row of the table of attacks in `docs/reliability.md`.
pub fn attack(what: &str, tried: &str, seen: &str, lost: &str, test: &str) {
    row("docs/reliability.md", "attacks", &[what, tried, seen, lost, &format!("`{test}`")]);
}
