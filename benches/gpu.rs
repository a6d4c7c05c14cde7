//! What only a GPU can tell: the speed of every kernel beside a copy within the GPU, and of the way there and back beside the CPU.
//!
//! `cargo run --release --example gpu [SECONDS]` prints Markdown. `benches/gpu_check.sh` is the whole check.

#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a measurement: it fails loudly, prints, and rounds"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr as _};
use elo_surgery::engine::cuda::{Cuda, CudaOptions, ResidentBlend, ResidentOperand};
use elo_surgery::engine::sweep::{Digit, SweepTile, leaves_of, sums_of};
use elo_surgery::engine::{BlendTile, Device, Edge, Mask, Operand, Rules, Simd, TermRule};
use elo_surgery::format::Dtype;
use elo_surgery::plan::{Divide, Vote};

use Dtype::{BF16, F8E4M3, F8E5M2, F16, F32, F64};

/// Base, terms, result.
type Shape = (Option<Dtype>, Vec<Dtype>, Dtype);

fn main() {
    let seconds = std::env::args().nth(1).map_or(0.5, |text| text.parse().unwrap());
    let time = Duration::from_secs_f64(seconds);
    let cuda = match Cuda::new(&CudaOptions::default()) {
        Ok(cuda) => cuda,
        Err(error) => {
            println!("{error}\nhint: {}", error.hint().unwrap_or_default());
            std::process::exit(1);
        }
    };
    println!("| GPU | memory GB | compute capability |\n|---|---:|---:|");
    for gpu in cuda.gpus() {
        let (major, minor) = gpu.capability;
        println!("| {} | {:.1} | {major}.{minor} |", gpu.name, gpu.memory as f64 / 1e9);
    }
    kernels(&cuda, time);
    sweeps(&cuda, time);
    rules(&cuda, time);
    ways(&cuda, time);
}

/// Sums and histograms of a tile in host memory: the copy there is part of it.
fn sweeps(cuda: &Cuda, time: Duration) {
    println!("\nSweeps of a tile of 64 MiB bf16 in page-locked memory, GB/s of the operands.\n");
    println!("| sweep | CPU, one thread | GPU, one lane |\n|---|---:|---:|");
    let bytes = 64 << 20;
    for terms in [1, 2, 3] {
        let rate = |device: &dyn Device| {
            let mut made: Vec<_> = (0..=terms).map(|_| cuda.memory(bytes).unwrap()).collect();
            for memory in &mut made {
                memory.fill(0x3c);
            }
            let operands: Vec<_> =
                made.iter().map(|m| Operand { dtype: &BF16, bytes: &m[..bytes] }).collect();
            let tile = SweepTile::new(Some(operands[0]), &operands[1..]);
            let mut sums = vec![0.0; leaves_of(bytes / 2) * sums_of(terms)];
            fastest((terms + 1) * bytes, time, || device.sums(&tile, &mut sums).unwrap())
        };
        println!("| sums, base and {terms} | {:.1} | {:.1} |", rate(&Simd::new()), rate(cuda));
    }
    let rate = |device: &dyn Device| {
        let mut memory = cuda.memory(bytes).unwrap();
        memory.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 31 % 251) as u8 & 0x3f);
        let terms = [Operand { dtype: &BF16, bytes: &memory[..bytes] }];
        let tile = SweepTile::new(None, &terms);
        let mut counts = vec![0; Digit::High.bins()];
        fastest(bytes, time, || device.histogram(&tile, Digit::High, &mut counts).unwrap())
    };
    println!("| histogram | {:.1} | {:.1} |", rate(&Simd::new()), rate(cuda));
}

