//! Rotary position embedding (Su et al. 2021) in the half-split form of transformers, and the change of layout between
//! `[token][head][head_dim]` (what linear maps give) and `[span][head][token][head_dim]` (what attention reads).

#![allow(clippy::cast_possible_truncation, reason = "angles are f32 by definition")]

use std::ops::Range;

use rayon::prelude::*;

use super::design::Design;
use crate::trainer::math::{ROW_BLOCK, wide};

/// Cosines and sines, `[position][head_dim / 2]` each.
#[derive(Clone, Debug, Default)]
pub(super) struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

/// Which way to turn: forward, or back for gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Forward,
    Back,
}

impl Rope {
    /// Tables for `positions` positions. As in transformers the angle is the f32 product of position and frequency.
    pub(super) fn new(design: &Design, positions: usize) -> Self {
        let frequencies = design.frequencies();
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles
            .map(|a| (f64::from(a).sin() as f32, f64::from(a).cos() as f32))
            .collect::<(Vec<f32>, Vec<f32>)>();
        Self { cos, sin, half: frequencies.len() }
    }

    /// Turns one head's vector at a position, from `src` into `dst`.
    #[inline(always)]
    fn turn(&self, position: usize, turn: Turn, src: &[f32], dst: &mut [f32]) {
        let table = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[table.clone()], &self.sin[table]);
        let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
        let (a, b) = src.split_at(self.half);
        let (x, y) = dst.split_at_mut(self.half);
        for i in 0..self.half {
            let s = sin[i] * sign;
            x[i] = a[i] * cos[i] - b[i] * s;
            y[i] = b[i] * cos[i] + a[i] * s;
        }
    }
}

/// The two layouts of a batch's heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads<'a> {
    pub(super) spans: &'a [Range<usize>],
    pub(super) heads: usize,
    pub(super) dim: usize,
}

impl Heads<'_> {
    /// Elements of one token.
    fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// From tokens first to heads first, turning on the way if `rope` is given.
    pub(super) fn gather(&self, src: &[f32], rope: Option<&Rope>, dst: &mut [f32]) {
        let (width, dim) = (self.width(), self.dim);
        let tasks: Vec<_> = self.split(dst, dim).collect();
        tasks.into_par_iter().for_each(|(span, head, dst)| {
            wide(
                #[inline(always)]
                || {
                    for (i, dst) in dst.chunks_mut(dim).enumerate() {
                        let from = (self.spans[span].start + i) * width + head * dim;
                        let src = &src[from..from + dim];
                        match rope {
                            Some(rope) => rope.turn(i, Turn::Forward, src, dst),
                            None => dst.copy_from_slice(src),
                        }
                    }
                },
            );
        });
    }

    /// From heads first to tokens first, turning back on the way if `rope` is given.
    pub(super) fn scatter(&self, src: &[f32], rope: Option<&Rope>, dst: &mut [f32]) {
        let (width, dim) = (self.width(), self.dim);
        let tasks: Vec<_> = self.rows(dst).collect();
        tasks.into_par_iter().for_each(|(span, first, dst)| {
            wide(
                #[inline(always)]
                || {
                    let (start, len) = (self.spans[span].start, self.spans[span].len());
                    for (i, row) in dst.chunks_mut(width).enumerate() {
                        for (head, dst) in row.chunks_mut(dim).enumerate() {
                            let from = start * width + (head * len + first + i) * dim;
                            let src = &src[from..from + dim];
                            match rope {
                                Some(rope) => rope.turn(first + i, Turn::Back, src, dst),
                                None => dst.copy_from_slice(src),
                            }
                        }
                    }
                },
            );
        });
    }

    /// A heads-first buffer with `per_token` elements a token and head, cut into its (span, head) parts.
    pub(super) fn split<'b, T>(
        &self,
        buffer: &'b mut [T],
        per_token: usize,
    ) -> impl Iterator<Item = (usize, usize, &'b mut [T])> {
        let heads = self.heads;
        let mut rest = buffer;
        self.spans.iter().enumerate().flat_map(move |(span, range)| {
            let size = range.len() * per_token;
            let mut parts = Vec::with_capacity(heads);
            for head in 0..heads {
                let (part, after) = std::mem::take(&mut rest).split_at_mut(size);
                rest = after;
                parts.push((span, head, part));
            }
            parts
        })
    }

    /// A tokens-first buffer cut into blocks of rows that lie in one span: span, first token in it, rows.
    fn rows<'b>(
        &self,
        buffer: &'b mut [f32],
    ) -> impl Iterator<Item = (usize, usize, &'b mut [f32])> {
        let width = self.width();
        let mut rest = buffer;
        self.spans.iter().enumerate().flat_map(move |(span, range)| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(range.len() * width);
            rest = after;
            let blocks = part.chunks_mut(ROW_BLOCK * width).enumerate();
            blocks.map(move |(i, block)| (span, i * ROW_BLOCK, block))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::numbers;
    use super::*;

    #[test]
    fn scatter_undoes_gather_and_turning() {
        let design = Design { head_dim: 6, ..Design::sample() };
        let rope = Rope::new(&design, 40);
        let spans = [0..1, 1..36, 36..40];
        let heads = Heads { spans: &spans, heads: 3, dim: 6 };
        let x = numbers(40 * 18, 1);
        let (mut mid, mut back) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        heads.gather(&x, None, &mut mid);
        // Token 2 of span 1, head 2.
        assert_eq!(mid[18 + (2 * 35 + 2) * 6..][..6], x[(1 + 2) * 18 + 2 * 6..][..6]);
        heads.scatter(&mid, None, &mut back);
        assert_eq!(x, back);
        heads.gather(&x, Some(&rope), &mut mid);
        heads.scatter(&mid, Some(&rope), &mut back);
        assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn positions_restart_in_each_span() {
        let design = Design { head_dim: 4, ..Design::sample() };
        let rope = Rope::new(&design, 8);
        let x = numbers(6 * 4, 1);
        let whole = |spans: &[Range<usize>], x: &[f32]| {
            let mut y = vec![0.0; x.len()];
            Heads { spans, heads: 1, dim: 4 }.gather(x, Some(&rope), &mut y);
            y
        };
        let packed = whole(&[0..2, 2..6], &x);
        assert_eq!(packed[..8], whole(&[0..2], &x[..8]));
        assert_eq!(packed[8..], whole(&[0..4], &x[8..]));
    }
}
