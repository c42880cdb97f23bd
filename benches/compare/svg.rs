//! Bar charts as SVG, written without another program.

use std::fmt::Write;

use super::figures::number;

/// One bar: a median, and the lowest and the highest value.
pub struct Bar {
    pub label: &'static str,
    pub middle: f64,
    pub low: f64,
    pub high: f64,
    pub colour: &'static str,
}

/// Bars that have a scale of their own.
pub struct Group {
    pub label: &'static str,
    pub bars: Vec<Bar>,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 20.0;
const GAP: f64 = 34.0;

/// Horizontal bars in groups. Each bar shows the median, and a line from the lowest to the highest value.
pub fn bars(title: &str, unit: &str, groups: &[Group]) -> String {
    let height = groups.iter().map(|group| GAP + ROW * group.bars.len() as f64).sum::<f64>() + 50.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"24\" font-size=\"16\">{title}, {unit}</text>\n"
    );
    let mut y = 36.0;
    for group in groups {
        let most = group.bars.iter().map(|bar| bar.high).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * value / most;
        let _ = writeln!(out, "<text x=\"10\" y=\"{:.1}\" font-weight=\"bold\">{}</text>", y + 20.0, group.label);
        y += GAP - 6.0;
        for bar in &group.bars {
            let (middle, text) = (x(bar.middle), y + 13.0);
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#202124\"/>\
                 <text x=\"{:.1}\" y=\"{text:.1}\">{}</text>",
                LEFT - 6.0,
                bar.label,
                y + 1.0,
                middle - LEFT,
                ROW - 4.0,
                bar.colour,
                x(bar.low),
                x(bar.high),
                y + 9.0,
                y + 9.0,
                x(bar.high) + 5.0,
                number(bar.middle)
            );
            y += ROW;
        }
        y += 6.0;
    }
    out + "</svg>\n"
}
