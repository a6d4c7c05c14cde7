//! Speed of the kernels: one core, tiles that stay in the L2 cache, every instruction set of this CPU.
//!
//! `cargo bench --bench kernels [FILTER]` prints GB/s, counted as bytes read and written.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::hint::black_box;
use std::time::Instant;

use elo_surgery::engine::statistics::{compare, non_finite};
use elo_surgery::engine::sweep::{Digit, LEAF, SweepTile, sums_of};
use elo_surgery::engine::{BlendTile, Device, Operand, Simd};
use elo_surgery::format::Dtype;

/// Bytes of one operand.
const TILE: usize = 256 << 10;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    let filter = filter.unwrap_or_default();
    let (bf16, f16, f32) = (Dtype::BF16, Dtype::F16, Dtype::F32);
    let (e4m3, e5m2) = (Dtype::F8E4M3, Dtype::F8E5M2);
    // Base, terms, output.
    let shapes: [(Option<&Dtype>, Vec<&Dtype>, &Dtype); 14] = [
        (Some(&bf16), vec![&bf16; 2], &bf16),
        (Some(&bf16), vec![&bf16; 1], &bf16),
        (Some(&f16), vec![&f16; 2], &f16),
        (Some(&f16), vec![&f16; 1], &f16),
        (Some(&f32), vec![&f32; 2], &f32),
        (Some(&f32), vec![&f32; 1], &f32),
        (Some(&bf16), vec![&bf16; 4], &bf16),
        (None, vec![&bf16; 2], &bf16),
        (Some(&bf16), vec![&f32, &f16], &bf16),
        (Some(&e4m3), vec![&e4m3; 2], &e4m3),
        (None, vec![&bf16], &f32),
        (None, vec![&f32], &bf16),
        (None, vec![&f16], &bf16),
        (None, vec![&bf16], &e5m2),
    ];
    for (base, terms, to) in &shapes {
        for device in Simd::levels() {
            let inputs: Vec<_> = base.iter().chain(terms).map(|d| d.as_str()).collect();
            let base_mark = if base.is_some() { "base " } else { "" };
            let name = format!("{base_mark}{} -> {to}, {}", inputs.join(" "), device.name());
            if name.contains(&filter) {
                println!("{:6.1} GB/s  {name}", blend(device, *base, terms, to));
            }
        }
    }
    statistics(&filter);
    sweeps(&filter);
    damaged(&filter);
}

/// Sums and histograms over values of one dtype.
fn sweeps(filter: &str) {
    let (bf16, f32) = (Dtype::BF16, Dtype::F32);
    for (dtype, base, terms) in
        [(&bf16, false, 2), (&bf16, true, 2), (&bf16, true, 3), (&bf16, true, 5), (&f32, true, 2)]
    {
        let size = usize::try_from(dtype.bytes().unwrap()).unwrap();
        let elements = TILE / size;
        let operands: Vec<_> = (0..=5).map(|seed| weights(dtype, elements, seed)).collect();
        let operands: Vec<_> = operands.iter().map(|bytes| Operand { dtype, bytes }).collect();
        let base_mark = if base { "base " } else { "" };
        for device in Simd::levels() {
            let name = format!("sums {base_mark}{terms} {dtype}, {}", device.name());
            if !name.contains(filter) {
                continue;
            }
            let terms = &operands[1..=terms];
            let tile = SweepTile::new(base.then_some(operands[0]), terms);
            let mut sums = vec![0.0; elements / LEAF * sums_of(terms.len())];
            let speed = fastest((terms.len() + usize::from(base)) * TILE, || {
                device.sums(black_box(&tile), black_box(&mut sums)).unwrap();
            });
            println!("{speed:6.1} GB/s  {name}");
        }
    }
    let operands = [1, 2].map(|seed| weights(&bf16, TILE / 2, seed));
    let [base, term] = operands.each_ref().map(|bytes| Operand { dtype: &bf16, bytes });
    let terms = [term];
    let tile = SweepTile::new(Some(base), &terms);
    // A low digit that few elements belong to: magnitudes just above 2^-6.
    for (name, digit) in [("high", Digit::High), ("low", Digit::Low(0x7900))] {
        for device in Simd::levels() {
            let name = format!("histogram base BF16, {name} digit, {}", device.name());
            if name.contains(filter) {
                let mut counts = vec![0; digit.bins()];
                let speed = fastest(2 * TILE, || {
                    device.histogram(black_box(&tile), digit, black_box(&mut counts)).unwrap();
                });
                println!("{speed:6.1} GB/s  {name}");
            }
        }
    }
}

