//! Where a model changed: layers by modules as a heat map, one self-contained SVG.
//!
//! Light and dark follow the reader's settings; the colours are viridis; every cell tells its value on hover.

use std::fmt::Write as _;
use std::path::Path;

use ndarray::Array2;

use super::diff::Diff;
use super::scale::{Scale, round_amount};
use super::units::Ratio;
use super::viridis;
use crate::error::printable;

const LEFT: f64 = 56.0;
const CELL_GAP: f64 = 1.0;
const LEGEND_WIDTH: f64 = 130.0;
/// Width of a character of the labels, on average, and with room to spare.
const CHARACTER: f64 = 6.3;
const STYLE: &str = "\
text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#1f2328}\
.title{font-size:17px;font-weight:600}.small{font-size:11px}\
.mute{fill:#656d76}.ground{fill:#ffffff}.equal{fill:#e6e9ed}\
.tick{stroke:#656d76}\
.cell:hover{stroke:#1f2328;stroke-width:1.5}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.mute{fill:#8d96a0}.ground{fill:#0d1117}\
.equal{fill:#262c36}.tick{stroke:#8d96a0}.cell:hover{stroke:#e6edf3}}";

/// A table of ratios to be drawn. NaN marks a cell that does not exist, 0 one without change.
#[derive(Clone, Debug, PartialEq)]
pub struct Heatmap {
    /// What is shown.
    pub title: String,
    /// What the numbers are.
    pub measure: String,
    /// Rows: layers, counting from 1.
    pub layers: Vec<u64>,
    /// Columns: modules of a layer.
    pub modules: Vec<String>,
    /// `layers x modules`.
    pub values: Array2<f64>,
    /// What lies outside the layers, in a row of its own.
    pub outside: Vec<(String, f64)>,
}

impl Heatmap {
    /// The relative norms of a diff.
    pub fn of(diff: &Diff) -> Self {
        let grid = &diff.grid;
        let outside = grid.outside.iter();
        Self {
            title: format!("From {} to {}", short(&diff.a), short(&diff.b)),
            measure: "‖b − a‖ / ‖a‖ of each module of each layer".to_owned(),
            layers: grid.layers.iter().map(|l| l.label).collect(),
            modules: grid.modules.iter().map(|m| m.label.clone()).collect(),
            values: grid.relative_norms.clone(),
            outside: outside
                .map(|part| (part.label.to_string(), part.aggregate.relative_norm))
                .collect(),
        }
    }

    /// The drawing, as the text of an `.svg` file.
    pub fn render(&self) -> String {
        let scale = Scale::over(self.values.iter().chain(self.outside.iter().map(|(_, v)| v)));
        let frame = Frame::of(self);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w:.0} {h:.0}\" width=\"{w:.0}\" height=\"{h:.0}\" \
             role=\"img\" aria-label=\"{}\">\n<style>{STYLE}</style>\n<rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n",
            escape(&printable(&self.title)),
            w = frame.width,
            h = frame.height,
        );
        text(&mut svg, "title", (20.0, 32.0), "start", &self.title);
        text(&mut svg, "mute", (20.0, 52.0), "start", &self.measure);
        self.column_labels(&mut svg, &frame);
        self.cells(&mut svg, &frame, &scale);
        self.outside_row(&mut svg, &frame, &scale);
        let height = frame.grid_height.clamp(150.0, 260.0);
        legend(&mut svg, &scale, (frame.legend_x(), frame.top), height);
        svg.push_str("</svg>\n");
        svg
    }

    fn column_labels(&self, svg: &mut String, frame: &Frame) {
        for (column, module) in self.modules.iter().enumerate() {
            let (x, y) = (frame.x(column) + frame.cell.0 / 2.0, frame.top - 8.0);
            let _ = writeln!(
                svg,
                "<text transform=\"translate({x:.1} {y:.1}) rotate(-40)\">{}</text>",
                escape(&printable(module))
            );
        }
        let (x, y) = (LEFT - 10.0, frame.top - 8.0);
        text(svg, "small mute", (x, y), "end", "layer");
    }

    fn cells(&self, svg: &mut String, frame: &Frame, scale: &Scale) {
        for (row, layer) in self.layers.iter().enumerate() {
            let y = frame.y(row);
            if frame.labels_all || row == 0 || layer % 5 == 0 {
                let middle = y + frame.cell.1 / 2.0 + 4.0;
                text(svg, "small mute", (LEFT - 10.0, middle), "end", &layer.to_string());
            }
            for (column, module) in self.modules.iter().enumerate() {
                let Some(&value) = self.values.get([row, column]) else {
                    continue;
                };
                let place = (frame.x(column), y);
                let label = format!("layer {layer} · {module}");
                cell(svg, place, frame.cell, scale, value, &label);
            }
        }
    }

    /// Embeddings, norm and head, with their names and values under the cells.
    fn outside_row(&self, svg: &mut String, frame: &Frame, scale: &Scale) {
        for (i, (name, value)) in self.outside.iter().enumerate() {
            let (x, y) = (frame.outside_x(i), frame.outside_y());
            cell(svg, (x, y), (frame.outside_cell, 18.0), scale, *value, name);
            let middle = x + frame.outside_cell / 2.0;
            text(svg, "small", (middle, y + 33.0), "middle", name);
            let shown = says(*value);
            text(svg, "small mute", (middle, y + 48.0), "middle", &shown);
        }
    }
}

