//! The documents agree with the program and with each other.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{collections::BTreeSet, fs, path::Path};

use support::{
    client::{Client, Transport},
    mux,
    peer::free_address,
};

/// Columns of a line of prose.
const LONGEST_LINE: usize = 120;
/// There are more Markdown files than this.
const MIN_PAGES: usize = 20;

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Words in backquotes that begin with `prefix`.
fn named<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    text.split('`').filter(|word| word.starts_with(prefix) && !word.contains(char::is_whitespace)).collect()
}

#[tokio::test]
async fn operations_name_every_metric_and_no_other() {
    let (folder, listen) = (tempfile::tempdir().unwrap(), free_address());
    let secret = folder.path().join("secret");
    fs::write(&secret, "a secret of tests alone").unwrap();
    let cluster = format!(
        "[cluster]\nnode = \"a\"\npeer = {{ a = \"http://{listen}\", b = \"http://b:1\" }}\nlisten = \"{listen}\"\nsecret_file = \"{}\"\n",
        secret.display()
    );
    let mux = mux::start(&cluster).await;
    Client::connect(Transport::Raw, mux.raw()).await.log_in("bob").await;
    let shown = String::from_utf8(mux.get("/metrics").await.body).unwrap();
    let types = shown.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let there: BTreeSet<String> = types
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    assert!(there.len() > 15, "{there:?}");
    let text = document("docs/operations.md");
    let said: BTreeSet<String> = named(&text, "sametime_mux_").into_iter().map(str::to_owned).collect();
    assert_eq!(said, there);
}

/// The code in a folder and in the folders below it.
fn code_in(folder: &Path) -> String {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let code = paths.map(|path| match path.extension() {
        _ if path.is_dir() => code_in(&path),
        Some(extension) if extension == "rs" => fs::read_to_string(path).unwrap(),
        _ => String::new(),
    });
    code.collect()
}

/// The names of all tests.
fn tests() -> BTreeSet<String> {
    let code = code_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    let tests = code.split("#[").filter(|item| item.starts_with("test]") || item.starts_with("tokio::test"));
    tests.filter_map(|item| item.split_once("fn ")?.1.split_once('(')).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_record_of_attacks_names_tests_that_are_there_and_is_filled() {
    let (there, text) = (tests(), document("docs/reliability.md"));
    let part = |name: &str| text.split(&format!("<!-- {name} -->")).nth(1).unwrap().split("<!--").next().unwrap();
    for (name, rows, columns) in [("faults", 16, 5), ("attacks", 8, 5)] {
        let lines: Vec<Vec<&str>> = part(name)
            .lines()
            .filter(|line| line.starts_with('|'))
            .skip(2)
            .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
            .collect();
        assert_eq!(lines.len(), rows, "{name}");
        for row in lines {
            assert!(row.len() == columns && row.iter().all(|cell| !cell.is_empty()), "{row:?}");
            if name == "attacks" {
                assert!(there.contains(row[4].trim_matches('`')), "{row:?}");
            }
        }
    }
    assert!(part("soak").contains("| descriptors |"));
}

#[test]
fn the_threat_model_names_tests_that_are_there() {
    let (there, document) = (tests(), document("SECURITY.md"));
    let model = document.split("## Threat model").nth(1).unwrap().split("\n## ").next().unwrap();
    let attacks: Vec<&str> = model.split("\n- **").skip(1).map(|rest| rest.split("\n#").next().unwrap()).collect();
    assert!(attacks.len() > 15, "{attacks:?}");
    for attack in attacks {
        let named = attack.split_once("Tests:").unwrap_or_else(|| panic!("no tests for {attack}")).1;
        let tests: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test for {attack}");
        for test in tests {
            assert!(there.contains(test), "{test} is no test");
        }
    }
}

/// Every Markdown file of the project, by its path.
fn pages() -> BTreeSet<String> {
    fn walk(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if path.is_dir() {
                // Build output and git's own files are not documents.
                if !name.starts_with('.') && name != "target" {
                    walk(&path, root, found);
                }
            } else if path.extension().is_some_and(|e| e == "md") {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let (root, mut found) = (Path::new(env!("CARGO_MANIFEST_DIR")), BTreeSet::new());
    walk(root, root, &mut found);
    assert!(found.len() > MIN_PAGES, "{found:?}");
    found
}

/// The anchor that a heading of a page gets.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let mut seen = 0;
    for file in pages() {
        let folder = Path::new(&file).parent().unwrap();
        for link in document(&file).split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("http") {
                continue;
            }
            let (name, wanted) = link.split_once('#').unwrap_or((link, ""));
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
            let path = if name.is_empty() { Path::new(env!("CARGO_MANIFEST_DIR")).join(&file) } else { path };
            assert!(path.exists(), "{file} links to {link}");
            if !wanted.is_empty() {
                let text = fs::read_to_string(&path).unwrap();
                let there = text.lines().any(|line| line.starts_with('#') && anchor(line) == wanted);
                assert!(there, "{file} links to {link}, and there is no such heading");
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "only {seen} links were seen");
}

#[test]
fn no_line_of_prose_is_too_long() {
    let mut seen = 0;
    for file in pages() {
        let mut in_code = false;
        for (n, line) in document(&file).lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            } else if !in_code && !line.starts_with('|') && !line.contains("://") {
                let length = line.chars().count();
                assert!(length <= LONGEST_LINE, "{file}:{}: {length} columns", n + 1);
                seen += 1;
            }
        }
        assert!(!in_code, "{file}: a block of code has no end");
    }
    assert!(seen > 500, "only {seen} lines were seen");
}

#[test]
fn the_kits_examples_are_those_that_run() {
    let (text, code) = (document("docs/testing.md"), document("tests/kit.rs"));
    let examples: Vec<_> = text.split("```rust\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 2);
    for example in examples {
        assert!(code.contains(example), "tests/kit.rs has it otherwise:\n{example}");
    }
}

#[test]
fn every_test_file_is_in_the_testing_document() {
    let text = document("docs/testing.md");
    let table = text.split("## A conversation").next().unwrap();
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")).unwrap();
    let names: BTreeSet<String> = files
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    let named: BTreeSet<String> = table.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(names.is_subset(&named), "not named: {:?}", names.difference(&named));
}
