//! How a run is shown: a table for the terminal, a page for people.

use super::{Figures, Outcome, Way};

mod html;
mod plot;

pub use html::html;

/// A run as rows and cells, the first row a head; `None` between two tables.
pub fn table(outcome: &Outcome) -> Vec<Vec<Vec<String>>> {
    let head = ["", "log-ins", "failed", "p50 ms", "p99 ms", "max ms"];
    let messages =
        ["", "sent", "echoed", "lost", "disorder", "corrupt", "cut off", "p50 ms", "p99 ms", "p99.9 ms", "max ms"];
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let (mut log_ins, mut talk) = (vec![row(&head)], vec![row(&messages)]);
    let all = outcome.total.all();
    let ways = Way::ALL.into_iter().filter_map(|way| Some((way.name(), outcome.total.ways.get(&way)?)));
    for (name, figures) in ways.chain([("all", &all)]) {
        log_ins.push(log_in_row(name, figures));
        talk.push(talk_row(name, figures));
    }
    let mut tables = vec![log_ins, talk];
    if !outcome.total.errors.is_empty() {
        let mut errors = vec![row(&["error", "times"])];
        let mut sorted: Vec<_> = outcome.total.errors.iter().collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        errors.extend(sorted.into_iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]));
        tables.push(errors);
    }
    tables
}

fn ms(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn log_in_row(name: &str, figures: &Figures) -> Vec<String> {
    let failed = figures.attempts.saturating_sub(figures.log_ins);
    let login = &figures.login;
    let mut row = vec![name.to_owned(), figures.log_ins.to_string(), failed.to_string()];
    row.extend([0.5, 0.99, 1.0].map(|share| ms(login.quantile(share))));
    row
}

fn talk_row(name: &str, figures: &Figures) -> Vec<String> {
    let Figures { sent, echoed, lost, disordered, corrupt, cut_off, .. } = *figures;
    let mut row = vec![name.to_owned()];
    row.extend([sent, echoed, lost, disordered, corrupt, cut_off].map(|n| n.to_string()));
    row.extend([0.5, 0.99, 0.999, 1.0].map(|share| ms(figures.echo.quantile(share))));
    row
}

/// One line that says how it went.
pub fn verdict(outcome: &Outcome) -> String {
    let all = outcome.total.all();
    let (seconds, most) = (outcome.seconds, outcome.most_sessions());
    let how = match (&outcome.stopped, all.is_whole(), outcome.total.errors.is_empty()) {
        (Some(why), ..) => format!("stopped: {why}"),
        (None, false, _) => "messages were lost, out of order or changed".to_owned(),
        (None, true, false) => "nothing was lost, but there were errors".to_owned(),
        (None, true, true) => "every message came back once, in order and whole".to_owned(),
    };
    format!("{}: {most} clients at once, {seconds} s: {how}", outcome.scenario.name)
}
