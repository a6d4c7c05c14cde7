//! An inspection as a tree for people: equal layers folded, experts folded, sizes lined up.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::inspect::{Group, GroupKind, Inspection, ShardSummary, TensorSummary};
use super::table::{Align, Table};
use super::units::{Bytes, Elements, Grouped, counted};
use crate::error::printable;
use crate::format::{Dtype, Shape};

/// More shards than this are shown as one line.
const SHARDS_SHOWN: usize = 8;

/// What a tree shows.
#[derive(Clone, Copy, Debug)]
pub struct TreeOptions {
    /// The tensors inside each group. Layers of one kind list them once.
    pub modules: bool,
    /// Every shard by name, however many there are.
    pub all_shards: bool,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { modules: true, all_shards: false }
    }
}

/// The tree: a summary, the groups, the shards, then origin and doubts.
pub fn render_tree(inspection: &Inspection, options: TreeOptions) -> String {
    let mut text = format!("{}\n{}\n", printable(&inspection.name), headline(inspection));
    let _ = writeln!(text, "{}\n", vocabulary(inspection));
    text.push_str(&groups(inspection, options));
    text.push('\n');
    text.push_str(&shards(&inspection.shards, options));
    text.push_str(&origin(inspection));
    for warning in &inspection.warnings {
        let _ = writeln!(text, "warning: {}", printable(warning));
    }
    text
}

/// One line a tensor, in file order: name, dtype, shape, size, shard.
pub fn render_tensors(inspection: &Inspection) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[Left, Left, Left, Right, Left]);
    for tensor in &inspection.tensors {
        table.row([
            printable(&tensor.name),
            printable(tensor.dtype.as_str()),
            tensor.shape.to_string(),
            Bytes(tensor.bytes).to_string(),
            printable(&tensor.shard),
        ]);
    }
    table.render()
}

fn headline(inspection: &Inspection) -> String {
    let mut parts = vec![
        printable(&inspection.family),
        counted(inspection.layers.tensors, "layer"),
        format!("{} parameters", Elements(inspection.parameters.total)),
        Bytes(inspection.bytes).to_string(),
    ];
    if inspection.quantization.is_some() {
        // Packed integers and scales are elements, not parameters.
        parts[2] = format!("{} elements", Elements(inspection.parameters.total));
    }
    match inspection.dtypes.as_slice() {
        [one] => parts.push(printable(one.dtype.as_str())),
        several => parts.extend(several.iter().map(|u| {
            let dtype = printable(u.dtype.as_str());
            format!("{dtype} {} in {}", Bytes(u.bytes), counted(u.tensors, "tensor"))
        })),
    }
    if let Some(method) = &inspection.quantization {
        parts.push(format!("quantised: {}", printable(method)));
    }
    parts.join(" · ")
}

fn vocabulary(inspection: &Inspection) -> String {
    let has_head = inspection.groups.iter().any(|g| g.kind == GroupKind::Head);
    let head = match (has_head, inspection.tied) {
        (true, _) => "untied head",
        (false, true) => "head tied to the embedding",
        (false, false) => "no head",
    };
    match inspection.vocabulary.rows {
        Some(rows) => format!("vocabulary {} · {head}", Grouped(rows)),
        None => format!("no embedding · {head}"),
    }
}

/// Groups that show as one line: a run of layers with equal tensors, or a single group.
struct Run<'a> {
    kind: GroupKind,
    count: u64,
    group: &'a Group,
    tensors: Vec<&'a TensorSummary>,
}

fn runs(inspection: &Inspection) -> Vec<Run<'_>> {
    let mut members: HashMap<GroupKind, Vec<&TensorSummary>> = HashMap::new();
    for tensor in &inspection.tensors {
        members.entry(tensor.kind).or_default().push(tensor);
    }
    for tensors in members.values_mut() {
        tensors.sort_by(|a, b| natural(&a.part).cmp(&natural(&b.part)));
    }
    let mut runs: Vec<Run> = Vec::new();
    for group in &inspection.groups {
        let tensors = members.remove(&group.kind).unwrap_or_default();
        if let (GroupKind::Layer(layer), Some(last)) = (group.kind, runs.last_mut()) {
            let follows = matches!(last.kind, GroupKind::Layer(first) if first.saturating_add(last.count) == layer);
            if follows && same_layout(&last.tensors, &tensors) {
                last.count += 1;
                continue;
            }
        }
        runs.push(Run { kind: group.kind, count: 1, group, tensors });
    }
    runs
}

