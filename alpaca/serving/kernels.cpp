// The operations of a decoder's step on a CPU, in bf16: products of a few rows with a large matrix, norms, rotary
// positions with attention over the cache, the MLP's gate, and adapters. alpaca/serving/kernels.py compiles this file
// for the processor it finds and says what each function takes.
//
// All sums are in fp32 and rounded once. A row's result does not depend on which other rows are computed with it.
// Where the processor has AMX, a product is a row of tiles: 16 outputs of the matrix, as they lie in memory, times up to
// 16 rows of the step, turned so that they fit. Elsewhere it is dot products, which the compiler writes in the vectors
// that there are.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <mutex>
#include <thread>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define TILES 1
#include <sys/syscall.h>
#endif
#include <unistd.h>

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

// --- threads -------------------------------------------------------------------------------------------------------

// The threads of this process that share the work. A step hands out work some hundreds of times, so those who wait for
// more do so awake, for a moment. OpenMP's would go to sleep each time wherever a process has more of them than
// processors, and torch gives every thread that computes a team of its own.
class Team {
    static constexpr int AWAKE = 20000;  // looks before one who waits goes to sleep: some tenths of a millisecond
    using Part = void (*)(const void* work, long number, long count);

    const long count;
    std::mutex busy, asleep;
    std::condition_variable wake;
    std::atomic<uint32_t> turn{0};
    std::atomic<long> left{0}, sleeping{0};
    Part part = nullptr;
    const void* work = nullptr;

    static void rest() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void serve(long number) {
        for (uint32_t seen = 0;; seen++) {
            for (int look = 0; look < AWAKE && turn.load(std::memory_order_acquire) == seen; look++) rest();
            if (turn.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(asleep);
                sleeping++;
                wake.wait(lock, [&] { return turn.load() != seen; });
                sleeping--;
            }
            part(work, number, count);
            left.fetch_sub(1, std::memory_order_release);
        }
    }

  public:
    explicit Team(long count) : count(count) {
        for (long number = 1; number < count; number++) std::thread([this, number] { serve(number); }).detach();
    }

    // All call `each(number, count)` once, this thread as number 0. Where another thread has the team, this one does all.
    template <class Each> void share(const Each& each) {
        std::unique_lock<std::mutex> mine(busy, std::try_to_lock);
        if (count == 1 || !mine) return each(0, 1);
        part = [](const void* work, long number, long count) { (*static_cast<const Each*>(work))(number, count); };
        work = &each;
        left.store(count - 1, std::memory_order_relaxed);
        turn.fetch_add(1);
        if (sleeping.load()) {
            std::lock_guard<std::mutex> lock(asleep);
            wake.notify_all();
        }
        each(0, count);
        for (int look = 0; left.load(std::memory_order_acquire); look++) look < AWAKE ? rest() : std::this_thread::yield();
    }
};

// Made at first use and never ended. A process that was forked off has none of its parent's threads, and makes its own.
std::atomic<Team*> team{nullptr};
std::atomic<long> team_of{0};
long threads = 1;

Team& the_team() {
    static std::mutex making;
    const long process = getpid();
    if (team_of.load(std::memory_order_acquire) != process) {
        std::lock_guard<std::mutex> lock(making);
        if (team_of.load() != process) {
            team.store(new Team(threads));
            team_of.store(process, std::memory_order_release);
        }
    }
    return *team.load(std::memory_order_relaxed);
}

// `each(first, last)` for shares of 0 … count that are nearly equal.
template <class Each> inline void share(long count, const Each& each) {
    the_team().share([&](long number, long members) {
        const long first = number * count / members, last = (number + 1) * count / members;
        if (first < last) each(first, last);
    });
}

// The same, by this thread alone where the work is not worth handing out.
template <class Each> inline void share_if(bool worth, long count, const Each& each) {
    if (worth)
        share(count, each);
    else
        each(0, count);
}

// --- weights -------------------------------------------------------------------------------------------------------

// A matrix [outputs, inputs] in one of three forms.
//   bits 16  bf16
//   bits 8   int8, one scale for each output
//   bits 4   two in a byte: of each 32 inputs the first 16 in the lower halves, the others in the upper ones; a scale
//            and a zero, side by side, for each 32 inputs of each output
struct Matrix {
    const void* numbers;
    const bf16* scales;
    long bits, outputs, inputs;

    // `count` outputs from `first` on in bf16: where they lie, or widened into `place` [count, inputs]. Those of 8 bits
    // are still to be multiplied with their scales.
    const bf16* rows(long first, long count, bf16* place) const {
        if (bits == 16) return static_cast<const bf16*>(numbers) + first * inputs;
        for (long row = 0; row < count; row++)
            for (long in = 0; in < inputs; in += DEPTH) group(first + row, in, place + row * inputs + in);
        return place;
    }

