//! Quantised values: each code minus its zero point, times the scale of its block, rounded once to f32.

use std::ops::Range;

use super::float::{Float, f8_table};
use super::made::Making;
use super::tile::{Sources, index, open};
use crate::error::{Error, Result};
use crate::format::{Coding, Dtype, MX_BLOCK, Tile};
use crate::plan::{Codes, Slice, SourceId};

/// Magnitudes of e2m1, the three low bits of a code; the fourth is the sign.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Writes values `elements` of an operand as f32.
pub(super) fn decode(
    sources: &Sources,
    slice: &Slice,
    codes: &Codes,
    elements: &Range<u64>,
    out: &mut [u8],
    making: &mut Making,
) -> Result<()> {
    let odd = || Error::Plan { problem: format!("codes of shape {}", codes.whole) };
    let [.., rows, columns] = *codes.whole.0.as_slice() else { return Err(odd()) };
    let all = codes.first + elements.start..codes.first + elements.end;
    if all.is_empty() {
        return Ok(());
    }
    if rows == 0 || columns == 0 {
        return Err(odd());
    }
    let Making { codes: own, scales, zeros, .. } = making;
    let grid = Grid { rows, columns, all };
    match codes.coding {
        Coding::Blocks { rows: high, columns: wide } => {
            let (lines, groups) = (grid.lines(high), columns.div_ceil(wide));
            let start = slice.bytes.start;
            let bytes = start + grid.all.start..start + grid.all.end;
            let own = open(sources, slice.source)?.tile(bytes, own)?;
            let scales = Scales::open(sources, lines_of(&codes.scales, groups, &lines), scales)?
                .of(&codes.scales.dtype);
            let zeros = match &codes.zeros {
                Some(slice) => {
                    let (source, bytes) = lines_of(slice, groups, &lines);
                    Some(open(sources, source)?.tile(bytes, zeros)?)
                }
                None => None,
            };
            let table = code_table(&slice.dtype);
            grid.each_row(|row, inside, at| {
                let line = index((grid.line(row, high) - lines.start) * groups);
                let mut code = at;
                let mut column = inside.start;
                while column < inside.end {
                    let group = column / wide;
                    let end = ((group + 1) * wide).min(inside.end);
                    let scale = scales.at(line + index(group));
                    let zero = zeros
                        .as_ref()
                        .map_or(0.0, |zeros| f32::from(zeros[line + index(group)].cast_signed()));
                    for _ in column..end {
                        let value = (table[usize::from(own[code])] - zero) * scale;
                        out[code * 4..code * 4 + 4].copy_from_slice(&bits(value));
                        code += 1;
                    }
                    column = end;
                }
            });
        }
        Coding::Packed { bits: width, columns: wide } => {
            let per_word = 32 / width.max(1);
            let (words, groups) = (columns.div_ceil(per_word), columns.div_ceil(wide));
            let lines = grid.lines(1);
            let (source, bytes) = lines_of(slice, words, &lines);
            let own = open(sources, source)?.tile(bytes, own)?;
            let scales = Scales::open(sources, lines_of(&codes.scales, groups, &lines), scales)?
                .of(&codes.scales.dtype);
            let zero_lines = grid.lines(per_word);
            let zeros = match &codes.zeros {
                Some(slice) => {
                    let (source, bytes) = lines_of(slice, groups, &zero_lines);
                    Some(open(sources, source)?.tile(bytes, zeros)?)
                }
                None => None,
            };
            let field = |bytes: &[u8], word: usize, place: u64| {
                let b = &bytes[word * 4..word * 4 + 4];
                let word = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let code = (word >> (place * width)) & ((1 << width) - 1);
                f32::from(u16::try_from(code).unwrap_or(0))
            };
            let middle = f32::from(1_u16 << (width - 1));
            grid.each_row(|row, inside, at| {
                let line = row - lines.start;
                let zero_line = grid.line(row, per_word) - zero_lines.start;
                for (column, place) in inside.zip(at..) {
                    let group = column / wide;
                    let zero = zeros.as_ref().map_or(middle, |zeros| {
                        let word = index(zero_line * groups + group);
                        field(zeros, word, row % rows % per_word)
                    });
                    let word = index(line * words + column / per_word);
                    let code = field(&own, word, column % per_word);
                    let value = (code - zero) * scales.at(index(line * groups + group));
                    out[place * 4..place * 4 + 4].copy_from_slice(&bits(value));
                }
            });
        }
        Coding::Mxfp4 => decode_mxfp4(sources, slice, codes, &grid, out, [own, scales])?,
    }
    Ok(())
}

