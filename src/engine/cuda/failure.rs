//! What the driver's refusals mean, and what helps.

use std::borrow::Cow;
use std::ffi::CStr;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::Error;

/// A failure of the driver, with what was being done.
pub(super) fn failed(device: &str, what: &str, error: DriverError) -> Error {
    Error::Device {
        device: device.into(),
        reason: format!("{what}: {}", described(error)),
        hint: way_out(error.0).into(),
    }
}

/// `CUDA_ERROR_OUT_OF_MEMORY: out of memory`.
pub(super) fn described(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(string)) => format!("{}: {}", text(name), text(string)),
        _ => format!("{:?}", error.0),
    }
}

fn text(text: &CStr) -> Cow<'_, str> {
    text.to_string_lossy()
}

fn way_out(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "see what `nvidia-smi` lists and whether `CUDA_VISIBLE_DEVICES` hides it; in a container pass it through \
             (`--gpus all`)"
        }
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "end other programs that use the GPU (`nvidia-smi` lists them), or use `--device cpu`"
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_PTX => {
            "update the NVIDIA driver to 525 or newer (CUDA 12.0)"
        }
        CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => {
            "install the driver's libnvidia-ptxjitcompiler, which compiles the kernels"
        }
        CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED => "unset `CUDA_DISABLE_PTX_JIT`",
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "a CUDA toolkit's `stubs` folder hides the driver: remove it from `LD_LIBRARY_PATH`"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "library and kernel module of the driver differ: restart the machine, or reload NVIDIA's kernel modules"
        }
        CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "a CUDA compatibility package is in the way: remove its folder from `LD_LIBRARY_PATH`"
        }
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => {
            "start `nvidia-fabricmanager`, which GPUs behind an NVSwitch wait for"
        }
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another program has this GPU for itself (`nvidia-smi` shows the compute mode): choose others with \
             `--device cuda:N`"
        }
        CUresult::CUDA_ERROR_UNKNOWN => {
            "see whether `nvidia-smi` works and, in a container, whether /dev/nvidia-uvm is there; then restart the \
             machine or reinstall the driver"
        }
        _ => "see `nvidia-smi` and `dmesg` for the GPU's state; `--device cpu` works without it",
    }
}