    Floats factor(long first) const { return bits == 8 ? widen(scales + first) : all(1.0f); }

  private:
    void group(long row, long in, bf16* place) const {
        Floats low, high;
        if (bits == 8) {
            const int8_t* from = static_cast<const int8_t*>(numbers) + row * inputs + in;
            low = widen(from);
            high = widen(from + LANES);
        } else {
            const uint8_t* from = static_cast<const uint8_t*>(numbers) + (row * inputs + in) / 2;
            Integers both = widen(from);
            const bf16* of = scales + (row * inputs + in) / DEPTH * 2;
            const float scale = number(of[0]), zero = number(of[1]);
            low = __builtin_convertvector((both & 15) - 8, Floats) * scale + zero;
            high = __builtin_convertvector((both >> 4) - 8, Floats) * scale + zero;
        }
#if defined(__AVX512BF16__)
        auto found = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        memcpy(place, &found, sizeof found);
#else
        narrow(low, place);
        narrow(high, place + LANES);
#endif
    }
};

// What becomes of 16 sums of a row: scaled, with the bias added, as bf16 or fp32.
struct Result {
    void* y;
    const bf16* bias;
    long outputs;
    bool wide;

    void put(long row, long first, Floats sums) const {
        if (bias) sums += widen(bias + first);
        long place = row * outputs + first;
        if (wide)
            memcpy(static_cast<float*>(y) + place, &sums, sizeof sums);
        else
            narrow(sums, static_cast<bf16*>(y) + place);
    }
};

// Groups of 16 outputs; the last one begins earlier where their number is no multiple.
inline long groups(long outputs) { return (outputs + LANES - 1) / LANES; }
inline long start_of(long group, long outputs) {
    return group * LANES + LANES <= outputs ? group * LANES : outputs - LANES;
}

#if defined(TILES)
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

#if defined(__AMX_INT8__)
constexpr long DEEP = 64;   // inputs that a tile of bytes takes
constexpr long UPPER = 128;

// Numbers in 16 bits, 128 · upper + lower, each in a byte: so the matrix is multiplied as it is, and a row that is scaled
// to them loses less than by bf16.
struct Halved {
    __m128i upper, lower;
};

inline Halved halve(Floats numbers) {
    const __m512i whole = _mm512_cvtps_epi32((__m512)numbers);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(UPPER / 2)), 7);
    return {_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(_mm512_sub_epi32(whole, _mm512_slli_epi32(high, 7)))};
}

// The largest, whatever its sign; NaN where there is one.
inline float most(const bf16* x, long inputs) {
    __m512 found = _mm512_setzero_ps();
    __mmask16 none = 0;
    for (long i = 0; i < inputs; i += LANES) {
        const __m512 numbers = (__m512)widen(x + i);
        none |= _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
        found = _mm512_max_ps(found, _mm512_abs_ps(numbers));
    }
    return none ? __builtin_nanf("") : _mm512_reduce_max_ps(found);
}

