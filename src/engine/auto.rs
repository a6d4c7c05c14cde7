//! Choosing between the CPU and a GPU by what the run's own tiles take on each.
//!
//! Work begins on the CPU at once, while the GPU is started beside it. Then some tiles go to the GPU, as many to the CPU, reading
//! included, and the faster one goes on. Every device gives the same bytes, so only time depends on it, and a run loses
//! no more than those tiles' difference. A GPU that fails leaves the rest to the CPU.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use super::device::{BlendTile, Device, Health};
use super::simd::Simd;
use super::sweep::{Digit, SweepTile};
use crate::error::{Error, Result};

/// Tiles of each trial that do not count: the first ones allocate and warm up.
const IGNORED: u64 = 32;
/// Tiles of each trial that do.
const COUNTED: u64 = 64;
/// The GPU goes on if it takes less than this part of the CPU's time.
const GAIN: f64 = 0.95;

/// The device that is the CPU until a GPU proves faster.
pub struct Auto {
    cpu: Simd,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    gpu: OnceLock<Box<dyn Device>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    gpu: Meter,
    cpu: Meter,
    verdict: Verdict,
}

/// How far the choice has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The GPU is being started.
    #[default]
    Starting,
    TryGpu,
    TryCpu,
    Decided {
        gpu: bool,
    },
}

/// What came of the choice.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Why the device is what it is, once that is decided: measured rates, or what went wrong.
    pub reason: Option<String>,
    /// The GPU could not be started, or failed later.
    pub failed: bool,
}

/// Tiles of a trial.
#[derive(Default)]
struct Meter {
    tiles: u64,
    bytes: u64,
    time: Duration,
}

impl Meter {
    fn add(&mut self, bytes: u64, time: Duration) {
        self.tiles += 1;
        if self.tiles > IGNORED {
            self.bytes += bytes;
            self.time += time;
        }
    }

    fn is_full(&self) -> bool {
        self.tiles >= IGNORED + COUNTED
    }

    /// Bytes of the result a second and worker.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

impl Auto {
    /// Starts a GPU with `start`, in the background.
    pub fn new(start: impl FnOnce() -> Result<Box<dyn Device>> + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        // Nobody waits for it: a run that ends first does not need it.
        let started =
            thread::Builder::new().name("start-gpu".into()).spawn(move || match start() {
                Ok(gpu) => {
                    let _ = theirs.gpu.set(gpu);
                    theirs.state().phase = Phase::TryGpu;
                }
                Err(error) => theirs.give_up(&error),
            });
        if let Err(e) = started {
            shared.decide(false, format!("no thread to start the GPU: {e}"), true);
        }
        Self { cpu: Simd::new(), shared }
    }

    /// What has come of the choice so far.
    pub fn verdict(&self) -> Verdict {
        self.shared.state().verdict.clone()
    }

    /// Where the next tile goes.
    pub(super) fn pick(&self) -> Pick<'_> {
        let phase = self.shared.state().phase;
        let device = match (phase, self.shared.gpu.get()) {
            (Phase::TryGpu | Phase::Decided { gpu: true }, Some(gpu)) => gpu.as_ref(),
            _ => &self.cpu,
        };
        Pick { device, auto: Some((self, phase)) }
    }

    fn current(&self) -> &dyn Device {
        self.pick().device
    }
}

impl Shared {
    /// Nothing is left half done under the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, gpu: bool, reason: String, failed: bool) {
        let mut state = self.state();
        state.phase = Phase::Decided { gpu };
        state.verdict = Verdict { reason: Some(reason), failed };
    }

    fn give_up(&self, error: &Error) {
        let mut reason = error.to_string();
        if let Some(hint) = error.hint() {
            let _ = write!(reason, " ({hint})");
        }
        self.decide(false, reason, true);
    }
}

impl Device for Auto {
    fn name(&self) -> String {
        self.current().name()
    }

    fn blend(&self, tile: &BlendTile<'_>, out: &mut [u8]) -> Result<Health> {
        self.current().blend(tile, out)
    }

    fn sums(&self, tile: &SweepTile<'_>, sums: &mut [f64]) -> Result<()> {
        self.current().sums(tile, sums)
    }

    fn histogram(&self, tile: &SweepTile<'_>, digit: Digit, counts: &mut [u64]) -> Result<()> {
        self.current().histogram(tile, digit, counts)
    }

    fn as_auto(&self) -> Option<&Auto> {
        Some(self)
    }
}

/// The device of one tile. Whoever takes it says what became of it.
#[derive(Clone, Copy)]
pub(super) struct Pick<'a> {
    pub(super) device: &'a dyn Device,
    auto: Option<(&'a Auto, Phase)>,
}

impl<'a> Pick<'a> {
    pub(super) fn of(device: &'a dyn Device) -> Self {
        device.as_auto().map_or(Self { device, auto: None }, Auto::pick)
    }

    /// A tile's bytes were read and computed in this time.
    pub(super) fn took(&self, bytes: u64, time: Duration) {
        let Some((auto, phase)) = self.auto else {
            return;
        };
        let mut state = auto.shared.state();
        if state.phase != phase {
            return;
        }
        match phase {
            Phase::TryGpu => {
                state.gpu.add(bytes, time);
                if state.gpu.is_full() {
                    state.phase = Phase::TryCpu;
                }
            }
            Phase::TryCpu => {
                state.cpu.add(bytes, time);
                if state.cpu.is_full() {
                    let (gpu, cpu) = (state.gpu.rate(), state.cpu.rate());
                    drop(state);
                    auto.decide(gpu, cpu);
                }
            }
            Phase::Starting | Phase::Decided { .. } => {}
        }
    }

    /// The device failed. Gives the one to take instead, if there is one.
    pub(super) fn instead(&self, error: &Error) -> Option<Pick<'a>> {
        let (auto, phase) = self.auto?;
        let was_gpu = matches!(phase, Phase::TryGpu | Phase::Decided { gpu: true });
        if !was_gpu || !matches!(error, Error::Device { .. }) {
            return None;
        }
        auto.shared.give_up(error);
        Some(auto.pick())
    }
}

impl Auto {
    fn decide(&self, gpu_rate: f64, cpu_rate: f64) {
        let gpu = gpu_rate * GAIN > cpu_rate;
        let name = self.shared.gpu.get().map_or_else(String::new, |gpu| gpu.name());
        let reason = format!(
            "of the result a second and thread, {name} makes {:.2} GB and {} {:.2} GB",
            gpu_rate / 1e9,
            self.cpu.name(),
            cpu_rate / 1e9
        );
        self.shared.decide(gpu, reason, false);
    }
}
