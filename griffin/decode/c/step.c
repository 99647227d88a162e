/*
 * One decode step of the common block (see weights.py), compiled: a token's id in, logits out. Or a pass: several
 * successive tokens, for which each weight is read once. A token's results have the same bits in both cases.
 *
 * Decoding one token reads every weight once, so the speed of memory is the limit. A core reads memory fastest as a
 * few ascending streams, so each product reads its rows in storage order, in several places at once. Kept neurons are
 * copied next to each other once for each request. If each token picks its neurons, rows are skipped in place: half of
 * the rows take 0.65 to 0.8 of the time of all. Weights are prefetched here, because the processor's own prefetching is
 * too late and restarts on each page.
 * Activations are fp32. For products with codes in groups they first become integers of 16 bits. Each matrix has its
 * own format. Keys and values are fp32, bfloat16 or float16.
 *
 * A team of threads decodes a token in four stages a layer, with a barrier after each. Every thread does the cheap work
 * (norms, the residual sum) for itself. In a pass this work is handed out token by token, with more barriers. Free
 * threads take the work in portions. But no sum depends on which thread computes it, nor on the number of threads:
 * results have the same bits for any size of the team.
 *
 * model.h: the model's structures. kernels.h: products, norms and functions, for each format and instruction set.
 * team.h: the threads. This file: the stages of a layer, and the opening and closing of a step.
 *
 * Shapes: D model width, F feed-forward neurons, V vocabulary, H query heads, G key and value heads, S head size.
 */

#define _GNU_SOURCE
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "model.h"
#include "team.h"

#define API __attribute__((visibility("default")))

/* The FF block is summed in this many parts, for any number of threads. */
#define CHUNKS 32
/* Positions whose scores are held at once. */
#define SCORES 128
/* The team shares the columns of a matrix in tiles of this many, and in portions of at least SMALLEST_TILES. */
#define TILE 128
#define SMALLEST_TILES 4
/* Portions of work have at least this size, so that streams from memory stay long. */
#define SMALLEST_PORTION_BYTES 16384

/* One token on its way through the layers. */
typedef struct {
    float *x, *normed, *change;
    /* The input of the current products. */
    Input input;
    /* If tokens pick: the inputs that this token reads. */
    List list;
} Token;

/* The memory of one thread. */
typedef struct {
    /* In a step, each thread has its own token. */
    Token token;
    float *room, *queries, *key, *value, *scores;
    /* The values of a chunk of neurons, for each token. */
    Outputs gate, up;
    /* If tokens pick: the neurons of a chunk that are read. */
    List list;
    /* The numbers of inputs and neurons that tokens have read, by stage. */
    int64_t reads[3];
} Scratch;

typedef struct {
    Team team;
    int threads;
    const Model *model;
    const Kernels *kernels;
    Scratch *scratch;
    void *memory;
    /* The tokens of a pass, shared by all threads. Also their inputs, in the form for products. */
    Token tokens[MOST_TOKENS];
    Input inputs[MOST_TOKENS];
    /* Shared, for each token: written in one stage, read in the next one. */
    Outputs query_key_value, attended, projected, given, partial_sums;
    const int64_t *ids;
    /* Position of the first token. */
    int64_t position;
    int count;
    /* Factors on the tokens' queries. */
    float query_scales[MOST_TOKENS];
    /* The logits of the last ``wanted`` tokens. */
    Outputs logits;
    int wanted;
    Observed observed;
    /* For each layer: all neurons, room for kept ones, and which ones are kept, one layer after the other. */
    const FeedForward *all, *kept;
    const int64_t *which;
} Step;

/* ---- Weights, rows and vectors. ---- */

/* Bytes of a row's numbers, without scales. */
static int64_t row_bytes(int64_t format, int64_t columns)
{
    return columns * code_bytes(format);
}

static void load_row(float *out, const Matrix *matrix, int64_t row)
{
    const char *codes = matrix->codes + row * matrix->stride;
    float scale = matrix->scales ? matrix->scales[row] : 1;
    for (int64_t i = 0; i < matrix->columns; i++)
        out[i] = is_grouped(matrix) ? load_grouped(matrix, row, i) : load_number(codes, i, matrix->format) * scale;
}

/* Rounded to the nearest value; ties go to the even one. */
static uint16_t to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t to_half(float value, int64_t format)
{
    return format == FLOAT16 ? to_float16(value) : to_bfloat16(value);
}

/* Write values into the cache. */
static void store(const Model *model, char *at, const float *values, int64_t count)
{
    if (model->cache_format == FLOAT32) {
        memcpy(at, values, (size_t)count * sizeof *values);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = to_half(values[i], model->cache_format);
        memcpy(at + 2 * i, &half, sizeof half);
    }
}

static void accumulate(float *sum, const float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] += values[i];
}

/* x += scale change */
static void add_change(const Model *model, float *x, const float *change)
{
    float scale = (float)model->residual_scale;
    for (int64_t i = 0; i < model->width; i++)
        x[i] += scale * change[i];
}

static const Format *format_of(const Step *step, const Matrix *matrix)
{
    return &step->kernels->formats[matrix->format];
}