/// Where everything goes, in pixels.
struct Frame {
    top: f64,
    cell: (f64, f64),
    grid_width: f64,
    grid_height: f64,
    outside_cell: f64,
    labels_all: bool,
    width: f64,
    height: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts of rows, columns and characters")]
impl Frame {
    fn of(map: &Heatmap) -> Self {
        let (rows, columns) = (map.layers.len(), map.modules.len());
        let row_height = match rows {
            0..=48 => 18.0,
            49..=72 => 13.0,
            _ => 9.0,
        };
        let column_width = (440.0 / columns.max(1) as f64).clamp(30.0, 64.0);
        let label = |text: &String| text.chars().count() as f64 * CHARACTER;
        let longest = map.modules.iter().map(label).fold(0.0, f64::max);
        let widest = map.outside.iter().map(|(name, _)| label(name)).fold(76.0, f64::max);
        let outside_cell = widest + 8.0;
        let modules_width = columns as f64 * column_width;
        let grid_width = modules_width.max(map.outside.len() as f64 * (outside_cell + 6.0));
        // Labels stand at 40 degrees: the last ones lean over the legend's column.
        let (rise, lean) = (longest * 0.643, longest * 0.766 - column_width / 2.0);
        let top = 72.0 + rise + 14.0;
        let grid_height = rows as f64 * row_height;
        let title = map.title.chars().count() as f64 * 9.2 + 40.0;
        let legend_x = LEFT + grid_width + 28.0;
        let width = (legend_x + LEGEND_WIDTH).max(LEFT + modules_width + lean + 20.0).max(title);
        let outside = if map.outside.is_empty() { 0.0 } else { 76.0 };
        Self {
            top,
            cell: (column_width, row_height),
            grid_width,
            grid_height,
            outside_cell,
            labels_all: row_height > 12.0,
            width,
            height: top
                + grid_height.max(if rows == 0 { 0.0 } else { 190.0 - outside })
                + outside
                + 24.0,
        }
    }

    fn x(&self, column: usize) -> f64 {
        LEFT + column as f64 * self.cell.0
    }

    fn y(&self, row: usize) -> f64 {
        self.top + row as f64 * self.cell.1
    }

    fn outside_x(&self, index: usize) -> f64 {
        LEFT + index as f64 * (self.outside_cell + 6.0)
    }

    fn outside_y(&self) -> f64 {
        self.top + self.grid_height + 16.0
    }

