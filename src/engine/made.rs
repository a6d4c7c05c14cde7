//! Operands whose values are made on the host: codes times scales, low-rank products on top. Devices see f32.
//!
//! [`plan::Operand`](crate::plan::Operand) says what is computed. The bits depend on nothing but the sources.

use std::ops::Range;

use super::codes::decode;
use super::float::{Float, bf16_to_f32, f8_table, f16_to_f32};
use super::gather::gather;
use super::mean::mean;
use super::simd::add_product;
use super::tile::{Sources, index, open};
use crate::error::{Error, Result};
use crate::format::Tile;
use crate::plan::{LowRank, Operand, Slice};

/// f64 numbers of the right factors that are held at once, so that they stay in the cache.
const HELD: usize = 1 << 17;
/// Columns that are worked on at once.
const FEWEST: usize = 16;
const MOST: usize = 1024;

/// Buffers of one operand, reused from tile to tile.
#[derive(Default)]
pub(super) struct Making {
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<u8>,
    pub(super) zeros: Vec<u8>,
    factors: Vec<[Vec<u8>; 2]>,
    left: Vec<f64>,
    right: Vec<f64>,
    values: Vec<f64>,
    sums: Vec<f64>,
}

/// Writes elements of an operand that is not plain to `out`, as its [`dtype`](Operand::dtype).
pub(super) fn make(
    sources: &Sources,
    operand: &Operand,
    elements: &Range<u64>,
    out: &mut [u8],
    making: &mut Making,
) -> Result<()> {
    if let Some(rows) = &operand.gather {
        return gather(sources, operand, rows, elements, out);
    }
    if let Some(of) = &operand.mean {
        return mean(sources, operand, of, elements, out);
    }
    let wide = operand.slice.dtype == *operand.dtype();
    if let Some(codes) = &operand.codes {
        decode(sources, &operand.slice, codes, elements, out, making)?;
    } else {
        let slice = &operand.slice;
        let width = slice.dtype.bytes().unwrap_or(1);
        let start = slice.bytes.start;
        let bytes = start + elements.start * width..start + elements.end * width;
        let tile = open(sources, slice.source)?.tile(bytes, &mut making.codes)?;
        if wide {
            out.copy_from_slice(&tile);
        } else {
            widen(float(slice)?, &tile, out);
        }
    }
    if operand.adapters.is_empty() {
        return Ok(());
    }
    let to = if operand.slice.dtype == crate::format::Dtype::F64 { Float::F64 } else { Float::F32 };
    add_all(sources, &operand.adapters, elements, to, out, making)
}

/// Adds low-rank products, which are all of one size.
fn add_all(
    sources: &Sources,
    adapters: &[LowRank],
    elements: &Range<u64>,
    to: Float,
    out: &mut [u8],
    making: &mut Making,
) -> Result<()> {
    let odd = || Error::Plan { problem: "low-rank factors that do not fit together".into() };
    let Making { factors, left, right, values, sums, .. } = making;
    factors.resize_with(factors.len().max(adapters.len()), Default::default);
    let first = adapters.first().ok_or_else(odd)?;
    let (_, _, columns) = first.sides().filter(|(_, _, columns)| *columns > 0).ok_or_else(odd)?;
    let all = first.first + elements.start..first.first + elements.end;
    if all.is_empty() {
        return Ok(());
    }
    let rows = all.start / columns..(all.end - 1) / columns + 1;
    let mut pairs = Vec::with_capacity(adapters.len());
    let mut ranks = 0;
    for (adapter, [down, up]) in adapters.iter().zip(factors.iter_mut()) {
        let (rank, ..) = adapter.sides().ok_or_else(odd)?;
        pairs.push(Factors::open(sources, adapter, &rows, rank, down, up)?);
        ranks += index(rank);
    }
    let block = (HELD / ranks.max(1)).clamp(FEWEST, MOST) as u64;
    // Within one row only some columns are asked for.
    let inside = if rows.end - rows.start == 1 {
        all.start % columns..(all.end - 1) % columns + 1
    } else {
        0..columns
    };
    let mut from = inside.start;
    while from < inside.end {
        let part = from..(from + block).min(inside.end);
        from = part.end;
        let width = index(part.end - part.start);
        right.clear();
        for pair in &pairs {
            pair.right(&part, right);
        }
        for row in rows.clone() {
            // Where the first and the last row are cut.
            let start = (row * columns + part.start).max(all.start);
            let end = (row * columns + part.end).min(all.end);
            if start >= end {
                continue;
            }
            let skip = index(start - row * columns - part.start);
            let bytes = index(start - all.start) * to.size()..index(end - all.start) * to.size();
            // Whole blocks, so that every row of `right` has the same length; what is cut is left alone.
            values.clear();
            values.resize(width, 0.0);
            let out = &mut out[bytes];
            let count = out.len() / to.size();
            read(to, out, &mut values[skip..skip + count]);
            let mut at = 0;
            for pair in &pairs {
                left.clear();
                pair.left(row, left);
                let taken = left.len() * width;
                add_product(values, sums, pair.scale, left, &right[at..at + taken]);
                at += taken;
            }
            write(to, &values[skip..], out);
        }
    }
    Ok(())
}

/// The factors of a product: element `(i, j)` is `scale * sum(left(i, k) * right(k, j))`.
struct Factors<'a> {
    left: Factor<'a>,
    right: Factor<'a>,
    scale: f64,
    rank: usize,
}

