//! The CUDA device without a GPU: `tests/cuda` is compiled to a `libcuda.so.1` that runs the kernels on the CPU and is
//! stricter than a GPU, and programs are run with it in `LD_LIBRARY_PATH`.
//!
//! What is to be tested runs in a process of its own: the program, or this test binary with one ignored test. The latter
//! are in modules called `inside`; `cargo test -- --ignored cuda::` outside of the fake driver skips them.

mod auto;
mod device;
mod driver;
mod failures;
mod fake;
mod program;
mod ptx;
