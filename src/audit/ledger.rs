//! A diff as tables for people: a summary, the layers, the tensors.

use std::cmp::Ordering;
use std::fmt::Write as _;

use super::diff::{Diff, TensorDiff, TensorState};
use super::grid::Aggregate;
use super::inspect::GroupKind;
use super::table::{Align, Table};
use super::units::{Grouped, Ratio, counted};
use crate::error::printable;

/// What the tables show.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiffView {
    /// Leave out equal tensors.
    pub changed_only: bool,
    /// Only so many tensors, those that moved the most first; otherwise all, in file order.
    pub top: Option<usize>,
    /// Leave out the table of layers.
    pub without_layers: bool,
}

/// The summary, a table of layers, a table of tensors.
pub fn render_diff(diff: &Diff, view: DiffView) -> String {
    let mut text = format!("a  {}\nb  {}\n\n", printable(&diff.a), printable(&diff.b));
    let _ = writeln!(text, "{}\n", summary(diff));
    if diff.total.changed == 0 {
        return text;
    }
    if !view.without_layers {
        let _ = writeln!(text, "{}", layers(diff));
    }
    text.push_str(&tensors(diff, view));
    text
}

fn summary(diff: &Diff) -> String {
    let total = &diff.total;
    if total.changed == 0 {
        return format!("equal: {}", counted(total.tensors, "tensor"));
    }
    let mut parts =
        vec![format!("{} of {} differ", Grouped(total.changed), counted(total.tensors, "tensor"))];
    for state in [
        TensorState::OnlyInA,
        TensorState::OnlyInB,
        TensorState::ShapeDiffers,
        TensorState::DtypeDiffers,
    ] {
        match diff.tensors.iter().filter(|t| t.state == state).count() {
            0 => {}
            n => parts.push(format!("{n} {}", state.as_str())),
        }
    }
    if total.relative_norm.is_finite() {
        parts.push(format!("moved {}", Ratio(total.relative_norm)));
        parts.push(format!("cosine {}", cosine(total.cosine)));
    }
    parts.join(" · ")
}

fn layers(diff: &Diff) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[Left, Right, Right, Right, Right]);
    let titles = ["", "differ", "moved", "cosine", "largest"];
    table.row(titles.map(str::to_owned));
    let mut line = |label: String, sum: &Aggregate| {
        table.row([
            label,
            format!("{} of {}", sum.changed, sum.tensors),
            Ratio(sum.relative_norm).to_string(),
            cosine(sum.cosine),
            largest(sum.largest),
        ]);
    };
    let grid = &diff.grid;
    let before = |kind| matches!(kind, GroupKind::Embedding | GroupKind::PositionEmbedding);
    for part in grid.outside.iter().filter(|p| before(p.label)) {
        line(part.label.to_string(), &part.aggregate);
    }
    for layer in &grid.layers {
        line(format!("layer {}", layer.label), &layer.aggregate);
    }
    for part in grid.outside.iter().filter(|p| !before(p.label)) {
        line(part.label.to_string(), &part.aggregate);
    }
    table.render()
}

fn tensors(diff: &Diff, view: DiffView) -> String {
    use Align::{Left, Right};
    let mut shown: Vec<&TensorDiff> = diff
        .tensors
        .iter()
        .filter(|t| !view.changed_only || t.state != TensorState::Equal)
        .collect();
    let all = shown.len();
    if let Some(top) = view.top {
        shown.sort_by(|a, b| by_distance(a, b));
        shown.truncate(top);
    }
    let mut table = Table::new(&[Left, Left, Right, Right, Right, Right, Left]);
    let titles = ["tensor", "state", "moved", "cosine", "largest", "equal", ""];
    table.row(titles.map(str::to_owned));
    for tensor in &shown {
        let [moved, cosine, largest, equal] = numbers(tensor);
        table.row([
            printable(&tensor.name),
            tensor.state.as_str().to_owned(),
            moved,
            cosine,
            largest,
            equal,
            remark(tensor),
        ]);
    }
    let mut text = table.render();
    if shown.len() < all {
        let _ = writeln!(text, "... and {} more", all - shown.len());
    }
    text
}

