/*
 * One decode step of the common block (see weights.py), compiled: a token's id in, logits out.
 *
 * Decoding one token reads every weight once, so its speed is that of memory. A core reads memory fastest as a few
 * ascending streams, so each product walks its rows in the order in which they are stored, in several places at once. Kept
 * neurons are copied next to each other once per request. Where each token picks what it reads, rows are skipped in place:
 * half of them take 0.65 to 0.8 of the time of all. Weights are asked for in advance: the processor itself does so too
 * late, and begins anew on each page.
 * Activations are fp32; where they meet codes in groups, they become whole numbers of 16 bits first. Each matrix has a
 * format of its own; keys and values are fp32, bfloat16 or float16.
 *
 * A team of threads decodes a token in four stages a layer, with a barrier after each. What is cheap (norms, the residual
 * sum) every thread computes for itself. Work is handed out in portions to whoever is free, yet no sum depends on
 * who took which, nor on how many threads there are: results are the same bits for any size of the team.
 *
 * model.h: what is read. kernels.h: products, norms and functions, for each format and instruction set. team.h: the
 * threads. Here: the stages of a layer, and a step's life.
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

/* The FF block is summed up in so many parts, whatever the number of threads. */
#define CHUNKS 32
/* Positions whose scores are held at once. */
#define SCORES 128
/* The columns of a matrix are split over the team in tiles of so many, and in portions of so many tiles at least. */
#define TILE 128
#define SMALLEST_TILES 4
/* A portion of work is not smaller, so that streams from memory stay long. */
#define SMALLEST_PORTION_BYTES 16384

/* What one thread has for itself. */
typedef struct {
    float *x, *normed, *change;
    float *query, *key, *value, *scores;
    float *gate, *up;
    /* Where a token picks what it reads: its inputs, or neurons of a chunk. */
    List list;
    /* Of the inputs and neurons that a token picks: how many were read, stage by stage. */
    int64_t reads[3];
    /* What the product at hand is of. */
    Input input;
} Scratch;

typedef struct {
    Team team;
    int threads;
    const Model *model;
    const Kernels *kernels;
    Scratch *scratch;
    void *memory;
    /* Shared: written in one stage, read in the next. */
    float *query_key_value, *attended, *projected, *given, *partial_sums;
    int64_t id, position;
    /* Factor on this token's queries. */
    float query_scale;
    float *logits;
    /* Of each layer: all neurons, room for kept ones, and which those are, one layer after the other. */
    const FeedForward *all, *kept;
    const int64_t *which;
} Step;

/* ---- Weights, rows and vectors. ---- */

/* Of the numbers of a row, without scales. */
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

/* The nearest, and of two equally near the even one. */
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

/* Into the cache. */
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
    const Step *step, float *out, const Projection *weights, int64_t first, int64_t behind, const Input *x)
{
    const Matrix *matrix = &weights->matrix;
    format_of(step, matrix)->dot(out, matrix, first, behind - first, x);
    if (weights->bias)
        accumulate(out, weights->bias + first, behind - first);
}

/* For products with some matrices: whole numbers too, if any of them is grouped. */
static const Input *as_input(const Step *step, Scratch *scratch, const float *x, const Projection *weights, int count)
{
    bool whole = false;
    for (int i = 0; i < count; i++)
        whole = whole || is_grouped(&weights[i].matrix);
    scratch->input.values = x;
    if (whole)
        step->kernels->make_whole(&scratch->input, weights->matrix.columns);
    return &scratch->input;
}

/* x itself where there is no norm. */
static const float *normed(const Step *step, const Norm *norm, const float *x, float *room)
{
    if (!norm->weight)
        return x;
    step->kernels->norm(room, x, norm);
    return room;
}

/* ---- The stages. ---- */

static void embed(const Step *step, float *x)
{
    const Model *model = step->model;
    int64_t width = model->width;
    load_row(x, &model->embedding, step->id);
    for (int64_t i = 0; i < width; i++)
        x[i] *= (float)model->embedding_scale;
    const char *positions = model->positions.codes + step->position * model->positions.stride;
    for (int64_t i = 0; model->positions.codes && i < width; i++)
        x[i] += load_number(positions, i, model->positions.format);
}

static float query_scale(const Model *model, int64_t position)
{
    int64_t contexts = position / model->query_context;
    return (float)(model->scale * (1 + model->query_growth * log(1 + (double)contexts)));
}