/// Values whose codes lie column by column.
fn decode_mxfp4(
    sources: &Sources,
    slice: &Slice,
    codes: &Codes,
    grid: &Grid,
    out: &mut [u8],
    scratch: [&mut Vec<u8>; 2],
) -> Result<()> {
    let (rows, columns) = (grid.rows, grid.columns);
    let [for_codes, for_scales] = scratch;
    let blocks = rows / MX_BLOCK;
    let matrices = grid.all.start / (rows * columns)..(grid.all.end - 1) / (rows * columns) + 1;
    let lines = matrices.start * columns..matrices.end * columns;
    let (source, bytes) = lines_of(slice, blocks * (MX_BLOCK / 2), &lines);
    let own = open(sources, source)?.tile(bytes, for_codes)?;
    let (source, bytes) = lines_of(&codes.scales, blocks, &lines);
    let scales = open(sources, source)?.tile(bytes, for_scales)?;
    for matrix in matrices.clone() {
        let first = matrix * rows * columns;
        let from = grid.all.start.max(first) - first;
        let to = grid.all.end.min(first + rows * columns) - first;
        // Codes of a column lie together.
        for column in 0..columns {
            let top = from.saturating_sub(column).div_ceil(columns);
            let mut row = top;
            let line = (matrix - matrices.start) * columns + column;
            while row < rows && row * columns + column < to {
                let block = index(line * blocks + row / MX_BLOCK);
                let byte = own[block * 16 + index(row % MX_BLOCK / 2)];
                let code = if row % 2 == 0 { byte & 15 } else { byte >> 4 };
                let magnitude = E2M1[usize::from(code & 7)];
                let value = if code & 8 == 0 { magnitude } else { -magnitude };
                let value = value * power(scales[block]);
                let place = index(first + row * columns + column - grid.all.start);
                out[place * 4..place * 4 + 4].copy_from_slice(&bits(value));
                row += 1;
            }
        }
    }
    Ok(())
}

/// Where lines of so many elements lie.
fn lines_of(slice: &Slice, elements: u64, lines: &Range<u64>) -> (SourceId, Range<u64>) {
    let line = elements * slice.dtype.bytes().unwrap_or(1);
    let start = slice.bytes.start;
    (slice.source, start + lines.start * line..start + lines.end * line)
}

/// The values asked for, in the whole tensor: rows of all matrices are numbered through.
struct Grid {
    rows: u64,
    columns: u64,
    all: Range<u64>,
}

impl Grid {
    /// The line of scales of a row, where one serves `high` rows of a matrix.
    fn line(&self, row: u64, high: u64) -> u64 {
        row / self.rows * self.rows.div_ceil(high) + row % self.rows / high
    }

    /// The lines of all rows that are asked for.
    fn lines(&self, high: u64) -> Range<u64> {
        let (first, last) = (self.all.start / self.columns, (self.all.end - 1) / self.columns);
        self.line(first, high)..self.line(last, high) + 1
    }

    /// Every row with the columns asked for, and the number of the first among the values.
    fn each_row(&self, mut each: impl FnMut(u64, Range<u64>, usize)) {
        for row in self.all.start / self.columns..=(self.all.end - 1) / self.columns {
            let first = row * self.columns;
            let start = self.all.start.max(first);
            let end = self.all.end.min(first + self.columns);
            each(row, start - first..end - first, index(start - self.all.start));
        }
    }
}

/// Scales in memory.
struct Scales<'a>(Tile<'a>);

/// Scales of a known dtype; `None` is a power of two, `F8_E8M0`.
struct Typed<'a>(Tile<'a>, Option<Float>);

impl<'a> Scales<'a> {
    fn open(
        sources: &'a Sources,
        (source, bytes): (SourceId, Range<u64>),
        scratch: &'a mut Vec<u8>,
    ) -> Result<Self> {
        Ok(Self(open(sources, source)?.tile(bytes, scratch)?))
    }

    fn of(self, dtype: &Dtype) -> Typed<'a> {
        Typed(self.0, Float::of(dtype))
    }
}

impl Typed<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "no scale is wider than f32")]
    fn at(&self, i: usize) -> f32 {
        match self.1 {
            Some(float) => float.read(&self.0[i * float.size()..][..float.size()]) as f32,
            None => power(self.0[i]),
        }
    }
}

/// What each byte is worth as a code.
fn code_table(dtype: &Dtype) -> [f32; 256] {
    let mut table = [0.0; 256];
    match Float::of(dtype) {
        Some(float) => table = f8_table(float),
        None => {
            for (value, byte) in table.iter_mut().zip(0_u8..=255) {
                *value = f32::from(byte.cast_signed());
            }
        }
    }
    table
}

/// `2^(exponent - 127)`; 255 is NaN.
const fn power(exponent: u8) -> f32 {
    match exponent {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits((exponent as u32) << 23),
    }
}

/// NaNs are canonical.
fn bits(value: f32) -> [u8; 4] {
    if value.is_nan() { 0x7fc0_0000_u32.to_le_bytes() } else { value.to_le_bytes() }
}
