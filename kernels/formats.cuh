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

ELO_DEVICE float to_single(float a) { return a; }
ELO_DEVICE float to_single(double a) { return __double2float_rn(a); }

// Where a value is in the order of magnitudes (src/engine/sweep.rs): NaNs are alike, and above all.
template <class Real> ELO_DEVICE u32 magnitude_bits(Real value) {
    const u32 bits = __float_as_uint(magnitude(to_single(value)));
    return bits > 0x7f800000u ? 0x7fc00000u : bits;
}

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

// The numbers that define a format narrower than f32, and what follows from them; constants where the format is one.
struct Narrow {
    u32 width, mantissa_bits, bias;
    // Largest finite magnitude as bits, what lies beyond it, and the NaN to write: where that is the pattern of -0, there
    // is one zero.
    u32 largest, overflow, nan;

    ELO_DEVICE u32 sign() const { return 1u << (width - 1); }
    ELO_DEVICE bool one_zero() const { return nan == sign(); }

    // The first magnitude that is not rounded to a finite one; a tie stays below if the largest is even.
    template <class Real> ELO_DEVICE Real limit() const {
        typedef Arithmetic<Real> A;
        typedef typename A::Bits Wide;
        const u32 dropped = A::mantissa - mantissa_bits;
        const Wide top = ((Wide)largest << dropped) + ((Wide)(A::bias - bias) << A::mantissa);
        return A::value(top + ((Wide)1 << (dropped - 1)) + (largest % 2 == 0));
    }

    // Whether `widen_finite` fails on some element of a word, unless the result shows it anyway.
    ELO_DEVICE u32 suspect(u32) const { return 0; }

    // Exact for finite elements: the fields moved into place have the wrong bias only, which a power of two mends.
    ELO_DEVICE float widen_finite(u32 bits) const {
        const u32 dropped = 23 - mantissa_bits;
        // An arithmetic shift takes the magnitude down and leaves the sign on top.
        const u32 kept = 0x80000000u | (sign() - 1) << dropped;
        const u32 shifted = (u32)((i32)(bits << (32 - width)) >> (32 - width - dropped)) & kept;
        return __fmul_rn(__uint_as_float(shifted), __uint_as_float((254 - bias) << 23));
    }

    ELO_DEVICE float widen(u32 bits) const {
        const float value = widen_finite(bits);
        const u32 magnitude = bits & (sign() - 1);
        if (one_zero()) return bits == nan ? __uint_as_float(0x7fc00000u) : value;
        if (magnitude <= largest) return value;
        if (magnitude != overflow || overflow == nan) return __uint_as_float(0x7fc00000u);
        return __uint_as_float(0x7f800000u | (bits & sign()) << (32 - width));
    }

    // To nearest even, for magnitudes below `limit`: added to a power of two whose last place is a step of the format there,
    // the processor rounds to the steps and leaves their number in the low bits. Below the first binade the steps are its.
    template <class Real> ELO_DEVICE u32 round_finite(Real value) const {
        typedef Arithmetic<Real> A;
        typedef typename A::Bits Wide;
        const u32 dropped = A::mantissa - mantissa_bits;
        const Wide bits = A::bits(value), first = (Wide)(A::bias + 1 - bias) << A::mantissa;
        const Wide binade = max(bits & A::infinity, first), anchor = binade + ((Wide)dropped << A::mantissa);
        const u32 steps = (u32)(A::bits(add(magnitude(value), A::value(anchor))) - anchor);
        // Steps of a normal number count the hidden bit, which adds the missing one to the exponent.
        const u32 rounded = steps + (u32)(binade >> dropped) - (u32)(first >> dropped);
        if (one_zero() && rounded == 0) return 0;
        return rounded | ((u32)(bits >> (8 * sizeof(Real) - width)) & sign());
    }

    // To nearest even, for all values; NaNs become the one without a sign.
    template <class Real> ELO_DEVICE u32 round(Real value) const {
        if (magnitude(value) < limit<Real>()) return round_finite(value);
        if (value != value || overflow == nan) return nan;
        return value < 0 ? overflow | sign() : overflow;
    }
};

// The float formats by code: type of the elements, widen, round, and the fast halves of both.
template <u32 dtype> struct Format;