/// The farthest first; what has no distance comes after what has one, equal tensors last.
fn by_distance(a: &TensorDiff, b: &TensorDiff) -> Ordering {
    let moved = |t: &TensorDiff| match (t.state, t.change) {
        (TensorState::Equal, _) => -2.0,
        (_, Some(change)) if !change.relative_norm.is_nan() => change.relative_norm,
        _ => -1.0,
    };
    moved(b).total_cmp(&moved(a))
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn numbers(tensor: &TensorDiff) -> [String; 4] {
    let Some(change) = &tensor.change else {
        return Default::default();
    };
    let equal = Ratio(change.equal as f64 / change.elements.max(1) as f64).to_string();
    if change.relative_norm.is_nan() {
        return [String::new(), String::new(), String::new(), equal];
    }
    [Ratio(change.relative_norm).to_string(), cosine(change.cosine), largest(change.largest), equal]
}

/// What the columns cannot say: other forms, values that are not finite.
fn remark(tensor: &TensorDiff) -> String {
    let mut parts = Vec::new();
    if let (Some(a), Some(b)) = (&tensor.a, &tensor.b) {
        if a.dtype != b.dtype {
            let name = |dtype: &crate::format::Dtype| printable(dtype.as_str());
            parts.push(format!("{} -> {}", name(&a.dtype), name(&b.dtype)));
        }
        if a.shape != b.shape {
            parts.push(format!("{} -> {}", a.shape, b.shape));
        }
    }
    match tensor.change {
        Some(change) if change.non_finite > 0 => {
            parts.push(format!("{} not finite", Grouped(change.non_finite)));
        }
        _ => {}
    }
    parts.join(", ")
}

fn cosine(value: f64) -> String {
    if value.is_nan() {
        return "-".to_owned();
    }
    format!("{value:.6}")
}

fn largest(value: f64) -> String {
    match value {
        v if v.is_nan() => "-".to_owned(),
        0.0 => "0".to_owned(),
        v if (0.001..1000.0).contains(&v) => format!("{v:.4}"),
        v => format!("{v:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::Fixture;
    use crate::audit::{DiffOptions, diff};

    fn found() -> Diff {
        let plain = || Fixture::llama(2, |_, _| 2.0);
        let set =
            |to: f32| move |bytes: &mut Vec<u8>| bytes[..4].copy_from_slice(&to.to_le_bytes());
        let b = plain()
            .edit("model.layers.0.mlp.down_proj.weight", set(2.5))
            .edit("model.norm.weight", set(8.0))
            .edit("lm_head.weight", set(f32::NAN));
        let (a, b) = (plain().open_kept(), b.open_kept());
        let mut found = diff(&a.1, &b.1, &DiffOptions::default(), &|_: u64| {}).unwrap();
        (found.a, found.b) = ("first".into(), "second".into());
        found
    }

    #[test]
    fn tables_line_up() {
        let view = DiffView { changed_only: true, ..DiffView::default() };
        let text = render_diff(&found(), view);
        let expected = "\
a  first
b  second

3 of 9 tensors differ · moved 39.2 % · cosine 0.938541

            differ    moved    cosine  largest
embedding   0 of 1        0  1.000000        0
layer 1     1 of 3   5.10 %  0.998780   0.5000
layer 2     0 of 3        0  1.000000        0
final norm  1 of 1  150.0 %  0.802955   6.0000
head        1 of 1        0  1.000000        0

tensor                               state      moved    cosine  largest   equal
model.layers.0.mlp.down_proj.weight  changed   5.10 %  0.998780   0.5000  95.8 %
model.norm.weight                    changed  150.0 %  0.802955   6.0000  75.0 %
lm_head.weight                       changed        0  1.000000        0  96.9 %  1 not finite
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_farthest_come_first() {
        let view = DiffView { top: Some(1), without_layers: true, ..DiffView::default() };
        let text = render_diff(&found(), view);
        assert!(text.contains("model.norm.weight  changed  150.0 %"), "{text}");
        assert!(!text.contains("down_proj"), "{text}");
        assert!(text.ends_with("... and 8 more\n"), "{text}");
    }
}
