// Attention inside an image, and between the two images of a pair.
//
// Softmax needs no maxima while |q| |k| is at most 60: e^s neither overflows nor vanishes then. So one exponential serves both
// directions of cross-attention. Beyond, each direction has its own, with the maximum so far of its rows or columns.
#pragma once

#include "run.h"

namespace LUMIGLUE_ISA {
namespace {

inline float largest(const float *x, int64_t n) {
    Vector most = all(-INFINITY);
    int64_t i = 0;
    for (; i + W <= n; i += W) most = larger(load(x + i), most);
    float found = -INFINITY;
    for (int64_t j = 0; j < W; j++) found = std::max(found, most[j]);
    for (; i < n; i++) found = std::max(found, x[i]);
    return found;
}

// e^(scores - offset) of `columns` numbers in place; returns their sum, and adds each to `totals` if that is not null.
inline float weigh(float *scores, int64_t columns, float offset, float *totals) {
    Vector total{};
    int64_t j = 0;
    for (; j + W <= columns; j += W) {
        Vector weights = exponential(load(scores + j) - offset);
        store(scores + j, weights);
        total += weights;
        if (totals) store(totals + j, load(totals + j) + weights);
    }
    float rest = 0;
    if (j < columns) {
        float last[W];
        store(last, exponential(load(scores + j) - offset));
        for (; j < columns; j++) {
            scores[j] = last[j % W];
            rest += last[j % W];
            if (totals) totals[j] += last[j % W];
        }
    }
    return sum(total) + rest;
}

// A row's maximum so far: returns by what its sum and its message shrink now that `columns` more scores are known.
inline float raise(const float *scores, int64_t columns, bool first, float &top) {
    float here = largest(scores, columns), before = top;
    top = first ? here : std::max(here, before);
    return first || top == before ? 1.0f : std::exp(before - top);
}

inline void scale(float *x, int64_t n, float by) {
    for (int64_t i = 0; i < n; i++) x[i] *= by;
}

// Messages from the block's own image into the right half of the rows of xm.
void Run::attend(const Block &block, float *xm, float *scratch) const {
    const Segment &segment = segments[block.segment];
    const int64_t n = segment.tokens, first = segment.first + block.row;
    for (int64_t head = 0; head < heads; head++) {
        const float *q = inside.q + first * d + head * c, *k = keys_of(inside, segment, head);
        const float *v = values_of(inside, segment, head), *norms = inside.q_norms + head * tokens + first;
        const float longest = largest(inside.k_norms + head * tokens + segment.first, n);
        float *out = xm + d + head * c, sums[ROWS] = {}, tops[ROWS] = {};
        for (int64_t key = 0; key < n; key += KEYS) {
            int64_t here = std::min(KEYS, n - key);
            product(q, d, block.rows, c, k + key * c, c * NR, up(here, NR), scratch, KEYS, nullptr, false);
            for (int64_t i = 0; i < block.rows; i++) {
                float *scores = scratch + i * KEYS;
                if (!(norms[i] * longest <= SAFE)) {
                    float shrink = raise(scores, here, key == 0, tops[i]);
                    if (shrink != 1.0f) scale(out + i * 2 * d, c, shrink), sums[i] *= shrink;
                }
                sums[i] += weigh(scores, here, tops[i], nullptr);
            }
            product(scratch, KEYS, block.rows, here, v + key * NR, up(n, NR) * NR, c, out, 2 * d, nullptr, key > 0);
        }
        for (int64_t i = 0; i < block.rows; i++) scale(out + i * 2 * d, c, 1.0f / sums[i]);
    }
}

// Of a block of scores, the weights by the columns' maxima so far; the columns' messages and sums so far shrink.
inline void weigh_columns(const float *scores, int64_t rows, int64_t columns, int64_t stride, bool first, float *weights,
                          float *messages, int64_t c, float *totals, float *tops) {
    for (int64_t j = 0; j < columns; j += W) {
        Vector before = first ? all(-INFINITY) : load(tops + j), top = before, total{};
        for (int64_t i = 0; i < rows; i++) top = larger(load(scores + i * stride + j), top);
        store(tops + j, top);
        if (!first) {
            for (int64_t key = 0; key < std::min(W, columns - j); key++) {
                if (top[key] == before[key]) continue;
                float shrink = std::exp(before[key] - top[key]);
                totals[j + key] *= shrink;
                scale(messages + (j + key) * c, c, shrink);
            }
            total = load(totals + j);
        }
        for (int64_t i = 0; i < rows; i++) {
            Vector weight = exponential(load(scores + i * stride + j) - top);
            store(weights + i * stride + j, weight);
            total += weight;
        }
        store(totals + j, total);
    }
}

// One head of a pair, some rows of image 0: their messages, and their part in the messages to image 1.
void Run::attend_both(const Split &task, float *scratch) const {
    const Segment &a = segments[2 * task.pair], &b = segments[2 * task.pair + 1];
    const int64_t count = pairs[task.pair].splits, m = b.tokens;
    const int64_t share = up((a.tokens + count - 1) / count, ROWS);
    const int64_t begin = std::min(task.split * share, a.tokens), end = std::min(begin + share, a.tokens);
    const float *k = keys_of(across, b, task.head), *v = values_of(across, b, task.head);
    const float *v_a = values_of(across, a, task.head);
    const bool shared = largest(across.q_norms + task.head * tokens + a.first, a.tokens) *
                            largest(across.k_norms + task.head * tokens + b.first, m) <= SAFE;
    float *received = partial_of(task.pair, task.head, task.split, m), *totals = received + m * c;
    float *column_tops = totals + up(m, NR), *by_columns = shared ? scratch : scratch + ROWS * BOTH;
    std::fill(totals, totals + m, 0.0f);
    std::fill(column_tops, column_tops + m, begin == end ? -INFINITY : 0.0f);
    if (begin == end) std::fill(received, received + m * c, 0.0f);
    for (int64_t chunk = begin; chunk < end; chunk += CHUNK) {
        int64_t until = std::min(chunk + CHUNK, end);
        float sums[CHUNK] = {}, tops[CHUNK] = {};
        const float *q = across.q + (a.first + chunk) * d + task.head * c;
        float *out = messages + (a.first + chunk) * d + task.head * c;
        for (int64_t key = 0; key < m; key += BOTH) {
            int64_t here = std::min(BOTH, m - key);
            for (int64_t row = chunk; row < until; row += ROWS) {
                int64_t rows = std::min(ROWS, until - row), at = row - chunk;
                product(q + at * d, d, rows, c, k + key * c, c * NR, up(here, NR), scratch, BOTH, nullptr, false);
                if (!shared) {
                    weigh_columns(scratch, rows, here, BOTH, row == begin, by_columns, received + key * c, c, totals + key,
                                  column_tops + key);
                }
                for (int64_t i = 0; i < rows; i++) {
                    float *scores = scratch + i * BOTH, shrink = 1.0f;
                    if (!shared) shrink = raise(scores, here, key == 0, tops[at + i]);
                    if (shrink != 1.0f) scale(out + (at + i) * d, c, shrink), sums[at + i] *= shrink;
                    sums[at + i] += weigh(scores, here, tops[at + i], shared ? totals + key : nullptr);
                }
                product(scratch, BOTH, rows, here, v + key * NR, up(m, NR) * NR, c, out + at * d, d, nullptr, key > 0);
                product<true>(by_columns, BOTH, here, rows, v_a + row * NR, up(a.tokens, NR) * NR, c, received + key * c, c,
                              nullptr, row > begin);
            }
        }
        for (int64_t i = 0; i < until - chunk; i++) scale(out + i * d, c, 1.0f / sums[i]);
    }
}

// The messages of cross-attention into the right half of the rows of xm.
void Run::gather(const Block &block, float *xm) const {
    const int64_t pair = block.segment / 2, count = pairs[pair].splits;
    const Segment &own = segments[block.segment];
    for (int64_t i = 0; i < block.rows; i++) {
        float *out = xm + i * 2 * d + d;
        int64_t token = own.first + block.row + i;
        if (!count) {
            std::fill(out, out + d, 0.0f);
        } else if (block.segment % 2 == 0) {
            std::memcpy(out, messages + token * d, d * sizeof(float));
        } else {
            for (int64_t head = 0; head < heads; head++, out += c) {
                const int64_t sums = own.tokens * c + block.row + i, tops = sums + up(own.tokens, NR);
                float top = -INFINITY, total = 0;
                for (int64_t split = 0; split < count; split++)
                    top = std::max(top, partial_of(pair, head, split, own.tokens)[tops]);
                std::fill(out, out + c, 0.0f);
                for (int64_t split = 0; split < count; split++) {
                    const float *received = partial_of(pair, head, split, own.tokens);
                    const float weight = std::exp(received[tops] - top), *message = received + (block.row + i) * c;
                    total += weight * received[sums];
                    for (int64_t j = 0; j < c; j++) out[j] += weight * message[j];
                }
                scale(out, c, 1.0f / total);
            }
        }
    }
}

} // namespace
} // namespace LUMIGLUE_ISA
