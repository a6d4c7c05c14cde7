//! One suite for every device: the same bytes as [`Reference`], which is itself held to the `half` and `float8` crates.
//!
//! A new device joins by one test that calls [`conforms`].

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "a test: it fails loudly, and rounds where it says so"
)]

mod rules;
mod sweeps;

use elo_surgery::engine::{BlendTile, Device, Health, Operand, Reference, Simd};
use elo_surgery::format::Dtype;
use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

const FLOATS: [Dtype; 8] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::F8E4M3Fnuz,
    Dtype::F8E5M2Fnuz,
];
const LAMBDAS: [f64; 7] = [1.0, 0.5, -1.0, 0.3, 2.0, 1e-3, 0.0];

/// A blend that owns its operands.
#[derive(Clone, Debug)]
struct Case {
    base: Option<(Dtype, Vec<u8>)>,
    terms: Vec<(Dtype, Vec<u8>, f64)>,
    lambda: f64,
    dtype: Dtype,
    elements: usize,
}

fn size(dtype: &Dtype) -> usize {
    usize::try_from(dtype.bytes().unwrap()).unwrap()
}

/// A fixed generator: failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Elements of any bit pattern (one in eight of them special) or, if `tame`, like the weights of a model.
    fn elements(&mut self, dtype: &Dtype, count: usize, tame: bool) -> Vec<u8> {
        let specials = specials(dtype);
        let mut bytes = Vec::new();
        for _ in 0..count {
            let draw = self.next();
            if tame {
                let value = ((draw >> 40) as f64 / f64::from(1 << 24) - 0.5) * 4.0;
                bytes.extend(cast(&Dtype::F64, &value.to_le_bytes(), dtype));
            } else if draw.is_multiple_of(8) {
                let at = self.below(specials.len() / size(dtype)) * size(dtype);
                bytes.extend(&specials[at..at + size(dtype)]);
            } else {
                bytes.extend(&self.next().to_le_bytes()[..size(dtype)]);
            }
        }
        bytes
    }
}

/// Converts through the reference: a blend of one term.
fn cast(from: &Dtype, bytes: &[u8], to: &Dtype) -> Vec<u8> {
    let elements = bytes.len() / size(from);
    run(&Reference, &identity(from, bytes.to_vec(), to, elements), 0).0
}

fn identity(from: &Dtype, bytes: Vec<u8>, to: &Dtype, elements: usize) -> Case {
    Case {
        base: None,
        terms: vec![(from.clone(), bytes, 1.0)],
        lambda: 1.0,
        dtype: to.clone(),
        elements,
    }
}

/// Zeros, subnormals, extremes, infinities, NaNs with payloads: as bits, both signs.
fn specials(dtype: &Dtype) -> Vec<u8> {
    let (mantissa, exponent) = match dtype {
        Dtype::F64 => (52, 11),
        Dtype::F32 => (23, 8),
        Dtype::F16 => (10, 5),
        Dtype::BF16 => (7, 8),
        Dtype::F8E4M3 | Dtype::F8E4M3Fnuz => (3, 4),
        _ => (2, 5),
    };
    let one = 1_u64 << mantissa;
    let top = ((1_u64 << exponent) - 1) << mantissa;
    let middle = top / 2 / one * one;
    let magnitudes = [
        0,
        1,
        2,
        one - 1,
        one,
        one + 1,
        middle,
        middle + 1,
        top - 1,
        top - one,
        top,
        top + 1,
        top + one / 2,
        top + one / 2 + 1,
        top + one - 1,
    ];
    let sign = 1_u64 << (mantissa + exponent);
    let all = magnitudes.iter().flat_map(|m| [*m, m | sign]);
    all.flat_map(|bits| bits.to_le_bytes()[..size(dtype)].to_vec()).collect()
}

