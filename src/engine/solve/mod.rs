//! What must be known of a whole part before its first element can be computed: thresholds, norms, weights. Found out by the
//! workers that come to its tiles, together.
//!
//! A part is looked at as often as it takes ([`Look`]), run by run. Whoever needs it takes runs until there are none left, then
//! waits for those that others are still at. Nobody waits while he holds one, so the last always comes; he draws the
//! conclusions and opens the next look. What is found depends on the elements alone, not on runs or their order.

mod look;
mod near;
mod order;
mod ready;
mod rows;
mod sample;
mod scores;
mod span;
mod weights;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use self::look::{Found, Known, Local, Look, Step};
pub(super) use self::ready::{Bits, Ready};
use super::extents::{Extents, What};
use super::tile::{Filler, Scratch};
use crate::error::{Error, Result};
use crate::plan::{Blend, Output, Part};

/// The parts of one output file that must be looked at or have rules, by tensor and part of the plan.
#[derive(Default)]
pub(super) struct Sweeps(HashMap<(usize, usize), Sweep>);

/// What is found out about one part.
struct Sweep {
    elements: u64,
    /// Bytes of an operand that are looked at by one worker at once, roughly.
    tile: u64,
    /// Bytes of the part in the output.
    bytes: u64,
    /// How often its inputs are read at most, computing included.
    times: u64,
    /// Bytes that the observer was told of.
    told: AtomicU64,
    state: Mutex<State>,
    over: Condvar,
}

enum State {
    Open(Box<Open>),
    /// The blend as it is computed.
    Ready(Arc<Ready>),
    Failed,
}

/// A look that is under way.
struct Open {
    look: Arc<Look>,
    known: Arc<Known>,
    found: Found,
    /// The first element that nobody has taken.
    next: u64,
    /// So many elements were not looked at, or what was found is not here yet.
    missing: u64,
}

impl Sweeps {
    /// `tile` is how many bytes of an operand are looked at at once, roughly.
    pub(super) fn new(extents: &Extents<'_>, tile: u64) -> Self {
        let of = |(tensor, part, blend, bytes)| ((tensor, part), Sweep::new(blend, bytes, tile));
        Self(extents.ruled().map(of).collect())
    }

    /// The part as it is computed; none if it is as the plan says.
    pub(super) fn ready(&self, what: What) -> Result<Option<Arc<Ready>>> {
        let Some(sweep) = self.of(what) else { return Ok(None) };
        match &*sweep.state() {
            State::Ready(ready) => Ok(Some(Arc::clone(ready))),
            _ => Err(Error::Plan { problem: "what a blend needs is not known yet".into() }),
        }
    }

    /// Bytes `within` of a part that count as done when it has been looked at.
    pub(super) fn told(&self, what: What, within: &Range<u64>) -> u64 {
        self.of(what).map_or(0, |sweep| sweep.share(within.end) - sweep.share(within.start))
    }

    /// Lets go of what was found.
    pub(super) fn forget(&self) {
        for sweep in self.0.values() {
            *sweep.state() = State::Failed;
        }
    }

    fn of(&self, what: What) -> Option<&Sweep> {
        let What::Part { tensor, part } = what else { return None };
        self.0.get(&(tensor, part))
    }
}

impl Sweep {
    fn new(blend: &Blend, bytes: u64, tile: u64) -> Self {
        let elements = blend.elements();
        let known = Known::new(blend);
        let state = match look::first(blend) {
            Some(look) => State::Open(Box::new(Open {
                look: Arc::new(look),
                known: Arc::new(known),
                found: Found::default(),
                next: 0,
                missing: elements,
            })),
            None => State::Ready(Arc::new(ready::without_looks(blend))),
        };
        Self {
            elements,
            tile,
            bytes,
            times: u64::from(blend.sweeps()).max(1),
            told: AtomicU64::new(0),
            state: Mutex::new(state),
            over: Condvar::new(),
        }
    }

    /// What is held is whole at any time; a sweep whose worker panicked has failed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of so many first bytes, those that count as done by looking.
    fn share(&self, bytes: u64) -> u64 {
        let share = u128::from(bytes) * u128::from(self.times - 1) / u128::from(self.times);
        u64::try_from(share).unwrap_or(bytes)
    }

    /// Bytes that count as done by looking at a run. A look more than was reckoned with adds nothing.
    fn tell(&self, look: &Look, run: &Range<u64>) -> u64 {
        let share = (run.end - run.start) * (self.bytes / self.elements) / self.times;
        let bytes = if look.is_whole() { share } else { 0 };
        let most = self.share(self.bytes);
        let add = |told: u64| Some(told.saturating_add(bytes).min(most));
        let told = self.told.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        bytes.min(most - told.unwrap_or(most))
    }