static void dot_rows(
    const Step *step, Outputs out, const Projection *weights, int64_t first, int64_t behind, const Input *x, int tokens)
{
    const Matrix *matrix = &weights->matrix;
    format_of(step, matrix)->dot(out, matrix, first, behind - first, x, tokens);
    for (int t = 0; weights->bias && t < tokens; t++)
        accumulate(beyond(out, t, 0).at, weights->bias + first, behind - first);
}

/* Prepare a token's numbers for products with some matrices: also as integers, if any matrix is grouped. */
static void enter(const Step *step, Token *token, const float *x, const Projection *weights, int count)
{
    bool whole = false;
    for (int i = 0; i < count; i++)
        whole = whole || is_grouped(&weights[i].matrix);
    token->input.values = x;
    if (whole)
        step->kernels->make_whole(&token->input, weights->matrix.columns);
}

/* x itself if there is no norm. */
static const float *normed(const Step *step, const Norm *norm, const float *x, float *room)
{
    if (!norm->weight)
        return x;
    step->kernels->norm(room, x, norm);
    return room;
}

/* The place of a layer's observed numbers of one token, of this width. */
static float *observed_row(const Step *step, float *rows, const Layer *layer, int t, int64_t width)
{
    return rows + ((layer - step->model->layers) * step->count + t) * width;
}

/* Store the values of some neurons if they are observed. */
static void observe(
    const Step *step, float *rows, const Layer *layer, Outputs values, int64_t first, int64_t count)
{
    int64_t neurons = layer->feed_forward.gate.matrix.rows;
    for (int t = 0; rows && t < step->count; t++) {
        float *to = observed_row(step, rows, layer, t, neurons) + first;
        memcpy(to, beyond(values, t, 0).at, (size_t)count * sizeof *to);
    }
}

/* ---- Work that is done token by token. ---- */

/* Work on one token: it reads shared memory, and writes only to the token. */
typedef void Each(Step *step, const Layer *layer, Token *token, int t);

/* With one token, every thread does the work itself, without a barrier. Several tokens are shared by the threads. */
static void each(Step *step, const Layer *layer, Scratch *scratch, Each *what)
{
    if (step->count == 1) {
        what(step, layer, &scratch->token, 0);
        return;
    }
    int64_t t, behind;
    while (claim(&step->team, step->count, 1, &t, &behind))
        for (; t < behind; t++) {
            what(step, layer, &step->tokens[t], (int)t);
            step->inputs[t] = step->tokens[t].input;
        }
    barrier(&step->team);
}

/* The inputs of the products, for each token. */
static const Input *inputs_of(const Step *step, const Scratch *scratch)
{
    return step->count == 1 ? &scratch->token.input : step->inputs;
}

static void embed(Step *step, const Layer *layer, Token *token, int t)
{
    const Model *model = step->model;
    int64_t width = model->width;
    float *x = token->x;
    (void)layer;
    load_row(x, &model->embedding, step->ids[t]);
    for (int64_t i = 0; i < width; i++)
        x[i] *= (float)model->embedding_scale;
    const char *positions = model->positions.codes + (step->position + t) * model->positions.stride;
    for (int64_t i = 0; model->positions.codes && i < width; i++)
        x[i] += load_number(positions, i, model->positions.format);
}

static void enter_attention(Step *step, const Layer *layer, Token *token, int t)
{
    (void)t;
    const float *x = normed(step, &layer->before_attention, token->x, token->normed);
    enter(step, token, x, layer->query_key_value, 3);
}

static void embed_and_enter(Step *step, const Layer *layer, Token *token, int t)
{
    embed(step, layer, token, t);
    enter_attention(step, layer, token, t);
}

static void enter_output(Step *step, const Layer *layer, Token *token, int t)
{
    enter(step, token, beyond(step->attended, t, 0).at, &layer->output, 1);
}

static void enter_head(Step *step, const Layer *layer, Token *token, int t)
{
    (void)layer;
    (void)t;
    const Model *model = step->model;
    enter(step, token, normed(step, &model->final_norm, token->x, token->normed), &model->head, 1);
}

/* List the values whose distance from given others exceeds a limit: their numbers and distances. */
static void list_far(List *list, const float *values, const float *from, const float *limits, int64_t count)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        float distance = values[i] - from[i];
        list->rows[found] = (int32_t)i;
        list->z[found] = distance;
        /* No branch here, because the processor could not predict it. */
        found += fabsf(distance) > limits[i];
    }
    list->count = found;
}

/* Add the attention's output to x, which then enters the FF block. */
static void enter_feed_forward(Step *step, const Layer *layer, Token *token, int t)
{
    const Model *model = step->model;
    const FeedForward *feed_forward = &layer->feed_forward;
    const Thresholds *by = &feed_forward->thresholds;
    const float *projected = beyond(step->projected, t, 0).at;
    add_change(model, token->x, normed(step, &layer->after_attention, projected, token->normed));
    const float *x = normed(step, &layer->before_feed_forward, token->x, token->normed);
    const Projection expand[] = {feed_forward->gate, feed_forward->up};
    /* With thresholds, the gate is read by input. */
    enter(step, token, x, by->means ? &expand[1] : expand, by->means ? 1 : 2);
    if (by->means) {
        list_far(&token->list, x, by->means, by->input_limits, model->width);
        format_of(step, &by->gate)->plan(&token->list, &by->gate);
    }
    if (step->observed.x)
        memcpy(observed_row(step, step->observed.x, layer, t, model->width), x, (size_t)model->width * sizeof *x);
}

