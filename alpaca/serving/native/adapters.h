// LoRA adapters, each for the rows that use it.

#pragma once

#include "team.h"
#include "vectors.h"

namespace {

// The columns that each row uses and how much of each, row after row: so all threads get the same share of them.
struct Used {
    int32_t *rows, *columns, *begin;  // [count], [count], [rows + 1]
    float* strengths;                 // [count]
    long count = 0;

    // `given`: [all_rows, width].
    Used(const bf16* given, long all_rows, long width) {
        static thread_local Memory memory;
        const long most = all_rows * width;
        rows = memory.of<int32_t>(3 * most + all_rows + 1);
        columns = rows + most;
        strengths = reinterpret_cast<float*>(columns + most);
        begin = reinterpret_cast<int32_t*>(strengths + most);
        for (long row = 0; row < all_rows; row++) {
            begin[row] = count;
            for (long column = 0; column < width; column++) {
                const float strength = number(given[row * width + column]);
                if (strength == 0) continue;
                rows[count] = row;
                columns[count] = column;
                strengths[count++] = strength;
            }
        }
        begin[all_rows] = count;
    }
};

inline float dot(const bf16* x, const bf16* with, long count) {
    Floats products = {};
    for (long i = 0; i < count; i += LANES) products += widen(x + i) * widen(with + i);
    return sum(products);
}

// y += (x·Aᵀ ∘ strengths)·B. down, up: A [columns · members, inputs], B [columns · members, outputs]; `ends`: where each
// member's outputs end. 64 outputs at a time go through all columns of a row.
inline void add_adapters(const bf16* x, long rows, long inputs, const bf16* down, const bf16* up, const Used& used,
                         long members, const int64_t* ends, bf16* y, long outputs) {
    constexpr long PARTS = 4;
    float* low = shared.of<float>(used.count * members);  // [used, members]
    share(used.count * members, [&](long task, long last) {
        for (; task < last; task++) {
            const long one = task / members, row = used.rows[one], column = used.columns[one];
            const bf16* from = down + (column * members + task % members) * inputs;
            low[task] = dot(x + row * inputs, from, inputs) * used.strengths[one];
        }
    });
    const long pieces = rows == 1 ? 8 : 1;  // of a row's outputs, for the threads to share
    share(rows * pieces, [&](long task, long end) {
        for (; task < end; task++) {
            const long row = task / pieces, vectors = outputs / LANES, first = used.begin[row], last = used.begin[row + 1];
            const long until = (task % pieces + 1) * vectors / pieces * LANES;
            long member = 0;
            for (long i = task % pieces * vectors / pieces * LANES, parts; last > first && i < until; i += parts * LANES) {
                while (i >= ends[member]) member++;
                const long left = ((ends[member] < until ? ends[member] : until) - i) / LANES;
                parts = left < PARTS ? left : PARTS;
                Floats found[PARTS] = {};
                for (long one = first; one < last; one++) {
                    const float of = low[one * members + member];
                    const bf16* from = up + (used.columns[one] * members + member) * outputs + i;
                    if (parts == PARTS)
                        for (long part = 0; part < PARTS; part++) found[part] += of * widen(from + part * LANES);
                    else
                        for (long part = 0; part < parts; part++) found[part] += of * widen(from + part * LANES);
                }
                bf16* to = y + row * outputs + i;
                for (long part = 0; part < parts; part++) narrow(widen(to + part * LANES) + found[part], to + part * LANES);
            }
        }
    });
}

}  // namespace

extern "C" {

void adapters(const bf16* x, long rows, long inputs, const bf16* down, const bf16* up, const bf16* strengths, long width,
              long members, const int64_t* ends, bf16* y, long outputs) {
    add_adapters(x, rows, inputs, down, up, Used(strengths, rows, width), members, ends, y, outputs);
}

}  // extern "C"
