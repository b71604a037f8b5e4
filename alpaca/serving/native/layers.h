// All layers of a base in one call.

#pragma once

#include "adapters.h"
#include "attention.h"
#include "product.h"
#include "rows.h"

namespace {

// Layers of the base that read the same input, with their adapters: see adapters.h.
struct Linear {
    Matrix matrix;
    const bf16 *bias, *down, *up;
    const int64_t* ends;
    long members;
};

struct Layer {
    const bf16 *input_norm, *query_norm, *key_norm, *mlp_norm;
    Linear qkv, out, gate_up, down;
};

struct Base {
    const Layer* layers;
    long count, query_heads, kv_heads, size;
    float eps;
    const bf16 *cos, *sin;
    long tiles;
};

}  // namespace

extern "C" {

// All layers of a step: x [rows, hidden] goes in after the embedding and comes out before the last norm. `memories`: of
// each layer's keys and values; the rest is as for attention and adapters, and `width` 0 where there are none.
void layers(const Base* of_base, bf16* x, long rows, long written, const int64_t* positions, const int64_t* where,
            bf16* const* memories, long pool, const int64_t* starts, const int64_t* lengths, const bf16* strengths,
            long width) {
    const Base& base = *of_base;
    const Layer& first = base.layers[0];
    const Used used(strengths, rows, width);
    const long hidden = first.qkv.matrix.inputs, inner = first.down.matrix.inputs, size = base.size;
    const long heads_width = first.qkv.matrix.outputs, heads = base.query_heads, group = base.kv_heads;
    static thread_local Memory memory;
    bf16* normed = memory.of<bf16>(rows * (2 * hidden + heads_width + heads * size + 3 * inner));
    bf16 *added = normed + rows * hidden, *qkv = added + rows * hidden, *attended = qkv + rows * heads_width;
    bf16 *gate_up = attended + rows * heads * size, *inner_rows = gate_up + rows * 2 * inner;

    auto linear = [&](const bf16* from, const Linear& of, bf16* to) {
        multiply(from, rows, of.matrix, Result{to, of.bias, of.matrix.outputs, false}, base.tiles != 0);
        if (used.count)
            add_adapters(from, rows, of.matrix.inputs, of.down, of.up, used, of.members, of.ends, to, of.matrix.outputs);
    };
    auto add = [&] {
        for (long i = 0; i < rows * hidden; i += LANES) narrow(widen(x + i) + widen(added + i), x + i);
    };
    for (long number = 0; number < base.count; number++) {
        const Layer& layer = base.layers[number];
        rms_norm(x, rows, hidden, layer.input_norm, base.eps, normed);
        linear(normed, layer.qkv, qkv);
        for (long row = 0; layer.query_norm && row < rows; row++) {
            bf16* of = qkv + row * heads_width;
            rms_norm(of, heads, size, layer.query_norm, base.eps, of);
            rms_norm(of + heads * size, group, size, layer.key_norm, base.eps, of + heads * size);
        }
        attention(qkv, rows, written, heads, group, size, base.cos, base.sin, positions, where, memories[number],
                  pool, starts, lengths, 1.0f / __builtin_sqrtf(size), attended);
        linear(attended, layer.out, added);
        add();
        rms_norm(x, rows, hidden, layer.mlp_norm, base.eps, normed);
        linear(normed, layer.gate_up, gate_up);
        gated(gate_up, rows, inner, inner_rows);
        linear(inner_rows, layer.down, added);
        add();
    }
}

}  // extern "C"