/// Every pattern of the narrow formats; for the wide ones the specials, every value and midpoint of every narrow
/// format, and the neighbours of these.
fn patterns(dtype: &Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F64 => {
            let mut bytes = specials(dtype);
            for value in landmarks() {
                let neighbours = [value.next_down(), value, value.next_up()];
                bytes.extend(neighbours.iter().flat_map(|v| v.to_le_bytes()));
            }
            bytes
        }
        Dtype::F32 => {
            let mut bytes = specials(dtype);
            for value in landmarks() {
                let value = value as f32;
                let neighbours = [value.next_down(), value, value.next_up()];
                bytes.extend(neighbours.iter().flat_map(|v| v.to_le_bytes()));
            }
            // Every sign, exponent and leading fraction, with whatever follows.
            let tops = (0..=u16::MAX).map(u32::from);
            let all = tops.map(|top| top << 16 | top.wrapping_mul(0x9e37) & 0xffff);
            bytes.extend(all.flat_map(u32::to_le_bytes));
            bytes
        }
        Dtype::F16 | Dtype::BF16 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        _ => (0..=u8::MAX).collect(),
    }
}

/// Every value of every narrow format and every midpoint between two that follow each other; the latter include
/// the midpoint between the largest and what would come next.
fn landmarks() -> Vec<f64> {
    let mut found = Vec::new();
    for dtype in &FLOATS[2..] {
        let values = cast(dtype, &patterns(dtype), &Dtype::F64);
        let values = values.as_chunks().0.iter().map(|v| f64::from_le_bytes(*v));
        let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let last = values[values.len() - 1];
        let beyond = last + (last - values[values.len() - 2]);
        values.push(beyond);
        values.insert(0, -beyond);
        found.extend(values.windows(2).map(|w| f64::midpoint(w[0], w[1])));
        found.extend(values);
    }
    found
}

/// Runs a case with every slice `offset` bytes past an allocation's start.
fn run(device: &dyn Device, case: &Case, offset: usize) -> (Vec<u8>, Health) {
    let shift = |bytes: &[u8]| [&vec![0xa5; offset], bytes].concat();
    let base = case.base.as_ref().map(|(d, bytes)| (d, shift(bytes)));
    let terms = case.terms.iter();
    let terms: Vec<_> = terms.map(|(d, bytes, w)| (d, shift(bytes), *w)).collect();
    let operand = |dtype, bytes| Operand { dtype, bytes };
    let terms: Vec<_> =
        terms.iter().map(|(d, bytes, w)| (operand(*d, &bytes[offset..]), *w)).collect();
    let tile = BlendTile {
        base: base.as_ref().map(|(d, bytes)| operand(*d, &bytes[offset..])),
        terms: &terms,
        lambda: case.lambda,
        dtype: &case.dtype,
        rules: None,
    };
    let mut out = vec![0x5a; offset + case.elements * size(&case.dtype) + 1];
    let end = out.len() - 1;
    let health = device.blend(&tile, &mut out[offset..end]).unwrap();
    assert!(out[..offset].iter().all(|b| *b == 0x5a), "wrote before");
    assert_eq!(out[end], 0x5a, "wrote past the end");
    (out[offset..end].to_vec(), health)
}

fn check(device: &dyn Device, case: &Case) {
    let expected = run(&Reference, case, 0);
    for offset in [0, 1] {
        let found = run(device, case, offset);
        if found == expected {
            continue;
        }
        let size = size(&case.dtype);
        let pairs = found.0.chunks(size).zip(expected.0.chunks(size));
        let at = pairs.enumerate().find(|(_, (a, b))| a != b);
        let shape: Vec<_> = case.terms.iter().map(|(d, _, w)| (d, w)).collect();
        panic!(
            "{} differs at (element, (found, expected)) {at:x?}, health {:?} for {:?}: \
             base {:?}, terms {shape:?}, lambda {}, to {}, {} elements, offset {offset}",
            device.name(),
            found.1,
            expected.1,
            case.base.as_ref().map(|(d, _)| d),
            case.lambda,
            case.dtype,
            case.elements,
        );
    }
}

