// Rotary positions, and attention of each row over its own range of the cache.

#pragma once

#include "team.h"
#include "vectors.h"

namespace {

// x ∘ cos + (x with its halves swapped) ∘ sin, in place.
inline void rotate(bf16* x, long size, const bf16* cos, const bf16* sin) {
    for (long i = 0, other = size / 2; i < size / 2; i += LANES, other += LANES) {
        Floats first = widen(x + i), second = widen(x + other);
        narrow(first * widen(cos + i) + second * widen(sin + i), x + i);
        narrow(second * widen(cos + other) + first * widen(sin + other), x + other);
    }
}

// A row's query heads that share a key head, and what they read.
struct Reading {
    const bf16 *queries, *keys, *values;  // [group, size], [length, size]
    long length, group;
    float scale;
    bf16* y;  // [group, size]
};

// PARTS · 16 is a head's size; `scores` has room for [group, padded] and for the queries in fp32.
template <int PARTS> void attend(const Reading& of, float* scores, long padded) {
    constexpr long SIZE = PARTS * LANES;
    float* queries = scores + of.group * padded;
    for (long i = 0; i < of.group * SIZE; i += LANES) {
        Floats scaled = widen(of.queries + i) * of.scale;
        memcpy(queries + i, &scaled, sizeof scaled);
    }
    for (long token = 0; token < of.length; token++) {
        Floats key[PARTS];
        for (int part = 0; part < PARTS; part++) key[part] = widen(of.keys + token * SIZE + part * LANES);
        for (long one = 0; one < of.group; one++) {
            Floats products = key[0] * load<Floats>(queries + one * SIZE);
            for (int part = 1; part < PARTS; part++)
                products += key[part] * load<Floats>(queries + one * SIZE + part * LANES);
            scores[one * padded + token] = sum(products);
        }
    }
    for (long one = 0; one < of.group; one++) {
        float *row = scores + one * padded, most = row[0];
        for (long token = 1; token < of.length; token++) most = row[token] > most ? row[token] : most;
        for (long token = of.length; token % LANES; token++) row[token] = -1e30f;
        Floats whole = {};
        for (long token = 0; token < of.length; token += LANES) {
            Floats below = load<Floats>(row + token) - most;
            Floats power = below < NOTHING ? Floats{} : exponential(below);
            whole += power;
            memcpy(row + token, &power, sizeof power);
        }
        Floats found[PARTS] = {};
        for (long token = 0; token < of.length; token++)
            for (int part = 0; part < PARTS; part++)
                found[part] += row[token] * widen(of.values + token * SIZE + part * LANES);
        const float share = 1.0f / sum(whole);
        for (int part = 0; part < PARTS; part++) narrow(found[part] * share, of.y + one * SIZE + part * LANES);
    }
}

}  // namespace

extern "C" {

void attention(bf16* heads, long rows, long written, long query_heads, long kv_heads, long size, const bf16* cos,
               const bf16* sin, const int64_t* positions, const int64_t* where, bf16* memory, long pool,
               const int64_t* starts, const int64_t* lengths, float scale, bf16* y) {
    const long width = (query_heads + 2 * kv_heads) * size, group = query_heads / kv_heads;
    long longest = 0;
    for (long row = 0; row < written; row++) longest = lengths[row] > longest ? lengths[row] : longest;
    const long padded = (longest + LANES - 1) / LANES * LANES;
    share_if(rows * width >= LARGE, rows, [&](long row, long last) {
        for (; row < last; row++) {
            bf16* of = heads + row * width;
            for (long head = 0; head < query_heads + kv_heads; head++)
                rotate(of + head * size, size, cos + positions[row] * size, sin + positions[row] * size);
            for (long head = 0; row < written && head < 2 * kv_heads; head++)
                memcpy(memory + (head * pool + where[row]) * size, of + (query_heads + head) * size, size * sizeof(bf16));
        }
    });
    std::atomic<long> next{0};  // rows differ in length, so whoever is done takes the next one
    the_team().share([&](long, long) {
        float* scores = own.of<float>(group * (padded + size));
        for (long task; (task = next.fetch_add(1)) < written * kv_heads;) {
            const long row = task / kv_heads, head = task % kv_heads;
            if (!lengths[row]) continue;
            const bf16* keys = memory + (head * pool + starts[row]) * size;
            const Reading reading{heads + row * width + head * group * size, keys, keys + kv_heads * pool * size,
                                  lengths[row], group, scale, y + (row * query_heads + head * group) * size};
            switch (size / DEPTH) {
                case 1: attend<2>(reading, scores, padded); break;
                case 2: attend<4>(reading, scores, padded); break;
                case 3: attend<6>(reading, scores, padded); break;
                case 4: attend<8>(reading, scores, padded); break;
                case 5: attend<10>(reading, scores, padded); break;
                case 6: attend<12>(reading, scores, padded); break;
                case 7: attend<14>(reading, scores, padded); break;
                case 8: attend<16>(reading, scores, padded); break;
            }
        }
    });
}

}  // extern "C"
