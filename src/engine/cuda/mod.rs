//! The GPU device: the kernels of `kernels/`, launched through the driver that is loaded when it is asked for.
//!
//! Workers take their tiles to it as they would compute them themselves, each over a lane of its own: reading from disk, copying
//! to the GPU, computing, copying back, hashing and writing overlap because different workers are at different steps.
//! Operands are read into page-locked memory, so that the copies need no detour.
//!
//! [`gpus`] says what is there, [`Cuda::new`] starts GPUs, [`Cuda::blend_resident`] computes on tensors that are on a GPU already.

mod driver;
mod failure;
mod gpu;
mod kernels;
mod lane;
mod pool;
mod resident;
mod rules;

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

pub use driver::{Gpu, gpus, is_installed};
pub use resident::{ResidentBlend, ResidentOperand};

use self::gpu::OpenGpu;
use self::kernels::MAX_TERMS;
use self::pool::Pool;
use super::device::{BlendTile, Checked, Device, Health, HostMemory};
use super::sweep::{self, Digit, SweepTile};
use crate::error::{Error, Result};

/// Which GPUs to use and how much of them.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Their numbers; empty means every GPU there is.
    pub gpus: Vec<u32>,
    /// Most bytes of memory on all of them together, but for what the driver itself takes.
    pub memory: Option<u64>,
    /// How many tiles are at work at once, at most: the number of worker threads. 0 leaves it open.
    pub lanes: usize,
}

/// The device that computes on GPUs.
pub struct Cuda {
    gpus: Vec<Arc<OpenGpu>>,
    pool: Pool,
}

impl Cuda {
    /// Starts the GPUs: a context on each, with the kernels.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] as [`gpus`] gives it, or if a GPU asked for is not among them or does not start.
    pub fn new(options: &CudaOptions) -> Result<Self> {
        let chosen = check(&options.gpus)?;
        let gpus = open(chosen)?;
        let pool = Pool::new(gpus.clone(), options.memory, options.lanes);
        Ok(Self { gpus, pool })
    }

    /// The GPUs at work.
    pub fn gpus(&self) -> Vec<Gpu> {
        self.gpus.iter().map(|open| open.gpu.clone()).collect()
    }
}

/// The GPUs of these numbers, each once; all if there is none.
///
/// # Errors
///
/// [`Error::Device`] as [`gpus`] gives it, or if a GPU is not there.
pub fn check(numbers: &[u32]) -> Result<Vec<Gpu>> {
    let present = gpus()?;
    if numbers.is_empty() {
        return Ok(present);
    }
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(|number| pick(&present, number)).collect()
}

/// All at once: the driver takes its time for each.
fn open(chosen: Vec<Gpu>) -> Result<Vec<Arc<OpenGpu>>> {
    thread::scope(|scope| {
        let start = |gpu: Gpu| scope.spawn(move || OpenGpu::open(gpu).map(Arc::new));
        let started: Vec<_> = chosen.into_iter().map(start).collect();
        started
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|e| resume_unwind(e)))
            .collect()
    })
}

fn pick(present: &[Gpu], number: u32) -> Result<Gpu> {
    let found = present.iter().find(|gpu| gpu.index == number);
    found.cloned().ok_or_else(|| {
        let list: Vec<String> = present.iter().map(ToString::to_string).collect();
        Error::Device {
            device: format!("cuda:{number}"),
            reason: format!("there is no GPU {number}"),
            hint: format!("there are: {}", list.join(", ")),
        }
    })
}

impl Device for Cuda {
    fn name(&self) -> String {
        let names: Vec<String> = self.gpus.iter().map(|open| open.gpu.to_string()).collect();
        names.join(", ")
    }

    fn blend(&self, tile: &BlendTile<'_>, out: &mut [u8]) -> Result<Health> {
        let tile = Checked::new(tile, out)?;
        check_terms(tile.terms.len(), &self.name())?;
        self.pool.with_lane(None, |lane| lane.blend(&tile, out))
    }

    fn sums(&self, tile: &SweepTile<'_>, sums: &mut [f64]) -> Result<()> {
        let tile = sweep::Checked::of_sums(tile, sums)?;
        check_terms(tile.terms.len(), &self.name())?;
        self.pool.with_lane(None, |lane| lane.sums(&tile, sums))
    }

    fn histogram(&self, tile: &SweepTile<'_>, digit: Digit, counts: &mut [u64]) -> Result<()> {
        let tile = sweep::Checked::of_histogram(tile, digit, counts)?;
        self.pool.with_lane(None, |lane| lane.histogram(&tile, digit, counts))
    }

    fn memory(&self, bytes: usize) -> Result<HostMemory> {
        match self.gpus.first() {
            Some(gpu) => gpu.host_memory(bytes),
            None => Ok(Box::new(vec![0; bytes])),
        }
    }

    fn wants_own_memory(&self) -> bool {
        true
    }
}

fn check_terms(terms: usize, device: &str) -> Result<()> {
    if terms <= MAX_TERMS {
        return Ok(());
    }
    Err(Error::Device {
        device: device.into(),
        reason: format!("{terms} terms at once; the kernels take {MAX_TERMS}"),
        hint: "use `--device cpu`".into(),
    })
}