    fn legend_x(&self) -> f64 {
        LEFT + self.grid_width + 28.0
    }
}

fn legend(svg: &mut String, scale: &Scale, (x, top): (f64, f64), height: f64) {
    svg.push_str("<defs><linearGradient id=\"elo-viridis\" x1=\"0\" y1=\"1\" x2=\"0\" y2=\"0\">");
    for stop in 0..=16 {
        let place = f64::from(stop) / 16.0;
        let colour = viridis::colour(place);
        let _ = write!(svg, "<stop offset=\"{place:.4}\" stop-color=\"{colour}\"/>");
    }
    svg.push_str("</linearGradient></defs>\n");
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"14\" height=\"{height:.1}\" rx=\"2\" fill=\"url(#elo-viridis)\"/>"
    );
    for tick in scale.ticks() {
        let y = top + height * (1.0 - scale.place(tick));
        let _ = writeln!(svg, "<path class=\"tick\" d=\"M{:.1} {y:.1}h5\"/>", x + 14.0);
        text(svg, "small", (x + 23.0, y + 4.0), "start", &round_amount(tick));
    }
    let below = top + height + 14.0;
    let _ = writeln!(
        svg,
        "<rect class=\"equal\" x=\"{x:.1}\" y=\"{below:.1}\" width=\"14\" height=\"12\" rx=\"2\"/>"
    );
    text(svg, "small", (x + 23.0, below + 10.0), "start", "equal");
}

fn cell(
    svg: &mut String,
    at: (f64, f64),
    size: (f64, f64),
    scale: &Scale,
    value: f64,
    label: &str,
) {
    let (x, y) = at;
    let (width, height) = (size.0 - CELL_GAP, size.1 - CELL_GAP);
    if value.is_nan() {
        return;
    }
    let look = if value == 0.0 {
        "class=\"cell equal\"".to_owned()
    } else {
        let colour = viridis::colour(scale.place(value));
        format!("class=\"cell\" fill=\"{colour}\"")
    };
    let _ = writeln!(
        svg,
        "<rect {look} x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\">\
         <title>{}: {}</title></rect>",
        escape(&printable(label)),
        says(value)
    );
}

fn text(svg: &mut String, class: &str, at: (f64, f64), anchor: &str, content: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
        at.0,
        at.1,
        escape(&printable(content))
    );
}

/// A value for people.
fn says(value: f64) -> String {
    match value {
        v if v.is_nan() => "not measured".to_owned(),
        0.0 => "equal".to_owned(),
        v => Ratio(v).to_string(),
    }
}

/// The last part of a path, cut to a length a title can bear.
fn short(model: &str) -> String {
    const KEEP: usize = 36;
    let name = Path::new(model).file_name().map_or(model.into(), |n| n.to_string_lossy());
    match name.chars().count() {
        n if n > KEEP => name.chars().take(KEEP - 1).chain(['…']).collect(),
        _ => name.into_owned(),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(layers: u64, value: impl Fn(u64, usize) -> f64) -> Heatmap {
        let modules = [
            "input_layernorm",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ];
        let rows = usize::try_from(layers).unwrap();
        Heatmap {
            title: "From base to chat".into(),
            measure: "‖b − a‖ / ‖a‖ of each module of each layer".into(),
            layers: (1..=layers).collect(),
            modules: modules.map(str::to_owned).to_vec(),
            values: Array2::from_shape_fn((rows, 9), |(r, c)| value(r as u64, c)),
            outside: vec![
                ("embedding".into(), 0.0),
                ("final norm".into(), 0.004),
                ("head".into(), 0.021),
            ],
        }
    }

    #[test]
    fn every_cell_tells_its_layer_module_and_value() {
        let svg = map(2, |r, c| if (r, c) == (1, 8) { 0.0163 } else { 0.01 }).render();
        assert!(svg.contains("<title>layer 2 · mlp.down_proj: 1.63 %</title>"), "{svg}");
        assert_eq!(svg.matches("<title>").count(), 2 * 9 + 3);
        assert_eq!(svg.matches("<rect").count(), svg.matches("</rect>").count() + 3);
    }

    #[test]
    fn cells_that_do_not_exist_are_left_empty() {
        let svg = map(2, |r, _| if r == 0 { f64::NAN } else { 0.0 }).render();
        assert!(!svg.contains("layer 1 ·"), "{svg}");
        assert!(svg.contains("layer 2 · mlp.up_proj: equal"), "{svg}");
    }

    #[test]
    fn hostile_labels_stay_text() {
        let mut map = map(1, |_, _| 0.1);
        map.modules[0] = "</svg><script>".into();
        map.title = "a\"b\u{7}".into();
        let svg = map.render();
        assert!(!svg.contains("<script>") && !svg.contains('\u{7}'), "{svg}");
    }
}
