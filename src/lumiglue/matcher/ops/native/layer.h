// One layer of LightGlue in float32.
#pragma once

#include <cstdint>

struct Unit { // weights packed in panels of NR columns, biases padded to whole panels; see native_layers.py
    const float *project, *project_bias; // d to [q k v], or to [qk v]
    const float *first, *first_bias;     // [x | attended] to 2 d: the projection of the message is multiplied into it
    const float *norm, *norm_bias;
    const float *second, *second_bias; // 2 d to d
    float epsilon;
};

struct Batch {
    const int64_t *lengths; // tokens of the 2 x pairs images
    int64_t pairs, d, heads;
    const float *x;              // tokens x d
    const float *cosine, *sine;  // tokens x d / heads / 2
    float *out;                  // tokens x d
    float *workspace;
    int threads;
};
