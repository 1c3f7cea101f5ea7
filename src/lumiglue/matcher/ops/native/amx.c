/* What a layer spends its time in, in bfloat16 on a processor with AMX: attention, rotation, LayerNorm with GELU.

   Attention is softmax(q k^T scale) v, a head at a time: keys and values are laid out once as the tile unit reads them; then
   each 32 queries meet the keys in blocks that stay in the first-level cache. One offset serves all rows in place of each
   row's maximum (as in exponent.py), so that sums and messages need no correction from block to block; a row that this cannot
   serve makes the call return 1, and its caller computes the whole in another way. */

#include "amx.h"

#include <sys/syscall.h>
#include <unistd.h>

#define ROWS 32      /* queries at a time: two tiles of 16 rows */
#define KEYS 256     /* keys at a time */
#define MOST 128     /* channels of a head, at most; a multiple of 32 */
#define LARGEST 86.0f /* in powers of two: 2^86 = 1e26, far from float32's largest even when summed and multiplied */
#define SMALLEST 1e-30f

/* Asks Linux for the tile registers. 0 where it grants them. */
int lumiglue_init(void) { return (int)syscall(SYS_arch_prctl, 0x1023, 18); }

/* Largest norm of n rows of c channels. */
static float largest_norm(const uint16_t *x, size_t stride, size_t n, size_t c) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) {
        __m512 sum = _mm512_setzero_ps();
        for (size_t j = 0; j < c; j += 16) {
            __m512 value = widened(x + i * stride + j);
            sum = _mm512_fmadd_ps(value, value, sum);
        }
        float square = _mm512_reduce_add_ps(sum);
        if (isnan(square)) return square;
        if (square > largest) largest = square;
    }
    return sqrtf(largest);
}

typedef struct {
    _Alignas(64) float scores[2][ROWS * 32];
    _Alignas(64) uint16_t weights[ROWS * KEYS];
    _Alignas(64) float messages[ROWS * MOST];
    _Alignas(64) uint16_t queries[ROWS * MOST];
} Scratch;

/* 32 queries (fewer at the end: `rows`) against all keys of a head. Returns whether a row's sum fell too low. logs: see
   `lumiglue_attention`. */
static int attend(const uint16_t *q, size_t q_stride, size_t rows, const uint32_t *keys, const uint32_t *values, size_t m,
                  size_t c, float scale, float offset, uint16_t *out, size_t out_stride, float *logs, Scratch *s) {
    const __m512 scales = _mm512_set1_ps(scale), offsets = _mm512_set1_ps(-offset);
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
    __m512 sums[ROWS], exact[ROWS];
    for (size_t i = 0; i < ROWS; i++) sums[i] = exact[i] = _mm512_setzero_ps();
    const uint16_t *queries = q;
    size_t stride = q_stride;
    if (rows < ROWS) { /* rows that are not there are zero */
        memset(s->queries, 0, sizeof s->queries);
        for (size_t i = 0; i < rows; i++) memcpy(s->queries + i * c, q + i * q_stride, 2 * c);
        queries = s->queries;
        stride = c;
    }
    score(queries, stride, keys, c, s->scores[0]);
    for (size_t first = 0; first < m; first += KEYS) {
        size_t here = up(m - first < KEYS ? m - first : KEYS, 32);
        for (size_t key = first; key < first + here; key += 32) {
            if (key + 32 < m) score(queries, stride, keys + (key + 32) * (c / 2), c, s->scores[(key / 32 + 1) % 2]);
            const float *scores = s->scores[key / 32 % 2]; /* the tile unit works on the next ones meanwhile */
            uint16_t *weights = s->weights + (key - first);
            uint32_t real = key + 32 > m ? 0xFFFFFFFFu >> (32 - (m - key)) : 0xFFFFFFFFu; /* what is beyond has no weight */
            for (size_t i = 0; i < ROWS; i++) {
                __m512 a = power_of_two(_mm512_fmadd_ps(_mm512_load_ps(scores + i * 32), scales, offsets));
                __m512 b = power_of_two(_mm512_fmadd_ps(_mm512_load_ps(scores + i * 32 + 16), scales, offsets));
                __m512bh both = (__m512bh)_mm512_maskz_mov_epi16(real, (__m512i)_mm512_cvtne2ps_pbh(b, a));
                sums[i] = _mm512_dpbf16_ps(sums[i], both, ones); /* of rounded weights: values are weighed with those */
                if (logs) exact[i] = _mm512_add_ps(exact[i], _mm512_mask_add_ps(_mm512_maskz_mov_ps(real, a), real >> 16, a, b));
                _mm512_store_si512(weights + i * KEYS, (__m512i)both);
            }
        }
        for (size_t channel = 0; channel < c; channel += 32)
            multiply(s->messages + channel, 4 * c, s->weights, 2 * KEYS, values + (first * c + channel * 32) / 2, 64, 256, 16 * c,
                     here / 32, first > 0);
    }
    int low = 0;
    for (size_t i = 0; i < rows; i++) {
        float sum = _mm512_reduce_add_ps(sums[i]);
        low |= !(sum >= SMALLEST && sum < INFINITY);
        if (logs) logs[i] = offset + log2f(_mm512_reduce_add_ps(exact[i]));
        __m512 inverse = _mm512_set1_ps(1.0f / sum);
        for (size_t channel = 0; channel < c; channel += 32) {
            const float *message = s->messages + i * c + channel;
            __m512 a = _mm512_mul_ps(_mm512_load_ps(message), inverse), b = _mm512_mul_ps(_mm512_load_ps(message + 16), inverse);
            _mm512_storeu_si512(out + i * out_stride + channel, (__m512i)_mm512_cvtne2ps_pbh(b, a));
        }
    }
    return low;
}

