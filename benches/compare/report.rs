//! Writes the results of a run: a page with tables, all values as JSON, and plots.

use std::{fmt::Write, fs, path::Path, process::Command};

use serde_json::{Map, Value, json};

use super::{
    Plan,
    figures::{Against, Better, Figure, Results, Target, median, number},
    growth,
    proxies::Contender::{self, Before, HaProxy, Hyper, Mux, Nginx, Nothing},
    svg,
};

const COLUMNS: [Contender; 6] = [Nothing, Mux, Before, HaProxy, Nginx, Hyper];

/// The plots: file, title, and figures, which all have the same unit.
const PLOTS: &[(&str, &str, &[&str])] = &[
    ("memory", "Memory of an idle client", &["idle-raw", "idle-tls", "idle-polling", "idle-hybrid", "idle-streaming"]),
    ("cpu", "CPU of a million messages", &["1 cpu", "64 cpu", "1000 cpu", "tls cpu", "streaming cpu", "polls cpu"]),
    ("latency", "Latency of messages, 64 busy clients", &["64 p50", "64 p99", "64 p99.9"]),
    ("latency-1000", "Latency of messages, 1,000 busy clients", &["1000 p50", "1000 p99", "1000 p99.9"]),
    ("rates", "Work each second", &["log-ins rate", "handshakes rate", "polls rate", "64 rate", "1000 rate"]),
    ("bulk", "Bulk echoed", &["bulk rate"]),
    (
        "wake-up",
        "From the Community to one of 1,000 clients",
        &[
            "wake-up raw p50",
            "wake-up streaming p50",
            "wake-up hybrid p50",
            "wake-up raw p99",
            "wake-up streaming p99",
            "wake-up hybrid p99",
        ],
    ),
];

/// Writes README.md, results.json and the plots. Returns the tables.
pub fn write(folder: &Path, results: &Results, plan: &Plan) -> String {
    fs::create_dir_all(folder).unwrap();
    let (machine, table, targets) = (machine(), table(results), targets(results));
    let mut plots = String::new();
    for (file, title, names) in PLOTS {
        let figures: Vec<&Figure> = results.figures().filter(|figure| names.contains(&figure.name)).collect();
        if let Some(first) = figures.first() {
            let groups: Vec<svg::Group> = figures.iter().map(|figure| group(results, figure)).collect();
            fs::write(folder.join(format!("{file}.svg")), svg::bars(title, first.unit, &groups)).unwrap();
            let _ = writeln!(plots, "![{title}]({file}.svg)\n");
        }
    }
    for (file, title, unit, groups) in growth_plots(results) {
        fs::write(folder.join(format!("{file}.svg")), svg::bars(title, unit, &groups)).unwrap();
        let _ = writeln!(plots, "![{title}]({file}.svg)\n");
    }
    let versions: String = COLUMNS
        .iter()
        .filter(|contender| results.has(**contender))
        .filter_map(|contender| contender.version())
        .fold(String::new(), |text, version| text + "- " + &version + "\n");
    let missing: String = results.missing().fold(String::new(), |text, why| text + "- missing: " + why + "\n");
    let command = if plan.quick { "cargo bench --bench compare -- --quick" } else { "cargo bench --bench compare" };
    let page = format!(
        "# Benchmarks\n\n\
         `{command}` writes this page.\n\n\
         ## How it is measured\n\n\
         - All contenders are in front of the same echo server. They run in turn, in one run, each time with fresh processes.\n\
         - There are {} rounds (memory: {}, growth: 2, 80,000 clients: 1). A figure is the median over the rounds; the lowest\n  \
           and the highest value are in brackets. A ratio is taken in each round, and the median of the ratios counts.\n\
         - Clients, proxy and echo server share the machine's cores: a rate is that of the whole system. CPU time is the\n  \
           proxy's own, user and system.\n\
         - Memory is the proportional set size of all processes of a proxy. The kernel's socket buffers are not included.\n  \
           A polling or hybrid session includes its HTTP connection; for nginx and hyper it is the connection alone.\n\
         - A message is a frame of 104 bytes that is sent, echoed and received before the next one is sent.\n\
         - \"CPU of clients in turn\" without a proxy is the CPU time of the echo server: the cost of so many sockets, one for\n  \
           each client, without any other work.\n\
         - A streaming client sends each message with a POST request on a connection of its own, and gets the echo in the\n  \
           endless response. HAProxy passes this on in `mode http`, with kept connections, to a server that ends the tunnel.\n\
         - HAProxy runs `mode tcp` with two threads otherwise. nginx runs `stream` (for polls `return 200`) with two workers. The\n  \
           multiplexer runs with its default settings. With `log.level = \"warn\"` it writes no log line for each session,\n  \
           as the other proxies do.\n\
         - The trunk has no rows yet.\n\n\
         ## Machine and versions\n\n\
         {machine}{versions}{missing}\n## Figures\n\n{table}\n## Targets\n\n{targets}\n## Plots\n\n{plots}",
        plan.rounds, plan.memory_rounds
    );
    fs::write(folder.join("README.md"), &page).unwrap();
    fs::write(folder.join("results.json"), values(results, &machine)).unwrap();
    format!("{table}\n{targets}")
}

