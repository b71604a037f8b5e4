// The operations of a decoder's step on a CPU, in bf16: products of a few rows with a large matrix, norms, rotary
// positions with attention over the cache, the MLP's gate, and adapters. alpaca/serving/kernels.py compiles this
// file for the processor it finds, and says what each function takes.
//
// All sums are in fp32 and rounded once. A row's result does not depend on which other rows are computed with it.
// Where the processor has AMX, a product is a row of tiles: 16 outputs of the matrix, as they lie in memory, times up to
// 16 rows of the step, turned so that they fit. Elsewhere it is dot products, which the compiler writes in the vectors
// that there are.

#include "layers.h"

extern "C" {

// How many threads share the work. To be called once, before anything else.
void use_threads(long count) { threads = count; }

// Whether this processor, and the system, let this process use tiles.
long has_tiles() {
#if defined(TILES)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return 0;
#endif
}

void product(const bf16* x, long rows, const void* numbers, const bf16* scales, long bits, long outputs, long inputs,
             const bf16* bias, void* y, long wide, long tiles) {
    multiply(x, rows, Matrix{numbers, scales, bits, outputs, inputs}, Result{y, bias, outputs, wide != 0}, tiles != 0);
}

void rms_norm(const bf16* x, long rows, long width, const bf16* weight, float eps, bf16* y) {
    normalise(x, rows, width, weight, eps, y);
}

void gated(const bf16* gate_up, long rows, long width, bf16* y) { gate(gate_up, rows, width, y); }

void attention(bf16* heads, long rows, long written, long query_heads, long kv_heads, long size, const bf16* cos,
               const bf16* sin, const int64_t* positions, const int64_t* where, bf16* memory, long pool,
               const int64_t* starts, const int64_t* lengths, float scale, bf16* y) {
    attend_all(heads, rows, written, query_heads, kv_heads, size, cos, sin, positions, where, memory, pool, starts,
               lengths, scale, y);
}

void adapters(const bf16* x, long rows, long inputs, const bf16* down, const bf16* up, const bf16* strengths, long width,
              long members, const int64_t* ends, bf16* y, long outputs) {
    add_adapters(x, rows, inputs, down, up, strengths, width, members, ends, y, outputs);
}

void layers(const Base* base, bf16* x, long rows, long written, const int64_t* positions, const int64_t* where,
            bf16* const* memories, long pool, const int64_t* starts, const int64_t* lengths, const bf16* strengths,
            long width) {
    run_layers(*base, x, rows, written, positions, where, memories, pool, starts, lengths, strengths, width);
}

}  // extern "C"
