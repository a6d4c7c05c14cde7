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
use super::kernels::{BLOCK, BlendAt, Entry, PTX, Place};
use crate::engine::device::{Checked, Health};
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
        let name = label(&gpu);
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

    pub(super) fn label(&self) -> String {
        label(&self.gpu)
    }

    /// Page-locked memory of the host, which every GPU copies from and to without a detour.
    pub(super) fn host_memory(&self, bytes: usize) -> Result<PageLocked> {
        let allocated = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: the memory is given back by `PageLocked` alone.
            unsafe { result::malloc_host(bytes, CU_MEMHOSTALLOC_PORTABLE) }
        });
        match allocated {
            Ok(start) => Ok(PageLocked { start: start.cast(), len: bytes }),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(Error::Device {
                device: self.label(),
                reason: format!("{bytes} bytes of page-locked host memory are not to be had"),
                hint: "bound it with `--memory`, use fewer `--threads`, or raise `ulimit -l`"
                    .into(),
            }),
            Err(e) => Err(failed(&self.label(), "no page-locked host memory", e)),
        }
    }

    fn launch(&self, stream: &CudaStream, blend: &BlendAt<'_>) -> Result<(), DriverError> {
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, as the contract says")]
        let single = |factor: f64| factor as f32;
        let entry = blend.entry();
        match entry {
            Entry::BlendDouble => {
                self.start(stream, entry, blend.elements, &blend.parameters(|factor| factor))
            }
            _ => self.start(stream, entry, blend.elements, &blend.parameters(single)),
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
            made().map_err(|e| failed(&gpu.label(), "no stream on the GPU", e))?;
        let counts = gpu.host_memory(3 * size_of::<u64>())?;
        Ok(Self { gpu: Arc::clone(gpu), stream, done, memory: None, limit, health, counts })
    }

    /// Computes a tile that lies in host memory.
    pub(super) fn blend(&mut self, tile: &Checked<'_>, out: &mut [u8]) -> Result<Health> {
        if tile.elements == 0 {
            return Ok(Health::default());
        }
        let widths: usize =
            tile.inputs().map(|v| v.float.size()).sum::<usize>() + tile.float.size();
        let operands = tile.inputs().count() + 1;
        let bytes = |elements: usize| elements * widths + operands * ALIGNMENT;
        let capacity =
            self.reserve(bytes(tile.elements), bytes(SMALLEST_PIECE.min(tile.elements)))?;
        let piece = (capacity - operands * ALIGNMENT) / widths;
        let sent = self.send(tile, out, piece);
        // Even if something failed: what was started touches the caller's memory until it has ended.
        let ended = self.wait();
        sent.and(ended).map_err(|e| failed(&self.gpu.label(), "computing a tile", e))?;
        Ok(self.counted())
    }

    /// Computes elements that lie in this GPU's memory.
    pub(super) fn blend_resident(&mut self, mut blend: BlendAt<'_>) -> Result<Health> {
        blend.health = self.health_address();
        let sent = self
            .clear()
            .and_then(|()| self.gpu.launch(&self.stream, &blend))
            .and_then(|()| self.fetch_counts());
        let ended = self.wait();
        sent.and(ended).map_err(|e| failed(&self.gpu.label(), "computing on its memory", e))?;
        Ok(self.counted())
    }

    /// Memory for `wanted` bytes, or as much as there is. Less than `least` is an error.
    fn reserve(&mut self, wanted: usize, least: usize) -> Result<usize> {
        if self.memory.as_ref().is_some_and(|memory| memory.len() >= wanted.min(self.limit)) {
            return Ok(self.memory.as_ref().map_or(0, |memory| memory.len().min(wanted)));
        }
        self.memory = None;
        let mut bytes = wanted.min(self.limit);
        let device = self.gpu.label();
        while bytes >= least {
            // SAFETY: only what a copy or a kernel has written is read.
            match unsafe { self.stream.alloc::<u8>(bytes) } {
                Ok(memory) => {
                    self.memory = Some(memory);
                    return Ok(bytes);
                }
                Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                    bytes /= 2;
                    self.limit = bytes;
                }
                Err(e) => return Err(failed(&device, "no memory on the GPU", e)),
            }
        }
        let free = match self.gpu.context.mem_get_info() {
            Ok((free, total)) => format!("{free} of its {total} bytes are free"),
            Err(e) => described(e),
        };
        Err(Error::Device {
            device,
            reason: format!("out of GPU memory: a piece of a tile takes {least} bytes, {free}"),
            hint: "end other programs that use the GPU (`nvidia-smi` lists them), allow more with `--device-memory`, or \
                   use `--device cpu`"
                .into(),
        })
    }

    /// Starts everything that a tile takes; nothing is waited for.
    fn send(
        &mut self,
        tile: &Checked<'_>,
        out: &mut [u8],
        piece: usize,
    ) -> Result<(), DriverError> {
        self.clear()?;
        let memory = self.memory.as_ref().map_or(0, |memory| address(memory, &self.stream));
        for start in (0..tile.elements).step_by(piece) {
            let count = piece.min(tile.elements - start);
            let mut free = memory;
            let mut place = |float: crate::engine::float::Float| {
                let place = Place { float, address: free };
                free += (count * float.size()).next_multiple_of(ALIGNMENT) as u64;
                place
            };
            let mut places = Vec::with_capacity(tile.terms.len() + 1);
            for values in tile.inputs() {
                let place = place(values.float);
                // SAFETY: the place has room for these bytes; they live until `wait` has returned.
                unsafe {
                    let bytes = values.run(start, count).bytes;
                    result::memcpy_htod_async(place.address, bytes, self.stream.cu_stream())?;
                }
                places.push(place);
            }
            let base = tile.base.is_some().then(|| places.remove(0));
            let weights = tile.terms.iter().map(|(_, weight)| *weight);
            let terms: Vec<(Place, f64)> = places.into_iter().zip(weights).collect();
            let result_place = place(tile.float);
            let blend = BlendAt {
                elements: count as u64,
                out: result_place,
                base,
                terms: &terms,
                lambda: tile.lambda,
                health: self.health_address(),
            };
            self.gpu.launch(&self.stream, &blend)?;
            let size = tile.float.size();
            let out = &mut out[start * size..][..count * size];
            // SAFETY: the kernel before it in the stream fills the place; `out` lives until `wait` has returned.
            unsafe {
                result::memcpy_dtoh_async(out, result_place.address, self.stream.cu_stream())?;
            }
        }
        self.fetch_counts()
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

fn address<T>(memory: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    use cudarc::driver::DevicePtr as _;
    memory.device_ptr(stream).0
}

/// Page-locked host memory.
pub(super) struct PageLocked {
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
        // SAFETY: allocated by the driver, given back once. Lanes wait for their copies before they let go of memory.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

fn label(gpu: &Gpu) -> String {
    format!("cuda:{} ({})", gpu.index, gpu.name)
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
