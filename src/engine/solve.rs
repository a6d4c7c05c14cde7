//! Weights that need a look at a whole part first: its sweep, shared by the workers that come to its tiles.
//!
//! Whoever needs the weights takes runs of elements until there are none left, then waits for those that others are still at.
//! Nobody waits while he holds one, so the last always comes; its worker finds the weights.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::auto::Pick;
use super::device::{Device, Operand};
use super::extents::{Extents, What};
use super::sweep::{Gram, LEAF, SweepTile, TreeSum, leaves_of, sums_of};
use super::tile::{Filler, Operands, Scratch, index};
use super::weights::weights;
use crate::error::{Error, Result};
use crate::plan::{Blend, Output, Part, Solve, Term};

/// The sweeps of the parts of one output file whose weights are to be found, by tensor and part of the plan.
#[derive(Default)]
pub(super) struct Sweeps(HashMap<(usize, usize), Sweep>);

/// The sweep of one part.
struct Sweep {
    elements: u64,
    /// Elements that are looked at by one worker at once.
    run: u64,
    /// The first element that nobody has taken.
    next: AtomicU64,
    state: Mutex<State>,
    over: Condvar,
}

enum State {
    /// So many elements are still missing in the sums.
    Open {
        sums: TreeSum,
        missing: u64,
    },
    /// The blend as it is computed.
    Solved(Arc<Part>),
    Failed,
}

impl Sweeps {
    /// `tile` is how many bytes of an operand are looked at at once, roughly.
    pub(super) fn new(extents: &Extents<'_>, tile: u64) -> Self {
        let of = |(tensor, part, blend): (usize, usize, &Blend)| {
            ((tensor, part), Sweep::new(blend, tile))
        };
        Self(extents.solved().map(of).collect())
    }

    /// The part with the weights that were found; none if it needs no sweep.
    pub(super) fn solved(&self, what: What) -> Result<Option<Arc<Part>>> {
        let What::Part { tensor, part } = what else { return Ok(None) };
        let Some(sweep) = self.0.get(&(tensor, part)) else { return Ok(None) };
        match &*sweep.state() {
            State::Solved(part) => Ok(Some(Arc::clone(part))),
            _ => Err(Error::Plan { problem: "a blend's weights are not known yet".into() }),
        }
    }
}

impl Sweep {
    fn new(blend: &Blend, tile: u64) -> Self {
        let elements = blend.terms.first().and_then(|t| t.operand.elements()).unwrap_or(0);
        let width = blend.operands().filter_map(|o| o.dtype().bytes()).max().unwrap_or(1);
        let leaf = LEAF as u64;
        let state =
            State::Open { sums: TreeSum::new(blend.terms.len(), elements), missing: elements };
        Self {
            elements,
            run: (tile / width / leaf).max(1) * leaf,
            next: AtomicU64::new(0),
            state: Mutex::new(state),
            over: Condvar::new(),
        }
    }

    /// What is held is whole at any time; a sweep whose worker panicked has failed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next run of elements that is to be looked at.
    fn take(&self) -> Option<Share<'_>> {
        let start = self.next.fetch_add(self.run, Ordering::Relaxed);
        let run = start..(start + self.run).min(self.elements);
        // Not even made, if there is none: dropping it would end the sweep.
        (start < self.elements).then(|| Share { sweep: self, run, done: false })
    }

    /// Waits for what others are still at.
    fn wait(&self) -> Result<()> {
        let mut state = self.state();
        while matches!(*state, State::Open { .. }) {
            state = self.over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // Whoever failed says why.
        if matches!(*state, State::Failed) {
            return Err(Error::Interrupted { resumable: true });
        }
        Ok(())
    }
}

/// A run of elements that one worker looks at. Dropped before it is done, it is the end of the sweep.
struct Share<'a> {
    sweep: &'a Sweep,
    run: Range<u64>,
    done: bool,
}

