//! Scratch memory that outlives a step, so that activations do not fault in fresh pages each time.

/// Buffers given back, for reuse.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Vec<Vec<f32>>,
}

impl Buffers {
    /// A buffer of `len` elements whose values are arbitrary.
    pub(super) fn take(&mut self, len: usize) -> Vec<f32> {
        let fitting = |b: &&(usize, usize)| b.1 >= len;
        let sizes: Vec<(usize, usize)> = self.free.iter().map(Vec::capacity).enumerate().collect();
        if let Some((i, _)) = sizes.iter().filter(fitting).min_by_key(|b| b.1) {
            let mut buffer = self.free.swap_remove(*i);
            buffer.resize(len, 0.0);
            return buffer;
        }
        // None is large enough: one of them makes room, or ever larger batches would pile up small ones.
        if let Some((i, _)) = sizes.iter().max_by_key(|b| b.1) {
            self.free.swap_remove(*i);
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
        assert_eq!(buffers.take(8), vec![2.0; 8]);
        assert_eq!(buffers.zeros(8), vec![0.0; 8]);
        assert!(buffers.free.is_empty());
        buffers.give(vec![1.0; 4]);
        assert_eq!(buffers.take(8).len(), 8);
        assert!(buffers.free.is_empty(), "the one that was too small is gone");
    }
}
