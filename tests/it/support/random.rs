//! A small seeded generator, so that a failure can be repeated from the seed it prints.

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Finite bf16 values of about the size of weights: any sign and mantissa, exponents from 2^-14 to 2^1.
    pub(crate) fn bf16_weights(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count * 2 + 8);
        while bytes.len() < count * 2 {
            for half in self.next().to_le_bytes().chunks_exact(2) {
                let raw = u16::from_le_bytes([half[0], half[1]]);
                let exponent = 113 + ((raw >> 7) & 15);
                let value = (raw & 0x807f) | (exponent << 7);
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        bytes.truncate(count * 2);
        bytes
    }
}