template <> struct Format<E4M3> : Narrow {
    typedef u8 Bits;
    ELO_DEVICE Format() : Narrow{8, 3, 7, 0x7e, 0x7f, 0x7f} {}
    ELO_DEVICE u32 suspect(u32 word) const { return ((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u; }
};

template <> struct Format<E5M2> : Narrow {
    typedef u8 Bits;
    ELO_DEVICE Format() : Narrow{8, 2, 15, 0x7b, 0x7c, 0x7f} {}
    ELO_DEVICE u32 suspect(u32 word) const { return ((word & 0x7f7f7f7fu) + 0x04040404u) & 0x80808080u; }
};

// Any 8-bit format, one code for all of them.
struct EightBits : Narrow {
    typedef u8 Bits;
    ELO_DEVICE explicit EightBits(u32 dtype) : Narrow{8, 3, 7, 0x7e, 0x7f, 0x7f} {
        if (dtype == E5M2) *(Narrow*)this = {8, 2, 15, 0x7b, 0x7c, 0x7f};
        if (dtype == E4M3_FNUZ) *(Narrow*)this = {8, 3, 8, 0x7f, 0x80, 0x80};
        if (dtype == E5M2_FNUZ) *(Narrow*)this = {8, 2, 16, 0x7f, 0x80, 0x80};
    }
};

// The upper half of an f32.
template <> struct Format<BF16> : Narrow {
    typedef u16 Bits;
    ELO_DEVICE Format() : Narrow{16, 7, 127, 0x7f7f, 0x7f80, 0x7fc0} {}
    ELO_DEVICE float widen_finite(u32 bits) const { return __uint_as_float(bits << 16); }
    ELO_DEVICE float widen(u32 bits) const { return __uint_as_float(bits << 16); }
    ELO_DEVICE u32 round_finite(float value) const {
        const u32 bits = __float_as_uint(value);
        return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    }
    ELO_DEVICE u32 round(float value) const {
        if (value != value) return nan;
        return round_finite(value);
    }
    ELO_DEVICE u32 round_finite(double value) const { return Narrow::round_finite(value); }
    ELO_DEVICE u32 round(double value) const { return Narrow::round(value); }
};

// The processor converts f16 and f32 by itself.
template <> struct Format<F16> : Narrow {
    typedef u16 Bits;
    ELO_DEVICE Format() : Narrow{16, 10, 15, 0x7bff, 0x7c00, 0x7e00} {}
#ifdef ELO_HOST
    ELO_DEVICE float widen_finite(u32 bits) const { return widen(bits); }
#else
    ELO_DEVICE float widen_finite(u32 bits) const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
        return value;
    }
    ELO_DEVICE float widen(u32 bits) const { return widen_finite(bits); }
    ELO_DEVICE u32 round_finite(float value) const {
        u16 bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
    }
    ELO_DEVICE u32 round(float value) const { return value != value ? nan : round_finite(value); }
    ELO_DEVICE u32 round_finite(double value) const { return Narrow::round_finite(value); }
    ELO_DEVICE u32 round(double value) const { return Narrow::round(value); }
#endif
};

template <> struct Format<F32> {
    typedef u32 Bits;
    enum : u32 { nan = 0x7fc00000u };
    // From f64 the tie above the largest is already infinite.
    template <class Real> ELO_DEVICE Real limit() const {
        if constexpr (sizeof(Real) == 8) return __longlong_as_double(0x47effffff0000000ll);
        else return __uint_as_float(0x7f800000u);
    }
    ELO_DEVICE u32 suspect(u32) const { return 0; }
    ELO_DEVICE float widen_finite(u32 bits) const { return __uint_as_float(bits); }
    ELO_DEVICE float widen(u32 bits) const { return __uint_as_float(bits); }
    ELO_DEVICE u32 round_finite(float value) const { return __float_as_uint(value); }
    ELO_DEVICE u32 round_finite(double value) const { return __float_as_uint(__double2float_rn(value)); }
    template <class Real> ELO_DEVICE u32 round(Real value) const { return value != value ? (u32)nan : round_finite(value); }
};

template <> struct Format<F64> {
    typedef u64 Bits;
    enum : u64 { nan = 0x7ff8000000000000ull };
    template <class Real> ELO_DEVICE double limit() const { return __longlong_as_double(0x7ff0000000000000ll); }
    ELO_DEVICE double widen(u64 bits) const { return __longlong_as_double((long long)bits); }
    ELO_DEVICE u64 round_finite(double value) const { return (u64)__double_as_longlong(value); }
    ELO_DEVICE u64 round(double value) const { return value != value ? (u64)nan : round_finite(value); }
};

// Bytes of an element, and their logarithm.
ELO_DEVICE u32 log_size_of(u32 dtype) { return dtype == F64 ? 3 : dtype == F32 ? 2 : dtype <= BF16 ? 1 : 0; }
ELO_DEVICE u32 size_of(u32 dtype) { return 1u << log_size_of(dtype); }

// Calls the body with the format of a dtype of at most `widest` bytes.
template <u32 widest, class Body> ELO_DEVICE void with_format(u32 dtype, const Body& body) {
    if constexpr (widest >= 8) {
        if (dtype == F64) return body(Format<F64>());
    }
    if constexpr (widest >= 4) {
        if (dtype == F32) return body(Format<F32>());
    }
    if constexpr (widest >= 2) {
        if (dtype == F16) return body(Format<F16>());
        if (dtype == BF16) return body(Format<BF16>());
    }
    body(EightBits(dtype));
}

// The value of one element in memory.
template <class Real, class F> ELO_DEVICE Real read(F format, const void* from, u64 index) {
    return (Real)format.widen(((const typename F::Bits*)from)[index]);
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
