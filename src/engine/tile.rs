//! Filling one tile of an output file: copied, constant and computed bytes, whatever falls into it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::auto::Pick;
use super::chain::Chains;
use super::device::{BlendTile, Device, Health, HostMemory, Operand, Rules};
use super::extents::{Extents, What};
use super::made::{Making, make};
use super::noise;
use super::observer::Observer;
use super::simd::Simd;
use super::solve::{Bits, Ready, Sweeps};
use super::sweep::LEAF;
use crate::error::{Error, Result};
use crate::format::{SourceFile, Tile};
use crate::plan::{Blend, Output, Part, Slice, SourceId};

/// Bytes of operands that fit the cache of a core, beside what is made of them.
const CACHED: u64 = 384 << 10;

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
    making: Making,
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

/// A blend to be computed: as the plan says, or with what was found out.
#[derive(Clone, Copy)]
enum Computed<'a> {
    Plain(&'a Blend),
    Ready(&'a Ready),
}

/// What a tile's elements looked like, by tensor of the plan.
pub(super) type Healths = Vec<(usize, Health)>;

/// Makes tiles of one shard.
pub(super) struct Filler<'a> {
    pub(super) extents: &'a Extents<'a>,
    pub(super) sources: &'a Sources,
    pub(super) device: &'a dyn Device,
    /// What the device of the moment is not asked for.
    pub(super) host: Simd,
    pub(super) observer: &'a dyn Observer,
    /// Told of bytes of the output that count as done because their inputs were looked at.
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
    /// What is found out before a tile is filled.
    pub(super) sweeps: &'a Sweeps,
    /// What is known of the parts that mergekit's arithmetic keeps.
    pub(super) chains: &'a Chains,
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
        self.prepare_chains(range, scratch)?;
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
        open(self.sources, id)
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
                    let health = match part.chain() {
                        Some(how) => {
                            self.fill_chain(output, how, extent.what, &within, piece, scratch)?
                        }
                        None => {
                            let ready = self.sweeps.ready(extent.what)?;
                            let part = (part, ready.as_deref());
                            self.fill_part(output, part, within, piece, device, scratch)?
                        }
                    };
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
        (part, ready): (&Part, Option<&Ready>),
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
            Part::Random(random) => {
                noise::fill(random, &output.dtype, within.start, piece);
                Ok(Health::default())
            }
            Part::Blend(blend) => {
                let blend = ready.map_or(Computed::Plain(blend), Computed::Ready);
                self.fill_blend(output, blend, &within, piece, device, scratch)
            }
        }
    }

    fn fill_blend(
        &self,
        output: &Output,
        blend: Computed<'_>,
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
        blend: Computed<'_>,
        elements: &Range<u64>,
        out: &mut [u8],
        device: &dyn Device,
        buffers: &mut Vec<Operands>,
    ) -> Result<Health> {
        let (blend, ready) = match blend {
            Computed::Plain(blend) => (blend, None),
            Computed::Ready(ready) => (&ready.blend, Some(ready)),
        };
        if let Some(spanned) = ready.and_then(|ready| ready.spanned.as_ref()) {
            return self.compute_spanned(output, blend, spanned, elements, out, buffers);
        }
        // Whole rows that masks are made of would be read for every piece.
        if device.as_simd().is_none() || ready.is_some_and(Ready::has_bits) {
            return self.compute_piece(output, (blend, ready), elements, out, device, buffers);
        }
        let width = output.dtype.bytes().unwrap_or(1);
        let mut health = Health::default();
        for piece in self.in_cache(blend, elements)? {
            let bytes = [piece.start, piece.end].map(|end| index((end - elements.start) * width));
            let out = &mut out[bytes[0]..bytes[1]];
            let found = self.compute_piece(output, (blend, ready), &piece, out, device, buffers)?;
            health = health.merge(found);
        }
        Ok(health)
    }

    fn compute_piece(
        &self,
        output: &Output,
        (blend, ready): (&Blend, Option<&Ready>),
        elements: &Range<u64>,
        out: &mut [u8],
        device: &dyn Device,
        buffers: &mut Vec<Operands>,
    ) -> Result<Health> {
        let bits = ready.map_or(Ok(Bits::new()), |ready| self.bits(ready, elements, buffers))?;
        let terms = ready.and_then(|ready| ready.rules(&bits));
        let rules = terms.as_ref().map(|terms| Rules {
            first: elements.start,
            deltas: blend.deltas,
            terms,
            vote: blend.vote,
            divide: blend.divide,
        });
        let tiles = self.operands(blend, elements, device, buffers);
        let tiles = tiles.map_err(|error| error.of_tensor(&output.name))?;
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
            rules: rules.as_ref(),
        };
        device.blend(&tile, out)
    }

    /// Pieces of a run whose operands stay in the cache from being read to being used. What is made or mapped is had in one piece: that
    /// takes time for each.
    pub(super) fn in_cache(&self, blend: &Blend, run: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut whole = blend.operands().any(|operand| !operand.is_plain());
        for slice in blend.slices() {
            whole |= self.source(slice.source)?.is_mapped();
        }
        let width = blend.operands().filter_map(|o| o.dtype().bytes()).max().unwrap_or(1);
        let count = blend.operands().count().max(1) as u64;
        let len = if whole { run.end - run.start } else { CACHED / width / count };
        let len = len.max(1).next_multiple_of(LEAF as u64);
        let starts = (run.start..run.end).step_by(index(len));
        Ok(starts.map(|start| start..run.end.min(start + len)).collect())
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
        for (operand, Operands { own, plain, making }) in blend.operands().zip(buffers.iter_mut()) {
            let width = operand.dtype().bytes().unwrap_or(1);
            if !operand.is_plain() {
                let len = index((elements.end - elements.start) * width);
                let memory = if device.wants_own_memory() {
                    own.bytes(device, len, self.tile)?
                } else {
                    plain.resize(len, 0);
                    plain.as_mut_slice()
                };
                make(self.sources, operand, elements, memory, making)?;
                tiles.push(Tile::made(memory));
                continue;
            }
            let slice = &operand.slice;
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

/// A source that was opened for the shard.
pub(super) fn open(sources: &Sources, id: SourceId) -> Result<&Arc<SourceFile>> {
    let problem = || Error::Plan { problem: format!("source {} is not open", id.0) };
    sources.get(&id).ok_or_else(problem)
}

/// Offsets inside a tile fit memory.
pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
