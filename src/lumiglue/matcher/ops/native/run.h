// What a layer's tasks share: the blocks of rows, and where in the workspace everything is.
#pragma once

#include "layer.h"
#include "vector.h"

#include <cmath>
#include <vector>

namespace LUMIGLUE_ISA {
namespace {

constexpr int64_t ROWS = 3 * NR;          // tokens of a task; whole panels
constexpr int64_t KEYS = 16 * NR;         // keys at a time in self-attention
constexpr int64_t BOTH = 12 * NR;         // columns at a time in cross-attention
constexpr int64_t CHUNK = 5 * ROWS;       // rows of a task of it, and
constexpr int64_t MOST_SPLITS = 8;        // how many tasks at most share a head of a pair
constexpr float SAFE = 60.0f;             // e^60 = 1e26 and e^-60 are far from what float32 holds even when summed and multiplied

struct Segment {
    int64_t tokens, first, keys; // real ones, the first one's number, and keys before it with the padding of panels
};

// q, k, v of one attention unit.
struct Heads {
    float *q, *k, *v, *q_norms, *k_norms;
};

struct Run {
    const Batch &batch;
    int64_t d, heads, c, wide; // wide: c in whole panels
    int64_t tokens = 0, keys = 0, partials = 0;
    std::vector<Segment> segments;
    struct Block { int64_t segment, row, rows; };
    std::vector<Block> blocks;
    struct Pair { int64_t splits, partials; };
    std::vector<Pair> pairs;
    struct Split { int64_t pair, head, split; };
    std::vector<Split> splits;
    Heads inside{}, across{};
    float *messages, *partial;

    explicit Run(const Batch &given) : batch(given), d(given.d), heads(given.heads), c(d / heads), wide(up(c, NR)) {
        for (int64_t s = 0; s < 2 * batch.pairs; s++) {
            int64_t n = batch.lengths[s];
            segments.push_back({n, tokens, keys});
            for (int64_t row = 0; row < n; row += ROWS) blocks.push_back({s, row, std::min(ROWS, n - row)});
            tokens += n;
            keys += up(n, NR);
        }
        for (int64_t p = 0; p < batch.pairs; p++) {
            int64_t n = batch.lengths[2 * p], m = batch.lengths[2 * p + 1];
            int64_t count = n && m ? std::min(MOST_SPLITS, (n + CHUNK - 1) / CHUNK) : 0;
            pairs.push_back({count, partials});
            partials += count * heads * (m * c + 2 * up(m, NR));
            for (int64_t i = 0; i < count * heads; i++) splits.push_back({p, i / count, i % count});
        }
        float *next = batch.workspace;
        auto take = [&next](int64_t size) { float *taken = next; next += up(size, 16); return taken; };
        for (Heads *unit : {&inside, &across}) {
            *unit = {take(tokens * d), take(keys * d), take(keys * heads * wide), take(heads * tokens), take(heads * tokens)};
        }
        messages = take(tokens * d);
        partial = take(partials);
        size = next - batch.workspace;
    }
    int64_t size;

    float *keys_of(const Heads &h, const Segment &s, int64_t head) const {
        return h.k + s.keys * d + head * up(s.tokens, NR) * c;
    }
    float *values_of(const Heads &h, const Segment &s, int64_t head) const {
        return h.v + s.keys * heads * wide + head * up(s.tokens, NR) * wide;
    }
    // Partial messages to image 1 of a pair, m x c, the sums of their weights, m, and the maxima, m.
    float *partial_of(int64_t pair, int64_t head, int64_t split, int64_t m) const {
        return partial + pairs[pair].partials + (head * pairs[pair].splits + split) * (m * c + 2 * up(m, NR));
    }

    void layer(const Unit &self, const Unit &cross);
    void project(const Block &block, const Unit &unit, const float *x, const Heads &to, bool turned, float *scratch) const;
    void attend(const Block &block, float *xm, float *scratch) const;
    void attend_both(const Split &task, float *scratch) const;
    void gather(const Block &block, float *xm) const;
    void feed_forward(const Block &block, const Unit &unit, const float *x, float *xm, float *scratch) const;
};

} // namespace
} // namespace LUMIGLUE_ISA
