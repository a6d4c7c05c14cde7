// The entries of the CUDA device. What they compute is the same on every device, byte for byte (docs/architecture.md, Numerics).
//
// Blocks of 256 threads, grids of any size; neither changes a result.

#include "blend.cuh"
#include "rules.cuh"
#include "sweep.cuh"

// `BLOCKS_4`: registers for four blocks on a multiprocessor, where the compiler by itself would take a few too many.
#define BLOCKS __launch_bounds__(256)
#define BLOCKS_4 __launch_bounds__(256, 4)
#define BLOCKS_3 __launch_bounds__(256, 3)
#define ENTRY(bounds, name, Parameters, body)                                                  \
    extern "C" __global__ void bounds name(const __grid_constant__ Parameters parameters) { \
        body(parameters);                                                                      \
    }

ENTRY(BLOCKS, chat_vector_bf16, Blend<float>, chat_vector<BF16>)
ENTRY(BLOCKS, chat_vector_f16, Blend<float>, chat_vector<F16>)
ENTRY(BLOCKS, chat_vector_f32, Blend<float>, chat_vector<F32>)
ENTRY(BLOCKS, chat_vector_e4m3, Blend<float>, chat_vector<E4M3>)
ENTRY(BLOCKS, chat_vector_e5m2, Blend<float>, chat_vector<E5M2>)
ENTRY(BLOCKS_4, blend_single, Blend<float>, blend_mixed)
ENTRY(BLOCKS_4, blend_double, Blend<double>, blend_mixed)
ENTRY(BLOCKS_4, ruled_single, Rules<float>, blend_ruled)
ENTRY(BLOCKS_3, ruled_double, Rules<double>, blend_ruled)
ENTRY(BLOCKS, sums_single, Sums, plain_sums<float>)
ENTRY(BLOCKS, sums_double, Sums, plain_sums<double>)
ENTRY(BLOCKS, masked_sums_single, MaskedSums, masked_sums<float>)
ENTRY(BLOCKS, masked_sums_double, MaskedSums, masked_sums<double>)
ENTRY(BLOCKS_4, histogram_single, Histogram, histogram<float>)
ENTRY(BLOCKS_4, histogram_double, Histogram, histogram<double>)
