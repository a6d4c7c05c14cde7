//! The fake driver itself: it does what a GPU does, and shows what a GPU hides.

mod inside;

use super::fake::{FakeDriver, Order};

const INSIDE: &str = "cuda::driver::inside";

fn test(name: &str) -> String {
    format!("{INSIDE}::{name}")
}

#[test]
fn copies_kernels_and_events_work_in_any_order_of_streams() {
    let orders = (1..4).map(Order::Shuffled).chain([Order::OthersFirst]);
    let drivers = orders.map(|order| FakeDriver::new().order(order));
    let plain = [FakeDriver::new(), FakeDriver::new().without_pools()];
    for driver in plain.into_iter().chain(drivers) {
        let record = driver.passes(&test("a_chat_vector"));
        assert_eq!(record.launches(0, "chat_vector_bf16"), 1, "{record:?}");
        assert_eq!(record.device(0, "htod"), record.device(0, "htod_locked"));
        assert_eq!(record.leaks(true), [""; 0]);
        driver.passes(&test("streams_that_wait_for_each_other"));
    }
}

#[test]
fn the_shipped_kernels_are_all_there() {
    FakeDriver::new().capability("7.0").passes(&test("the_shipped_kernels_load"));
}

#[test]
fn many_threads_share_the_driver() {
    let record = FakeDriver::new().devices(2).passes(&test("many_threads"));
    assert_eq!(record.leaks(true), [""; 0]);
    assert!(record.all_launches(0) > 0 && record.all_launches(1) > 0);
}

#[test]
fn missing_waits_show() {
    FakeDriver::new().passes(&test("a_copy_back_that_is_not_waited_for_is_not_there"));
    FakeDriver::new().passes(&test("a_source_that_is_reused_too_early_is_lost"));
    FakeDriver::new().passes(&test("a_stream_that_does_not_wait_sees_fresh_memory"));
    FakeDriver::new()
        .order(Order::OthersFirst)
        .passes(&test("a_stream_that_runs_ahead_overwrites"));
    FakeDriver::new().passes(&test("an_event_is_asked_twice"));
}

#[test]
fn memory_outside_of_an_allocation_is_not_to_be_touched() {
    FakeDriver::new().passes(&test("copies_stay_within_an_allocation"));
    for (name, says) in [
        ("a_kernel_that_reads_too_far", "kernel chat_vector_bf16 touched"),
        ("a_kernel_that_writes_too_far", "wrote behind the allocation"),
        ("a_kernel_on_freed_memory", "kernel chat_vector_bf16 touched"),
    ] {
        let outcome = FakeDriver::new().inside(&test(name));
        assert_eq!(outcome.signal(), Some(6), "{name}: {outcome}");
        assert!(outcome.stderr.contains(says), "{name}: {outcome}");
    }
    let outcome = FakeDriver::new().devices(2).inside(&test("memory_of_another_gpu"));
    assert_eq!(outcome.signal(), Some(6), "{outcome}");
    assert!(outcome.stderr.contains("was handed memory of another device"), "{outcome}");
}

#[test]
fn memory_has_an_end() {
    let record = FakeDriver::new().memory(1 << 20).passes(&test("a_megabyte_is_a_megabyte"));
    assert_eq!(record.device(0, "peak"), 1 << 20);
    FakeDriver::new().host_memory(10_000).passes(&test("page_locked_memory_has_an_end"));
}

#[test]
fn what_is_kept_is_told() {
    let driver = FakeDriver::new();
    let record = driver.passes(&test("something_is_kept"));
    let kept = [
        "0: allocations: 1",
        "0: bytes: 1000",
        "0: streams: 1",
        "0: contexts: 1",
        "1: allocations: 1",
        "1: bytes: 70",
        "never waited for: 1",
    ];
    assert_eq!(record.leaks(true), kept);
}

#[test]
fn modules_are_refused_for_what_a_driver_refuses() {
    FakeDriver::new().passes(&test("modules_of_all_kinds"));
    FakeDriver::new().capability("7.5").version(12080).passes(&test("modules_for_newer_gpus"));
}

#[test]
fn failures_come_when_asked_for() {
    FakeDriver::new()
        .fail("cuMemAlloc_v2:2:2,cuStreamCreate:1+:999,cuStreamSynchronize:3:700")
        .passes(&test("failures_are_counted_and_some_stay"));
    FakeDriver::new().init(803).passes(&test("the_driver_does_not_start"));
    FakeDriver::new().devices(0).passes(&test("there_is_no_gpu"));
}
