//! Operands put together row by row: read where they lie, summed where the plan says so.

use std::ops::Range;

use super::float::Float;
use super::tile::{Sources, index, open};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::plan::{Gather, Operand, Rows, Slice};

/// Writes elements of an operand whose rows are gathered to `out`, as its dtype. Sources are checked by the caller.
pub(super) fn gather(
    sources: &Sources,
    operand: &Operand,
    rows: &Gather,
    elements: &Range<u64>,
    out: &mut [u8],
) -> Result<()> {
    let dtype = operand.dtype();
    let float = float_of(dtype)?;
    let columns = rows.columns();
    let into = |part: &Range<u64>| {
        let at = |element: u64| index(element - elements.start) * float.size();
        at(part.start)..at(part.end)
    };
    let mut bytes = Vec::new();
    // From the first run on, once a call: that is little beside reading a tile.
    let mut start = 0;
    for run in &rows.runs {
        let end = start + run.count() * columns;
        let part = start.max(elements.start)..end.min(elements.end);
        if part.start < part.end {
            let out = &mut out[into(&part)];
            let within = part.start - start..part.end - start;
            match run {
                Rows::Zero(_) => out.fill(0),
                Rows::Constant(which, _) => {
                    let problem =
                        || Error::Plan { problem: format!("there is no constant {which}") };
                    let values = rows.constants.get(*which as usize).ok_or_else(problem)?;
                    for (to, at) in out.chunks_exact_mut(float.size()).zip(within) {
                        float.write(f64::from(values[index(at % columns)]), to);
                    }
                }
                Rows::Take(matrix, first, _) => {
                    let slice = matrix_of(operand, rows, *matrix)?;
                    let from = first * columns;
                    let wanted = from + within.start..from + within.end;
                    take(sources, slice, wanted, dtype, out, &mut bytes)?;
                }
                Rows::Mix(of) => {
                    let mut sums = vec![0.0; index(within.end - within.start)];
                    for (matrix, row, weight) in of {
                        let slice = matrix_of(operand, rows, *matrix)?;
                        let from = row * columns;
                        let wanted = from + within.start..from + within.end;
                        let values = values(sources, slice, wanted, &mut bytes)?;
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum += weight * value;
                        }
                    }
                    for (to, sum) in out.chunks_exact_mut(float.size()).zip(sums) {
                        float.write(sum, to);
                    }
                }
            }
        }
        if end >= elements.end {
            break;
        }
        start = end;
    }
    Ok(())
}

/// Elements of a matrix in another dtype, or as they are.
fn take(
    sources: &Sources,
    slice: &Slice,
    wanted: Range<u64>,
    dtype: &Dtype,
    out: &mut [u8],
    bytes: &mut Vec<u8>,
) -> Result<()> {
    if slice.dtype == *dtype {
        let width = float_of(&slice.dtype)?.size() as u64;
        let at = slice.bytes.start + wanted.start * width;
        return open(sources, slice.source)?.read_exact_at(out, at);
    }
    let float = float_of(dtype)?;
    let values = values(sources, slice, wanted, bytes)?;
    for (to, value) in out.chunks_exact_mut(float.size()).zip(values) {
        float.write(value, to);
    }
    Ok(())
}

/// Elements of a matrix, widened exactly.
fn values<'b>(
    sources: &Sources,
    slice: &Slice,
    wanted: Range<u64>,
    bytes: &'b mut Vec<u8>,
) -> Result<impl Iterator<Item = f64> + use<'b>> {
    let float = float_of(&slice.dtype)?;
    bytes.resize(index(wanted.end - wanted.start) * float.size(), 0);
    let at = slice.bytes.start + wanted.start * float.size() as u64;
    open(sources, slice.source)?.read_exact_at(bytes, at)?;
    Ok(bytes.chunks_exact(float.size()).map(move |bytes| float.read(bytes)))
}

fn float_of(dtype: &Dtype) -> Result<Float> {
    let problem = || Error::Plan { problem: format!("rows of {dtype} cannot be put together") };
    Float::of(dtype).ok_or_else(problem)
}

fn matrix_of<'a>(operand: &'a Operand, rows: &'a Gather, matrix: u32) -> Result<&'a Slice> {
    let problem = || Error::Plan { problem: format!("there is no matrix {matrix}") };
    rows.matrix(&operand.slice, matrix).ok_or_else(problem)
}
