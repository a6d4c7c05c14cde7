// PTX as C++: what the statements that tests/it/cuda/ptx.rs makes of it are made of. Every access is checked for
// alignment, and arithmetic gives the NaNs that GPUs give, not this processor's.
#pragma once

#include "shim.h"

#include <type_traits>

typedef std::uint8_t u8, b8;
typedef std::uint16_t u16, b16;
typedef std::int16_t s16;
typedef std::uint32_t u32, b32;
typedef std::int32_t s32;
typedef unsigned long long u64, b64;
typedef long long s64;
typedef float f32;
typedef double f64;
typedef bool pred;

#undef __shared__

namespace ptx {

// The memory of a block.
alignas(64) static thread_local char memory[48 << 10];

// Registers hold bits: the same for every type of a size. Integers are cut or extended.
template <class To, class From> inline To in(From from) {
    if constexpr (std::is_same_v<To, From>) {
        return from;
    } else if constexpr (sizeof(To) == sizeof(From)) {
        return shim_bits<To>(from);
    } else {
        static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
        return (To)from;
    }
}

template <class Register, class Value> inline void set(Register& to, Value value) { to = in<Register>(value); }

inline f32 single(u32 bits) { return shim_bits<f32>(bits); }
inline f64 twice(u64 bits) { return shim_bits<f64>(bits); }

inline f32 canonical(f32 value) { return value == value ? value : single(0x7fffffffu); }
inline f64 canonical(f64 value) { return value == value ? value : twice(0xfff8000000000000ull); }
template <class T> inline T canonical(T value) { return value; }

template <class T> inline T mov_(T a) { return a; }
template <class T> inline T cvta_(T a) { return a; }
template <class T> inline T add_(T a, T b) { return canonical((T)(a + b)); }
template <class T> inline T sub_(T a, T b) { return canonical((T)(a - b)); }
template <class T> inline T mul_(T a, T b) { return canonical((T)(a * b)); }
template <class T> inline T and_(T a, T b) { return a & b; }
template <class T> inline T or_(T a, T b) { return a | b; }
template <class T> inline T xor_(T a, T b) { return a ^ b; }
template <class T> inline T not_(T a) { return std::is_same_v<T, bool> ? !a : (T)~a; }
template <class T> inline T neg_(T a) { return -a; }
template <class T> inline T abs_(T a) { return std::fabs(a); }
template <class T> inline T div_(T a, T b) {
    static_assert(std::is_floating_point_v<T>);
    return canonical((T)(a / b));
}
// Of a number and a NaN it is the number.
template <class T> inline T min_(T a, T b) { return a < b || b != b ? a : b; }
template <class T> inline T max_(T a, T b) { return a > b || b != b ? a : b; }
template <class T> inline T shl_(T a, T by) { return (u64)by < 8 * sizeof(T) ? (T)(a << by) : 0; }
template <class T> inline T shr_(T a, T by) { return (u64)by < 8 * sizeof(T) ? (T)(a >> by) : (T)(a < 0 ? -1 : 0); }
template <class T> inline T selp_(T a, T b, bool chosen) { return chosen ? a : b; }
template <class T> inline T bfi_(T from, T to, T at, T length) {
    const T mask = (length < 8 * sizeof(T) ? ((T)1 << length) - 1 : ~(T)0) << at;
    return (to & ~mask) | (from << at & mask);
}

inline u64 wide(u32 a, u32 b) { return (u64)a * b; }
inline s64 wide(s32 a, s32 b) { return (s64)a * b; }
inline u32 wide(u16 a, u16 b) { return (u32)a * b; }

template <class T> inline bool eq(T a, T b) { return a == b; }
template <class T> inline bool ne(T a, T b) { return a < b || a > b; }
template <class T> inline bool lt(T a, T b) { return a < b; }
template <class T> inline bool le(T a, T b) { return a <= b; }
template <class T> inline bool gt(T a, T b) { return a > b; }
template <class T> inline bool ge(T a, T b) { return a >= b; }
template <class T> inline bool equ(T a, T b) { return !(a < b || a > b); }
template <class T> inline bool neu(T a, T b) { return !(a == b); }
template <class T> inline bool ltu(T a, T b) { return !(a >= b); }
template <class T> inline bool leu(T a, T b) { return !(a > b); }
template <class T> inline bool gtu(T a, T b) { return !(a <= b); }
template <class T> inline bool geu(T a, T b) { return !(a < b); }
template <class T> inline bool num(T a, T b) { return a == a && b == b; }
template <class T> inline bool nan(T a, T b) { return a != a || b != b; }

inline f64 f64_f32(f32 a) { return canonical((f64)a); }
inline f32 rn_f32_f64(f64 a) { return canonical((f32)a); }

inline f32 f32_f16(u16 bits) {
    const u32 magnitude = bits & 0x7fff;
    const f32 value = magnitude < 0x400 ? std::ldexp((f32)magnitude, -24)
                                        : std::ldexp((f32)((magnitude & 0x3ff) | 0x400), (int)(magnitude >> 10) - 25);
    if (magnitude > 0x7c00) return single(0x7fffffffu);
    const f32 all = magnitude == 0x7c00 ? INFINITY : value;
    return bits & 0x8000 ? -all : all;
}

inline u16 rn_f16_f32(f32 a) {
    if (a != a) return 0x7fff;
    const f64 size = std::fabs((f64)a);
    const u16 sign = std::signbit(a) ? 0x8000 : 0;
    int exponent = 0;
    std::frexp(size, &exponent);
    exponent = exponent - 1 < -14 || size == 0 ? -14 : exponent - 1;
    // In steps of the last place; a carry goes into the exponent.
    const f64 steps = size < 131072 ? std::nearbyint(std::ldexp(size, 10 - exponent)) : 0;
    const f64 bits = size < 131072 ? std::ldexp(exponent + 14, 10) + steps : 0x7c00;
    return (u16)((bits > 0x7c00 ? 0x7c00 : (u16)bits) | sign);
}

// Where `count` values lie together.
template <class T> inline T* at(u64 address, unsigned count = 1) {
    if (address % (count * sizeof(T))) shim::fail("misaligned access", (void*)address);
    return (T*)address;
}

inline u64 shared(u64 address) { return (u64)memory + address; }

struct Entry {
    const char* name;
    void (*call)(void**);
    bool barriers;
};

template <std::size_t count>
int launch(const Entry (&entries)[count], const char* name, unsigned grid, unsigned block, void** parameters) {
    for (const Entry& entry : entries) {
        if (std::strcmp(entry.name, name) != 0) continue;
        shim::launch(entry.name, grid, block, entry.call, parameters, entry.barriers);
        return 0;
    }
    return 500;
}

} // namespace ptx
