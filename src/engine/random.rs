//! Random numbers that are a function of a seed and an element's number alone: Philox4x32-10 (Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", SC'11), so that any tile on any device draws the same.

#![expect(
    clippy::inline_always,
    reason = "compiled for an instruction set by being inlined where it is enabled"
)]
#![expect(clippy::cast_possible_truncation, reason = "halves of words")]

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Words of a counter.
pub(super) const WORDS: u64 = 4;

/// The four words of a counter.
#[inline(always)]
pub(super) const fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let mut round = 0;
    while round < ROUNDS {
        let low = counter[0] as u64 * MULTIPLIERS[0] as u64;
        let high = counter[2] as u64 * MULTIPLIERS[1] as u64;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        round += 1;
    }
    counter
}

/// The words of elements `4 * group` to `4 * group + 3` of a stream.
#[inline(always)]
pub(super) const fn words(seed: u64, group: u64) -> [u32; 4] {
    philox([group as u32, (group >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32])
}

/// Groups that are made at once, by vector instructions where they are enabled.
pub(super) const LANES: usize = 16;

/// [`words`] of groups that follow one another.
#[inline(always)]
pub(super) fn many_words(seed: u64, first: u64) -> [[u32; 4]; LANES] {
    let (mut a, mut b) = ([0; LANES], [0; LANES]);
    let (mut c, mut d) = ([0_u32; LANES], [0_u32; LANES]);
    for (lane, (a, b)) in (0..).zip(a.iter_mut().zip(&mut b)) {
        let group = first.wrapping_add(lane);
        (*a, *b) = (group as u32, (group >> 32) as u32);
    }
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..ROUNDS {
        for lane in 0..LANES {
            let low = u64::from(a[lane]) * u64::from(MULTIPLIERS[0]);
            let high = u64::from(c[lane]) * u64::from(MULTIPLIERS[1]);
            a[lane] = (high >> 32) as u32 ^ b[lane] ^ key[0];
            b[lane] = high as u32;
            c[lane] = (low >> 32) as u32 ^ d[lane] ^ key[1];
            d[lane] = low as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    let mut words = [[0; 4]; LANES];
    for (lane, words) in words.iter_mut().enumerate() {
        *words = [a[lane], b[lane], c[lane], d[lane]];
    }
    words
}

/// The word of an element of a stream.
pub(super) const fn word(seed: u64, element: u64) -> u32 {
    words(seed, element / WORDS)[(element % WORDS) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123.
    #[test]
    fn known_answers() {
        let known = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in known {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn many_words_are_the_words_of_each() {
        for first in [0, 7, u64::from(u32::MAX) - 3, u64::MAX / 4 - 20] {
            let many = many_words(0x0123_4567_89ab_cdef, first);
            for (words, group) in many.into_iter().zip(first..) {
                assert_eq!(words, super::words(0x0123_4567_89ab_cdef, group));
            }
        }
    }

    #[test]
    fn elements_take_the_words_in_order() {
        let seed = 0x0123_4567_89ab_cdef;
        for element in [0, 1, 2, 3, 4, 7, 1 << 34 | 2] {
            let counter = [(element / 4) as u32, (element >> 34) as u32, 0, 0];
            let words = philox(counter, [0x89ab_cdef, 0x0123_4567]);
            assert_eq!(word(seed, element), words[(element % 4) as usize], "{element}");
        }
    }
}
