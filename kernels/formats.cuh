// The floats of checkpoints: bits to values and back, as src/engine/float.rs says it.
//
// No toolkit headers, so NVRTC needs no include path; no arithmetic operator on floats, so nothing is ever fused.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;

#define ELO_DEVICE __device__ __forceinline__

// Before a loop: every pass written out, or none. g++ does not know the pragma.
#ifdef ELO_HOST
#define ELO_UNROLL
#define ELO_ROLL
#else
#define ELO_UNROLL _Pragma("unroll")
#define ELO_ROLL _Pragma("unroll 1")
#endif

// Codes of dtypes, in the order of Rust's `Float`.
enum Dtype : u32 { F64, F32, F16, BF16, E4M3, E5M2, E4M3_FNUZ, E5M2_FNUZ };

ELO_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
ELO_DEVICE double multiply(double a, double b) { return __dmul_rn(a, b); }
ELO_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
ELO_DEVICE double add(double a, double b) { return __dadd_rn(a, b); }
ELO_DEVICE float subtract(float a, float b) { return __fsub_rn(a, b); }
ELO_DEVICE double subtract(double a, double b) { return __dsub_rn(a, b); }
ELO_DEVICE float magnitude(float a) { return fabsf(a); }
ELO_DEVICE double magnitude(double a) { return fabs(a); }

// What arithmetic is done in. Constants are enumerators, which take no place in the module.
template <class Real> struct Arithmetic;

template <> struct Arithmetic<float> {
    typedef u32 Bits;
    enum : u32 { mantissa = 23, bias = 127, sign = 0x80000000u, infinity = 0x7f800000u };
    static ELO_DEVICE u32 bits(float value) { return __float_as_uint(value); }
    static ELO_DEVICE float value(u32 bits) { return __uint_as_float(bits); }
};

template <> struct Arithmetic<double> {
    typedef u64 Bits;
    enum : u64 { mantissa = 52, bias = 1023, sign = 0x8000000000000000ull, infinity = 0x7ff0000000000000ull };
    static ELO_DEVICE u64 bits(double value) { return (u64)__double_as_longlong(value); }
    static ELO_DEVICE double value(u64 bits) { return __longlong_as_double((long long)bits); }
};

template <class Real> ELO_DEVICE bool is_finite(Real value) {
    return magnitude(value) < Arithmetic<Real>::value(Arithmetic<Real>::infinity);
}

// A format narrower than f32. `largest` is the largest finite magnitude as bits, `overflow` what lies beyond it,
// `the_nan` the one to write; where that is the pattern of -0, there is one zero.
template <class Element, u32 mantissa_bits, u32 exponent_bias, u32 largest, u32 overflow, u32 the_nan> struct Narrow {
    typedef Element Bits;
    enum : u32 { nan = the_nan, sign = 1u << (8 * sizeof(Element) - 1), one_zero = the_nan == sign };

    // The first magnitude that is not rounded to a finite one; a tie stays below if the largest is even.
    template <class Real> static ELO_DEVICE Real limit() {
        typedef Arithmetic<Real> A;
        typedef typename A::Bits Wide;
        constexpr u32 dropped = A::mantissa - mantissa_bits;
        constexpr Wide top = ((Wide)largest << dropped) + ((Wide)(A::bias - exponent_bias) << A::mantissa);
        return A::value(top + ((Wide)1 << (dropped - 1)) + (largest % 2 == 0 ? 1 : 0));
    }

    // Whether `widen_finite` fails on some element of a word, unless the result shows it anyway.
    static ELO_DEVICE u32 suspect(u32) { return 0; }

    // Exact for finite elements: the fields moved into place have the wrong bias only, which a power of two mends.
    static ELO_DEVICE float widen_finite(u32 bits) {
        if constexpr (exponent_bias == 127) {
            return __uint_as_float(bits << 16);
        } else {
            constexpr u32 width = 8 * sizeof(Element), dropped = 23 - mantissa_bits;
            // An arithmetic shift takes the magnitude down and leaves the sign on top.
            constexpr u32 kept = 0x80000000u | (sign - 1) << dropped;
            const u32 shifted = (u32)((i32)(bits << (32 - width)) >> (32 - width - dropped)) & kept;
            return __fmul_rn(__uint_as_float(shifted), __uint_as_float((254 - exponent_bias) << 23));
        }
    }

    static ELO_DEVICE float widen(u32 bits) {
        const float value = widen_finite(bits);
        if constexpr (exponent_bias == 127) return value;
        const u32 magnitude = bits & (sign - 1);
        if constexpr (one_zero) return bits == the_nan ? __uint_as_float(0x7fc00000u) : value;
        if (overflow != the_nan && magnitude == overflow) return __uint_as_float(0x7f800000u | (bits & sign) << (32 - 8 * sizeof(Element)));
        return magnitude > largest ? __uint_as_float(0x7fc00000u) : value;
    }

    // To nearest even, for magnitudes below `limit`.
    template <class Real> static ELO_DEVICE u32 round_finite(Real value) {
        typedef Arithmetic<Real> A;
        typedef typename A::Bits Wide;
        constexpr u32 dropped = A::mantissa - mantissa_bits;
        constexpr Wide half = ((Wide)1 << (dropped - 1)) - 1;
        constexpr Wide rebias = (Wide)(A::bias - exponent_bias) << A::mantissa;
        const Wide bits = A::bits(value);
        // The same binades: the sign comes along.
        if constexpr (rebias == 0) return (u32)((bits + half + ((bits >> dropped) & 1)) >> dropped);
        const Wide magnitude = bits & (A::sign - 1);
        const u32 normal = (u32)((magnitude + half + ((magnitude >> dropped) & 1) - rebias) >> dropped);
        // In a sum with 2^mantissa smallest steps the processor rounds to the steps and leaves their number in the low bits.
        constexpr Wide anchor = (Wide)(A::bias + A::mantissa + 1 - exponent_bias - mantissa_bits) << A::mantissa;
        const u32 subnormal = (u32)(A::bits(add(A::value(magnitude), A::value(anchor))) - anchor);
        const u32 rounded = magnitude < rebias + ((Wide)1 << A::mantissa) ? subnormal : normal;
        const u32 signed_bits = rounded | ((u32)(bits >> (8 * sizeof(Real) - 8 * sizeof(Element))) & sign);
        return one_zero && rounded == 0 ? 0 : signed_bits;
    }

    // To nearest even, for all values; NaNs become the one without a sign.
    template <class Real> static ELO_DEVICE u32 round(Real value) {
        if (magnitude(value) < limit<Real>()) return round_finite(value);
        if (value != value || overflow == the_nan) return the_nan;
        return value < 0 ? overflow | sign : overflow;
    }
};

