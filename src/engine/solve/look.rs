//! The looks at a part: what each sees of a run, what is known after it, and which one comes next.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::near::Gauge;
use super::order::{Quest, Seen, Slot, Tie, lost};
use super::ready::{self, Ready, Recipe, masks};
use super::sample;
use super::span::{ColumnSums, Spanned, failed};
use super::weights::{energies, overlaps, weights};
use crate::engine::auto::Pick;
use crate::engine::bracket::Tally;
use crate::engine::device::{Device, Edge, Mask, Operand};
use crate::engine::sweep::{Gram, LEAF, SweepTile, TreeSum, Want, leaves_of, sums_of};
use crate::engine::tile::{Filler, Scratch, index};
use crate::error::Result;
use crate::plan::{Blend, Keep, Output, Solve, Span, Term};

/// A look at the elements of a part.
pub(super) enum Look {
    /// The divergence of every row.
    Rows,
    /// Scores of some elements.
    Sample(Vec<Quest>),
    /// Numbers of elements by how they lie to brackets; the quests that these are for.
    Near(Vec<Gauge>, Vec<Quest>),
    /// Numbers of elements by the upper half of their score.
    High(Vec<Quest>),
    /// Numbers of elements by the lower half, where the upper one is that of a threshold.
    Low(Vec<Quest>),
    /// Numbers of elements that are equal to a threshold.
    Ties(Vec<Tie>),
    /// Sums over values that are kept.
    Sums,
}

/// What follows a look.
pub(super) enum Step {
    Look(Look, Known),
    Ready(Box<Ready>),
}

/// What is known of a part.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// Divergences of rows, by term.
    pub(super) divergences: Vec<Option<Arc<Vec<f64>>>>,
    /// Edges of the largest, by term: the lower and the higher.
    pub(super) edges: Vec<[Edge; 2]>,
    /// What is inside varies most.
    pub(super) varied: Option<Edge>,
    /// Median and quartiles of the importance, by term.
    pub(super) quartiles: Vec<[f32; 3]>,
}

/// What was found in a look.
#[derive(Default)]
pub(super) struct Found {
    /// Scores by quest, from the first element of a run that has a piece of the sample.
    pub(super) samples: BTreeMap<u64, Vec<Vec<u32>>>,
    /// What was counted to brackets, by gauge.
    pub(super) tallies: Vec<Tally>,
    /// By the first element of a run: for each gauge, how many there are of what it notes.
    pub(super) notes: BTreeMap<u64, Vec<Vec<u32>>>,
    /// Histograms: one after the other for each quest.
    pub(super) counts: Vec<Vec<u64>>,
    /// Scores of exactly zero, by quest or gauge.
    pub(super) zeros: Vec<u64>,
    /// By the first element of a run: what is in each of its histograms.
    pub(super) runs: BTreeMap<u64, Vec<Seen>>,
    /// Sums of the magnitudes of values, and of those that are kept; products.
    pub(super) trees: [Option<TreeSum>; 3],
    /// Numbers of elements where a term is kept alone, and beside others.
    pub(super) kept: Vec<[u64; 2]>,
    pub(super) columns: ColumnSums,
    /// Divergences of rows by term, from a run's first element on.
    pub(super) rows: BTreeMap<u64, Vec<Vec<f64>>>,
}

/// What one worker counts before he hands it in.
#[derive(Default)]
pub(super) struct Local {
    pub(super) tallies: Vec<Tally>,
    pub(super) counts: Vec<Vec<u64>>,
    /// Those of one run.
    pub(super) run: Vec<Vec<u64>>,
    pub(super) zeros: Vec<u64>,
}

/// What was seen of one run.
#[derive(Default)]
pub(super) struct Share {
    sample: Vec<Vec<u32>>,
    notes: Vec<Vec<u32>>,
    run: Vec<Seen>,
    sums: [Option<TreeShare>; 3],
    kept: Vec<[u64; 2]>,
    columns: Option<(u64, Vec<f64>)>,
    rows: Vec<Vec<f64>>,
}

