//! Drawings of the page, as SVG that takes its colours from the page's style.

use std::fmt::Write as _;

use minijinja::HtmlEscape;

use super::axis::Axis;
use super::curve::Point;
use crate::audit::Short;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 220.0;
/// Left of the plot, above, right, below.
const MARGIN: [f64; 4] = [44.0, 14.0, 12.0, 34.0];

/// Loss by step, with the span of each stretch, and the learning rate as a thin line over the full height.
pub(super) fn loss(title: &str, points: &[Point]) -> String {
    let [left, top, right, bottom] = MARGIN;
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return String::new();
    };
    let low = points.iter().map(|p| p.low).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.high).fold(f64::NEG_INFINITY, f64::max);
    let x = Axis::linear((count(first.step), count(last.step)), left, WIDTH - right);
    let y = Axis::linear((low, high), HEIGHT - bottom, top);
    let described = format!(
        "{title}: loss from {:.3} to {:.3} over {} steps",
        first.loss, last.loss, last.step
    );
    let mut svg = open(WIDTH, HEIGHT, &described);
    for (value, label) in y.ticks(4.0) {
        let place = y.place(value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{left} {place:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - right,
            left - 7.0,
            place + 4.0
        );
    }
    let ground = HEIGHT - bottom;
    for (value, _) in x.ticks(5.0) {
        let place = x.place(value);
        let _ = write!(
            svg,
            "<path class=\"axis\" d=\"M{place:.1} {ground}v4\"/><text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            ground + 17.0,
            Short(value)
        );
    }
    let _ = write!(svg, "<path class=\"axis\" d=\"M{left} {ground}H{:.1}\"/>", WIDTH - right);
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">step</text>",
        WIDTH - right,
        HEIGHT - 3.0
    );
    rate(&mut svg, points, &x);
    let upper = points.iter().map(|p| (x.place(count(p.step)), y.place(p.high)));
    let lower = points.iter().rev().map(|p| (x.place(count(p.step)), y.place(p.low)));
    let _ = write!(svg, "<path class=\"band\" d=\"{}Z\"/>", path(upper.chain(lower)));
    let line = points.iter().map(|p| (x.place(count(p.step)), y.place(p.loss)));
    let _ = write!(svg, "<path class=\"line\" d=\"{}\"/>", path(line));
    let end = (x.place(count(last.step)), y.place(last.loss));
    let _ =
        write!(svg, "<circle class=\"end\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\"/>", end.0, end.1);
    told(&mut svg, points, &x);
    svg.push_str("</svg>");
    svg
}

/// The learning rate, from 0 at the ground to its peak at the top.
fn rate(svg: &mut String, points: &[Point], x: &Axis) {
    let rates: Vec<(f64, f64)> =
        points.iter().filter_map(|p| Some((count(p.step), p.lr?))).collect();
    let peak = rates.iter().map(|(_, lr)| *lr).fold(0.0, f64::max);
    if peak <= 0.0 || rates.len() < 2 {
        return;
    }
    let [left, top, _, bottom] = MARGIN;
    let y = Axis::linear((0.0, peak), HEIGHT - bottom, top);
    let line = rates.iter().map(|(step, lr)| (x.place(*step), y.place(*lr)));
    let _ = write!(
        svg,
        "<path class=\"rate\" d=\"{}\"/><text class=\"rate-label\" x=\"{left}\" y=\"{:.1}\">learning rate, peak {peak:.1e}</text>",
        path(line),
        HEIGHT - 3.0
    );
}

/// Strips over the plot that tell their values when a pointer rests on them.
fn told(svg: &mut String, points: &[Point], x: &Axis) {
    let [_, top, _, bottom] = MARGIN;
    let mut from = x.place(points.first().map_or(0.0, |p| count(p.step)));
    for point in points {
        let to = x.place(count(point.step));
        let rate = point.lr.map(|lr| format!(" · lr {lr:.2e}")).unwrap_or_default();
        let _ = write!(
            svg,
            "<rect class=\"tell\" x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"><title>step {} · loss {:.3}{rate}</title></rect>",
            (to - from).max(0.5),
            HEIGHT - bottom - top,
            point.step,
            point.loss
        );
        from = to;
    }
}

