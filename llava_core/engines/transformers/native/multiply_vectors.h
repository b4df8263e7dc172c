/* Products of 32 rows in vectors of 512 bits (AVX512-BF16), for processors without tiles. */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static void begin_products(void) {}
static void end_products(void) {}

/* A pair of inputs of one row, for all 16 outputs. */
static inline __m512bh pair_of(const bf16 *a)
{
    int32_t both;
    memcpy(&both, a, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

/* `count` rows, a constant where this is inlined, by 16 + 16 outputs, all sums in registers. Few rows have two sums for each
 * output, of even and of odd pairs: one alone would wait for itself. */
static inline __attribute__((always_inline)) void multiply_rows(const int count, const bf16 *a, int64_t lda, const bf16 *b0,
                                                                const bf16 *b1, int64_t tiles, float *c)
{
    const int sums = count <= 4 ? 2 : 1;
    __m512 low[12], high[12];
    for (int i = 0; i < count * sums; i++) low[i] = high[i] = _mm512_setzero_ps();
    for (int64_t k = 0; k < tiles; k++)
        for (int64_t pair = 0; pair < 16; pair += 2)
            for (int i = 0; i < 2; i++) {
                const __m512bh w0 = (__m512bh)_mm512_loadu_si512(b0 + 512 * k + 32 * (pair + i));
                const __m512bh w1 = (__m512bh)_mm512_loadu_si512(b1 + 512 * k + 32 * (pair + i));
                for (int r = 0; r < count; r++) {
                    const __m512bh both = pair_of(a + r * lda + 32 * k + 2 * (pair + i));
                    const int sum = sums == 2 ? 2 * r + i : r;
                    low[sum] = _mm512_dpbf16_ps(low[sum], w0, both);
                    high[sum] = _mm512_dpbf16_ps(high[sum], w1, both);
                }
            }
    for (int r = 0; r < count; r++) {
        _mm512_store_ps(c + 32 * r, sums == 2 ? _mm512_add_ps(low[2 * r], low[2 * r + 1]) : low[r]);
        _mm512_store_ps(c + 32 * r + 16, sums == 2 ? _mm512_add_ps(high[2 * r], high[2 * r + 1]) : high[r]);
    }
}

/* Up to 32 rows by 16 + 16 outputs: c is (32, 32). `tiles` = inputs / 32 tiles of each weight lie behind each other. */
static inline void multiply(const bf16 *a, int64_t lda, int64_t rows, const bf16 *b0, const bf16 *b1, int64_t tiles, float *c)
{
    for (int64_t row = 0; row < rows;) {
        const int64_t left = rows - row;
        const bf16 *from = a + row * lda;
        float *to = c + 32 * row;
        /* 32 rows in three shares, the weights read once for each. */
        switch (left > 12 ? (left > 22 ? 11 : (left + 1) / 2) : left) {
#define ROWS(count)                                      \
    case count:                                          \
        multiply_rows(count, from, lda, b0, b1, tiles, to); \
        row += count;                                    \
        break;
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#undef ROWS
        }
    }
}
