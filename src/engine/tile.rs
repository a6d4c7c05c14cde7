//! Filling one tile of an output file: copied, constant and computed bytes, whatever falls into it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::auto::Pick;
use super::device::{BlendTile, Device, Health, HostMemory, Operand};
use super::extents::{Extents, What};
use super::observer::Observer;
use super::solve::Sweeps;
use crate::error::{Error, Result};
use crate::format::{SourceFile, Tile};
use crate::plan::{Blend, Output, Part, Slice, SourceId};

/// The sources that are open for a shard.
pub(super) type Sources = HashMap<SourceId, Arc<SourceFile>>;

/// Buffers of one worker, reused from tile to tile.
#[derive(Default)]
pub(super) struct Scratch {
    out: Held,
    copied: Vec<u8>,
    edge: Vec<u8>,
    pub(super) operands: Vec<Operands>,
    /// Whether `out` is a device's own memory.
    own: bool,
}

impl Scratch {
    /// Lets go of memory of another kind than this device's.
    pub(super) fn suit(&mut self, device: &dyn Device) {
        if self.own != device.wants_own_memory() {
            *self = Self { own: !self.own, ..Self::default() };
        }
    }
}

/// Where an operand is read into: the device's memory, or, where it is not mapped, plain memory.
#[derive(Default)]
pub(super) struct Operands {
    own: Held,
    plain: Vec<u8>,
}

/// Memory of the device's kind, replaced when it is too small.
#[derive(Default)]
struct Held(Option<HostMemory>);

impl Held {
    /// At once for a whole tile, and the elements that reach over its ends: memory of devices is slow to come by.
    fn bytes(&mut self, device: &dyn Device, len: usize, tile: usize) -> Result<&mut [u8]> {
        let memory = match self.0.take().filter(|memory| memory.len() >= len) {
            Some(memory) => memory,
            None => device.memory(len.max(tile + 64))?,
        };
        Ok(&mut self.0.insert(memory)[..len])
    }
}

/// What a tile's elements looked like, by tensor of the plan.
pub(super) type Healths = Vec<(usize, Health)>;

/// Makes tiles of one shard.
pub(super) struct Filler<'a> {
    pub(super) extents: &'a Extents<'a>,
    pub(super) sources: &'a Sources,
    pub(super) device: &'a dyn Device,
    pub(super) observer: &'a dyn Observer,
    /// The weights that are found before a tile is filled.
    pub(super) sweeps: &'a Sweeps,
    pub(super) allow_nonfinite: bool,
    /// Most bytes that are filled at once.
    pub(super) tile: usize,
}

