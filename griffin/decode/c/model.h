/*
 * A model in the form in which library.py passes it. Python owns all memory that the pointers point to.
 *
 * Shapes: D model width, F feed-forward neurons, V vocabulary, H query heads, G key and value heads, S head size.
 */

#pragma once

#include <stdint.h>

enum { SILU, GELU, GELU_TANH, RELU };

/* Most tokens of a pass. */
#define MOST_TOKENS 16

/* ---- The structures that step.py passes. ---- */

/* If weight is NULL, there is no norm. */
typedef struct {
    const float *weight, *bias;
    int64_t width;
    float eps;
    int32_t centred;
} Norm;

/*
 * The format of a matrix's numbers. FLOAT32, BFLOAT16, FLOAT16: plain. INT8: whole numbers times a scale for each row.
 * GROUPED: codes of 4, 6 or 8 bits, times a scale for each group of neighbours (see Groups).
 */
enum { FLOAT32, BFLOAT16, FLOAT16, INT8, GROUPED4, GROUPED6, GROUPED8, FORMATS };

/*
 * A number is scale (code - zero) + minimum. ``size`` neighbours (16 or 32) share one scale and one minimum.
 *
 * Neighbours are in one row if rows are multiplied by x. They are in one column, in successive rows, if weighted rows
 * are summed. A record holds the scales of one row, or of one group of rows.
 * scales, minimums: their place in the first record. They are float16 (two bytes). If there are supers, they are int8
 *     (one byte) times a float16 for 256 numbers. minimums is NULL if there are none.
 * supers, super_minimums: their place in the first record of supers; NULL if there are none.
 * stride, super_stride: bytes from a record to the next.
 * bytes: the bytes of one scale.
 * neurons: for each row its number in the whole matrix, ascending; NULL if all rows are there.
 */
typedef struct {
    const char *scales, *minimums, *supers, *super_minimums;
    int64_t stride, super_stride, size, bytes;
    const int32_t *neurons;
    float zero;
} Groups;

/*
 * codes: rows of ``columns`` numbers in a format, ``stride`` bytes from one to the next; NULL if there is no matrix.
 * scales: one for each row; NULL if the format has none.
 */
typedef struct {
    char *codes;
    float *scales;
    int64_t rows, columns, stride, format;
    Groups groups;
} Matrix;

/* bias may be NULL. */
typedef struct {
    Matrix matrix;
    float *bias;
} Projection;

/*
 * cosines, sines: (MOST_TOKENS, pairs), written at the beginning of each pass.
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
 * The thresholds with which each token picks the inputs and neurons of an FF block; see griffin/thresholds.py.
 *
 * gate: (D, F), the gate's matrix by input; factors: (F,), of its columns, or NULL.
 * means, input_limits: (D,); means is NULL if a token reads everything.
 * offsets, gate_limits, resting, output_limits: (F,). gate_limits is NULL in a block without a gate.
 */
typedef struct {
    Matrix gate;
    const float *factors, *means, *input_limits, *offsets, *gate_limits, *resting, *output_limits;
} Thresholds;

/*
 * gate: (F, D), the activation function's matrix. up: (F, D), the matrix of its factor; no matrix if there is none.
 * contract: (F, D), one row a neuron; its bias (D,). With thresholds, the bias is the block's output at rest.
 */
typedef struct {
    Projection gate, up, contract;
    Thresholds thresholds;
} FeedForward;

/* window 0: all positions. keys, values: (G, capacity, S). */
typedef struct {
    Norm before_attention, query_norm, key_norm, after_attention, before_feed_forward, after_feed_forward;
    /* Queries, keys and values: one product, or up to three whose outputs follow each other. */
    Projection query_key_value[3], output;
    FeedForward feed_forward;
    const Rotary *rotary;
    int64_t window;
    void *keys, *values;
    int64_t capacity;
} Layer;

/*
 * Memory for the FF activations of a pass, layer by layer and token by token. x: the block's input (D,). gate: the
 * input of the activation function. up: the factor on its value. z: the input of the contracting projection, (F,) each.
 * x is NULL if they are not needed.
 */
typedef struct {
    float *x, *gate, *up, *z;
} Observed;

/*
 * A cap of 0 means no cap.
 * residual_scale: factor on the outputs of attention and FF block. logit_divisor: divides the logits, before any cap.
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
    /* Format of keys and values: FLOAT32, BFLOAT16 or FLOAT16. */
    int64_t cache_format;
} Model;
