/* The gradients of attention in bfloat16, for training on a processor with AMX.

   With weights P = 2^(q k^T scale - logs), gradients G of the messages O = P v, and D_i = sum_c G_ic O_ic:

       dv = P^T G,   dS = P (G v^T - D) scale,   dq = dS k,   dk = dS^T q

   A head at a time, in blocks of keys and queries that stay in the first-level cache. Weights are computed anew, transposed:
   a row of a block is a key, its columns are queries. So P^T and dS^T are the left-hand tiles of dv and dk as they are, logs
   and D are vectors along the columns, and dq is gathered transposed. */

#include "amx.h"

#define KEYS 64     /* of a block; a multiple of 32 */
#define QUERIES 128 /* of a block; a multiple of 32 */

typedef struct {
    _Alignas(64) uint16_t weights[KEYS * QUERIES];    /* P^T */
    _Alignas(64) uint16_t gradients[KEYS * QUERIES];  /* dS^T */
    _Alignas(64) uint32_t pairs[KEYS / 2 * QUERIES];  /* dS^T again, two keys interleaved: the right-hand tiles of dq */
    _Alignas(64) float scores[2][32 * 32], products[2][32 * 32]; /* k q^T and v G^T */
} Block;

typedef struct { /* of a head; what is beyond the last row is zero */
    uint16_t *keys, *values;              /* rows */
    uint16_t *channels;                   /* of the keys: transposed */
    uint32_t *queries, *gradients;        /* G and q as `pack_keys` lays them out */
    uint32_t *query_pairs, *gradient_pairs; /* as `pack_values` does */
    float *logs, *shares;                 /* logs, D */
    float *dq, *dk, *dv;                  /* dq: transposed */
} Head;

static void copy_rows(const uint16_t *x, size_t stride, size_t n, size_t c, uint16_t *out) {
    for (size_t i = 0; i < n; i++) memcpy(out + i * c, x + i * stride, 2 * c);
    memset(out + n * c, 0, 2 * (up(n, 32) - n) * c);
}

/* out: c rows of up(n, 32) numbers. */
static void transpose_rows(const uint16_t *x, size_t stride, size_t n, size_t c, uint16_t *out) {
    const size_t width = up(n, 32);
    for (size_t j = 0; j < c; j++) {
        for (size_t i = 0; i < n; i++) out[j * width + i] = x[i * stride + j];
        for (size_t i = n; i < width; i++) out[j * width + i] = 0;
    }
}

/* P^T and dS^T of 32 keys and 32 queries, from the products of the tiles. */
static inline void weigh(const float *scores, const float *products, const float *logs, const float *shares, __m512 scale,
                         uint16_t *weights, uint16_t *gradients, uint32_t *pairs) {
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                                 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512 none = _mm512_setzero_ps(); /* a weight is at most 1; that of a key that is not there could be anything */
    const __m512 logs_a = _mm512_load_ps(logs), logs_b = _mm512_load_ps(logs + 16);
    const __m512 shares_a = _mm512_load_ps(shares), shares_b = _mm512_load_ps(shares + 16);
    for (size_t key = 0; key < 32; key += 2) {
        __m512 a[2], b[2];
        for (size_t i = 0; i < 2; i++) {
            const float *score = scores + (key + i) * 32, *product = products + (key + i) * 32;
            __m512 p_a = power_of_two(_mm512_min_ps(_mm512_fmsub_ps(_mm512_load_ps(score), scale, logs_a), none));
            __m512 p_b = power_of_two(_mm512_min_ps(_mm512_fmsub_ps(_mm512_load_ps(score + 16), scale, logs_b), none));
            a[i] = _mm512_mul_ps(p_a, _mm512_sub_ps(_mm512_load_ps(product), shares_a));
            b[i] = _mm512_mul_ps(p_b, _mm512_sub_ps(_mm512_load_ps(product + 16), shares_b));
            _mm512_store_si512(weights + (key + i) * QUERIES, (__m512i)_mm512_cvtne2ps_pbh(p_b, p_a));
            _mm512_store_si512(gradients + (key + i) * QUERIES, (__m512i)_mm512_cvtne2ps_pbh(b[i], a[i]));
        }
        uint32_t *pair = pairs + key / 2 * QUERIES;
        _mm512_store_si512(pair, _mm512_permutexvar_epi16(interleaved, (__m512i)_mm512_cvtne2ps_pbh(a[1], a[0])));
        _mm512_store_si512(pair + 16, _mm512_permutexvar_epi16(interleaved, (__m512i)_mm512_cvtne2ps_pbh(b[1], b[0])));
    }
}

