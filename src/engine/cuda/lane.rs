//! One GPU at work, and the lanes on it: a lane is a stream with memory of its own that takes tiles to the GPU, computes them
//! and brings them back. Lanes overlap each other: while one copies, another computes, and their workers read and write.

#![expect(
    unsafe_code,
    reason = "copies and launches run after the call returns; each is waited for before what it touches is let go"
)]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CU_MEMHOSTALLOC_PORTABLE, CUdevice_attribute, CUevent_flags, CUresult};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaSlice, CudaStream, DeviceRepr, LaunchConfig,
    PushKernelArg as _,
};
use cudarc::nvrtc::Ptx;

use super::driver::{Gpu, described};
use super::kernels::{BLOCK, BlendAt, Entry, HistogramParameters, PTX, Place, SumsParameters};
use crate::engine::device::{Checked, Health, Values};
use crate::engine::sweep::{self, Digit, LEAF, leaves_of, sums_of};
use crate::error::{Error, Result};

/// Operands begin at multiples of this many bytes of a lane's memory: what the driver's own allocations promise.
const ALIGNMENT: usize = 256;
/// A tile is cut into pieces of no fewer elements than this before "out of memory" is an error.
const SMALLEST_PIECE: usize = 16 << 10;
/// Blocks of a launch per multiprocessor, at most: enough to fill it several times over.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 32;
/// Elements that a thread takes in one step, at most: 16 bytes of the narrowest dtype.
const ELEMENTS_PER_THREAD: u64 = 16;

/// A GPU with the kernels loaded.
pub(super) struct OpenGpu {
    pub(super) gpu: Gpu,
    context: Arc<CudaContext>,
    functions: Vec<CudaFunction>,
    multiprocessors: u32,
}

impl OpenGpu {
    pub(super) fn open(gpu: Gpu) -> Result<Self> {
        let name = gpu.to_string();
        let context = CudaContext::new(gpu.index as usize)
            .map_err(|e| failed(&name, "no context on the GPU", e))?;
        // SAFETY: every lane has its own memory and one stream, and waits for it before anything is reused.
        unsafe { context.disable_event_tracking() };
        let module = context
            .load_module(Ptx::from_src(PTX))
            .map_err(|e| failed(&name, "the driver does not take the kernels", e))?;
        let function = |entry: &Entry| {
            module
                .load_function(entry.name())
                .map_err(|e| failed(&name, &format!("kernel {} is missing", entry.name()), e))
        };
        let functions = Entry::ALL.iter().map(function).collect::<Result<_>>()?;
        let multiprocessors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(|e| failed(&name, "it does not say how many multiprocessors it has", e))?;
        Ok(Self { gpu, context, functions, multiprocessors: multiprocessors.unsigned_abs() })
    }

