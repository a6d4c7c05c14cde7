//! What [`super`] runs with the fake driver loaded: straight calls of the driver, none of the product's code.

#![expect(unsafe_code, reason = "calls the driver to see what it does")]

use std::ffi::CString;
use std::sync::Arc;
use std::thread;

use cudarc::driver::result::{self, DriverError, event, module, stream};
use cudarc::driver::sys::{
    self, CUevent_flags, CUevent_wait_flags, CUfunction, CUresult, CUstream,
};
use cudarc::driver::{CudaContext, DeviceRepr, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::Ptx;
use elo_surgery::engine::{BlendTile, Device as _, Operand, Reference};
use elo_surgery::format::Dtype;

use crate::cuda::fake::is_inside;
use crate::support::random::Random;

const KERNEL: &str = "chat_vector_bf16";
const SHIPPED: &str = include_str!("../../../../kernels/elo_surgery.ptx");

/// The parameters of the chat vector kernels, as `kernels/blend.cuh` has them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Blend {
    elements: u64,
    out: u64,
    base: u64,
    health: u64,
    term: [u64; 64],
    weight: [f32; 64],
    lambda: f32,
    unused: f32,
    terms: u32,
    term_dtype: [u8; 64],
    out_dtype: u8,
    base_dtype: u8,
    padding: [u8; 2],
}

// SAFETY: numbers only, laid out as C lays them out.
unsafe impl DeviceRepr for Blend {}

impl Blend {
    /// `base + x0 - x1` of bf16.
    fn new(elements: usize, out: u64, base: u64, x: [u64; 2], health: u64) -> Self {
        let mut blend = Self {
            elements: elements as u64,
            out,
            base,
            health,
            term: [0; 64],
            weight: [0.0; 64],
            lambda: 1.0,
            unused: 0.0,
            terms: 2,
            term_dtype: [3; 64],
            out_dtype: 3,
            base_dtype: 3,
            padding: [0; 2],
        };
        blend.term[..2].copy_from_slice(&x);
        blend.weight[..2].copy_from_slice(&[1.0, -1.0]);
        blend
    }
}

/// The first GPU and a stream, by the plain functions.
struct Gpu {
    _context: Arc<CudaContext>,
    stream: CUstream,
}

impl Gpu {
    fn new() -> Self {
        Self::numbered(0)
    }

    fn numbered(index: usize) -> Self {
        let context = CudaContext::new(index).unwrap();
        let stream = stream::create(stream::StreamKind::NonBlocking).unwrap();
        Self { _context: context, stream }
    }

    fn launch(&self, blend: &mut Blend) {
        let function = kernel(SHIPPED, KERNEL).unwrap();
        let mut parameters = [std::ptr::from_mut(blend).cast()];
        // SAFETY: this is the kernel's parameter.
        unsafe {
            result::launch_kernel(function, (3, 1, 1), (256, 1, 1), 0, self.stream, &mut parameters)
        }
        .unwrap();
    }

    fn wait(&self) {
        // SAFETY: the stream exists.
        unsafe { stream::synchronize(self.stream) }.unwrap();
    }
}

/// Memory of the current GPU.
fn alloc(bytes: usize) -> u64 {
    // SAFETY: nothing is touched.
    unsafe { result::malloc_sync(bytes) }.unwrap()
}

fn kernel(ptx: &str, name: &str) -> Result<CUfunction, DriverError> {
    let image = CString::new(ptx).unwrap();
    // SAFETY: the text ends with a zero.
    unsafe {
        let module = module::load_data(image.as_ptr().cast())?;
        module::get_function(module, CString::new(name).unwrap())
    }
}

/// Page-locked bytes that are never freed.
fn locked(bytes: &[u8]) -> &'static mut [u8] {
    // SAFETY: the driver's memory is filled before it is lent.
    unsafe {
        let start = result::malloc_host(bytes.len(), 0).unwrap().cast::<u8>();
        start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        std::slice::from_raw_parts_mut(start, bytes.len())
    }
}

