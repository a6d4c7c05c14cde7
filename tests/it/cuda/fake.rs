//! Builds the fake driver once, describes what it shall be like, runs programs with it and reads its record.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::ptx::as_cpp;
use crate::support::process::{Elo, Outcome, other};
use crate::support::skipped;

/// What a test binary started by [`FakeDriver::inside`] has in its environment.
const INSIDE: &str = "ELO_INSIDE_FAKE_CUDA";

/// A machine with NVIDIA's driver and GPUs, as far as a program can tell. One GPU of 1 GiB and compute capability 9.0,
/// CUDA 12.0, unless said otherwise.
#[derive(Debug)]
pub(crate) struct FakeDriver {
    library: PathBuf,
    knobs: Vec<(String, String)>,
    record: TempDir,
}

/// When work on streams happens; any is allowed, so a program that waits for what it needs sees no difference.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// All other streams are ahead of the one that is waited for.
    OthersFirst,
    /// By chance, from a seed. Without an order nothing happens before it is waited for.
    Shuffled(u32),
}

impl FakeDriver {
    /// One that works.
    pub(crate) fn new() -> Self {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let library = BUILT.get_or_init(|| build("driver", &["driver.cpp", "kernels.cpp"]));
        Self::of(library.clone())
    }

    /// One that runs the shipped PTX instead of its sources.
    pub(crate) fn with_ptx() -> Self {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let library = BUILT.get_or_init(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let ptx = fs::read_to_string(root.join("kernels/elo_surgery.ptx")).unwrap();
            let cpp = as_cpp(&ptx);
            let name = format!("ptx-{}.cpp", &blake3::hash(cpp.as_bytes()).to_hex()[..16]);
            let source = temporary().join(name);
            fs::write(&source, cpp).unwrap();
            build("ptx", &["driver.cpp", source.to_str().unwrap()])
        });
        Self::of(library.clone())
    }

    /// One of which most functions are missing.
    pub(crate) fn broken() -> Self {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        Self::of(BUILT.get_or_init(|| build("broken", &["broken.cpp"])).clone())
    }

    /// A file that is no library.
    pub(crate) fn corrupt() -> Self {
        let library = temporary().join("fake-cuda-corrupt");
        fs::create_dir_all(&library).unwrap();
        for name in ["libcuda.so", "libcuda.so.1"] {
            fs::write(library.join(name), "").unwrap();
        }
        Self::of(library)
    }

    fn of(library: PathBuf) -> Self {
        let record = tempfile::tempdir().unwrap();
        Self { library, knobs: Vec::new(), record }
    }

    fn set(mut self, name: &str, value: &(impl ToString + ?Sized)) -> Self {
        self.knobs.retain(|(old, _)| old != name);
        self.knobs.push((name.to_owned(), value.to_string()));
        self
    }

    /// How many GPUs. None: `cuInit` refuses.
    pub(crate) fn devices(self, count: usize) -> Self {
        self.set("FAKE_CUDA_DEVICES", &count)
    }

    /// The CUDA version of the driver: 11040 is 11.4.
    pub(crate) fn version(self, version: u32) -> Self {
        self.set("FAKE_CUDA_DRIVER", &version)
    }

    /// The compute capability, `7.0`; several by commas, one a GPU.
    pub(crate) fn capability(self, capability: &str) -> Self {
        self.set("FAKE_CUDA_CAPABILITY", capability)
    }

    /// Bytes of memory of each GPU.
    pub(crate) fn memory(self, bytes: u64) -> Self {
        self.set("FAKE_CUDA_MEMORY", &bytes)
    }

    /// Bytes of host memory that may be page-locked.
    pub(crate) fn host_memory(self, bytes: u64) -> Self {
        self.set("FAKE_CUDA_HOST_MEMORY", &bytes)
    }

    /// A GPU that cannot allocate in the order of a stream.
    pub(crate) fn without_pools(self) -> Self {
        self.set("FAKE_CUDA_POOLS", &0)
    }

    /// What `cuInit` gives.
    pub(crate) fn init(self, code: u32) -> Self {
        self.set("FAKE_CUDA_INIT", &code)
    }

    /// `FUNCTION:N:CODE`: the Nth call of a function gives this error; `N+`: and all that follow; `FUNCTION@1`: only
    /// calls that GPU 1 is current for. Several by commas.
    pub(crate) fn fail(self, rules: &str) -> Self {
        self.set("FAKE_CUDA_FAIL", rules)
    }

    /// Microseconds that each copy takes.
    pub(crate) fn latency(self, microseconds: u64) -> Self {
        self.set("FAKE_CUDA_LATENCY_US", &microseconds)
    }

    pub(crate) fn order(self, order: Order) -> Self {
        match order {
            Order::OthersFirst => self.set("FAKE_CUDA_ORDER", "eager"),
            Order::Shuffled(seed) => self.set("FAKE_CUDA_ORDER", &seed),
        }
    }

    /// The program, on this machine.
    pub(crate) fn program(&self, run: Elo) -> Elo {
        self.environment().into_iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// Runs an ignored test of this binary (`cuda::driver::inside::copies`) on this machine.
    pub(crate) fn inside(&self, test: &str) -> Outcome {
        let words = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"];
        let run = other(&env::current_exe().unwrap()).args(words).env(INSIDE, "1");
        let outcome = self.program(run).patience(Duration::from_mins(10)).run();
        assert!(outcome.stdout.contains("running 1 test"), "no such test: {outcome}");
        outcome
    }

    /// [`Self::inside`] of a test that passes.
    #[track_caller]
    pub(crate) fn passes(&self, test: &str) -> Record {
        let outcome = self.inside(test);
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        self.record()
    }

    /// What the last program did. It is written when a program that called the driver ends in an orderly way.
    #[track_caller]
    pub(crate) fn record(&self) -> Record {
        self.find_record().expect("the program did not use the driver, or was killed")
    }

    /// `None` where no function of the driver was called.
    pub(crate) fn find_record(&self) -> Option<Record> {
        let text = fs::read(self.log()).ok()?;
        fs::remove_file(self.log()).unwrap();
        Some(Record(serde_json::from_slice(&text).unwrap()))
    }

    fn log(&self) -> PathBuf {
        self.record.path().join("record.json")
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut found = vec![("FAKE_CUDA_LOG".into(), self.log().into_os_string())];
        let mut paths = vec![self.library.clone()];
        paths.extend(env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
        found.push(("LD_LIBRARY_PATH".into(), env::join_paths(paths).unwrap()));
        let knobs = self.knobs.iter().map(|(name, value)| (name.into(), value.into()));
        found.extend(knobs);
        found
    }
}

/// Whether this process was started by [`FakeDriver::inside`]; says so if not.
pub(crate) fn is_inside(test: &str) -> bool {
    let inside = env::var_os(INSIDE).is_some();
    if !inside {
        skipped(test, "it is started by another test, with the fake driver");
    }
    inside
}

/// What happened on the machine.
#[derive(Debug)]
pub(crate) struct Record(pub(crate) Value);

impl Record {
    /// A number of a GPU: `peak` bytes, `allocations`, `frees`, bytes copied `htod` and `dtoh` and of them `htod_locked`
    /// and `dtoh_locked`, `memsets`, `streams`, `most_streams`, `events`, `error`.
    pub(crate) fn device(&self, device: usize, what: &str) -> u64 {
        let found = &self.0["devices"][device][what];
        found.as_u64().unwrap_or_else(|| panic!("no {what} of GPU {device} in {}", self.0))
    }

    /// Most bytes that were page-locked at once.
    pub(crate) fn host_peak(&self) -> u64 {
        self.0["host"]["peak"].as_u64().unwrap()
    }

    /// How often a kernel was launched on a GPU.
    pub(crate) fn launches(&self, device: usize, kernel: &str) -> u64 {
        self.0["devices"][device]["launches"][kernel].as_u64().unwrap_or(0)
    }

    /// Most blocks that a kernel was launched with on a GPU.
    pub(crate) fn blocks(&self, device: usize, kernel: &str) -> u64 {
        self.0["devices"][device]["blocks"][kernel].as_u64().unwrap_or(0)
    }

    /// Launches of all kernels on a GPU.
    pub(crate) fn all_launches(&self, device: usize) -> u64 {
        let all = self.0["devices"][device]["launches"].as_object().unwrap();
        all.values().map(|n| n.as_u64().unwrap()).sum()
    }

    /// How often each function was called.
    pub(crate) fn calls(&self) -> Vec<(String, u64)> {
        let all = self.0["calls"].as_object().unwrap();
        all.iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap())).collect()
    }

    /// What was never given back, or never waited for, in words. Contexts count where `contexts` is said.
    pub(crate) fn leaks(&self, contexts: bool) -> Vec<String> {
        let mut found = Vec::new();
        let devices = self.0["devices"].as_array().unwrap().iter().map(|d| &d["leaks"]);
        for (place, leaks) in devices.chain([&self.0["host"]["leaks"]]).enumerate() {
            for (what, count) in leaks.as_object().unwrap() {
                let lives_on = ["modules", "contexts"].contains(&what.as_str()) && !contexts;
                if count.as_u64() != Some(0) && !lives_on {
                    found.push(format!("{place}: {what}: {count}"));
                }
            }
        }
        if self.0["pending"].as_u64() != Some(0) {
            found.push(format!("never waited for: {}", self.0["pending"]));
        }
        found
    }
}