/// The suite: panics unless the device gives the reference's bytes and counts.
fn conforms(device: &dyn Device) {
    every_pattern_converts_to_every_dtype(device);
    shapes_of_one_dtype(device);
    mixes_of_dtypes(device);
    sums_round_like_the_reference(device);
    wrong_tiles_are_refused(device);
    sweeps::conforms(device);
    rules::conforms(device);
}

fn every_pattern_converts_to_every_dtype(device: &dyn Device) {
    for from in &FLOATS {
        let bytes = patterns(from);
        let elements = bytes.len() / size(from);
        for to in &FLOATS {
            check(device, &identity(from, bytes.clone(), to, elements));
        }
        // The same through the loop of one dtype: x + 1 * (-0 * x) is x, rounded once.
        let mut case = identity(from, bytes.clone(), from, elements);
        case.base = Some((from.clone(), bytes.clone()));
        case.terms[0].2 = -0.0;
        check(device, &case);
    }
}

/// Every length of a vector's remainder, the block's edges, every number of terms, every lambda.
fn shapes_of_one_dtype(device: &dyn Device) {
    let mut random = Random(1);
    for dtype in &FLOATS[1..5] {
        for elements in (0..=67).chain([1023, 1024, 1025, 4095, 4097]) {
            let lambda = LAMBDAS[elements % LAMBDAS.len()];
            for terms in 1..=4 {
                for has_base in [false, true] {
                    let dtypes = vec![dtype.clone(); terms];
                    let tame = elements % 3 == 0;
                    let base = has_base.then_some(dtype);
                    let case = draw(&mut random, base, &dtypes, lambda, dtype, elements, tame);
                    check(device, &case);
                }
            }
        }
    }
}

fn mixes_of_dtypes(device: &dyn Device) {
    let mut random = Random(2);
    let mut turn = 0;
    for base in FLOATS.iter().map(Some).chain([None]) {
        for term in &FLOATS {
            for to in &FLOATS {
                turn += 1;
                let second = &FLOATS[random.below(FLOATS.len())];
                let dtypes = [term.clone(), second.clone(), term.clone()];
                let dtypes = &dtypes[..=turn % 3];
                let lambda = LAMBDAS[turn % LAMBDAS.len()];
                let elements = random.below(68);
                for tame in [false, true] {
                    let case = draw(&mut random, base, dtypes, lambda, to, elements, tame);
                    check(device, &case);
                }
            }
        }
    }
}

/// Longer runs of the common shapes, tame and wild, with weights that are not exact in f32.
fn sums_round_like_the_reference(device: &dyn Device) {
    let mut random = Random(3);
    for dtype in &FLOATS {
        for lambda in LAMBDAS {
            for terms in [1, 2] {
                for tame in [false, true] {
                    let dtypes = vec![dtype.clone(); terms];
                    let base = Some(dtype);
                    let case = draw(&mut random, base, &dtypes, lambda, dtype, 5000, tame);
                    check(device, &case);
                }
            }
        }
    }
}

fn wrong_tiles_are_refused(device: &dyn Device) {
    let operand = |dtype, bytes| Operand { dtype, bytes };
    let tile = |base, terms, dtype| BlendTile { base, terms, lambda: 1.0, dtype, rules: None };
    let four = [(operand(&Dtype::BF16, &[0; 8]), 1.0)];
    let integers = [(operand(&Dtype::I16, &[0; 8]), 1.0)];
    let mut out = [0; 8];
    let bf16 = &Dtype::BF16;
    assert!(device.blend(&tile(None, &four, bf16), &mut out).is_ok());
    assert!(device.blend(&tile(None, &[], bf16), &mut out).is_err());
    assert!(device.blend(&tile(None, &integers, bf16), &mut out).is_err());
    assert!(device.blend(&tile(None, &four, &Dtype::I16), &mut out).is_err());
    assert!(device.blend(&tile(None, &four, bf16), &mut out[..6]).is_err());
    assert!(device.blend(&tile(None, &four, bf16), &mut out[..7]).is_err());
    let short = Some(operand(bf16, &[0; 6]));
    assert!(device.blend(&tile(short, &four, bf16), &mut out).is_err());
}