impl Share<'_> {
    /// Adds its sums; if they were the last, `solve` finds the weights.
    fn put(mut self, found: &[f64], solve: impl FnOnce(&Gram) -> Result<Blend>) -> Result<()> {
        let mut state = self.sweep.state();
        if let State::Open { sums, missing } = &mut *state {
            sums.add(self.run.start / LEAF as u64, found);
            *missing -= self.run.end - self.run.start;
            if *missing == 0 {
                let sums = std::mem::replace(sums, TreeSum::new(0, 0));
                drop(state);
                let solved = Part::Blend(Box::new(solve(&sums.finish()?)?));
                *self.sweep.state() = State::Solved(Arc::new(solved));
                self.sweep.over.notify_all();
            }
        }
        self.done = true;
        Ok(())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.sweep.next.store(self.sweep.elements, Ordering::Relaxed);
            *self.sweep.state() = State::Failed;
            self.sweep.over.notify_all();
        }
    }
}

impl Filler<'_> {
    /// Finds the weights of all that a range is made of.
    pub(super) fn solve(&self, range: &Range<u64>, scratch: &mut Scratch) -> Result<()> {
        for extent in self.extents.within(range) {
            let What::Part { tensor, part } = extent.what else { continue };
            let Some((output, Part::Blend(blend))) = self.extents.part(extent) else { continue };
            if let (Some(solve), Some(sweep)) = (blend.solve, self.sweeps.0.get(&(tensor, part))) {
                self.sweep(sweep, solve, blend, output, scratch)?;
            }
        }
        Ok(())
    }

    fn sweep(
        &self,
        sweep: &Sweep,
        solve: Solve,
        blend: &Blend,
        output: &Output,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let find = |gram: &Gram| {
            let given: Vec<f64> = blend.terms.iter().map(|term| term.weight).collect();
            let found = weights(solve, &given, gram).map_err(|reason| Error::Unsupported {
                what: format!("`{}`", output.name),
                reason,
                hint: "choose other weights, or another method for this tensor".into(),
            })?;
            Ok(with_weights(blend, &found))
        };
        while let Some(share) = sweep.take() {
            if self.observer.cancelled() {
                return Err(Error::Interrupted { resumable: true });
            }
            let sums = self.sums(blend, &share.run, scratch)?;
            for slice in blend.slices() {
                self.source(slice.source)?.check_unchanged(Some(&output.name))?;
            }
            share.put(&sums, find)?;
        }
        sweep.wait()
    }

    /// The sums of a run of elements, on the device of the moment.
    fn sums(&self, blend: &Blend, run: &Range<u64>, scratch: &mut Scratch) -> Result<Vec<f64>> {
        let mut pick = Pick::of(self.device);
        loop {
            scratch.suit(pick.device);
            match self.sums_on(pick.device, blend, run, &mut scratch.operands) {
                Err(error) => pick = pick.instead(&error).ok_or(error)?,
                sums => return sums,
            }
        }
    }

    fn sums_on(
        &self,
        device: &dyn Device,
        blend: &Blend,
        run: &Range<u64>,
        buffers: &mut Vec<Operands>,
    ) -> Result<Vec<f64>> {
        let tiles = self.operands(blend, run, device, buffers)?;
        let mut operands = blend
            .operands()
            .zip(&tiles)
            .map(|(operand, tile)| Operand { dtype: operand.dtype(), bytes: tile });
        let base = if blend.base.is_some() { operands.next() } else { None };
        let terms: Vec<Operand<'_>> = operands.collect();
        let leaves = leaves_of(index(run.end - run.start));
        let mut sums = vec![0.0; leaves * sums_of(terms.len())];
        device.sums(&SweepTile { base, terms: &terms }, &mut sums)?;
        Ok(sums)
    }
}

/// The blend with weights of its own. A base becomes the first term: `b + l*c*(x - b)` is `(1 - l*c)*b + l*c*x`, which is
/// rounded less often.
fn with_weights(blend: &Blend, weights: &[f64]) -> Blend {
    let Some(base) = &blend.base else {
        let weigh = |(term, weight): (&Term, &f64)| Term { weight: *weight, ..term.clone() };
        let terms = blend.terms.iter().zip(weights).map(weigh).collect();
        return Blend { terms, solve: None, ..blend.clone() };
    };
    let taken = blend.lambda * weights.iter().sum::<f64>();
    let mut terms = vec![Term::new(base.clone(), 1.0 - taken)];
    terms.extend(
        blend
            .terms
            .iter()
            .zip(weights)
            .map(|(term, weight)| Term { weight: blend.lambda * weight, ..term.clone() }),
    );
    Blend::sum(None, terms, 1.0)
}
