//! Scratch memory that outlives a step, so that activations do not fault in fresh pages each time.

/// Elements that are not worth sparing.
const SMALL: usize = 1 << 10;

/// Buffers given back, for reuse.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Vec<Vec<f32>>,
}

impl Buffers {
    /// A buffer of `len` elements whose values are arbitrary.
    ///
    /// One that is much too large is left for those who need it: logits are a thousand times the size of sums.
    pub(super) fn take(&mut self, len: usize) -> Vec<f32> {
        let sizes = || self.free.iter().map(Vec::capacity).enumerate();
        let fitting = sizes().filter(|(_, size)| (len..=2 * len + SMALL).contains(size));
        if let Some((i, _)) = fitting.min_by_key(|(_, size)| *size) {
            let mut buffer = self.free.swap_remove(i);
            buffer.resize(len, 0.0);
            return buffer;
        }
        // One that has been outgrown makes room, or ever larger batches would pile up small ones.
        let outgrown = sizes().filter(|(_, size)| *size < len && *size >= len / 4);
        if let Some((i, _)) = outgrown.max_by_key(|(_, size)| *size) {
            self.free.swap_remove(i);
        }
        vec![0.0; len]
    }

    /// A buffer of `len` zeros.
    pub(super) fn zeros(&mut self, len: usize) -> Vec<f32> {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Takes a buffer back.
    pub(super) fn give(&mut self, buffer: Vec<f32>) {
        if buffer.capacity() > 0 {
            self.free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_reused() {
        let mut buffers = Buffers::default();
        buffers.give(vec![1.0; 100]);
        buffers.give(vec![2.0; 10]);
        buffers.give(vec![3.0; 10_000]);
        assert_eq!(buffers.take(8), vec![2.0; 8]);
        assert_eq!(buffers.zeros(8), vec![0.0; 8]);
        assert_eq!(buffers.take(9).len(), 9);
        assert_eq!(buffers.free.len(), 1, "one that is much too large is not taken");
        assert_eq!(buffers.take(12_000).len(), 12_000);
        assert!(buffers.free.is_empty(), "one that was too small is gone");
    }
}