fn draw(
    random: &mut Random,
    base: Option<&Dtype>,
    terms: &[Dtype],
    lambda: f64,
    dtype: &Dtype,
    elements: usize,
    tame: bool,
) -> Case {
    const WEIGHTS: [f64; 6] = [1.0, -1.0, 0.7, -0.1, 3.0, 0.0];
    let base = base.map(|d| (d.clone(), random.elements(d, elements, tame)));
    let mut term = |d: &Dtype| {
        let bytes = random.elements(d, elements, tame);
        (d.clone(), bytes, WEIGHTS[random.below(WEIGHTS.len())])
    };
    Case {
        base,
        terms: terms.iter().map(&mut term).collect(),
        lambda,
        dtype: dtype.clone(),
        elements,
    }
}

#[test]
fn reference() {
    conforms(&Reference);
}

#[test]
fn simd() {
    for device in Simd::levels() {
        conforms(&device);
    }
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU: `just gpu-check`; without one it runs inside `cuda::device`"]
fn cuda() {
    use elo_surgery::engine::cuda::{Cuda, CudaOptions};
    conforms(&Cuda::new(&CudaOptions::default()).unwrap());
}

/// More elements than a grid has threads, in host memory and in the GPU's.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU: `just gpu-check`; without one it runs inside `cuda::device`"]
#[expect(unsafe_code, reason = "hands addresses of GPU memory to the device")]
fn cuda_large() {
    use cudarc::driver::{CudaContext, DevicePtr as _};
    use elo_surgery::engine::cuda::{Cuda, CudaOptions, ResidentBlend, ResidentOperand};

    let cuda = Cuda::new(&CudaOptions::default()).unwrap();
    let mut random = Random(5);
    // The fake driver's processor is slow; what it checks needs no size.
    let elements = if std::env::var_os("FAKE_CUDA_LOG").is_some() { 300_001 } else { 40_000_001 };
    let dtypes = [Dtype::BF16, Dtype::BF16];
    let case = draw(&mut random, Some(&Dtype::BF16), &dtypes, 0.3, &Dtype::BF16, elements, false);
    let expected = run(&Simd::new(), &case, 0);
    assert!(run(&cuda, &case, 0) == expected, "a tile of {elements} elements");

    let gpu = cuda.gpus()[0].index;
    let stream = CudaContext::new(gpu as usize).unwrap().new_stream().unwrap();
    let base = stream.clone_htod(&case.base.as_ref().unwrap().1).unwrap();
    let terms = [0, 1].map(|n: usize| stream.clone_htod(&case.terms[n].1).unwrap());
    stream.synchronize().unwrap();
    let place = |slice| {
        let (address, _synced) = cudarc::driver::CudaSlice::device_ptr(slice, &stream);
        ResidentOperand { dtype: &Dtype::BF16, address }
    };
    let blend = ResidentBlend {
        elements: elements as u64,
        base: Some(place(&base)),
        terms: &[0, 1].map(|n: usize| (place(&terms[n]), case.terms[n].2)),
        lambda: case.lambda,
        out: place(&base),
    };
    // SAFETY: allocated above on this GPU and complete.
    let health = unsafe { cuda.blend_resident(gpu, &blend) }.unwrap();
    let found = stream.clone_dtoh(&base).unwrap();
    assert!((found, health) == expected, "{elements} elements in place in GPU memory");
}

/// Converts with the `half` and `float8` crates. NaN is `None`.
fn widen(dtype: &Dtype, bytes: &[u8]) -> Option<f64> {
    let value = match dtype {
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
        Dtype::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        Dtype::BF16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        Dtype::F8E4M3 => F8E4M3::from_bits(bytes[0]).to_f32().into(),
        Dtype::F8E5M2 => F8E5M2::from_bits(bytes[0]).to_f32().into(),
        // The bias is one more, there is one zero, and what was its negative is the NaN.
        Dtype::F8E4M3Fnuz | Dtype::F8E5M2Fnuz if bytes[0] == 0x80 => return None,
        Dtype::F8E4M3Fnuz if bytes[0] & 0x7f == 0x7f => {
            240.0_f64.copysign(f64::from(bytes[0].cast_signed()))
        }
        Dtype::F8E4M3Fnuz => f64::from(F8E4M3::from_bits(bytes[0]).to_f32()) / 2.0,
        Dtype::F8E5M2Fnuz if bytes[0] & 0x7c == 0x7c => {
            let magnitude = (1.0 + f64::from(bytes[0] & 3) / 4.0) * 32768.0;
            magnitude.copysign(f64::from(bytes[0].cast_signed()))
        }
        Dtype::F8E5M2Fnuz => f64::from(F8E5M2::from_bits(bytes[0]).to_f32()) / 2.0,
        _ => unreachable!(),
    };
    (!value.is_nan()).then_some(value)
}

#[test]
fn reference_widens_like_the_crates() {
    for dtype in &FLOATS {
        let bytes = patterns(dtype);
        let wide = cast(dtype, &bytes, &Dtype::F64);
        for (narrow, wide) in bytes.chunks(size(dtype)).zip(wide.as_chunks().0) {
            let found = u64::from_le_bytes(*wide);
            let expected = widen(dtype, narrow).map_or(0x7ff8 << 48, f64::to_bits);
            assert_eq!(found, expected, "{dtype} {narrow:x?}");
        }
    }
}

/// Rounding is defined without bits: among all values of the format, the nearest; of two, the one with an even
/// pattern; beyond half a step past the largest, overflow.
#[test]
fn reference_rounds_to_the_nearest_value_of_the_format() {
    for to in &FLOATS[2..] {
        let bits = patterns(to);
        let bits = bits.chunks(size(to)).map(|b| match b {
            [b] => u16::from(*b),
            b => u16::from_le_bytes([b[0], b[1]]),
        });
        let sign = 1_u16 << (8 * size(to) - 1);
        let mut values: Vec<(f64, u16)> = bits
            .filter(|b| b & sign == 0)
            .filter_map(|b| Some((widen(to, &b.to_le_bytes()[..size(to)])?, b)))
            .filter(|(value, _)| value.is_finite())
            .collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (largest, top) = values[values.len() - 1];
        let beyond = 2.0 * largest - values[values.len() - 2].0;
        values.push((beyond, top + 1));
        let (overflow, nan) = match to {
            Dtype::F16 => (0x7c00, 0x7e00),
            Dtype::BF16 => (0x7f80, 0x7fc0),
            Dtype::F8E4M3 => (0x7f, 0x7f),
            Dtype::F8E5M2 => (0x7c, 0x7f),
            _ => (0x80, 0x80),
        };
        for from in [Dtype::F32, Dtype::F64] {
            let bytes = patterns(&from);
            let found = cast(&from, &bytes, to);
            for (wide, found) in bytes.chunks(size(&from)).zip(found.chunks(size(to))) {
                let value = widen(&from, wide);
                let magnitude = value.unwrap_or_default().abs();
                let after = values.partition_point(|(v, _)| *v <= magnitude);
                let nearest = match (values.get(after), values[after - 1]) {
                    (None, _) => overflow,
                    (Some(above), below) => {
                        let (up, down) = (above.0 - magnitude, magnitude - below.0);
                        let up_wins = up < down || (up == down && above.1 % 2 == 0);
                        let bits = if up_wins { above.1 } else { below.1 };
                        if bits > top { overflow } else { bits }
                    }
                };
                let negative = value.is_some_and(f64::is_sign_negative);
                let unsigned = nearest == nan || (nan == sign && nearest == 0);
                let expected = match value {
                    None => nan,
                    Some(_) if negative && !unsigned => nearest | sign,
                    Some(_) => nearest,
                };
                let expected = &expected.to_le_bytes()[..size(to)];
                assert_eq!(found, expected, "{value:?} ({wide:x?}) to {to}");
            }
        }
    }
}

#[test]
fn reference_follows_the_formula() {
    let mut random = Random(4);
    for dtype in &FLOATS[1..4] {
        let dtypes = vec![dtype.clone(); 3];
        let mut broken = 0;
        for lambda in LAMBDAS {
            let case = draw(&mut random, Some(dtype), &dtypes, lambda, dtype, 999, false);
            let (found, health) = run(&Reference, &case, 1);
            let mut expected = Vec::new();
            let mut counted = Health::default();
            for i in 0..case.elements {
                let at = |bytes: &[u8]| {
                    let one = &bytes[i * size(dtype)..][..size(dtype)];
                    widen(dtype, one).unwrap_or(f64::NAN) as f32
                };
                let product = |n: usize| case.terms[n].2 as f32 * at(&case.terms[n].1);
                let base = at(&case.base.as_ref().unwrap().1);
                let sum = product(0) + product(1) + product(2);
                let value = base + lambda as f32 * sum;
                let rounded = match dtype {
                    Dtype::F32 if value.is_nan() => 0x7fc0_0000,
                    Dtype::F16 if value.is_nan() => 0x7e00,
                    Dtype::BF16 if value.is_nan() => 0x7fc0,
                    Dtype::F16 => f16::from_f32(value).to_bits().into(),
                    Dtype::BF16 => bf16::from_f32(value).to_bits().into(),
                    _ => value.to_bits(),
                };
                let bytes = &rounded.to_le_bytes()[..size(dtype)];
                expected.extend_from_slice(bytes);
                let result = widen(dtype, bytes);
                let finite = [base, at(&case.terms[0].1), at(&case.terms[1].1)]
                    .into_iter()
                    .chain([at(&case.terms[2].1)])
                    .all(f32::is_finite);
                counted.nan += u64::from(result.is_none());
                counted.infinite += u64::from(result.is_some_and(f64::is_infinite));
                let special = !result.is_some_and(f64::is_finite);
                counted.broken += u64::from(special && finite);
            }
            assert_eq!(found, expected, "{dtype}, lambda {lambda}");
            assert_eq!(health, counted, "{dtype}, lambda {lambda}");
            broken += health.broken;
        }
        assert!(broken > 0, "{dtype}: the case has overflow");
    }
}

/// The choices that the formats leave open, spelled out.
#[test]
fn overflow_and_nan_are_as_documented() {
    let inputs = [f32::NAN, -f32::NAN, f32::INFINITY, 464.0, 465.0, 1e9, -1e9, -1e-30];
    let bytes: Vec<u8> = inputs.iter().flat_map(|v| v.to_le_bytes()).collect();
    let to = |dtype| cast(&Dtype::F32, &bytes, &dtype);
    let e4m3 = [0x7f, 0x7f, 0x7f, 0x7e, 0x7f, 0x7f, 0x7f, 0x80];
    assert_eq!(to(Dtype::F8E4M3), e4m3);
    let e5m2 = [0x7f, 0x7f, 0x7c, 0x5f, 0x5f, 0x7c, 0xfc, 0x80];
    assert_eq!(to(Dtype::F8E5M2), e5m2);
    let fnuz = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0];
    assert_eq!(to(Dtype::F8E4M3Fnuz), fnuz);
    let fnuz = [0x80, 0x80, 0x80, 0x63, 0x63, 0x80, 0x80, 0];
    assert_eq!(to(Dtype::F8E5M2Fnuz), fnuz);
}
