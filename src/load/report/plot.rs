//! Plots as SVG. Their colours are those of the page: the CSS variables `--c0`, `--c1`, ...

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = WIDTH - 20.0;
const BOTTOM: f64 = 28.0;
const TOP: f64 = 12.0;

/// The values of one line or one area of a plot.
pub(super) struct Series {
    pub(super) name: String,
    /// The values, at equal distances.
    pub(super) values: Vec<f64>,
}

/// A number in a form that is short enough for an axis.
fn short(value: f64) -> String {
    match value {
        v if v >= 10_000.0 => format!("{:.0}k", v / 1_000.0),
        v if v >= 10.0 || v == v.trunc() => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

/// The smallest round number that is not below `value`.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    // A quarter of each of these is a round number, too: an axis has a tick at every quarter.
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

/// How values become heights.
#[derive(Clone, Copy)]
enum Scale {
    /// From 0 to this value.
    Linear(f64),
    /// From `LEAST` to this value; smaller values are drawn as `LEAST`. 0 means that nothing was measured, and
    /// makes a gap in the line.
    Logarithmic(f64),
}

/// The smallest value on a logarithmic axis: a tenth of a millisecond.
const LEAST: f64 = 0.1;

impl Scale {
    fn of(series: &[Series], logarithmic: bool) -> Self {
        let most = series.iter().flat_map(|s| s.values.iter().copied()).fold(0.0, f64::max);
        if logarithmic {
            Self::Logarithmic(10f64.powf((most.max(1.0) / LEAST).log10().ceil()) * LEAST)
        } else {
            Self::Linear(round_up(most))
        }
    }

    /// Whether `value` is drawn.
    fn draws(self, value: f64) -> bool {
        matches!(self, Self::Linear(_)) || value > 0.0
    }

    /// The height of `value`: 0 at the bottom of the axis, 1 at its top.
    fn height(self, value: f64) -> f64 {
        match self {
            Self::Linear(top) => value / top,
            Self::Logarithmic(top) => (value.max(LEAST) / LEAST).log10() / (top / LEAST).log10(),
        }
    }

    /// The values that have a line and a number.
    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(top) => (0..=4).map(|step| top * f64::from(step) / 4.0).collect(),
            Self::Logarithmic(top) => std::iter::successors(Some(LEAST), |tick| Some(tick * 10.0))
                .take_while(|tick| *tick < top * 1.01)
                .collect(),
        }
    }
}

/// The vertical position of a height from 0 to 1.
fn y(height: f64) -> f64 {
    TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - height)
}

/// The beginning of a plot: horizontal lines with their values, and the texts `along` below the bottom line.
fn frame(label: &str, scale: Scale, along: &[&str]) -> String {
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
    for tick in scale.ticks() {
        let y = y(scale.height(tick));
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            short(tick)
        );
    }
    for (i, text) in along.iter().enumerate() {
        let _ = write!(
            out,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            x(i, along.len()),
            HEIGHT - 8.0
        );
    }
    out
}

/// The horizontal position of the value `at`, of `of` values.
#[allow(clippy::cast_precision_loss)]
fn x(at: usize, of: usize) -> f64 {
    LEFT + (RIGHT - LEFT) * at as f64 / of.saturating_sub(1).max(1) as f64
}

/// The path of a line, with a gap where a value is not drawn.
fn path(values: &[f64], scale: Scale) -> String {
    let (mut path, mut drawing) = (String::new(), false);
    for (i, value) in values.iter().enumerate() {
        let (x, y) = (x(i, values.len()), y(scale.height(*value)));
        let _ = match (scale.draws(*value), drawing) {
            (true, true) => write!(path, "L{x:.1} {y:.1}"),
            // A line without length, so that a value between two gaps appears as a dot.
            (true, false) => write!(path, "M{x:.1} {y:.1}h0"),
            (false, _) => Ok(()),
        };
        drawing = scale.draws(*value);
    }
    path
}

/// A plot of lines. The texts `along` are spread over the horizontal axis.
pub(super) fn lines(label: &str, series: &[Series], along: &[&str], logarithmic: bool) -> String {
    let scale = Scale::of(series, logarithmic);
    let mut out = frame(label, scale, along);
    for (i, s) in series.iter().enumerate() {
        let _ = write!(out, "<path class=\"line c{i}\" d=\"{}\"/>", path(&s.values, scale));
    }
    out + "</svg>" + &legend(series)
}

/// A plot of areas that are stacked on top of each other.
pub(super) fn stacked(label: &str, series: &[Series], along: &[&str]) -> String {
    let length = series.iter().map(|s| s.values.len()).max().unwrap_or(0);
    let mut sum = Series { name: String::new(), values: vec![0.0; length] };
    let mut layers = Vec::new();
    for s in series {
        let below = sum.values.clone();
        for (sum, value) in sum.values.iter_mut().zip(&s.values) {
            *sum += value;
        }
        layers.push((below, sum.values.clone()));
    }
    let scale = Scale::of(&[sum], false);
    let mut out = frame(label, scale, along);
    for (i, (below, above)) in layers.iter().enumerate() {
        let mut d = path(above, scale);
        for (at, value) in below.iter().enumerate().rev() {
            let _ = write!(d, "L{:.1} {:.1}", x(at, length), y(scale.height(*value)));
        }
        let _ = write!(out, "<path class=\"area c{i}\" d=\"{d}Z\"/>");
    }
    out + "</svg>" + &legend(series)
}

/// Horizontal bars, with their names and numbers.
pub(super) fn bars(label: &str, bars: &[(String, u64)]) -> String {
    let most = bars.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    let mut out = format!("<div class=\"bars\" role=\"img\" aria-label=\"{label}\">");
    for (name, n) in bars {
        let percent = n * 100 / most;
        let _ = write!(
            out,
            "<span>{}</span><span class=\"bar\"><i style=\"width:{}%\"></i></span><b>{n}</b>",
            escaped(name),
            percent.max(1)
        );
    }
    out + "</div>"
}

fn legend(series: &[Series]) -> String {
    let items = series.iter().enumerate().map(|(i, s)| format!("<li><i class=\"k{i}\"></i>{}</li>", escaped(&s.name)));
    format!("<ul class=\"legend\">{}</ul>", items.collect::<String>())
}

/// `text` with the characters that have a meaning in HTML escaped.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, expected) in [(0.0, 1.0), (0.3, 0.4), (7.0, 8.0), (10.0, 10.0), (230.0, 400.0), (2600.0, 4000.0)] {
            assert!((round_up(value) - expected).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn a_line_has_gaps_where_nothing_was_measured() {
        let values = [10.0, 20.0, 0.0, 30.0];
        assert_eq!(path(&values, Scale::Logarithmic(100.0)).matches('M').count(), 2);
        assert_eq!(path(&values, Scale::Linear(40.0)).matches('M').count(), 1);
    }

    #[test]
    fn text_from_a_server_is_escaped() {
        let page = bars("x", &[("<script>".to_owned(), 3)]);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
    }
}