/// The plots of what a client and its messages cost, for each number of clients.
fn growth_plots(results: &Results) -> Vec<(&'static str, &'static str, &'static str, Vec<svg::Group>)> {
    let of = |label: &'static str, name: fn(&growth::Size) -> &'static str| {
        let bars = growth::SIZES.iter().filter_map(|size| {
            let values = results.of(name(size), Mux);
            (!values.is_empty()).then(|| bar(size.label, values, colour(Mux)))
        });
        svg::Group { label, bars: bars.collect() }
    };
    if results.of("growth bytes", Mux).is_empty() {
        return Vec::new();
    }
    let bytes = vec![of("clients", |size| size.bytes)];
    let cpu = vec![of("clients", |size| size.cpu)];
    vec![
        ("growth-memory", "Memory of an idle client, by how many there are", "bytes", bytes),
        ("growth-cpu", "CPU of a million messages, by how many clients there are", "s", cpu),
    ]
}

fn bar(label: &'static str, values: &[f64], colour: &'static str) -> svg::Bar {
    svg::Bar {
        label,
        middle: median(values),
        low: values.iter().copied().fold(f64::INFINITY, f64::min),
        high: values.iter().copied().fold(0.0, f64::max),
        colour,
    }
}

fn group(results: &Results, figure: &Figure) -> svg::Group {
    let bars = COLUMNS.iter().filter_map(|contender| {
        let values = results.of(figure.name, *contender);
        (!values.is_empty()).then(|| bar(contender.name(), values, colour(*contender)))
    });
    svg::Group { label: figure.title, bars: bars.collect() }
}

fn colour(contender: Contender) -> &'static str {
    match contender {
        Nothing => "#9aa0a6",
        Mux => "#1a73e8",
        Before => "#8ab4f8",
        HaProxy => "#f29900",
        Nginx => "#188038",
        Hyper => "#a142f4",
    }
}

fn cell(values: &[f64]) -> String {
    let (low, high) = (
        values.iter().copied().fold(f64::INFINITY, f64::min),
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    );
    match values.len() {
        0 => String::new(),
        1 => number(values[0]),
        _ => format!("{} ({} to {})", number(median(values)), number(low), number(high)),
    }
}

fn table(results: &Results) -> String {
    let columns: Vec<Contender> = COLUMNS.into_iter().filter(|column| results.has(*column)).collect();
    let names: Vec<&str> = columns.iter().map(|column| column.name()).collect();
    let mut text = format!("| figure | unit | {} |\n|---|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for figure in results.figures() {
        let cells: Vec<String> = columns.iter().map(|column| cell(results.of(figure.name, *column))).collect();
        let cells = cells.join(" | ");
        let _ = writeln!(text, "| {} | {} | {cells} |", figure.title, figure.unit);
    }
    text
}

fn targets(results: &Results) -> String {
    let mut text =
        "| figure | compared with | measured | must | aim | result |\n|---|---|---|---|---|---|\n".to_owned();
    for figure in results.figures() {
        let before = results.against(figure, Against::To(Before));
        if !before.is_nan() {
            let _ = writeln!(text, "| {} | the build before | {} | | | |", figure.title, number(before));
        }
        for target in figure.targets {
            let value = results.against(figure, target.against);
            if !value.is_nan() {
                let against = target.against.name();
                let numbers = [value, target.must, target.aim].map(number).join(" | ");
                let _ =
                    writeln!(text, "| {} | {against} | {numbers} | {} |", figure.title, verdict(figure, target, value));
            }
        }
    }
    text
}

fn verdict(figure: &Figure, target: &Target, value: f64) -> &'static str {
    let meets = |bound: f64| if figure.better == Better::Lower { value <= bound } else { value >= bound };
    match (meets(target.must), meets(target.aim)) {
        (_, true) => "aim reached",
        (true, false) => "met",
        (false, false) => "**not met**",
    }
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
    let rust =
        Command::new("rustc").arg("--version").output().map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    format!(
        "- {cores} cores, {}, {:.0} GiB, Linux {}- {}",
        field(&read("/proc/cpuinfo"), "model name"),
        memory / 1024.0 / 1024.0,
        read("/proc/sys/kernel/osrelease"),
        rust.unwrap_or_default()
    )
}

fn values(results: &Results, machine: &str) -> String {
    let mut figures = Map::new();
    for figure in results.figures() {
        let by: Map<String, Value> = COLUMNS
            .iter()
            .map(|contender| (contender.name().to_owned(), results.of(figure.name, *contender)))
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, values)| (name, json!(values)))
            .collect();
        figures.insert(figure.name.to_owned(), json!({ "title": figure.title, "unit": figure.unit, "rounds": by }));
    }
    let all = json!({ "machine": machine.lines().collect::<Vec<_>>(), "figures": figures });
    serde_json::to_string_pretty(&all).unwrap() + "\n"
}