fn code<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |e| e.0)
}

fn expected(base: &[u8], x: [&[u8]; 2]) -> Vec<u8> {
    let operand = |bytes| Operand { dtype: &Dtype::BF16, bytes };
    let terms = [(operand(x[0]), 1.0), (operand(x[1]), -1.0)];
    let dtype = &Dtype::BF16;
    let tile =
        BlendTile { base: Some(operand(base)), terms: &terms, lambda: 1.0, dtype, rules: None };
    let mut out = vec![0; base.len()];
    Reference.blend(&tile, &mut out).unwrap();
    out
}

/// By `cudarc`'s safe types, as a program would.
fn safe_chat_vector(context: &Arc<CudaContext>, seed: u64, elements: usize) {
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_src(SHIPPED)).unwrap();
    let function = module.load_function(KERNEL).unwrap();
    let mut random = Random::new(seed);
    let sources: Vec<_> = (0..3).map(|_| random.bf16_weights(elements)).collect();
    let mut operands = Vec::new();
    for source in &sources {
        // SAFETY: filled before it is read.
        let (mut host, mut device) = unsafe {
            (
                context.alloc_pinned::<u8>(source.len()).unwrap(),
                stream.alloc::<u8>(source.len()).unwrap(),
            )
        };
        host.as_mut_slice().unwrap().copy_from_slice(source);
        stream.memcpy_htod(&host, &mut device).unwrap();
        operands.push((host, device));
    }
    // SAFETY: the kernel writes all of it.
    let mut out = unsafe { stream.alloc::<u8>(elements * 2) }.unwrap();
    let mut health = stream.alloc_zeros::<u64>(3).unwrap();
    {
        use cudarc::driver::{DevicePtr as _, DevicePtrMut as _};
        let places: Vec<u64> = operands.iter().map(|(_, d)| d.device_ptr(&stream).0).collect();
        let (out, health) = (out.device_ptr_mut(&stream).0, health.device_ptr_mut(&stream).0);
        let blend = Blend::new(elements, out, places[2], [places[0], places[1]], health);
        let config =
            LaunchConfig { grid_dim: (2, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: this is the kernel's parameter, and the memory is as large as it says.
        unsafe { stream.launch_builder(&function).arg(&blend).launch(config) }.unwrap();
    }
    // SAFETY: filled before it is read.
    let mut back = unsafe { context.alloc_pinned::<u8>(elements * 2) }.unwrap();
    stream.memcpy_dtoh(&out, &mut back).unwrap();
    let found = back.as_slice().unwrap();
    assert!(found == expected(&sources[2], [&sources[0], &sources[1]]), "seed {seed}");
    let counts = stream.clone_dtoh(&health).unwrap();
    assert_eq!(counts, [0, 0, 0]);
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_chat_vector() {
    if !is_inside("a_chat_vector") {
        return;
    }
    safe_chat_vector(&CudaContext::new(0).unwrap(), 1, 12_345);
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn many_threads() {
    if !is_inside("many_threads") {
        return;
    }
    let contexts = [0, 1].map(|i| CudaContext::new(i).unwrap());
    thread::scope(|scope| {
        for seed in 0..8 {
            let context = &contexts[usize::try_from(seed % 2).unwrap()];
            scope.spawn(move || {
                for round in 0..4 {
                    safe_chat_vector(context, seed * 100 + round, 3000);
                }
            });
        }
    });
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn the_shipped_kernels_load() {
    if !is_inside("the_shipped_kernels_load") {
        return;
    }
    let _gpu = Gpu::new();
    let names: Vec<&str> = SHIPPED
        .split(".entry ")
        .skip(1)
        .map(|rest| rest.split('(').next().unwrap().trim())
        .collect();
    assert!(names.contains(&KERNEL) && names.contains(&"blend_double"), "{names:?}");
    for name in names {
        kernel(SHIPPED, name).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    assert_eq!(code(kernel(SHIPPED, "chat_vector")), CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn streams_that_wait_for_each_other() {
    if !is_inside("streams_that_wait_for_each_other") {
        return;
    }
    let gpu = Gpu::new();
    let other = stream::create(stream::StreamKind::NonBlocking).unwrap();
    let ready = event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
    let (memory, source, back) = (alloc(1000), locked(&[7; 1000]), locked(&[0; 1000]));
    // SAFETY: the memory lives on; the waits are what is tested.
    unsafe {
        for round in 1..50 {
            source.fill(round);
            result::memcpy_htod_async(memory, source, gpu.stream).unwrap();
            event::record(ready, gpu.stream).unwrap();
            stream::wait_event(other, ready, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT).unwrap();
            result::memcpy_dtoh_async(back, memory, other).unwrap();
            event::record(ready, other).unwrap();
            stream::wait_event(gpu.stream, ready, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                .unwrap();
            event::synchronize(ready).unwrap();
            assert!(back.iter().all(|b| *b == round));
        }
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_copy_back_that_is_not_waited_for_is_not_there() {
    if !is_inside("a_copy_back_that_is_not_waited_for_is_not_there") {
        return;
    }
    let gpu = Gpu::new();
    let (memory, source, back) = (alloc(100), locked(&[7; 100]), locked(&[7; 100]));
    // SAFETY: the memory lives on; that it is not waited for is the point.
    unsafe {
        result::memcpy_htod_async(memory, source, gpu.stream).unwrap();
        result::memcpy_dtoh_async(back, memory, gpu.stream).unwrap();
        assert!(back.iter().all(|b| *b != 7), "not even where it was right before");
        gpu.wait();
        assert!(back.iter().all(|b| *b == 7));
        // Memory that is not page-locked is waited for by the driver.
        let mut pageable = vec![0_u8; 100];
        result::memcpy_dtoh_async(&mut pageable, memory, gpu.stream).unwrap();
        assert_eq!(pageable, [7; 100]);
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_source_that_is_reused_too_early_is_lost() {
    if !is_inside("a_source_that_is_reused_too_early_is_lost") {
        return;
    }
    let gpu = Gpu::new();
    let (memory, source) = (alloc(100), locked(&[1; 100]));
    let read = || {
        let mut back = vec![0_u8; 100];
        // SAFETY: as large as the allocation.
        unsafe { result::memcpy_dtoh_sync(&mut back, memory) }.unwrap();
        back
    };
    // SAFETY: the memory lives on; that it is written too early is the point.
    unsafe {
        result::memcpy_htod_async(memory, source, gpu.stream).unwrap();
        assert_eq!(read(), [0xa5; 100], "another stream does not wait for this one");
        source.fill(2);
        gpu.wait();
        assert_eq!(read(), [2; 100]);
        let mut pageable = vec![3_u8; 100];
        result::memcpy_htod_async(memory, &pageable, gpu.stream).unwrap();
        pageable.fill(4);
        gpu.wait();
        assert_eq!(read(), [3; 100]);
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_stream_that_does_not_wait_sees_fresh_memory() {
    if !is_inside("a_stream_that_does_not_wait_sees_fresh_memory") {
        return;
    }
    let gpu = Gpu::new();
    let other = stream::create(stream::StreamKind::NonBlocking).unwrap();
    let (memory, source, back) = (alloc(100), locked(&[1; 100]), locked(&[0; 100]));
    // SAFETY: the memory lives on; the missing wait is the point.
    unsafe {
        result::memcpy_htod_async(memory, source, gpu.stream).unwrap();
        result::memcpy_dtoh_async(back, memory, other).unwrap();
        stream::synchronize(other).unwrap();
        assert!(back.iter().all(|b| *b == 0xa5));
        // Memory of a stream is not there for others before that stream has come to it.
        let early = result::malloc_async(gpu.stream, 100).unwrap();
        result::memcpy_dtoh_async(back, early, other).unwrap();
        let code = code(stream::synchronize(other));
        assert_eq!(code, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_stream_that_runs_ahead_overwrites() {
    if !is_inside("a_stream_that_runs_ahead_overwrites") {
        return;
    }
    let gpu = Gpu::new();
    let other = stream::create(stream::StreamKind::NonBlocking).unwrap();
    let (memory, back) = (alloc(100), locked(&[0; 100]));
    let (first, second) = (locked(&[1; 100]), locked(&[2; 100]));
    // SAFETY: the memory lives on; the missing wait is the point.
    unsafe {
        result::memcpy_htod_async(memory, first, gpu.stream).unwrap();
        result::memcpy_dtoh_async(back, memory, gpu.stream).unwrap();
        result::memcpy_htod_async(memory, second, other).unwrap();
        gpu.wait();
        assert!(back.iter().all(|b| *b == 1), "each stream is in order");
        result::memcpy_dtoh_async(back, memory, gpu.stream).unwrap();
        result::memcpy_htod_async(memory, first, other).unwrap();
        gpu.wait();
        assert!(back.iter().all(|b| *b == 1), "but it was 2 when the copy back was asked for");
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn an_event_is_asked_twice() {
    if !is_inside("an_event_is_asked_twice") {
        return;
    }
    let gpu = Gpu::new();
    let done = event::create(CUevent_flags::CU_EVENT_DEFAULT).unwrap();
    // SAFETY: handles that exist.
    unsafe {
        event::query(done).unwrap();
        event::record(done, gpu.stream).unwrap();
        assert_eq!(code(event::query(done)), CUresult::CUDA_ERROR_NOT_READY);
        event::query(done).unwrap();
        assert!(event::elapsed(done, done).unwrap().abs() < f32::EPSILON);
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn copies_stay_within_an_allocation() {
    const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

    if !is_inside("copies_stay_within_an_allocation") {
        return;
    }
    let gpu = Gpu::new();
    let (memory, beside) = (alloc(1000), alloc(1000));
    assert!(memory.is_multiple_of(16));
    let mut host = vec![0_u8; 1001];
    // SAFETY: what is wrong is refused.
    unsafe {
        result::memcpy_htod_sync(memory, &host[..1000]).unwrap();
        result::memcpy_htod_sync(memory + 999, &host[..1]).unwrap();
        assert_eq!(code(result::memcpy_htod_sync(memory, &host)), INVALID);
        assert_eq!(code(result::memcpy_htod_sync(memory - 1, &host[..1])), INVALID);
        assert_eq!(code(result::memcpy_dtoh_sync(&mut host, memory)), INVALID);
        assert_eq!(code(result::memset_d8_async(memory + 1, 0, 1000, gpu.stream)), INVALID);
        assert_eq!(code(result::free_sync(memory + 1)), INVALID);
        result::free_sync(memory).unwrap();
        assert_eq!(code(result::free_sync(memory)), INVALID);
        assert_eq!(code(result::memcpy_htod_sync(memory, &host[..1])), INVALID);
        let page_locked = locked(&[0; 100]);
        let beyond = std::slice::from_raw_parts(page_locked.as_ptr(), 101);
        assert_eq!(code(result::memcpy_htod_async(beside, beyond, gpu.stream)), INVALID);
        result::ctx::set_current(std::ptr::null_mut()).unwrap();
        let nowhere = code(result::memcpy_htod_sync(beside, &host[..1]));
        assert_eq!(nowhere, CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
}

/// Operands of `elements`, of which the first term has `first`, the result `out`.
fn operands(elements: usize, first: usize, out: usize) -> Blend {
    let health = alloc(24);
    let [x0, x1, base] = [first, elements, elements].map(|count| {
        let operand = alloc(count * 2);
        // SAFETY: as large as the allocation.
        unsafe { result::memset_d8_sync(operand, 0, count * 2) }.unwrap();
        operand
    });
    Blend::new(elements, alloc(out * 2), base, [x0, x1], health)
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_kernel_that_reads_too_far() {
    if !is_inside("a_kernel_that_reads_too_far") {
        return;
    }
    let gpu = Gpu::new();
    let mut blend = operands(1000, 992, 1000);
    gpu.launch(&mut blend);
    gpu.wait();
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_kernel_that_writes_too_far() {
    if !is_inside("a_kernel_that_writes_too_far") {
        return;
    }
    let gpu = Gpu::new();
    // Three elements too many, which the last sixteen bytes still hold.
    let mut blend = operands(1000, 1000, 997);
    gpu.launch(&mut blend);
    // SAFETY: allocated above.
    unsafe { result::free_sync(blend.out) }.unwrap();
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_kernel_on_freed_memory() {
    if !is_inside("a_kernel_on_freed_memory") {
        return;
    }
    let gpu = Gpu::new();
    let mut blend = operands(1000, 1000, 1000);
    // SAFETY: allocated above; the use that follows is the point.
    unsafe { result::free_sync(blend.base) }.unwrap();
    gpu.launch(&mut blend);
    gpu.wait();
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn memory_of_another_gpu() {
    if !is_inside("memory_of_another_gpu") {
        return;
    }
    let _other = Gpu::numbered(1);
    let base = alloc(2000);
    let gpu = Gpu::new();
    let mut blend = operands(1000, 1000, 1000);
    blend.base = base;
    gpu.launch(&mut blend);
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn a_megabyte_is_a_megabyte() {
    const FULL: CUresult = CUresult::CUDA_ERROR_OUT_OF_MEMORY;

    if !is_inside("a_megabyte_is_a_megabyte") {
        return;
    }
    let gpu = Gpu::new();
    let total = 1 << 20;
    assert_eq!(result::mem_get_info().unwrap(), (total, total));
    let first = alloc(total - 10);
    assert_eq!(result::mem_get_info().unwrap(), (10, total));
    // SAFETY: nothing is touched.
    unsafe {
        assert_eq!(code(result::malloc_sync(11)), FULL);
        assert_eq!(code(result::malloc_async(gpu.stream, 11)), FULL);
        // What is freed on a stream comes back.
        result::free_async(first, gpu.stream).unwrap();
        let second = result::malloc_async(gpu.stream, total).unwrap();
        assert_eq!(code(result::malloc_sync(1)), FULL);
        result::free_sync(second).unwrap();
    }
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn page_locked_memory_has_an_end() {
    if !is_inside("page_locked_memory_has_an_end") {
        return;
    }
    let _gpu = Gpu::new();
    let _first = locked(&[0; 9000]);
    // SAFETY: nothing is touched.
    let second = unsafe { result::malloc_host(1001, 0) };
    assert_eq!(code(second), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let _last = locked(&[0; 1000]);
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn something_is_kept() {
    if !is_inside("something_is_kept") {
        return;
    }
    let gpu = Gpu::new();
    let (memory, freed, host) = (alloc(1000), alloc(500), locked(&[1; 70]));
    // SAFETY: the memory lives on.
    unsafe {
        result::free_sync(freed).unwrap();
        result::memcpy_htod_async(memory, host, gpu.stream).unwrap();
    }
    std::mem::forget(gpu);
}

fn ptx(version: &str, target: &str) -> String {
    format!(
        "// generated\n.version {version}\n.target {target}\n.address_size 64\n.visible .entry {KERNEL}(\n\t.param .align 8 \
         .b8 p[8]\n)\n{{ ret; }}\n.visible .entry unknown_to_the_cpu(\n) {{ ret; }}\n"
    )
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn modules_of_all_kinds() {
    use CUresult::{
        CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_INVALID_PTX, CUDA_ERROR_NO_BINARY_FOR_GPU,
        CUDA_ERROR_NOT_FOUND, CUDA_ERROR_UNSUPPORTED_PTX_VERSION, CUDA_SUCCESS,
    };

    if !is_inside("modules_of_all_kinds") {
        return;
    }
    let _gpu = Gpu::new();
    for (version, target, expected) in [
        ("8.0", "sm_70", CUDA_SUCCESS),
        ("7.0", "sm_90", CUDA_SUCCESS),
        ("8.0", "sm_90a", CUDA_SUCCESS),
        ("8.0", "sm_80a", CUDA_ERROR_NO_BINARY_FOR_GPU),
        ("8.0", "sm_100", CUDA_ERROR_NO_BINARY_FOR_GPU),
        ("8.1", "sm_70", CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
        ("9.0", "sm_100", CUDA_ERROR_UNSUPPORTED_PTX_VERSION),
        ("8.0", "volta", CUDA_ERROR_INVALID_PTX),
    ] {
        assert_eq!(code(kernel(&ptx(version, target), KERNEL)), expected, "{version} {target}");
    }
    assert_eq!(code(kernel("\x7fELF", KERNEL)), CUDA_ERROR_INVALID_IMAGE);
    assert_eq!(code(kernel("", KERNEL)), CUDA_ERROR_INVALID_IMAGE);
    let good = ptx("8.0", "sm_70");
    assert_eq!(code(kernel(&good, "blend_single")), CUDA_ERROR_NOT_FOUND);
    assert_eq!(code(kernel(&good, "unknown_to_the_cpu")), CUDA_ERROR_NOT_FOUND);
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn modules_for_newer_gpus() {
    if !is_inside("modules_for_newer_gpus") {
        return;
    }
    let _gpu = Gpu::new();
    kernel(&ptx("8.7", "sm_75"), KERNEL).unwrap();
    let newer = code(kernel(&ptx("8.7", "sm_80"), KERNEL));
    assert_eq!(newer, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
}

/// With `cuMemAlloc_v2:2:2,cuStreamCreate:1+:999,cuStreamSynchronize:3:700`.
#[test]
#[ignore = "runs inside the fake driver: see super"]
fn failures_are_counted_and_some_stay() {
    use CUresult::{
        CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_UNKNOWN, CUDA_SUCCESS,
    };

    if !is_inside("failures_are_counted_and_some_stay") {
        return;
    }
    let _context = CudaContext::new(0).unwrap();
    let alloc = || {
        // SAFETY: nothing is touched.
        code(unsafe { result::malloc_sync(100) })
    };
    assert_eq!([alloc(), alloc(), alloc()], [CUDA_SUCCESS, CUDA_ERROR_OUT_OF_MEMORY, CUDA_SUCCESS]);
    for _ in 0..3 {
        let created = stream::create(stream::StreamKind::NonBlocking);
        assert_eq!(code(created), CUDA_ERROR_UNKNOWN);
    }
    for expected in [CUDA_SUCCESS, CUDA_SUCCESS, CUDA_ERROR_ILLEGAL_ADDRESS] {
        // SAFETY: the null stream.
        assert_eq!(code(unsafe { stream::synchronize(stream::null()) }), expected);
    }
    assert_eq!(alloc(), CUDA_ERROR_ILLEGAL_ADDRESS);
    let error = DriverError(CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(error.error_name().unwrap(), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(error.error_string().unwrap(), c"an illegal memory access was encountered");
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn the_driver_does_not_start() {
    if !is_inside("the_driver_does_not_start") {
        return;
    }
    assert_eq!(code(result::init()), CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH);
    let count = code(result::device::get_count());
    assert_eq!(count, CUresult::CUDA_ERROR_NOT_INITIALIZED);
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().unwrap();
    assert_eq!(version, 12000);
}

#[test]
#[ignore = "runs inside the fake driver: see super"]
fn there_is_no_gpu() {
    if !is_inside("there_is_no_gpu") {
        return;
    }
    assert_eq!(code(CudaContext::new(0)), CUresult::CUDA_ERROR_NO_DEVICE);
}