struct TreeShare {
    terms: usize,
    /// Of the whole part.
    elements: u64,
    sums: Vec<f64>,
}

impl Found {
    /// Takes what was seen of the run that starts here.
    pub(super) fn add(&mut self, start: u64, share: Share) {
        if !share.sample.is_empty() {
            self.samples.insert(start, share.sample);
        }
        if !share.notes.is_empty() {
            self.notes.insert(start, share.notes);
        }
        if !share.run.is_empty() {
            self.runs.insert(start, share.run);
        }
        for (tree, share) in self.trees.iter_mut().zip(share.sums) {
            if let Some(TreeShare { terms, elements, sums }) = share {
                let tree = tree.get_or_insert_with(|| TreeSum::new(terms, elements));
                tree.add(start / LEAF as u64, &sums);
            }
        }
        add_up(&mut self.kept, &share.kept, |sum, x| {
            sum[0] += x[0];
            sum[1] += x[1];
        });
        if let Some((columns, sums)) = share.columns {
            self.columns.add(start, columns, sums);
        }
        if !share.rows.is_empty() {
            self.rows.insert(start, share.rows);
        }
    }

    /// Takes what a worker has counted.
    pub(super) fn merge(&mut self, local: Local) {
        if self.tallies.is_empty() {
            self.tallies = local.tallies;
        } else {
            for (tally, found) in self.tallies.iter_mut().zip(&local.tallies) {
                tally.merge(found);
            }
        }
        self.counts.resize_with(self.counts.len().max(local.counts.len()), Vec::new);
        for (counts, found) in self.counts.iter_mut().zip(local.counts) {
            if counts.is_empty() {
                *counts = found;
            } else {
                add_up(counts, &found, |sum, x| *sum += x);
            }
        }
        add_up(&mut self.zeros, &local.zeros, |sum, x| *sum += x);
    }
}

fn add_up<T: Copy + Default>(sums: &mut Vec<T>, found: &[T], add: impl Fn(&mut T, &T)) {
    sums.resize(sums.len().max(found.len()), T::default());
    for (sum, x) in sums.iter_mut().zip(found) {
        add(sum, x);
    }
}

impl Known {
    pub(super) fn new(blend: &Blend) -> Self {
        let terms = blend.terms.len();
        let elements = blend.elements();
        let edge = |inside: u64| if inside >= elements { Edge::ALL } else { Edge::NONE };
        // Those that are not at either end are found later.
        let edges = blend
            .terms
            .iter()
            .map(|term| term.keep.ranks(elements).map_or([Edge::NONE; 2], |ranks| ranks.map(edge)));
        Self {
            divergences: vec![None; terms],
            edges: edges.collect(),
            varied: None,
            quartiles: vec![[f32::NAN; 3]; terms],
        }
    }

    /// How masks are made, when all that takes is known.
    pub(super) fn recipes(&self, blend: &Blend) -> Vec<Recipe> {
        let recipe = |(i, term): (usize, &Term)| match term.keep {
            Keep::Largest { .. } => {
                let [low, high] = self.edges[i];
                Recipe::Mask(Mask::Band { low, high })
            }
            Keep::Varied { .. } => Recipe::Varied(self.varied.unwrap_or(Edge::NONE)),
            Keep::Important { columns } => {
                let [lower, median, upper] = self.quartiles[i].map(f64::from);
                let divergences = self.divergences[i].clone().unwrap_or_default();
                Recipe::Important { columns, divergences, least: median + 1.5 * (upper - lower) }
            }
            keep => Recipe::of(keep).unwrap_or(Recipe::Mask(Mask::All)),
        };
        blend.terms.iter().enumerate().map(recipe).collect()
    }
}

/// The first look that a blend needs.
pub(super) fn first(blend: &Blend) -> Option<Look> {
    let looks = blend.looks();
    if looks.rows {
        Some(Look::Rows)
    } else if looks.order {
        Some(Look::Sample(Quest::all(blend)))
    } else {
        looks.sums.then_some(Look::Sums)
    }
}

