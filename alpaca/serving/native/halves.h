// Products of a few rows with weights in 4 bits.

#pragma once

#include "bytes.h"

#if defined(BYTES)
namespace {

// A few rows times 4 bits. Of each 64 inputs, two groups, the bytes go together as they are unpacked: first the lower
// halves of both groups, then the upper ones; `order` says where an input lies. Sums of products with numbers from 0 to
// 15 are exact; what is added for each group, zero - 8 · scale, is multiplied with the group's total.
constexpr long FEW_ROWS = 4;
constexpr long AHEAD = 2048;  // bytes; what is read so much later is on its way by then

inline long order(long input) {
    const long in = input % DEEP, group = in / DEPTH, half = in % DEPTH / LANES;
    return input - in + half * DEPTH + group * LANES + in % LANES;
}

struct FewRows {
    int8_t *upper, *lower;  // [rows, inputs]
    float *totals, *scales;  // [rows, inputs / 64, 16]: a group's total at lanes 0 and 4; [rows]

    FewRows(const bf16* x, long rows, long inputs) {
        const long count = rows * inputs;
        upper = shared.of<int8_t>(2 * count + (count / 4 + rows) * sizeof(float));
        lower = upper + count;
        totals = reinterpret_cast<float*>(lower + count);
        scales = totals + count / 4;
        memset(totals, 0, count / 4 * sizeof(float));
        for (long row = 0; row < rows; row++) take(x + row * inputs, row, inputs);
    }

  private:
    void take(const bf16* x, long row, long inputs) {
        const Scaling scaling(x, inputs);
        scales[row] = scaling.scale;
        for (long in = 0; in < inputs; in += LANES) {
            const Floats scaled = widen(x + in) * scaling.factor;
            const Halved two = halve(scaled);
            memcpy(upper + row * inputs + order(in), &two.upper, LANES);
            memcpy(lower + row * inputs + order(in), &two.lower, LANES);
            totals[row * inputs / 4 + in / DEEP * LANES + in % DEEP / DEPTH * 4] += sum(scaled);
        }
    }
};

template <int ROWS>
inline void dot_halves(const uint8_t* numbers, const bf16* scales, long inputs, const FewRows& x, float* sums) {
    const __m256i half = _mm256_set1_epi8(15);
    const __m512i groups = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
    __m512 found[ROWS];
    for (auto& one : found) one = _mm512_setzero_ps();
    for (long in = 0; in < inputs; in += DEEP) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers + in / 2));
        _mm_prefetch(numbers + in / 2 + AHEAD, _MM_HINT_T0);
        _mm_prefetch(scales + in / DEPTH * 2 + AHEAD / 8, _MM_HINT_T0);
        const __m256i low = _mm256_and_si256(both, half), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
        const __m512i weights = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        int64_t of_both;
        memcpy(&of_both, scales + in / DEPTH * 2, sizeof of_both);
        const __m512i of = _mm512_permutexvar_epi32(groups, _mm512_set1_epi64(of_both));
        const __m512 scale = (__m512)_mm512_slli_epi32(of, 16);
        const __m512 zero = (__m512)_mm512_and_si512(of, _mm512_set1_epi32(0xffff0000));
        const __m512 rest = _mm512_fnmadd_ps(scale, _mm512_set1_ps(8), zero);
        for (long row = 0; row < ROWS; row++) {
            const long at = row * inputs + in;
            __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, _mm512_loadu_si512(x.upper + at));
            sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 7), weights, _mm512_loadu_si512(x.lower + at));
            found[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, found[row]);
            found[row] = _mm512_fmadd_ps(rest, _mm512_loadu_ps(x.totals + at / 4), found[row]);
        }
    }
    for (long row = 0; row < ROWS; row++) sums[row * LANES] = _mm512_reduce_add_ps(found[row]);
}

void product_of_halves(const bf16* x, long rows, const Matrix& matrix, const Result& result) {
    const FewRows few(x, rows, matrix.inputs);
    const long inputs = matrix.inputs;
    auto one = [&](long group) {
        const long first = start_of(group, matrix.outputs);
        alignas(64) float sums[FEW_ROWS * LANES];
        for (long output = 0; output < LANES; output++) {
            const auto* numbers = static_cast<const uint8_t*>(matrix.numbers) + (first + output) * inputs / 2;
            const bf16* scales = matrix.scales + (first + output) * inputs / DEPTH * 2;
            switch (rows) {
                case 1: dot_halves<1>(numbers, scales, inputs, few, sums + output); break;
                case 2: dot_halves<2>(numbers, scales, inputs, few, sums + output); break;
                case 3: dot_halves<3>(numbers, scales, inputs, few, sums + output); break;
                case 4: dot_halves<4>(numbers, scales, inputs, few, sums + output); break;
            }
        }
        for (long row = 0; row < rows; row++)
            result.put(row, first, load<Floats>(sums + row * LANES) * few.scales[row]);
    };
    share(groups(matrix.outputs), [&](long group, long last) {
        for (; group < last; group++) one(group);
    });
}

}  // namespace
#endif