static int64_t chunk_count(int64_t neurons)
{
    return neurons < CHUNKS ? neurons : CHUNKS;
}

/* Add the FF block's output to x. */
static void leave_feed_forward(Step *step, const Layer *layer, Token *token, int t)
{
    const Projection *contract = &layer->feed_forward.contract;
    int64_t width = step->model->width;
    const float *sums = beyond(step->partial_sums, t, 0).at;
    if (contract->bias)
        memcpy(token->change, contract->bias, (size_t)width * sizeof *contract->bias);
    else
        memset(token->change, 0, (size_t)width * sizeof *token->change);
    for (int64_t chunk = 0; chunk < chunk_count(layer->feed_forward.gate.matrix.rows); chunk++)
        accumulate(token->change, sums + chunk * width, width);
    add_change(step->model, token->x, normed(step, &layer->after_feed_forward, token->change, token->normed));
}

static void leave_and_enter_next(Step *step, const Layer *layer, Token *token, int t)
{
    leave_feed_forward(step, layer, token, t);
    enter_attention(step, layer + 1, token, t);
}

static void leave_and_enter_head(Step *step, const Layer *layer, Token *token, int t)
{
    leave_feed_forward(step, layer, token, t);
    enter_head(step, layer, token, t);
}

/* ---- The stages. ---- */

static float query_scale(const Model *model, int64_t position)
{
    int64_t contexts = position / model->query_context;
    return (float)(model->scale * (1 + model->query_growth * log(1 + (double)contexts)));
}

static void turn_rotaries(const Model *model, int64_t position, int count)
{
    for (int64_t number = 0; number < model->rotary_count; number++) {
        Rotary *rotary = &model->rotaries[number];
        for (int64_t at = 0; at < count * rotary->pairs; at++) {
            float angle = rotary->frequencies[at % rotary->pairs] * (float)(position + at / rotary->pairs);
            rotary->cosines[at] = cosf(angle) * (float)rotary->scaling;
            rotary->sines[at] = sinf(angle) * (float)rotary->scaling;
        }
    }
}

/* Multiply the rows of some matrices by x, split over the team. */
static void project(Step *step, Outputs out, const Projection *weights, int count, const Scratch *scratch)
{
    const Input *input = inputs_of(step, scratch);
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / weights->matrix.stride, total = 0, first, behind;
    for (int i = 0; i < count; i++)
        total += weights[i].matrix.rows;
    while (claim(&step->team, total, smallest, &first, &behind)) {
        int64_t start = 0;
        for (int i = 0; i < count; start += weights[i++].matrix.rows) {
            int64_t own = first > start ? first - start : 0, rows = weights[i].matrix.rows;
            int64_t end = behind - start < rows ? behind - start : rows;
            if (own < end)
                dot_rows(step, beyond(out, 0, start + own), &weights[i], own, end, input, step->count);
        }
    }
}

static void turn_pair(float *first, float *second, float cosine, float sine)
{
    float x = *first, y = *second;
    *first = x * cosine - y * sine;
    *second = y * cosine + x * sine;
}

static void rotate(float *head, const Rotary *rotary, int t)
{
    const float *cosines = rotary->cosines + t * rotary->pairs, *sines = rotary->sines + t * rotary->pairs;
    if (rotary->interleaved) {
        for (int64_t i = 0; i < rotary->pairs; i++)
            turn_pair(head + 2 * i, head + 2 * i + 1, cosines[i], sines[i]);
        return;
    }
    float *mate = head + rotary->pairs;
    for (int64_t i = 0; i < rotary->pairs; i++)
        turn_pair(head + i, mate + i, cosines[i], sines[i]);
}

/* Norm and rotate one head of a token's queries or keys. heads: all of its kind, which one norm may cover. */
static void prepare_head(
    const Step *step, float *out, const float *heads, int64_t number, const Norm *norm, const Layer *layer, int t,
    float *room)
{
    int64_t size = step->model->head_size;
    const float *head = heads + number * size;
    if (norm->weight && norm->width == size) {
        step->kernels->norm(out, head, norm);
    } else if (norm->weight) {
        step->kernels->norm(room, heads, norm);
        memcpy(out, room + number * size, (size_t)size * sizeof *out);
    } else {
        memcpy(out, head, (size_t)size * sizeof *out);
    }
    if (layer->rotary)
        rotate(out, layer->rotary, t);
}

/* Softmax over positions, block by block. When a higher score appears, earlier sums are scaled down. */
typedef struct {
    const float *query;
    float *sum;
    float highest, total;
    /* The next position to look at. */
    int64_t next;
} Attention;

static void attend_block(
    const Step *step, Attention *attention, const Matrix *keys, const Matrix *values, int64_t first, int64_t count,
    float *scores)
{
    const Model *model = step->model;
    const Kernels *kernels = step->kernels;
    int64_t size = model->head_size;
    Input input = {.values = attention->query};
    format_of(step, keys)->dot((Outputs){scores, 0}, keys, first, count, &input, 1);
    if (model->score_cap != 0)
        kernels->cap(scores, count, (float)model->score_cap);
    float highest = attention->highest;
    for (int64_t i = 0; i < count; i++)
        highest = scores[i] > highest ? scores[i] : highest;
    float shrink = expf(attention->highest - highest);
    for (int64_t i = 0; i < size; i++)
        attention->sum[i] *= shrink;
    attention->total = attention->total * shrink + kernels->exponentials(scores, count, highest);
    attention->highest = highest;
    format_of(step, values)->add((Outputs){attention->sum, 0}, values, first, count, (Outputs){scores, 0}, 1);
}