impl Look {
    /// Whether it looks at every element.
    pub(super) const fn is_whole(&self) -> bool {
        !matches!(self, Self::Sample(_))
    }

    /// Elements of a run, if a worker is to take about so many bytes of an operand at once.
    pub(super) fn run(&self, blend: &Blend, tile: u64) -> u64 {
        let width = blend.operands().filter_map(|o| o.dtype().bytes()).max().unwrap_or(1);
        let about = tile / width;
        let whole = |unit: u64| (about / unit).max(1) * unit;
        match self {
            Self::Sample(_) => sample::run_of(blend.elements()),
            Self::Rows => whole(important_columns(blend)),
            Self::Sums => match blend.span {
                Span::Columns { columns } => ColumnSums::run(columns),
                _ => whole(LEAF as u64),
            },
            _ => whole(LEAF as u64),
        }
    }
}

/// Elements of the rows of which divergences are needed; a plan has them all alike.
fn important_columns(blend: &Blend) -> u64 {
    let columns = |term: &Term| match term.keep {
        Keep::Important { columns } => Some(columns),
        _ => None,
    };
    blend.terms.iter().find_map(columns).unwrap_or(1)
}

/// Terms whose kept values must weigh as much as all of them.
fn rescaled(blend: &Blend) -> Vec<usize> {
    (0..blend.terms.len()).filter(|&i| blend.terms[i].is_rescaled()).collect()
}

