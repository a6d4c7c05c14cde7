//! The program with `--device cuda`: the same files, within bounds, on the GPUs that were asked for, or a reason why not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::fake::FakeDriver;
use crate::lora::make_adapter;
use crate::support::checkpoint::Model;
use crate::support::process::{Elo, elo};
use crate::support::tree::{Tree, assert_same, model_files};

/// Three models of some 1.7 MB, and what comes of them on the CPU.
pub(super) struct Family {
    root: TempDir,
    pub(super) expected: Tree,
}

impl Family {
    pub(super) fn new() -> Self {
        let root = TempDir::new().unwrap();
        let model = Model {
            layers: 4,
            hidden: 128,
            intermediate: 256,
            vocabulary: 1024,
            shards: 3,
            seed: 0,
        };
        for (seed, role) in (1..).zip(["inst", "base", "into"]) {
            Model { seed, ..model }.at(root.path(), role);
        }
        let mut family = Self { root, expected: Tree::new() };
        let out = family.path("expected");
        family.chat_vector("expected").with("--device", "cpu").ok();
        family.expected = model_files(&out);
        family
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// A run that writes to `out`, in tiles of 64 KiB.
    pub(super) fn chat_vector(&self, out: &str) -> Elo {
        self.in_tiles(out, "64KiB")
    }

    fn in_tiles(&self, out: &str, tile: &str) -> Elo {
        elo("chat-vector --no-sync --scale 0.7")
            .with("--tile", tile)
            .with("--inst", self.path("inst"))
            .with("--base", self.path("base"))
            .with("--into", self.path("into"))
            .with("--out", self.path(out))
    }
}

/// What is made on the host goes to the GPU like any f32 operand.
#[test]
fn adapters_go_to_the_gpu() {
    let family = Family::new();
    let adapter = family.path("adapter");
    make_adapter(&adapter, &[("model.layers.1.mlp.up_proj", [256, 128])], 3, 1);
    let apply = |out: &str, device: &str| {
        let run = elo("lora apply --no-sync --tile 64KiB").with("--into", family.path("into"));
        let run = run.with("--adapter", &adapter).with("--out", family.path(out));
        run.with("--device", device)
    };
    apply("cpu", "cpu").ok();
    let driver = FakeDriver::new();
    driver.program(apply("gpu", "cuda")).ok();
    assert_same(&model_files(&family.path("gpu")), &model_files(&family.path("cpu")), "adapter");
    assert!(driver.record().all_launches(0) > 0);
}

#[test]
fn files_are_those_of_the_cpu() {
    let family = Family::new();
    for (i, words) in ["", "-j 1", "-j 7", "--io read", "--link never"].iter().enumerate() {
        let driver = FakeDriver::new();
        let out = format!("out-{i}");
        let run = family.in_tiles(&out, ["64KiB", "1MiB"][i % 2]).args(words.split_whitespace());
        driver.program(run.with("--device", "cuda")).ok();
        assert_same(&model_files(&family.path(&out)), &family.expected, words);
        let record = driver.record();
        assert!(record.launches(0, "chat_vector_bf16") > 0, "{words}: {record:?}");
        assert_eq!(record.all_launches(0), record.launches(0, "chat_vector_bf16"), "{words}");
        // A thread of a block has 16 elements at most in a step; the largest tensor has 1024 rows of 128.
        let blocks = if i % 2 == 0 { 32_768 / 4096 } else { 131_072 / 4096 };
        assert_eq!(record.blocks(0, "chat_vector_bf16"), blocks, "{words}");
        assert_eq!(record.leaks(true), [""; 0], "{words}");
        let once = ("cuDriverGetVersion".to_owned(), 1);
        assert!(record.calls().contains(&once), "what is there is asked once: {words}");
        assert_eq!(record.device(0, "dtoh"), record.device(0, "dtoh_locked"), "{words}");
        assert_eq!(record.device(0, "htod"), record.device(0, "htod_locked"), "{words}");
    }
}

/// From the oldest driver and GPU to ones that came after the kernels, and a GPU that allocates without streams.
#[test]
fn files_are_the_same_on_every_gpu() {
    let family = Family::new();
    let drivers = [
        FakeDriver::new().capability("7.0"),
        FakeDriver::new().version(13000).capability("12.0"),
        FakeDriver::new().without_pools(),
        FakeDriver::new().devices(4).capability("9.0,8.6"),
    ];
    for (i, driver) in drivers.into_iter().enumerate() {
        let out = format!("out-{i}");
        driver.program(family.chat_vector(&out).args(["--device", "cuda", "-j", "3"])).ok();
        assert_same(&model_files(&family.path(&out)), &family.expected, &format!("{driver:?}"));
        assert_eq!(driver.record().leaks(true), [""; 0], "{driver:?}");
    }
}

#[test]
fn an_interrupt_ends_the_run_and_it_can_be_resumed() {
    let family = Family::new();
    let driver = FakeDriver::new().latency(20_000);
    let run = family.chat_vector("out").args(["--device", "cuda", "-j", "2"]);
    let mut running = driver.program(run.clone()).start();
    while !family.path(".out.elo-staging").exists() {
        assert!(!running.is_over());
        std::thread::sleep(Duration::from_millis(5));
    }
    running.interrupt();
    running.finish(Duration::from_mins(2)).expect(130, &["interrupted"]);
    assert!(!family.path("out").exists());
    assert_eq!(driver.record().leaks(true), [""; 0]);
    let driver = FakeDriver::new();
    driver.program(run).ok();
    assert_same(&model_files(&family.path("out")), &family.expected, "resumed");
}

#[test]
fn memory_stays_within_bounds() {
    let family = Family::new();
    for (i, (threads, limit)) in
        [(1, 200_000), (2, 400_000), (8, 10_000), (8, 300_000), (4, 3_000_000)].iter().enumerate()
    {
        let driver = FakeDriver::new().devices(1 + i % 2);
        let out = format!("out-{i}");
        let run = family
            .chat_vector(&out)
            .args(["--device", "cuda", "-j", &threads.to_string()])
            .args(["--device-memory", &limit.to_string(), "--memory", "20MB"]);
        driver.program(run).ok();
        assert_same(&model_files(&family.path(&out)), &family.expected, &out);
        let record = driver.record();
        let peak: u64 = (0..=i % 2).map(|device| record.device(device, "peak")).sum();
        assert!(peak <= *limit, "{peak} bytes of {limit}, {threads} threads");
        assert!(peak > (limit / 4).min(200_000), "{peak} bytes of {limit}");
        assert!(record.host_peak() <= 20_000_000);
    }
}

#[test]
fn page_locked_memory_is_what_the_budget_says() {
    let family = Family::new();
    for threads in [1, 3] {
        let driver = FakeDriver::new();
        let out = format!("out-{threads}");
        let run = family.chat_vector(&out).args(["--device", "cuda", "-j", &threads.to_string()]);
        driver.program(run).ok();
        let record = driver.record();
        // The output and three operands of 64 KiB, an element at each end, and the counters.
        let most = threads * 4 * ((64 << 10) + 4096);
        assert!(record.host_peak() <= most, "{} of {most}", record.host_peak());
    }
}

/// Another program has the rest of the GPU: pieces get smaller, bytes stay.
#[test]
fn a_full_gpu_gets_smaller_pieces() {
    let family = Family::new();
    for (i, memory) in [140_000, 200_000, 300_000].into_iter().enumerate() {
        let driver = FakeDriver::new().memory(memory);
        let out = format!("out-{i}");
        let run = family.in_tiles(&out, "1MiB").args(["--device", "cuda", "-j", "1"]);
        driver.program(run).ok();
        assert_same(&model_files(&family.path(&out)), &family.expected, &out);
        assert!(driver.record().device(0, "peak") <= memory);
    }
    // More threads than the GPU has room for wait for each other.
    for (i, memory) in [140_000, 300_000, 1_000_000].into_iter().enumerate() {
        let driver = FakeDriver::new().memory(memory).devices(1 + i % 2);
        let out = format!("crowded-{i}");
        driver.program(family.chat_vector(&out).args(["--device", "cuda", "-j", "8"])).ok();
        assert_same(&model_files(&family.path(&out)), &family.expected, &out);
    }
    let driver = FakeDriver::new();
    let run = family.chat_vector("none").args(["--device", "cuda", "--device-memory", "500"]);
    driver.program(run).run().expect(1, &["too little", "--device-memory"]);
    assert!(!family.path("none").exists());
    let driver = FakeDriver::new().memory(1000);
    let run = driver.program(family.chat_vector("none").with("--device", "cuda"));
    run.fails(1).expect(1, &["out of GPU memory", "nvidia-smi", "--device cpu"]);
    assert!(!family.path("none").exists());
}

/// Where the system locks no more pages, plain memory does: the copies are the driver's trouble then.
#[test]
fn memory_that_is_not_page_locked_does_too() {
    let family = Family::new();
    for limit in [0, 100_000] {
        let driver = FakeDriver::new().host_memory(limit);
        let out = format!("out-{limit}");
        driver.program(family.chat_vector(&out).with("--device", "cuda")).ok();
        assert_same(&model_files(&family.path(&out)), &family.expected, &out);
        let record = driver.record();
        assert!(record.device(0, "htod") > record.device(0, "htod_locked"));
    }
}

#[test]
fn gpus_share_the_work() {
    let family = Family::new();
    let driver = FakeDriver::new().devices(2).latency(300);
    driver.program(family.chat_vector("both").args(["--device", "cuda", "-j", "4"])).ok();
    let record = driver.record();
    let [first, second] = [0, 1].map(|device| record.all_launches(device));
    assert!(first > 0 && second > 0, "{first} and {second}");
    assert_eq!(record.leaks(true), [""; 0]);
    assert_same(&model_files(&family.path("both")), &family.expected, "two GPUs");

    let driver = FakeDriver::new().devices(3);
    driver.program(family.chat_vector("last").args(["--device", "cuda:2", "-j", "4"])).ok();
    let record = driver.record();
    let launches = [0, 1, 2].map(|device| record.all_launches(device));
    assert!(launches[..2] == [0, 0] && launches[2] > 0, "{launches:?}");
    assert_eq!([0, 1].map(|device| record.device(device, "allocations")), [0, 0]);
    assert_same(&model_files(&family.path("last")), &family.expected, "the third GPU");
}

/// Every way in which a machine has no GPU to offer: what it is, and what to do.
#[test]
fn a_machine_without_a_gpu_says_why() {
    let family = Family::new();
    let cases = [
        (FakeDriver::new().devices(0), "sees no GPU"),
        (FakeDriver::new().version(11040), "too old: it is made for CUDA 11.4"),
        (FakeDriver::new().capability("6.1"), "compute capability 6.1"),
        (FakeDriver::new().init(803), "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        (FakeDriver::new().init(804), "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"),
        (FakeDriver::new().init(999), "CUDA_ERROR_UNKNOWN"),
        (FakeDriver::broken(), "has no function"),
        (FakeDriver::corrupt(), "cannot be loaded"),
    ];
    for (driver, says) in cases {
        let run = driver.program(family.chat_vector("none").with("--device", "cuda"));
        run.run().expect(1, &[says, "hint:", "--device cpu"]);
        assert!(!family.path("none").exists(), "{says}");
        let left: Vec<_> = std::fs::read_dir(family.root()).unwrap().collect();
        assert_eq!(left.len(), 4, "{says}: {left:?}");
    }
    let driver = FakeDriver::new();
    let run = driver.program(family.chat_vector("none").with("--device", "cuda:1"));
    run.run().expect(1, &["cuda:1", "there is no GPU 1", "cuda:0 (Fake GPU 0)"]);
}

/// What is not asked of a GPU does not start one.
#[test]
fn the_driver_is_left_alone_unless_asked_for() {
    let family = Family::new();
    for (i, device) in ["cpu", "auto"].into_iter().enumerate() {
        let driver = FakeDriver::new();
        let out = format!("out-{i}");
        driver.program(family.chat_vector(&out).with("--device", device)).ok();
        assert!(driver.find_record().is_none(), "{device}");
        assert_same(&model_files(&family.path(&out)), &family.expected, device);
    }
}
