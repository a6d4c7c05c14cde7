//! The Mersenne Twister MT19937 (Matsumoto and Nishimura, ACM TOMACS 8, 1998), PyTorch's random stream on the CPU.
//!
//! One stream goes through a whole merge: every part says how many words were taken before it. Parts may be made in any
//! order, so states are remembered on the way, and a part starts from the nearest one before it.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// Words between two states that are remembered: a tenth of a second's work.
const STRIDE: u64 = 1 << 26;

/// A state of the generator.
#[derive(Clone)]
pub(super) struct Twister {
    words: [u32; WORDS],
    next: usize,
}

impl Twister {
    pub(super) fn new(seed: u32) -> Self {
        let mut words = [seed; WORDS];
        for i in 1..WORDS {
            let last = words[i - 1];
            #[expect(clippy::cast_possible_truncation, reason = "i is below 624")]
            let number = i as u32;
            words[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(number);
        }
        Self { words, next: WORDS }
    }

    /// The next 624 words.
    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined =
                (self.words[i] & 0x8000_0000) | (self.words[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[i] = self.words[(i + MIDDLE) % WORDS] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// The next word.
    pub(super) fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut y = self.words[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number from 0 up to 1, as PyTorch draws it for f32: 24 bits of a word.
    pub(super) fn uniform(&mut self) -> f64 {
        f64::from(self.word() & 0x00ff_ffff) / f64::from(1 << 24)
    }

    fn skip(&mut self, mut words: u64) {
        while words > 0 {
            if self.next == WORDS {
                self.twist();
            }
            let step = words.min((WORDS - self.next) as u64);
            self.next += usize::try_from(step).unwrap_or(0);
            words -= step;
        }
    }
}

/// Known states, by seed and words taken.
#[derive(Default)]
pub(super) struct Streams(BTreeMap<(u32, u64), Twister>);

impl Streams {
    /// The stream of a seed after `words` words.
    ///
    /// # Errors
    /// [`Error::Interrupted`], once `cancelled` says so.
    pub(super) fn at(
        &mut self,
        seed: u32,
        words: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Twister> {
        let known = self.0.range((seed, 0)..=(seed, words)).next_back();
        let (mut at, mut state) =
            known.map_or_else(|| (0, Twister::new(seed)), |((_, at), state)| (*at, state.clone()));
        while at < words {
            if cancelled() {
                return Err(Error::Interrupted { resumable: true });
            }
            let step = STRIDE.min(words - at);
            state.skip(step);
            at += step;
            self.keep(seed, at, &state);
        }
        Ok(state)
    }

    /// Remembers a state.
    pub(super) fn keep(&mut self, seed: u32, words: u64, state: &Twister) {
        self.0.insert((seed, words), state.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of C++'s standard, [rand.predef]: the 10000th number of the default seed.
    #[test]
    fn the_ten_thousandth_word_is_the_standards() {
        let mut twister = Twister::new(5489);
        twister.skip(9_999);
        assert_eq!(twister.word(), 4_123_659_995);
    }

    /// `torch.manual_seed(7); torch.bernoulli(torch.full((40,), 0.5))` of PyTorch 2.15.
    #[test]
    fn draws_are_pytorchs() {
        let mut twister = Twister::new(7);
        let draws: String =
            (0..40).map(|_| if twister.uniform() < 0.5 { '1' } else { '0' }).collect();
        assert_eq!(draws, "0100111010001111010101000000010000001111");
    }

    #[test]
    fn a_stream_is_the_same_from_wherever_it_is_entered() {
        let mut streams = Streams::default();
        let mut whole = Twister::new(3);
        let words: Vec<u32> = (0..3000).map(|_| whole.word()).collect();
        for at in [2500_u64, 0, 700, 623, 624, 1248, 2999] {
            let mut state = streams.at(3, at, &|| false).unwrap();
            assert_eq!(state.word(), words[usize::try_from(at).unwrap()]);
        }
        assert!(matches!(streams.at(4, 1, &|| true), Err(Error::Interrupted { .. })));
    }
}
