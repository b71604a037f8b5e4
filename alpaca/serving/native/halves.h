// Products of a step's rows with weights in 4 bits, as they lie.

#pragma once

#include "matrix.h"
#include "split.h"
#include "team.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HALVES 1
namespace {

// With more rows than MOST_ROWS, widening the matrix takes less time than it saves (benchmarks/products.py).
constexpr long MOST_ROWS = 16;
constexpr long TOGETHER = 4;  // rows for which the matrix is unpacked once
constexpr long AHEAD = 4096;  // bytes; what is read so much later is on its way by then

// Rows of a step, each split into two bytes a number, with the total of every group of inputs.
struct SplitRows {
    int8_t *upper, *lower;   // [rows, inputs]
    float *totals, *scales;  // [rows, inputs / 32]; [rows]

    SplitRows(const bf16* x, long rows, long inputs) {
        const long count = rows * inputs;
        upper = shared.of<int8_t>(2 * count + (count / DEPTH + rows) * sizeof(float));
        lower = upper + count;
        totals = reinterpret_cast<float*>(lower + count);
        scales = totals + count / DEPTH;
        for (long row = 0; row < rows; row++) take(x + row * inputs, row, inputs);
    }

  private:
    void take(const bf16* x, long row, long inputs) {
        const Scaling scaling(x, inputs);
        scales[row] = scaling.scale;
        for (long in = 0; in < inputs; in += DEPTH) {
            const long at = row * inputs + in;
            const Floats first = widen(x + in) * scaling.factor, second = widen(x + in + LANES) * scaling.factor;
            const Halved one = halve(first), other = halve(second);
            memcpy(upper + at, &one.upper, LANES);
            memcpy(lower + at, &one.lower, LANES);
            memcpy(upper + at + LANES, &other.upper, LANES);
            memcpy(lower + at + LANES, &other.lower, LANES);
            totals[at / DEPTH] = sum(first + second);
        }
    }
};

inline __m512i four_of(const int8_t* bytes) {
    int32_t four;
    memcpy(&four, bytes, sizeof four);
    return _mm512_set1_epi32(four);
}

// Some rows, from `first` on, times the 16 outputs of a block. Sums of products with numbers from 0 to 15 are exact; what
// is added for each group, zero - 8 · scale, is multiplied with the group's total.
template <int ROWS>
inline void dot_halves(const uint8_t* numbers, const bf16* scales, long inputs, const SplitRows& x, long first, Floats* found) {
    const __m512i half = _mm512_set1_epi8(15);
    Floats sums[ROWS] = {};
    for (long in = 0; in < inputs; in += DEPTH, numbers += LANES * LANES, scales += 2 * LANES) {
        __m512i upper[ROWS] = {}, lower[ROWS] = {};
        for (long four = 0; four < LANES; four += 4) {
            const __m512i both = _mm512_loadu_si512(numbers + four * LANES);
            _mm_prefetch(numbers + four * LANES + AHEAD, _MM_HINT_T0);
            const __m512i low = _mm512_and_si512(both, half), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
            for (long row = 0; row < ROWS; row++) {
                const long at = (first + row) * inputs + in + four;
                upper[row] = _mm512_dpbusd_epi32(upper[row], low, four_of(x.upper + at));
                lower[row] = _mm512_dpbusd_epi32(lower[row], low, four_of(x.lower + at));
                upper[row] = _mm512_dpbusd_epi32(upper[row], high, four_of(x.upper + at + LANES));
                lower[row] = _mm512_dpbusd_epi32(lower[row], high, four_of(x.lower + at + LANES));
            }
        }
        _mm_prefetch(scales + AHEAD / 8, _MM_HINT_T0);
        const Floats scale = widen(scales), rest = widen(scales + LANES) - 8.0f * scale;
        for (long row = 0; row < ROWS; row++) {
            const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper[row], 7), lower[row]);
            sums[row] += (Floats)_mm512_cvtepi32_ps(sum) * scale;
            sums[row] += rest * x.totals[((first + row) * inputs + in) / DEPTH];
        }
    }
    for (long row = 0; row < ROWS; row++) found[row] = sums[row] * x.scales[first + row];
}

void product_of_halves(const bf16* x, long rows, const Matrix& matrix, const Result& result) {
    const SplitRows split(x, rows, matrix.inputs);
    const long inputs = matrix.inputs;
    share(groups(matrix.outputs), [&](long group, long last) {
        Floats found[TOGETHER];
        for (; group < last; group++) {
            const auto* numbers = static_cast<const uint8_t*>(matrix.numbers) + group * LANES * inputs / 2;
            const bf16* scales = matrix.scales + group * LANES * inputs / DEPTH * 2;
            for (long first = 0; first < rows; first += TOGETHER) {
                const long count = rows - first < TOGETHER ? rows - first : TOGETHER;
                switch (count) {
                    case 1: dot_halves<1>(numbers, scales, inputs, split, first, found); break;
                    case 2: dot_halves<2>(numbers, scales, inputs, split, first, found); break;
                    case 3: dot_halves<3>(numbers, scales, inputs, split, first, found); break;
                    default: dot_halves<4>(numbers, scales, inputs, split, first, found);
                }
                for (long row = 0; row < count; row++) result.put_some(first + row, group * LANES, found[row]);
            }
        }
    });
}

}  // namespace
#endif
