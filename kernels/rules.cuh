// Tiles with rules: in which elements a term counts, and what becomes of the sum (`Rules` in src/engine/device.rs).
//
// One pass over the terms. A vote is decided after the last of them, so both outcomes are added up side by side: no value is
// kept, read again or drawn again.

#pragma once

#include "blend.cuh"

enum Keep : u32 { KEEP_ALL, KEEP_BAND, KEEP_RANDOM, KEEP_BITS, KEEP_NEAR };
enum Vote : u32 { VOTE_NONE, VOTE_WEIGHTED, VOTE_PLAIN };

// Band: the ends and magnitudes of `low` and `high`. Random: the key, and what numbers are less than. Bits: their address. Near: the
// bits of the f32.
struct Mask {
    u64 first, second;
    u32 low, high;
};

// The parameters as the host lays them out (src/engine/cuda).
template <class Real> struct Rules {
    Blend<Real> blend;
    // Number of the first element within the part.
    u64 first;
    Mask mask[MAX_TERMS];
    Real share[MAX_TERMS], alone[MAX_TERMS];
    Real least, instead;
    u8 keep[MAX_TERMS];
    u8 deltas, vote, divide, padding[5];
};

static_assert(sizeof(Rules<float>) == 3016 && sizeof(Rules<double>) == 3800, "the host lays it out so");

// Elements of a vector, whatever their types: a word of random numbers for each, of one counter.
template <class Real> struct VectorOf {
    enum : u32 { log_count = sizeof(Real) == 8 ? 1 : 2, count = 1 << log_count };
};

struct Quad {
    u32 word[4];
};

// Philox4x32-10 (Salmon et al. 2011) of a counter whose upper half is zero.
ELO_DEVICE Quad philox(u64 counter, u64 seed) {
    u32 a = (u32)counter, b = (u32)(counter >> 32), c = 0, d = 0;
    u32 left = (u32)seed, right = (u32)(seed >> 32);
    ELO_UNROLL
    for (u32 round = 0; round < 10; round++) {
        const u64 x = (u64)0xD2511F53u * a, y = (u64)0xCD9E8D57u * c;
        a = (u32)(y >> 32) ^ b ^ left;
        b = (u32)y;
        c = (u32)(x >> 32) ^ d ^ right;
        d = (u32)x;
        left += 0x9E3779B9u;
        right += 0xBB67AE85u;
    }
    return {{a, b, c, d}};
}

// `number` is a multiple of `count`, which is 1, 2 or 4.
template <u32 count> ELO_DEVICE u32 drawn(u64 number, u64 seed, u64 below) {
    Quad quad = philox(number / 4, seed);
    if (count < 4 && number & 2) quad = {{quad.word[2], quad.word[3], 0, 0}};
    if (count < 2 && number & 1) quad.word[0] = quad.word[1];
    u32 bits = 0;
    ELO_UNROLL
    for (u32 e = 0; e < count; e++) bits |= (u32)(quad.word[e] < below) << e;
    return bits;
}

// `count` bits from the `first` on; nothing is read beyond the last of them.
template <u32 count> ELO_DEVICE u32 bits_at(const u8* bits, u64 first) {
    const u32 shift = (u32)first & 7;
    u32 found = (u32)bits[first / 8] >> shift;
    if (shift + count > 8) found |= (u32)bits[first / 8 + 1] << (8 - shift);
    return found & ((1u << count) - 1);
}

// Inside of an edge are larger magnitudes, and of equal ones those of earlier elements.
ELO_DEVICE bool is_inside(u32 magnitude, u64 number, u32 edge, u64 end) {
    return magnitude > edge || (magnitude == edge && number < end);
}

ELO_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
ELO_DEVICE double quotient(double a, double b) { return __ddiv_rn(a, b); }

// A value limited to magnitude `t`.
template <class Real> ELO_DEVICE Real limited(Real value, float t) {
    const Real least = (Real)1e-6, size = magnitude(value) > least ? magnitude(value) : least;
    Real factor = quotient((Real)t, size);
    if (!(factor < (Real)1)) factor = 1;
    if (t < 0) factor = 0;
    return multiply(factor, value);
}