/* Round one head's key or value as the cache will store it. */
static void round_head(const Model *model, float *head)
{
    for (int64_t i = 0; model->cache_format != FLOAT32 && i < model->head_size; i++)
        head[i] = from_half(to_half(head[i], model->cache_format), model->cache_format);
}

/* Prepare a token's key and value of a group of heads, as the cache will store them, in the thread's scratch. */
static void prepare_key_value(const Step *step, const Layer *layer, int64_t group, int t, const Scratch *scratch)
{
    const Model *model = step->model;
    int64_t size = model->head_size;
    const float *keys = beyond(step->query_key_value, t, model->heads * size).at;
    const float *values = keys + model->kv_heads * size;
    prepare_head(step, scratch->key, keys, group, &layer->key_norm, layer, t, scratch->room);
    memcpy(scratch->value, values + group * size, (size_t)size * sizeof *values);
    round_head(model, scratch->key);
    round_head(model, scratch->value);
}

/* One group's keys or values in the cache: a row for each position. */
static Matrix cached(const Step *step, const Layer *layer, void *cache, int64_t group)
{
    const Model *model = step->model;
    int64_t bytes = row_bytes(model->cache_format, model->head_size);
    return (Matrix){
        .codes = (char *)cache + group * layer->capacity * bytes, .rows = layer->capacity, .columns = model->head_size,
        .stride = bytes, .format = model->cache_format};
}

/* Write the result of ``prepare_key_value`` into the cache. */
static void store_key_value(const Step *step, const Layer *layer, int64_t group, int t, const Scratch *scratch)
{
    const Model *model = step->model;
    Matrix keys = cached(step, layer, layer->keys, group), values = cached(step, layer, layer->values, group);
    store(model, keys.codes + (step->position + t) * keys.stride, scratch->key, model->head_size);
    store(model, values.codes + (step->position + t) * values.stride, scratch->value, model->head_size);
}

/* Store the keys and values of all tokens of a pass, because later ones attend to earlier ones. */
static void store_all(Step *step, const Layer *layer, const Scratch *scratch)
{
    int64_t groups = step->model->kv_heads, at, behind;
    while (claim(&step->team, groups * step->count, 1, &at, &behind))
        for (; at < behind; at++) {
            prepare_key_value(step, layer, at % groups, (int)(at / groups), scratch);
            store_key_value(step, layer, at % groups, (int)(at / groups), scratch);
        }
    barrier(&step->team);
}

/* Begin one query head of one token, with the token's own key. */
static Attention begin_attention(const Step *step, const Layer *layer, int64_t head, int t, const Scratch *scratch)
{
    const Model *model = step->model;
    int64_t size = model->head_size, shared = model->heads / model->kv_heads, position = step->position + t;
    float *query = scratch->queries + t * size;
    const float *queries = beyond(step->query_key_value, t, 0).at;
    prepare_head(step, query, queries, head, &layer->query_norm, layer, t, scratch->room);
    for (int64_t i = 0; i < size; i++)
        query[i] *= step->query_scales[t];
    prepare_key_value(step, layer, head / shared, t, scratch);
    /* The first of the heads that share a key writes it; each head uses its own copy. */
    if (step->count == 1 && head % shared == 0)
        store_key_value(step, layer, head / shared, t, scratch);
    Attention attention = {query, beyond(step->attended, t, head * size).at, -FLT_MAX, 0, 0};
    if (layer->window && position >= layer->window)
        attention.next = position + 1 - layer->window;
    memset(attention.sum, 0, (size_t)size * sizeof *attention.sum);
    Matrix own_key = {.codes = (char *)scratch->key, .rows = 1, .columns = size, .format = FLOAT32};
    Matrix own_value = {.codes = (char *)scratch->value, .rows = 1, .columns = size, .format = FLOAT32};
    attend_block(step, &attention, &own_key, &own_value, 0, 1, scratch->scores);
    return attention;
}

/* One query head. All tokens use a block of positions before any uses the next one, so that memory is read once. */
static void attend_head(const Step *step, const Layer *layer, int64_t head, const Scratch *scratch)
{
    const Model *model = step->model;
    int64_t size = model->head_size, group = head / (model->heads / model->kv_heads);
    Matrix keys = cached(step, layer, layer->keys, group), values = cached(step, layer, layer->values, group);
    Attention attentions[MOST_TOKENS];
    for (int t = 0; t < step->count; t++)
        attentions[t] = begin_attention(step, layer, head, t, scratch);
    for (int left = step->count; left;) {
        left = 0;
        for (int t = 0; t < step->count; t++) {
            Attention *attention = &attentions[t];
            int64_t to_come = step->position + t - attention->next, count = to_come < SCORES ? to_come : SCORES;
            if (count > 0)
                attend_block(step, attention, &keys, &values, attention->next, count, scratch->scores);
            attention->next += SCORES;
            left += to_come > SCORES;
        }
    }
    for (int t = 0; t < step->count; t++)
        for (int64_t i = 0; i < size; i++)
            attentions[t].sum[i] /= attentions[t].total;
}