impl Filler<'_> {
    /// Looks at a run.
    pub(super) fn look(
        &self,
        look: &Look,
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        local: &mut Local,
        scratch: &mut Scratch,
    ) -> Result<Share> {
        Ok(match look {
            Look::Rows => Share {
                rows: self.divergences(blend, run, &mut scratch.operands)?,
                ..Share::default()
            },
            Look::Sample(quests) => Share {
                sample: self.sample(quests, known, blend, run, scratch)?,
                ..Share::default()
            },
            Look::Near(gauges, _) => Share {
                notes: self.count_near(gauges, known, blend, run, local, scratch)?,
                ..Share::default()
            },
            Look::High(quests) => {
                self.count_high(quests, known, blend, run, local, scratch)?;
                Share::default()
            }
            Look::Low(quests) => {
                let run = self.count_low(quests, known, blend, run, local, scratch)?;
                Share { run, ..Share::default() }
            }
            Look::Ties(ties) => {
                let run = self.count_ties(ties, known, blend, run, scratch)?;
                Share { run, ..Share::default() }
            }
            Look::Sums => self.sums(known, blend, run, scratch)?,
        })
    }

    /// What follows from what was found.
    pub(super) fn conclude(
        &self,
        look: &Look,
        mut known: Known,
        found: Found,
        blend: &Blend,
        output: &Output,
        scratch: &mut Scratch,
    ) -> Result<Step> {
        let next = match look {
            Look::Rows => {
                for (term, of) in known.divergences.iter_mut().zip(0..) {
                    let rows = found.rows.values().filter_map(|rows| rows.get::<usize>(of));
                    let rows: Vec<f64> = rows.flatten().copied().collect();
                    *term = (!rows.is_empty()).then(|| Arc::new(rows));
                }
                Some(Look::Sample(Quest::all(blend)))
            }
            Look::Sample(quests) => self.after_sample(quests, &found, &mut known, blend)?,
            Look::Near(gauges, quests) => {
                self.after_near((gauges, quests), &found, &mut known, blend, scratch)?
            }
            Look::High(quests) => {
                let narrowed = Quest::narrowed(quests, &found)?;
                (!narrowed.is_empty()).then_some(Look::Low(narrowed))
            }
            Look::Low(quests) => {
                let mut ties = Vec::new();
                for (tie, slot) in Quest::decided(quests, &found, &mut known)? {
                    match tie.place_of(&found.runs, slot, blend.elements()) {
                        Some(place) => self.found_tie(&tie, place, &mut known, blend, scratch)?,
                        None => ties.push(tie),
                    }
                }
                (!ties.is_empty()).then_some(Look::Ties(ties))
            }
            Look::Ties(ties) => {
                for (slot, tie) in ties.iter().enumerate() {
                    let place = tie.place_of(&found.runs, slot, blend.elements());
                    let place = place.ok_or_else(lost)?;
                    self.found_tie(tie, place, &mut known, blend, scratch)?;
                }
                None
            }
            Look::Sums => return Ok(Step::Ready(Box::new(solved(blend, output, &known, found)?))),
        };
        Ok(match next {
            Some(look) => Step::Look(look, known),
            None if blend.looks().sums => Step::Look(Look::Sums, known),
            None => Step::Ready(Box::new(ready::with(blend, &known, &Factors::of(blend)))),
        })
    }

    /// Sums over a run, on the device of the moment.
    fn sums(
        &self,
        known: &Known,
        blend: &Blend,
        run: &Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<Share> {
        let mut share = Share::default();
        if let Span::Columns { columns } = blend.span {
            let sums = self.column_sums(blend, columns, run, &mut scratch.operands)?;
            share.columns = Some((columns, sums));
            return Ok(share);
        }
        let recipes = known.recipes(blend);
        let bits = self.bits_of(blend, &recipes, run, &mut scratch.operands)?;
        let masks = masks(&recipes, &bits);
        if matches!(blend.solve, Some(Solve::Overlap { .. })) {
            share.kept = self.overlap(blend, &masks, run, &mut scratch.operands)?;
        }
        let everywhere = masks.iter().all(|mask| matches!(mask, Mask::All));
        let rescaled = rescaled(blend);
        let all: Vec<usize> = (0..blend.terms.len()).collect();
        let products = blend.solve.is_some() && share.kept.is_empty();
        // Which terms, whether only what is kept, and which sums.
        let mut asked = Vec::new();
        if !rescaled.is_empty() {
            asked.push((0, rescaled.as_slice(), false, Want::Magnitudes));
            asked.push((1, rescaled.as_slice(), true, Want::Magnitudes));
        }
        if products {
            asked.push((2, all.as_slice(), !everywhere, Want::Products));
        }
        let mut pick = Pick::of(self.device);
        let mut done = 0;
        while done < asked.len() {
            scratch.suit(pick.device);
            let worked = self.sums_on(
                pick.device,
                blend,
                &masks,
                run,
                &asked,
                &mut done,
                &mut share,
                scratch,
            );
            if let Err(error) = worked {
                pick = pick.instead(&error).ok_or(error)?;
            }
        }
        Ok(share)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what a device is asked, and how far it has come"
    )]
    fn sums_on(
        &self,
        device: &dyn Device,
        blend: &Blend,
        masks: &[Mask<'_>],
        run: &Range<u64>,
        asked: &[(usize, &[usize], bool, Want)],
        done: &mut usize,
        share: &mut Share,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let tiles = self.operands(blend, run, device, &mut scratch.operands)?;
        let (base, terms) = values_of(blend, &tiles);
        while let Some(&(place, wanted, kept, want)) = asked.get(*done) {
            let terms: Vec<Operand<'_>> = wanted.iter().map(|&i| terms[i]).collect();
            let masks: Vec<Mask<'_>> = wanted.iter().filter(|_| kept).map(|&i| masks[i]).collect();
            let leaves = leaves_of(index(run.end - run.start));
            let mut sums = vec![0.0; leaves * sums_of(terms.len())];
            let tile = SweepTile { base, terms: &terms, first: run.start, masks: &masks, want };
            device.sums(&tile, &mut sums)?;
            let (terms, elements) = (terms.len(), blend.elements());
            share.sums[place] = Some(TreeShare { terms, elements, sums });
            *done += 1;
        }
        Ok(())
    }
}

