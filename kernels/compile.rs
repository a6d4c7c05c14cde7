//! Compiles the kernels with NVRTC, which needs no GPU and no toolkit: to the PTX that is shipped, or to machine code
//! for a look whether every kind of GPU would take them. `kernels/build.sh` brings NVRTC and calls this.
//!
//! The headers are handed over by name, so no path of this machine can get into the result.

#![expect(unsafe_code, reason = "calls NVRTC, each call with what it needs beside it")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool that prints a table or a reason"
)]

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use std::{env, fs};

use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::sys;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The oldest GPUs that the PTX is for.
const PTX_ARCHITECTURE: &str = "compute_70";
/// `--fmad=false`: no product and sum is fused. `-default-device`: generic lambdas are device code.
const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "-default-device"];
/// The translation unit; it includes the others.
const MAIN: &str = "elo_surgery.cu";

const USAGE: &str = "usage: kernels ptx OUT | kernels cubin ARCH...";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // SAFETY: it only loads the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing().into());
    }
    let sources = Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"))?;
    match arguments.as_slice() {
        ["ptx", out] => write_ptx(&sources, Path::new(out)),
        ["cubin", architectures @ ..] if !architectures.is_empty() => {
            check_cubins(&sources, architectures)
        }
        _ => Err(USAGE.into()),
    }
}

fn missing() -> String {
    let names = cudarc::get_lib_name_candidates("nvrtc");
    format!(
        "NVRTC is not there: none of {} could be loaded.\n\
         Run kernels/build.sh, or `pip install nvidia-cuda-nvrtc-cu12` and put its `nvidia/cuda_nvrtc/lib` on \
         LD_LIBRARY_PATH. For `nvidia-cuda-nvrtc` 13, make a symbolic link `libnvrtc.so` to its `libnvrtc.so.13`.",
        names.join(", ")
    )
}

fn write_ptx(sources: &Sources, out: &Path) -> Result<()> {
    let program = Program::compile(sources, PTX_ARCHITECTURE)?;
    let ptx = program.output(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)?;
    let ptx = CStr::from_bytes_until_nul(&ptx)?.to_str()?;
    let (major, minor) = version()?;
    let mut text = format!(
        "// blake3 of the sources: {}\n// Made by kernels/build.sh with NVRTC {major}.{minor}.\n",
        sources.digest()
    );
    for line in ptx.lines().filter(|line| !is_noise(line)) {
        text.push_str(line);
        text.push('\n');
    }
    fs::write(out, &text).map_err(|e| format!("{}: {e}", out.display()))?;
    println!("{} bytes in {}", text.len(), out.display());
    Ok(())
}

/// Comments, and constants of NVRTC's own prelude that nothing refers to.
fn is_noise(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with("//") || line.contains("nv6target")
}

fn check_cubins(sources: &Sources, architectures: &[&str]) -> Result<()> {
    let (major, minor) = version()?;
    println!("NVRTC {major}.{minor}");
    println!("{:>8} {:>8} {:>6}", "arch", "bytes", "ms");
    for architecture in architectures {
        let start = Instant::now();
        let program = Program::compile(sources, architecture)?;
        let cubin = program.output(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)?;
        if !cubin.starts_with(b"\x7fELF") {
            return Err(format!("{architecture}: {} bytes that are no cubin", cubin.len()).into());
        }
        let millis = start.elapsed().as_millis();
        println!("{architecture:>8} {:>8} {millis:>6}", cubin.len());
    }
    Ok(())
}

fn version() -> Result<(c_int, c_int)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers are to live integers.
    done(unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) })?;
    Ok((major, minor))
}

fn done(result: sys::nvrtcResult) -> Result<()> {
    Ok(result.result().map_err(|NvrtcError(code)| format!("NVRTC says {code:?}"))?)
}

/// The files `*.cu` and `*.cuh` of the folder, by name.
struct Sources(Vec<(CString, CString)>);

impl Sources {
    fn read(folder: &Path) -> Result<Self> {
        let entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
        let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "cu" || e == "cuh");
        let mut paths: Vec<PathBuf> =
            entries.iter().map(fs::DirEntry::path).filter(is_source).collect();
        paths.sort();
        let read = |path: PathBuf| {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            Ok((CString::new(name)?, CString::new(fs::read(&path)?)?))
        };
        Ok(Self(paths.into_iter().map(read).collect::<Result<_>>()?))
    }

    /// Of all files, one after the other; `tests/it/kernels.rs` compares it with the PTX.
    fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (_, text) in &self.0 {
            hasher.update(text.as_bytes());
        }
        hasher.finalize()
    }
}

/// A compiled program.
struct Program(sys::nvrtcProgram);

impl Program {
    fn compile(sources: &Sources, architecture: &str) -> Result<Self> {
        let main = sources.0.iter().find(|(name, _)| name.as_bytes() == MAIN.as_bytes());
        let (name, text) = main.ok_or_else(|| format!("there is no {MAIN}"))?;
        let names: Vec<*const c_char> = sources.0.iter().map(|(name, _)| name.as_ptr()).collect();
        let texts: Vec<*const c_char> = sources.0.iter().map(|(_, text)| text.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: the strings end in NUL and outlive the call; there are as many texts as names.
        done(unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                text.as_ptr(),
                name.as_ptr(),
                c_int::try_from(names.len())?,
                texts.as_ptr(),
                names.as_ptr(),
            )
        })?;
        let program = Self(program);
        let options = OPTIONS.iter().map(ToString::to_string);
        let options: Vec<CString> = options
            .chain([format!("--gpu-architecture={architecture}")])
            .map(CString::new)
            .collect::<std::result::Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program is alive, the options end in NUL and outlive the call.
        let compiled = unsafe {
            sys::nvrtcCompileProgram(program.0, c_int::try_from(options.len())?, options.as_ptr())
        };
        let log = program.output(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog)?;
        let log = String::from_utf8_lossy(&log);
        let log = log.trim_end_matches(['\0', '\n']);
        if !log.is_empty() {
            println!("{architecture}:\n{log}");
        }
        done(compiled).map_err(|e| format!("{architecture}: {e}"))?;
        Ok(program)
    }

    /// What NVRTC hands out in two calls: its size, then its bytes.
    fn output(
        &self,
        size: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
        bytes: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
    ) -> Result<Vec<u8>> {
        let mut length = 0;
        // SAFETY: the program is alive; NVRTC writes one integer.
        done(unsafe { size(self.0, &raw mut length) })?;
        let mut buffer = vec![0_u8; length];
        // SAFETY: the program is alive; NVRTC writes as many bytes as it said.
        done(unsafe { bytes(self.0, buffer.as_mut_ptr().cast()) })?;
        Ok(buffer)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is alive, and this is its last use. There is nothing to do about a failure.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}