// In which of some elements the term counts as far as that does not depend on values, as bits. The first of them is the tile's `index`
// and the part's `number`.
template <u32 count> ELO_DEVICE u32 kept_anyway(u32 keep, const Mask& mask, u64 index, u64 number) {
    if (keep == KEEP_RANDOM) return drawn<count>(number, mask.first, mask.second);
    if (keep == KEEP_BITS) return bits_at<count>((const u8*)mask.first, index);
    return (1u << count) - 1;
}

// The same as far as it does; of two elements beside each other the numbers differ by `stride`. Values that are limited become so.
template <u32 stride, u32 count, class Real>
ELO_DEVICE u32 kept_by_value(u32 keep, const Mask& mask, u64 number, Real (&value)[count]) {
    u32 bits = (1u << count) - 1;
    if (keep == KEEP_BAND) {
        bits = 0;
        ELO_UNROLL
        for (u32 e = 0; e < count; e++) {
            const u32 size = magnitude_bits(value[e]);
            const bool in = is_inside(size, number + e * stride, mask.low, mask.first) &&
                            !is_inside(size, number + e * stride, mask.high, mask.second);
            bits |= (u32)in << e;
        }
    }
    if (keep == KEEP_NEAR) {
        const float t = __uint_as_float((u32)mask.first);
        ELO_UNROLL
        for (u32 e = 0; e < count; e++) value[e] = limited(value[e], t);
    }
    return bits;
}

// What the terms that count come to, element by element.
template <u32 count, class Real> struct Outcome {
    enum : u32 { SEVERAL = 255 };

    Real sum[count], divisor[count];
    // A byte an element: 0, the number of the only term that counts and 1, or `SEVERAL`.
    u32 who;

    ELO_DEVICE Outcome() : who(0) {
        ELO_UNROLL
        for (u32 e = 0; e < count; e++) {
            sum[e] = nothing(Real());
            divisor[e] = 0;
        }
    }

    ELO_DEVICE u32 who_at(u32 e) const { return who >> 8 * e & 255; }

    ELO_DEVICE void take(bool counts, u32 e, u32 k, Real product, Real share) {
        const Real next = add(sum[e], product), shares = add(divisor[e], share);
        if (!counts) return;
        sum[e] = next;
        divisor[e] = shares;
        who |= (who_at(e) ? SEVERAL + 0u : k + 1) << 8 * e;
    }

    // At an element it becomes the other.
    ELO_DEVICE void become(const Outcome& other, u32 e) {
        sum[e] = other.sum[e];
        divisor[e] = other.divisor[e];
        const u32 here = 255u << 8 * e;
        who = (who & ~here) | (other.who & here);
    }

    ELO_DEVICE Real result(u32 e, const Rules<Real>& rules) const {
        const u32 only = who_at(e) - 1;
        const Real all = only < MAX_TERMS ? multiply(rules.alone[only], sum[e]) : sum[e];
        if (!rules.divide) return all;
        const bool enough = magnitude(divisor[e]) >= rules.least;
        return quotient(all, enough ? divisor[e] : rules.instead);
    }
};

