// What is done to each row by itself: norms, and the MLP's gate.

#pragma once

#include "team.h"
#include "vectors.h"

extern "C" {

void rms_norm(const bf16* x, long rows, long width, const bf16* weight, float eps, bf16* y) {
    share_if(rows * width >= LARGE, rows, [&](long row, long last) {
        for (; row < last; row++) {
            const bf16* from = x + row * width;
            bf16* to = y + row * width;
            Floats squares = {};
            for (long i = 0; i < width; i += LANES) squares += widen(from + i) * widen(from + i);
            const float factor = 1.0f / __builtin_sqrtf(sum(squares) / width + eps);
            for (long i = 0; i < width; i += LANES) narrow(widen(from + i) * factor * widen(weight + i), to + i);
        }
    });
}

void gated(const bf16* gate_up, long rows, long width, bf16* y) {
    share_if(rows * width >= LARGE / 2, rows, [&](long row, long last) {
        for (; row < last; row++) {
            const bf16 *gate = gate_up + row * 2 * width, *up = gate + width;
            for (long i = 0; i < width; i += LANES) {
                Floats x = widen(gate + i);
                narrow(x / (1.0f + exponential(-x)) * widen(up + i), y + row * width + i);
            }
        }
    });
}

}  // extern "C"