/// A tile with rules beside one without: TIES of two terms, a fifth of the elements kept.
fn rules(cuda: &Cuda, time: Duration) {
    println!(
        "\nTiles of 64 MiB bf16, base and two terms in page-locked memory, GB/s of operands and result.\n"
    );
    println!("| tile | CPU, one thread | GPU, one lane |\n|---|---:|---:|");
    let (bytes, edge) = (64 << 20, Edge { magnitude: 2_f32.to_bits(), end: 1000 });
    let mask = Mask::Band { low: edge, high: Edge::NONE };
    let divide = Some(Divide { least: 1e-8, instead: 1.0 });
    let ties = Rules {
        first: 0,
        deltas: true,
        terms: &[TermRule { mask, share: 0.7, alone: 1.0 }; 2],
        vote: Some(Vote::Weighted),
        divide,
    };
    for (name, rules) in [("plain", None), ("ties", Some(&ties))] {
        let rate = |device: &dyn Device| {
            let mut made: Vec<_> = (0..4).map(|_| cuda.memory(bytes).unwrap()).collect();
            for (seed, memory) in made.iter_mut().enumerate() {
                // From -4 to 4, signs and magnitudes in an order of no length that matters.
                let words = memory.as_chunks_mut::<2>().0.iter_mut().enumerate();
                words.for_each(|(i, word)| {
                    let draw = (i + seed).wrapping_mul(0x9e37_79b9) >> 7;
                    let value = (draw % 2048) as f32 / 256.0 - 4.0;
                    *word = ((value.to_bits() >> 16) as u16).to_le_bytes();
                });
            }
            let mut out = made.pop().unwrap();
            let operand = |n: usize| Operand { dtype: &BF16, bytes: &made[n][..bytes] };
            let tile = BlendTile {
                base: Some(operand(0)),
                terms: &[(operand(1), 0.7), (operand(2), 0.7)],
                lambda: 1.0,
                dtype: &BF16,
                rules,
            };
            fastest(4 * bytes, time, || {
                device.blend(&tile, &mut out[..bytes]).unwrap();
            })
        };
        println!("| {name} | {:.1} | {:.1} |", rate(&Simd::new()), rate(cuda));
    }
}

/// Kernels on operands in GPU memory, beside a copy of as many bytes.
fn kernels(cuda: &Cuda, time: Duration) {
    let gpu = &cuda.gpus()[0];
    let context = CudaContext::new(gpu.index as usize).unwrap();
    let stream = context.default_stream();
    // Large, so that the call costs little beside its work.
    let bytes = (gpu.memory / 20).clamp(64 << 20, 8 << 30) as usize;
    let copy = copy_rate(&stream, bytes, time);
    println!(
        "\nOperands of {:.2} GB in GPU memory; GB/s are bytes read and written.\n",
        bytes as f64 / 1e9
    );
    println!(
        "| kernel | GB/s | x copy |\n|---|---:|---:|\n| copy within the GPU | {copy:.0} | 1.00 |"
    );
    let shapes: [Shape; 12] = [
        (Some(BF16), vec![BF16, BF16], BF16),
        (Some(F16), vec![F16, F16], F16),
        (Some(F32), vec![F32, F32], F32),
        (Some(F8E4M3), vec![F8E4M3, F8E4M3], F8E4M3),
        (Some(F8E5M2), vec![F8E5M2, F8E5M2], F8E5M2),
        (Some(BF16), vec![BF16], BF16),
        (None, vec![BF16, BF16], BF16),
        (Some(BF16), vec![BF16; 4], BF16),
        (None, vec![F32], BF16),
        (None, vec![BF16], F8E4M3),
        (Some(BF16), vec![F32, F16], BF16),
        (Some(F64), vec![F64, F64], F64),
    ];
    for shape in &shapes {
        let rate = resident_rate(cuda, gpu.index, &stream, shape, bytes, time);
        println!("| {} | {rate:.0} | {:.2} |", named(shape), rate / copy);
    }
}

fn named((base, terms, out): &Shape) -> String {
    let base = base.as_ref().map_or(String::new(), |dtype| format!("{dtype} + "));
    let terms: Vec<&str> = terms.iter().map(Dtype::as_str).collect();
    format!("{base}w ({}) -> {out}", terms.join(", "))
}

fn size(dtype: &Dtype) -> usize {
    usize::try_from(dtype.bytes().unwrap()).unwrap()
}

/// Best of the calls that fit the time.
fn fastest(bytes: usize, time: Duration, mut call: impl FnMut()) -> f64 {
    call();
    let (mut best, end) = (Duration::MAX, Instant::now() + time);
    while Instant::now() < end {
        let started = Instant::now();
        call();
        best = best.min(started.elapsed());
    }
    bytes as f64 / best.as_secs_f64() / 1e9
}

fn copy_rate(stream: &Arc<CudaStream>, bytes: usize, time: Duration) -> f64 {
    let from = stream.alloc_zeros::<u8>(2 * bytes).unwrap();
    let mut to = stream.alloc_zeros::<u8>(2 * bytes).unwrap();
    fastest(4 * bytes, time, || {
        stream.memcpy_dtod(&from, &mut to).unwrap();
        stream.synchronize().unwrap();
    })
}

