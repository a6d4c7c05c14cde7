//! Lanes, handed to whoever has a tile: as many as tiles are at work at once, shared evenly among the GPUs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::gpu::OpenGpu;
use super::lane::Lane;
use crate::error::Result;

pub(super) struct Pool {
    gpus: Vec<Arc<OpenGpu>>,
    /// Bytes that each lane may take of its GPU.
    limit: usize,
    most: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    /// The one that waited longest first, so that all GPUs take part.
    free: VecDeque<(usize, Lane)>,
    /// Lanes in being, by GPU.
    made: Vec<usize>,
}

impl Pool {
    /// `memory` bytes at most in all lanes; `lanes` of them at most, 0 for as many as are asked for at once.
    pub(super) fn new(gpus: Vec<Arc<OpenGpu>>, memory: Option<u64>, lanes: usize) -> Self {
        // A bound on memory needs a bound on what it is divided by.
        let most = match (lanes, memory) {
            (0, None) => usize::MAX,
            (0, Some(_)) => gpus.len().max(1),
            (lanes, _) => lanes,
        };
        let limit = memory.map_or(u64::MAX, |memory| memory / most as u64);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let state = Mutex::new(State { made: vec![0; gpus.len()], ..State::default() });
        Self { gpus, limit, most, state, returned: Condvar::new() }
    }

    /// Runs work on a lane of any GPU, or of the given one. A lane that fails is given up; what it held is freed.
    pub(super) fn with_lane<T>(
        &self,
        gpu: Option<usize>,
        work: impl FnOnce(&mut Lane) -> Result<T>,
    ) -> Result<T> {
        let mut place = self.take(gpu);
        let open = &self.gpus[place.gpu];
        let _entered = open.enter()?;
        // Starting one takes the driver a while; the others go on.
        let mut lane = match place.lane.take() {
            Some(lane) => lane,
            None => Lane::new(open, self.limit)?,
        };
        let result = work(&mut lane)?;
        place.lane = Some(lane);
        Ok(result)
    }

    /// Waits for a free lane, or for room for a new one.
    fn take(&self, wanted: Option<usize>) -> Place<'_> {
        let mut state = self.state();
        loop {
            let fits = |gpu: usize| wanted.is_none_or(|wanted| wanted == gpu);
            let free = state.free.iter().position(|(gpu, _)| fits(*gpu));
            if let Some((gpu, lane)) = free.and_then(|at| state.free.remove(at)) {
                return Place { pool: self, gpu, lane: Some(lane) };
            }
            let fewest = (0..self.gpus.len()).min_by_key(|&gpu| state.made[gpu]).unwrap_or(0);
            let gpu = wanted.unwrap_or(fewest);
            // One lane a GPU is always allowed: a caller may insist on a GPU whose lanes went to others.
            if state.made.iter().sum::<usize>() < self.most || state.made[gpu] == 0 {
                state.made[gpu] += 1;
                return Place { pool: self, gpu, lane: None };
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker that panicked holds its lane; the list of the others is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one lane of a GPU. What it holds on drop is free for others; if it is empty, another may be made, also after a panic.
struct Place<'a> {
    pool: &'a Pool,
    gpu: usize,
    lane: Option<Lane>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        match self.lane.take() {
            Some(lane) => state.free.push_back((self.gpu, lane)),
            None => state.made[self.gpu] -= 1,
        }
        drop(state);
        self.pool.returned.notify_all();
    }
}