/// A factor in memory.
struct Factor<'a> {
    bytes: Tile<'a>,
    float: Float,
    /// Elements of a stored row.
    stride: usize,
    /// Whether a stored row is one `k`.
    by_rank: bool,
    /// The first row in memory.
    first: u64,
}

impl<'a> Factors<'a> {
    fn open(
        sources: &'a Sources,
        adapter: &LowRank,
        rows: &Range<u64>,
        rank: u64,
        down: &'a mut Vec<u8>,
        up: &'a mut Vec<u8>,
    ) -> Result<Self> {
        let whole = |slice: &Slice| 0..slice.shape.rows();
        let wanted = if adapter.transposed { whole(&adapter.up) } else { rows.clone() };
        let down = Factor::open(sources, &adapter.down, &whole(&adapter.down), true, down)?;
        let up = Factor::open(sources, &adapter.up, &wanted, false, up)?;
        let (left, right) = if adapter.transposed { (down, up) } else { (up, down) };
        Ok(Self { left, right, scale: adapter.scale, rank: index(rank) })
    }

    /// The numbers that a row is the sum of products with.
    fn left(&self, row: u64, out: &mut Vec<f64>) {
        self.left.append(row, 0..self.rank, out);
    }

    /// A block of columns, one `k` after the other.
    fn right(&self, columns: &Range<u64>, out: &mut Vec<f64>) {
        let Factor { by_rank, .. } = self.right;
        for k in 0..self.rank {
            if by_rank {
                let from = k * self.right.stride;
                self.right.run(from + index(columns.start)..from + index(columns.end), out);
            } else {
                for column in columns.clone() {
                    out.push(self.right.at(index(column) * self.right.stride + k));
                }
            }
        }
    }
}

impl<'a> Factor<'a> {
    fn open(
        sources: &'a Sources,
        slice: &Slice,
        rows: &Range<u64>,
        by_rank: bool,
        scratch: &'a mut Vec<u8>,
    ) -> Result<Self> {
        let float = float(slice)?;
        let stride = slice.shape.0.get(1).copied().unwrap_or(1);
        let (start, row) = (slice.bytes.start, stride * float.size() as u64);
        let bytes = start + rows.start * row..start + rows.end * row;
        let bytes = open(sources, slice.source)?.tile(bytes, scratch)?;
        Ok(Self { bytes, float, stride: index(stride), by_rank, first: rows.start })
    }

    /// The numbers of rank `ks` in row or column `i`.
    fn append(&self, i: u64, ks: Range<usize>, out: &mut Vec<f64>) {
        if self.by_rank {
            out.extend(ks.map(|k| self.at(k * self.stride + index(i))));
        } else {
            let from = index(i - self.first) * self.stride;
            self.run(from + ks.start..from + ks.end, out);
        }
    }

    fn at(&self, element: usize) -> f64 {
        let size = self.float.size();
        self.float.read(&self.bytes[element * size..][..size])
    }

    fn run(&self, elements: Range<usize>, out: &mut Vec<f64>) {
        let size = self.float.size();
        let start = out.len();
        out.resize(start + elements.len(), 0.0);
        read(
            self.float,
            &self.bytes[elements.start * size..elements.end * size],
            &mut out[start..],
        );
    }
}

pub(super) fn float(slice: &Slice) -> Result<Float> {
    let problem = || Error::Plan { problem: format!("{} cannot be computed on", slice.dtype) };
    Float::of(&slice.dtype).ok_or_else(problem)
}

/// Elements as f64, exactly.
pub(super) fn read(float: Float, bytes: &[u8], out: &mut [f64]) {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match float {
        Float::BF16 => {
            pairs().zip(out).for_each(|(bits, value)| *value = f64::from(bf16_to_f32(bits)));
        }
        Float::F16 => {
            pairs().zip(out).for_each(|(bits, value)| *value = f64::from(f16_to_f32(bits)));
        }
        Float::F32 => {
            for (b, value) in bytes.chunks_exact(4).zip(out) {
                *value = f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            }
        }
        _ => {
            for (b, value) in bytes.chunks_exact(float.size()).zip(out) {
                *value = float.read(b);
            }
        }
    }
}

/// Numbers as elements, rounded once.
fn write(float: Float, values: &[f64], out: &mut [u8]) {
    let pairs = values.iter().zip(out.chunks_exact_mut(float.size()));
    if float == Float::F32 {
        for (value, bytes) in pairs {
            #[expect(clippy::cast_possible_truncation, reason = "the rounding that is meant")]
            let value = *value as f32;
            let bits = if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() };
            bytes.copy_from_slice(&bits.to_le_bytes());
        }
    } else {
        pairs.for_each(|(value, bytes)| float.write(*value, bytes));
    }
}

/// Elements as f32, exactly.
fn widen(float: Float, bytes: &[u8], out: &mut [u8]) {
    let out = out.chunks_exact_mut(4);
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match float {
        Float::BF16 => pairs()
            .zip(out)
            .for_each(|(bits, out)| out.copy_from_slice(&bf16_to_f32(bits).to_le_bytes())),
        Float::F16 => pairs()
            .zip(out)
            .for_each(|(bits, out)| out.copy_from_slice(&f16_to_f32(bits).to_le_bytes())),
        Float::F32 => bytes.chunks_exact(4).zip(out).for_each(|(b, out)| out.copy_from_slice(b)),
        Float::F64 => {}
        _ => {
            let table = f8_table(float);
            for (b, out) in bytes.iter().zip(out) {
                out.copy_from_slice(&table[usize::from(*b)].to_le_bytes());
            }
        }
    }
}