    /// Page-locked memory of the host, which every GPU copies from and to without a detour.
    pub(super) fn host_memory(&self, bytes: usize) -> Result<PageLocked> {
        let allocated = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: the memory is given back by `PageLocked` alone.
            unsafe { result::malloc_host(bytes, CU_MEMHOSTALLOC_PORTABLE) }
        });
        match allocated {
            Ok(start) => {
                let context = Arc::clone(&self.context);
                Ok(PageLocked { context, start: start.cast(), len: bytes })
            }
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(Error::Device {
                device: self.gpu.to_string(),
                reason: format!("{bytes} bytes of page-locked host memory are not to be had"),
                hint: "bound it with `--memory`, use fewer `--threads`, or raise `ulimit -l`"
                    .into(),
            }),
            Err(e) => Err(failed(&self.gpu.to_string(), "no page-locked host memory", e)),
        }
    }

    fn launch(&self, stream: &CudaStream, blend: &BlendAt<'_>) -> Result<(), DriverError> {
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, as the contract says")]
        let single = |factor: f64| factor as f32;
        let (entry, blocks) = (blend.entry(), blocks_of(blend.elements));
        match entry {
            Entry::BlendDouble => {
                self.start(stream, entry, blocks, &blend.parameters(|factor| factor))
            }
            _ => self.start(stream, entry, blocks, &blend.parameters(single)),
        }
    }

    fn start<P: DeviceRepr>(
        &self,
        stream: &CudaStream,
        entry: Entry,
        elements: u64,
        parameters: &P,
    ) -> Result<(), DriverError> {
        let most = u64::from(self.multiprocessors) * BLOCKS_PER_MULTIPROCESSOR;
        let blocks =
            elements.div_ceil(u64::from(BLOCK) * ELEMENTS_PER_THREAD).clamp(1, most.max(1));
        let shape = LaunchConfig {
            grid_dim: (u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the parameters are the struct that the kernel declares, by value; whoever made them vouches for the addresses.
        unsafe {
            stream.launch_builder(&self.functions[entry as usize]).arg(parameters).launch(shape)?
        };
        Ok(())
    }
}

/// A stream of a GPU with memory of its own.
pub(super) struct Lane {
    gpu: Arc<OpenGpu>,
    stream: Arc<CudaStream>,
    done: CudaEvent,
    memory: Option<CudaSlice<u8>>,
    /// Most bytes of `memory`: what the user allows, or what the GPU had left.
    limit: usize,
    health: CudaSlice<u64>,
    counts: PageLocked,
}

impl Lane {
    pub(super) fn new(gpu: &Arc<OpenGpu>, limit: usize) -> Result<Self> {
        let made = || {
            let stream = gpu.context.new_stream()?;
            let done = gpu.context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))?;
            let health = stream.alloc_zeros(3)?;
            Ok((stream, done, health))
        };
        let (stream, done, health) =
            made().map_err(|e| failed(&gpu.gpu.to_string(), "no stream on the GPU", e))?;
        let counts = gpu.host_memory(3 * size_of::<u64>())?;
        let limit = limit.saturating_sub(health.num_bytes());
        Ok(Self { gpu: Arc::clone(gpu), stream, done, memory: None, limit, health, counts })
    }

    /// Computes a tile that lies in host memory.
    pub(super) fn blend(&mut self, tile: &Checked<'_>, out: &mut [u8]) -> Result<Health> {
        if tile.elements == 0 {
            return Ok(Health::default());
        }
        let inputs: Vec<&Values<'_>> = tile.inputs().collect();
        let bytes =
            |elements: usize| room(&inputs, elements) + padded(elements * tile.float.size());
        let piece = self.piece(tile.elements, 1, SMALLEST_PIECE, bytes)?;
        let sent = self.send_blend(tile, &inputs, out, piece);
        self.end(sent)?;
        Ok(self.counted())
    }

    /// Adds up a tile that lies in host memory.
    pub(super) fn sums(&mut self, tile: &sweep::Checked<'_>, sums: &mut [f64]) -> Result<()> {
        if tile.elements == 0 {
            return Ok(());
        }
        let inputs: Vec<&Values<'_>> = tile.base.iter().chain(&tile.terms).collect();
        let count = sums_of(tile.terms.len());
        let result = |elements: usize| padded(leaves_of(elements) * count * size_of::<f64>());
        let bytes = |elements: usize| room(&inputs, elements) + result(elements);
        let piece = self.piece(tile.elements, LEAF, LEAF, bytes)?;
        let sent = self.send_sums(tile, &inputs, sums, piece);
        self.end(sent)
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
        let inputs: Vec<&Values<'_>> = tile.base.iter().chain(&tile.terms).collect();
        let bins = padded(digit.bins() * size_of::<u64>());
        let bytes = |elements: usize| bins + room(&inputs, elements);
        let piece = self.piece(tile.elements, 1, SMALLEST_PIECE, bytes)?;
        let mut found = vec![0_u64; digit.bins()];
        let sent = self.send_histogram(tile, &inputs, digit, &mut found, piece);
        self.end(sent)?;
        for (count, found) in counts.iter_mut().zip(found) {
            *count += found;
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
        let wanted = wanted.min(self.limit.max(least));
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
        out: &mut [u8],
        piece: usize,
    ) -> Result<(), DriverError> {
        self.clear()?;
        let size = tile.float.size();
        for start in (0..tile.elements).step_by(piece) {
            let count = piece.min(tile.elements - start);
            let mut free = self.start();
            let mut places = self.upload(inputs, start, count, &mut free)?;
            let base = tile.base.is_some().then(|| places.remove(0));
            let weights = tile.terms.iter().map(|(_, weight)| *weight);
            let terms: Vec<(Place, f64)> = places.into_iter().zip(weights).collect();
            let blend = BlendAt {
                elements: count as u64,
                out: Place { float: tile.float, address: free },
                base,
                terms: &terms,
                lambda: tile.lambda,
                health: self.health_address(),
            };
            self.gpu.launch(&self.stream, &blend)?;
            self.download(&mut out[start * size..][..count * size], free)?;
        }
        self.fetch_counts()
    }

    fn send_sums(
        &mut self,
        tile: &sweep::Checked<'_>,
        inputs: &[&Values<'_>],
        sums: &mut [f64],
        piece: usize,
    ) -> Result<(), DriverError> {
        let entry = if tile.is_double() { Entry::SumsDouble } else { Entry::SumsSingle };
        let of_leaf = sums_of(tile.terms.len());
        let pieces = sums.chunks_mut(leaves_of(piece) * of_leaf);
        for (start, sums) in (0..tile.elements).step_by(piece).zip(pieces) {
            let count = piece.min(tile.elements - start);
            let mut free = self.start();
            let mut places = self.upload(inputs, start, count, &mut free)?;
            let base = tile.base.is_some().then(|| places.remove(0));
            let parameters = SumsParameters::new(count as u64, base, &places, free);
            let blocks = leaves_of(count) as u64;
            self.gpu.start(&self.stream, entry, blocks, &parameters)?;
            self.download(sums, free)?;
        }
        Ok(())
    }

    fn send_histogram(
        &mut self,
        tile: &sweep::Checked<'_>,
        inputs: &[&Values<'_>],
        digit: Digit,
        found: &mut [u64],
        piece: usize,
    ) -> Result<(), DriverError> {
        let entry = if tile.is_double() { Entry::HistogramDouble } else { Entry::HistogramSingle };
        let (counts, bytes) = (self.start(), size_of_val(found));
        // SAFETY: the lane's memory begins with room for the counts.
        unsafe { result::memset_d8_async(counts, 0, bytes, self.stream.cu_stream())? };
        for start in (0..tile.elements).step_by(piece) {
            let count = piece.min(tile.elements - start);
            let mut free = counts + padded(bytes) as u64;
            let places = self.upload(inputs, start, count, &mut free)?;
            let (base, term) = match places.as_slice() {
                [base, term] => (Some(*base), *term),
                places => (None, places[0]),
            };
            let parameters = HistogramParameters::new(count as u64, base, term, digit, counts);
            self.gpu.start(&self.stream, entry, blocks_of(count as u64), &parameters)?;
        }
        self.download(found, counts)
    }

    /// Where the lane's memory begins.
    fn start(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| address(memory, &self.stream))
    }

    /// Takes runs of the operands to the GPU, one behind the other from `free` on.
    fn upload(
        &self,
        inputs: &[&Values<'_>],
        start: usize,
        count: usize,
        free: &mut u64,
    ) -> Result<Vec<Place>, DriverError> {
        let mut places = Vec::with_capacity(inputs.len());
        for values in inputs {
            let bytes = values.run(start, count).bytes;
            // SAFETY: the lane's memory has room for all of them; the bytes live until `wait` has returned.
            unsafe { result::memcpy_htod_async(*free, bytes, self.stream.cu_stream())? };
            places.push(Place { float: values.float, address: *free });
            *free += padded(bytes.len()) as u64;
        }
        Ok(places)
    }

    fn download<T>(&self, to: &mut [T], from: u64) -> Result<(), DriverError> {
        // SAFETY: numbers of the same size on both sides, which the stream has written before; `to` lives until `wait` has
        // returned.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }
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
        let from = self.health_address();
        // SAFETY: both are three 64-bit counters, and live as long as the lane.
        unsafe { result::memcpy_dtoh_async(&mut self.counts, from, self.stream.cu_stream()) }
    }

    fn counted(&self) -> Health {
        let mut counts = self.counts.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || counts.next().unwrap_or(0);
        Health { nan: next(), infinite: next(), broken: next() }
    }

    /// Sleeps until the stream has done everything.
    fn wait(&self) -> Result<(), DriverError> {
        match self.done.record(&self.stream).and_then(|()| self.done.synchronize()) {
            Ok(()) => Ok(()),
            // Without the event, the plain way: nothing may be at work when this returns.
            Err(e) => self.stream.synchronize().and(Err(e)),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The driver frees memory in the order of the stream; errors have been told already.
        let _ = self.stream.synchronize();
    }
}

/// Blocks that have a step's work for every thread.
fn blocks_of(elements: u64) -> u64 {
    elements.div_ceil(u64::from(BLOCK) * ELEMENTS_PER_THREAD)
}

/// Bytes of a run of operands on the GPU.
fn room(inputs: &[&Values<'_>], elements: usize) -> usize {
    inputs.iter().map(|values| padded(elements * values.float.size())).sum()
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

fn address<T>(memory: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    use cudarc::driver::DevicePtr as _;
    memory.device_ptr(stream).0
}

/// Page-locked host memory.
pub(super) struct PageLocked {
    /// The memory goes with the context in which it was made.
    context: Arc<CudaContext>,
    start: *mut u8,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PageLocked {}

impl Deref for PageLocked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the driver gave these bytes, zeroed by the system, to this value alone.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for PageLocked {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        // The thread may never have used the GPU.
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by the driver, given back once. Lanes wait for their copies before they let go of memory.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

/// A failure of the driver in the middle of work.
pub(super) fn failed(device: &str, what: &str, error: DriverError) -> Error {
    let hint = match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "end other programs that use the GPU (`nvidia-smi` lists them), or use `--device cpu`"
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_PTX => {
            "update the NVIDIA driver to 525 or newer (CUDA 12.0)"
        }
        _ => {
            "see `nvidia-smi` and `dmesg` for the GPU's state; `--device cpu` continues without it"
        }
    };
    Error::Device {
        device: device.into(),
        reason: format!("{what}: {}", described(error)),
        hint: hint.into(),
    }
}