fn same_layout(a: &[&TensorSummary], b: &[&TensorSummary]) -> bool {
    let layout = |t: &&TensorSummary| (t.part.clone(), t.dtype.clone(), t.shape.clone());
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| layout(a) == layout(b))
}

/// Name with its numbers as numbers, so that expert 10 comes after expert 9.
fn natural(name: &str) -> Vec<(u64, &str)> {
    let piece = |piece| match str::parse::<u64>(piece) {
        Ok(number) => (number, ""),
        Err(_) => (0, piece),
    };
    name.split('.').map(piece).collect()
}

fn groups(inspection: &Inspection, options: TreeOptions) -> String {
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Right]);
    let runs = runs(inspection);
    for (i, run) in runs.iter().enumerate() {
        let last = i + 1 == runs.len();
        let alike = runs[..i].iter().find(|earlier| {
            matches!(earlier.kind, GroupKind::Layer(_))
                && matches!(run.kind, GroupKind::Layer(_))
                && same_layout(&earlier.tensors, &run.tensors)
        });
        let folded = fold(&run.tensors);
        let (detail, children) = match (alike, folded.as_slice()) {
            (Some(earlier), _) => (format!("as {}", label(earlier)), &[][..]),
            (None, [only]) => (only.line(), &[][..]),
            (None, several) => (counted(run.group.tensors, "tensor"), several),
        };
        let branch = if last { "└─" } else { "├─" };
        table.row([format!("{branch} {}", label(run)), detail, amount(run.count, run.group.bytes)]);
        let children = if options.modules { children } else { &[] };
        for (c, child) in children.iter().enumerate() {
            let trunk = if last { "   " } else { "│  " };
            let twig = if c + 1 == children.len() { "└─" } else { "├─" };
            table.row([
                format!("{trunk}{twig} {}", printable(&child.name)),
                child.type_and_shape(),
                amount(child.count, child.bytes),
            ]);
        }
    }
    table.render()
}

fn label(run: &Run) -> String {
    match run.kind {
        GroupKind::Layer(first) if run.count > 1 => {
            format!("layers {first}-{}", first + run.count - 1)
        }
        kind => kind.to_string(),
    }
}

fn amount(count: u64, each: u64) -> String {
    match count {
        1 => Bytes(each).to_string(),
        n => format!("{n} x {}", Bytes(each)),
    }
}

/// Tensors that differ in one number of their name only, such as experts.
struct Folded<'a> {
    name: String,
    dtype: &'a Dtype,
    shape: &'a Shape,
    count: u64,
    bytes: u64,
}

impl Folded<'_> {
    fn type_and_shape(&self) -> String {
        format!("{} {}", printable(self.dtype.as_str()), self.shape)
    }

    fn line(&self) -> String {
        format!("{}  {}", printable(&self.name), self.type_and_shape())
    }
}

/// Folds tensors over the first number in their names where dtype and shape agree.
fn fold<'a>(tensors: &[&'a TensorSummary]) -> Vec<Folded<'a>> {
    let mut order = Vec::new();
    let mut members: HashMap<_, Vec<(Option<u64>, &TensorSummary)>> = HashMap::new();
    for tensor in tensors {
        let (before, number, after) = split_at_number(&tensor.part);
        let key = (before, number.is_some(), after, &tensor.dtype, &tensor.shape);
        let known = members.entry(key).or_insert_with(|| {
            order.push(key);
            Vec::new()
        });
        known.push((number, tensor));
    }
    let folded = order.into_iter().filter_map(|key| {
        let (before, _, after, dtype, shape) = key;
        let found = members.get(&key)?;
        let first = found.first()?;
        let numbers: Vec<u64> = found.iter().filter_map(|(n, _)| *n).collect();
        let name = match numbers.as_slice() {
            [] | [_] => first.1.part.clone(),
            several => format!("{before}{{{}}}{after}", super::structure::ranges(several)),
        };
        Some(Folded { name, dtype, shape, count: found.len() as u64, bytes: first.1.bytes })
    });
    folded.collect()
}

