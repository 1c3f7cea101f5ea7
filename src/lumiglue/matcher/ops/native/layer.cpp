// One layer of LightGlue in float32: four rounds of tasks, each a block of rows that stays in a core's cache.
//
// 1. q, k, v of the self-attention, rotated.
// 2. Self-attention and its feed-forward part; then qk and v of the cross-attention.
// 3. Cross-attention: one product serves both directions.
// 4. The feed-forward part of the cross-attention.
//
// The blocks depend on the sizes of a pair alone, so results depend neither on the number of threads nor on the other pairs.

#include "attention.h"
#include "layer.h"
#include "pool.h"
#include "run.h"
#include "vector.h"

namespace LUMIGLUE_ISA {
namespace {

float *scratch_of(int64_t size) {
    thread_local std::vector<float> memory;
    if (static_cast<int64_t>(memory.size()) < size + 16) memory.resize(size + 16);
    return reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

// Turns plane p, the channels (p, p + c / 2), of each head by the token's angle.
void rotate(float *x, int64_t heads, int64_t c, const float *cosine, const float *sine) {
    for (int64_t half = c / 2, head = 0; head < heads; head++, x += c) {
        for (int64_t p = 0; p < half; p++) {
            float a = x[p], b = x[p + half];
            x[p] = a * cosine[p] - b * sine[p];
            x[p + half] = b * cosine[p] + a * sine[p];
        }
    }
}

// q / sqrt(c), k and v of a block of tokens: q by rows, k transposed and v as they are in panels.
void Run::project(const Block &block, const Unit &unit, const float *x, const Heads &to, bool turned, float *scratch) const {
    const Segment &segment = segments[block.segment];
    const int64_t parts = turned ? 3 : 2, wide_row = up(parts * d, NR), first = segment.first + block.row;
    const int64_t panel = up(segment.tokens, NR) * NR;
    const float sharpness = 1.0f / std::sqrt(static_cast<float>(c));
    product(x, d, block.rows, d, unit.project, d * NR, wide_row, scratch, wide_row, unit.project_bias, false);
    for (int64_t i = 0; i < block.rows; i++) {
        float *q = scratch + i * wide_row, *k = q + (parts - 2) * d;
        int64_t token = first + i;
        if (turned) rotate(q, 2 * heads, c, batch.cosine + token * c / 2, batch.sine + token * c / 2);
        for (int64_t j = 0; j < d; j++) to.q[token * d + j] = q[j] * sharpness;
        for (int64_t head = 0; head < heads; head++) {
            to.q_norms[head * tokens + token] = sharpness * std::sqrt(dot(q + head * c, q + head * c, c));
            to.k_norms[head * tokens + token] = std::sqrt(dot(k + head * c, k + head * c, c));
            const float *values = k + d + head * c;
            float *v = values_of(to, segment, head) + (block.row + i) * NR;
            for (int64_t j = 0; j < c; j += NR, v += panel)
                std::memcpy(v, values + j, std::min(NR, c - j) * sizeof(float));
        }
    }
    for (int64_t head = 0; head < heads; head++) {
        for (int64_t i = 0; i < block.rows; i += NR) {
            float *k = keys_of(to, segment, head) + (block.row + i) * c;
            const float *from = scratch + i * wide_row + (parts - 2) * d + head * c;
            int64_t here = std::min(NR, block.rows - i);
            for (int64_t j = 0; j < c; j++, k += NR, from++) {
                for (int64_t key = 0; key < here; key++) k[key] = from[key * wide_row];
                for (int64_t key = here; key < NR; key++) k[key] = 0.0f;
            }
        }
    }
}

// out = x + second(GELU(LayerNorm(first([x | message])))) of a block; the messages are in xm.
void Run::feed_forward(const Block &block, const Unit &unit, const float *x, float *xm, float *scratch) const {
    const int64_t first = segments[block.segment].first + block.row, hidden = 2 * d, wide_row = up(hidden, NR);
    float *out = batch.out + first * d;
    for (int64_t i = 0; i < block.rows; i++) std::memcpy(xm + i * hidden, x + (first + i) * d, d * sizeof(float));
    product(xm, hidden, block.rows, hidden, unit.first, hidden * NR, wide_row, scratch, wide_row, unit.first_bias, false);
    for (int64_t i = 0; i < block.rows; i++) {
        float *row = scratch + i * wide_row;
        Vector total{}, squares{};
        for (int64_t j = 0; j < hidden; j += W) total += load(row + j);
        const float mean = sum(total) / hidden;
        for (int64_t j = 0; j < hidden; j += W) {
            Vector centred = load(row + j) - mean;
            squares += centred * centred;
        }
        const float scale = 1.0f / std::sqrt(sum(squares) / hidden + unit.epsilon);
        for (int64_t j = 0; j < hidden; j += W) {
            Vector normal = (load(row + j) - mean) * scale;
            store(row + j, gelu(normal * load(unit.norm + j) + load(unit.norm_bias + j)));
        }
    }
    product(scratch, wide_row, block.rows, hidden, unit.second, hidden * NR, d, xm, d, unit.second_bias, false);
    for (int64_t i = 0; i < block.rows * d; i++) out[i] = x[first * d + i] + xm[i]; // added once, whole: x is larger
}

void Run::layer(const Unit &self, const Unit &cross) {
    const int64_t xm = ROWS * 2 * d, hidden = ROWS * up(3 * d, NR);
    const int64_t scores = ROWS * std::max(KEYS, 2 * BOTH);
    run_tasks(blocks.size(), batch.threads, [&](int64_t i) {
        const Segment &segment = segments[blocks[i].segment];
        project(blocks[i], self, batch.x + (segment.first + blocks[i].row) * d, inside, true, scratch_of(hidden));
    });
    run_tasks(blocks.size(), batch.threads, [&](int64_t i) {
        float *scratch = scratch_of(xm + hidden + scores);
        const Segment &segment = segments[blocks[i].segment];
        attend(blocks[i], scratch, scratch + xm);
        feed_forward(blocks[i], self, batch.x, scratch, scratch + xm);
        project(blocks[i], cross, batch.out + (segment.first + blocks[i].row) * d, across, false, scratch + xm);
    });
    run_tasks(splits.size(), batch.threads, [&](int64_t i) { attend_both(splits[i], scratch_of(scores)); });
    run_tasks(blocks.size(), batch.threads, [&](int64_t i) {
        float *scratch = scratch_of(xm + hidden);
        gather(blocks[i], scratch);
        feed_forward(blocks[i], cross, batch.out, scratch, scratch + xm);
    });
}

} // namespace

} // namespace LUMIGLUE_ISA

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Columns of a panel, in which weights are packed.
EXPORT int64_t lumiglue_panel() { return LUMIGLUE_ISA::NR; }

// Numbers that `workspace` has to hold.
EXPORT int64_t lumiglue_workspace(const Batch *batch) { return LUMIGLUE_ISA::Run(*batch).size; }

// batch->out: the states after the layer.
EXPORT void lumiglue_layer(const Unit *self, const Unit *cross, const Batch *batch) {
    LUMIGLUE_ISA::Run(*batch).layer(*self, *cross);
}
