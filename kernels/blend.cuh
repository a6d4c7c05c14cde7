// base + lambda * (w0*x0 + w1*x1 + ...), element by element.
//
// Vectors of up to 16 bytes an operand are computed as if all were finite. Where the result, or an operand whose NaNs the
// fast conversion does not know, says otherwise, their elements are done again one by one: with all cases, and counted.

#pragma once

#include "formats.cuh"

enum : u32 { MAX_TERMS = 64 };

// Counts of result elements that are not finite; `broken` are those whose every input was.
struct Health {
    u64 nan, infinite, broken;
};

// The parameters as the host lays them out (src/engine/cuda). Without a base it is null.
template <class Real> struct Blend {
    u64 elements;
    void* out;
    const void* base;
    Health* health;
    const void* term[MAX_TERMS];
    Real weight[MAX_TERMS];
    Real lambda, unused;
    u32 terms;
    u8 term_dtype[MAX_TERMS];
    u8 out_dtype, base_dtype, padding[2];
};

static_assert(sizeof(Blend<float>) == 880 && sizeof(Blend<double>) == 1144, "the host lays it out so");

// The smallest sum: whatever is added to it, a zero of either sign too, is the result.
ELO_DEVICE float nothing(float) { return __uint_as_float(0x80000000u); }
ELO_DEVICE double nothing(double) { return __longlong_as_double((long long)0x8000000000000000ull); }

// The weighted sum of one element's terms, and whether all of them are finite.
template <class Real, class Operands>
ELO_DEVICE Real plain_sum(const Blend<Real>& blend, const Operands& operands, u64 i, bool& finite) {
    Real sum = nothing(Real());
    ELO_ROLL
    for (u32 k = 0; k < operands.terms(); k++) {
        const Real x = operands.term(k, i);
        finite = finite && is_finite(x);
        sum = add(sum, multiply(blend.weight[k], x));
    }
    return sum;
}

// Elements `first` to `end`, one by one, from memory to memory.
template <class Real, class Operands>
ELO_DEVICE void blend_elements(const Blend<Real>& blend, const Operands& operands, u64 first, u64 end) {
    u32 nan = 0, infinite = 0, broken = 0;
    ELO_ROLL
    for (u64 i = first; i < end; i++) {
        bool finite = true;
        Real value = multiply(blend.lambda, operands.sum(i, finite));
        if (blend.base) {
            const Real x = operands.base(i);
            finite = finite && is_finite(x);
            value = add(x, value);
        }
        operands.with_output([&](auto format) {
            typedef decltype(format) F;
            const auto bits = format.round(value);
            ((typename F::Bits*)blend.out)[i] = (typename F::Bits)bits;
            if (magnitude(value) < format.template limit<Real>()) return;
            if (bits == format.nan) nan++;
            else infinite++;
            if (finite) broken++;
        });
    }
    if (nan) atomicAdd(&blend.health->nan, (u64)nan);
    if (infinite) atomicAdd(&blend.health->infinite, (u64)infinite);
    if (broken) atomicAdd(&blend.health->broken, (u64)broken);
}

// The vectors of 2^`log_count` elements after a head that makes all operands aligned, and what remains one by one. `vector`
// does the vector at an element, or says that it could not.
template <class Real, class Operands, class Vector>
ELO_DEVICE void blend_all(const Blend<Real>& blend, const Operands& operands, u64 head, u32 log_count, const Vector& vector) {
    const u64 vectors = head < blend.elements ? (blend.elements - head) >> log_count : 0;
    const u64 inside = vectors << log_count, units = vectors + (blend.elements - inside);
    ELO_ROLL
    for (u64 unit = thread_index(); unit < units; unit += thread_count()) {
        u64 first, end;
        if (unit < vectors) {
            first = head + (unit << log_count);
            end = first + (1u << log_count);
            if (vector(first)) continue;
        } else {
            const u64 single = unit - vectors;
            first = single < head ? single : single + inside;
            end = first + 1;
        }
        blend_elements(blend, operands, first, end);
    }
}

// Which element of a vector it is that lies at an address.
ELO_DEVICE u32 phase(const void* at, u32 dtype, u32 log_count) {
    return (u32)((u64)at >> log_size_of(dtype)) & ((1u << log_count) - 1);
}

// Elements before the first whole vector, if all operands have the same phase.
ELO_DEVICE u64 head_of(u64 elements, bool together, u32 at, u32 log_count) {
    return together ? (0 - at) & ((1u << log_count) - 1) : elements;
}

// Two terms and a base, all of one dtype.
template <class F> struct Same {
    const Blend<float>& blend;
    ELO_DEVICE u32 terms() const { return 2; }
    ELO_DEVICE float term(u32 k, u64 i) const { return read<float>(F(), blend.term[k], i); }
    ELO_DEVICE float base(u64 i) const { return read<float>(F(), blend.base, i); }
    ELO_DEVICE float sum(u64 i, bool& finite) const { return plain_sum(blend, *this, i, finite); }
    template <class Body> ELO_DEVICE void with_output(const Body& body) const { body(F()); }
};

