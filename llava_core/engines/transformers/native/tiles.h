/* Products and attention for the decoder and the vision tower, in the processor's tiles (AMX) or vectors (AVX512-BF16).
 *
 * Weights are packed once into the order in which the tiles read them: [outputs / 16][inputs / 32][16 pairs of inputs]
 * [16 outputs][2], so that a step of a few rows streams them from memory and a step of hundreds keeps the tiles busy.
 * Products take bfloat16 and add up in float32. Loops marked `omp for` are shared by the threads that come to them.
 */
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
#ifdef __AMX_BF16__
#include "multiply_tiles.h"
#else
#include "multiply_vectors.h"
#endif

enum { MOST_DIM = 256 };

/* Rows lie 64 bytes further apart than they are long: at whole pages apart, the rows of a tile would evict each other. */
static inline int64_t width(int64_t inputs) { return inputs + 32; }
static inline int64_t whole_tiles(int64_t tokens) { return (tokens + 31) / 32 * 32; }
static inline int64_t room(int64_t tokens) { return whole_tiles(tokens) + 32; }
static inline int64_t scores_of_thread(int64_t longest) { return (32 + 16) * room(longest); }

static inline __m512 to_float(const bf16 *from)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

static inline void to_bf16(bf16 *to, __m512 values)
{
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(values));
}

static inline __m512 exponential(__m512 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* 2 to the x for x of 0 and less, within 5e-5 of it: as exact as bfloat16 needs, in two thirds of the steps. */
static inline __m512 share_of(__m512 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.6181291e-3f); /* ln(2)^k / k! */
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* x * sigmoid(by * x) */
static inline __m512 times_sigmoid(__m512 x, float by)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_mul_ps(x, _mm512_set1_ps(-by)))));
}

enum { WRITE, ADD, GATE, SCORES, QUICK_GELU };

/* rows of `a` times packed weights of `outputs`, which threads share among themselves.
 * WRITE: to = product, bfloat16. ADD: to += product, float32. GATE: to = SiLU(product) * (a times `second`). QUICK_GELU:
 * to = product * sigmoid(1.702 product). SCORES: to = product, float32, where only the first `outputs` of what is padded
 * exist. A bias, if there is one, is part of the product; not of GATE's. */
static void product(int kind, const bf16 *a, int64_t lda, int64_t rows, int64_t inputs, int64_t outputs,
                    const bf16 *weights, const bf16 *second, const float *bias, void *to, int64_t ldt)
{
    const int64_t tiles = inputs / 32, panel = 512 * tiles;
    const int64_t wide = kind == GATE ? 16 : 32;
    const int64_t blocks = (outputs + wide - 1) / wide;
    float c[32 * 32] __attribute__((aligned(64)));
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        const bf16 *b0 = kind == GATE ? weights + panel * block : weights + panel * 2 * block;
        const bf16 *b1 = kind == GATE ? second + panel * block : b0 + panel;
        for (int64_t row = 0; row < rows; row += 32) {
            const int64_t here = rows - row < 32 ? rows - row : 32;
            multiply(a + row * lda, lda, here, b0, b1, tiles, c);
            for (int64_t r = 0; r < here; r++) {
                __m512 low = _mm512_load_ps(c + 32 * r), high = _mm512_load_ps(c + 32 * r + 16);
                const int64_t at = (row + r) * ldt + wide * block;
                if (bias) {
                    low = _mm512_add_ps(low, _mm512_loadu_ps(bias + wide * block));
                    high = _mm512_add_ps(high, _mm512_loadu_ps(bias + wide * block + 16));
                }
                if (kind == GATE) {
                    to_bf16((bf16 *)to + at, _mm512_mul_ps(times_sigmoid(low, 1.0f), high));
                } else if (kind == QUICK_GELU) {
                    to_bf16((bf16 *)to + at, times_sigmoid(low, 1.702f));
                    to_bf16((bf16 *)to + at + 16, times_sigmoid(high, 1.702f));
                } else if (kind == WRITE) {
                    to_bf16((bf16 *)to + at, low);
                    to_bf16((bf16 *)to + at + 16, high);
                } else if (kind == ADD) {
                    float *x = (float *)to + at;
                    _mm512_storeu_ps(x, _mm512_add_ps(_mm512_loadu_ps(x), low));
                    _mm512_storeu_ps(x + 16, _mm512_add_ps(_mm512_loadu_ps(x + 16), high));
                } else {
                    const int64_t left = outputs - wide * block;
                    float *x = (float *)to + at;
                    _mm512_mask_storeu_ps(x, left < 16 ? (1 << left) - 1 : 0xffff, low);
                    if (left > 16) _mm512_mask_storeu_ps(x + 16, left < 32 ? (1 << (left - 16)) - 1 : 0xffff, high);
                }
            }
        }
    }
}