static void attend(Step *step, const Layer *layer, const Scratch *scratch)
{
    int64_t first, behind;
    if (step->count > 1)
        store_all(step, layer, scratch);
    while (claim(&step->team, step->model->heads, 1, &first, &behind))
        for (; first < behind; first++)
            attend_head(step, layer, first, scratch);
}

/* The first neuron of a chunk. Groups of neighbours are not split, unless some of their rows are missing. */
static int64_t chunk_start(const FeedForward *feed_forward, int64_t chunk)
{
    const Matrix *contract = &feed_forward->contract.matrix;
    int64_t neurons = feed_forward->gate.matrix.rows, chunks = chunk_count(neurons);
    int64_t start = neurons * chunk / chunks;
    bool whole = is_grouped(contract) && !contract->groups.neurons && chunk < chunks;
    return whole ? start / RUN * RUN : start;
}

/* Set the partial sums of a chunk to zero. */
static void clear_sums(const Step *step, int64_t chunk)
{
    int64_t width = step->model->width;
    for (int t = 0; t < step->count; t++)
        memset(beyond(step->partial_sums, t, chunk * width).at, 0, (size_t)width * sizeof(float));
}

/* One chunk of neurons, from the input to its part of the output, without a barrier in between. */
static void feed_chunk(const Step *step, const Layer *layer, int64_t chunk, const Input *x, const Scratch *scratch)
{
    const Model *model = step->model;
    const FeedForward *feed_forward = &layer->feed_forward;
    int64_t first = chunk_start(feed_forward, chunk), behind = chunk_start(feed_forward, chunk + 1);
    int64_t count = behind - first;
    bool gated = feed_forward->up.matrix.codes;
    dot_rows(step, scratch->gate, &feed_forward->gate, first, behind, x, step->count);
    if (gated)
        dot_rows(step, scratch->up, &feed_forward->up, first, behind, x, step->count);
    observe(step, step->observed.gate, layer, scratch->gate, first, count);
    if (gated)
        observe(step, step->observed.up, layer, scratch->up, first, count);
    for (int t = 0; t < step->count; t++) {
        float *up = gated ? beyond(scratch->up, t, 0).at : NULL;
        step->kernels->activate(beyond(scratch->gate, t, 0).at, up, count, model->activation);
    }
    observe(step, step->observed.z, layer, scratch->gate, first, count);
    const Matrix *contract = &feed_forward->contract.matrix;
    clear_sums(step, chunk);
    Outputs sums = beyond(step->partial_sums, 0, chunk * model->width);
    format_of(step, contract)->add(sums, contract, first, count, scratch->gate, step->count);
}

static void feed_all(Step *step, const Layer *layer, const Scratch *scratch)
{
    int64_t first, behind;
    while (claim(&step->team, chunk_count(layer->feed_forward.gate.matrix.rows), 1, &first, &behind))
        for (; first < behind; first++)
            feed_chunk(step, layer, first, inputs_of(step, scratch), scratch);
}

/* ---- An FF block in which each token picks its inputs and neurons. ---- */

/* Some columns of a matrix. first: a multiple of TILE. */
static Matrix columns_of(const Matrix *matrix, int64_t first, int64_t behind)
{
    Matrix part = *matrix;
    Groups *groups = &part.groups;
    part.columns = behind - first;
    if (!is_grouped(matrix)) {
        part.codes += row_bytes(matrix->format, first);
        return part;
    }
    int64_t bits = matrix->format == GROUPED4 ? 4 : matrix->format == GROUPED6 ? 6 : 8;
    part.codes += first * bits / 8;
    groups->scales += first * groups->bytes;
    groups->minimums += groups->minimums ? first * groups->bytes : 0;
    groups->supers += groups->supers ? 2 * first : 0;
    groups->super_minimums += groups->super_minimums ? 2 * first : 0;
    return part;
}

/* Stage 1, for some neurons: a token's values of the activation function, from the listed inputs. */
static void give(
    Step *step, const FeedForward *feed_forward, int64_t first, int64_t behind, const List *inputs, int t)
{
    const Thresholds *by = &feed_forward->thresholds;
    Matrix part = columns_of(&by->gate, first, behind);
    float *given = beyond(step->given, t, first).at;
    int64_t count = behind - first;
    memset(given, 0, (size_t)count * sizeof *given);
    format_of(step, &part)->add_list(given, &part, inputs);
    for (int64_t i = 0; by->factors && i < count; i++)
        given[i] *= by->factors[first + i];
    accumulate(given, by->offsets + first, count);
    step->kernels->activate(given, NULL, count, step->model->activation);
}

/* Stage 2, for a chunk of neurons: those that pass the gate's limit. */
static void list_acting(List *list, const float *given, const float *limits, int64_t first, int64_t behind)
{
    int64_t found = 0;
    for (int64_t neuron = first; neuron < behind; neuron++) {
        list->rows[found] = (int32_t)neuron;
        found += !limits || fabsf(given[neuron]) > limits[neuron];
    }
    list->count = found;
}

