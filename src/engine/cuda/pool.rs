//! Lanes, handed to whoever has a tile: as many as tiles are at work at once, shared evenly among the GPUs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::lane::{Lane, NoLane, OpenGpu};
use crate::error::Result;

/// Memory below which another lane is not worth having, where memory is bounded: few pieces are faster than many small ones.
const WORTH_A_LANE: u64 = 1 << 20;

pub(super) struct Pool {
    gpus: Vec<Arc<OpenGpu>>,
    /// Bytes that each lane may take of its GPU, if they are bounded.
    limit: Option<usize>,
    most: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    /// The one that waited longest first, so that all GPUs take part.
    free: VecDeque<(usize, Lane)>,
    gpus: Vec<Lanes>,
}

/// The lanes of a GPU.
#[derive(Clone, Copy)]
struct Lanes {
    /// In being.
    made: usize,
    /// As many as it had memory for when it was full; any number before.
    most: usize,
}

impl Pool {
    /// `memory` bytes at most in all lanes; `lanes` of them at most, 0 for as many as are asked for at once.
    pub(super) fn new(gpus: Vec<Arc<OpenGpu>>, memory: Option<u64>, lanes: usize) -> Self {
        // A bound on memory needs a bound on what it is divided by.
        let most = match (lanes, memory) {
            (0, None) => usize::MAX,
            (0, Some(_)) => gpus.len(),
            (lanes, _) => lanes,
        };
        let affordable = memory.map_or(u64::MAX, |memory| memory / WORTH_A_LANE);
        let most = most.min(usize::try_from(affordable).unwrap_or(usize::MAX)).max(1);
        let share = |memory| usize::try_from(memory / most as u64).unwrap_or(usize::MAX);
        let lanes = vec![Lanes { made: 0, most: usize::MAX }; gpus.len()];
        let state = Mutex::new(State { gpus: lanes, ..State::default() });
        Self { gpus, limit: memory.map(share), most, state, returned: Condvar::new() }
    }

    /// Runs work on a lane of any GPU, or of the given one. A lane that fails is given up; what it held is freed.
    ///
    /// Work for which a GPU has no memory left begins anew on a lane that others have done with.
    pub(super) fn with_lane<T>(
        &self,
        wanted: Option<usize>,
        mut work: impl FnMut(&mut Lane) -> Result<T>,
    ) -> Result<T> {
        loop {
            let (gpu, alone, lane) = self.take(wanted);
            let (error, full) = match lane {
                Err(NoLane { error, full }) => (*error, full),
                Ok(mut lane) => match work(&mut lane) {
                    Ok(done) => {
                        self.state().free.push_back((gpu, lane));
                        self.returned.notify_all();
                        return Ok(done);
                    }
                    Err(error) => (error, lane.found_no_memory()),
                },
            };
            if !self.give_up(gpu, full) && (alone || !full) {
                return Err(error);
            }
        }
    }

    /// Counts a lane that is gone. Says whether there are others on its GPU, which had what this one lacked.
    fn give_up(&self, gpu: usize, full: bool) -> bool {
        let mut state = self.state();
        let lanes = &mut state.gpus[gpu];
        lanes.made -= 1;
        if full {
            lanes.most = lanes.made.max(1);
        }
        let others = lanes.made > 0;
        drop(state);
        self.returned.notify_all();
        full && others
    }

    /// A lane, its GPU, and whether it was that GPU's only one.
    fn take(&self, wanted: Option<usize>) -> (usize, bool, Result<Lane, NoLane>) {
        let mut state = self.state();
        let (gpu, alone) = loop {
            let fits = |gpu: usize| wanted.is_none_or(|wanted| wanted == gpu);
            let free = state.free.iter().position(|(gpu, _)| fits(*gpu));
            if let Some((gpu, lane)) = free.and_then(|at| state.free.remove(at)) {
                return (gpu, state.gpus[gpu].made == 1, Ok(lane));
            }
            let total: usize = state.gpus.iter().map(|lanes| lanes.made).sum();
            let candidates = (0..self.gpus.len()).filter(|gpu| fits(*gpu)).filter(|&gpu| {
                let Lanes { made, most } = state.gpus[gpu];
                // A caller may insist on a GPU whose lanes went to others: one is allowed.
                made < most && (total < self.most || (wanted.is_some() && made == 0))
            });
            if let Some(gpu) = candidates.min_by_key(|&gpu| state.gpus[gpu].made) {
                break (gpu, state.gpus[gpu].made == 0);
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.gpus[gpu].made += 1;
        drop(state);
        // Starting one takes the driver a while; the others go on.
        (gpu, alone, Lane::new(&self.gpus[gpu], self.limit))
    }

    /// A worker that panicked holds its lane; the list of the others is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