/* q: n rows of heads x c channels, stride numbers apart; k and v: m rows; out: n rows of heads x c, close together; logs:
   null, or for each head and row the logarithm to base 2 of the sum that its weights are divided by, for the backward pass.
   c: 32, 64, 96 or 128. Returns 0, 1 where the result is not to be used, 2 where memory is short. */
int lumiglue_attention(const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out, float *logs,
                       int64_t q_stride, int64_t k_stride, int64_t v_stride, int64_t n, int64_t m, int64_t heads, int64_t c, float scale,
                       int threads) {
    const float to_powers = scale * 1.44269504f;
    const size_t packed = up(m, 32) * c / 2, blocks = (n + ROWS - 1) / ROWS;
    uint32_t *keys = aligned_alloc(64, up(4 * packed * heads, 64)), *values = aligned_alloc(64, up(4 * packed * heads, 64));
    float *offsets = malloc(heads * sizeof *offsets);
    int failed = keys && values && offsets ? 0 : 2;
    if (!failed) {
#pragma omp parallel num_threads(threads) reduction(| : failed)
        {
            Tiles before;
            take_tiles(&before);
            Scratch *scratch = aligned_alloc(64, up(sizeof(Scratch), 64));
            if (!scratch) failed |= 2;
#pragma omp for schedule(dynamic)
            for (int64_t head = 0; head < heads; head++) {
                pack_keys(k + head * c, k_stride, m, c, keys + head * packed);
                pack_values(v + head * c, v_stride, m, c, values + head * packed);
                float bound = largest_norm(q + head * c, q_stride, n, c) * largest_norm(k + head * c, k_stride, m, c);
                offsets[head] = fmaxf(0, bound * to_powers - LARGEST);
                if (!isfinite(bound)) failed |= 1;
            }
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < heads * (int64_t)blocks; task++) {
                if (!scratch) continue;
                size_t head = task / blocks, row = task % blocks * ROWS, rows = n - row < ROWS ? n - row : ROWS;
                failed |= attend(q + row * q_stride + head * c, q_stride, rows, keys + head * packed, values + head * packed, m, c,
                                 to_powers, offsets[head], out + (row * heads + head) * c, heads * c,
                                 logs ? logs + head * n + row : NULL, scratch);
            }
            free(scratch);
            return_tiles(&before);
        }
    }
    free(keys);
    free(values);
    free(offsets);
    return failed;
}

/* Turns plane p, the channels (p, p + c / 2), of each head by its row's angle. x: n rows of heads x c, stride numbers apart;
   cosine, sine: n x c / 2; out: n x heads x c. c: a multiple of 32. */
void lumiglue_rotate(const uint16_t *x, int64_t stride, const float *cosine, const float *sine, uint16_t *out, int64_t n,
                     int64_t heads, int64_t c, int threads) {
    const int64_t planes = c / 2;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        for (int64_t p = 0; p < planes; p += 16) {
            __m512 cosines = _mm512_loadu_ps(cosine + i * planes + p), sines = _mm512_loadu_ps(sine + i * planes + p);
            for (int64_t head = 0; head < heads; head++) {
                const uint16_t *from = x + i * stride + head * c + p;
                uint16_t *to = out + (i * heads + head) * c + p;
                __m512 a = widened(from), b = widened(from + planes);
                rounded(to, _mm512_fmsub_ps(a, cosines, _mm512_mul_ps(b, sines)));
                rounded(to + planes, _mm512_fmadd_ps(b, cosines, _mm512_mul_ps(a, sines)));
            }
        }
    }
}

/* x (1 + erf(x / sqrt 2)) / 2 to 1e-4 x; erf by Abramowitz and Stegun 7.1.25. */
static inline __m512 gelu(__m512 x) {
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 t = _mm512_rcp14_ps(_mm512_fmadd_ps(z, _mm512_set1_ps(0.47047f), _mm512_set1_ps(1.0f)));
    __m512 y = _mm512_fmadd_ps(t, _mm512_set1_ps(0.7478556f), _mm512_set1_ps(-0.0958798f));
    y = _mm512_mul_ps(_mm512_fmadd_ps(y, t, _mm512_set1_ps(0.3480242f)), t);
    __m512 bell = power_of_two(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f)));
    __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    __m512 erf = _mm512_fnmadd_ps(y, bell, _mm512_set1_ps(1.0f)); /* of |x| */
    return _mm512_fmadd_ps(_mm512_abs_ps(half), erf, half);
}

/* GELU(LayerNorm(x)) in place; x: n x width, width a multiple of 16 and at most 1024. */
void lumiglue_norm_gelu(uint16_t *x, const uint16_t *weight, const uint16_t *bias, float epsilon, int64_t n, int64_t width,
                        int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        float row[1024] __attribute__((aligned(64)));
        uint16_t *values = x + i * width;
        __m512 sum = _mm512_setzero_ps(), squares = sum;
        for (int64_t j = 0; j < width; j += 16) {
            __m512 value = widened(values + j);
            _mm512_store_ps(row + j, value);
            sum = _mm512_add_ps(sum, value);
        }
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
        for (int64_t j = 0; j < width; j += 16) {
            __m512 centred = _mm512_sub_ps(_mm512_load_ps(row + j), mean);
            squares = _mm512_fmadd_ps(centred, centred, squares);
        }
        __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / width + epsilon));
        for (int64_t j = 0; j < width; j += 16) {
            __m512 centred = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(row + j), mean), scale);
            rounded(values + j, gelu(_mm512_fmadd_ps(centred, widened(weight + j), widened(bias + j))));
        }
    }
}
