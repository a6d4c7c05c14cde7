//! The part of the suite about terms that do not count everywhere: tiles with rules, and sums over what is kept.

use elo_surgery::engine::sweep::{SweepTile, Want, leaves_of, sums_of};
use elo_surgery::engine::{
    BlendTile, Device, Edge, Health, Mask, Operand, Reference, Rules, TermRule,
};
use elo_surgery::format::Dtype;
use elo_surgery::plan::{Divide, Vote};

use super::{FLOATS, LAMBDAS, Random, cast, size};

const VOTES: [Option<Vote>; 3] = [None, Some(Vote::Weighted), Some(Vote::Plain)];
const WEIGHTS: [f64; 7] = [1.0, -1.0, 0.7, -0.1, 3.0, 0.0, 1e-30];
/// Where a tile begins in its part: every remainder of a vector and of a counter of random numbers, and beyond 32 bits.
const FIRSTS: [u64; 8] = [0, 1, 2, 3, 4, 1001, (1 << 32) - 2, (1 << 34) + 5];

/// Values of few magnitudes, so that many are equal, and some that are special.
const LEVELS: [f64; 12] =
    [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 1e-7, -240.0, f64::INFINITY, f64::NAN];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tame,
    /// Of [`LEVELS`].
    Equal,
    Wild,
}

const KINDS: [Kind; 3] = [Kind::Tame, Kind::Equal, Kind::Wild];

/// A [`Mask`] that owns its bits.
#[derive(Clone, Debug)]
enum Owned {
    All,
    Band(Edge, Edge),
    Random(u64, u64),
    Bits(Vec<u8>),
    Near(f32),
}

impl Owned {
    /// One of a kind from 0 to 4, for a tile.
    fn draw(random: &mut Random, kind: usize, first: u64, elements: usize) -> Self {
        match kind {
            0 => Self::All,
            1 => Self::Band(edge(random, first, elements), edge(random, first, elements)),
            2 => {
                let below = [0, 1 << 31, 1 << 32, random.next() >> 32][random.below(4)];
                Self::Random(random.next(), below)
            }
            3 => {
                let bytes = elements.div_ceil(8);
                Self::Bits((0..bytes).map(|_| random.next().to_le_bytes()[0]).collect())
            }
            _ => Self::Near([0.25, 1.0, 0.0, -1.0, 1e-7, 1e30][random.below(6)]),
        }
    }

    fn mask(&self) -> Mask<'_> {
        match self {
            Self::All => Mask::All,
            Self::Band(low, high) => Mask::Band { low: *low, high: *high },
            Self::Random(seed, below) => Mask::Random { seed: *seed, below: *below },
            Self::Bits(bits) => Mask::Bits(bits),
            Self::Near(t) => Mask::Near(*t),
        }
    }

    /// What it is of elements `start..start + count`.
    fn run(&self, start: usize, count: usize) -> Self {
        let Self::Bits(bits) = self else { return self.clone() };
        let mut cut = vec![0; count.div_ceil(8)];
        for i in 0..count {
            cut[i / 8] |= (bits[(start + i) / 8] >> ((start + i) % 8) & 1) << (i % 8);
        }
        Self::Bits(cut)
    }
}

/// Everything, nothing, or a place among the values that there are.
fn edge(random: &mut Random, first: u64, elements: usize) -> Edge {
    let magnitude = match random.below(4) {
        0 => return [Edge::ALL, Edge::NONE][random.below(2)],
        1 => (random.next() as u32) & 0x7fff_ffff,
        2 => [0, 1, 0x7f80_0000, 0x7fc0_0000][random.below(4)],
        _ => [0.5_f32, 1.0, 1.5, 2.0][random.below(4)].to_bits(),
    };
    let end = first.saturating_sub(1) + random.below(elements + 3) as u64;
    Edge { magnitude, end }
}

/// Elements of a kind.
fn elements(random: &mut Random, dtype: &Dtype, count: usize, kind: Kind) -> Vec<u8> {
    if kind != Kind::Equal {
        return random.elements(dtype, count, kind == Kind::Tame);
    }
    let values = (0..count).flat_map(|_| LEVELS[random.below(LEVELS.len())].to_le_bytes());
    let values: Vec<u8> = values.collect();
    cast(&Dtype::F64, &values, dtype)
}