static void turn_rotaries(const Model *model, int64_t position)
{
    for (int64_t number = 0; number < model->rotary_count; number++) {
        Rotary *rotary = &model->rotaries[number];
        for (int64_t i = 0; i < rotary->pairs; i++) {
            float angle = rotary->frequencies[i] * (float)position;
            rotary->cosines[i] = cosf(angle) * (float)rotary->scaling;
            rotary->sines[i] = sinf(angle) * (float)rotary->scaling;
        }
    }
}

/* The rows of some products with x, split over the team. */
static void project(Step *step, float *out, const Projection *weights, int count, Scratch *scratch, const float *x)
{
    const Input *input = as_input(step, scratch, x, weights, count);
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / weights->matrix.stride, total = 0, first, behind;
    for (int i = 0; i < count; i++)
        total += weights[i].matrix.rows;
    while (claim(&step->team, total, smallest, &first, &behind)) {
        int64_t start = 0;
        for (int i = 0; i < count; start += weights[i++].matrix.rows) {
            int64_t own = first > start ? first - start : 0, rows = weights[i].matrix.rows;
            int64_t end = behind - start < rows ? behind - start : rows;
            if (own < end)
                dot_rows(step, out + start + own, &weights[i], own, end, input);
        }
    }
}

static void turn_pair(float *first, float *second, float cosine, float sine)
{
    float x = *first, y = *second;
    *first = x * cosine - y * sine;
    *second = y * cosine + x * sine;
}

static void rotate(float *head, const Rotary *rotary)
{
    const float *cosines = rotary->cosines, *sines = rotary->sines;
    if (rotary->interleaved) {
        for (int64_t i = 0; i < rotary->pairs; i++)
            turn_pair(head + 2 * i, head + 2 * i + 1, cosines[i], sines[i]);
        return;
    }
    float *mate = head + rotary->pairs;
    for (int64_t i = 0; i < rotary->pairs; i++)
        turn_pair(head + i, mate + i, cosines[i], sines[i]);
}

/* One head of queries or keys, normed and rotated. heads: all of its kind; a norm as wide as those is over them. */
static void prepare_head(
    const Step *step, float *out, const float *heads, int64_t number, const Norm *norm, const Layer *layer, float *room)
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
        rotate(out, layer->rotary);
}

/* Softmax over positions block by block: earlier sums shrink whenever a higher score turns up. */
typedef struct {
    float *sum;
    float highest, total;
} Attention;

static void attend_block(
    const Step *step, Attention *attention, const Matrix *keys, const Matrix *values, int64_t first, int64_t count,
    const float *query, float *scores)
{
    const Model *model = step->model;
    const Kernels *kernels = step->kernels;
    int64_t size = model->head_size;
    Input input = {.values = query};
    format_of(step, keys)->dot(scores, keys, first, count, &input);
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
    format_of(step, values)->add(attention->sum, values, first, count, scores);
}

/* What the cache will hold of one head's key or value. */
static void round_head(const Model *model, float *head)
{
    for (int64_t i = 0; model->cache_format != FLOAT32 && i < model->head_size; i++)
        head[i] = from_half(to_half(head[i], model->cache_format), model->cache_format);
}

