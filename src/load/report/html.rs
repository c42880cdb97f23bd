//! The HTML page of a run: one file that loads nothing from elsewhere, with a light and a dark form.

use super::{
    ms,
    plot::{Series, bars, escaped, lines, stacked},
    table, verdict,
};
use crate::load::{
    figures::{Latencies, TransportFigures},
    run::{LoadResult, SecondSummary},
    scenario::LoadTransport,
};

const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--ink:#1d1f23;--soft:#666a73;--grid:#e4e2dd;--good:#1a7f4b;--bad:#b3261e;
--c0:#2f6fb3;--c1:#d9822b;--c2:#3f9c6b;--c3:#8e5bb5;--c4:#b8476a}
@media(prefers-color-scheme:dark){:root{--bg:#15171b;--card:#1d2025;--ink:#e8e6e1;--soft:#9a9ea8;--grid:#2e3239;--good:#5cc792;--bad:#f2857c;
--c0:#6ba6e3;--c1:#eda35c;--c2:#6cc598;--c3:#bb8fde;--c4:#e88aa6}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:0 auto;padding:32px 20px 64px}h1{font-size:26px;margin:0 0 4px}h2{font-size:16px;margin:0 0 10px}
p{margin:0 0 8px}.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(125px,1fr));gap:12px;margin:24px 0}
.tile,.card{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:24px;font-variant-numeric:tabular-nums}.tile span{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px}
svg{width:100%;height:auto;display:block}.grid{stroke:var(--grid)}.tick{fill:var(--soft);font-size:11px}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.area{opacity:.85}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}.line.c4{stroke:var(--c4)}
.area.c0,.k0{fill:var(--c0);background:var(--c0)}.area.c1,.k1{fill:var(--c1);background:var(--c1)}
.area.c2,.k2{fill:var(--c2);background:var(--c2)}.area.c3,.k3{fill:var(--c3);background:var(--c3)}
.area.c4,.k4{fill:var(--c4);background:var(--c4)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:14px;margin:8px 0 0;padding:0;color:var(--soft);font-size:13px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
.bars{display:grid;grid-template-columns:minmax(120px,auto) 1fr auto;gap:6px 12px;align-items:center}
.bar{background:var(--grid);border-radius:4px;height:12px;overflow:hidden}.bar i{display:block;height:100%;background:var(--c0)}
.wide{overflow-x:auto;margin-top:16px}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
";

/// The shares of all latencies at which the plots of percentiles have a point, with their names.
const SHARES: [(f64, &str); 7] =
    [(0.5, "50%"), (0.75, "75%"), (0.9, "90%"), (0.95, "95%"), (0.99, "99%"), (0.999, "99.9%"), (1.0, "all")];

/// The result of a run as an HTML page.
pub fn html(result: &LoadResult) -> String {
    let name = escaped(&result.scenario.name);
    let class = if result.is_fine() { "good" } else { "bad" };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{name}: load test</title><style>{STYLE}</style></head><body><main><h1>{name}</h1><p class=\"{class}\">{}</p><p class=\"soft\">{}</p>{}<div class=\"cards\">{}</div>{}</main></body></html>\n",
        escaped(&verdict(result)),
        escaped(&plan(result)),
        tiles(result),
        cards(result),
        tables(result)
    )
}

/// What the run did, as one paragraph of the page.
fn plan(result: &LoadResult) -> String {
    let s = &result.scenario;
    let mix = s.mix;
    format!(
        "{} clients of {} processes against {}: raw {}, TLS {}, polling {}, hybrid {}, streaming {}; log-ins spread over {}, then {}; a message each {} on average, {} bytes in the median. Latencies count from the planned time.",
        s.clients,
        result.workers,
        result.route.raw,
        mix.raw,
        mix.tls,
        mix.polling,
        mix.hybrid,
        mix.streaming,
        humantime::format_duration(s.ramp_up),
        humantime::format_duration(s.duration),
        humantime::format_duration(s.think_time),
        s.sizes.median
    )
}

