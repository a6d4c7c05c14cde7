//! Choosing between the CPU and a GPU by what the run's own tiles take on each.
//!
//! Work begins on the CPU at once, while the GPU is started beside it. Then some tiles go to the GPU, as many to the CPU, reading
//! included, and the faster one goes on. Every device gives the same bytes, so only time depends on it, and a run loses
//! no more than those tiles' difference. A GPU that fails leaves the rest to the CPU.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::device::{BlendTile, Device, Health, HostMemory};
use super::simd::Simd;
use super::sweep::{Digit, SweepTile};
use crate::error::{Error, Result};

/// Tiles of each trial that do not count, for each worker: the first ones allocate and warm up.
const IGNORED: u64 = 4;
/// Tiles of each trial that do, for each worker.
const COUNTED: u64 = 8;
/// Workers that are reckoned with at least: a few tiles say little.
const FEWEST: u64 = 8;
/// The GPU goes on if it takes less than this part of the CPU's time.
const GAIN: f64 = 0.95;

/// The device that is the CPU until a GPU proves faster.
pub struct Auto {
    cpu: Simd,
    workers: u64,
    shared: Arc<Shared>,
    start: Option<JoinHandle<()>>,
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
    /// Says whether that is enough.
    fn add(&mut self, bytes: u64, time: Duration, workers: u64) -> bool {
        self.tiles += 1;
        if self.tiles > IGNORED * workers {
            self.bytes += bytes;
            self.time += time;
        }
        self.tiles >= (IGNORED + COUNTED) * workers
    }

    /// Bytes of the result a second and worker.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

impl Auto {
    /// Starts a GPU with `start`, in the background. `workers` is how many tiles are at work at once.
    pub fn new(
        workers: usize,
        start: impl FnOnce() -> Result<Box<dyn Device>> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let started =
            thread::Builder::new().name("start-gpu".into()).spawn(move || match start() {
                Ok(gpu) => {
                    let _ = theirs.gpu.set(gpu);
                    theirs.state().phase = Phase::TryGpu;
                }
                Err(error) => theirs.give_up(&error),
            });
        if let Err(e) = &started {
            shared.decide(false, format!("no thread to start the GPU: {e}"), true);
        }
        let workers = FEWEST.max(workers as u64);
        Self { cpu: Simd::new(), workers, shared, start: started.ok() }
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

    /// Does it on the device of the moment, and on the CPU if that fails. What fails has changed nothing.
    fn on<T>(&self, mut work: impl FnMut(&dyn Device) -> Result<T>) -> Result<T> {
        let mut pick = self.pick();
        loop {
            match work(pick.device) {
                Err(error) => pick = pick.instead(&error).ok_or(error)?,
                done => return done,
            }
        }
    }

    fn current(&self) -> &dyn Device {
        self.pick().device
    }

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
        self.on(|device| device.blend(tile, out))
    }

    fn sums(&self, tile: &SweepTile<'_>, sums: &mut [f64]) -> Result<()> {
        self.on(|device| device.sums(tile, sums))
    }

    fn histogram(&self, tile: &SweepTile<'_>, digit: Digit, counts: &mut [u64]) -> Result<()> {
        self.on(|device| device.histogram(tile, digit, counts))
    }

    fn memory(&self, bytes: usize) -> Result<HostMemory> {
        self.on(|device| device.memory(bytes))
    }

    fn wants_own_memory(&self) -> bool {
        self.current().wants_own_memory()
    }

    fn as_simd(&self) -> Option<Simd> {
        self.current().as_simd()
    }