#[derive(Clone, Debug)]
struct Term {
    dtype: Dtype,
    bytes: Vec<u8>,
    weight: f64,
    mask: Owned,
    share: f64,
    alone: f64,
}

/// A tile that owns what it is made of.
#[derive(Clone, Debug)]
struct Case {
    base: Option<(Dtype, Vec<u8>)>,
    terms: Vec<Term>,
    lambda: f64,
    dtype: Dtype,
    elements: usize,
    first: u64,
    deltas: bool,
    vote: Option<Vote>,
    divide: Option<Divide>,
}

impl Case {
    /// With masks of these kinds, one for each term.
    fn draw(
        random: &mut Random,
        base: Option<&Dtype>,
        terms: &[(Dtype, usize)],
        dtype: &Dtype,
        elements_of: usize,
    ) -> Self {
        let kind = KINDS[random.below(KINDS.len())];
        let first = FIRSTS[random.below(FIRSTS.len())];
        let base = base.map(|dtype| (dtype.clone(), elements(random, dtype, elements_of, kind)));
        let terms = terms.iter().map(|(dtype, mask)| Term {
            dtype: dtype.clone(),
            bytes: elements(random, dtype, elements_of, kind),
            weight: WEIGHTS[random.below(WEIGHTS.len())],
            mask: Owned::draw(random, *mask, first, elements_of),
            share: WEIGHTS[random.below(WEIGHTS.len())],
            alone: [1.0, 1.0, 1.1, -0.3][random.below(4)],
        });
        let terms = terms.collect();
        let least = [1e-8, 0.5, 2.0, f64::NAN][random.below(4)];
        let instead = [1.0, 1e-6, 0.3][random.below(3)];
        Self {
            deltas: base.is_some() && random.below(4) > 0,
            base,
            terms,
            lambda: LAMBDAS[random.below(LAMBDAS.len())],
            dtype: dtype.clone(),
            elements: elements_of,
            first,
            vote: VOTES[random.below(VOTES.len())],
            divide: (random.below(2) > 0).then_some(Divide { least, instead }),
        }
    }

    /// Elements `start..start + count`.
    fn run(&self, start: usize, count: usize) -> Self {
        let cut = |dtype: &Dtype, bytes: &[u8]| {
            bytes[start * size(dtype)..(start + count) * size(dtype)].to_vec()
        };
        let base = self.base.as_ref().map(|(dtype, bytes)| (dtype.clone(), cut(dtype, bytes)));
        let terms = self.terms.iter().map(|term| Term {
            bytes: cut(&term.dtype, &term.bytes),
            mask: term.mask.run(start, count),
            ..term.clone()
        });
        let terms = terms.collect();
        let first = self.first + start as u64;
        Self { base, terms, elements: count, first, ..self.clone() }
    }

    /// Computes it with every slice `offset` bytes past an allocation's start.
    fn blend(&self, device: &dyn Device, offset: usize) -> (Vec<u8>, Health) {
        let shift = |bytes: &[u8]| [&vec![0xa5; offset], bytes].concat();
        let base = self.base.as_ref().map(|(dtype, bytes)| (dtype, shift(bytes)));
        let bytes: Vec<_> = self.terms.iter().map(|term| shift(&term.bytes)).collect();
        let terms = self.terms.iter().zip(&bytes).map(|(term, bytes)| {
            (Operand { dtype: &term.dtype, bytes: &bytes[offset..] }, term.weight)
        });
        let terms: Vec<_> = terms.collect();
        let rules: Vec<_> = self
            .terms
            .iter()
            .map(|term| TermRule { mask: term.mask.mask(), share: term.share, alone: term.alone })
            .collect();
        let Self { first, deltas, vote, divide, .. } = *self;
        let tile = BlendTile {
            base: base.as_ref().map(|(dtype, bytes)| Operand { dtype, bytes: &bytes[offset..] }),
            terms: &terms,
            lambda: self.lambda,
            dtype: &self.dtype,
            rules: Some(&Rules { first, deltas, terms: &rules, vote, divide }),
        };
        let mut out = vec![0x5a; offset + self.elements * size(&self.dtype) + 1];
        let end = out.len() - 1;
        let health = device.blend(&tile, &mut out[offset..end]).unwrap();
        assert!(out[..offset].iter().all(|byte| *byte == 0x5a), "wrote before");
        assert_eq!(out[end], 0x5a, "wrote past the end");
        (out[offset..end].to_vec(), health)
    }