/// The common shape with an infinity in every block, which asks for a second look at the block.
fn damaged(filter: &str) {
    let dtype = &Dtype::BF16;
    let mut base = weights(dtype, TILE / 2, 1);
    for element in base.as_chunks_mut().0.iter_mut().step_by(1000) {
        *element = 0x7f80_u16.to_le_bytes();
    }
    let term = weights(dtype, TILE / 2, 2);
    let operand = |bytes| Operand { dtype, bytes };
    let tile = BlendTile {
        base: Some(operand(&base)),
        terms: &[(operand(&term), 1.0), (operand(&term), -0.5)],
        lambda: 1.0,
        dtype,
        rules: None,
    };
    let mut out = vec![0; TILE];
    for device in Simd::levels() {
        let name = format!("base BF16 BF16 BF16 -> BF16 with infinities, {}", device.name());
        if name.contains(filter) {
            let speed = fastest(4 * TILE, || {
                device.blend(black_box(&tile), &mut out).unwrap();
            });
            println!("{speed:6.1} GB/s  {name}");
        }
    }
}

/// The statistics run on the best instruction set.
fn statistics(filter: &str) {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64, Dtype::F8E4M3] {
        let elements = TILE / usize::try_from(dtype.bytes().unwrap()).unwrap();
        let (a, b) = (weights(&dtype, elements, 1), weights(&dtype, elements, 2));
        let operand = |bytes| Operand { dtype: &dtype, bytes };
        let (a, b) = (operand(a.as_slice()), operand(b.as_slice()));
        let name = format!("non_finite {dtype}");
        if name.contains(filter) {
            let speed = fastest(TILE, || {
                black_box(non_finite(black_box(a)));
            });
            println!("{speed:6.1} GB/s  {name}");
        }
        let name = format!("compare {dtype} {dtype}");
        if name.contains(filter) {
            let speed = fastest(2 * TILE, || {
                black_box(compare(black_box(a), b));
            });
            println!("{speed:6.1} GB/s  {name}");
        }
    }
}

/// GB/s of the fastest of several rounds.
fn blend(device: Simd, base: Option<&Dtype>, terms: &[&Dtype], to: &Dtype) -> f64 {
    let size = |dtype: &Dtype| usize::try_from(dtype.bytes().unwrap()).unwrap();
    let widest = base.into_iter().chain(terms.iter().copied()).chain([to]);
    let elements = TILE / widest.map(size).max().unwrap();
    let base = base.map(|dtype| (dtype, weights(dtype, elements, 1)));
    let terms: Vec<_> =
        (2..).zip(terms).map(|(seed, d)| (*d, weights(d, elements, seed))).collect();
    let operand = |dtype, bytes| Operand { dtype, bytes };
    let operands: Vec<_> = terms.iter().map(|(d, bytes)| (operand(*d, bytes), 0.7)).collect();
    let tile = BlendTile {
        base: base.as_ref().map(|(d, bytes)| operand(*d, bytes)),
        terms: &operands,
        lambda: 0.3,
        dtype: to,
        rules: None,
    };
    let mut out = vec![0; elements * size(to)];
    let read: usize = terms.iter().map(|(_, b)| b.len()).sum();
    let bytes = read + base.as_ref().map_or(0, |(_, b)| b.len()) + out.len();
    fastest(bytes, || {
        device.blend(black_box(&tile), black_box(&mut out)).unwrap();
    })
}

/// GB/s of the fastest of 20 rounds of about 5 ms.
fn fastest(bytes: usize, mut work: impl FnMut()) -> f64 {
    let started = Instant::now();
    work();
    let turns = (0.005 / started.elapsed().as_secs_f64()).ceil().max(1.0);
    let round = || {
        let started = Instant::now();
        for _ in 0..turns as u64 {
            work();
        }
        started.elapsed().as_secs_f64()
    };
    let seconds = std::iter::repeat_with(round).take(20).fold(f64::MAX, f64::min);
    bytes as f64 * turns / seconds / 1e9
}

/// Values like a model's weights.
fn weights(dtype: &Dtype, elements: usize, seed: u32) -> Vec<u8> {
    let values = (0..elements as u32).map(|i| {
        let mixed = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        (f64::from(mixed.rotate_left(13)) / f64::from(u32::MAX) - 0.5) / 8.0
    });
    let bytes: Vec<u8> = values.flat_map(|v| (v as f32).to_le_bytes()).collect();
    let size = usize::try_from(dtype.bytes().unwrap()).unwrap();
    let mut out = vec![0; elements * size];
    let operand = Operand { dtype: &Dtype::F32, bytes: &bytes };
    let tile = BlendTile { base: None, terms: &[(operand, 1.0)], lambda: 1.0, dtype, rules: None };
    Simd::new().blend(&tile, &mut out).unwrap();
    out
}
