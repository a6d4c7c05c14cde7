//! `auto`: the CPU and a GPU side by side, whichever wins and whenever the GPU fails.

use super::fake::{FakeDriver, Record};

/// Runs plans until the choice is made; the files are always those of the reference.
fn decide(driver: &FakeDriver) -> (String, Option<Record>) {
    let outcome = driver.inside("devices::auto");
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    (outcome.stdout, driver.find_record())
}

#[test]
fn both_are_tried() {
    let (verdict, record) = decide(&FakeDriver::new());
    assert!(verdict.contains("cuda:0 (Fake GPU 0) makes"), "{verdict}");
    let record = record.unwrap();
    let launches = |kernel: &str| record.launches(0, kernel);
    let blends = launches("chat_vector_bf16") + launches("blend_single") + launches("ruled_single");
    assert!(blends >= 2 * 96, "{blends} blends in two trials");
    assert!(launches("sums_single") > 0, "sweeps go where tiles go");
}

#[test]
fn a_gpu_that_does_not_start_is_no_failure() {
    for driver in [
        FakeDriver::new().devices(0),
        FakeDriver::new().version(11040),
        FakeDriver::new().init(803),
        FakeDriver::new().fail("cuModuleLoadData:1+:222"),
        FakeDriver::broken(),
        FakeDriver::corrupt(),
    ] {
        let (verdict, _) = decide(&driver);
        assert!(verdict.contains("failed: true"), "{driver:?}: {verdict}");
        assert!(verdict.contains("simd"), "{driver:?}: {verdict}");
    }
}

#[test]
fn a_gpu_that_fails_at_work_leaves_the_rest_to_the_cpu() {
    for rule in [
        "cuLaunchKernel:1+:700",
        "cuLaunchKernel:50+:719",
        "cuMemcpyHtoDAsync_v2:200+:999",
        "cuMemAllocAsync:1+:2",
        "cuMemHostAlloc:3+:999",
        "cuEventSynchronize:40+:719",
    ] {
        let (verdict, _) = decide(&FakeDriver::new().fail(rule));
        assert!(verdict.contains("failed: true"), "{rule}: {verdict}");
    }
}
