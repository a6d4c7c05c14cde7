// The entries of the CUDA device. What they compute is the same on every device, byte for byte (docs/architecture.md, Numerics).
//
// Blocks of 256 threads, grids of any size; neither changes a result.

#include "blend.cuh"

#define ENTRY(name, Parameters, body)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ Parameters parameters) { body(parameters); }

ENTRY(chat_vector_bf16, Blend<float>, chat_vector<BF16>)
ENTRY(chat_vector_f16, Blend<float>, chat_vector<F16>)
ENTRY(chat_vector_f32, Blend<float>, chat_vector<F32>)
ENTRY(chat_vector_e4m3, Blend<float>, chat_vector<E4M3>)
ENTRY(chat_vector_e5m2, Blend<float>, chat_vector<E5M2>)
ENTRY(blend_single, Blend<float>, blend_mixed)
ENTRY(blend_double, Blend<double>, blend_mixed)