/* One query head. The first of those that share a key writes it to the cache; all use their own copy. */
static void attend_head(const Step *step, const Layer *layer, int64_t head, const Scratch *scratch)
{
    const Model *model = step->model;
    int64_t size = model->head_size, shared = model->heads / model->kv_heads, group = head / shared;
    const float *keys = step->query_key_value + model->heads * size;
    const float *values = keys + model->kv_heads * size;
    prepare_head(step, scratch->query, step->query_key_value, head, &layer->query_norm, layer, scratch->change);
    prepare_head(step, scratch->key, keys, group, &layer->key_norm, layer, scratch->change);
    memcpy(scratch->value, values + group * size, (size_t)size * sizeof *values);
    round_head(model, scratch->key);
    round_head(model, scratch->value);
    for (int64_t i = 0; i < size; i++)
        scratch->query[i] *= step->query_scale;

    int64_t bytes = row_bytes(model->cache_format, size), start = group * layer->capacity * bytes;
    Matrix cached_keys = {
        .codes = (char *)layer->keys + start, .rows = layer->capacity, .columns = size, .stride = bytes,
        .format = model->cache_format};
    Matrix cached_values = cached_keys;
    cached_values.codes = (char *)layer->values + start;
    if (head % shared == 0) {
        store(model, cached_keys.codes + step->position * bytes, scratch->key, size);
        store(model, cached_values.codes + step->position * bytes, scratch->value, size);
    }

    Attention attention = {step->attended + head * size, -FLT_MAX, 0};
    memset(attention.sum, 0, (size_t)size * sizeof *attention.sum);
    Matrix own_key = {.codes = (char *)scratch->key, .rows = 1, .columns = size, .format = FLOAT32};
    Matrix own_value = {.codes = (char *)scratch->value, .rows = 1, .columns = size, .format = FLOAT32};
    attend_block(step, &attention, &own_key, &own_value, 0, 1, scratch->query, scratch->scores);
    int64_t first = layer->window && step->position >= layer->window ? step->position + 1 - layer->window : 0;
    for (; first < step->position; first += SCORES) {
        int64_t left = step->position - first, count = left < SCORES ? left : SCORES;
        attend_block(step, &attention, &cached_keys, &cached_values, first, count, scratch->query, scratch->scores);
    }
    for (int64_t i = 0; i < size; i++)
        attention.sum[i] /= attention.total;
}

static void attend(Step *step, const Layer *layer, const Scratch *scratch)
{
    int64_t first, behind;
    while (claim(&step->team, step->model->heads, 1, &first, &behind))
        for (; first < behind; first++)
            attend_head(step, layer, first, scratch);
}

static int64_t chunk_count(int64_t neurons)
{
    return neurons < CHUNKS ? neurons : CHUNKS;
}

/* The first neuron of a chunk. Groups of neighbours are not cut, unless some of their rows are missing anyway. */
static int64_t chunk_start(const FeedForward *feed_forward, int64_t chunk)
{
    const Matrix *contract = &feed_forward->contract.matrix;
    int64_t neurons = feed_forward->gate.matrix.rows, chunks = chunk_count(neurons);
    int64_t start = neurons * chunk / chunks;
    bool whole = is_grouped(contract) && !contract->groups.neurons && chunk < chunks;
    return whole ? start / RUN * RUN : start;
}

/* One chunk of neurons, from input to their part of the output: nothing needs to be waited for in between. */
static void feed_chunk(const Step *step, const Layer *layer, int64_t chunk, const Input *x, const Scratch *scratch)
{
    const Model *model = step->model;
    const FeedForward *feed_forward = &layer->feed_forward;
    int64_t first = chunk_start(feed_forward, chunk), behind = chunk_start(feed_forward, chunk + 1);
    int64_t count = behind - first;
    float *sum = step->partial_sums + chunk * model->width;
    memset(sum, 0, (size_t)model->width * sizeof *sum);
    dot_rows(step, scratch->gate, &feed_forward->gate, first, behind, x);
    bool gated = feed_forward->up.matrix.codes;
    if (gated)
        dot_rows(step, scratch->up, &feed_forward->up, first, behind, x);
    step->kernels->activate(scratch->gate, gated ? scratch->up : NULL, count, model->activation);
    const Matrix *contract = &feed_forward->contract.matrix;
    format_of(step, contract)->add(sum, contract, first, count, scratch->gate);
}

static void feed_all(Step *step, const Layer *layer, const float *x, Scratch *scratch)
{
    const Projection expand[] = {layer->feed_forward.gate, layer->feed_forward.up};
    const Input *input = as_input(step, scratch, x, expand, 2);
    int64_t first, behind;
    while (claim(&step->team, chunk_count(layer->feed_forward.gate.matrix.rows), 1, &first, &behind))
        for (; first < behind; first++)
            feed_chunk(step, layer, first, input, scratch);
}

/* ---- An FF block of which each token picks what it reads. ---- */

/* The values that are far enough from others: their numbers, and how far they are. */
static void list_far(List *list, const float *values, const float *from, const float *limits, int64_t count)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        float distance = values[i] - from[i];
        list->rows[found] = (int32_t)i;
        list->z[found] = distance;
        /* No branch: it could not be foretold. */
        found += fabsf(distance) > limits[i];
    }
    list->count = found;
}

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