// The terms of a vector added up as the rules say. `values(k, value)` reads one of them.
template <u32 count, class Real, class Values>
ELO_DEVICE void add_up(const Rules<Real>& rules, u64 first, const Real (&base)[count], const Values& values, Real (&sum)[count]) {
    Outcome<count, Real> plus, minus;
    Real elected[count];
    ELO_UNROLL
    for (u32 e = 0; e < count; e++) elected[e] = nothing(Real());
    ELO_ROLL
    for (u32 k = 0; k < rules.blend.terms; k++) {
        Real value[count];
        values(k, value);
        if (rules.deltas) {
            ELO_UNROLL
            for (u32 e = 0; e < count; e++) value[e] = subtract(value[e], base[e]);
        }
        const u32 keep = rules.keep[k];
        const u64 number = rules.first + first;
        const u32 counts = kept_anyway<count>(keep, rules.mask[k], first, number) & kept_by_value<1>(keep, rules.mask[k], number, value);
        const Real weight = rules.blend.weight[k], share = rules.share[k];
        ELO_UNROLL
        for (u32 e = 0; e < count; e++) {
            const bool in = counts >> e & 1;
            const Real product = multiply(weight, value[e]);
            if (rules.vote == VOTE_NONE) {
                plus.take(in, e, k, product, share);
                continue;
            }
            const Real voice = rules.vote == VOTE_PLAIN ? value[e] : product;
            if (in) elected[e] = add(elected[e], voice);
            // Zeros are on neither side, what is not a number on both.
            plus.take(in && !(voice <= 0), e, k, product, share);
            minus.take(in && !(voice >= 0), e, k, product, share);
        }
    }
    ELO_UNROLL
    for (u32 e = 0; e < count; e++) {
        // Without a vote nothing was elected: -0, which is not less.
        if (elected[e] < 0) plus.become(minus, e);
        sum[e] = plus.result(e, rules);
    }
}

// One element, for `blend_elements`.
template <class Real> struct Ruled : Mixed<Real> {
    const Rules<Real>& rules;
    ELO_DEVICE explicit Ruled(const Rules<Real>& from) : Mixed<Real>{from.blend}, rules(from) {}
    ELO_DEVICE Real sum(u64 i, bool& finite) const {
        Real base[1] = {0}, sum[1];
        if (rules.deltas) base[0] = Mixed<Real>::base(i);
        add_up(rules, i, base, [&](u32 k, Real (&value)[1]) {
            value[0] = Mixed<Real>::term(k, i);
            finite = finite && is_finite(value[0]);
        }, sum);
        return sum[0];
    }
};

template <u32 widest, u32 count, class Real> ELO_DEVICE void widen_vector(u32 dtype, const Pack& pack, Real (&value)[count]) {
    with_format<widest>(dtype, [&](auto format) {
        ELO_UNROLL
        for (u32 e = 0; e < count; e++) value[e] = (Real)format.widen(element(format, pack, e));
    });
}

template <class Real> ELO_DEVICE bool ruled_vector(const Rules<Real>& rules, u64 first) {
    constexpr u32 widest = sizeof(Real), count = VectorOf<Real>::count;
    const Blend<Real>& blend = rules.blend;
    Real base[count], sum[count];
    ELO_UNROLL
    for (u32 e = 0; e < count; e++) base[e] = 0;
    if (blend.base) widen_vector<widest>(blend.base_dtype, load<count>(blend.base, size_of(blend.base_dtype), first), base);
    // The next term is under way while one is added.
    Pack next = load<count>(blend.term[0], size_of(blend.term_dtype[0]), first);
    add_up(rules, first, base, [&](u32 k, Real (&value)[count]) {
        const Pack x = next;
        if (k + 1 < blend.terms) next = load<count>(blend.term[k + 1], size_of(blend.term_dtype[k + 1]), first);
        widen_vector<widest>(blend.term_dtype[k], x, value);
    }, sum);
    const Real lambda = blend.lambda;
    ELO_UNROLL
    for (u32 e = 0; e < count; e++) {
        sum[e] = multiply(lambda, sum[e]);
        if (blend.base) sum[e] = add(base[e], sum[e]);
    }
    return write_vector<widest>(blend, first, sum);
}

// Vectors where the operands' addresses and the elements' numbers begin one together; the host sees to that.
template <class Real> ELO_DEVICE void blend_ruled(const Rules<Real>& rules) {
    constexpr u32 log_count = VectorOf<Real>::log_count, count = VectorOf<Real>::count;
    const u32 at = (u32)rules.first & (count - 1);
    const u64 head = head_of(rules.blend.elements, in_phase(rules.blend, at, log_count), at, log_count);
    blend_all(rules.blend, Ruled<Real>(rules), head, log_count, [&](u64 first) { return ruled_vector(rules, first); });
}