/* Stage 3: the neurons of that list that are far from their resting values, and their distances. */
static void list_giving(List *list, const float *given, const FeedForward *feed_forward)
{
    const Thresholds *by = &feed_forward->thresholds;
    const Projection *up = &feed_forward->up;
    int64_t found = 0;
    for (int64_t i = 0; i < list->count; i++) {
        int32_t neuron = list->rows[i];
        float factor = up->matrix.codes ? list->z[i] + (up->bias ? up->bias[neuron] : 0) : 1;
        float distance = given[neuron] * factor - by->resting[neuron];
        list->rows[found] = neuron;
        list->z[found] = distance;
        found += fabsf(distance) > by->output_limits[neuron];
    }
    list->count = found;
}

/* Stages 2 and 3, for one chunk of neurons and one token. */
static void feed_picked(Step *step, const Layer *layer, int64_t chunk, const Input *x, int t, Scratch *scratch)
{
    const FeedForward *feed_forward = &layer->feed_forward;
    const Matrix *up = &feed_forward->up.matrix, *contract = &feed_forward->contract.matrix;
    int64_t first = chunk_start(feed_forward, chunk), behind = chunk_start(feed_forward, chunk + 1);
    float *sum = beyond(step->partial_sums, t, chunk * step->model->width).at;
    const float *given = beyond(step->given, t, 0).at;
    List *list = &scratch->list;
    list_acting(list, given, feed_forward->thresholds.gate_limits, first, behind);
    scratch->reads[1] += list->count;
    /* Most of the first neurons are needed next. */
    for (int64_t i = 0; i < RUN / 2 && i < list->count; i++)
        ask_for(contract->codes + list->rows[i] * contract->stride, contract->stride);
    if (up->codes)
        format_of(step, up)->dot_some(list->z, up, list->rows, list->count, x);
    list_giving(list, given, feed_forward);
    scratch->reads[2] += list->count;
    format_of(step, contract)->plan(list, contract);
    format_of(step, contract)->add_list(sum, contract, list);
}

/* Stage 1, for some tiles of neurons. A tile comes from memory for the first token, and from a cache for the others. */
static void give_tiles(Step *step, const FeedForward *feed_forward, int64_t first, int64_t behind, const Scratch *scratch)
{
    int64_t at_once = step->count == 1 ? behind - first : TILE;
    for (; first < behind; first += at_once) {
        int64_t end = behind - first < at_once ? behind : first + at_once;
        for (int t = 0; t < step->count; t++) {
            const Token *token = step->count == 1 ? &scratch->token : &step->tokens[t];
            give(step, feed_forward, first, end, &token->list, t);
        }
    }
}

static void feed_by_thresholds(Step *step, const Layer *layer, Scratch *scratch)
{
    const FeedForward *feed_forward = &layer->feed_forward;
    int64_t neurons = feed_forward->thresholds.gate.columns, first, behind;
    while (claim(&step->team, (neurons + TILE - 1) / TILE, SMALLEST_TILES, &first, &behind))
        give_tiles(step, feed_forward, first * TILE, behind * TILE < neurons ? behind * TILE : neurons, scratch);
    /* The count is the same in all threads, so only one adds it. */
    for (int t = 0; scratch == step->scratch && t < step->count; t++)
        scratch->reads[0] += (step->count == 1 ? &scratch->token : &step->tokens[t])->list.count;
    barrier(&step->team);
    const Input *inputs = inputs_of(step, scratch);
    while (claim(&step->team, chunk_count(neurons), 1, &first, &behind))
        for (; first < behind; first++) {
            clear_sums(step, first);
            for (int t = 0; t < step->count; t++)
                feed_picked(step, layer, first, &inputs[t], t, scratch);
        }
}

static void feed(Step *step, const Layer *layer, Scratch *scratch)
{
    if (layer->feed_forward.thresholds.means)
        feed_by_thresholds(step, layer, scratch);
    else
        feed_all(step, layer, scratch);
}

static void decode_layer(Step *step, const Layer *layer, Scratch *scratch, bool last)
{
    project(step, step->query_key_value, layer->query_key_value, 3, scratch);
    barrier(&step->team);
    attend(step, layer, scratch);
    barrier(&step->team);
    each(step, layer, scratch, enter_output);
    project(step, step->projected, &layer->output, 1, scratch);
    barrier(&step->team);
    each(step, layer, scratch, enter_feed_forward);
    feed(step, layer, scratch);
    barrier(&step->team);
    each(step, layer, scratch, last ? leave_and_enter_head : leave_and_enter_next);
}

static void divide(float *values, int64_t count, float divisor)
{
    for (int64_t i = 0; i < count; i++)
        values[i] /= divisor;
}

static void predict(Step *step, const Scratch *scratch)
{
    const Model *model = step->model;
    const Input *inputs = inputs_of(step, scratch) + step->count - step->wanted;
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / model->head.matrix.stride;
    int64_t first, behind;
    while (claim(&step->team, model->head.matrix.rows, smallest, &first, &behind)) {
        Outputs logits = beyond(step->logits, 0, first);
        dot_rows(step, logits, &model->head, first, behind, inputs, step->wanted);
        for (int t = 0; t < step->wanted; t++) {
            if (model->logit_divisor != 1)
                divide(beyond(logits, t, 0).at, behind - first, (float)model->logit_divisor);
            if (model->logit_cap != 0)
                step->kernels->cap(beyond(logits, t, 0).at, behind - first, (float)model->logit_cap);
        }
    }
}

