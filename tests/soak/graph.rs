//! The graph of the soak test: one small plot over time for each value.

use std::fmt::Write;

use super::Sample;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 110.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 34.0;
const GAP: f64 = 46.0;
/// The number of points of an edge. A plot is the area between the lowest and the highest value in the time of each
/// point.
const POINTS: usize = 200;

const STYLE: &str = "<style>
text{font:13px system-ui,sans-serif;fill:#333}.axis{stroke:#999}.line{fill:#06c4;stroke:#06c;stroke-width:1}rect{fill:#fff}
@media (prefers-color-scheme:dark){text{fill:#ddd}.axis{stroke:#777}.line{fill:#6bf4;stroke:#6bf}rect{fill:#111}}
</style>";

type Plot = (&'static str, fn(&Sample) -> f64);

const PLOTS: [Plot; 4] = [
    ("clients", |sample| sample.sessions),
    ("tasks", |sample| sample.tasks),
    ("descriptors", |sample| sample.descriptors),
    ("memory, MiB", |sample| sample.memory),
];

pub fn svg(samples: &[Sample]) -> String {
    let (seconds, height) = (samples.last().unwrap().second, TOP + PLOTS.len() as f64 * (HEIGHT + GAP));
    let whole = WIDTH + LEFT + 16.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole} {height}\" role=\"img\" aria-label=\"Clients, tasks, descriptors and memory over the soak\">\n{STYLE}\n<rect width=\"{whole}\" height=\"{height}\"/>\n"
    );
    let each = samples.len().div_ceil(POINTS);
    for (n, (name, of)) in PLOTS.iter().enumerate() {
        let top = TOP + n as f64 * (HEIGHT + GAP);
        let most = samples.iter().map(of).fold(1.0, f64::max);
        // Forward along the highest values, back along the lowest.
        let edge = |best: fn(f64, f64) -> f64, from: f64| {
            samples.chunks(each).map(move |chunk| {
                let value = chunk.iter().map(of).fold(from, best);
                format!("{:.0},{:.1}", LEFT + WIDTH * chunk[0].second / seconds, top + HEIGHT * (1.0 - value / most))
            })
        };
        let upper = edge(f64::max, 0.0);
        let mut points: Vec<String> = edge(f64::min, f64::INFINITY).collect();
        points.reverse();
        let points: Vec<String> = upper.chain(points).collect();
        let bottom = top + HEIGHT;
        writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{:.0}\">{name}</text>\n<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{most:.0}</text>\n<text x=\"{:.0}\" y=\"{bottom:.0}\" text-anchor=\"end\">0</text>\n<path class=\"axis\" d=\"M{LEFT} {top:.0}V{bottom:.0}H{:.0}\" fill=\"none\"/>\n<polygon class=\"line\" points=\"{}\"/>",
            top - 8.0,
            LEFT - 6.0,
            top + 10.0,
            LEFT - 6.0,
            LEFT + WIDTH,
            points.join(" ")
        )
        .unwrap();
    }
    let minutes = (seconds / 60.0).max(1.0);
    let step = if minutes > 12.0 { 5.0 } else { 1.0 };
    let mut at = 0.0;
    while at <= minutes {
        writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{at} min</text>",
            LEFT + WIDTH * at * 60.0 / seconds.max(60.0),
            height - GAP + 18.0
        )
        .unwrap();
        at += step;
    }
    out + "</svg>\n"
}