// One row of x, x = scale · (128 · upper + lower). `upper`, `lower`: where its bytes begin; four go together, every
// `width` · 4. Returns the scale.
inline float split(const bf16* x, long inputs, long width, int8_t* upper, int8_t* lower) {
    const float largest = most(x, inputs), scale = largest / (127 * UPPER), factor = largest > 0 ? 1 / scale : 0;
    for (long i = 0; i < inputs; i += LANES) {
        const Halved two = halve(widen(x + i) * factor);
        int8_t both[2][LANES];
        memcpy(both[0], &two.upper, LANES);
        memcpy(both[1], &two.lower, LANES);
        for (long four = 0; four < 4; four++) {
            memcpy(upper + (i / 4 + four) * width * 4, both[0] + four * 4, 4);
            memcpy(lower + (i / 4 + four) * width * 4, both[1] + four * 4, 4);
        }
    }
    return scale;
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

// A few rows times 4 bits. Of each 64 inputs, two groups, the bytes go together as they are unpacked: first the lower
// halves of both groups, then the upper ones; `order` says where an input lies. Sums of products with numbers from 0 to
// 15 are exact; what is added for each group, zero - 8 · scale, is multiplied with the group's total.
constexpr long FEW_ROWS = 4;
constexpr long AHEAD = 2048;  // bytes; what is read so much later is on its way by then

inline long order(long input) {
    const long in = input % DEEP, group = in / DEPTH, half = in % DEPTH / LANES;
    return input - in + half * DEPTH + group * LANES + in % LANES;
}

struct FewRows {
    int8_t *upper, *lower;  // [rows, inputs]
    float *totals, *scales;  // [rows, inputs / 64, 16]: a group's total at lanes 0 and 4; [rows]

    FewRows(const bf16* x, long rows, long inputs) {
        const long count = rows * inputs;
        upper = shared.of<int8_t>(2 * count + (count / 4 + rows) * sizeof(float));
        lower = upper + count;
        totals = reinterpret_cast<float*>(lower + count);
        scales = totals + count / 4;
        memset(totals, 0, count / 4 * sizeof(float));
        for (long row = 0; row < rows; row++) take(x + row * inputs, row, inputs);
    }

  private:
    void take(const bf16* x, long row, long inputs) {
        const float largest = most(x, inputs);
        scales[row] = largest / (127 * UPPER);
        const float factor = largest > 0 ? 1 / scales[row] : 0;
        for (long in = 0; in < inputs; in += LANES) {
            const Floats scaled = widen(x + in) * factor;
            const Halved two = halve(scaled);
            memcpy(upper + row * inputs + order(in), &two.upper, LANES);
            memcpy(lower + row * inputs + order(in), &two.lower, LANES);
            totals[row * inputs / 4 + in / DEEP * LANES + in % DEEP / DEPTH * 4] += sum(scaled);
        }
    }
};

template <int ROWS>
inline void dot_halves(const uint8_t* numbers, const bf16* scales, long inputs, const FewRows& x, float* sums) {
    const __m256i half = _mm256_set1_epi8(15);
    const __m512i groups = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1);
    __m512 found[ROWS];
    for (auto& one : found) one = _mm512_setzero_ps();
    for (long in = 0; in < inputs; in += DEEP) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers + in / 2));
        _mm_prefetch(numbers + in / 2 + AHEAD, _MM_HINT_T0);
        _mm_prefetch(scales + in / DEPTH * 2 + AHEAD / 8, _MM_HINT_T0);
        const __m256i low = _mm256_and_si256(both, half), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
        const __m512i weights = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        int64_t of_both;
        memcpy(&of_both, scales + in / DEPTH * 2, sizeof of_both);
        const __m512i of = _mm512_permutexvar_epi32(groups, _mm512_set1_epi64(of_both));
        const __m512 scale = (__m512)_mm512_slli_epi32(of, 16);
        const __m512 zero = (__m512)_mm512_and_si512(of, _mm512_set1_epi32(0xffff0000));
        const __m512 rest = _mm512_fnmadd_ps(scale, _mm512_set1_ps(8), zero);
        for (long row = 0; row < ROWS; row++) {
            const long at = row * inputs + in;
            __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, _mm512_loadu_si512(x.upper + at));
            sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 7), weights, _mm512_loadu_si512(x.lower + at));
            found[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, found[row]);
            found[row] = _mm512_fmadd_ps(rest, _mm512_loadu_ps(x.totals + at / 4), found[row]);
        }
    }
    for (long row = 0; row < ROWS; row++) sums[row * LANES] = _mm512_reduce_add_ps(found[row]);
}

void product_of_halves(const bf16* x, long rows, const Matrix& matrix, const Result& result) {
    const FewRows few(x, rows, matrix.inputs);
    const long inputs = matrix.inputs;
    auto one = [&](long group) {
        const long first = start_of(group, matrix.outputs);
        alignas(64) float sums[FEW_ROWS * LANES];
        for (long output = 0; output < LANES; output++) {
            const auto* numbers = static_cast<const uint8_t*>(matrix.numbers) + (first + output) * inputs / 2;
            const bf16* scales = matrix.scales + (first + output) * inputs / DEPTH * 2;
            switch (rows) {
                case 1: dot_halves<1>(numbers, scales, inputs, few, sums + output); break;
                case 2: dot_halves<2>(numbers, scales, inputs, few, sums + output); break;
                case 3: dot_halves<3>(numbers, scales, inputs, few, sums + output); break;
                case 4: dot_halves<4>(numbers, scales, inputs, few, sums + output); break;
            }
        }
        for (long row = 0; row < rows; row++)
            result.put(row, first, load<Floats>(sums + row * LANES) * few.scales[row]);
    };
    share(groups(matrix.outputs), [&](long group, long last) {
        for (; group < last; group++) one(group);
    });
}
#endif
#endif

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
#if defined(TILES)
#if defined(__AMX_INT8__)
    const bool deep = tiles && matrix.inputs % DEEP == 0;
    if (deep && matrix.bits == 8) return product_of_bytes(x, rows, matrix, result);
    if (deep && matrix.bits == 4 && rows <= FEW_ROWS) return product_of_halves(x, rows, matrix, result);