fn temporary() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Compiles sources of `tests/cuda` (or from elsewhere, by a name that changes with them) to a `libcuda.so.1`, unless that was done; hands back its directory.
fn build(kind: &str, sources: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = env::var("CXX").ok().filter(|c| !c.is_empty()).unwrap_or("c++".into());
    let digest = digest(root, &compiler, sources);
    let done = temporary().join(format!("fake-cuda-{kind}-{digest}"));
    if done.exists() {
        return done;
    }
    let work = tempfile::tempdir_in(temporary()).unwrap();
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command.args("-shared -fPIC -O2 -std=c++17 -ffp-contract=off -Wall -Wextra".split(' '));
    command.args(["-fvisibility=hidden", "-Wl,-soname,libcuda.so.1", "-o"]);
    command.arg(work.path().join("libcuda.so.1")).arg("-I").arg(root.join("tests/cuda"));
    command.args(sources.iter().map(|source| root.join("tests/cuda").join(source)));
    let made = command.output().unwrap_or_else(|e| match e.kind() {
        ErrorKind::NotFound => panic!(
            "no C++ compiler `{compiler}`, which the tests of the CUDA device need: set CXX or install g++"
        ),
        _ => panic!("could not start {command:?}: {e}"),
    });
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{command:?} failed:\n{said}");
    std::os::unix::fs::symlink("libcuda.so.1", work.path().join("libcuda.so")).unwrap();
    // Another process may have been faster: then that one is taken.
    let moved = fs::rename(work.path(), &done);
    assert!(done.exists(), "{}: {moved:?}", done.display());
    done
}

/// What the library is made of.
fn digest(root: &Path, compiler: &str, sources: &[&str]) -> String {
    let mut files: Vec<PathBuf> = ["tests/cuda", "kernels"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension().is_some_and(|e| ["cpp", "h", "cu", "cuh"].iter().any(|x| e == *x))
        })
        .collect();
    files.sort();
    let mut hasher = blake3::Hasher::new();
    hasher.update(compiler.as_bytes());
    hasher.update(sources.concat().as_bytes());
    for file in files {
        hasher.update(file.file_name().unwrap().as_encoded_bytes());
        hasher.update(&fs::read(file).unwrap());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