/* Keys from `key` on against queries from `query` on. */
static void add_block(const Head *h, size_t key, size_t query, size_t keys, size_t queries, size_t m, size_t n, size_t c,
                      __m512 scale, Block *block) {
    const size_t across = queries / 32, all = keys / 32 * across;
    for (size_t i = 0; i <= all; i++) {
        if (i < all) { /* the tile unit works on the next ones while the last are weighed */
            size_t row = key + i / across * 32, column = query + i % across * 32;
            score(h->keys + row * c, c, h->queries + column * (c / 2), c, block->scores[i % 2]);
            score(h->values + row * c, c, h->gradients + column * (c / 2), c, block->products[i % 2]);
        }
        if (i) {
            size_t last = i - 1, row = last / across * 32, column = last % across * 32, at = row * QUERIES + column;
            weigh(block->scores[last % 2], block->products[last % 2], h->logs + query + column, h->shares + query + column,
                  scale, block->weights + at, block->gradients + at, block->pairs + row / 2 * QUERIES + column);
        }
    }
    for (size_t channel = 0; channel < c; channel += 32) {
        for (size_t row = 0; row < keys; row += 32) {
            const size_t out = (key + row) * c + channel, right = (query * c + channel * 32) / 2;
            multiply(h->dv + out, 4 * c, block->weights + row * QUERIES, 2 * QUERIES, h->gradient_pairs + right, 64, 256,
                       16 * c, queries / 32, 1);
            multiply(h->dk + out, 4 * c, block->gradients + row * QUERIES, 2 * QUERIES, h->query_pairs + right, 64, 256,
                       16 * c, queries / 32, 1);
        }
        for (size_t column = 0; column < queries; column += 32)
            multiply(h->dq + channel * n + query + column, 4 * n, h->channels + channel * m + key, 2 * m,
                       block->pairs + column, 4 * QUERIES, 16, 16 * QUERIES, keys / 32, 1);
    }
}

/* Memory of a head, a piece at a time, each on a cache line of its own. */
static void *piece(char **memory, size_t bytes) {
    void *here = *memory;
    *memory += up(bytes, 64);
    return here;
}

/* n, m: multiples of 32. */
static Head head_in(char **memory, size_t n, size_t m, size_t c) {
    Head h;
    h.keys = piece(memory, 2 * m * c), h.values = piece(memory, 2 * m * c), h.channels = piece(memory, 2 * m * c);
    h.queries = piece(memory, 2 * n * c), h.gradients = piece(memory, 2 * n * c);
    h.query_pairs = piece(memory, 2 * n * c), h.gradient_pairs = piece(memory, 2 * n * c);
    h.logs = piece(memory, 4 * n), h.shares = piece(memory, 4 * n);
    h.dq = piece(memory, 4 * n * c), h.dk = piece(memory, 4 * m * c), h.dv = piece(memory, 4 * m * c);
    return h;
}

/* q: rows of heads x c channels, q_stride numbers apart, and so k and v; out, gradient, dq, dk, dv: rows close together.
   Row i of a segment belongs to the segments before it. segments: how many rows each has; an even number of them where
   `partners`, so that keys are those of the neighbour in a pair. logs: of each segment, as `lumiglue_attention` writes them.
   Returns 0, or 2 where memory is short. */
