//! Operands that are the mean of several tensors by the importance of each element ([`plan::Mean`](crate::plan::Mean)).

use std::ops::Range;

use super::float::Float;
use super::made::{float, read};
use super::tile::{Sources, index, open};
use crate::error::{Error, Result};
use crate::plan::{Mean, Operand, Slice};

/// Elements that are worked on at once, so that buffers stay in the cache and grow with nothing.
const BLOCK: u64 = 1 << 11;

/// Writes elements of an operand that is a mean to `out`, as its dtype. Sources are checked by the caller.
pub(super) fn mean(
    sources: &Sources,
    operand: &Operand,
    mean: &Mean,
    elements: &Range<u64>,
    out: &mut [u8],
) -> Result<()> {
    let problem = || Error::Plan { problem: format!("a mean as {}", operand.dtype()) };
    let to = Float::of(operand.dtype()).ok_or_else(problem)?;
    let all: f64 = mean.weights.iter().sum();
    let mut block = Block::default();
    let mut start = elements.start;
    while start < elements.end {
        let part = start..(start + BLOCK).min(elements.end);
        block.clear(index(part.end - part.start));
        let values = std::iter::once(&operand.slice).chain(&mean.further);
        for ((weight, slice), importance) in mean.weights.iter().zip(values).zip(&mean.importances)
        {
            block.add(sources, *weight, slice, importance, &part)?;
        }
        let at = index(part.start - elements.start) * to.size();
        block.write(all, to, &mut out[at..]);
        start = part.end;
    }
    Ok(())
}

/// Sums of a run of elements.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    values: Vec<f64>,
    importances: Vec<f64>,
    /// `sum(weight * importance * x)`.
    sums: Vec<f64>,
    /// `sum(weight * importance)`.
    shares: Vec<f64>,
    /// `sum(weight * x)`, for where there are no shares.
    plain: Vec<f64>,
}

impl Block {
    fn clear(&mut self, count: usize) {
        for buffer in [&mut self.values, &mut self.importances] {
            buffer.resize(count, 0.0);
        }
        for sums in [&mut self.sums, &mut self.shares, &mut self.plain] {
            sums.clear();
            // Nothing is changed by adding to it, a negative zero neither.
            sums.resize(count, -0.0);
        }
    }

    fn add(
        &mut self,
        sources: &Sources,
        weight: f64,
        slice: &Slice,
        importance: &Slice,
        part: &Range<u64>,
    ) -> Result<()> {
        load(sources, slice, part, &mut self.bytes, &mut self.values)?;
        load(sources, importance, part, &mut self.bytes, &mut self.importances)?;
        let numbers = self.values.iter().zip(&self.importances);
        let sums = self.sums.iter_mut().zip(&mut self.shares).zip(&mut self.plain);
        let mut good = true;
        for ((value, importance), ((sum, share), plain)) in numbers.zip(sums) {
            let own = weight * importance;
            good &= *importance >= 0.0 && own < f64::INFINITY;
            *share += own;
            *sum += own * value;
            *plain += weight * value;
        }
        if good {
            return Ok(());
        }
        let bad = |importance: &f64| !(*importance >= 0.0 && weight * importance < f64::INFINITY);
        let at = self.importances.iter().position(bad).unwrap_or(0);
        Err(Error::Importance {
            tensor: String::new(),
            file: open(sources, importance.source)?.path().to_owned(),
            element: part.start + at as u64,
            value: self.importances[at],
        })
    }

    fn write(&self, all: f64, to: Float, out: &mut [u8]) {
        let sums = self.sums.iter().zip(&self.shares).zip(&self.plain);
        for (((sum, share), plain), out) in sums.zip(out.chunks_exact_mut(to.size())) {
            let value = if *share == 0.0 { plain / all } else { sum / share };
            to.write(value, out);
        }
    }
}

/// Elements of a slice, widened exactly.
fn load(
    sources: &Sources,
    slice: &Slice,
    part: &Range<u64>,
    bytes: &mut Vec<u8>,
    values: &mut [f64],
) -> Result<()> {
    let float = float(slice)?;
    let width = float.size() as u64;
    bytes.resize(values.len() * float.size(), 0);
    let at = slice.bytes.start + part.start * width;
    open(sources, slice.source)?.read_exact_at(bytes, at)?;
    read(float, bytes, values);
    Ok(())
}
