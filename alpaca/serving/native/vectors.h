// Sixteen numbers at a time: bf16, bytes and fp32, in the vectors that the compiler has for this processor.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES 1
#include <sys/syscall.h>
#endif

namespace {

using bf16 = uint16_t;
constexpr long LANES = 16;   // numbers in a vector, rows and columns of a tile
constexpr long DEPTH = 32;   // inputs that a tile takes
constexpr float NOTHING = -60;  // e to the power of less counts for nothing, and would be slow to multiply with
constexpr long LARGE = 1 << 14;  // numbers; with fewer, starting a team of threads takes longer than it saves

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t Positives __attribute__((vector_size(16)));

template <class Vector, class Number> inline Vector load(const Number* from) {
    Vector found;
    memcpy(&found, from, sizeof found);
    return found;
}

inline Floats widen(const bf16* from) {
#if defined(__AVX512F__)
    __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16);
#endif
}
inline Floats widen(const int8_t* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Integers), Floats);
#endif
}
inline Integers widen(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    return __builtin_convertvector(load<Positives>(from), Integers);
#endif
}
inline Floats all(float number) { return number - Floats{}; }
inline float number(bf16 half) {
    const uint32_t bits = uint32_t(half) << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

// Rounds to the nearest, of two to the even one; NaN stays NaN.
inline void narrow(Floats numbers, bf16* to) {
#if defined(__AVX512BF16__)
    auto found = _mm512_cvtneps_pbh((__m512)numbers);
    memcpy(to, &found, sizeof found);
#else
    Words bits = (Words)numbers;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Words real = (Words)(numbers == numbers);
    Halves found = __builtin_convertvector((rounded & real) | (0x7fc0 & ~real), Halves);
    memcpy(to, &found, sizeof found);
#endif
}

inline float sum(Floats numbers) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)numbers);
#else
    float found = 0;
    for (long lane = 0; lane < LANES; lane++) found += numbers[lane];
    return found;
#endif
}

// e^x: 2^whole · 2^part, the latter by its Taylor series up to the seventh power (relative error below 1e-6).
inline Floats exponential(Floats x) {
    x = x < -87.0f ? all(-87.0f) : x > 88.0f ? all(88.0f) : x;
    Floats scaled = x * 1.44269504f;
    Integers whole = __builtin_convertvector(scaled + (scaled < 0 ? all(-0.5f) : all(0.5f)), Integers);
    Floats part = (scaled - __builtin_convertvector(whole, Floats)) * 0.69314718f;
    Floats power = all(1.0f / 5040);
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) power = power * part + factor;
    return (Floats)((Integers)power + (whole << 23));
}

// Memory that is kept for the next call.
struct Memory {
    void* at = nullptr;
    size_t size = 0;

    template <class Number> Number* of(long count) {
        if (count * sizeof(Number) > size) {
            free(at);
            size = (count * sizeof(Number) + 4095) / 4096 * 4096;
            at = aligned_alloc(64, size);
            if (!at) abort();
        }
        return static_cast<Number*>(at);
    }
    ~Memory() { free(at); }
};
thread_local Memory own, shared;  // of each thread of a team; of the thread that calls, for its team

}  // namespace
