//! Every function of the driver that a run calls fails, early and late: a clean error, nothing half made, and the work goes on
//! from where it was.

use super::fake::FakeDriver;
use super::program::Family;
use crate::support::process::Elo;
use crate::support::tree::{assert_same, model_files};

/// Functions that only give back: by then the result is complete, and the driver takes the rest back itself.
const GIVE_BACK: [&str; 8] = [
    // Every second call leaves a context.
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
    // Work is waited for by events; this is asked of streams that have nothing to do.
    "cuStreamSynchronize",
];

fn run(family: &Family, out: &str) -> Elo {
    family.chat_vector(out).args(["--device", "cuda", "-j", "2"])
}

/// Fails call `n` of a function, and with `onward` all that follow. Says what was wrong with the run, and with the next one.
fn fails_cleanly(family: &Family, function: &str, n: u64, onward: &str, code: u32) -> Vec<String> {
    let rule = format!("{function}:{n}{onward}:{code}");
    let driver = FakeDriver::new().fail(&rule);
    let outcome = driver.program(run(family, "out")).run();
    // How many calls there are depends on the threads: this one may not have come.
    let calls = driver.find_record().map_or_else(Vec::new, |record| record.calls());
    let count = calls.iter().find(|(name, _)| name == function).map_or(0, |(_, count)| *count);
    let came = count >= n;
    // Contexts are chosen to give back, too, and each of the two lanes waits a last time, with nothing left to wait for.
    let last = (function.starts_with("cuCtx") && n > 1)
        || (["cuEventRecord", "cuEventSynchronize"].contains(&function) && n + 2 > count);
    let gives_back = GIVE_BACK.contains(&function) || last;
    let must_fail = came && !gives_back;
    let succeeded = outcome.code() == Some(0);
    let says_why = outcome.stderr.contains("CUDA_ERROR") && outcome.stderr.contains("hint:");
    let out = family.path("out");
    let mut problems = Vec::new();
    if outcome.signal().is_some() || outcome.panicked() {
        problems.push(format!("{rule}: {outcome}"));
    } else if succeeded && must_fail {
        problems.push(format!("{rule} was not noticed: {outcome}"));
    } else if !succeeded && (!came || outcome.code() != Some(1) || out.exists()) {
        problems.push(format!("{rule}: no clean failure: {outcome}"));
    } else if !succeeded && !says_why {
        problems.push(format!("{rule}: says too little: {outcome}"));
    }
    if !succeeded {
        let again = FakeDriver::new().program(run(family, "out")).run();
        if again.code() != Some(0) {
            problems.push(format!("after {rule}: {again}"));
        }
    }
    if out.exists() {
        assert_same(&model_files(&out), &family.expected, &rule);
        std::fs::remove_dir_all(&out).unwrap();
    }
    problems
}

#[test]
fn every_function_may_fail() {
    let family = Family::new();
    let clean = FakeDriver::new();
    clean.program(run(&family, "clean")).ok();
    let calls = clean.record().calls();
    assert!(calls.len() > 20, "{calls:?}");
    let mut problems = Vec::new();
    for (function, count) in calls {
        let mut at = vec![1, count.div_ceil(2), count];
        at.dedup();
        for (n, code) in at.into_iter().zip([719, 999, 719]) {
            problems.extend(fails_cleanly(&family, &function, n, "", code));
        }
        problems.extend(fails_cleanly(&family, &function, 1, "+", 999));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// One of two GPUs falls off the bus.
#[test]
fn one_gpu_of_two_fails() {
    let family = Family::new();
    for function in
        ["cuLaunchKernel", "cuMemcpyDtoHAsync_v2", "cuEventSynchronize", "cuStreamCreate"]
    {
        let rule = format!("{function}@1:1+:719");
        let driver = FakeDriver::new().devices(2).latency(300).fail(&rule);
        let outcome =
            driver.program(family.chat_vector("out").args(["--device", "cuda", "-j", "4"])).run();
        outcome.expect(1, &["cuda:1", "CUDA_ERROR_LAUNCH_FAILED", "hint:"]);
        assert!(!family.path("out").exists());
        FakeDriver::new().devices(2).program(run(&family, "out")).ok();
        assert_same(&model_files(&family.path("out")), &family.expected, &rule);
        std::fs::remove_dir_all(family.path("out")).unwrap();
    }
}

/// A run that failed on the GPU goes on without it.
#[test]
fn the_cpu_finishes_what_a_gpu_began() {
    let family = Family::new();
    let driver = FakeDriver::new().fail("cuLaunchKernel:12:700");
    driver
        .program(run(&family, "out"))
        .fails(1)
        .expect(1, &["CUDA_ERROR_ILLEGAL_ADDRESS", "--device cpu"]);
    family.chat_vector("out").with("--device", "cpu").ok();
    assert_same(&model_files(&family.path("out")), &family.expected, "on the CPU");
}
