//! What the NVIDIA driver of this machine offers, asked without risk: a driver that is missing, old or broken ends in a
//! reason, never in a panic.

#![expect(
    unsafe_code,
    reason = "calls into the driver's library, each with what it needs beside it"
)]

use std::ffi::c_int;
use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use libloading::Library;

use super::failure::failed;
use crate::error::{Error, Result};

/// Oldest driver that takes the kernels: CUDA 12.0, as `cuDriverGetVersion` numbers it.
const OLDEST_DRIVER: i32 = 12000;
/// Oldest GPU that takes the kernels (Volta).
const OLDEST_GPU: (i32, i32) = (7, 0);

/// What is called of the driver. One function missing would be a panic in the middle of a run.
const FUNCTIONS: [&str; 34] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuModuleUnload",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemFree_v2",
    "cuMemFreeAsync",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];

/// A GPU that can compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as in `cuda:0`. `CUDA_VISIBLE_DEVICES` decides what is counted.
    pub index: u32,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Compute capability.
    pub capability: (i32, i32),
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{} ({})", self.index, self.name)
    }
}

/// The GPUs of this machine that the kernels run on, by number. The driver is asked once: what it sees does not change while the
/// program runs.
///
/// # Errors
///
/// [`Error::Device`] with the reason and the way out: no driver, an old or broken one, no GPU, only old ones.
pub fn gpus() -> Result<Vec<Gpu>> {
    static FOUND: OnceLock<Vec<Gpu>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let found = ask()?;
    Ok(FOUND.get_or_init(|| found).clone())
}

fn ask() -> Result<Vec<Gpu>> {
    check_library()?;
    // SAFETY: the pointer is to a live integer.
    let version = unsafe {
        let mut version: c_int = 0;
        sys::cuDriverGetVersion(&raw mut version).result().map(|()| version)
    };
    let version =
        version.map_err(|e| driver_failed("the NVIDIA driver does not tell its version", e))?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(unavailable(
            format!("the NVIDIA driver is too old: it is made for CUDA {major}.{minor}"),
            "update the NVIDIA driver to 525 or newer (CUDA 12.0)",
        ));
    }
    result::init().map_err(|e| driver_failed("the NVIDIA driver does not start", e))?;
    let count = result::device::get_count()
        .map_err(|e| driver_failed("the NVIDIA driver does not start", e))?;
    let all: Vec<Gpu> = (0..count).map(describe).collect::<Result<_>>()?;
    let (usable, old): (Vec<Gpu>, Vec<Gpu>) =
        all.into_iter().partition(|gpu| gpu.capability >= OLDEST_GPU);
    match (usable.is_empty(), old.first()) {
        (false, _) => Ok(usable),
        (true, None) => Err(no_gpu()),
        (true, Some(gpu)) => {
            let (major, minor) = gpu.capability;
            Err(unavailable(
                format!("{} is too old: compute capability {major}.{minor}, not 7.0", gpu.name),
                "use `--device cpu`",
            ))
        }
    }
}

fn describe(ordinal: c_int) -> Result<Gpu> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let asked = || {
        let device = result::device::get(ordinal)?;
        // SAFETY: the driver just gave this device.
        let (memory, major, minor) = unsafe {
            let attribute = |attribute| result::device::get_attribute(device, attribute);
            (result::device::total_mem(device)?, attribute(MAJOR)?, attribute(MINOR)?)
        };
        let name = result::device::get_name(device)?;
        let (index, memory) = (ordinal.unsigned_abs(), memory as u64);
        Ok(Gpu { index, name, memory, capability: (major, minor) })
    };
    asked().map_err(|e| {
        driver_failed(&format!("the NVIDIA driver does not describe GPU {ordinal}"), e)
    })
}

/// Whether a driver's library is there at all, sound or not.
pub fn is_installed() -> bool {
    candidates().iter().any(|candidate| match load(candidate) {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(reason) => !is_absence(&reason),
    })
}

fn candidates() -> Vec<String> {
    let names = ["cuda", "nvcuda"];
    names.iter().flat_map(|name| cudarc::get_lib_name_candidates(name)).collect()
}

fn load(name: &str) -> std::result::Result<Library, String> {
    // SAFETY: loading NVIDIA's library runs its initialisers, which is what every CUDA program does.
    unsafe { Library::new(name) }.map_err(|e| reason(&e))
}

fn is_absence(reason: &str) -> bool {
    reason.contains("No such file")
}

/// Finds the driver's library as `cudarc` will, and the functions in it.
fn check_library() -> Result<()> {
    let candidates = candidates();
    let mut reasons = Vec::new();
    for candidate in &candidates {
        match load(candidate) {
            Ok(library) => {
                let checked = check_functions(&library, candidate);
                // Threads of the driver may be at work in it: it stays.
                std::mem::forget(library);
                return checked;
            }
            Err(reason) => reasons.push(reason),
        }
    }
    // A library that is there but cannot be loaded says more than names that are nowhere.
    if let Some(broken) = reasons.iter().find(|reason| !is_absence(reason)) {
        return Err(unavailable(
            format!("the NVIDIA driver's library cannot be loaded: {broken}"),
            "reinstall the NVIDIA driver, 525 or newer",
        ));
    }
    let tried: Vec<&str> = candidates.iter().map(String::as_str).filter(|n| is_usual(n)).collect();
    Err(unavailable(
        format!(
            "no NVIDIA driver: the loader finds neither {} nor {} other names of it",
            tried.join(" nor "),
            candidates.len() - tried.len()
        ),
        "install the NVIDIA driver, 525 or newer (a CUDA toolkit is not needed); in a container pass the GPU through \
         (`--gpus all`); a library elsewhere is found through `LD_LIBRARY_PATH`",
    ))
}

/// The names under which Linux distributions have it.
fn is_usual(name: &str) -> bool {
    ["libcuda.so", "libcuda.so.1"].contains(&name)
}

/// The loader's own words, without the wrapping.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn check_functions(library: &Library, name: &str) -> Result<()> {
    // SAFETY: the symbols are looked up, not called.
    let has = |function: &str| unsafe { library.get::<*const ()>(function.as_bytes()).is_ok() };
    match FUNCTIONS.iter().find(|function| !has(function)) {
        None => Ok(()),
        Some(missing) => Err(unavailable(
            format!("the NVIDIA driver is too old or broken: {name} has no function {missing}"),
            "update the NVIDIA driver to 525 or newer (CUDA 12.0)",
        )),
    }
}

fn no_gpu() -> Error {
    failed(
        "cuda",
        "the NVIDIA driver sees no GPU",
        DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE),
    )
}

fn driver_failed(what: &str, error: DriverError) -> Error {
    match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => no_gpu(),
        _ => failed("cuda", what, error),
    }
}

fn unavailable(reason: String, hint: &str) -> Error {
    Error::Device { device: "cuda".into(), reason, hint: hint.into() }
}
