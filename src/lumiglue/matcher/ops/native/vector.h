// Vectors by the compiler's extensions, so that one source serves AVX2, AVX-512 and NEON; and the product of small blocks.
//
// LUMIGLUE_ISA names the instruction set, whose flags this is compiled with. LUMIGLUE_BYTES is the size of a register.
// A right-hand matrix is packed in panels of NR columns: the K rows of a panel are NR numbers each, close together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace LUMIGLUE_ISA {

typedef float Vector __attribute__((vector_size(LUMIGLUE_BYTES)));
typedef int32_t Integers __attribute__((vector_size(LUMIGLUE_BYTES)));
typedef float Unaligned __attribute__((vector_size(LUMIGLUE_BYTES), aligned(4), may_alias));

constexpr int64_t W = LUMIGLUE_BYTES / 4;        // numbers of a register
constexpr int64_t NV = LUMIGLUE_BYTES == 16 ? 4 : 2; // registers of a row of a tile
constexpr int64_t NR = NV * W;                   // columns of a tile
constexpr int64_t MR = LUMIGLUE_BYTES == 64 ? 12 : 6; // rows of a tile: MR x NV sums, NV + 1 operands fill the registers
constexpr int64_t KC = 128; // rows of a panel at a time: in the first-level cache, and longer sums would lose digits

inline Vector load(const float *p) { return *(const Unaligned *)p; }
inline void store(float *p, Vector x) { *(Unaligned *)p = x; }
inline Vector all(float x) { return x - Vector{}; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

inline float sum(Vector x) {
    float total = 0;
    for (int64_t i = 0; i < W; i++) total += x[i];
    return total;
}

inline float dot(const float *a, const float *b, int64_t n) {
    Vector sums{};
    int64_t i = 0;
    for (; i + W <= n; i += W) sums += load(a + i) * load(b + i);
    float total = sum(sums);
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

// e^x for x below 88, to 2e-7 of itself; below -87 it is e^-87. x = n ln 2 + r: n goes into the exponent; e^r, with |r| at most
// ln 2 / 2, is the polynomial of degree 5 with the smallest relative error.
inline Vector exponential(Vector x) {
    const float magic = 12582912.0f; // 1.5 x 2^23: adding it rounds to a whole number
    x = larger(x, all(-87.0f));
    Vector shifted = x * 1.44269504f + magic, n = shifted - magic;
    Vector r = x - n * 0.693359375f + n * 2.12194440e-4f; // ln 2 in two parts, of which the first has few digits
    Vector y = r * 8.29031318e-3f + 4.18979377e-2f;
    y = y * r + 1.66676357e-1f;
    y = y * r + 4.99991506e-1f;
    y = y * r + 9.99999702e-1f;
    y = y * r + 1.0f;
    return (Vector)((Integers)y + ((Integers)shifted << 23));
}

// x (1 + erf(x / sqrt 2)) / 2, with erf z = 1 - e^(-z^2) P(1 / (1 + 0.4 z)); P fitted, to 4e-8.
inline Vector gelu(Vector x) {
    Vector half = x * 0.5f, positive = larger(half, -half);
    Vector z = positive * 1.41421356f;
    Vector t = 1.0f / (z * 0.4f + 1.0f);
    Vector y = t * -0.197523266f + 0.698004544f;
    y = y * t - 0.352872163f;
    y = y * t + 0.453775257f;
    y = y * t + 0.167610928f;
    y = (y * t + 0.231004715f) * t;
    Vector erf = 1.0f - y * exponential(-z * z); // of |x|
    return positive * erf + half;
}

// M rows of C (= or +=) A B + bias, by one panel of B. A's element (i, p) is a[i lda + p], or transposed a[p lda + i].
template <int64_t M, bool TRANSPOSED>
__attribute__((noinline)) void tile(const float *a, int64_t lda, const float *b, int64_t k, float *c, int64_t ldc,
                                    const float *bias, bool add) {
    Vector sums[M][NV];
#pragma GCC unroll 16
    for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int64_t v = 0; v < NV; v++) sums[i][v] = Vector{};
    for (int64_t p = 0; p < k; p++, b += NR) {
        Vector row[NV];
#pragma GCC unroll 4
        for (int64_t v = 0; v < NV; v++) row[v] = load(b + v * W);
#pragma GCC unroll 16
        for (int64_t i = 0; i < M; i++) {
            float value = TRANSPOSED ? a[p * lda + i] : a[i * lda + p];
#pragma GCC unroll 4
            for (int64_t v = 0; v < NV; v++) sums[i][v] += value * row[v];
        }
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 4
        for (int64_t v = 0; v < NV; v++) {
            float *out = c + i * ldc + v * W;
            Vector value = sums[i][v];
            if (bias) value += load(bias + v * W);
            if (add) value += load(out);
            store(out, value);
        }
}

template <int64_t M, bool TRANSPOSED>
inline void some_rows(int64_t rows, const float *a, int64_t lda, const float *b, int64_t k, float *c, int64_t ldc,
                      const float *bias, bool add) {
    if constexpr (M > 0) {
        if (rows == M) tile<M, TRANSPOSED>(a, lda, b, k, c, ldc, bias, add);
        else some_rows<M - 1, TRANSPOSED>(rows, a, lda, b, k, c, ldc, bias, add);
    }
}

// C (= or +=) A B + bias. A: rows x k; B: packed, panels `panel` numbers apart; bias: padded to whole panels, or null.
template <bool TRANSPOSED = false>
void product(const float *a, int64_t lda, int64_t rows, int64_t k, const float *b, int64_t panel, int64_t columns, float *c,
             int64_t ldc, const float *bias, bool add) {
    for (int64_t first = 0; first < k; first += KC) {
        int64_t depth = std::min(KC, k - first);
        const float *left = TRANSPOSED ? a + first * lda : a + first;
        bool adds = add || first;
        for (int64_t j = 0; j < columns; j += NR) {
            const float *right = b + j / NR * panel + first * NR, *offset = bias && !first ? bias + j : nullptr;
            int64_t width = std::min(NR, columns - j);
            for (int64_t i = 0; i < rows; i += MR) {
                int64_t here = std::min(MR, rows - i);
                const float *top = TRANSPOSED ? left + i : left + i * lda;
                float *out = c + i * ldc + j;
                if (width == NR) {
                    some_rows<MR, TRANSPOSED>(here, top, lda, right, depth, out, ldc, offset, adds);
                } else { // the last panel has columns that C lacks
                    float whole[MR * NR];
                    some_rows<MR, TRANSPOSED>(here, top, lda, right, depth, whole, NR, offset, false);
                    for (int64_t r = 0; r < here; r++)
                        for (int64_t x = 0; x < width; x++)
                            out[r * ldc + x] = whole[r * NR + x] + (adds ? out[r * ldc + x] : 0.0f);
                }
            }
        }
    }
}

} // namespace LUMIGLUE_ISA
