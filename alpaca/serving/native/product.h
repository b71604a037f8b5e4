// The product of a step's rows with a matrix, in the way that is fastest for both.

#pragma once

#include "bytes.h"
#include "halves.h"

namespace {

// One row of the step times 16 outputs.
inline Floats dot_products(const bf16* x, const bf16* matrix, long inputs) {
    Floats found = {};
    for (long output = 0; output < LANES; output += 4) {
        Floats sums[4] = {};
        for (long in = 0; in < inputs; in += DEPTH)
            for (long row = 0; row < 4; row++) {
                const bf16* w = matrix + (output + row) * inputs + in;
#if defined(__AVX512BF16__)
                sums[row] = (Floats)_mm512_dpbf16_ps((__m512)sums[row], (__m512bh)_mm512_loadu_si512(w),
                                                     (__m512bh)_mm512_loadu_si512(x + in));
#else
                Words two = load<Words>(w), with = load<Words>(x + in);
                sums[row] += (Floats)(two << 16) * (Floats)(with << 16);
                sums[row] += (Floats)(two & 0xffff0000u) * (Floats)(with & 0xffff0000u);
#endif
            }
        for (long row = 0; row < 4; row++) found[output + row] = sum(sums[row]);
    }
    return found;
}

void product_by_rows(const bf16* x, long rows, const Matrix& matrix, const Result& result) {
    share(groups(matrix.outputs), [&](long group, long last) {
        bf16* place = matrix.bits == 16 ? nullptr : own.of<bf16>(LANES * matrix.inputs);
        for (; group < last; group++) {
            const long first = start_of(group, matrix.outputs);
            const bf16* part = matrix.rows(first, LANES, place);
            for (long row = 0; row < rows; row++)
                result.put(row, first, dot_products(x + row * matrix.inputs, part, matrix.inputs) * matrix.factor(first));
        }
    });
}

void multiply(const bf16* x, long rows, const Matrix& matrix, const Result& result, bool tiles) {
    if (rows == 0) return;
#if defined(HALVES)
    if (matrix.bits == 4 && rows <= MOST_ROWS) return product_of_halves(x, rows, matrix, result);
#endif
#if defined(BYTES)
    if (tiles && matrix.bits == 8 && matrix.inputs % DEEP == 0) return product_of_bytes(x, rows, matrix, result);
#endif
#if defined(TILES)
    if (tiles) return product_by_tiles(x, rows, matrix, result);
#endif
    (void)tiles;
    product_by_rows(x, rows, matrix, result);
}

}  // namespace