/// The most important numbers.
fn tiles(result: &LoadResult) -> String {
    let all = result.total.all();
    let errors: u64 = result.total.errors.values().sum();
    let tiles = [
        ("clients at once", result.most_sessions().to_string()),
        ("log-ins", all.log_ins.to_string()),
        ("log-in p99, ms", ms(all.login.quantile(0.99))),
        ("messages echoed", all.echoed.to_string()),
        ("message p99, ms", ms(all.echo.quantile(0.99))),
        ("lost, disordered, corrupt", (all.lost + all.disordered + all.corrupt).to_string()),
        ("errors", errors.to_string()),
    ];
    let tiles = tiles.map(|(what, value)| format!("<div class=\"tile\"><b>{value}</b><span>{what}</span></div>"));
    format!("<div class=\"tiles\">{}</div>", tiles.concat())
}

/// A value of each second.
fn over_time(result: &LoadResult, name: &str, value: impl Fn(&SecondSummary) -> f64) -> Series {
    Series { name: name.to_owned(), values: result.points.iter().map(value).collect() }
}

/// The plots.
#[allow(clippy::cast_precision_loss)]
fn cards(result: &LoadResult) -> String {
    let (half, end) = (format!("{} s", result.seconds / 2), format!("{} s", result.seconds));
    let time = ["0 s", &half, &end];
    let rate = [
        over_time(result, "log-ins in a second", |point| point.log_ins as f64),
        over_time(result, "messages echoed in a second", |point| point.echoed as f64),
    ];
    let sessions = LoadTransport::ALL.map(|transport| {
        let count = move |point: &SecondSummary| point.sessions.get(&transport).copied().unwrap_or(0) as f64;
        over_time(result, transport.name(), count)
    });
    let p99 = [
        over_time(result, "log-in p99, ms", |point| point.login_p99),
        over_time(result, "message p99, ms", |point| point.echo_p99),
    ];
    let mut cards = vec![
        ("Log-ins and messages over time", lines("Log-ins and messages over time", &rate, &time, false)),
        ("Clients that are logged in, by transport", stacked("Sessions by transport", &sessions, &time)),
        ("Latency over time", lines("Latency over time", &p99, &time, true)),
        ("Latency of log-ins, by transport, ms", percentiles(result, |figures| &figures.login)),
        ("Latency of messages, by transport, ms", percentiles(result, |figures| &figures.echo)),
    ];
    let errors: Vec<_> = result.total.errors.iter().map(|(reason, n)| (reason.clone(), *n)).collect();
    let errors = if errors.is_empty() { "<p class=\"soft\">None.</p>".to_owned() } else { bars("Errors", &errors) };
    cards.push(("Errors by reason", errors));
    cards.iter().map(|(title, body)| format!("<section class=\"card\"><h2>{title}</h2>{body}</section>")).collect()
}

/// A plot of latencies over shares of all of them, with one line for each transport.
fn percentiles(result: &LoadResult, of: impl Fn(&TransportFigures) -> &Latencies) -> String {
    let series = LoadTransport::ALL.map(|transport| {
        let latencies = result.total.transports.get(&transport).map(&of);
        let value = |share| latencies.map_or(0.0, |latencies| latencies.quantile(share));
        Series { name: transport.name().to_owned(), values: SHARES.map(|(share, _)| value(share)).to_vec() }
    });
    lines("Latency percentiles", &series, &SHARES.map(|(_, name)| name), true)
}

/// The tables of the terminal, as HTML.
fn tables(result: &LoadResult) -> String {
    let mut out = String::new();
    for rows in table(result) {
        out += "<div class=\"card wide\"><table>";
        for (i, row) in rows.iter().enumerate() {
            let cell = if i == 0 { "th" } else { "td" };
            let cells = row.iter().map(|text| format!("<{cell}>{}</{cell}>", escaped(text)));
            out += &format!("<tr>{}</tr>", cells.collect::<String>());
        }
        out += "</table></div>";
    }
    out
}
