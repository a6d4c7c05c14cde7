// What is read of tensors without writing any: sums over leaves, histograms of magnitudes.
//
// The value of an element is x - base, or x without a base, in f32 or f64; with masks zero where it is not kept. The order of every sum
// is a part of the result: a leaf of 4096 elements in 256 lanes, lanes in halves; the host adds leaves in a tree of its own.

#pragma once

#include "rules.cuh"

enum : u32 {
    LANES = 256,
    ROUNDS = 16,
    LEAF = LANES * ROUNDS,
    // Sums that go through the lanes' memory together.
    BATCH = 8,
    // A lane's elements of a histogram at a time.
    PIECE = 4,
    // Bins that a block counts for itself: of the high digit 32 binades from 2^-28, of the low one the first.
    WINDOW = 8192,
    WINDOW_HIGH = (127 - 28) << 8,
    // Pieces before a block's own counts might not fit 32 bits.
    PIECES = 1u << 21,
};

// Sums that are wanted; the others are zero.
enum Want : u32 { MAGNITUDES = 1, PRODUCTS = 2 };

// The parameters as the host lays them out (src/engine/cuda).
struct Sums {
    u64 elements;
    const void* base;
    double* sums;
    const void* term[MAX_TERMS];
    u32 terms;
    u8 term_dtype[MAX_TERMS];
    u8 base_dtype, want, padding[2];
};

// Sums over what is kept.
struct MaskedSums {
    Sums sums;
    // Number of the first element within the part.
    u64 first;
    Mask mask[MAX_TERMS];
    u8 keep[MAX_TERMS];
};

struct Histogram {
    u64 elements;
    const void *base, *term;
    u64* counts;
    // 0: the high digit of all elements; 1: the low digit of those whose high digit is `high`.
    u32 low, high;
    u8 base_dtype, term_dtype, padding[6];
};

static_assert(sizeof(Sums) == 608 && sizeof(MaskedSums) == 2216 && sizeof(Histogram) == 48, "the host lays them out so");

// What a thread holds: every 256th element from one of its own.
template <class Real, u32 rounds> struct Lane {
    Real value[rounds];
};

// How many of a lane's elements there are from its first on.
template <u32 rounds> ELO_DEVICE u32 present(u64 elements, u64 first) {
    if (elements <= first) return 0;
    const u64 rest = (elements - first + LANES - 1) / LANES;
    return rest < rounds ? (u32)rest : rounds;
}

// Missing elements are zero; no sum and no product sees a difference. All loads come before the arithmetic.
template <class Real, u32 rounds> ELO_DEVICE Lane<Real, rounds> read_lane(u32 dtype, const void* from, u64 first, u32 count) {
    Lane<Real, rounds> lane;
    with_format<sizeof(Real)>(dtype, [&](auto format) {
        typedef decltype(format) F;
        const typename F::Bits* at = (const typename F::Bits*)from + first;
        typename F::Bits bits[rounds];
        ELO_UNROLL
        for (u32 r = 0; r < rounds; r++) bits[r] = r < count ? at[r * LANES] : 0;
        ELO_UNROLL
        for (u32 r = 0; r < rounds; r++) lane.value[r] = (Real)format.widen(bits[r]);
    });
    return lane;
}

// Without a base zeros: what they are subtracted from does not change, not even -0.
template <class Real, u32 rounds> ELO_DEVICE Lane<Real, rounds> read_base(u32 dtype, const void* base, u64 first, u32 count) {
    if (base) return read_lane<Real, rounds>(dtype, base, first, count);
    Lane<Real, rounds> lane;
    ELO_UNROLL
    for (u32 r = 0; r < rounds; r++) lane.value[r] = 0;
    return lane;
}

template <class Real, u32 rounds> ELO_DEVICE void subtract_base(Lane<Real, rounds>& lane, const Lane<Real, rounds>& base) {
    ELO_UNROLL
    for (u32 r = 0; r < rounds; r++) lane.value[r] = subtract(lane.value[r], base.value[r]);
}

// Sums of lanes on their way to memory.
struct Batch {
    double lane[BATCH][LANES];
    u32 place[BATCH];
};

// Adds the lanes of the first `count` sums in halves and writes what remains.
ELO_DEVICE void write_batch(Batch& batch, u32 count, double* sums) {
    __syncthreads();
    ELO_ROLL
    for (u32 half = LANES / 2, bits = 7; half > 0; half /= 2, bits--) {
        for (u32 i = threadIdx.x; i < count << bits; i += LANES) {
            double* lane = batch.lane[i >> bits] + (i & (half - 1));
            *lane = add(*lane, lane[half]);
        }
        __syncthreads();
    }
    if (threadIdx.x < count) {
        const u64 bits = Format<F64>().round(batch.lane[threadIdx.x][0]);
        sums[batch.place[threadIdx.x]] = __longlong_as_double((long long)bits);
    }
    __syncthreads();
}

// Values that are as they are.
struct Unmasked {
    template <class Real> ELO_DEVICE void operator()(u32, u64, u32, Lane<Real, ROUNDS>&) const {}
};