// The float formats by code: element type `Bits`, widen, round, and the fast halves of both.
template <u32 dtype> struct Format;

template <> struct Format<BF16> : Narrow<u16, 7, 127, 0x7f7f, 0x7f80, 0x7fc0> {};
template <> struct Format<E4M3> : Narrow<u8, 3, 7, 0x7e, 0x7f, 0x7f> {
    static ELO_DEVICE u32 suspect(u32 word) { return ((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u; }
};
template <> struct Format<E5M2> : Narrow<u8, 2, 15, 0x7b, 0x7c, 0x7f> {
    static ELO_DEVICE u32 suspect(u32 word) { return ((word & 0x7f7f7f7fu) + 0x04040404u) & 0x80808080u; }
};
template <> struct Format<E4M3_FNUZ> : Narrow<u8, 3, 8, 0x7f, 0x80, 0x80> {};
template <> struct Format<E5M2_FNUZ> : Narrow<u8, 2, 16, 0x7f, 0x80, 0x80> {};

// The processor converts f16 and f32 by itself.
template <> struct Format<F16> : Narrow<u16, 10, 15, 0x7bff, 0x7c00, 0x7e00> {
#ifndef ELO_HOST
    static ELO_DEVICE float widen_finite(u32 bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
        return value;
    }
    static ELO_DEVICE float widen(u32 bits) { return widen_finite(bits); }
    static ELO_DEVICE u32 round_finite(float value) {
        u16 bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
    }
    static ELO_DEVICE u32 round(float value) { return value != value ? 0x7e00u : round_finite(value); }
    static ELO_DEVICE u32 round_finite(double value) { return Narrow::round_finite(value); }
    static ELO_DEVICE u32 round(double value) { return Narrow::round(value); }
#else
    static ELO_DEVICE float widen_finite(u32 bits) { return widen(bits); }
#endif
};

template <> struct Format<F32> {
    typedef u32 Bits;
    enum : u32 { nan = 0x7fc00000u };
    // From f64 the tie above the largest is already infinite.
    template <class Real> static ELO_DEVICE Real limit() {
        if constexpr (sizeof(Real) == 8) return __longlong_as_double(0x47effffff0000000ll);
        else return __uint_as_float(0x7f800000u);
    }
    static ELO_DEVICE u32 suspect(u32) { return 0; }
    static ELO_DEVICE float widen_finite(u32 bits) { return __uint_as_float(bits); }
    static ELO_DEVICE float widen(u32 bits) { return __uint_as_float(bits); }
    static ELO_DEVICE u32 round_finite(float value) { return __float_as_uint(value); }
    static ELO_DEVICE u32 round_finite(double value) { return __float_as_uint(__double2float_rn(value)); }
    template <class Real> static ELO_DEVICE u32 round(Real value) { return value != value ? 0x7fc00000u : round_finite(value); }
};

template <> struct Format<F64> {
    typedef u64 Bits;
    enum : u64 { nan = 0x7ff8000000000000ull };
    template <class Real> static ELO_DEVICE double limit() { return __longlong_as_double(0x7ff0000000000000ll); }
    static ELO_DEVICE double widen(u64 bits) { return __longlong_as_double((long long)bits); }
    static ELO_DEVICE u64 round_finite(double value) { return (u64)__double_as_longlong(value); }
    static ELO_DEVICE u64 round(double value) { return value != value ? 0x7ff8000000000000ull : round_finite(value); }
};

ELO_DEVICE u32 size_of(u32 dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : dtype <= BF16 ? 2 : 1; }

// Calls the body with the format of a dtype of at most `widest` bytes.
template <u32 widest, class Body> ELO_DEVICE void with_format(u32 dtype, const Body& body) {
    switch (dtype) {
    case F64:
        if constexpr (widest >= 8) body(Format<F64>());
        break;
    case F32:
        if constexpr (widest >= 4) body(Format<F32>());
        break;
    case F16:
        if constexpr (widest >= 2) body(Format<F16>());
        break;
    case BF16:
        if constexpr (widest >= 2) body(Format<BF16>());
        break;
    case E4M3: body(Format<E4M3>()); break;
    case E5M2: body(Format<E5M2>()); break;
    case E4M3_FNUZ: body(Format<E4M3_FNUZ>()); break;
    case E5M2_FNUZ: body(Format<E5M2_FNUZ>()); break;
    }
}

// The value of one element in memory.
template <class Real, class F> ELO_DEVICE Real read(F, const void* from, u64 index) {
    return (Real)F::widen(((const typename F::Bits*)from)[index]);
}

template <class Real> ELO_DEVICE Real read_any(u32 dtype, const void* from, u64 index) {
    Real value = 0;
    with_format<sizeof(Real)>(dtype, [&](auto format) { value = read<Real>(format, from, index); });
    return value;
}

// Elements in registers: up to 16 bytes.
struct Pack {
    u32 word[4];
};

template <class F> ELO_DEVICE typename F::Bits element(F, const Pack& pack, u32 index) {
    constexpr u32 size = sizeof(typename F::Bits);
    if constexpr (size == 8) return (u64)pack.word[2 * index + 1] << 32 | pack.word[2 * index];
    else return (typename F::Bits)(pack.word[index * size / 4] >> (index * size % 4 * 8));
}

// Into zeroed bits.
template <class F> ELO_DEVICE void put(F, Pack& pack, u32 index, u64 bits) {
    constexpr u32 size = sizeof(typename F::Bits);
    if constexpr (size == 8) {
        pack.word[2 * index] = (u32)bits;
        pack.word[2 * index + 1] = (u32)(bits >> 32);
    } else {
        pack.word[index * size / 4] |= (u32)bits << (index * size % 4 * 8);
    }
}

// `count` elements of `size` bytes from their `first`, in one access; `size * count` is 2, 4, 8 or 16 and the address a
// multiple of it.
template <u32 count> ELO_DEVICE Pack load(const void* from, u32 size, u64 first) {
    const u8* at = (const u8*)from + first * size;
    Pack pack = {{0, 0, 0, 0}};
    switch (size * count) {
    case 16: {
        const uint4 all = *(const uint4*)at;
        pack = {{all.x, all.y, all.z, all.w}};
        break;
    }
    case 8: {
        const uint2 all = *(const uint2*)at;
        pack = {{all.x, all.y, 0, 0}};
        break;
    }
    case 4: pack.word[0] = *(const u32*)at; break;
    case 2: pack.word[0] = *(const u16*)at; break;
    }
    return pack;
}

template <u32 count> ELO_DEVICE void store(void* to, u32 size, u64 first, const Pack& pack) {
    u8* at = (u8*)to + first * size;
    switch (size * count) {
    case 16: *(uint4*)at = make_uint4(pack.word[0], pack.word[1], pack.word[2], pack.word[3]); break;
    case 8: *(uint2*)at = make_uint2(pack.word[0], pack.word[1]); break;
    case 4: *(u32*)at = pack.word[0]; break;
    case 2: *(u16*)at = (u16)pack.word[0]; break;
    }
}

// How a thread of a one-dimensional grid walks over anything.
ELO_DEVICE u64 thread_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
ELO_DEVICE u64 thread_count() { return (u64)gridDim.x * blockDim.x; }
