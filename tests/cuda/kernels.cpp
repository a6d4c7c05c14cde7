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

template <class Parameters, void (*kernel)(Parameters)> void call(void** parameters) {
    kernel(*(const Parameters*)parameters[0]);
}

#define ELEMENTWISE(name, Parameters) {#name, call<const Parameters, name>, false}

const Entry ENTRIES[] = {
    ELEMENTWISE(chat_vector_bf16, Blend<float>), ELEMENTWISE(chat_vector_f16, Blend<float>),
    ELEMENTWISE(chat_vector_f32, Blend<float>),  ELEMENTWISE(chat_vector_e4m3, Blend<float>),
    ELEMENTWISE(chat_vector_e5m2, Blend<float>), ELEMENTWISE(blend_single, Blend<float>),
    ELEMENTWISE(blend_double, Blend<double>),
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
