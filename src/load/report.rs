//! How the result of a run is shown: as tables for the terminal, and as an HTML page.

use super::{figures::TransportFigures, run::LoadResult, scenario::LoadTransport};

mod html;
mod plot;

pub use html::html;

/// The result of a run as tables of rows of cells. The first row of each table is its head. The tables are
/// log-ins, messages, and errors if there are any.
pub fn table(result: &LoadResult) -> Vec<Vec<Vec<String>>> {
    let head = ["", "log-ins", "failed", "p50 ms", "p99 ms", "max ms"];
    let messages =
        ["", "sent", "echoed", "lost", "disorder", "corrupt", "cut off", "p50 ms", "p99 ms", "p99.9 ms", "max ms"];
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let (mut log_ins, mut echoes) = (vec![row(&head)], vec![row(&messages)]);
    let all = result.total.all();
    let transports = LoadTransport::ALL
        .into_iter()
        .filter_map(|transport| Some((transport.name(), result.total.transports.get(&transport)?)));
    for (name, figures) in transports.chain([("all", &all)]) {
        log_ins.push(log_in_row(name, figures));
        echoes.push(message_row(name, figures));
    }
    let mut tables = vec![log_ins, echoes];
    if !result.total.errors.is_empty() {
        let mut errors = vec![row(&["error", "times"])];
        let mut sorted: Vec<_> = result.total.errors.iter().collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        errors.extend(sorted.into_iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]));
        tables.push(errors);
    }
    tables
}

/// A number of milliseconds as a cell.
fn ms(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn log_in_row(name: &str, figures: &TransportFigures) -> Vec<String> {
    let failed = figures.attempts.saturating_sub(figures.log_ins);
    let login = &figures.login;
    let mut row = vec![name.to_owned(), figures.log_ins.to_string(), failed.to_string()];
    row.extend([0.5, 0.99, 1.0].map(|share| ms(login.quantile(share))));
    row
}

fn message_row(name: &str, figures: &TransportFigures) -> Vec<String> {
    let TransportFigures { sent, echoed, lost, disordered, corrupt, cut_off, .. } = *figures;
    let mut row = vec![name.to_owned()];
    row.extend([sent, echoed, lost, disordered, corrupt, cut_off].map(|n| n.to_string()));
    row.extend([0.5, 0.99, 0.999, 1.0].map(|share| ms(figures.echo.quantile(share))));
    row
}

/// One line that sums up the run.
pub fn verdict(result: &LoadResult) -> String {
    let all = result.total.all();
    let (seconds, most) = (result.seconds, result.most_sessions());
    let how = match (&result.stopped, all.is_whole(), result.total.errors.is_empty()) {
        (Some(why), ..) => format!("stopped: {why}"),
        (None, false, _) => "messages were lost, out of order or changed".to_owned(),
        (None, true, false) => "nothing was lost, but there were errors".to_owned(),
        (None, true, true) => "every message came back once, in order and whole".to_owned(),
    };
    format!("{}: {most} clients at once, {seconds} s: {how}", result.scenario.name)
}