    /// Sums over what is kept of the values.
    fn sums(&self, device: &dyn Device, want: Want) -> Vec<u64> {
        let base = self.base.as_ref().map(|(dtype, bytes)| Operand { dtype, bytes });
        let base = base.filter(|_| self.deltas);
        let terms = self.terms.iter();
        let terms: Vec<_> =
            terms.map(|term| Operand { dtype: &term.dtype, bytes: &term.bytes }).collect();
        let masks: Vec<_> = self.terms.iter().map(|term| term.mask.mask()).collect();
        let tile =
            SweepTile { first: self.first, masks: &masks, want, ..SweepTile::new(base, &terms) };
        let mut sums = vec![7.5; leaves_of(self.elements) * sums_of(terms.len())];
        device.sums(&tile, &mut sums).unwrap();
        sums.into_iter().map(f64::to_bits).collect()
    }

    /// What the tests call it when it fails.
    fn describe(&self) -> String {
        let terms = self.terms.iter().map(|term| {
            let mask = match &term.mask {
                Owned::Bits(_) => "bits".to_owned(),
                mask => format!("{mask:x?}"),
            };
            let Term { dtype, weight, share, alone, .. } = term;
            format!("{dtype} * {weight} where {mask}, share {share}, alone {alone}")
        });
        let terms: Vec<_> = terms.collect();
        let base = self.base.as_ref().map(|(dtype, _)| dtype);
        let Self { lambda, dtype, elements, first, deltas, vote, divide, .. } = self;
        format!(
            "base {base:?}, deltas {deltas}, {terms:#?}, lambda {lambda}, {vote:?}, {divide:?}, to {dtype}, \
             {elements} elements from {first}"
        )
    }
}

fn check(device: &dyn Device, case: &Case) {
    let expected = case.blend(&Reference, 0);
    for offset in [0, 1] {
        let found = case.blend(device, offset);
        let width = size(&case.dtype);
        let pairs = found.0.chunks(width).zip(expected.0.chunks(width));
        let at = pairs.enumerate().find(|(_, (a, b))| a != b);
        assert!(
            found == expected,
            "{} differs at (element, (found, expected)) {at:x?}, health {:?} for {:?}: {}, offset {offset}",
            device.name(),
            found.1,
            expected.1,
            case.describe()
        );
    }
}

/// The suite: panics unless the device gives the reference's bytes, counts and sums.
pub(super) fn conforms(device: &dyn Device) {
    every_mask_of_every_dtype(device);
    mixes_of_dtypes(device);
    many_terms(device);
    tiles_are_parts_of_the_whole(device);
    sums_of_what_is_kept(device);
    wrong_rules_are_refused(device);
}

fn every_mask_of_every_dtype(device: &dyn Device) {
    let mut random = Random(21);
    for dtype in &FLOATS {
        for mask in 0..5 {
            for terms in 1..=3 {
                for elements in (0..=19).chain([255, 1025, 4099]) {
                    let terms: Vec<_> =
                        (0..terms).map(|k| (dtype.clone(), (mask + k) % 5)).collect();
                    let base = (elements % 5 != 0).then_some(dtype);
                    check(device, &Case::draw(&mut random, base, &terms, dtype, elements));
                }
            }
        }
    }
}

fn mixes_of_dtypes(device: &dyn Device) {
    let mut random = Random(22);
    for base in FLOATS.iter().map(Some).chain([None]) {
        for term in &FLOATS {
            for to in &FLOATS {
                let mut one = |dtype: &Dtype| (dtype.clone(), random.below(5));
                let terms = [one(term), one(&FLOATS[2]), one(to)];
                let terms = &terms[..=random.below(3)];
                let elements = random.below(68);
                check(device, &Case::draw(&mut random, base, terms, to, elements));
            }
        }
    }
}

/// As many as a device takes.
fn many_terms(device: &dyn Device) {
    let mut random = Random(23);
    for dtype in [Dtype::BF16, Dtype::F64] {
        for _ in 0..6 {
            let terms: Vec<_> = (0..64).map(|_| (dtype.clone(), random.below(5))).collect();
            check(device, &Case::draw(&mut random, Some(&dtype), &terms, &dtype, 333));
        }
    }
}