template <u32 dtype> ELO_DEVICE void chat_vector(const Blend<float>& blend) {
    typedef Format<dtype> F;
    const F format;
    constexpr u32 size = sizeof(typename F::Bits), count = 16 / size;
    const u32 log_count = 4 - log_size_of(dtype), at = phase(blend.out, dtype, log_count);
    const bool together = phase(blend.base, dtype, log_count) == at && phase(blend.term[0], dtype, log_count) == at &&
                          phase(blend.term[1], dtype, log_count) == at;
    const u64 head = head_of(blend.elements, together, at, log_count);
    blend_all(blend, Same<F>{blend}, head, log_count, [&](u64 first) {
        const Pack x = load<count>(blend.term[0], size, first);
        const Pack y = load<count>(blend.term[1], size, first);
        const Pack base = load<count>(blend.base, size, first);
        bool special = false;
        Pack out = {{0, 0, 0, 0}};
        ELO_UNROLL
        for (u32 w = 0; w < 4; w++) special |= (format.suspect(x.word[w]) | format.suspect(y.word[w]) | format.suspect(base.word[w])) != 0;
        ELO_UNROLL
        for (u32 e = 0; e < count; e++) {
            const float sum = add(multiply(blend.weight[0], format.widen_finite(element(format, x, e))),
                                  multiply(blend.weight[1], format.widen_finite(element(format, y, e))));
            const float value = add(format.widen_finite(element(format, base, e)), multiply(blend.lambda, sum));
            special |= !(magnitude(value) < format.template limit<float>());
            put(format, out, e, format.round_finite(value));
        }
        if (special) return false;
        store<count>(blend.out, size, first, out);
        return true;
    });
}

// Any number of terms of any dtypes.
template <class Real> struct Mixed {
    const Blend<Real>& blend;
    ELO_DEVICE u32 terms() const { return blend.terms; }
    ELO_DEVICE Real term(u32 k, u64 i) const { return read_any<Real>(blend.term_dtype[k], blend.term[k], i); }
    ELO_DEVICE Real base(u64 i) const { return read_any<Real>(blend.base_dtype, blend.base, i); }
    ELO_DEVICE Real sum(u64 i, bool& finite) const { return plain_sum(blend, *this, i, finite); }
    template <class Body> ELO_DEVICE void with_output(const Body& body) const {
        with_format<sizeof(Real)>(blend.out_dtype, body);
    }
};

// Rounds and writes a vector, or says that some element of it is no finite number.
template <u32 widest, u32 count, class Real>
ELO_DEVICE bool write_vector(const Blend<Real>& blend, u64 first, const Real (&value)[count]) {
    bool special = false;
    Pack out = {{0, 0, 0, 0}};
    with_format<widest>(blend.out_dtype, [&](auto format) {
        ELO_UNROLL
        for (u32 e = 0; e < count; e++) {
            special |= !(magnitude(value[e]) < format.template limit<Real>());
            put(format, out, e, format.round_finite(value[e]));
        }
    });
    if (special) return false;
    store<count>(blend.out, size_of(blend.out_dtype), first, out);
    return true;
}

// 16 bytes of the widest operand and as many elements of the others.
template <u32 widest, class Real> ELO_DEVICE bool blend_vector(const Blend<Real>& blend, u64 first) {
    constexpr u32 count = 16 / widest;
    Pack base = {{0, 0, 0, 0}};
    if (blend.base) base = load<count>(blend.base, size_of(blend.base_dtype), first);
    Real sum[count];
    ELO_UNROLL
    for (u32 e = 0; e < count; e++) sum[e] = nothing(Real());
    // The next term is under way while one is added.
    Pack next = load<count>(blend.term[0], size_of(blend.term_dtype[0]), first);
    ELO_ROLL
    for (u32 k = 0; k < blend.terms; k++) {
        const Pack x = next;
        if (k + 1 < blend.terms) next = load<count>(blend.term[k + 1], size_of(blend.term_dtype[k + 1]), first);
        const Real weight = blend.weight[k];
        with_format<widest>(blend.term_dtype[k], [&](auto format) {
            ELO_UNROLL
            for (u32 e = 0; e < count; e++) {
                const Real value = (Real)format.widen(element(format, x, e));
                sum[e] = add(sum[e], multiply(weight, value));
            }
        });
    }
    const Real lambda = blend.lambda;
    ELO_UNROLL
    for (u32 e = 0; e < count; e++) sum[e] = multiply(lambda, sum[e]);
    if (blend.base) {
        with_format<widest>(blend.base_dtype, [&](auto format) {
            ELO_UNROLL
            for (u32 e = 0; e < count; e++) sum[e] = add((Real)format.widen(element(format, base, e)), sum[e]);
        });
    }
    return write_vector<widest>(blend, first, sum);
}

// Whether all operands have the phase `at`.
template <class Real> ELO_DEVICE bool in_phase(const Blend<Real>& blend, u32 at, u32 log_count) {
    bool together = phase(blend.out, blend.out_dtype, log_count) == at;
    if (blend.base) together &= phase(blend.base, blend.base_dtype, log_count) == at;
    for (u32 k = 0; k < blend.terms; k++) together &= phase(blend.term[k], blend.term_dtype[k], log_count) == at;
    return together;
}

template <class Real> ELO_DEVICE void blend_mixed(const Blend<Real>& blend) {
    u32 widest = log_size_of(blend.out_dtype);
    if (blend.base) widest = max(widest, log_size_of(blend.base_dtype));
    for (u32 k = 0; k < blend.terms; k++) widest = max(widest, log_size_of(blend.term_dtype[k]));
    const u32 log_count = 4 - widest, at = phase(blend.out, blend.out_dtype, log_count);
    const u64 head = head_of(blend.elements, in_phase(blend, at, log_count), at, log_count);
    blend_all(blend, Mixed<Real>{blend}, head, log_count, [&](u64 first) {
        if constexpr (sizeof(Real) == 8) {
            return blend_vector<8>(blend, first);
        } else {
            if (widest == 2) return blend_vector<4>(blend, first);
            if (widest == 1) return blend_vector<2>(blend, first);
            return blend_vector<1>(blend, first);
        }
    });
}