/// A row of [`dots`].
pub(super) struct Dot {
    pub(super) label: String,
    pub(super) value: f64,
    /// `base`, `stage`, `control`: how it looks.
    pub(super) class: &'static str,
    pub(super) shown: String,
}

/// Values on a scale by ratios, one row a model, with a line where the base is.
pub(super) fn dots(title: &str, rows: &[Dot]) -> String {
    const ROW: f64 = 25.0;
    const LABELS: f64 = 158.0;
    const VALUES: f64 = 52.0;
    const TOP: f64 = 8.0;
    let positive = || rows.iter().map(|row| row.value).filter(|v| v.is_finite() && *v > 0.0);
    let span = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
    if positive().next().is_none() {
        return String::new();
    }
    let x = Axis::logarithmic(span, LABELS, WIDTH - VALUES);
    let ground = TOP + ROW * count(rows.len() as u64);
    let mut svg = open(WIDTH, ground + 26.0, title);
    for (value, label) in x.ticks(4.0) {
        let place = x.place(value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{place:.1} {TOP}V{ground:.1}\"/><text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            ground + 17.0
        );
    }
    let base = rows.iter().find(|row| row.class == "base").map(|row| x.place(row.value));
    if let Some(place) = base {
        let _ = write!(svg, "<path class=\"reference\" d=\"M{place:.1} {TOP}V{ground:.1}\"/>");
    }
    for (i, row) in rows.iter().enumerate() {
        let middle = TOP + ROW * (count(i as u64) + 0.5);
        let place = x.place(row.value);
        if let Some(base) = base {
            let _ = write!(
                svg,
                "<path class=\"stem {}\" d=\"M{base:.1} {middle:.1}H{place:.1}\"/>",
                row.class
            );
        }
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <circle class=\"dot {}\" cx=\"{place:.1}\" cy=\"{middle:.1}\" r=\"5\"/>\
             <text class=\"value\" x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LABELS - 14.0,
            middle + 4.0,
            HtmlEscape(&row.label),
            row.class,
            middle + 4.0,
            HtmlEscape(&row.shown)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn open(width: f64, height: f64, described: &str) -> String {
    format!(
        "<svg class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">",
        HtmlEscape(described)
    )
}

fn path(places: impl Iterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (i, (x, y)) in places.enumerate() {
        let _ = write!(text, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "steps and rows, drawn")]
fn count(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_chart_has_its_lines_axes_and_values() {
        let point = |step: u64, loss: f64| Point {
            step,
            loss,
            low: loss - 0.1,
            high: loss + 0.1,
            lr: Some(1e-3 / count(step)),
        };
        let svg = loss("a<b", &[point(1, 3.0), point(200, 2.5), point(400, 2.25)]);
        assert!(
            svg.contains("aria-label=\"a&lt;b: loss from 3.000 to 2.250 over 400 steps\""),
            "{svg}"
        );
        for class in ["class=\"line\"", "class=\"band\"", "class=\"rate\"", "peak 1.0e-3"] {
            assert!(svg.contains(class), "{class} in {svg}");
        }
        assert_eq!(svg.matches("<title>").count(), 3);
        assert!(svg.contains("step 200 · loss 2.500 · lr 5.00e-6"), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
        assert_eq!(loss("x", &[]), "");
    }

    #[test]
    fn dots_lie_right_of_the_base_where_they_are_worse() {
        let row = |label: &str, value, class| Dot {
            label: label.into(),
            value,
            class,
            shown: format!("{value}"),
        };
        let svg = dots("ko", &[row("base", 12.0, "base"), row("<i>", 13.0, "stage")]);
        assert!(svg.contains("&lt;i&gt;") && svg.contains("class=\"reference\""), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(dots("none", &[]), "");
    }
}