/// Numbers are those of the part, wherever a tile begins.
fn tiles_are_parts_of_the_whole(device: &dyn Device) {
    let mut random = Random(24);
    for mask in 0..5 {
        for dtype in [Dtype::BF16, Dtype::F32, Dtype::F64] {
            let terms = [(dtype.clone(), mask), (dtype.clone(), 1)];
            let case = Case::draw(&mut random, Some(&dtype), &terms, &dtype, 3001);
            let whole = case.blend(&Reference, 0);
            for tile in [1, 7, 64, 1000] {
                let starts = (0..case.elements).step_by(tile).skip(random.below(tile));
                for start in starts.take(6) {
                    let count = tile.min(case.elements - start);
                    let width = size(&dtype);
                    let found = case.run(start, count).blend(device, 0).0;
                    let expected = &whole.0[start * width..(start + count) * width];
                    assert_eq!(found, expected, "{start} + {count} of {}", case.describe());
                }
            }
        }
    }
}

fn sums_of_what_is_kept(device: &dyn Device) {
    let mut random = Random(25);
    for dtype in &FLOATS {
        for mask in 0..5 {
            for (turn, elements) in [1, 255, 257, 4096, 4097, 9001].into_iter().enumerate() {
                let mut terms = vec![(dtype.clone(), mask), (Dtype::BF16, (mask + turn) % 5)];
                terms.truncate(1 + turn % 2);
                let case = Case::draw(&mut random, Some(dtype), &terms, dtype, elements);
                for want in [Want::All, Want::Magnitudes, Want::Products] {
                    let same = case.sums(device, want) == case.sums(&Reference, want);
                    assert!(same, "{}: {want:?} of {}", device.name(), case.describe());
                }
            }
        }
    }
    // More sums than go together.
    let terms: Vec<_> = (0..7).map(|k| (Dtype::F16, k % 5)).collect();
    for want in [Want::All, Want::Magnitudes, Want::Products] {
        let case = Case::draw(&mut random, Some(&Dtype::F16), &terms, &Dtype::F16, 5000);
        assert!(case.sums(device, want) == case.sums(&Reference, want), "{}", case.describe());
    }
}

fn wrong_rules_are_refused(device: &dyn Device) {
    let four = Operand { dtype: &Dtype::BF16, bytes: &[0; 8] };
    let rule = |mask| TermRule { mask, share: 1.0, alone: 1.0 };
    let blend = |base, deltas, terms: &[TermRule<'_>]| {
        let tile = BlendTile {
            base,
            terms: &[(four, 1.0)],
            lambda: 1.0,
            dtype: &Dtype::BF16,
            rules: Some(&Rules { first: 0, deltas, terms, vote: None, divide: None }),
        };
        device.blend(&tile, &mut [0; 8])
    };
    assert!(blend(Some(four), true, &[rule(Mask::Bits(&[5]))]).is_ok());
    assert!(blend(None, false, &[rule(Mask::Random { seed: 1, below: 1 << 32 })]).is_ok());
    assert!(blend(None, true, &[rule(Mask::All)]).is_err(), "deltas without a base");
    assert!(blend(None, false, &[]).is_err(), "a term without a rule");
    assert!(blend(None, false, &[rule(Mask::All); 2]).is_err(), "a rule without a term");
    assert!(blend(None, false, &[rule(Mask::Bits(&[]))]).is_err(), "too few bits");
    assert!(blend(None, false, &[rule(Mask::Bits(&[0; 2]))]).is_err(), "too many bits");
    let random = Mask::Random { seed: 1, below: (1 << 32) + 1 };
    assert!(blend(None, false, &[rule(random)]).is_err());
    let sums = |masks: &[Mask<'_>]| {
        let terms = [four];
        let tile = SweepTile { masks, ..SweepTile::new(None, &terms) };
        device.sums(&tile, &mut [0.0; 2])
    };
    assert!(sums(&[]).is_ok());
    assert!(sums(&[Mask::Bits(&[5])]).is_ok());
    assert!(sums(&[Mask::Bits(&[])]).is_err());
    assert!(sums(&[random]).is_err());
    assert!(sums(&[Mask::All; 2]).is_err());
}