static void decode(void *work, int member)
{
    Step *step = work;
    const Model *model = step->model;
    Scratch *scratch = &step->scratch[member];
    each(step, model->layers, scratch, embed_and_enter);
    for (int64_t number = 0; number < model->layer_count; number++)
        decode_layer(step, &model->layers[number], scratch, number + 1 == model->layer_count);
    if (step->wanted)
        predict(step, scratch);
}

/* Copy one row, unless the target has another format: then its maker has already filled it. */
static void copy_row(const Projection *to, int64_t target, const Projection *from, int64_t source)
{
    const Matrix *own = &to->matrix, *theirs = &from->matrix;
    if (own->codes && own->format == theirs->format) {
        /* Rows of codes in groups follow each other, with the rest of their records. */
        int64_t bytes = is_grouped(own) ? theirs->stride : row_bytes(own->format, own->columns);
        memcpy(own->codes + target * own->stride, theirs->codes + source * theirs->stride, (size_t)bytes);
        if (own->scales)
            own->scales[target] = theirs->scales[source];
    }
}

static void copy_bias(const Projection *to, int64_t target, const Projection *from, int64_t source)
{
    if (to->bias)
        to->bias[target] = from->bias[source];
}

static void keep_neuron(const FeedForward *kept, int64_t target, const FeedForward *all, int64_t source)
{
    copy_row(&kept->gate, target, &all->gate, source);
    copy_row(&kept->up, target, &all->up, source);
    copy_row(&kept->contract, target, &all->contract, source);
    copy_bias(&kept->gate, target, &all->gate, source);
    copy_bias(&kept->up, target, &all->up, source);
}

/* Copy kept neurons. The neurons of all layers are numbered in one sequence, which the team shares. */
static void keep(void *work, int member)
{
    Step *step = work;
    (void)member;
    int64_t layers = step->model->layer_count, first, behind, total = 0;
    for (int64_t layer = 0; layer < layers; layer++)
        total += step->kept[layer].gate.matrix.rows;
    while (claim(&step->team, total, 16, &first, &behind)) {
        for (int64_t layer = 0, start = 0; layer < layers && start < behind; layer++) {
            int64_t end = start + step->kept[layer].gate.matrix.rows;
            for (; first < behind && first < end; first++)
                keep_neuron(&step->kept[layer], first - start, &step->all[layer], step->which[first]);
            start = end;
        }
    }
}

/* Add the blocks' outputs with all neurons at rest to the biases of their contracting projections. */
static void rest(void *work, int member)
{
    Step *step = work;
    (void)member;
    int64_t first, behind;
    while (claim(&step->team, step->model->layer_count, 1, &first, &behind))
        for (; first < behind; first++) {
            const FeedForward *block = &step->all[first];
            const Matrix *contract = &block->contract.matrix;
            Outputs bias = {block->contract.bias, 0}, resting = {(float *)block->thresholds.resting, 0};
            format_of(step, contract)->add(bias, contract, 0, contract->rows, resting, 1);
        }
}

/* ---- Opening and closing. ---- */

static int64_t largest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The next floats of the step's memory; without memory, only count them. */
static float *take(float *memory, size_t *used, int64_t count)
{
    float *taken = memory ? memory + *used : NULL;
    size_t line = ALIGNMENT / sizeof(float);
    *used += ((size_t)count + line - 1) / line * line;
    return taken;
}

/* The same for each token of a pass. */
static Outputs take_for_all(float *memory, size_t *used, int64_t count)
{
    int64_t line = ALIGNMENT / sizeof(float), apart = (count + line - 1) / line * line;
    return (Outputs){take(memory, used, apart * MOST_TOKENS), apart};
}

static void take_list(List *list, float *memory, size_t *used, int64_t listed)
{
    list->rows = (int32_t *)take(memory, used, listed);
    list->z = take(memory, used, listed);
    list->groups = (Group *)take(memory, used, listed * (int64_t)sizeof(Group) / (int64_t)sizeof(float));
}

/* widest: the length of the token's longest vector in a product. */
static void take_token(Token *token, float *memory, size_t *used, int64_t width, int64_t widest)
{
    int64_t tiles = (widest + 511) / 512;
    token->x = take(memory, used, width);
    token->normed = take(memory, used, width);
    token->change = take(memory, used, width);
    token->input.pairs = (int32_t *)take(memory, used, 256 * tiles);
    token->input.scales = take(memory, used, 16 * tiles);
    token->input.weighted = take(memory, used, 48 * tiles);
    take_list(&token->list, memory, used, width + 1);
}

