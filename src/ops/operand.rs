//! Finding the counterpart of a tensor in another checkpoint, and cutting operands so that they line up.

use crate::checkpoint::{Checkpoint, Role, Stretch, locate};
use crate::format::Shape;
use crate::plan::Operand;

/// Where the tensor that `name` is in `model` can be found in `other`: under the same name, in the other expert layout,
/// or at the same place of an architecture with other prefixes (a text model against a vision-language one).
pub(super) fn counterpart<'a>(
    model: &Checkpoint,
    name: &str,
    other: &'a Checkpoint,
) -> Option<(Shape, Vec<Stretch<'a>>)> {
    locate(other, name).or_else(|| {
        let twin = match model.anatomy().role(name) {
            Role::Layer(layer) => {
                let (_, suffix) = model.anatomy().layer_suffix(name)?;
                format!("{}{layer}.{suffix}", other.anatomy().layer_prefix)
            }
            role @ (Role::Embedding | Role::FinalNorm | Role::Head | Role::PositionEmbedding) => {
                let kind = last_component(name);
                let candidates = other.names_with_role(role);
                (*candidates.iter().find(|n| last_component(n) == kind)?).to_owned()
            }
            Role::MultiToken | Role::Other => return None,
        };
        locate(other, &twin)
    })
}

/// Like [`counterpart`], but a head that `other` does not store is its embedding, as tied models compute it.
pub(super) fn effective<'a>(
    model: &Checkpoint,
    name: &str,
    other: &'a Checkpoint,
) -> Option<(Shape, Vec<Stretch<'a>>)> {
    counterpart(model, name, other).or_else(|| {
        if model.anatomy().role(name) != Role::Head || !other.is_tied() {
            return None;
        }
        let embedding = *other.names_with_role(Role::Embedding).first()?;
        locate(other, embedding)
    })
}

/// `weight` or `bias`.
fn last_component(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Rows `from..to` of values; of dtypes of whole bytes only.
pub(super) fn rows_of(operand: &Operand, from: u64, to: u64) -> Operand {
    operand.rows(from, to).unwrap_or_else(|| operand.clone())
}

/// Cuts several tilings of the same elements at each other's seams, so that the n-th pieces of all line up.
/// `None` if they do not have the same number of elements.
pub(super) fn line_up(operands: &[Vec<Operand>]) -> Option<Vec<Vec<Operand>>> {
    if operands.iter().all(|pieces| pieces.len() == 1) {
        let whole: Vec<Operand> = operands.iter().map(|pieces| pieces[0].clone()).collect();
        let count = whole.first()?.elements();
        return whole.iter().all(|o| o.elements() == count).then(|| vec![whole]);
    }
    let mut seams = Vec::new();
    let mut totals = Vec::new();
    for pieces in operands {
        let mut at = 0_u64;
        for piece in pieces {
            at = at.checked_add(piece.elements()?)?;
            seams.push(at);
        }
        totals.push(at);
    }
    if totals.iter().any(|total| *total != totals[0]) {
        return None;
    }
    seams.sort_unstable();
    seams.dedup();
    let mut groups = Vec::new();
    let mut from = 0;
    for to in seams.into_iter().filter(|seam| *seam > 0) {
        let group: Option<Vec<_>> = operands.iter().map(|o| elements_of(o, from, to)).collect();
        groups.push(group?);
        from = to;
    }
    Some(groups)
}

/// Elements `from..to` of a tiling, which must lie within one of its pieces.
fn elements_of(pieces: &[Operand], from: u64, to: u64) -> Option<Operand> {
    let mut start = 0;
    for piece in pieces {
        let end = start + piece.elements()?;
        if (start..end).contains(&from) && to <= end {
            let whole = from == start && to == end;
            return if whole { Some(piece.clone()) } else { piece.cut(from - start, to - start) };
        }
        start = end;
    }
    None
}

/// Buffers that older exports store and that models compute anew.
pub(super) fn is_buffer(name: &str) -> bool {
    [
        ".rotary_emb.inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}
