// Weights in 16, 8 and 4 bits, and what becomes of their products.

#pragma once

#include "vectors.h"

namespace {

// A matrix [outputs, inputs] in one of three forms.
//   bits 16  bf16
//   bits 8   int8, one scale for each output
//   bits 4   two in a byte, in blocks [outputs / 16, inputs / 32] of 256 bytes: of a block's inputs the first 16 lie in
//            the lower halves, the others in the upper ones, [4, 16 outputs, 4 inputs]. Of each block 16 scales, then 16
//            zeros. Outputs are filled up to a multiple of 16
struct Matrix {
    const void* numbers;
    const bf16* scales;
    long bits, outputs, inputs;

    // `count` outputs from `first` on in bf16: where they lie, or widened into `place` [count, inputs]. Those of 8 bits
    // are still to be multiplied with their scales.
    const bf16* rows(long first, long count, bf16* place) const {
        if (bits == 16) return static_cast<const bf16*>(numbers) + first * inputs;
        for (long row = 0; row < count; row++)
            for (long in = 0; in < inputs; in += DEPTH) group(first + row, in, place + row * inputs + in);
        return place;
    }

    Floats factor(long first) const { return bits == 8 ? widen(scales + first) : all(1.0f); }

  private:
    void group(long row, long in, bf16* place) const {
        Floats low, high;
        if (bits == 8) {
            const int8_t* from = static_cast<const int8_t*>(numbers) + row * inputs + in;
            low = widen(from);
            high = widen(from + LANES);
        } else {
            const long block = row / LANES * (inputs / DEPTH) + in / DEPTH, lane = row % LANES;
            const uint8_t* from = static_cast<const uint8_t*>(numbers) + block * LANES * LANES + lane * 4;
            uint8_t bytes[LANES];
            for (long four = 0; four < 4; four++) memcpy(bytes + four * 4, from + four * 4 * LANES, 4);
            const Integers both = widen(bytes);
            const bf16* of = scales + block * 2 * LANES + lane;
            const float scale = number(of[0]), zero = number(of[LANES]);
            low = __builtin_convertvector((both & 15) - 8, Floats) * scale + zero;
            high = __builtin_convertvector((both >> 4) - 8, Floats) * scale + zero;
        }
#if defined(__AVX512BF16__)
        auto found = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        memcpy(place, &found, sizeof found);
#else
        narrow(low, place);
        narrow(high, place + LANES);
#endif
    }
};

// What becomes of 16 sums of a row: scaled, with the bias added, as bf16 or fp32.
struct Result {
    void* y;
    const bf16* bias;
    long outputs;
    bool wide;

    // Those of them that there are: a last group may have fewer.
    void put_some(long row, long first, Floats sums) const {
        if (first + LANES <= outputs) return put(row, first, sums);
        bf16 narrowed[LANES];
        for (long at = 0; bias && first + at < outputs; at++) sums[at] += number(bias[first + at]);
        narrow(sums, narrowed);
        const long place = row * outputs + first, count = outputs - first;
        if (wide)
            memcpy(static_cast<float*>(y) + place, &sums, count * sizeof(float));
        else
            memcpy(static_cast<bf16*>(y) + place, narrowed, count * sizeof(bf16));
    }

    void put(long row, long first, Floats sums) const {
        if (bias) sums += widen(bias + first);
        long place = row * outputs + first;
        if (wide)
            memcpy(static_cast<float*>(y) + place, &sums, sizeof sums);
        else
            narrow(sums, static_cast<bf16*>(y) + place);
    }
};

// Groups of 16 outputs; the last one begins earlier where their number is no multiple.
inline long groups(long outputs) { return (outputs + LANES - 1) / LANES; }
inline long start_of(long group, long outputs) {
    return group * LANES + LANES <= outputs ? group * LANES : outputs - LANES;
}

}  // namespace