/* Stage 1, for some neurons: what their activation functions give, from the inputs that are listed. */
static void give(
    Step *step, const FeedForward *feed_forward, int64_t first, int64_t behind, const List *inputs)
{
    const Thresholds *by = &feed_forward->thresholds;
    Matrix part = columns_of(&by->gate, first, behind);
    float *given = step->given + first;
    int64_t count = behind - first;
    memset(given, 0, (size_t)count * sizeof *given);
    format_of(step, &part)->add_list(given, &part, inputs);
    for (int64_t i = 0; by->factors && i < count; i++)
        given[i] *= by->factors[first + i];
    accumulate(given, by->offsets + first, count);
    step->kernels->activate(given, NULL, count, step->model->activation);
}

/* Stage 2, for a chunk of neurons: those that act. */
static void list_acting(const Step *step, List *list, const float *limits, int64_t first, int64_t behind)
{
    int64_t found = 0;
    for (int64_t neuron = first; neuron < behind; neuron++) {
        list->rows[found] = (int32_t)neuron;
        found += !limits || fabsf(step->given[neuron]) > limits[neuron];
    }
    list->count = found;
}

/* Stage 3: of those that act, the ones that give something, and how far that is from their resting values. */
static void list_giving(const Step *step, List *list, const FeedForward *feed_forward)
{
    const Thresholds *by = &feed_forward->thresholds;
    const Projection *up = &feed_forward->up;
    int64_t found = 0;
    for (int64_t i = 0; i < list->count; i++) {
        int32_t neuron = list->rows[i];
        float factor = up->matrix.codes ? list->z[i] + (up->bias ? up->bias[neuron] : 0) : 1;
        float distance = step->given[neuron] * factor - by->resting[neuron];
        list->rows[found] = neuron;
        list->z[found] = distance;
        found += fabsf(distance) > by->output_limits[neuron];
    }
    list->count = found;
}

/* Stages 2 and 3, for one chunk of neurons. */
static void feed_picked(Step *step, const Layer *layer, int64_t chunk, const Input *x, Scratch *scratch)
{
    const FeedForward *feed_forward = &layer->feed_forward;
    const Matrix *up = &feed_forward->up.matrix, *contract = &feed_forward->contract.matrix;
    int64_t first = chunk_start(feed_forward, chunk), behind = chunk_start(feed_forward, chunk + 1);
    float *sum = step->partial_sums + chunk * step->model->width;
    List *list = &scratch->list;
    memset(sum, 0, (size_t)step->model->width * sizeof *sum);
    list_acting(step, list, feed_forward->thresholds.gate_limits, first, behind);
    scratch->reads[1] += list->count;
    /* Most of the first ones will be wanted next. */
    for (int64_t i = 0; i < RUN / 2 && i < list->count; i++)
        ask_for(contract->codes + list->rows[i] * contract->stride, contract->stride);
    if (up->codes)
        format_of(step, up)->dot_some(list->z, up, list->rows, list->count, x);
    list_giving(step, list, feed_forward);
    scratch->reads[2] += list->count;
    format_of(step, contract)->plan(list, contract);
    format_of(step, contract)->add_list(sum, contract, list);
}

static void feed_by_thresholds(Step *step, const Layer *layer, const float *x, Scratch *scratch)
{
    const FeedForward *feed_forward = &layer->feed_forward;
    const Thresholds *by = &feed_forward->thresholds;
    List *inputs = &scratch->list;
    int64_t neurons = by->gate.columns, first, behind;
    list_far(inputs, x, by->means, by->input_limits, step->model->width);
    if (scratch == step->scratch)
        scratch->reads[0] += inputs->count;
    format_of(step, &by->gate)->plan(inputs, &by->gate);
    while (claim(&step->team, (neurons + TILE - 1) / TILE, SMALLEST_TILES, &first, &behind))
        give(step, feed_forward, first * TILE, behind * TILE < neurons ? behind * TILE : neurons, inputs);
    barrier(&step->team);
    const Input *input = as_input(step, scratch, x, &feed_forward->up, 1);
    while (claim(&step->team, chunk_count(neurons), 1, &first, &behind))
        for (; first < behind; first++)
            feed_picked(step, layer, first, input, scratch);
}

