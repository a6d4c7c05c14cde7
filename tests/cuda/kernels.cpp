// The kernels as C++, to be run on the CPU by name:
//   g++ -std=c++17 -O2 -ffp-contract=off -fPIC -Wall -Wextra -c tests/cuda/kernels.cpp

#include "shim.h"

#include "../../kernels/elo_surgery.cu"

namespace {

// What the driver would find in a module.
struct Entry {
    const char* name;
    void (*call)(void**);
    bool barriers;
};

// Elements lie at multiples of their size, or a GPU ends the program.
void check_elements(const void* at, u32 size) {
    if ((std::uintptr_t)at % size) shim::fail("misaligned elements", at);
}

template <class Parameters> void check_operands(const Parameters& parameters) {
    if (parameters.base) check_elements(parameters.base, size_of(parameters.base_dtype));
    for (u32 k = 0; k < parameters.terms; k++) check_elements(parameters.term[k], size_of(parameters.term_dtype[k]));
}

template <class Real> void check(const Blend<Real>& blend) {
    check_operands(blend);
    check_elements(blend.out, size_of(blend.out_dtype));
    check_elements(blend.health, 8);
}

void check_masks(const u8* keep, u32 terms) {
    for (u32 k = 0; k < terms; k++) {
        if (keep[k] > KEEP_NEAR) shim::fail("a mask that there is not", nullptr);
    }
}

template <class Real> void check(const Rules<Real>& rules) {
    check(rules.blend);
    if (rules.deltas && !rules.blend.base) shim::fail("deltas without a base", nullptr);
    if (rules.deltas > 1 || rules.divide > 1 || rules.vote > VOTE_PLAIN) shim::fail("rules that there are not", nullptr);
    check_masks(rules.keep, rules.blend.terms);
}

void check(const Sums& task) {
    check_operands(task);
    check_elements(task.sums, 8);
    if (!task.want || task.want > (MAGNITUDES | PRODUCTS)) shim::fail("sums that there are not", nullptr);
}

void check(const MaskedSums& task) {
    check(task.sums);
    check_masks(task.keep, task.sums.terms);
}

void check(const Histogram& task) {
    if (task.base) check_elements(task.base, size_of(task.base_dtype));
    check_elements(task.term, size_of(task.term_dtype));
    check_elements(task.counts, 8);
}

template <class Parameters, void (*kernel)(Parameters)> void call(void** parameters) {
    const Parameters& task = *(const Parameters*)parameters[0];
    if (blockIdx.x == 0 && threadIdx.x == 0) check(task);
    kernel(task);
}

#define ELEMENTWISE(name, Parameters) {#name, call<const Parameters, name>, false}
#define TOGETHER(name, Parameters) {#name, call<const Parameters, name>, true}

const Entry ENTRIES[] = {
    ELEMENTWISE(chat_vector_bf16, Blend<float>), ELEMENTWISE(chat_vector_f16, Blend<float>),
    ELEMENTWISE(chat_vector_f32, Blend<float>),  ELEMENTWISE(chat_vector_e4m3, Blend<float>),
    ELEMENTWISE(chat_vector_e5m2, Blend<float>), ELEMENTWISE(blend_single, Blend<float>),
    ELEMENTWISE(blend_double, Blend<double>),    ELEMENTWISE(ruled_single, Rules<float>),
    ELEMENTWISE(ruled_double, Rules<double>),    TOGETHER(sums_single, Sums),
    TOGETHER(sums_double, Sums),                 TOGETHER(masked_sums_single, MaskedSums),
    TOGETHER(masked_sums_double, MaskedSums),    TOGETHER(histogram_single, Histogram),
    TOGETHER(histogram_double, Histogram),
};

} // namespace

// As cuLaunchKernel on a module with these kernels: 0, or 500 (not found).
extern "C" int elo_host_launch(const char* name, unsigned grid, unsigned block, void** parameters) {
    for (const Entry& entry : ENTRIES) {
        if (std::strcmp(entry.name, name) != 0) continue;
        shim::launch(entry.name, grid, block, entry.call, parameters, entry.barriers);
        return 0;
    }
    return 500;
}