// Values that are not kept become zero. Numbers are drawn in a loop: it is long.
struct Masked {
    const MaskedSums& task;
    template <class Real> ELO_DEVICE void operator()(u32 k, u64 first, u32 count, Lane<Real, ROUNDS>& lane) const {
        const u32 keep = task.keep[k];
        const u64 number = task.first + first;
        u32 bits = kept_by_value<LANES>(keep, task.mask[k], number, lane.value);
        if (keep == KEEP_RANDOM || keep == KEEP_BITS) {
            bits = 0;
            ELO_ROLL
            for (u32 r = 0; r < count; r++) {
                bits |= kept_anyway<1>(keep, task.mask[k], first + r * LANES, number + r * LANES) << r;
            }
        }
        ELO_UNROLL
        for (u32 r = 0; r < ROUNDS; r++) {
            if (!(bits >> r & 1)) lane.value[r] = 0;
        }
    }
};

// One block a leaf at a time. The leaf is read again for every pair: it is in the cache.
template <class Real, class Masking> ELO_DEVICE void sums(const Sums& task, const Masking& mask) {
    __shared__ Batch batch;
    const u32 terms = task.terms, total = terms + terms * (terms + 1) / 2;
    const u64 leaves = (task.elements + LEAF - 1) / LEAF;
    ELO_ROLL
    for (u64 leaf = blockIdx.x; leaf < leaves; leaf += gridDim.x) {
        double* const out = task.sums + leaf * total;
        const u64 first = leaf * LEAF + threadIdx.x;
        const u32 count = present<ROUNDS>(task.elements, first);
        if (!(task.want & MAGNITUDES)) {
            for (u32 i = threadIdx.x; i < terms; i += LANES) out[i] = 0;
        }
        if (!(task.want & PRODUCTS)) {
            for (u32 i = terms + threadIdx.x; i < total; i += LANES) out[i] = 0;
        }
        // Without a base zeros: what they are subtracted from does not change, not even -0.
        Lane<Real, ROUNDS> base = {}, left = {};
        bool base_is_next = task.base;
        u32 i = 0, j = 0, pending = 0, product_place = terms;
        const auto finish = [&](double sum, u32 place) {
            batch.lane[pending][threadIdx.x] = sum;
            if (threadIdx.x == 0) batch.place[pending] = place;
            pending++;
        };
        ELO_ROLL
        while (i < terms) {
            // The one place that reads, for the sake of the code's size.
            const u32 dtype = base_is_next ? task.base_dtype : task.term_dtype[j];
            const void* const from = base_is_next ? task.base : task.term[j];
            auto right = read_lane<Real, ROUNDS>(dtype, from, first, count);
            if (base_is_next) {
                base = right;
                base_is_next = false;
                continue;
            }
            subtract_base(right, base);
            mask(j, first, count, right);
            if (j == i) left = right;
            if (j == i && task.want & MAGNITUDES) {
                double magnitudes = 0;
                ELO_UNROLL
                for (u32 r = 0; r < ROUNDS; r++) magnitudes = add(magnitudes, (double)magnitude(left.value[r]));
                finish(magnitudes, i);
            }
            if (task.want & PRODUCTS) {
                double products = 0;
                ELO_UNROLL
                for (u32 r = 0; r < ROUNDS; r++) {
                    products = add(products, multiply((double)left.value[r], (double)right.value[r]));
                }
                finish(products, product_place++);
            }
            if (++j == terms || !(task.want & PRODUCTS)) j = ++i;
            // The next pair may bring two.
            if (pending + 2 > BATCH || i == terms) {
                write_batch(batch, pending, out);
                pending = 0;
            }
        }
    }
}

template <class Real> ELO_DEVICE void plain_sums(const Sums& task) { sums<Real>(task, Unmasked()); }
template <class Real> ELO_DEVICE void masked_sums(const MaskedSums& task) { sums<Real>(task.sums, Masked{task}); }

// Most elements fall into a window of bins that the block counts in its own memory, or are zero; the rest go to memory.
template <class Real> ELO_DEVICE void histogram(const Histogram& task) {
    __shared__ u32 window[WINDOW];
    const u32 lowest = task.low ? 0u : WINDOW_HIGH + 0u;
    const u64 pieces = (task.elements + PIECE * LANES - 1) / (PIECE * LANES);
    ELO_ROLL
    for (u64 start = blockIdx.x; start < pieces; start += (u64)gridDim.x * PIECES) {
        for (u32 bin = threadIdx.x; bin < WINDOW; bin += LANES) window[bin] = 0;
        u32 zeros = 0;
        __syncthreads();
        const u64 end = min(pieces, start + (u64)gridDim.x * PIECES);
        ELO_ROLL
        for (u64 piece = start; piece < end; piece += gridDim.x) {
            const u64 first = piece * PIECE * LANES + threadIdx.x;
            const u32 count = present<PIECE>(task.elements, first);
            const auto base = read_base<Real, PIECE>(task.base_dtype, task.base, first, count);
            auto lane = read_lane<Real, PIECE>(task.term_dtype, task.term, first, count);
            subtract_base(lane, base);
            ELO_UNROLL
            for (u32 r = 0; r < PIECE; r++) {
                const u32 bits = magnitude_bits(lane.value[r]);
                const u32 digit = task.low ? bits & 0x7fff : bits >> 15;
                if (r >= count || (task.low && bits >> 15 != task.high)) continue;
                if (digit == 0) zeros++;
                else if (digit - lowest < WINDOW) atomicAdd(&window[digit - lowest], 1u);
                else atomicAdd(&task.counts[digit], (u64)1);
            }
        }
        __syncthreads();
        for (u32 bin = threadIdx.x; bin < WINDOW; bin += LANES) {
            if (window[bin]) atomicAdd(&task.counts[lowest + bin], (u64)window[bin]);
        }
        if (zeros) atomicAdd(&task.counts[0], (u64)zeros);
        __syncthreads();
    }
}
