//! Every outcome is in the metrics from the start, and docs/operations.md has a table for each kind of outcomes.
//!
//! `SAMETIME_MUX_RECORD=1 cargo test --test outcomes` writes the tables.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use sametime_mux::telemetry::outcome::{KINDS, OutcomeKind, OutcomeRow};
use support::{mux, record};

const PAGE: &str = "docs/operations.md";

/// The kind of outcomes whose metric has the labels `kind` and `outcome`. The others have the label `reason`.
const TUNNEL: &str = "tunnel_requests";

/// The lines of an outcome in the metrics, when it was not counted yet.
fn lines_at_zero(kind: &OutcomeKind, row: &OutcomeRow) -> Vec<String> {
    let (metric, name) = (kind.metric, row.name);
    if metric == TUNNEL {
        let tunnels = ["http_polling", "http_hybrid", "http_streaming"];
        let line = |tunnel| format!(r#"sametime_mux_{metric}_total{{kind="{tunnel}",outcome="{name}"}} 0"#);
        return tunnels.map(line).into();
    }
    vec![format!(r#"sametime_mux_{metric}_total{{reason="{name}"}} 0"#)]
}

#[tokio::test]
async fn every_outcome_is_in_the_metrics_at_zero() {
    let mux = mux::start("").await;
    let shown = String::from_utf8(mux.get("/metrics").await.body).unwrap();
    let shown: BTreeSet<&str> = shown.lines().collect();
    let mut seen = 0;
    for kind in KINDS {
        for row in (kind.rows)() {
            for line in lines_at_zero(kind, &row) {
                assert!(shown.contains(line.as_str()), "no line {line}");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "only {seen} outcomes were seen");
}

#[test]
fn the_document_says_what_ends_with_the_outcomes_of_each_kind() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    for kind in KINDS {
        let row = format!("| `sametime_mux_{}_total` | {} |", kind.metric, kind.ends);
        assert!(page.lines().any(|line| line == row), "no row {row}");
    }
}

#[test]
fn names_are_unique_and_every_outcome_has_a_sentence() {
    let mut metrics = BTreeSet::new();
    for kind in KINDS {
        assert!(metrics.insert(kind.metric), "{} counts two kinds", kind.metric);
        let mut names = BTreeSet::new();
        for row in (kind.rows)() {
            assert!(names.insert(row.name), "{}: {} twice", kind.metric, row.name);
            assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", row.name);
            assert!(row.meaning.ends_with('.') && !row.meaning.contains('|'), "{}", row.meaning);
        }
    }
}

/// The table of a kind. A column without any entry is left out.
fn table(kind: &OutcomeKind) -> String {
    let rows = (kind.rows)();
    let label = if kind.metric == TUNNEL { "outcome" } else { "reason" };
    let column = |cell: fn(&OutcomeRow) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let columns = [
        (label, column(|row| format!("`{}`", row.name))),
        ("meaning", column(|row| row.meaning.to_owned())),
        ("caused by", column(|row| row.policy.blame.to_string())),
        ("the client is sent", column(|row| row.policy.sent.to_string())),
        ("log level", column(|row| row.policy.level.map_or(String::new(), |level| level.to_string().to_lowercase()))),
    ];
    let columns: Vec<_> = columns.iter().filter(|(_, cells)| cells.iter().any(|cell| !cell.is_empty())).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().map(|cell| if cell.is_empty() { " ".to_owned() } else { format!(" {cell} ") });
        format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
    };
    let mut table = line(columns.iter().map(|(head, _)| *head).collect());
    table += &format!("|{}\n", "---|".repeat(columns.len()));
    for at in 0..rows.len() {
        table += &line(columns.iter().map(|(_, cells)| cells[at].as_str()).collect());
    }
    table
}

#[test]
fn the_document_has_the_tables_of_the_program() {
    for kind in KINDS {
        let (name, table) = (format!("outcomes:{}", kind.metric), table(kind));
        if record::is_asked_for() {
            record::between(PAGE, &name, &table);
        }
        assert_eq!(
            record::recorded(PAGE, &name),
            table,
            "{PAGE} has another table of {name}. SAMETIME_MUX_RECORD=1 cargo test --test outcomes writes it."
        );
    }
}
