//! The CUDA device: the suite of every device, and whole plans.

mod inside;

use super::fake::{FakeDriver, Order};

fn test(name: &str) -> String {
    format!("cuda::device::inside::{name}")
}

#[test]
fn conforms_on_one_gpu_and_on_two() {
    for count in [1, 2] {
        for suite in ["conformance::cuda", "devices::cuda"] {
            let record = FakeDriver::new().devices(count).passes(suite);
            assert_eq!(record.leaks(true), [""; 0], "{suite}");
        }
    }
}

/// What NVRTC made of the kernels, with the NaNs that GPUs make.
#[test]
fn the_shipped_ptx_conforms() {
    for suite in ["conformance::cuda", "devices::cuda"] {
        // Thresholds of small parts take no histogram on the device, those of a whole plan do.
        let record = FakeDriver::with_ptx().passes(suite);
        for kernel in ["ruled_single", "masked_sums_single", "histogram_single"] {
            assert!(record.launches(0, kernel) > 0, "{suite}: no {kernel}");
        }
    }
}

#[test]
fn conforms_in_any_order_of_streams() {
    let small = test("whole_plans");
    for order in (1..4).map(Order::Shuffled).chain([Order::OthersFirst]) {
        FakeDriver::new().order(order).passes(&small);
    }
    FakeDriver::new().without_pools().passes(&small);
}

#[test]
fn tiles_threads_and_memory_change_nothing() {
    for count in [1, 3] {
        let record = FakeDriver::new().devices(count).passes(&test("whole_plans_in_many_ways"));
        assert_eq!(record.leaks(true), [""; 0]);
    }
}

/// The whole suite with a GPU that is nearly full all the time.
#[test]
fn little_memory_changes_nothing() {
    FakeDriver::new().memory(600 << 10).passes(&test("whole_plans"));
}

#[test]
fn gpus_are_told_and_chosen() {
    let driver = FakeDriver::new().devices(3).capability("9.0,6.1,7.0");
    let record = driver.passes(&test("the_gpus_that_can_compute"));
    assert_eq!(record.device(1, "allocations"), 0);
}

#[test]
fn tensors_on_a_gpu_are_computed_there() {
    let record = FakeDriver::new().devices(2).passes(&test("resident_blends"));
    assert!(record.all_launches(1) > 0);
    assert_eq!(record.leaks(true), [""; 0]);
}

#[test]
fn large_tiles_are_computed() {
    FakeDriver::new().passes("conformance::cuda_large");
}

#[test]
fn memory_outlives_its_device() {
    let record = FakeDriver::new().passes(&test("memory_is_used_after_its_device"));
    assert_eq!(record.leaks(true), [""; 0]);
}
