//! Lanes, handed to whoever has a tile: as many as tiles are at work at once, shared evenly among the GPUs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::gpu::OpenGpu;
use super::lane::{Lane, NoLane};
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
            let mut place = self.take(wanted);
            let gpu = &self.gpus[place.gpu];
            let _entered = gpu.enter()?;
            // Starting one takes the driver a while; the others go on.
            let lane = place.lane.take().map_or_else(|| Lane::new(gpu, self.limit), Ok);
            let (error, full) = match lane {
                Err(NoLane { error, full }) => (*error, full),
                Ok(mut lane) => match work(&mut lane) {
                    Ok(done) => {
                        place.lane = Some(lane);
                        return Ok(done);
                    }
                    Err(error) => (error, lane.found_no_memory()),
                },
            };
            if !full || (!place.has_others() && place.alone) {
                return Err(error);
            }
            place.is_all_there_is();
        }
    }

    /// Waits for a free lane, or for room for a new one.
    fn take(&self, wanted: Option<usize>) -> Place<'_> {
        let mut state = self.state();
        loop {
            let fits = |gpu: usize| wanted.is_none_or(|wanted| wanted == gpu);
            let free = state.free.iter().position(|(gpu, _)| fits(*gpu));
            if let Some((gpu, lane)) = free.and_then(|at| state.free.remove(at)) {
                let alone = state.gpus[gpu].made == 1;
                return Place { pool: self, gpu, alone, lane: Some(lane) };
            }
            let total: usize = state.gpus.iter().map(|lanes| lanes.made).sum();
            let candidates = (0..self.gpus.len()).filter(|gpu| fits(*gpu)).filter(|&gpu| {
                let Lanes { made, most } = state.gpus[gpu];
                // A caller may insist on a GPU whose lanes went to others: one is allowed.
                made < most && (total < self.most || (wanted.is_some() && made == 0))
            });
            if let Some(gpu) = candidates.min_by_key(|&gpu| state.gpus[gpu].made) {
                let alone = state.gpus[gpu].made == 0;
                state.gpus[gpu].made += 1;
                return Place { pool: self, gpu, alone, lane: None };
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing is left half done under the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one lane of a GPU. A lane that is in it on drop is free for others; without one another may be made, also after a
/// panic.
struct Place<'a> {
    pool: &'a Pool,
    gpu: usize,
    /// Whether it was the only one of its GPU.
    alone: bool,
    lane: Option<Lane>,
}

impl Place<'_> {
    /// Whether there are more lanes on the GPU now.
    fn has_others(&self) -> bool {
        self.pool.state().gpus[self.gpu].made > 1
    }

    /// The GPU has memory for the others and no more.
    fn is_all_there_is(&self) {
        let lanes = &mut self.pool.state().gpus[self.gpu];
        lanes.most = (lanes.made - 1).max(1);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        match self.lane.take() {
            Some(lane) => state.free.push_back((self.gpu, lane)),
            None => state.gpus[self.gpu].made -= 1,
        }
        drop(state);
        self.pool.returned.notify_all();
    }
}