impl Filler<'_> {
    /// Hands the bytes of `range` of the output file to `take`. Sources were unchanged when they had been read.
    pub(super) fn fill<T>(
        &self,
        range: &Range<u64>,
        scratch: &mut Scratch,
        take: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<(T, Healths)> {
        if let Some(slice) = self.copied_whole(range) {
            let source = self.source(slice.source)?;
            let tile = source.tile(slice.bytes.clone(), &mut scratch.copied)?;
            let taken = take(&tile)?;
            source.check_unchanged(self.tensor_at(range).as_deref())?;
            return Ok((taken, Vec::new()));
        }
        self.solve(range, scratch)?;
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut pick = Pick::of(self.device);
        loop {
            scratch.suit(pick.device);
            let mut out = std::mem::take(&mut scratch.out);
            let started = Instant::now();
            let filled = out.bytes(pick.device, len, self.tile).and_then(|bytes| {
                let healths = self.fill_pieces(range, bytes, pick.device, scratch)?;
                Ok((bytes, healths))
            });
            let error = match filled {
                Ok((bytes, healths)) => {
                    if self.computes(range) {
                        pick.took(range.end - range.start, started.elapsed());
                    }
                    let taken = take(bytes);
                    scratch.out = out;
                    return Ok((taken?, healths));
                }
                Err(error) => error,
            };
            pick = pick.instead(&error).ok_or(error)?;
        }
    }

    fn computes(&self, range: &Range<u64>) -> bool {
        let parts = self.extents.within(range).filter_map(|extent| self.extents.part(extent));
        parts.into_iter().any(|(_, part)| matches!(part, Part::Blend(_)))
    }

    /// The slice that alone makes up the range, byte for byte.
    fn copied_whole(&self, range: &Range<u64>) -> Option<Slice> {
        let extent = self.extents.within(range).next()?;
        let (_, Part::Copy(slice)) = self.extents.part(extent)? else {
            return None;
        };
        if extent.out.start > range.start || extent.out.end < range.end {
            return None;
        }
        let start = slice.bytes.start + (range.start - extent.out.start);
        Some(Slice { bytes: start..start + (range.end - range.start), ..slice.clone() })
    }

    /// The source and offset of a range that is one stretch of one file.
    pub(super) fn copied_from(
        &self,
        range: &Range<u64>,
    ) -> Result<Option<(&Arc<SourceFile>, u64)>> {
        match self.copied_whole(range) {
            Some(slice) => Ok(Some((self.source(slice.source)?, slice.bytes.start))),
            None => Ok(None),
        }
    }

    fn tensor_at(&self, range: &Range<u64>) -> Option<String> {
        let extent = self.extents.within(range).next()?;
        self.extents.part(extent).map(|(output, _)| output.name.clone())
    }

    pub(super) fn source(&self, id: SourceId) -> Result<&Arc<SourceFile>> {
        self.sources
            .get(&id)
            .ok_or_else(|| Error::Plan { problem: format!("source {} is not open", id.0) })
    }

    fn fill_pieces(
        &self,
        range: &Range<u64>,
        out: &mut [u8],
        device: &dyn Device,
        scratch: &mut Scratch,
    ) -> Result<Healths> {
        let mut healths = Vec::new();
        for extent in self.extents.within(range) {
            let start = extent.out.start.max(range.start);
            let end = extent.out.end.min(range.end);
            let piece = &mut out[index(start - range.start)..index(end - range.start)];
            let within = start - extent.out.start..end - extent.out.start;
            match (self.extents.part(extent), extent.what) {
                (Some((output, part)), What::Part { tensor, .. }) => {
                    let solved = self.sweeps.solved(extent.what)?;
                    let part = solved.as_deref().unwrap_or(part);
                    let health = self.fill_part(output, part, within, piece, device, scratch)?;
                    if health != Health::default() {
                        healths.push((tensor, health));
                    }
                    for slice in part.slices() {
                        self.source(slice.source)?.check_unchanged(Some(&output.name))?;
                    }
                }
                _ => piece.copy_from_slice(
                    &self.extents.layout.header[index(within.start)..index(within.end)],
                ),
            }
        }
        Ok(healths)
    }

    /// Bytes `within` of a part, counted from its start in the output.
    fn fill_part(
        &self,
        output: &Output,
        part: &Part,
        within: Range<u64>,
        piece: &mut [u8],
        device: &dyn Device,
        scratch: &mut Scratch,
    ) -> Result<Health> {
        match part {
            Part::Copy(slice) => {
                let bytes = slice.bytes.start + within.start..slice.bytes.start + within.end;
                piece.copy_from_slice(&self.source(slice.source)?.tile(bytes, &mut scratch.edge)?);
                Ok(Health::default())
            }
            Part::Fill { bits, .. } => {
                let width = output.dtype.bytes().unwrap_or(1);
                let pattern = bits.to_le_bytes();
                for (byte, at) in piece.iter_mut().zip(within.start..) {
                    *byte = pattern[index(at % width)];
                }
                Ok(Health::default())
            }
            Part::Blend(blend) => self.fill_blend(output, blend, &within, piece, device, scratch),
        }
    }

    fn fill_blend(
        &self,
        output: &Output,
        blend: &Blend,
        within: &Range<u64>,
        piece: &mut [u8],
        device: &dyn Device,
        scratch: &mut Scratch,
    ) -> Result<Health> {
        let width = output.dtype.bytes().unwrap_or(1);
        let elements = within.start / width..within.end.div_ceil(width);
        let whole = elements.start * width == within.start && elements.end * width == within.end;
        let health = if whole {
            self.compute(output, blend, &elements, piece, device, &mut scratch.operands)?
        } else {
            // An element across the seam of two tiles: compute it whole, keep this tile's bytes.
            let mut edge = std::mem::take(&mut scratch.edge);
            edge.resize(index((elements.end - elements.start) * width), 0);
            let buffers = &mut scratch.operands;
            let health = self.compute(output, blend, &elements, &mut edge, device, buffers);
            let skip = index(within.start - elements.start * width);
            piece.copy_from_slice(&edge[skip..skip + piece.len()]);
            scratch.edge = edge;
            health?
        };
        if health.broken > 0 && !self.allow_nonfinite {
            return Err(Error::NonFinite {
                tensor: output.name.clone(),
                count: health.broken,
                dtype: output.dtype.to_string(),
            });
        }
        Ok(health)
    }

    fn compute(
        &self,
        output: &Output,
        blend: &Blend,
        elements: &Range<u64>,
        out: &mut [u8],
        device: &dyn Device,
        buffers: &mut Vec<Operands>,
    ) -> Result<Health> {
        let tiles = self.operands(blend, elements, device, buffers)?;
        let mut operands = blend
            .operands()
            .zip(&tiles)
            .map(|(operand, tile)| Operand { dtype: operand.dtype(), bytes: tile });
        let base = if blend.base.is_some() { operands.next() } else { None };
        let terms: Vec<(Operand<'_>, f64)> =
            operands.zip(&blend.terms).map(|(operand, term)| (operand, term.weight)).collect();
        let tile = BlendTile {
            base,
            terms: &terms,
            lambda: blend.lambda,
            dtype: &output.dtype,
            rules: None,
        };
        device.blend(&tile, out)
    }

    /// Elements of base and terms, where the device wants them.
    pub(super) fn operands<'t>(
        &'t self,
        blend: &Blend,
        elements: &Range<u64>,
        device: &dyn Device,
        buffers: &'t mut Vec<Operands>,
    ) -> Result<Vec<Tile<'t>>> {
        let count = blend.operands().count();
        buffers.resize_with(buffers.len().max(count), Operands::default);
        let mut tiles = Vec::with_capacity(count);
        for (operand, Operands { own, plain }) in blend.operands().zip(buffers.iter_mut()) {
            let slice = &operand.slice;
            if let Some(rows) = &operand.gather {
                let width = operand.dtype().bytes().unwrap_or(1);
                let len = index((elements.end - elements.start) * width);
                let into = if device.wants_own_memory() {
                    own.bytes(device, len, self.tile)?
                } else {
                    plain.resize(len, 0);
                    plain.as_mut_slice()
                };
                self.gather(operand, rows, elements, into)?;
                tiles.push(Tile::made(into));
                continue;
            }
            let width = slice.dtype.bytes().unwrap_or(1);
            let start = slice.bytes.start;
            let bytes = start + elements.start * width..start + elements.end * width;
            let source = self.source(slice.source)?;
            tiles.push(if device.wants_own_memory() {
                source.tile_in(bytes, |len| own.bytes(device, len, self.tile))?
            } else {
                source.tile(bytes, plain)?
            });
        }
        Ok(tiles)
    }
}

/// Offsets inside a tile fit memory.
pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
