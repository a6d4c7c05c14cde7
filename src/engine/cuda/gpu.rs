//! A GPU with the kernels loaded, and host memory that it copies from and to without a detour.

#![expect(
    unsafe_code,
    reason = "contexts are made current and launches given parameters by calls that cannot check them"
)]

use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CU_MEMHOSTALLOC_PORTABLE, CUcontext, CUdevice_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg as _,
};
use cudarc::nvrtc::Ptx;

use super::driver::Gpu;
use super::failure::failed;
use super::kernels::{BLOCK, BlendAt, Entry, PTX};
use super::rules::RuledAt;
use crate::engine::device::HostMemory;
use crate::engine::float::single;
use crate::error::Result;

/// Blocks of a launch per multiprocessor, at most: enough to fill it several times over.
const BLOCKS_PER_MULTIPROCESSOR: u64 = 32;
/// Elements that a thread takes in one step, at most: 16 bytes of the narrowest dtype.
const ELEMENTS_PER_THREAD: u64 = 16;

/// A GPU with the kernels loaded.
pub(super) struct OpenGpu {
    pub(super) gpu: Gpu,
    pub(super) context: Arc<CudaContext>,
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

    /// Makes the GPU's context this thread's until the value is dropped.
    pub(super) fn enter(&self) -> Result<Entered> {
        Entered::new(&self.context)
            .map_err(|e| failed(&self.gpu.to_string(), "its context is lost", e))
    }

    /// Memory of the host that every GPU copies from and to without a detour. Where the system locks no more pages it is
    /// plain memory: copies take longer then, and are right.
    pub(super) fn host_memory(&self, bytes: usize) -> Result<HostMemory> {
        let _entered = self.enter()?;
        // SAFETY: the memory is given back by `PageLocked` alone.
        match unsafe { result::malloc_host(bytes.max(1), CU_MEMHOSTALLOC_PORTABLE) } {
            Ok(start) => {
                let context = Arc::clone(&self.context);
                Ok(Box::new(PageLocked { context, start: start.cast(), len: bytes }))
            }
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(Box::new(vec![0; bytes])),
            Err(e) => Err(failed(&self.gpu.to_string(), "no page-locked host memory", e)),
        }
    }

    pub(super) fn launch(
        &self,
        stream: &CudaStream,
        blend: &BlendAt<'_>,
    ) -> std::result::Result<(), DriverError> {
        let (entry, blocks) = (blend.entry(false), blocks_of(blend.elements));
        match entry {
            Entry::BlendDouble => {
                self.start(stream, entry, blocks, &blend.parameters(|factor| factor))
            }
            _ => self.start(stream, entry, blocks, &blend.parameters(single)),
        }
    }

    /// The same for a tile with rules.
    pub(super) fn launch_ruled(
        &self,
        stream: &CudaStream,
        ruled: &RuledAt<'_>,
    ) -> std::result::Result<(), DriverError> {
        let (entry, blocks) = (ruled.blend.entry(true), blocks_of(ruled.blend.elements));
        match entry {
            Entry::RuledDouble => {
                self.start(stream, entry, blocks, &ruled.parameters(|factor| factor))
            }
            _ => self.start(stream, entry, blocks, &ruled.parameters(single)),
        }
    }

    /// Starts a kernel with as many blocks as there is work for. How many there are changes no byte.
    pub(super) fn start<P: DeviceRepr>(
        &self,
        stream: &CudaStream,
        entry: Entry,
        blocks: u64,
        parameters: &P,
    ) -> std::result::Result<(), DriverError> {
        let most = u64::from(self.multiprocessors) * BLOCKS_PER_MULTIPROCESSOR;
        let blocks = blocks.clamp(1, most.max(1));
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

/// Blocks that have a step's work for every thread.
fn blocks_of(elements: u64) -> u64 {
    elements.div_ceil(u64::from(BLOCK) * ELEMENTS_PER_THREAD)
}

/// A context is this thread's; the one that was before comes back on drop. A caller may have its own.
pub(super) struct Entered {
    before: CUcontext,
}

impl Entered {
    fn new(context: &CudaContext) -> std::result::Result<Self, DriverError> {
        let before = result::ctx::get_current()?.unwrap_or(ptr::null_mut());
        // SAFETY: the context lives as long as its owner, who is here.
        unsafe { result::ctx::set_current(context.cu_ctx())? };
        Ok(Self { before })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: it was current on this thread, or there was none.
        let _ = unsafe { result::ctx::set_current(self.before) };
    }
}

/// Page-locked host memory.
struct PageLocked {
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
        // SAFETY: the driver gave these bytes, whatever is in them, to this value alone.
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
        let _entered = Entered::new(&self.context);
        // SAFETY: allocated by the driver, given back once. Lanes wait for their copies before they let go of memory.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}
