// Numbers of 16 bits in two bytes, for products with weights in bytes and half bytes.

#pragma once

#include "vectors.h"

#if defined(__AVX512BW__)
namespace {

constexpr long UPPER = 128;

// Numbers in 16 bits, 128 · upper + lower, each in a byte: so the matrix is multiplied as it is, and a row that is scaled
// to them loses less than by bf16.
struct Halved {
    __m128i upper, lower;
};

inline Halved halve(Floats numbers) {
    const __m512i whole = _mm512_cvtps_epi32((__m512)numbers);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(UPPER / 2)), 7);
    return {_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(_mm512_sub_epi32(whole, _mm512_slli_epi32(high, 7)))};
}

// The largest, whatever its sign; NaN where there is one.
inline float most(const bf16* x, long inputs) {
    __m512 found = _mm512_setzero_ps();
    __mmask16 none = 0;
    for (long i = 0; i < inputs; i += LANES) {
        const __m512 numbers = (__m512)widen(x + i);
        none |= _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
        found = _mm512_max_ps(found, _mm512_abs_ps(numbers));
    }
    return none ? __builtin_nanf("") : _mm512_reduce_max_ps(found);
}

// Of a row to 16 bits and back.
struct Scaling {
    float scale, factor;

    Scaling(const bf16* x, long inputs) {
        const float largest = most(x, inputs);
        scale = largest / (127 * UPPER);
        factor = largest > 0 ? 1 / scale : 0;
    }
};

}  // namespace
#endif