static size_t lay_out(Step *step, float *memory)
{
    const Model *model = step->model;
    int64_t size = model->head_size, widest = largest(model->width, model->heads * size), neurons = 0;
    for (int64_t i = 0; i < model->layer_count; i++)
        neurons = largest(neurons, model->layers[i].feed_forward.gate.matrix.rows);
    size_t used = 0;
    /* A chunk may have a few more neurons, so that groups are not split. */
    int64_t chunk = neurons / CHUNKS + 1 + RUN;
    step->query_key_value = take_for_all(memory, &used, (model->heads + 2 * model->kv_heads) * size);
    step->attended = take_for_all(memory, &used, model->heads * size);
    step->projected = take_for_all(memory, &used, model->width);
    step->given = take_for_all(memory, &used, neurons);
    step->partial_sums = take_for_all(memory, &used, CHUNKS * model->width);
    for (int t = 0; t < MOST_TOKENS; t++)
        take_token(&step->tokens[t], memory, &used, model->width, widest);
    for (int i = 0; i < step->threads; i++) {
        Scratch *scratch = &step->scratch[i];
        take_token(&scratch->token, memory, &used, model->width, widest);
        scratch->room = take(memory, &used, widest);
        scratch->queries = take(memory, &used, size * MOST_TOKENS);
        scratch->key = take(memory, &used, size);
        scratch->value = take(memory, &used, size);
        scratch->scores = take(memory, &used, SCORES);
        scratch->gate = take_for_all(memory, &used, chunk);
        scratch->up = take_for_all(memory, &used, chunk);
        take_list(&scratch->list, memory, &used, chunk + 1);
    }
    return used;
}

static void forget(Step *step)
{
    free(step->scratch);
    free(step->memory);
    free(step);
}

/* The sizes of model.h's structures. library.py compares them with its own, because a library may be an older one. */
API int64_t griffin_layout(void)
{
    return (int64_t)MOST_TOKENS << 56 | (int64_t)sizeof(Model) << 40 | (int64_t)sizeof(Layer) << 20
           | (int64_t)sizeof(FeedForward) << 8 | (int64_t)sizeof(Rotary);
}

/* The caller owns the model. Between steps its layers' FF rows, keys, values and capacity may change. */
API Step *griffin_open(const Model *model, int threads)
{
    Step *step = NULL;
    if (posix_memalign((void **)&step, ALIGNMENT, sizeof *step))
        return NULL;
    memset(step, 0, sizeof *step);
    step->model = model;
    step->kernels = best_kernels();
    step->threads = threads;
    step->scratch = calloc((size_t)threads, sizeof *step->scratch);
    size_t bytes = step->scratch ? lay_out(step, NULL) * sizeof(float) : 0;
    /*
     * Zeros, because vectors read beyond a row's last blocks, with a weight of 0, and must find numbers there. Most of
     * the memory is for passes. Pages that are never written to take no memory.
     */
    step->memory = step->scratch ? calloc(bytes + ALIGNMENT, 1) : NULL;
    if (step->memory) {
        uintptr_t aligned = ((uintptr_t)step->memory + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        lay_out(step, (float *)aligned);
        if (assemble(&step->team, threads, step))
            return step;
    }
    forget(step);
    return NULL;
}

/*
 * Run successive tokens, at most MOST_TOKENS. Their keys and values are written from the position on.
 * logits: (wanted, V), of the last ``wanted`` tokens.
 * reads: if tokens pick, the numbers of inputs and neurons that they read are added, for all layers, by stage.
 * observed: memory for the activations of tokens that read everything; may be NULL.
 */
API void griffin_pass(
    Step *step, const int64_t *ids, int count, int64_t position, float *logits, int wanted, int64_t *reads,
    const Observed *observed)
{
    step->ids = ids;
    step->count = count;
    step->position = position;
    step->logits = (Outputs){logits, step->model->head.matrix.rows};
    step->wanted = wanted;
    step->observed = observed ? *observed : (Observed){0};
    for (int t = 0; t < count; t++)
        step->query_scales[t] = query_scale(step->model, position + t);
    turn_rotaries(step->model, position, count);
    for (int i = 0; i < step->threads; i++)
        memset(step->scratch[i].reads, 0, sizeof step->scratch[i].reads);
    run(&step->team, decode);
    for (int i = 0; i < step->threads; i++)
        for (int stage = 0; stage < 3; stage++)
            reads[stage] += step->scratch[i].reads[stage];
}

/*
 * Copy kept neurons from ``all`` to ``kept``, whose weights and biases have room for as many neurons as they have rows.
 * which: the first layer's neurons, then the second layer's, and so on.
 */
API void griffin_keep(Step *step, const FeedForward *all, const FeedForward *kept, const int64_t *which)
{
    step->all = all;
    step->kept = kept;
    step->which = which;
    run(&step->team, keep);
}

/* Add the output of resting neurons, by their thresholds, to the biases of all contracting projections, (D,) each. */
API void griffin_rest(Step *step, const FeedForward *blocks)
{
    step->all = blocks;
    run(&step->team, rest);
}

/* See resting.py in griffin/method. For the neurons from ``first`` to ``end``; tables have one row for each token. */
API void griffin_resting(
    float *resting, const char *z, int64_t z_stride, const char *up, int64_t up_stride, int64_t format,
    int64_t tokens, const float *limits, float extra, int64_t first, int64_t end)
{
    Table of_z = {z, z_stride, tokens}, of_up = {up, up_stride, tokens};
    best_kernels()->rest_means(resting, &of_z, &of_up, format, limits, extra, first, end);
}

API void griffin_close(Step *step)
{
    dismiss(&step->team, step->threads - 1);
    forget(step);
}
