//! What [`super`] runs with the fake driver loaded.

#![expect(unsafe_code, reason = "hands addresses of GPU memory to the device")]

use cudarc::driver::{CudaContext, DevicePtr as _};
use elo_surgery::engine::cuda::{Cuda, CudaOptions, Gpu, ResidentBlend, ResidentOperand, gpus};
use elo_surgery::engine::{BlendTile, Device as _, Health, Operand, Reference};
use elo_surgery::format::{Dtype, Reading};

use crate::cuda::fake::is_inside;
use crate::devices::run;
use crate::support::random::Random;

fn all() -> Cuda {
    Cuda::new(&CudaOptions::default()).unwrap()
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn whole_plans() {
    if !is_inside("whole_plans") {
        return;
    }
    let expected = run(&Reference, |_| {});
    for threads in [1, 4] {
        let found = run(&all(), |options| options.threads = threads);
        assert!(found == expected, "{threads} threads");
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn whole_plans_in_many_ways() {
    if !is_inside("whole_plans_in_many_ways") {
        return;
    }
    let expected = run(&Reference, |_| {});
    for tile in [4 << 10, 16 << 10, 64 << 10, 1 << 20] {
        for threads in [1, 2, 8] {
            for memory in [None, Some(threads as u64 * 700_000)] {
                for reading in [Reading::Mapped, Reading::Calls] {
                    let options = CudaOptions { memory, lanes: threads, ..CudaOptions::default() };
                    let found = run(&Cuda::new(&options).unwrap(), |options| {
                        (options.tile, options.threads, options.reading) = (tile, threads, reading);
                    });
                    let what = format!("tile {tile}, {threads} threads, {memory:?}, {reading:?}");
                    assert!(found == expected, "{what}");
                }
            }
        }
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn the_gpus_that_can_compute() {
    if !is_inside("the_gpus_that_can_compute") {
        return;
    }
    let gpu = |index, capability| {
        let name = format!("Fake GPU {index}");
        Gpu { index, name, memory: 1 << 30, capability }
    };
    let expected = [gpu(0, (9, 0)), gpu(2, (7, 0))];
    assert_eq!(gpus().unwrap(), expected);
    assert_eq!(all().gpus(), expected);
    let only = Cuda::new(&CudaOptions { gpus: vec![2, 2], ..CudaOptions::default() }).unwrap();
    assert_eq!(only.gpus(), expected[1..]);
    assert_eq!(run(&only, |_| {}), run(&Reference, |_| {}));
    for number in [1, 3] {
        let options = CudaOptions { gpus: vec![number], ..CudaOptions::default() };
        let error = Cuda::new(&options).err().unwrap().to_string();
        assert!(error.contains(&format!("cuda:{number}")), "{error}");
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn resident_blends() {
    if !is_inside("resident_blends") {
        return;
    }
    let device = all();
    let stream = CudaContext::new(1).unwrap().new_stream().unwrap();
    let mut random = Random::new(1);
    for elements in [1, 15, 1000, 5003] {
        let operands = [(); 3].map(|()| random.bf16_weights(elements));
        let places = operands.each_ref().map(|bytes| stream.clone_htod(bytes).unwrap());
        stream.synchronize().unwrap();
        let dtype = &Dtype::BF16;
        let [plus, minus, out] = places.each_ref().map(|place| {
            let address = place.device_ptr(&stream).0;
            ResidentOperand { dtype, address }
        });
        let blend = ResidentBlend {
            elements: elements as u64,
            base: Some(out),
            terms: &[(plus, 1.0), (minus, -1.0)],
            lambda: 0.7,
            out,
        };
        // SAFETY: allocated above on GPU 1 and complete.
        let health = unsafe { device.blend_resident(1, &blend) }.unwrap();
        assert_eq!(health, Health::default());
        let [plus, minus, base] = operands.each_ref().map(|bytes| Operand { dtype, bytes });
        let terms = [(plus, 1.0), (minus, -1.0)];
        let tile = BlendTile { base: Some(base), terms: &terms, lambda: 0.7, dtype, rules: None };
        let mut expected = vec![0; base.bytes.len()];
        Reference.blend(&tile, &mut expected).unwrap();
        assert!(stream.clone_dtoh(&places[2]).unwrap() == expected, "{elements} elements");
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn memory_is_used_after_its_device() {
    if !is_inside("memory_is_used_after_its_device") {
        return;
    }
    let mut memory = all().memory(10_000).unwrap();
    memory.fill(7);
    assert!(memory.iter().all(|byte| *byte == 7));
}
