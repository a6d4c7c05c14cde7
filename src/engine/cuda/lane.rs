//! One GPU at work, and the lanes on it: a lane is a stream with memory of its own that takes tiles to the GPU, computes them
//! and brings them back. Lanes overlap each other: while one copies, another computes, and their workers read and write.

#![expect(
    unsafe_code,
    reason = "copies and launches run after the call returns; each is waited for before what it touches is let go"
)]

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUevent_flags, CUresult};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream};

use super::failure::{described, failed};
use super::gpu::OpenGpu;
use super::kernels::{BlendAt, Entry, HistogramParameters, Place, SumsParameters};
use super::rules::{self, MaskedSumsParameters, RuledAt};
use crate::engine::device::{Checked, Health, HostMemory, Mask, Values};
use crate::engine::sweep::{self, Digit, LEAF, leaves_of, sums_of};
use crate::error::{Error, Result};

/// Operands begin at multiples of this many bytes of a lane's memory: what the driver's own allocations promise.
const ALIGNMENT: usize = 256;
/// A tile is cut into pieces of no fewer elements than this before "out of memory" is an error.
const SMALLEST_PIECE: usize = 16 << 10;
/// Elements that a block counts at least: it has a histogram of its own to clear and to add.
const ELEMENTS_PER_HISTOGRAM: u64 = 64 << 10;

/// A stream of a GPU with memory of its own. Used by threads that have entered the GPU's context.
pub(super) struct Lane {
    gpu: Arc<OpenGpu>,
    stream: Arc<CudaStream>,
    done: CudaEvent,
    memory: Option<CudaSlice<u8>>,
    /// Most bytes of `memory` that the user allows.
    bound: usize,
    /// Most bytes of `memory` that are tried for: what the GPU had left.
    limit: usize,
    /// Whether the GPU had too little memory for the last work.
    no_memory: bool,
    health: CudaSlice<u64>,
    /// Where results come back to that are no tile.
    results: HostMemory,
}

/// Why there is no lane.
pub(super) struct NoLane {
    pub(super) error: Box<Error>,
    /// The GPU has no memory left.
    pub(super) full: bool,
}

