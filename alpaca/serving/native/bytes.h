// Products with weights in bytes, as they lie, by tiles: the rows of the step are split into two bytes a number.

#pragma once

#include "split.h"
#include "tiles.h"

#if defined(TILES) && defined(__AMX_INT8__)
#define BYTES 1
namespace {

constexpr long DEEP = 64;  // inputs that a tile of bytes takes

// One row of x, x = scale · (128 · upper + lower). `upper`, `lower`: where its bytes begin; four go together, every
// `width` · 4. Returns the scale.
inline float split(const bf16* x, long inputs, long width, int8_t* upper, int8_t* lower) {
    const Scaling scaling(x, inputs);
    for (long i = 0; i < inputs; i += LANES) {
        const Halved two = halve(widen(x + i) * scaling.factor);
        int8_t both[2][LANES];
        memcpy(both[0], &two.upper, LANES);
        memcpy(both[1], &two.lower, LANES);
        for (long four = 0; four < 4; four++) {
            memcpy(upper + (i / 4 + four) * width * 4, both[0] + four * 4, 4);
            memcpy(lower + (i / 4 + four) * width * 4, both[1] + four * 4, 4);
        }
    }
    return scaling.scale;
}

// All rows of x split, in blocks of `width` of them.
struct Split {
    long width, blocks, inputs;
    int8_t *upper, *lower;
    float* scales;

    Split(long rows, long inputs) : width(rows < LANES ? rows : LANES), blocks((rows + width - 1) / width), inputs(inputs) {
        const long bytes = blocks * width * inputs;
        upper = shared.of<int8_t>(2 * bytes + blocks * width * sizeof(float));
        lower = upper + bytes;
        scales = reinterpret_cast<float*>(lower + bytes);
    }
    void take(const bf16* x, long row) const {
        const long at = row / width * width * inputs + row % width * 4;
        scales[row] = split(x + row * inputs, inputs, width, upper + at, lower + at);
    }
};

void product_of_bytes(const bf16* x, long rows, const Matrix& matrix, const Result& result) {
    const Split split(rows, matrix.inputs);
    const long width = split.width, inputs = matrix.inputs;
    share_if(rows * inputs >= LARGE, rows, [&](long row, long last) {
        for (; row < last; row++) split.take(x, row);
    });
    share(groups(matrix.outputs), [&](long group, long last) {
        alignas(64) int32_t sums[2][LANES * LANES];
        set_shapes(width);
        for (; group < last; group++) {
            const long first = start_of(group, matrix.outputs);
            const int8_t* part = static_cast<const int8_t*>(matrix.numbers) + first * inputs;
            const char* next = first + 2 * LANES <= matrix.outputs ? (const char*)part + LANES * inputs : nullptr;
            for (long block = 0; block < split.blocks; block++, next = nullptr) {
                const long from = block * width * inputs;
                _tile_zero(0);
                _tile_zero(1);
                for (long in = 0; in < inputs; in += DEEP) {
                    _tile_loadd(2, part + in, inputs);
                    fetch(next, inputs, in);
                    _tile_loadd(3, split.upper + from + in * width, width * 4);
                    _tile_dpbssd(0, 2, 3);
                    _tile_loadd(4, split.lower + from + in * width, width * 4);
                    _tile_dpbssd(1, 2, 4);
                }
                _tile_stored(0, sums[0], 64);
                _tile_stored(1, sums[1], 64);
                for (long row = block * width; row < rows && row < (block + 1) * width; row++) {
                    __m512i high = _mm512_i32gather_epi32(column(), sums[0] + row % width, 4);
                    __m512i low = _mm512_i32gather_epi32(column(), sums[1] + row % width, 4);
                    Floats sum = (Floats)_mm512_cvtepi32_ps(high) * UPPER + (Floats)_mm512_cvtepi32_ps(low);
                    result.put(row, first, sum * split.scales[row] * matrix.factor(first));
                }
            }
        }
        _tile_release();
    });
}

}  // namespace
#endif
