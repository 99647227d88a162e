/*
 * A model as library.py hands it over. Python owns all memory that is pointed to.
 *
 * Shapes: D model width, F feed-forward neurons, V vocabulary, H query heads, G key and value heads, S head size.
 */

#pragma once

#include <stdint.h>

enum { SILU, GELU, GELU_TANH, RELU };

/* ---- What step.py hands over; it owns all memory pointed to. ---- */

/* No norm if weight is NULL. */
typedef struct {
    const float *weight, *bias;
    int64_t width;
    float eps;
    int32_t centred;
} Norm;

/* How a matrix holds its numbers. FLOAT32 and BFLOAT16: as they are. INT8: whole numbers, times a scale for each row. */
enum { FLOAT32, BFLOAT16, INT8, FORMATS };

/*
 * codes: rows of ``columns`` numbers in a format, ``stride`` bytes from one to the next; NULL where there is no matrix.
 * scales: of each row; NULL where the format has none.
 */
typedef struct {
    char *codes;
    float *scales;
    int64_t rows, columns, stride, format;
} Matrix;

/* bias may be NULL. */
typedef struct {
    Matrix matrix;
    float *bias;
} Projection;

/*
 * cosines, sines: (pairs,), written at the beginning of each step.
 * interleaved: pair i is elements 2i and 2i + 1 of a head; otherwise elements i and i + pairs.
 */
typedef struct {
    const float *frequencies;
    float *cosines, *sines;
    int64_t pairs;
    double scaling;
    int64_t interleaved;
} Rotary;

/*
 * gate: (F, D), what the activation function is applied to. up: (F, D), what it is multiplied by; no matrix if nothing.
 * contract: (F, D), one row a neuron; its bias (D,).
 * thresholds: (F,), what the activation function must exceed, in size, for a neuron to act; or NULL, and all do.
 * resting: (F,), what stands for its activation otherwise, which the contracting projection's bias has in it.
 */
typedef struct {
    Projection gate, up, contract;
    const float *thresholds, *resting;
} FeedForward;

/* window 0: all positions. keys, values: (G, capacity, S). */
typedef struct {
    Norm before_attention, query_norm, key_norm, after_attention, before_feed_forward, after_feed_forward;
    Projection query_key_value, output;
    FeedForward feed_forward;
    const Rotary *rotary;
    int64_t window;
    void *keys, *values;
    int64_t capacity;
} Layer;

/*
 * A cap of 0 is none.
 * residual_scale: factor on what attention and FF block add to x. logit_divisor: of the logits, before any cap.
 * query_growth: queries are multiplied by 1 + query_growth ln(1 + floor(position / query_context)).
 */
typedef struct {
    Matrix embedding, positions;
    Projection head;
    Norm final_norm;
    const Layer *layers;
    Rotary *rotaries;
    int64_t layer_count, rotary_count;
    int64_t width, heads, kv_heads, head_size;
    double embedding_scale, residual_scale, scale, query_growth, score_cap, logit_divisor, logit_cap;
    int64_t query_context, activation;
    /* Of keys and values: FLOAT32 or BFLOAT16. */
    int64_t cache_format;
} Model;