/// `mlp.experts.7.up.weight` is `mlp.experts.`, 7 and `.up.weight`.
fn split_at_number(name: &str) -> (&str, Option<u64>, &str) {
    let mut at = 0;
    for piece in name.split('.') {
        if let Ok(number) = piece.parse() {
            return (&name[..at], Some(number), &name[at + piece.len()..]);
        }
        at += piece.len() + 1;
    }
    (name, None, "")
}

fn shards(shards: &[ShardSummary], options: TreeOptions) -> String {
    let total: u64 = shards.iter().map(|s| s.bytes).sum();
    if shards.len() > SHARDS_SHOWN && !options.all_shards {
        let sizes = || shards.iter().map(|s| s.bytes);
        return format!(
            "{} of {} to {}, {} together\n",
            counted(shards.len() as u64, "shard"),
            Bytes(sizes().min().unwrap_or_default()),
            Bytes(sizes().max().unwrap_or_default()),
            Bytes(total),
        );
    }
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right]);
    for shard in shards {
        table.row([
            printable(&shard.file),
            counted(shard.tensors, "tensor"),
            Bytes(shard.bytes).to_string(),
        ]);
    }
    table.render()
}

fn origin(inspection: &Inspection) -> String {
    let Some(record) = &inspection.provenance else {
        return String::new();
    };
    let parents: Vec<String> = record
        .parents
        .iter()
        .map(|(role, model)| format!("{} `{}`", printable(role), printable(model)))
        .collect();
    let mut text = format!(
        "\nmade by elo-surgery {} {} from {}\n",
        printable(&record.version),
        printable(&record.verb),
        parents.join(", "),
    );
    if let Some(map) = &record.layer_map {
        let layers = super::structure::ranges(&map.layers);
        let _ = writeln!(text, "holds layers {layers} of {}", map.of);
    }
    for note in &record.notes {
        let _ = writeln!(text, "note: {}", printable(note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{fixture::Fixture, inspect};

    fn tree(fixture: &Fixture) -> String {
        let mut inspection = inspect(&fixture.open());
        inspection.name = "tiny".to_owned();
        render_tree(&inspection, TreeOptions::default())
    }

    #[test]
    fn equal_layers_fold() {
        let text = tree(&Fixture::llama(4, |_, _| 0.5));
        let expected = "\
tiny
llama · 4 layers · 244 parameters · 976 B · F32
vocabulary 8 · untied head

├─ embedding                   model.embed_tokens.weight  F32 [8, 4]      128 B
├─ layers 1-4                  3 tensors                              4 x 176 B
│  ├─ input_layernorm.weight   F32 [4]                                     16 B
│  ├─ mlp.down_proj.weight     F32 [4, 6]                                  96 B
│  └─ self_attn.q_proj.weight  F32 [4, 4]                                  64 B
├─ final norm                  model.norm.weight  F32 [4]                  16 B
└─ head                        lm_head.weight  F32 [8, 4]                 128 B
";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn experts_fold_and_a_layout_is_listed_once() {
        let mut fixture = Fixture::new();
        for layer in 0..3 {
            let of = |part: &str| format!("model.layers.{layer}.{part}");
            fixture = fixture.f32(&of("norm.weight"), &[1], &[0.0]);
            for expert in 0..if layer == 1 { 0 } else { 12 } {
                let name = of(&format!("mlp.experts.{expert}.up.weight"));
                fixture = fixture.f32(&name, &[2], &[0.0, 0.0]);
            }
        }
        let text = tree(&fixture);
        assert!(text.contains("mlp.experts.{0-11}.up.weight"), "{text}");
        assert!(text.contains("12 x 8 B"), "{text}");
        assert!(text.contains("as layer 1"), "{text}");
        assert_eq!(text.matches("experts.{").count(), 1, "{text}");
    }

    #[test]
    fn hostile_names_cannot_drive_a_terminal() {
        let fixture = Fixture::new().f32("\u{1b}[2Jx", &[1], &[0.0]);
        let inspection = inspect(&fixture.open());
        for text in [render_tree(&inspection, TreeOptions::default()), render_tensors(&inspection)]
        {
            assert!(!text.contains('\u{1b}'), "{text}");
        }
    }
}
