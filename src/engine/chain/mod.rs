//! mergekit's arithmetic, one plain element after the other: what [`Chain`] prescribes.
//!
//! Which elements are kept may depend on a sort of a whole tensor and on a random stream through the whole merge. That is
//! found out first, by whoever comes to a part first, for one part at a time: so the magnitudes and the order of no more than
//! one tensor are in memory, besides a bit for each element of the parts at work. The elements are then computed tile by
//! tile as everywhere else. It is done on the CPU whatever the device.

mod grid;
mod keep;
mod order;
mod steps;
mod sum;
mod twister;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::grid::Grid;
use self::keep::Kept;
use self::steps::Run;
use self::twister::Streams;
use super::device::{Health, Operand, Values, not_a_float};
use super::extents::What;
use super::float::Float;
use super::tile::{Filler, Scratch, index};
use crate::error::{Error, Result};
use crate::plan::{Blend, Chain, Keep, Output, Part, Steps};

/// What was found out about the parts of a run.
#[derive(Default)]
pub(super) struct Chains {
    /// By tensor and part of the plan.
    found: Mutex<HashMap<(usize, usize), Arc<Found>>>,
    /// Held by the one who finds something out.
    streams: Mutex<Streams>,
}

/// What was found out about one part.
struct Found {
    terms: Vec<Kept>,
    /// Bytes of the part that are still to be made.
    left: AtomicU64,
}

/// What is held is whole at any time.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Chains {
    fn get(&self, key: (usize, usize)) -> Option<Arc<Found>> {
        locked(&self.found).get(&key).cloned()
    }
}

