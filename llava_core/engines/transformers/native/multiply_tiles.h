/* Products of 32 rows in the processor's tiles (AMX). */
#pragma once

#include <immintrin.h>
#include <stdint.h>

/* Tiles 0 to 3 add up, 4 and 5 hold rows, 6 and 7 weights. */
static void begin_products(void)
{
    struct __attribute__((packed)) {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}

static void end_products(void) { _tile_release(); }

/* Up to 32 rows by 16 + 16 outputs: c is (32, 32). `tiles` = inputs / 32 tiles of each weight lie behind each other. Of
 * `a` as many rows are read as are a multiple of 16. */
static inline void multiply(const bf16 *a, int64_t lda, int64_t rows, const bf16 *b0, const bf16 *b1, int64_t tiles, float *c)
{
    _tile_zero(0);
    _tile_zero(1);
    if (rows > 16) {
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < tiles; k++) {
            _tile_loadd(6, b0 + 512 * k, 64);
            _tile_loadd(4, a + 32 * k, 2 * lda);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b1 + 512 * k, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + 16 * lda + 32 * k, 2 * lda);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, c + 16 * 32, 128);
        _tile_stored(3, c + 16 * 32 + 16, 128);
    } else {
        for (int64_t k = 0; k < tiles; k++) {
            _tile_loadd(6, b0 + 512 * k, 64);
            _tile_loadd(4, a + 32 * k, 2 * lda);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b1 + 512 * k, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + 16, 128);
}