int lumiglue_attention_backward(const uint16_t *q, const uint16_t *k, const uint16_t *v, const uint16_t *out,
                                const uint16_t *gradient, const float *logs, uint16_t *dq, uint16_t *dk, uint16_t *dv,
                                int64_t q_stride, int64_t k_stride, int64_t v_stride, const int64_t *segments, int64_t count,
                                int64_t heads, int64_t c, float scale, int partners, int threads) {
    const __m512 to_powers = _mm512_set1_ps(scale * 1.44269504f), scales = _mm512_set1_ps(scale);
    const size_t row = heads * c;
    int64_t longest = 0;
    for (int64_t i = 0; i < count; i++) longest = segments[i] > longest ? segments[i] : longest;
    const size_t most = up(longest, 32);
    char *sizes = NULL;
    head_in(&sizes, most, most, c);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        Tiles before;
        take_tiles(&before);
        Block *block = aligned_alloc(64, up(sizeof(Block), 64));
        char *memory = aligned_alloc(64, up((size_t)sizes + 64, 64));
        if (!block || !memory) failed |= 2;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < count * heads; task++) {
            if (!block || !memory) continue;
            const int64_t segment = task / heads, head = task % heads, other = partners ? segment ^ 1 : segment;
            const int64_t rows = segments[segment], columns = segments[other];
            int64_t from = 0, to = 0;
            for (int64_t i = 0; i < segment; i++) from += segments[i];
            for (int64_t i = 0; i < other; i++) to += segments[i];
            const size_t n = up(rows, 32), m = up(columns, 32), first = from * row + head * c, partner = to * row + head * c;
            char *rest = memory;
            Head h = head_in(&rest, n, m, c);
            copy_rows(k + to * k_stride + head * c, k_stride, columns, c, h.keys);
            copy_rows(v + to * v_stride + head * c, v_stride, columns, c, h.values);
            transpose_rows(k + to * k_stride + head * c, k_stride, columns, c, h.channels);
            pack_keys(q + from * q_stride + head * c, q_stride, rows, c, h.queries);
            pack_keys(gradient + first, row, rows, c, h.gradients);
            pack_values(q + from * q_stride + head * c, q_stride, rows, c, h.query_pairs);
            pack_values(gradient + first, row, rows, c, h.gradient_pairs);
            for (size_t i = 0; i < n; i++) {
                h.logs[i] = 1e30f, h.shares[i] = 0; /* a row that is not there: no weights */
                if (i >= (size_t)rows) continue;
                __m512 sum = _mm512_setzero_ps();
                for (int64_t j = 0; j < c; j += 16)
                    sum = _mm512_fmadd_ps(widened(out + first + i * row + j), widened(gradient + first + i * row + j), sum);
                h.logs[i] = logs[from * heads + head * rows + i], h.shares[i] = _mm512_reduce_add_ps(sum);
            }
            memset(h.dq, 0, 4 * n * c);
            memset(h.dk, 0, 4 * m * c);
            memset(h.dv, 0, 4 * m * c);
            for (size_t key = 0; key < m; key += KEYS)
                for (size_t query = 0; query < n; query += QUERIES)
                    add_block(&h, key, query, m - key < KEYS ? m - key : KEYS, n - query < QUERIES ? n - query : QUERIES, m, n, c,
                              to_powers, block);
            for (int64_t i = 0; i < columns; i++) {
                for (int64_t j = 0; j < c; j += 16) {
                    rounded(dv + partner + i * row + j, _mm512_load_ps(h.dv + i * c + j));
                    rounded(dk + partner + i * row + j, _mm512_mul_ps(_mm512_load_ps(h.dk + i * c + j), scales));
                }
            }
            const __m512i down = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                                    _mm512_set1_epi32((int)n));
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < c; j += 16)
                    rounded(dq + first + i * row + j, _mm512_mul_ps(_mm512_i32gather_ps(down, h.dq + j * n + i, 4), scales));
        }
        free(block);
        free(memory);
        return_tiles(&before);
    }
    return failed;
}
