/* What the kernels for processors with AMX share: the layouts that the tile unit reads, bfloat16, powers of two. */

#ifndef LUMIGLUE_AMX_H
#define LUMIGLUE_AMX_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((packed, aligned(64))) Tiles;

/* Takes the tile registers for this thread, all of 16 rows of 64 bytes. Other libraries may count on theirs: `before`. */
static inline void take_tiles(Tiles *before) {
    Tiles mine = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) mine.bytes[tile] = 64, mine.rows[tile] = 16;
    _tile_storeconfig(before);
    _tile_loadconfig(&mine);
}

static inline void return_tiles(const Tiles *before) {
    if (before->palette) _tile_loadconfig(before);
    else _tile_release();
}

/* 16 numbers. */
static inline __m512 widened(const uint16_t *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

static inline void rounded(uint16_t *out, __m512 x) { _mm256_storeu_si256((__m256i *)out, (__m256i)_mm512_cvtneps_pbh(x)); }

static inline size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Keys for the right-hand tiles of q k^T: for each 16 keys, c / 2 rows of 16 pairs of channels; keys beyond m are zero. */
static void pack_keys(const uint16_t *k, size_t stride, size_t m, size_t c, uint32_t *out) {
    for (size_t first = 0; first < up(m, 32); first += 16) {
        for (size_t key = 0; key < 16; key++) {
            uint32_t *column = out + first * (c / 2) + key;
            if (first + key < m) {
                const uint32_t *row = (const uint32_t *)(k + (first + key) * stride);
                for (size_t pair = 0; pair < c / 2; pair++) column[pair * 16] = row[pair];
            } else {
                for (size_t pair = 0; pair < c / 2; pair++) column[pair * 16] = 0;
            }
        }
    }
}

/* Values for the right-hand tiles of p v: for each 32 keys and 16 channels, 16 rows of 16 pairs of keys. */
static void pack_values(const uint16_t *v, size_t stride, size_t m, size_t c, uint32_t *out) {
    for (size_t first = 0; first < up(m, 32); first += 32) {
        for (size_t channel = 0; channel < c; channel += 16) {
            uint32_t *tile = out + (first * c + channel * 32) / 2;
            for (size_t pair = 0; pair < 16; pair++) {
                size_t key = first + 2 * pair;
                __m256i even = _mm256_setzero_si256(), odd = even;
                if (key < m) even = _mm256_loadu_si256((const __m256i *)(v + key * stride + channel));
                if (key + 1 < m) odd = _mm256_loadu_si256((const __m256i *)(v + (key + 1) * stride + channel));
                __m512i low = _mm512_cvtepu16_epi32(even), high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
                _mm512_storeu_si512(tile + pair * 16, _mm512_or_si512(low, high));
            }
        }
    }
}

/* 2^x, to 1e-4 of itself: a twentieth of what bfloat16 rounds. 2^whole 2^part, the part below 1 by a cubic polynomial. */
static inline __m512 power_of_two(__m512 x) {
    __m512 part = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    __m512 y = _mm512_set1_ps(0.07802452f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.22606716f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69583354f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.99992522f));
    return _mm512_scalef_ps(y, x);
}

/* out, 32 x 32 numbers, = (add: +=) left right, over `steps` times 32 channels. Strides in bytes; left: rows of bfloat16;
   right: tiles of 16 rows of 16 pairs, the second `beside` 32-bit numbers after the first, the next step `step` after it. */
static inline void multiply(float *out, size_t out_stride, const uint16_t *left, size_t left_stride, const uint32_t *right,
                            size_t right_stride, size_t beside, size_t step, size_t steps, int add) {
    float *below = out + 16 * out_stride / 4;
    const uint16_t *left_below = left + 16 * left_stride / 2;
    if (add) {
        _tile_loadd(0, out, out_stride);
        _tile_loadd(1, out + 16, out_stride);
        _tile_loadd(2, below, out_stride);
        _tile_loadd(3, below + 16, out_stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t i = 0; i < steps; i++) {
        _tile_loadd(4, left + 32 * i, left_stride);
        _tile_loadd(6, right + i * step, right_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + i * step + beside, right_stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left_below + 32 * i, left_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, out_stride);
    _tile_stored(1, out + 16, out_stride);
    _tile_stored(2, below, out_stride);
    _tile_stored(3, below + 16, out_stride);
}

/* Products of 32 rows of c channels with 32 keys that `pack_keys` laid out. scores: 32 x 32. */
static inline void score(const uint16_t *queries, size_t stride, const uint32_t *keys, size_t c, float *scores) {
    multiply(scores, 128, queries, 2 * stride, keys, 64, 8 * c, 256, c / 32, 0);
}

#endif