#endif
    if (tiles) return product_by_tiles(x, rows, matrix, result);
#else
    (void)tiles;
#endif
    product_by_rows(x, rows, matrix, result);
}

// --- attention -----------------------------------------------------------------------------------------------------

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

void adapters(const bf16* x, long rows, long inputs, const bf16* down, const bf16* up, const bf16* strengths, long width,
              long members, const int64_t* ends, bf16* y, long outputs) {
    float* low = shared.of<float>(rows * width * members);
    share(rows * width, [&](long task, long last) {
        for (; task < last; task++) {
            const long row = task / width, column = task % width;
            const float strength = number(strengths[row * width + column]);
            for (long member = 0; strength != 0 && member < members; member++) {
                Floats products = {};
                const bf16* from = down + (column * members + member) * inputs;
                for (long i = 0; i < inputs; i += LANES) products += widen(from + i) * widen(x + row * inputs + i);
                low[(row * members + member) * width + column] = sum(products) * strength;
            }
        }
    });
    const long pieces = rows == 1 ? 8 : 1;  // of a row's outputs, for the threads to share
    share(rows * pieces, [&](long task, long end) {
        auto* used = own.of<int32_t>(width);
        for (; task < end; task++) {
            const long row = task / pieces, vectors = outputs / LANES;
            long count = 0, member = 0;
            for (long column = 0; column < width; column++)
                if (number(strengths[row * width + column]) != 0) used[count++] = column;
            const long last = (task % pieces + 1) * vectors / pieces * LANES;
            for (long i = task % pieces * vectors / pieces * LANES; count && i < last; i += LANES) {
                while (i >= ends[member]) member++;
                Floats found = widen(y + row * outputs + i);
                const float* of = low + (row * members + member) * width;
                for (long one = 0; one < count; one++)
                    found += of[used[one]] * widen(up + (used[one] * members + member) * outputs + i);
                narrow(found, y + row * outputs + i);
            }
        }
    });
}

// Layers of the base that read the same input, with their adapters: see `adapters`.
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

// All layers of a step: x [rows, hidden] goes in after the embedding and comes out before the last norm. `memories`: of
// each layer's keys and values; the rest is as for `attention` and `adapters`, and `width` 0 where there are none.
void layers(const Base* base, bf16* x, long rows, long written, const int64_t* positions, const int64_t* where,
            bf16* const* memories, long pool, const int64_t* starts, const int64_t* lengths, const bf16* strengths,
            long width) {
    const Layer& first = base->layers[0];
    const long hidden = first.qkv.matrix.inputs, inner = first.down.matrix.inputs, size = base->size;
    const long heads_width = first.qkv.matrix.outputs, heads = base->query_heads, group = base->kv_heads;
    static thread_local Memory memory;
    bf16* normed = memory.of<bf16>(rows * (2 * hidden + heads_width + heads * size + 3 * inner));
    bf16 *added = normed + rows * hidden, *qkv = added + rows * hidden, *attended = qkv + rows * heads_width;
    bf16 *gate_up = attended + rows * heads * size, *gated_up = gate_up + rows * 2 * inner;

    auto linear = [&](const bf16* from, const Linear& of, bf16* to) {
        multiply(from, rows, of.matrix, Result{to, of.bias, of.matrix.outputs, false}, base->tiles != 0);
        if (width)
            adapters(from, rows, of.matrix.inputs, of.down, of.up, strengths, width, of.members, of.ends, to,
                     of.matrix.outputs);
    };
    auto add = [&] {
        for (long i = 0; i < rows * hidden; i += LANES) narrow(widen(x + i) + widen(added + i), x + i);
    };
    for (long number = 0; number < base->count; number++) {
        const Layer& layer = base->layers[number];
        rms_norm(x, rows, hidden, layer.input_norm, base->eps, normed);
        linear(normed, layer.qkv, qkv);
        for (long row = 0; layer.query_norm && row < rows; row++) {
            bf16* of = qkv + row * heads_width;
            rms_norm(of, heads, size, layer.query_norm, base->eps, of);
            rms_norm(of + heads * size, group, size, layer.key_norm, base->eps, of + heads * size);
        }
        attention(qkv, rows, written, heads, group, size, base->cos, base->sin, positions, where, memories[number],
                  pool, starts, lengths, 1.0f / __builtin_sqrtf(size), attended);
        linear(attended, layer.out, added);
        add();
        rms_norm(x, rows, hidden, layer.mlp_norm, base->eps, normed);
        linear(normed, layer.gate_up, gate_up);
        gated(gate_up, rows, inner, gated_up);
        linear(gated_up, layer.down, added);
        add();
    }
}

}  // extern "C"