    /// A look that has elements left; none if all is known. Waits for what others are still at.
    fn enter(&self) -> Result<Option<Stint<'_>>> {
        let mut state = self.state();
        loop {
            match &*state {
                State::Ready(_) => return Ok(None),
                // Whoever failed says why.
                State::Failed => return Err(Error::Interrupted { resumable: true }),
                State::Open(open) if open.next < self.elements => {
                    let (look, known) = (Arc::clone(&open.look), Arc::clone(&open.known));
                    let local = Local::default();
                    return Ok(Some(Stint {
                        sweep: self,
                        look,
                        known,
                        local,
                        held: 0,
                        done: false,
                    }));
                }
                State::Open(_) => {
                    state = self.over.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// One worker's part in a look. Dropped before it is done, it is the end of the sweep.
struct Stint<'a> {
    sweep: &'a Sweep,
    look: Arc<Look>,
    known: Arc<Known>,
    /// What this worker has counted.
    local: Local,
    /// Elements of which the counts are only here.
    held: u64,
    done: bool,
}

impl Stint<'_> {
    /// The next run of elements that is to be looked at.
    fn take(&mut self, blend: &Blend) -> Option<Range<u64>> {
        let mut state = self.sweep.state();
        let State::Open(open) = &mut *state else { return None };
        if open.next >= self.sweep.elements || !Arc::ptr_eq(&open.look, &self.look) {
            return None;
        }
        let start = open.next;
        let end = start + self.look.run(blend, self.sweep.tile);
        open.next = end.min(self.sweep.elements);
        self.held += open.next - start;
        Some(start..open.next)
    }

    /// Hands in what was counted; if that was the last, `conclude` says what follows.
    fn finish(
        mut self,
        conclude: impl FnOnce(&Look, Known, Found) -> Result<Step>,
    ) -> Result<bool> {
        let mut state = self.sweep.state();
        let mut last = false;
        if let State::Open(open) = &mut *state {
            open.found.merge(std::mem::take(&mut self.local));
            open.missing -= self.held;
            // Whoever hands in nothing may come when the last of this look is at its conclusion.
            if open.missing == 0 && self.held > 0 {
                let found = std::mem::take(&mut open.found);
                let known = Known::clone(&open.known);
                // The others wait: there is nothing left to take.
                drop(state);
                let next = match conclude(&self.look, known, found)? {
                    Step::Ready(ready) => {
                        last = true;
                        State::Ready(Arc::from(ready))
                    }
                    Step::Look(look, known) => State::Open(Box::new(Open {
                        look: Arc::new(look),
                        known: Arc::new(known),
                        found: Found::default(),
                        next: 0,
                        missing: self.sweep.elements,
                    })),
                };
                *self.sweep.state() = next;
                self.sweep.over.notify_all();
            }
        }
        self.done = true;
        Ok(last)
    }
}

impl Drop for Stint<'_> {
    fn drop(&mut self) {
        if !self.done {
            *self.sweep.state() = State::Failed;
            self.sweep.over.notify_all();
        }
    }
}

impl Filler<'_> {
    /// Finds out all that must be known of what a range is made of.
    pub(super) fn solve(&self, range: &Range<u64>, scratch: &mut Scratch) -> Result<()> {
        for extent in self.extents.within(range) {
            let Some((output, Part::Blend(blend))) = self.extents.part(extent) else { continue };
            if let Some(sweep) = self.sweeps.of(extent.what) {
                self.sweep(sweep, blend, output, scratch)?;
            }
        }
        Ok(())
    }

    fn sweep(
        &self,
        sweep: &Sweep,
        blend: &Blend,
        output: &Output,
        scratch: &mut Scratch,
    ) -> Result<()> {
        while let Some(mut stint) = sweep.enter()? {
            while let Some(run) = stint.take(blend) {
                if self.observer.cancelled() {
                    return Err(Error::Interrupted { resumable: true });
                }
                let share =
                    self.look(&stint.look, &stint.known, blend, &run, &mut stint.local, scratch)?;
                self.check_unchanged(blend, output)?;
                if let State::Open(open) = &mut *sweep.state() {
                    open.found.add(run.start, share);
                }
                (self.progress)(sweep.tell(&stint.look, &run));
            }
            let conclude = |look: &Look, known: Known, found: Found| {
                let step = self.conclude(look, known, found, blend, output, scratch)?;
                self.check_unchanged(blend, output)?;
                Ok(step)
            };
            if stint.finish(conclude)? {
                // Looks that were not needed, and what rounding left.
                let rest = sweep.share(sweep.bytes) - sweep.told.load(Ordering::Relaxed);
                (self.progress)(rest);
            }
        }
        Ok(())
    }

    fn check_unchanged(&self, blend: &Blend, output: &Output) -> Result<()> {
        for slice in blend.slices() {
            self.source(slice.source)?.check_unchanged(Some(&output.name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Dtype, Shape};
    use crate::plan::{Keep, Slice, SourceId, Term};

    #[test]
    fn a_look_is_concluded_once() {
        let dtype = Dtype::F32;
        let slice = Slice { source: SourceId(0), bytes: 0..40, dtype, shape: Shape(vec![10]) };
        let keep = Keep::Largest { skip: 0, count: 5 };
        let term = Term { keep, ..Term::new(slice, 1.0) };
        let blend = Blend::sum(None, vec![term], 1.0);
        let sweep = Sweep::new(&blend, 40, 1 << 20);
        let enter = || sweep.enter().unwrap().unwrap();
        // The other one came while there was something left, and got nothing.
        let (mut first, mut other) = (enter(), enter());
        assert_eq!(first.take(&blend), Some(0..10));
        assert_eq!(other.take(&blend), None);
        let mut concluded = 0;
        let conclude = |_: &Look, known: Known, _: Found| {
            other.finish(|_, _, _| panic!("twice")).unwrap();
            concluded += 1;
            Ok(Step::Look(Look::Sums, known))
        };
        assert!(!first.finish(conclude).unwrap());
        assert_eq!(concluded, 1);
        assert!(matches!(*enter().look, Look::Sums));
    }
}