static inline float scale_of(const float *x, int64_t count, float eps)
{
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    return 1.0f / sqrtf(_mm512_reduce_add_ps(sum) / count + eps);
}

static void norm(const float *x, const float *weight, int64_t hidden, float eps, bf16 *to)
{
    __m512 by = _mm512_set1_ps(scale_of(x, hidden, eps));
    for (int64_t i = 0; i < hidden; i += 16)
        to_bf16(to + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), by), _mm512_loadu_ps(weight + i)));
}

/* The first token that the row of `place` looks at; `window` 0: all that came before. */
static inline int64_t first_seen(int64_t place, int64_t window)
{
    return window && place + 1 > window ? place + 1 - window : 0;
}

/* 16 rows of 16 pairs become 16 pairs of 16 rows. */
static inline void transpose(__m512i row[16])
{
    __m512i other[16];
    for (int i = 0; i < 16; i += 2) {
        other[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            row[i + 2 * k] = _mm512_unpacklo_epi64(other[i + k], other[i + 2 + k]);
            row[i + 2 * k + 1] = _mm512_unpackhi_epi64(other[i + k], other[i + 2 + k]);
        }
    /* row[4 g + j] holds pairs j, 4 + j, 8 + j and 12 + j of rows 4 g to 4 g + 3: quarters are left to be exchanged. */
    for (int j = 0; j < 4; j++) {
        const __m512i low = _mm512_shuffle_i32x4(row[j], row[4 + j], 0x44), high = _mm512_shuffle_i32x4(row[j], row[4 + j], 0xee);
        const __m512i low2 = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0x44), high2 = _mm512_shuffle_i32x4(row[8 + j], row[12 + j], 0xee);
        other[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
        other[4 + j] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        other[8 + j] = _mm512_shuffle_i32x4(high, high2, 0x88);
        other[12 + j] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    memcpy(row, other, sizeof other);
}

/* Keys and values of one head from token `from` (a multiple of 32) to `end`, `stride` numbers apart, in the order of the
 * tiles; beyond the end they are zero. */
static void pack_head(const bf16 *keys, const bf16 *values, int64_t stride, int64_t from, int64_t end, int64_t dim,
                      bf16 *k_to, bf16 *v_to)
{
    const int64_t tokens = whole_tiles(end), tiles = dim / 32;
    for (int64_t token = from; token < tokens; token += 16)
        for (int64_t k = 0; k < tiles; k++) {
            bf16 *tile = k_to + (token / 16 * tiles + k) * 512;
            __m512i row[16];
            for (int64_t i = 0; i < 16; i++)
                row[i] = token + i < end ? _mm512_loadu_si512(keys + (token + i) * stride + 32 * k) : _mm512_setzero_si512();
            transpose(row);
            for (int64_t pair = 0; pair < 16; pair++) _mm512_storeu_si512(tile + 32 * pair, row[pair]);
        }
    for (int64_t token = from; token < tokens; token += 2) {
        const bf16 *even = values + token * stride, *odd = even + stride;
        for (int64_t block = 0; block < dim / 16; block++) {
            __m512i low = _mm512_setzero_si512(), high = low;
            if (token < end) low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(even + 16 * block)));
            if (token + 1 < end) high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(odd + 16 * block)));
            _mm512_storeu_si512(v_to + (block * (tokens / 32) + token / 32) * 512 + token % 32 * 16,
                                _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

/* Attention of up to 32 rows for one head over packed keys and values of `tokens`: scores, the shares of what is seen,
 * values. Row r sees up to token last + step * r, no further back than `window`. `scores` has rows of `lds`. */
static void look_block(const bf16 *queries, int64_t ldq, int64_t rows, const bf16 *keys, const bf16 *values,
                       int64_t tokens, int64_t dim, float scale, int64_t last, int64_t step, int64_t window,
                       float *scores, int64_t lds, bf16 *to, int64_t ldo)
{
    const int64_t tiles = dim / 32, from = first_seen(last, window) / 32 * 32;
    const int64_t span = whole_tiles(last + step * (rows - 1) + 1) - from;
    bf16 *shares = (bf16 *)(scores + 32 * lds);
    float totals[32], c[32 * 32] __attribute__((aligned(64)));
    bf16 query[32 * (MOST_DIM + 32)] __attribute__((aligned(64)));
    for (int64_t r = 0; r < rows; r++) memcpy(query + r * (dim + 32), queries + r * ldq, dim * sizeof(bf16));
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    /* Scores as powers of two, of which the shares are made. */
    const __m512 by = _mm512_set1_ps(scale * 1.44269504f), nothing = _mm512_set1_ps(-INFINITY);
    __m512 most[32];
    for (int64_t r = 0; r < rows; r++) most[r] = nothing;
    /* All rows see the tokens between the first that the last row sees and the last that the first row sees. */
    const int64_t all_from = first_seen(last + step * (rows - 1), window) - from, all_to = last - from;
    for (int64_t i = 0; i < span; i += 32) {
        const bf16 *b0 = keys + (from + i) / 16 * tiles * 512;
        multiply(query, dim + 32, rows, b0, b0 + tiles * 512, tiles, c);
        const int all = i >= all_from && i + 31 <= all_to;
        for (int64_t r = 0; r < rows; r++) {
            __m512 low = _mm512_mul_ps(_mm512_load_ps(c + 32 * r), by), high = _mm512_mul_ps(_mm512_load_ps(c + 32 * r + 16), by);
            if (!all) {
                const __m512i to = _mm512_set1_epi32(last + step * r - from - i);
                const __m512i begin = _mm512_set1_epi32(first_seen(last + step * r, window) - from - i);
                const __m512i next = _mm512_add_epi32(order, _mm512_set1_epi32(16));
                low = _mm512_mask_mov_ps(nothing, _mm512_cmple_epi32_mask(order, to) & _mm512_cmpge_epi32_mask(order, begin), low);
                high = _mm512_mask_mov_ps(nothing, _mm512_cmple_epi32_mask(next, to) & _mm512_cmpge_epi32_mask(next, begin), high);
            }
            most[r] = _mm512_max_ps(most[r], _mm512_max_ps(low, high));
            _mm512_storeu_ps(scores + r * lds + i, low);
            _mm512_storeu_ps(scores + r * lds + i + 16, high);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        const float *own = scores + r * lds;
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most[r]));
        __m512 total = _mm512_setzero_ps();
        for (int64_t i = 0; i < span; i += 16) {
            /* What is not seen counts 2 to the -126th: nothing beside the largest, which counts 1. */
            const __m512 e = share_of(_mm512_sub_ps(_mm512_loadu_ps(own + i), top));
            total = _mm512_add_ps(total, e);
            to_bf16(shares + r * lds + i, e);
        }
        totals[r] = 1.0f / _mm512_reduce_add_ps(total);
    }
    for (int64_t block = 0; block < dim / 32; block++) {
        const bf16 *b0 = values + (2 * block * (tokens / 32) + from / 32) * 512;
        multiply(shares, lds, rows, b0, b0 + tokens / 32 * 512, span / 32, c);
        for (int64_t r = 0; r < rows; r++) {
            const __m512 share = _mm512_set1_ps(totals[r]);
            to_bf16(to + r * ldo + 32 * block, _mm512_mul_ps(_mm512_load_ps(c + 32 * r), share));
            to_bf16(to + r * ldo + 32 * block + 16, _mm512_mul_ps(_mm512_load_ps(c + 32 * r + 16), share));
        }
    }
}

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#define THREADS omp_get_num_threads()
#else
#define THREAD 0
#define THREADS 1
#endif
