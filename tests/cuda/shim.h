// CUDA on the CPU: what the kernels use of the language and its built-ins, so that g++ compiles them as C++17.
//
// The threads of a block run one after the other. A kernel that calls `__syncthreads()` gets a stack for each of its threads
// and is run by `launch_together`, which switches between them at the barrier. A vector access at an address that a GPU
// would refuse ends the program.

#pragma once

#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ucontext.h>

#define ELO_HOST
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace shim {

static thread_local const char* kernel = "?";

[[noreturn]] static inline void fail(const char* what, const void* address) {
    std::fprintf(stderr, "%s: %s, address %p, block %u, thread %u\n", kernel, what, address, blockIdx.x, threadIdx.x);
    std::abort();
}

// The address passes through an empty instruction, or the compiler would take its type's word for it.
template <unsigned bytes> static inline void check_aligned(const void* pointer) {
    std::uintptr_t address = (std::uintptr_t)pointer;
    asm("" : "+r"(address));
    if (address % bytes) fail(bytes == 16 ? "misaligned access of 16 bytes" : "misaligned access of 8 bytes", pointer);
}

// A built-in vector: 32-bit members, checked at every copy, which every access through a pointer is. In registers it is
// aligned because it says so; only its members' alignment may be assumed of a pointer.
template <unsigned count> struct Members;
template <> struct Members<2> {
    unsigned x, y;
};
template <> struct Members<4> {
    unsigned x, y, z, w;
};

template <unsigned count> struct alignas(4 * count) Vector : Members<count> {
    Vector() = default;
    explicit Vector(const Members<count>& members) : Members<count>(members) {}
    Vector(const Vector& other) : Members<count>(checked(other)) {}
    Vector& operator=(const Vector& other) {
        (Members<count>&)checked(*this) = checked(other);
        return *this;
    }

    // Before the first byte is touched.
    static const Members<count>& checked(const Vector& vector) {
        check_aligned<4 * count>(&vector);
        return vector;
    }
};

} // namespace shim

typedef shim::Vector<2> uint2;
typedef shim::Vector<4> uint4;

static inline uint2 make_uint2(unsigned x, unsigned y) { return uint2(shim::Members<2>{x, y}); }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return uint4(shim::Members<4>{x, y, z, w});
}

template <class To, class From> static inline To shim_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

static inline unsigned __float_as_uint(float value) { return shim_bits<unsigned>(value); }
static inline float __uint_as_float(unsigned bits) { return shim_bits<float>(bits); }
static inline long long __double_as_longlong(double value) { return shim_bits<long long>(value); }
static inline double __longlong_as_double(long long bits) { return shim_bits<double>(bits); }

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline float __double2float_rn(double value) { return (float)value; }

static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
static inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }

template <class T> static inline T atomicAdd(T* at, T value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }

namespace shim {

// The threads of a block that meet at barriers: a stack each, made once for each thread of the program.
struct Block {
    static constexpr unsigned size = 256;
    static constexpr std::size_t stack = 64 << 10;

    std::unique_ptr<char[]> stacks{new char[size * stack]};
    jmp_buf scheduler, threads[size];
    ucontext_t outside, inside;
    bool made[size] = {}, alive[size] = {};
    void (*call)(void**) = nullptr;
    void** parameters = nullptr;

    // Entered once a stack; resumed after its end, it begins anew.
    static void enter() {
        Block& block = here();
        for (;;) {
            block.call(block.parameters);
            block.alive[threadIdx.x] = false;
            block.leave();
        }
    }

    static Block& here() {
        static thread_local Block block;
        return block;
    }

    // From a thread to the scheduler; returns when it is resumed.
    void leave() {
        if (_setjmp(threads[threadIdx.x]) == 0) _longjmp(scheduler, 1);
    }

    void make(unsigned thread) {
        made[thread] = true;
        getcontext(&inside);
        inside.uc_stack.ss_sp = stacks.get() + thread * stack;
        inside.uc_stack.ss_size = stack;
        inside.uc_link = nullptr;
        makecontext(&inside, enter, 0);
        if (_setjmp(scheduler) == 0) setcontext(&inside);
    }

    void resume(unsigned thread) {
        threadIdx.x = thread;
        if (!made[thread]) make(thread);
        else if (_setjmp(scheduler) == 0) _longjmp(threads[thread], 1);
    }

    // Every thread runs to the next barrier or to its end, in order, until all have ended.
    void run() {
        for (unsigned t = 0; t < blockDim.x; t++) {
            alive[t] = true;
            resume(t);
        }
        for (;;) {
            unsigned waiting = 0;
            for (unsigned t = 0; t < blockDim.x; t++) waiting += alive[t];
            if (waiting == 0) return;
            if (waiting != blockDim.x) fail("a barrier that not all threads reach", nullptr);
            for (unsigned t = 0; t < blockDim.x; t++) resume(t);
        }
    }
};

static thread_local bool together = false;

} // namespace shim

static inline void __syncthreads() {
    if (!shim::together) shim::fail("a barrier in a kernel that was not launched for it", nullptr);
    shim::Block::here().leave();
}

namespace shim {

// Runs a grid. `call` reads the parameters as cuLaunchKernel passes them.
static inline void launch(const char* name, unsigned grid, unsigned block, void (*call)(void**), void** parameters, bool barriers) {
    kernel = name;
    if (block != Block::size) fail("a block of another size", nullptr);
    together = barriers;
    gridDim.x = grid;
    blockDim.x = block;
    for (unsigned b = 0; b < grid; b++) {
        blockIdx.x = b;
        if (barriers) {
            Block& here = Block::here();
            here.call = call;
            here.parameters = parameters;
            here.run();
            continue;
        }
        for (unsigned t = 0; t < block; t++) {
            threadIdx.x = t;
            call(parameters);
        }
    }
}

} // namespace shim