    fn as_auto(&self) -> Option<&Auto> {
        Some(self)
    }
}

impl Drop for Auto {
    /// The driver takes itself down when the process ends: nobody may be in it then.
    fn drop(&mut self) {
        if let Some(start) = self.start.take() {
            let _ = start.join();
        }
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
                if state.gpu.add(bytes, time, auto.workers) {
                    state.phase = Phase::TryCpu;
                }
            }
            Phase::TryCpu => {
                if state.cpu.add(bytes, time, auto.workers) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A GPU by name only.
    struct Gpu;

    impl Device for Gpu {
        fn name(&self) -> String {
            "gpu".into()
        }

        fn blend(&self, _: &BlendTile<'_>, _: &mut [u8]) -> Result<Health> {
            Err(failure())
        }

        fn sums(&self, _: &SweepTile<'_>, _: &mut [f64]) -> Result<()> {
            Err(failure())
        }

        fn histogram(&self, _: &SweepTile<'_>, _: Digit, _: &mut [u64]) -> Result<()> {
            Err(failure())
        }
    }

    fn failure() -> Error {
        Error::Device {
            device: "gpu".into(),
            reason: "it fell off the bus".into(),
            hint: "restart".into(),
        }
    }

    /// With the GPU started.
    fn started() -> Auto {
        let auto = Auto::new(1, || Ok(Box::new(Gpu)));
        while auto.shared.state().phase == Phase::Starting {
            thread::yield_now();
        }
        auto
    }

    /// Does tiles until the choice is made; those of the GPU take `gpu` ms, those of the CPU `cpu`. Counts them.
    fn decide(auto: &Auto, gpu: u64, cpu: u64) -> [usize; 2] {
        let mut tiles = [0, 0];
        while auto.verdict().reason.is_none() {
            let pick = auto.pick();
            let on_gpu = pick.device.name() == "gpu";
            tiles[usize::from(on_gpu)] += 1;
            pick.took(1 << 20, Duration::from_millis(if on_gpu { gpu } else { cpu }));
        }
        tiles
    }

    #[test]
    fn the_faster_one_goes_on() {
        for (gpu, cpu, expected) in [(1, 2, "gpu"), (2, 1, "simd"), (98, 100, "simd")] {
            let auto = started();
            let tiles = decide(&auto, gpu, cpu);
            assert!(auto.name().starts_with(expected), "{gpu} {cpu}: {}", auto.name());
            let verdict = auto.verdict();
            assert!(!verdict.failed);
            let reason = verdict.reason.unwrap();
            assert!(reason.contains("gpu makes") && reason.contains("simd"), "{reason}");
            assert_eq!(tiles, [96, 96], "as many of each");
        }
    }

    #[test]
    fn first_tiles_do_not_count() {
        let auto = started();
        for _ in 0..IGNORED * FEWEST {
            auto.pick().took(1 << 20, Duration::from_secs(100));
        }
        decide(&auto, 1, 2);
        assert_eq!(auto.name(), "gpu");
    }

    #[test]
    fn tiles_of_another_phase_do_not_count() {
        let auto = Auto::new(1, || Err(failure()));
        let early = auto.pick();
        let auto = started();
        let stale = Pick { device: early.device, auto: Some((&auto, Phase::TryCpu)) };
        for _ in 0..1000 {
            stale.took(1 << 20, Duration::from_millis(1));
        }
        assert_eq!(auto.shared.state().phase, Phase::TryGpu);
    }

    #[test]
    fn what_does_not_start_leaves_the_work_to_the_cpu() {
        let auto = Auto::new(1, || Err(failure()));
        while auto.shared.state().phase == Phase::Starting {
            thread::yield_now();
        }
        let verdict = auto.verdict();
        assert!(verdict.failed && auto.name().starts_with("simd"));
        let reason = verdict.reason.unwrap();
        assert!(reason.contains("fell off the bus") && reason.contains("restart"), "{reason}");
    }

    #[test]
    fn what_fails_later_leaves_the_rest_to_the_cpu() {
        let auto = started();
        let pick = auto.pick();
        assert_eq!(pick.device.name(), "gpu");
        let full = Error::Interrupted { resumable: true };
        assert!(pick.instead(&full).is_none(), "not the GPU's fault");
        let instead = pick.instead(&failure()).unwrap();
        assert!(instead.device.name().starts_with("simd"));
        assert!(instead.instead(&failure()).is_none(), "the CPU has none to stand in");
        // A worker that was on the GPU at the same time does the same.
        assert!(pick.instead(&failure()).is_some());
        assert!(auto.verdict().failed);
        assert!(Pick::of(&Simd::new()).instead(&failure()).is_none(), "no choice, no other");
    }
}