/// The operands of values: the base, if it is subtracted, and the terms.
pub(super) fn values_of<'t>(
    blend: &'t Blend,
    tiles: &'t [crate::format::Tile<'_>],
) -> (Option<Operand<'t>>, Vec<Operand<'t>>) {
    let mut operands = blend
        .operands()
        .zip(tiles)
        .map(|(operand, tile)| Operand { dtype: operand.dtype(), bytes: tile });
    let base = if blend.base.is_some() { operands.next() } else { None };
    (base.filter(|_| blend.is_of_deltas()), operands.collect())
}

/// What terms weigh and count alone, if nothing more is to be found.
pub(super) struct Factors {
    pub(super) weights: Vec<f64>,
    pub(super) alone: Vec<f64>,
    pub(super) rescale: Vec<f64>,
}

impl Factors {
    /// As the plan says.
    pub(super) fn of(blend: &Blend) -> Self {
        Self {
            weights: blend.terms.iter().map(|term| term.weight).collect(),
            alone: blend.terms.iter().map(|term| term.alone).collect(),
            rescale: vec![1.0; blend.terms.len()],
        }
    }
}

/// The blend, once the last sums are there.
fn solved(blend: &Blend, output: &Output, known: &Known, found: Found) -> Result<Ready> {
    let failed = |reason| failed(output, reason);
    let given: Vec<f64> = blend.terms.iter().map(|term| term.weight).collect();
    if let (Span::Columns { columns }, Some(solve)) = (blend.span, blend.solve) {
        let grams = found.columns.grams(blend.terms.len(), columns)?;
        let weights = grams.iter().map(|gram| weights(solve, &given, gram));
        let weights: Vec<Vec<f64>> = weights.collect::<Result<_, _>>().map_err(failed)?;
        return Ok(ready::spanned(blend, Spanned::columns(blend, &weights)));
    }
    let [whole, kept, products] = found.trees;
    let mut factors = Factors::of(blend);
    if let (Some(whole), Some(kept)) = (whole, kept) {
        let (whole, kept) = (whole.finish()?, kept.finish()?);
        for (place, term) in rescaled(blend).into_iter().enumerate() {
            factors.rescale[term] = rescale(&whole, &kept, place);
        }
    }
    match blend.solve {
        None => {}
        Some(Solve::Overlap { r, alpha }) => factors.alone = overlaps(r, alpha, &found.kept),
        Some(solve) => {
            let gram = products
                .map_or_else(|| TreeSum::new(blend.terms.len(), 0).finish(), TreeSum::finish)?;
            factors.weights = match solve {
                Solve::Energy { least } => energies(least, &gram, blend.elements()),
                _ => weights(solve, &given, &gram).map_err(failed)?,
            };
        }
    }
    Ok(ready::with(blend, known, &factors))
}

/// What makes up for values that are not kept.
fn rescale(whole: &Gram, kept: &Gram, term: usize) -> f64 {
    let (whole, kept) = (whole.l1(term), kept.l1(term));
    if whole < 1e-7 || kept < 1e-7 { 1.0 } else { whole / kept }
}

/// Lambda and the weights of all operands, if a blend of such weights is a weighted sum. A base becomes the first term:
/// `b + l*c*(x - b)` is `(1 - l*c)*b + l*c*x`, which is rounded less often.
pub(super) fn with_weights(blend: &Blend, weights: &[f64]) -> (f64, Vec<f64>) {
    if blend.base.is_none() {
        return (blend.lambda, weights.to_vec());
    }
    let taken = blend.lambda * weights.iter().sum::<f64>();
    let others = weights.iter().map(|weight| blend.lambda * weight);
    (1.0, std::iter::once(1.0 - taken).chain(others).collect())
}

impl Slot {
    /// Enters a threshold.
    pub(super) fn set(self, known: &mut Known, edge: Edge) {
        match self {
            Self::Edge { term, high } => known.edges[term][usize::from(high)] = edge,
            Self::Varied => known.varied = Some(edge),
            Self::Quartile { term, which } => {
                known.quartiles[term][which] = super::scores::importance_of(edge.magnitude);
            }
        }
    }
}
