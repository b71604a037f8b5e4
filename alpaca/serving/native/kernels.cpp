// The operations of a decoder's step on a CPU, in bf16: products of a few rows with a large matrix, norms, rotary
// positions with attention over the cache, the MLP's gate, and adapters. alpaca/serving/kernels.py compiles this
// file for the processor it finds, and says what each function takes.
//
// All sums are in fp32 and rounded once. A row's result does not depend on which other rows are computed with it.
// Where the processor has AMX, a product is a row of tiles: 16 outputs of the matrix, as they lie in memory, times up to
// 16 rows of the step, turned so that they fit. Elsewhere it is dot products, which the compiler writes in the vectors
// that there are.

#include "layers.h"  // what else Python calls stands in the headers, as extern "C"

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

}  // extern "C"