static void feed(Step *step, const Layer *layer, const float *x, Scratch *scratch)
{
    if (layer->feed_forward.thresholds.means)
        feed_by_thresholds(step, layer, x, scratch);
    else
        feed_all(step, layer, x, scratch);
}

static void sum_chunks(const Step *step, const Layer *layer, float *out)
{
    int64_t width = step->model->width;
    if (layer->feed_forward.contract.bias)
        memcpy(out, layer->feed_forward.contract.bias, (size_t)width * sizeof *out);
    else
        memset(out, 0, (size_t)width * sizeof *out);
    for (int64_t chunk = 0; chunk < chunk_count(layer->feed_forward.gate.matrix.rows); chunk++)
        accumulate(out, step->partial_sums + chunk * width, width);
}

static void decode_layer(Step *step, const Layer *layer, Scratch *scratch)
{
    const Model *model = step->model;
    const float *x = normed(step, &layer->before_attention, scratch->x, scratch->normed);
    project(step, step->query_key_value, layer->query_key_value, 3, scratch, x);
    barrier(&step->team);
    attend(step, layer, scratch);
    barrier(&step->team);
    project(step, step->projected, &layer->output, 1, scratch, step->attended);
    barrier(&step->team);
    add_change(model, scratch->x, normed(step, &layer->after_attention, step->projected, scratch->normed));
    x = normed(step, &layer->before_feed_forward, scratch->x, scratch->normed);
    feed(step, layer, x, scratch);
    barrier(&step->team);
    sum_chunks(step, layer, scratch->change);
    add_change(model, scratch->x, normed(step, &layer->after_feed_forward, scratch->change, scratch->normed));
}

static void divide(float *values, int64_t count, float divisor)
{
    for (int64_t i = 0; i < count; i++)
        values[i] /= divisor;
}

static void predict(Step *step, Scratch *scratch, const float *x)
{
    const Model *model = step->model;
    const Input *input = as_input(step, scratch, x, &model->head, 1);
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / model->head.matrix.stride;
    int64_t first, behind;
    while (claim(&step->team, model->head.matrix.rows, smallest, &first, &behind)) {
        dot_rows(step, step->logits + first, &model->head, first, behind, input);
        if (model->logit_divisor != 1)
            divide(step->logits + first, behind - first, (float)model->logit_divisor);
        if (model->logit_cap != 0)
            step->kernels->cap(step->logits + first, behind - first, (float)model->logit_cap);
    }
}

static void decode(void *work, int member)
{
    Step *step = work;
    const Model *model = step->model;
    Scratch *scratch = &step->scratch[member];
    embed(step, scratch->x);
    for (int64_t number = 0; number < model->layer_count; number++)
        decode_layer(step, &model->layers[number], scratch);
    predict(step, scratch, normed(step, &model->final_norm, scratch->x, scratch->normed));
}