impl Filler<'_> {
    /// Finds out what has to be known before elements of a range can be computed.
    pub(super) fn prepare_chains(&self, range: &Range<u64>, scratch: &mut Scratch) -> Result<()> {
        for extent in self.extents.within(range) {
            let What::Part { tensor, part } = extent.what else { continue };
            let Some((output, Part::Blend(blend))) = self.extents.part(extent) else { continue };
            let Some(chain) = blend.chain.as_ref().filter(|chain| chain.looks(blend)) else {
                continue;
            };
            if self.chains.get((tensor, part)).is_some() {
                continue;
            }
            let mut streams = locked(&self.chains.streams);
            if self.chains.get((tensor, part)).is_none() {
                let terms = self.find(chain, blend, output, &mut streams, scratch)?;
                let left = AtomicU64::new(extent.out.end - extent.out.start);
                let found = Arc::new(Found { terms, left });
                locked(&self.chains.found).insert((tensor, part), found);
            }
        }
        Ok(())
    }

    /// Bytes `within` of a part, counted from its start in the output.
    pub(super) fn fill_chain(
        &self,
        output: &Output,
        (chain, blend): (&Chain, &Blend),
        what: What,
        within: &Range<u64>,
        piece: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<Health> {
        let key = match what {
            What::Part { tensor, part } => (tensor, part),
            What::Header => return Ok(Health::default()),
        };
        let found = self.chains.get(key);
        if found.is_none() && chain.looks(blend) {
            return Err(Error::Plan { problem: "it is not known yet what a blend keeps".into() });
        }
        let width = output.dtype.bytes().unwrap_or(1);
        let elements = within.start / width..within.end.div_ceil(width);
        // An element across the seam of two tiles is computed whole.
        let mut made = vec![0; index((elements.end - elements.start) * width)];
        let kept = found.as_ref().map_or(&[][..], |found| &found.terms);
        let tiles = self.operands(blend, &elements, self.device, &mut scratch.operands)?;
        let operands = blend.operands().zip(&tiles);
        let operands: Vec<Operand<'_>> = operands
            .map(|(operand, tile)| Operand { dtype: operand.dtype(), bytes: tile })
            .collect();
        let float = Float::of(&output.dtype).ok_or_else(|| not_a_float(&output.dtype))?;
        let run = run(chain, blend, kept, index(elements.start), &operands, float)?;
        let health = run.compute(&mut made);
        let skip = index(within.start - elements.start * width);
        piece.copy_from_slice(&made[skip..skip + piece.len()]);
        if health.broken > 0 && !self.allow_nonfinite {
            return Err(Error::NonFinite {
                tensor: output.name.clone(),
                count: health.broken,
                dtype: output.dtype.to_string(),
            });
        }
        let done = piece.len() as u64;
        if found.is_some_and(|found| found.left.fetch_sub(done, Ordering::AcqRel) == done) {
            locked(&self.chains.found).remove(&key);
        }
        Ok(health)
    }

    fn find(
        &self,
        chain: &Chain,
        blend: &Blend,
        output: &Output,
        streams: &mut Streams,
        scratch: &mut Scratch,
    ) -> Result<Vec<Kept>> {
        if let Steps::SharesTimes { r, alpha } = chain.steps {
            return self.find_factors(chain, blend, output, (r, alpha), scratch);
        }
        let Steps::TaskVectors { ascending } = chain.steps else { return Ok(Vec::new()) };
        let grid = grid(chain)?;
        let stop = || self.observer.cancelled();
        let mut draws = chain.draws;
        let mut terms = Vec::with_capacity(blend.terms.len());
        for term in &blend.terms {
            if !keep::is_found(term.keep) {
                terms.push(Kept::default());
                continue;
            }
            let own = match term.keep {
                Keep::Random { .. } | Keep::Ranked { .. } => grid.of_draws(),
                _ => grid,
            };
            let single = Blend { terms: vec![term.clone()], ..blend.clone() };
            let values = self.deltas(&single, grid, output, scratch)?;
            let mut stream = |seed: u64| {
                let seed = u32::try_from(seed).unwrap_or(u32::MAX);
                let state = streams.at(seed, draws, &stop)?;
                draws += values.len() as u64;
                Ok::<_, Error>((seed, state))
            };
            let bits = match term.keep {
                Keep::Largest { skip, count } => {
                    keep::largest(&values, index(skip), index(count), ascending, &stop)?
                }
                Keep::Random { probability, seed } => {
                    let (seed, mut state) = stream(seed)?;
                    let bits = keep::random(values.len(), own, probability, &mut state, &stop)?;
                    streams.keep(seed, draws, &state);
                    bits
                }
                Keep::Ranked { low, high, seed, columns } => {
                    let (seed, mut state) = stream(seed)?;
                    let share = (low, high);
                    let bits =
                        keep::ranked(&values, index(columns), own, share, &mut state, &stop)?;
                    streams.keep(seed, draws, &state);
                    bits
                }
                _ => continue,
            };
            let scale = if term.rescale { keep::scale(&values, &bits, own) } else { None };
            terms.push(Kept { bits: Some(bits), scale, alone: 1.0 });
        }
        Ok(terms)
    }

    /// The differences of one term from the base, in f32: that holds all dtypes but f64, of which mergekit too sorts f32.
    #[expect(clippy::cast_possible_truncation, reason = "as mergekit does")]
    fn deltas(
        &self,
        blend: &Blend,
        grid: Grid,
        output: &Output,
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>> {
        let count = blend.elements();
        let mut values = Vec::with_capacity(index(count));
        self.runs(blend, output, scratch, |base, terms, count| {
            for i in 0..count {
                let base = base.map_or(0.0, |base| grid.round(base.at(i)));
                values.push(grid.round(grid.round(terms[0].at(i)) - base) as f32);
            }
            Ok(())
        })?;
        Ok(values)
    }

    /// What each term is multiplied by where it is kept alone.
    #[expect(clippy::cast_precision_loss, reason = "PyTorch casts counts to f32 too")]
    fn find_factors(
        &self,
        chain: &Chain,
        blend: &Blend,
        output: &Output,
        (r, alpha): (f64, f64),
        scratch: &mut Scratch,
    ) -> Result<Vec<Kept>> {
        let grid = grid(chain)?;
        let mut counts = vec![(0, 0); blend.terms.len()];
        self.runs(blend, output, scratch, |base, terms, count| {
            let terms = terms.to_vec();
            let float = Float::F32;
            Run { chain, blend, grid, kept: &[], first: 0, base, terms, float }
                .count_shares(count, &mut counts);
            Ok(())
        })?;
        let single = |x: f64| Grid::F32.round(x);
        let factor = |(&(shared, own), term): (&(u64, u64), &crate::plan::Term)| {
            let least = match term.keep {
                Keep::Above { magnitude } => single(magnitude),
                _ => 0.0,
            };
            let ratio = single(single(shared as f64) / single(own as f64).max(least));
            let bounded = ratio.max(0.0).min(single(alpha));
            let alone = single(1.0 + single(single(r) * bounded));
            Kept { alone, ..Kept::default() }
        };
        Ok(counts.iter().zip(&blend.terms).map(factor).collect())
    }

    /// Goes through the elements of a blend, a tile's worth at a time.
    fn runs(
        &self,
        blend: &Blend,
        output: &Output,
        scratch: &mut Scratch,
        mut take: impl FnMut(Option<Values<'_>>, &[Values<'_>], usize) -> Result<()>,
    ) -> Result<()> {
        let all = blend.elements();
        let width = blend.operands().filter_map(|x| x.dtype().bytes()).max().unwrap_or(1);
        let step = (self.tile as u64 / width).max(1);
        let mut at = 0;
        while at < all {
            if self.observer.cancelled() {
                return Err(Error::Interrupted { resumable: true });
            }
            let elements = at..(at + step).min(all);
            let tiles = self.operands(blend, &elements, self.device, &mut scratch.operands)?;
            let operands = blend.operands().zip(&tiles).map(|(operand, tile)| {
                Values::new(&Operand { dtype: operand.dtype(), bytes: tile })
            });
            let operands: Vec<Values<'_>> = operands.collect::<Result<_>>()?;
            let (base, terms) = operands.split_at(usize::from(blend.base.is_some()));
            take(base.first().copied(), terms, index(elements.end - at))?;
            for slice in blend.slices() {
                self.source(slice.source)?.check_unchanged(Some(&output.name))?;
            }
            at = elements.end;
        }
        Ok(())
    }
}

/// A run of elements with its operands in memory, base first.
fn run<'a>(
    chain: &'a Chain,
    blend: &'a Blend,
    kept: &'a [Kept],
    first: usize,
    operands: &[Operand<'a>],
    float: Float,
) -> Result<Run<'a>> {
    let values: Vec<Values<'a>> = operands.iter().map(Values::new).collect::<Result<_>>()?;
    let (base, terms) = values.split_at(usize::from(blend.base.is_some()));
    let (base, terms) = (base.first().copied(), terms.to_vec());
    Ok(Run { chain, blend, grid: grid(chain)?, kept, first, base, terms, float })
}

fn grid(chain: &Chain) -> Result<Grid> {
    Grid::of(&chain.dtype).ok_or_else(|| not_a_float(&chain.dtype))
}