impl Lane {
    /// A lane that takes at most `bound` bytes of the GPU's memory.
    pub(super) fn new(gpu: &Arc<OpenGpu>, bound: Option<usize>) -> Result<Self, NoLane> {
        let made = || {
            let stream = gpu.context.new_stream()?;
            let done = gpu.context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))?;
            let health = stream.alloc_zeros(3)?;
            Ok((stream, done, health))
        };
        let (stream, done, health) = made().map_err(|e: DriverError| {
            let full = e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY;
            let error = Box::new(failed(&gpu.gpu.to_string(), "no stream on the GPU", e));
            NoLane { error, full }
        })?;
        let results = gpu.host_memory(health.num_bytes());
        let results = results.map_err(|error| NoLane { error: Box::new(error), full: false })?;
        Ok(Self {
            gpu: Arc::clone(gpu),
            stream,
            done,
            memory: None,
            bound: bound.map_or(usize::MAX, |bound| bound.saturating_sub(health.num_bytes())),
            limit: usize::MAX,
            no_memory: false,
            health,
            results,
        })
    }

    /// Whether work failed because the GPU had no memory for it.
    pub(super) fn found_no_memory(&self) -> bool {
        self.no_memory
    }

    /// Computes a tile that lies in host memory.
    pub(super) fn blend(&mut self, tile: &Checked<'_>, out: &mut [u8]) -> Result<Health> {
        if tile.elements == 0 {
            return Ok(Health::default());
        }
        let inputs: Vec<&Values<'_>> = tile.inputs().collect();
        let masks = rules::masks(tile);
        let lead = if tile.rules.is_some() { rules::VECTOR } else { 0 };
        let bytes = |elements: usize| {
            let result = padded((lead + elements) * tile.float.size());
            room(&inputs, lead + elements) + result + room_of_bits(&masks, elements)
        };
        let piece = self.piece(tile.elements, rules::step(tile), SMALLEST_PIECE, bytes)?;
        let sent = self.send_blend(tile, &inputs, &masks, out, piece);
        self.end(sent)?;
        Ok(self.counted())
    }

    /// Adds up a tile that lies in host memory.
    pub(super) fn sums(&mut self, tile: &sweep::Checked<'_>, sums: &mut [f64]) -> Result<()> {
        if tile.elements == 0 {
            return Ok(());
        }
        let inputs: Vec<&Values<'_>> = tile.inputs().collect();
        let count = sums_of(tile.terms.len());
        let result = |elements: usize| padded(leaves_of(elements) * count * size_of::<f64>());
        let bytes = |elements: usize| {
            room(&inputs, elements) + room_of_bits(tile.masks, elements) + result(elements)
        };
        let piece = self.piece(tile.elements, LEAF, LEAF, bytes)?;
        self.make_room(size_of_val(sums))?;
        let sent = self.send_sums(tile, &inputs, piece);
        self.end(sent)?;
        for (sum, bytes) in sums.iter_mut().zip(self.results.as_chunks().0) {
            *sum = f64::from_le_bytes(*bytes);
        }
        Ok(())
    }

    /// Counts the magnitudes of a tile that lies in host memory.
    pub(super) fn histogram(
        &mut self,
        tile: &sweep::Checked<'_>,
        digit: Digit,
        counts: &mut [u64],
    ) -> Result<()> {
        if tile.elements == 0 {
            return Ok(());
        }
        let inputs: Vec<&Values<'_>> = tile.inputs().collect();
        let bins = padded(digit.bins() * size_of::<u64>());
        let bytes = |elements: usize| bins + room(&inputs, elements);
        let piece = self.piece(tile.elements, 1, SMALLEST_PIECE, bytes)?;
        self.make_room(size_of_val(counts))?;
        let sent = self.send_histogram(tile, &inputs, digit, piece);
        self.end(sent)?;
        for (count, found) in counts.iter_mut().zip(self.results.as_chunks().0) {
            *count += u64::from_le_bytes(*found);
        }
        Ok(())
    }

    /// Computes elements that lie in this GPU's memory.
    pub(super) fn blend_resident(&mut self, mut blend: BlendAt<'_>) -> Result<Health> {
        blend.health = self.health_address();
        let sent = self
            .clear()
            .and_then(|()| self.gpu.launch(&self.stream, &blend))
            .and_then(|()| self.fetch_counts());
        self.end(sent)?;
        Ok(self.counted())
    }

    /// How many elements of a tile the lane's memory takes at a time: all, or a multiple of `step`, at least `least`.
    /// `bytes` says what a number of elements takes.
    fn piece(
        &mut self,
        elements: usize,
        step: usize,
        least: usize,
        bytes: impl Fn(usize) -> usize,
    ) -> Result<usize> {
        // Within a bound pieces become as small as it takes.
        let least = if bytes(least.min(elements)) > self.bound { step } else { least };
        let capacity = self.reserve(bytes(elements), bytes(least.min(elements)))?;
        let mut piece = elements;
        while bytes(piece) > capacity {
            // What does not fit is halved: the pieces stay of about one size.
            piece = piece.div_ceil(2).next_multiple_of(step);
        }
        Ok(piece)
    }

    /// Memory for `wanted` bytes, or as much as there is. Less than `least` is an error.
    fn reserve(&mut self, wanted: usize, least: usize) -> Result<usize> {
        self.no_memory = false;
        if least > self.bound {
            return Err(Error::Device {
                device: self.gpu.gpu.to_string(),
                reason: format!(
                    "{} bytes of GPU memory a lane are too little: a piece of a tile takes {least}",
                    self.bound
                ),
                hint: "allow more with `--device-memory`, or use `--device cpu`".into(),
            });
        }
        let wanted = wanted.min(self.limit.max(least)).min(self.bound);
        if let Some(memory) = self.memory.as_ref().filter(|memory| memory.len() >= wanted) {
            return Ok(memory.len());
        }
        if self.memory.take().is_some() {
            // Memory is given back in the order of the stream: not before this is it free for the larger one.
            let waited = self.stream.synchronize();
            waited.map_err(|e| failed(&self.gpu.gpu.to_string(), "no memory on the GPU", e))?;
        }
        let mut bytes = wanted;
        loop {
            // SAFETY: only what a copy or a kernel has written is read.
            match unsafe { self.stream.alloc::<u8>(bytes) } {
                Ok(memory) => {
                    self.memory = Some(memory);
                    return Ok(bytes);
                }
                Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) if bytes > least => {
                    bytes = (bytes / 2).max(least);
                    self.limit = bytes;
                }
                Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                    self.no_memory = true;
                    return Err(self.out_of_memory(least));
                }
                Err(e) => return Err(failed(&self.gpu.gpu.to_string(), "no memory on the GPU", e)),
            }
        }
    }

    fn out_of_memory(&self, least: usize) -> Error {
        let free = match self.gpu.context.mem_get_info() {
            Ok((free, total)) => format!("{free} of its {total} bytes are free"),
            Err(e) => described(e),
        };
        Error::Device {
            device: self.gpu.gpu.to_string(),
            reason: format!("out of GPU memory: a piece of a tile takes {least} bytes, {free}"),
            hint: "end other programs that use the GPU (`nvidia-smi` lists them), use fewer `--threads`, or use \
                   `--device cpu`"
                .into(),
        }
    }

    /// Starts everything that a tile takes; nothing is waited for. So do the two that follow.
    fn send_blend(
        &mut self,
        tile: &Checked<'_>,
        inputs: &[&Values<'_>],
        masks: &[Mask<'_>],
        out: &mut [u8],
        piece: usize,
    ) -> Result<(), DriverError> {
        self.clear()?;
        let size = tile.float.size();
        for start in (0..tile.elements).step_by(piece) {
            let count = piece.min(tile.elements - start);
            let (mut free, lead) = (self.start(), rules::lead(tile, start));
            let run = start..start + count;
            let has_base = tile.base.is_some();
            let (base, places) = self.upload(inputs, has_base, run.clone(), lead, &mut free)?;
            let bits = self.upload_bits(masks, run, &mut free)?;
            let weights = tile.terms.iter().map(|(_, weight)| *weight);
            let terms: Vec<(Place, f64)> = places.into_iter().zip(weights).collect();
            let address = free + (lead * size) as u64;
            let blend = BlendAt {
                elements: count as u64,
                out: Place { float: tile.float, address },
                base,
                terms: &terms,
                lambda: tile.lambda,
                health: self.health_address(),
            };
            match tile.rules {
                None => self.gpu.launch(&self.stream, &blend)?,
                Some(rules) => {
                    let first = rules.first + start as u64;
                    let ruled = RuledAt { blend, rules, first, bits: &bits };
                    self.gpu.launch_ruled(&self.stream, &ruled)?;
                }
            }
            self.download(&mut out[start * size..][..count * size], address)?;
        }
        self.fetch_counts()
    }

    fn send_sums(
        &mut self,
        tile: &sweep::Checked<'_>,
        inputs: &[&Values<'_>],
        piece: usize,
    ) -> Result<(), DriverError> {
        let entry = match (tile.is_double(), tile.masks.is_empty()) {
            (false, true) => Entry::SumsSingle,
            (true, true) => Entry::SumsDouble,
            (false, false) => Entry::MaskedSumsSingle,
            (true, false) => Entry::MaskedSumsDouble,
        };
        let of_leaf = sums_of(tile.terms.len()) * size_of::<f64>();
        for start in (0..tile.elements).step_by(piece) {
            let count = piece.min(tile.elements - start);
            let result = leaves_of(start) * of_leaf..leaves_of(start + count) * of_leaf;
            let mut free = self.start();
            let run = start..start + count;
            let has_base = tile.base.is_some();
            let (base, places) = self.upload(inputs, has_base, run.clone(), 0, &mut free)?;
            let bits = self.upload_bits(tile.masks, run, &mut free)?;
            let (count, blocks) = (count as u64, leaves_of(count) as u64);
            let parameters = SumsParameters::new(count, base, &places, tile.want, free);
            if tile.masks.is_empty() {
                self.gpu.start(&self.stream, entry, blocks, &parameters)?;
            } else {
                let first = tile.first + start as u64;
                let parameters = MaskedSumsParameters::new(&parameters, first, tile.masks, &bits);
                self.gpu.start(&self.stream, entry, blocks, &parameters)?;
            }
            self.download_result(result, free)?;
        }
        Ok(())
    }

    fn send_histogram(
        &mut self,
        tile: &sweep::Checked<'_>,
        inputs: &[&Values<'_>],
        digit: Digit,
        piece: usize,
    ) -> Result<(), DriverError> {
        let entry = if tile.is_double() { Entry::HistogramDouble } else { Entry::HistogramSingle };
        let (counts, bytes) = (self.start(), digit.bins() * size_of::<u64>());
        // SAFETY: the lane's memory begins with room for the counts.
        unsafe { result::memset_d8_async(counts, 0, bytes, self.stream.cu_stream())? };
        for start in (0..tile.elements).step_by(piece) {
            let count = piece.min(tile.elements - start);
            let mut free = counts + padded(bytes) as u64;
            let (base, places) =
                self.upload(inputs, tile.base.is_some(), start..start + count, 0, &mut free)?;
            let parameters = HistogramParameters::new(count as u64, base, places[0], digit, counts);
            let blocks = (count as u64).div_ceil(ELEMENTS_PER_HISTOGRAM);
            self.gpu.start(&self.stream, entry, blocks, &parameters)?;
        }
        self.download_result(0..bytes, counts)
    }

    /// Where the lane's memory begins.
    fn start(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| address(memory, &self.stream))
    }

    /// Takes runs of the operands to the GPU, one behind the other from `free` on, with room for `lead` elements before each. Gives the
    /// base's place, if the first operand is one, and those of the terms.
    fn upload(
        &self,
        inputs: &[&Values<'_>],
        has_base: bool,
        run: Range<usize>,
        lead: usize,
        free: &mut u64,
    ) -> Result<(Option<Place>, Vec<Place>), DriverError> {
        let mut places = Vec::with_capacity(inputs.len());
        for values in inputs {
            let bytes = values.run(run.start, run.len()).bytes;
            let lead = lead * values.float.size();
            let address = *free + lead as u64;
            // SAFETY: the lane's memory has room for all of them; the bytes live until `wait` has returned.
            unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream())? };
            places.push(Place { float: values.float, address });
            *free += padded(lead + bytes.len()) as u64;
        }
        let base = has_base.then(|| places.remove(0));
        Ok((base, places))
    }

    /// Takes the bits of masks there, of a run that begins where a byte does. Gives an address for each term, 0 without bits.
    fn upload_bits(
        &self,
        masks: &[Mask<'_>],
        run: Range<usize>,
        free: &mut u64,
    ) -> Result<Vec<u64>, DriverError> {
        let mut places = Vec::with_capacity(masks.len());
        for mask in masks {
            let Some(bits) = rules::bits(mask) else {
                places.push(0);
                continue;
            };
            let bytes = &bits[run.start / 8..run.end.div_ceil(8)];
            // SAFETY: as above.
            unsafe { result::memcpy_htod_async(*free, bytes, self.stream.cu_stream())? };
            places.push(*free);
            *free += padded(bytes.len()) as u64;
        }
        Ok(places)
    }

    fn download(&self, to: &mut [u8], from: u64) -> Result<(), DriverError> {
        // SAFETY: the stream has written these bytes before; `to` lives until `wait` has returned.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }
    }

    fn download_result(&mut self, to: Range<usize>, from: u64) -> Result<(), DriverError> {
        // SAFETY: as above; `results` lives as long as the lane.
        unsafe { result::memcpy_dtoh_async(&mut self.results[to], from, self.stream.cu_stream()) }
    }

    /// Page-locked room for results of so many bytes: copies to other memory would keep a core busy until they end.
    fn make_room(&mut self, bytes: usize) -> Result<()> {
        if self.results.len() < bytes {
            self.results = self.gpu.host_memory(bytes)?;
        }
        Ok(())
    }

    /// Waits for all that was started, even if something failed: until then it touches the caller's memory.
    fn end(&self, sent: Result<(), DriverError>) -> Result<()> {
        let ended = self.wait();
        sent.and(ended).map_err(|e| failed(&self.gpu.gpu.to_string(), "the GPU failed at work", e))
    }

    fn health_address(&self) -> u64 {
        address(&self.health, &self.stream)
    }

    fn clear(&mut self) -> Result<(), DriverError> {
        self.stream.memset_zeros(&mut self.health)
    }

    fn fetch_counts(&mut self) -> Result<(), DriverError> {
        self.download_result(0..self.health.num_bytes(), self.health_address())
    }

    fn counted(&self) -> Health {
        let mut counts = self.results.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || counts.next().unwrap_or(0);
        Health { nan: next(), infinite: next(), broken: next() }
    }

    /// Sleeps until the stream has done everything.
    ///
    /// Not by `cudarc`'s safe calls: those may return what another lane left behind in the context, and not have waited.
    fn wait(&self) -> Result<(), DriverError> {
        let (stream, done) = (self.stream.cu_stream(), self.done.cu_event());
        // SAFETY: both live as long as the lane; whoever uses a lane has entered its GPU's context.
        unsafe {
            let ended =
                result::event::record(done, stream).and_then(|()| result::event::synchronize(done));
            // Without the event, the plain way: nothing may be at work when this returns.
            ended.or_else(|e| result::stream::synchronize(stream).and(Err(e)))
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The driver frees memory in the order of the stream; errors have been told already.
        let _entered = self.gpu.enter();
        let _ = self.wait();
    }
}

/// Bytes of a run of operands on the GPU.
fn room(inputs: &[&Values<'_>], elements: usize) -> usize {
    inputs.iter().map(|values| padded(elements * values.float.size())).sum()
}

/// Bytes of the bits of a run's masks.
fn room_of_bits(masks: &[Mask<'_>], elements: usize) -> usize {
    masks.iter().filter_map(rules::bits).count() * padded(elements.div_ceil(8))
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

fn address<T>(memory: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    use cudarc::driver::DevicePtr as _;
    memory.device_ptr(stream).0
}