/* One row. Where the target has another format, whoever made it has filled it. */
static void copy_row(const Projection *to, int64_t target, const Projection *from, int64_t source)
{
    const Matrix *own = &to->matrix, *theirs = &from->matrix;
    if (own->codes && own->format == theirs->format) {
        /* Rows of codes in groups lie one after the other, with what else is in their records. */
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

/* Kept neurons of all layers are numbered through, and split over the team. */
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

/* What the blocks give where all neurons rest, added to the biases of their contracting projections. */
static void rest(void *work, int member)
{
    Step *step = work;
    (void)member;
    int64_t first, behind;
    while (claim(&step->team, step->model->layer_count, 1, &first, &behind))
        for (; first < behind; first++) {
            const FeedForward *block = &step->all[first];
            const Matrix *contract = &block->contract.matrix;
            format_of(step, contract)->add(
                block->contract.bias, contract, 0, contract->rows, block->thresholds.resting);
        }
}

/* ---- Opening and closing. ---- */

static int64_t largest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The next floats of the step's memory; only counts where there is none yet. */
static float *take(float *memory, size_t *used, int64_t count)
{
    float *taken = memory ? memory + *used : NULL;
    size_t line = ALIGNMENT / sizeof(float);
    *used += ((size_t)count + line - 1) / line * line;
    return taken;
}

static size_t lay_out(Step *step, float *memory)
{
    const Model *model = step->model;
    int64_t size = model->head_size, widest = largest(model->width, model->heads * size), neurons = 0;
    for (int64_t i = 0; i < model->layer_count; i++)
        neurons = largest(neurons, model->layers[i].feed_forward.gate.matrix.rows);
    size_t used = 0;
    step->query_key_value = take(memory, &used, (model->heads + 2 * model->kv_heads) * size);
    step->attended = take(memory, &used, model->heads * size);
    step->projected = take(memory, &used, model->width);
    step->given = take(memory, &used, neurons);
    step->partial_sums = take(memory, &used, CHUNKS * model->width);
    for (int i = 0; i < step->threads; i++) {
        Scratch *scratch = &step->scratch[i];
        scratch->x = take(memory, &used, model->width);
        scratch->normed = take(memory, &used, model->width);
        scratch->change = take(memory, &used, widest);
        scratch->query = take(memory, &used, size);
        scratch->key = take(memory, &used, size);
        scratch->value = take(memory, &used, size);
        scratch->scores = take(memory, &used, SCORES);
        /* A chunk whose groups are not cut may have some neurons more. */
        scratch->gate = take(memory, &used, neurons / CHUNKS + 1 + RUN);
        scratch->up = take(memory, &used, neurons / CHUNKS + 1 + RUN);
        int64_t listed = largest(model->width, neurons / CHUNKS + 1 + RUN) + 1;
        scratch->list.rows = (int32_t *)take(memory, &used, listed);
        scratch->list.z = take(memory, &used, listed);
        scratch->list.groups = (Group *)take(memory, &used, listed * (int64_t)sizeof(Group) / (int64_t)sizeof(float));
        int64_t tiles = (widest + 511) / 512;
        scratch->input.high = (int8_t *)take(memory, &used, 128 * tiles);
        scratch->input.low = (uint8_t *)take(memory, &used, 128 * tiles);
        scratch->input.scales = take(memory, &used, 16 * tiles);
        scratch->input.weighted = take(memory, &used, 48 * tiles);
        scratch->input.high_weighted = take(memory, &used, 48 * tiles);
    }
    return used;
}

static void forget(Step *step)
{
    free(step->scratch);
    free(step->memory);
    free(step);
}

/* Sizes of model.h's structures, for library.py to compare with its own: a library may be older than the package. */
API int64_t griffin_layout(void)
{
    return (int64_t)sizeof(Model) << 40 | (int64_t)sizeof(Layer) << 20 | (int64_t)sizeof(FeedForward) << 8
           | (int64_t)sizeof(Rotary);
}

/* The model stays the caller's, and may change between steps in its layers' FF rows, keys, values and capacity. */
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
    if (step->scratch && !posix_memalign(&step->memory, ALIGNMENT, bytes)) {
        /* Vectors reach beyond a row's last blocks, with a weight of 0: what is there must be a number. */
        memset(step->memory, 0, bytes);
        lay_out(step, step->memory);
        if (assemble(&step->team, threads, step))
            return step;
    }
    forget(step);
    return NULL;
}

/*
 * One token. Its key and value are written at the position; logits: (V,).
 * reads: where tokens pick what they read, how many inputs and neurons were read is added, for all layers, by stages.
 */
API void griffin_step(Step *step, int64_t id, int64_t position, float *logits, int64_t *reads)
{
    step->id = id;
    step->position = position;
    step->query_scale = query_scale(step->model, position);
    step->logits = logits;
    turn_rotaries(step->model, position);
    for (int i = 0; i < step->threads; i++)
        memset(step->scratch[i].reads, 0, sizeof step->scratch[i].reads);
    run(&step->team, decode);
    for (int i = 0; i < step->threads; i++)
        for (int stage = 0; stage < 3; stage++)
            reads[stage] += step->scratch[i].reads[stage];
}

/*
 * Copy chosen neurons from all to kept, whose weights and biases are room for as many as their rows say.
 * which: the first layer's, then the second's, and so on.
 */
API void griffin_keep(Step *step, const FeedForward *all, const FeedForward *kept, const int64_t *which)
{
    step->all = all;
    step->kept = kept;
    step->which = which;
    run(&step->team, keep);
}

/* Add to the biases of all layers' contracting projections, (D,) each, what resting neurons give by their thresholds. */
API void griffin_rest(Step *step, const FeedForward *blocks)
{
    step->all = blocks;
    run(&step->team, rest);
}

/* See resting.py in griffin/method: for neurons from first to end, tables of a row for each token. */
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
