// Products by the processor's tiles (AMX): 16 outputs of a matrix times up to 16 rows at a time.

#pragma once

#include "matrix.h"
#include "team.h"

#if defined(TILES)
namespace {

struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 and 1 take sums [16 outputs, `width` rows], 2 the matrix [16 outputs, 32 inputs], 3 and 4 the step's rows, by
// pairs of inputs [16, width · 2].
inline void set_shapes(long width) {
    Shapes shapes;
    for (int tile : {0, 1, 2, 3, 4}) {
        shapes.rows[tile] = LANES;
        shapes.bytes[tile] = tile == 2 ? 64 : width * 4;
    }
    _tile_loadconfig(&shapes);
}

// x [rows, inputs] as blocks of `width` rows: [blocks, inputs / 2, width, 2]. Rows that fill the last one up are 0.
inline void turn(const bf16* x, long rows, long inputs, long width, long block, bf16* turned) {
    bf16* to = turned + block * width * inputs;
    for (long row = 0; row < width; row++) {
        bool there = block * width + row < rows;
        const bf16* from = x + (block * width + row) * inputs;
        for (long pair = 0; pair < inputs / 2; pair++) {
            uint32_t two = 0;
            if (there) memcpy(&two, from + 2 * pair, 4);
            memcpy(to + (pair * width + row) * 2, &two, 4);
        }
    }
}

// Prefetching a row's next inputs in each of 16 rows: what is read later is on its way by then.
inline void fetch(const char* next, long row_bytes, long at) {
    for (long row = 0; next && row < LANES; row++) _mm_prefetch(next + row * row_bytes + at, _MM_HINT_T0);
}

template <int BLOCKS>
inline void sum_tiles(const bf16* matrix, long inputs, const bf16* turned, long width, const char* next) {
    _tile_zero(0);
    if (BLOCKS > 1) _tile_zero(1);
    for (long in = 0; in < inputs; in += DEPTH) {
        _tile_loadd(2, matrix + in, inputs * 2);
        fetch(next, inputs * 2, in * 2);
        _tile_loadd(3, turned + in * width, width * 4);
        _tile_dpbf16ps(0, 2, 3);
        if (BLOCKS > 1) {
            _tile_loadd(4, turned + width * inputs + in * width, width * 4);
            _tile_dpbf16ps(1, 2, 4);
        }
    }
}

// Where the numbers of one row are in a tile of sums [16 outputs, 16].
inline __m512i column() {
    return _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
}

inline void put_tile(const float* sums, long rows, long first_row, long first, Floats factor, const Result& result) {
    for (long row = 0; row < LANES && first_row + row < rows; row++)
        result.put(first_row + row, first, (Floats)_mm512_i32gather_ps(column(), sums + row, 4) * factor);
}

void product_by_tiles(const bf16* x, long rows, const Matrix& matrix, const Result& result) {
    const long width = rows < LANES ? rows : LANES, blocks = (rows + width - 1) / width, inputs = matrix.inputs;
    bf16* turned = shared.of<bf16>(blocks * width * inputs);
    share_if(blocks > 1, blocks, [&](long block, long last) {
        for (; block < last; block++) turn(x, rows, inputs, width, block, turned);
    });
    share(groups(matrix.outputs), [&](long group, long last) {
        bf16* place = matrix.bits == 16 ? nullptr : own.of<bf16>(LANES * inputs);
        alignas(64) float sums[2][LANES * LANES];
        set_shapes(width);
        for (; group < last; group++) {
            const long first = start_of(group, matrix.outputs);
            const bf16* part = matrix.rows(first, LANES, place);
            const bool more = matrix.bits == 16 && first + 2 * LANES <= matrix.outputs;
            const char* next = more ? reinterpret_cast<const char*>(part + LANES * inputs) : nullptr;
            for (long block = 0; block < blocks; block += 2, next = nullptr) {
                const bf16* from = turned + block * width * inputs;
                const bool two = block + 1 < blocks;
                two ? sum_tiles<2>(part, inputs, from, width, next) : sum_tiles<1>(part, inputs, from, width, next);
                _tile_stored(0, sums[0], 64);
                put_tile(sums[0], rows, block * width, first, matrix.factor(first), result);
                if (!two) continue;
                _tile_stored(1, sums[1], 64);
                put_tile(sums[1], rows, (block + 1) * width, first, matrix.factor(first), result);
            }
        }
        _tile_release();
    });
}

}  // namespace
#endif