fn resident_rate(
    cuda: &Cuda,
    gpu: u32,
    stream: &Arc<CudaStream>,
    (base, terms, out): &Shape,
    bytes: usize,
    time: Duration,
) -> f64 {
    let widest = base.iter().chain(terms).chain([out]).map(size).max().unwrap();
    let elements = bytes / widest;
    let made: Vec<CudaSlice<u8>> = base
        .iter()
        .chain(terms)
        .chain([out])
        .map(|dtype| stream.alloc_zeros(elements * size(dtype)).unwrap())
        .collect();
    stream.synchronize().unwrap();
    let moved: usize = made.iter().map(CudaSlice::num_bytes).sum();
    let mut addresses = made.iter().map(|slice| slice.device_ptr(stream).0);
    let mut place = |dtype| ResidentOperand { dtype, address: addresses.next().unwrap() };
    let base = base.as_ref().map(&mut place);
    let terms: Vec<_> = terms.iter().map(|dtype| (place(dtype), 0.7)).collect();
    let blend = ResidentBlend {
        elements: elements as u64,
        base,
        terms: &terms,
        lambda: 0.3,
        out: place(out),
    };
    fastest(moved, time, || {
        // SAFETY: the slices live until the end of this function, and nothing else uses them.
        unsafe { cuda.blend_resident(gpu, &blend) }.unwrap();
    })
}

/// A bf16 chat vector through host memory by several threads: read, to the GPU, computed, back; beside the CPU's.
fn ways(cuda: &Cuda, time: Duration) {
    println!(
        "\nChat vector, bf16, operands in memory, GB/s of the result; the GPU's include reading into page-locked memory.\n"
    );
    println!("| tile MiB | threads | CPU | GPU |\n|---:|---:|---:|---:|");
    let cores = std::thread::available_parallelism().unwrap().get();
    // More than any cache holds.
    let source: Vec<u8> = (0..2_usize << 30).map(|i| (i % 251) as u8 & 0x3f).collect();
    for tile in [1_usize, 2, 4, 8, 16] {
        for threads in [1, 2, 4, 8, 16, 32].into_iter().filter(|n| *n <= 2 * cores) {
            let cpu = way(&Simd::new(), &source, tile << 20, threads, time);
            let gpu = way(cuda, &source, tile << 20, threads, time);
            println!("| {tile} | {threads} | {cpu:.2} | {gpu:.2} |");
        }
    }
}

/// From when every worker has done two tiles to when the last has done its last: what is allocated and freed does not count.
fn way(device: &dyn Device, source: &[u8], tile: usize, threads: usize, time: Duration) -> f64 {
    let (ready, begin) = (Barrier::new(threads), OnceLock::new());
    let (done, next, last) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(None));
    let work = || {
        let mut own: Vec<_> = (0..3).map(|_| device.memory(tile).unwrap()).collect();
        let mut out = device.memory(tile).unwrap();
        let mut one = || {
            // Every tile from elsewhere, so that no cache holds it.
            let at = next.fetch_add(1, Ordering::Relaxed) as usize * tile * 3;
            let from = |n: usize| {
                let start = (at + n * tile) % (source.len() - tile);
                &source[start / 2 * 2..][..tile]
            };
            let operands: Vec<&[u8]> = if device.wants_own_memory() {
                own.iter_mut()
                    .enumerate()
                    .for_each(|(n, own)| own[..tile].copy_from_slice(from(n)));
                own.iter().map(|own| &own[..tile]).collect()
            } else {
                (0..3).map(from).collect()
            };
            let operand = |n: usize| Operand { dtype: &BF16, bytes: operands[n] };
            let blend = BlendTile {
                base: Some(operand(0)),
                terms: &[(operand(1), 1.0), (operand(2), -1.0)],
                lambda: 1.0,
                dtype: &BF16,
                rules: None,
            };
            device.blend(&blend, &mut out[..tile]).unwrap();
        };
        one();
        one();
        ready.wait();
        let begin: Instant = *begin.get_or_init(Instant::now);
        while begin.elapsed() < time {
            one();
            done.fetch_add(tile as u64, Ordering::Relaxed);
        }
        let now = Instant::now();
        let mut last = last.lock().unwrap();
        *last = (*last).max(Some(now));
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let took = last.into_inner().unwrap().unwrap() - *begin.get().unwrap();
    done.into_inner() as f64 / took.as_secs_f64() / 1e9
}
