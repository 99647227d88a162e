/*
 * One decode step of the common block (see weights.py), compiled: a token's id in, logits out.
 *
 * Decoding one token reads every weight once, so its speed is that of memory. A core reads memory fastest as a few
 * ascending streams, hence: each product walks its rows in the order they are stored, in several places at once; kept
 * neurons are copied next to each other once per request, as hopping between them in place takes longer than reading
 * them all. Weights are asked for in advance: the processor itself does so too late, and begins anew on each page.
 * Activations are fp32 throughout; weights, keys and values are fp32 or bfloat16.
 *
 * A team of threads decodes a token in four stages a layer, a barrier behind each. What is cheap (norms, the residual
 * sum) every thread computes for itself. Work is handed out in portions to whoever is free, yet no sum depends on
 * who took which, nor on how many threads there are: results are the same bits for any size of the team.
 *
 * This file includes itself once for each instruction set; the best one that the processor has is chosen when a step
 * is opened. Structures mirror those of step.py.
 *
 * Shapes: D model width, F feed-forward neurons, V vocabulary, H query heads, G key and value heads, S head size.
 */

#ifndef TARGET

#define _GNU_SOURCE
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define API __attribute__((visibility("default")))

/* The FF block is summed up in that many parts, whatever the number of threads. */
#define CHUNKS 32
/* Positions whose scores are held at once. */
#define SCORES 128
/* A portion of work is not smaller, so that streams from memory stay long. */
#define SMALLEST_PORTION_BYTES 16384
/* Then a waiting thread begins to offer its processor to others. */
#define SPINS 4000
#define ALIGNMENT 64
/* Weights are asked for so much ahead of where they are read; from 2,048 to 8,192 it makes little difference. */
#define AHEAD_BYTES 4096
/* Products walk their rows in so many places at once: what the processor fetches of its own goes by the page. */
#define STREAMS 4
/* Rows that are added to one sum at a time. With more there is no gain, and of acting neurons more would be left over. */
#define PAIR 2

enum { SILU, GELU, GELU_TANH, RELU };

/* ---- What step.py hands over; it owns all memory pointed to. ---- */

/* No norm if weight is NULL. */
typedef struct {
    const float *weight, *bias;
    int64_t width;
    float eps;
    int32_t centred;
} Norm;

/* Rows in the model's dtype, one behind the other. bias may be NULL. */
typedef struct {
    void *weight;
    float *bias;
    int64_t rows, columns;
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
 * gate: (F, D), what the activation function is applied to. up: (F, D), what it is multiplied by; no weight if nothing.
 * contract: (F, D), one row a neuron; its bias (D,).
 * stride: from a row of up to the next, and of contract, in rows: 2 where those of a neuron lie side by side.
 * thresholds: (F,), what the activation function must exceed, in size, for a neuron to act; or NULL, and all do.
 * resting: (F,), what stands for its activation otherwise, which the contracting projection's bias has in it.
 */
typedef struct {
    Projection gate, up, contract;
    int64_t stride;
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
    Projection embedding, head;
    const void *positions;
    Norm final_norm;
    const Layer *layers;
    Rotary *rotaries;
    int64_t layer_count, rotary_count;
    int64_t width, heads, kv_heads, head_size;
    double embedding_scale, residual_scale, scale, query_growth, score_cap, logit_divisor, logit_cap;
    int64_t query_context, activation, bfloat16;
} Model;

/* ---- Kernels: what is compiled once for each instruction set. Pairs: fp32, bfloat16. ---- */

typedef struct {
    /* out_i = row_i . x */
    void (*dot[2])(float *out, const void *rows, int64_t count, int64_t width, const float *x);
    /* y += sum over i of z_i row_i */
    void (*add[2])(float *y, const void *rows, int64_t count, int64_t width, const float *z);
    /* y += sum over i of (given_i (up_n . x + its bias) - resting_n) contract_n, where n is which_i; they rise. */
    void (*add_acting[2])(
        float *y, const FeedForward *feed_forward, const int32_t *which, int64_t count, const float *given, const float *x);
    void (*norm)(float *out, const float *x, const Norm *norm);
    /* z = activation(z) up; up may be NULL */
    void (*activate)(float *z, const float *up, int64_t count, int64_t activation);
    /* e to the power of each value less the highest; their sum */
    float (*exponentials)(float *values, int64_t count, float highest);
    /* c tanh(x / c) */
    void (*cap)(float *values, int64_t count, float cap);
} Kernels;

/* Begins to fetch. An address need not be one of ours: nothing is read. */
static inline void ask_for(const char *at, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += ALIGNMENT)
        __builtin_prefetch(at + i);
}

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define KERNEL(name) PASTE(name, TARGET)

#define TARGET baseline
#define VECTOR_BYTES 16
#include "step.c"
#undef TARGET
#undef VECTOR_BYTES

#ifdef __x86_64__
#define TARGET avx2
#define VECTOR_BYTES 32
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "step.c"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TARGET
#undef VECTOR_BYTES

#define TARGET avx512
#define VECTOR_BYTES 64
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#include "step.c"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef TARGET
#undef VECTOR_BYTES
#endif

static const Kernels *best_kernels(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &kernels_avx2;
#endif
    return &kernels_baseline;
}

/* ---- The team: the caller and the threads that it wakes. ---- */

typedef struct Step Step;
typedef void Task(Step *step, int member);

typedef struct {
    Step *step;
    pthread_t thread;
    int number;
} Member;

typedef struct {
    Member *members;
    int size;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    /* Under the lock. */
    Task *task;
    uint64_t tasks;
    bool closing;
    /* On lines of their own: each is written by all. */
    _Alignas(ALIGNMENT) atomic_int arrived;
    _Alignas(ALIGNMENT) atomic_uint generation;
    _Alignas(ALIGNMENT) atomic_llong taken;
} Team;

/* What one thread has for itself. */
typedef struct {
    float *x, *normed, *change;
    float *query, *key, *value, *scores;
    float *gate, *up;
    /* Of a chunk, which neurons act. */
    int32_t *acting;
} Scratch;

struct Step {
    Team team;
    const Model *model;
    const Kernels *kernels;
    Scratch *scratch;
    void *memory;
    /* Shared: written in one stage, read in the next. */
    float *query_key_value, *attended, *projected, *partial_sums;
    int64_t id, position;
    /* Factor on this token's queries. */
    float query_scale;
    float *logits;
    /* Of each layer: all neurons, room for kept ones, and which those are, one layer behind the other. */
    const FeedForward *all, *kept;
    const int64_t *which;
};

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* The last to arrive puts the work counter back, and lets all go on. */
static void barrier(Team *team)
{
    unsigned generation = atomic_load_explicit(&team->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->taken, 0, memory_order_relaxed);
        atomic_store_explicit(&team->generation, generation + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->generation, memory_order_acquire) == generation; spins++) {
        if (spins < SPINS)
            pause_briefly();
        else
            sched_yield();
    }
}

/* The next portion of a stage's work: large at first, small towards the end, so that all finish together. */
static bool claim(Team *team, int64_t total, int64_t smallest, int64_t *first, int64_t *behind)
{
    long long taken = atomic_load_explicit(&team->taken, memory_order_relaxed);
    do {
        if (taken >= total)
            return false;
        int64_t portion = (total - taken) / (2 * team->size);
        *first = taken;
        *behind = taken + (portion > smallest ? portion : smallest);
        if (*behind > total)
            *behind = total;
    } while (!atomic_compare_exchange_weak_explicit(
        &team->taken, &taken, *behind, memory_order_relaxed, memory_order_relaxed));
    return true;
}

static void *serve(void *argument)
{
    Member *member = argument;
    Step *step = member->step;
    Team *team = &step->team;
    uint64_t done = 0;
    for (;;) {
        pthread_mutex_lock(&team->lock);
        while (team->tasks == done && !team->closing)
            pthread_cond_wait(&team->wake, &team->lock);
        bool closing = team->closing;
        Task *task = team->task;
        done = team->tasks;
        pthread_mutex_unlock(&team->lock);
        if (closing)
            return NULL;
        task(step, member->number);
        barrier(team);
    }
}

static void run(Step *step, Task *task)
{
    Team *team = &step->team;
    pthread_mutex_lock(&team->lock);
    team->task = task;
    team->tasks++;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    task(step, 0);
    barrier(team);
}

/* ---- Weights, rows and vectors. ---- */

static size_t row_bytes(const Model *model, int64_t columns)
{
    return (size_t)columns * (model->bfloat16 ? 2 : 4);
}

static const void *row(const Model *model, const void *weight, int64_t number, int64_t columns)
{
    return (const char *)weight + (size_t)number * row_bytes(model, columns);
}

static void load_row(const Model *model, float *out, const void *at, int64_t count)
{
    if (!model->bfloat16) {
        memcpy(out, at, (size_t)count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, (const char *)at + 2 * i, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(out + i, &bits, sizeof bits);
    }
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

static void store_row(const Model *model, void *at, const float *values, int64_t count)
{
    if (!model->bfloat16) {
        memcpy(at, values, (size_t)count * sizeof *values);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = to_bfloat16(values[i]);
        memcpy((char *)at + 2 * i, &half, sizeof half);
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

static void dot_rows(const Step *step, float *out, const Projection *weights, int64_t first, int64_t behind, const float *x)
{
    const Model *model = step->model;
    step->kernels->dot[model->bfloat16](
        out, row(model, weights->weight, first, weights->columns), behind - first, weights->columns, x);
    if (weights->bias)
        accumulate(out, weights->bias + first, behind - first);
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
    load_row(model, x, row(model, model->embedding.weight, step->id, width), width);
    for (int64_t i = 0; i < width; i++)
        x[i] *= (float)model->embedding_scale;
    if (!model->positions)
        return;
    const void *at = row(model, model->positions, step->position, width);
    for (int64_t i = 0; i < width; i++) {
        float value;
        load_row(model, &value, (const char *)at + row_bytes(model, i), 1);
        x[i] += value;
    }
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

/* A product's rows, split over the team. */
static void project(Step *step, float *out, const Projection *weights, const float *x)
{
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / (int64_t)row_bytes(step->model, weights->columns);
    int64_t first, behind;
    while (claim(&step->team, weights->rows, smallest, &first, &behind))
        dot_rows(step, out + first, weights, first, behind, x);
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
    const Step *step, Attention *attention, bool bfloat16, const float *query, const void *keys, const void *values,
    int64_t count, float *scores)
{
    const Model *model = step->model;
    const Kernels *kernels = step->kernels;
    int64_t size = model->head_size;
    kernels->dot[bfloat16](scores, keys, count, size, query);
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
    kernels->add[bfloat16](attention->sum, values, count, size, scores);
}

/* What the cache will hold of one head's key or value. */
static void round_head(const Model *model, float *head)
{
    for (int64_t i = 0; model->bfloat16 && i < model->head_size; i++) {
        uint32_t bits = (uint32_t)to_bfloat16(head[i]) << 16;
        memcpy(head + i, &bits, sizeof bits);
    }
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

    char *cached_keys = (char *)layer->keys + (size_t)(group * layer->capacity) * row_bytes(model, size);
    char *cached_values = (char *)layer->values + (size_t)(group * layer->capacity) * row_bytes(model, size);
    size_t now = (size_t)step->position * row_bytes(model, size);
    if (head % shared == 0) {
        store_row(model, cached_keys + now, scratch->key, size);
        store_row(model, cached_values + now, scratch->value, size);
    }

    Attention attention = {step->attended + head * size, -FLT_MAX, 0};
    memset(attention.sum, 0, (size_t)size * sizeof *attention.sum);
    attend_block(step, &attention, false, scratch->query, scratch->key, scratch->value, 1, scratch->scores);
    int64_t first = layer->window && step->position >= layer->window ? step->position + 1 - layer->window : 0;
    for (; first < step->position; first += SCORES) {
        int64_t left = step->position - first;
        size_t at = (size_t)first * row_bytes(model, size);
        attend_block(step, &attention, model->bfloat16, scratch->query, cached_keys + at, cached_values + at,
                     left < SCORES ? left : SCORES, scratch->scores);
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

/* Which neurons of a chunk act, by what their activation functions give; those values move together. */
static int64_t gate_chunk(const float *thresholds, int64_t first, int64_t behind, const Scratch *scratch)
{
    int64_t acting = 0;
    for (int64_t neuron = first; neuron < behind; neuron++) {
        float given = scratch->gate[neuron - first];
        scratch->gate[acting] = given;
        scratch->acting[acting] = (int32_t)neuron;
        /* No branch: it could not be foretold. */
        acting += fabsf(given) > thresholds[neuron];
    }
    return acting;
}

/* One chunk of neurons, from input to their part of the output: nothing needs to be waited for in between. */
static void feed_chunk(const Step *step, const Layer *layer, int64_t chunk, const float *x, const Scratch *scratch)
{
    const Model *model = step->model;
    const FeedForward *feed_forward = &layer->feed_forward;
    int64_t neurons = feed_forward->gate.rows, chunks = chunk_count(neurons);
    int64_t first = neurons * chunk / chunks, behind = neurons * (chunk + 1) / chunks, count = behind - first;
    float *sum = step->partial_sums + chunk * model->width;
    memset(sum, 0, (size_t)model->width * sizeof *sum);
    dot_rows(step, scratch->gate, &feed_forward->gate, first, behind, x);
    if (feed_forward->thresholds) {
        step->kernels->activate(scratch->gate, NULL, count, model->activation);
        int64_t acting = gate_chunk(feed_forward->thresholds, first, behind, scratch);
        /* Of neurons at rest nothing more is read. */
        step->kernels->add_acting[model->bfloat16](sum, feed_forward, scratch->acting, acting, scratch->gate, x);
        return;
    }
    bool gated = feed_forward->up.weight;
    if (gated)
        dot_rows(step, scratch->up, &feed_forward->up, first, behind, x);
    step->kernels->activate(scratch->gate, gated ? scratch->up : NULL, count, model->activation);
    step->kernels->add[model->bfloat16](
        sum, row(model, feed_forward->contract.weight, first, model->width), count, model->width, scratch->gate);
}

static void feed(Step *step, const Layer *layer, const float *x, const Scratch *scratch)
{
    int64_t first, behind;
    while (claim(&step->team, chunk_count(layer->feed_forward.gate.rows), 1, &first, &behind))
        for (; first < behind; first++)
            feed_chunk(step, layer, first, x, scratch);
}

static void sum_chunks(const Step *step, const Layer *layer, float *out)
{
    int64_t width = step->model->width;
    if (layer->feed_forward.contract.bias)
        memcpy(out, layer->feed_forward.contract.bias, (size_t)width * sizeof *out);
    else
        memset(out, 0, (size_t)width * sizeof *out);
    for (int64_t chunk = 0; chunk < chunk_count(layer->feed_forward.gate.rows); chunk++)
        accumulate(out, step->partial_sums + chunk * width, width);
}

static void decode_layer(Step *step, const Layer *layer, const Scratch *scratch)
{
    const Model *model = step->model;
    const float *x = normed(step, &layer->before_attention, scratch->x, scratch->normed);
    project(step, step->query_key_value, &layer->query_key_value, x);
    barrier(&step->team);
    attend(step, layer, scratch);
    barrier(&step->team);
    project(step, step->projected, &layer->output, step->attended);
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

static void predict(Step *step, const float *x)
{
    const Model *model = step->model;
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / (int64_t)row_bytes(model, model->width);
    int64_t first, behind;
    while (claim(&step->team, model->head.rows, smallest, &first, &behind)) {
        dot_rows(step, step->logits + first, &model->head, first, behind, x);
        if (model->logit_divisor != 1)
            divide(step->logits + first, behind - first, (float)model->logit_divisor);
        if (model->logit_cap != 0)
            step->kernels->cap(step->logits + first, behind - first, (float)model->logit_cap);
    }
}

static void decode(Step *step, int member)
{
    const Model *model = step->model;
    const Scratch *scratch = &step->scratch[member];
    embed(step, scratch->x);
    for (int64_t number = 0; number < model->layer_count; number++)
        decode_layer(step, &model->layers[number], scratch);
    predict(step, normed(step, &model->final_norm, scratch->x, scratch->normed));
}

/* One of a projection's rows, if there is one; stride: from a row to the next of those it joins, in rows. */
static void copy_row(
    const Model *model, const Projection *to, int64_t target, int64_t stride, const Projection *from, int64_t source)
{
    if (!to->weight)
        return;
    size_t bytes = row_bytes(model, from->columns);
    memcpy((char *)to->weight + (size_t)(target * stride) * bytes,
           (const char *)from->weight + (size_t)source * bytes, bytes);
}

static void copy_bias(const Projection *to, int64_t target, const Projection *from, int64_t source)
{
    if (to->bias)
        to->bias[target] = from->bias[source];
}

static void keep_neuron(const Model *model, const FeedForward *kept, int64_t target, const FeedForward *all, int64_t source)
{
    copy_row(model, &kept->gate, target, 1, &all->gate, source);
    copy_row(model, &kept->up, target, kept->stride, &all->up, source);
    copy_row(model, &kept->contract, target, kept->stride, &all->contract, source);
    copy_bias(&kept->gate, target, &all->gate, source);
    copy_bias(&kept->up, target, &all->up, source);
}

/* Kept neurons of all layers are numbered through, and split over the team. */
static void keep(Step *step, int member)
{
    (void)member;
    int64_t layers = step->model->layer_count, first, behind, total = 0;
    for (int64_t layer = 0; layer < layers; layer++)
        total += step->kept[layer].gate.rows;
    while (claim(&step->team, total, 16, &first, &behind)) {
        for (int64_t layer = 0, start = 0; layer < layers && start < behind; layer++) {
            int64_t end = start + step->kept[layer].gate.rows;
            for (; first < behind && first < end; first++)
                keep_neuron(step->model, &step->kept[layer], first - start, &step->all[layer], step->which[first]);
            start = end;
        }
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
        neurons = largest(neurons, model->layers[i].feed_forward.gate.rows);
    size_t used = 0;
    step->query_key_value = take(memory, &used, (model->heads + 2 * model->kv_heads) * size);
    step->attended = take(memory, &used, model->heads * size);
    step->projected = take(memory, &used, model->width);
    step->partial_sums = take(memory, &used, CHUNKS * model->width);
    for (int i = 0; i < step->team.size; i++) {
        Scratch *scratch = &step->scratch[i];
        scratch->x = take(memory, &used, model->width);
        scratch->normed = take(memory, &used, model->width);
        scratch->change = take(memory, &used, widest);
        scratch->query = take(memory, &used, size);
        scratch->key = take(memory, &used, size);
        scratch->value = take(memory, &used, size);
        scratch->scores = take(memory, &used, SCORES);
        scratch->gate = take(memory, &used, neurons / CHUNKS + 1);
        scratch->up = take(memory, &used, neurons / CHUNKS + 1);
        scratch->acting = (int32_t *)take(memory, &used, neurons / CHUNKS + 1);
    }
    return used;
}

/* started: threads besides the caller that are there to be joined. */
static void dismiss(Step *step, int started)
{
    Team *team = &step->team;
    pthread_mutex_lock(&team->lock);
    team->closing = true;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    for (int i = 1; i <= started; i++)
        pthread_join(team->members[i].thread, NULL);
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->wake);
    free(team->members);
    free(step->scratch);
    free(step->memory);
    free(step);
}

/* Sizes of the structures above, for step.py to compare with its own: a library may be older than the package. */
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
    Team *team = &step->team;
    team->size = threads;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->wake, NULL);
    team->members = calloc((size_t)threads, sizeof *team->members);
    step->scratch = calloc((size_t)threads, sizeof *step->scratch);
    int started = 0;
    if (team->members && step->scratch
        && !posix_memalign(&step->memory, ALIGNMENT, lay_out(step, NULL) * sizeof(float))) {
        lay_out(step, step->memory);
        for (; started < threads - 1; started++) {
            Member *member = &team->members[started + 1];
            member->step = step;
            member->number = started + 1;
            if (pthread_create(&member->thread, NULL, serve, member))
                break;
        }
        if (started == threads - 1)
            return step;
    }
    dismiss(step, started);
    return NULL;
}

/* One token. Its key and value are written at the position; logits: (V,). */
API void griffin_step(Step *step, int64_t id, int64_t position, float *logits)
{
    step->id = id;
    step->position = position;
    step->query_scale = query_scale(step->model, position);
    step->logits = logits;
    turn_rotaries(step->model, position);
    run(step, decode);
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
    run(step, keep);
}

API void griffin_close(Step *step)
{
    dismiss(step, step->team.size - 1);
}

#else

/* ---- Kernels for one instruction set. ---- */

#define LANES (VECTOR_BYTES / 4)

typedef float KERNEL(Vector) __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t KERNEL(Bits) __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t KERNEL(Halves) __attribute__((vector_size(VECTOR_BYTES / 2)));
#define Vector KERNEL(Vector)
#define INLINE static inline __attribute__((always_inline))
/* Over rows whose number is known where this is inlined: what is held of each then lies in registers. */
#define UNROLLED _Pragma("GCC unroll 4")

/* To 32 bits each. The compiler itself needs four instructions for what the processor does in one. */
INLINE KERNEL(Bits) KERNEL(widen)(KERNEL(Halves) halves)
{
#if VECTOR_BYTES == 64
    return (KERNEL(Bits))_mm512_cvtepu16_epi32((__m256i)halves);
#elif VECTOR_BYTES == 32
    return (KERNEL(Bits))_mm256_cvtepu16_epi32((__m128i)halves);
#else
    return __builtin_convertvector(halves, KERNEL(Bits));
#endif
}

INLINE Vector KERNEL(load)(const char *rows, int64_t at, bool bfloat16)
{
    if (bfloat16) {
        KERNEL(Halves) halves;
        memcpy(&halves, rows + 2 * at, sizeof halves);
        return (Vector)(KERNEL(widen)(halves) << 16);
    }
    Vector vector;
    memcpy(&vector, rows + 4 * at, sizeof vector);
    return vector;
}

INLINE float KERNEL(load_one)(const char *rows, int64_t at, bool bfloat16)
{
    float value;
    uint16_t half;
    if (bfloat16) {
        memcpy(&half, rows + 2 * at, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, rows + 4 * at, sizeof value);
    }
    return value;
}

INLINE float KERNEL(sum)(Vector vector)
{
    typedef float Quad __attribute__((vector_size(16)));
    Quad quads[LANES / 4];
    memcpy(quads, &vector, sizeof vector);
    for (int width = LANES / 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            quads[i] += quads[i + width];
    return (quads[0][0] + quads[0][1]) + (quads[0][2] + quads[0][3]);
}

/*
 * out_k = row_k . x, of some rows at once, results that far apart; each is summed up alike, however many there are.
 * ahead: a row, or another place, for each of them, that is fetched meanwhile.
 */
INLINE void KERNEL(dot_some)(
    float *out, int64_t apart, const char *const *rows, const char *const *ahead, int some, int64_t width,
    const float *x, bool bfloat16)
{
    Vector even[STREAMS] = {{0}}, odd[STREAMS] = {{0}};
    float rest[STREAMS] = {0};
    int64_t size = bfloat16 ? 2 : 4, i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        UNROLLED for (int k = 0; k < some; k++)
            ask_for(ahead[k] + i * size, 4 * LANES * size);
        for (int64_t at = i; at < i + 4 * LANES; at += 2 * LANES) {
            Vector first = KERNEL(load)((const char *)x, at, false);
            Vector second = KERNEL(load)((const char *)x, at + LANES, false);
            UNROLLED for (int k = 0; k < some; k++) {
                even[k] += KERNEL(load)(rows[k], at, bfloat16) * first;
                odd[k] += KERNEL(load)(rows[k], at + LANES, bfloat16) * second;
            }
        }
    }
    for (; i + LANES <= width; i += LANES)
        UNROLLED for (int k = 0; k < some; k++)
            even[k] += KERNEL(load)(rows[k], i, bfloat16) * KERNEL(load)((const char *)x, i, false);
    for (; i < width; i++)
        UNROLLED for (int k = 0; k < some; k++)
            rest[k] += KERNEL(load_one)(rows[k], i, bfloat16) * x[i];
    UNROLLED for (int k = 0; k < some; k++)
        out[k * apart] = KERNEL(sum)(even[k] + odd[k]) + rest[k];
}

INLINE void KERNEL(dot)(float *out, const void *rows, int64_t count, int64_t width, const float *x, bool bfloat16)
{
    int64_t bytes = width * (bfloat16 ? 2 : 4), part = count / STREAMS;
    const char *row = rows, *at[STREAMS], *ahead[STREAMS];
    for (int64_t i = 0; i < part; i++, row += bytes) {
        UNROLLED for (int k = 0; k < STREAMS; k++) {
            at[k] = row + k * part * bytes;
            ahead[k] = at[k] + AHEAD_BYTES;
        }
        KERNEL(dot_some)(out + i, part, at, ahead, STREAMS, width, x, bfloat16);
    }
    row += (STREAMS - 1) * part * bytes;
    for (int64_t i = STREAMS * part; i < count; i++, row += bytes) {
        const char *behind = row + AHEAD_BYTES;
        KERNEL(dot_some)(out + i, 0, &row, &behind, 1, width, x, bfloat16);
    }
}

static void KERNEL(dot_float)(float *out, const void *rows, int64_t count, int64_t width, const float *x)
{
    KERNEL(dot)(out, rows, count, width, x, false);
}

static void KERNEL(dot_bfloat16)(float *out, const void *rows, int64_t count, int64_t width, const float *x)
{
    KERNEL(dot)(out, rows, count, width, x, true);
}

INLINE void KERNEL(add_vectors)(
    float *y, const char *const *rows, int some, int64_t at, const float *z, bool bfloat16)
{
    Vector sum = KERNEL(load)((const char *)y, at, false);
    UNROLLED for (int k = 0; k < some; k++)
        sum += z[k] * KERNEL(load)(rows[k], at, bfloat16);
    memcpy(y + at, &sum, sizeof sum);
}

/* y += sum over k of z_k row_k, of some rows at once; ahead: as in dot_some. */
INLINE void KERNEL(add_some)(
    float *y, const char *const *rows, const char *const *ahead, int some, int64_t width, const float *z, bool bfloat16)
{
    int64_t size = bfloat16 ? 2 : 4, i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        UNROLLED for (int k = 0; k < some; k++)
            ask_for(ahead[k] + i * size, 4 * LANES * size);
        for (int64_t at = i; at < i + 4 * LANES; at += LANES)
            KERNEL(add_vectors)(y, rows, some, at, z, bfloat16);
    }
    for (; i + LANES <= width; i += LANES)
        KERNEL(add_vectors)(y, rows, some, i, z, bfloat16);
    for (; i < width; i++)
        UNROLLED for (int k = 0; k < some; k++)
            y[i] += z[k] * KERNEL(load_one)(rows[k], i, bfloat16);
}

INLINE void KERNEL(add)(float *y, const void *rows, int64_t count, int64_t width, const float *z, bool bfloat16)
{
    int64_t bytes = width * (bfloat16 ? 2 : 4), part = count / PAIR;
    const char *row = rows, *at[PAIR], *ahead[PAIR];
    float factors[PAIR];
    for (int64_t i = 0; i < part; i++, row += bytes) {
        UNROLLED for (int k = 0; k < PAIR; k++) {
            at[k] = row + k * part * bytes;
            ahead[k] = at[k] + AHEAD_BYTES;
            factors[k] = z[i + k * part];
        }
        KERNEL(add_some)(y, at, ahead, PAIR, width, factors, bfloat16);
    }
    row += (PAIR - 1) * part * bytes;
    for (int64_t i = PAIR * part; i < count; i++, row += bytes) {
        const char *behind = row + AHEAD_BYTES;
        KERNEL(add_some)(y, &row, &behind, 1, width, z + i, bfloat16);
    }
}

static void KERNEL(add_float)(float *y, const void *rows, int64_t count, int64_t width, const float *z)
{
    KERNEL(add)(y, rows, count, width, z, false);
}

static void KERNEL(add_bfloat16)(float *y, const void *rows, int64_t count, int64_t width, const float *z)
{
    KERNEL(add)(y, rows, count, width, z, true);
}

/* What some neurons give. later: others, whose rows are fetched meanwhile. */
INLINE void KERNEL(add_neurons)(
    float *y, const FeedForward *feed_forward, const int32_t *which, const int32_t *later, int some, const float *given,
    const float *x, bool bfloat16)
{
    int64_t width = feed_forward->contract.columns, stride = feed_forward->stride * width * (bfloat16 ? 2 : 4);
    const char *up = feed_forward->up.weight, *contract = feed_forward->contract.weight, *at[PAIR], *ahead[PAIR];
    const float *bias = feed_forward->up.bias;
    float z[PAIR] = {1, 1};
    if (up) {
        UNROLLED for (int k = 0; k < some; k++) {
            at[k] = up + which[k] * stride;
            ahead[k] = up + later[k] * stride;
        }
        KERNEL(dot_some)(z, 1, at, ahead, some, width, x, bfloat16);
        UNROLLED for (int k = 0; k < some && bias; k++)
            z[k] += bias[which[k]];
    }
    UNROLLED for (int k = 0; k < some; k++) {
        z[k] = given[k] * z[k] - feed_forward->resting[which[k]];
        at[k] = contract + which[k] * stride;
        ahead[k] = contract + later[k] * stride;
    }
    KERNEL(add_some)(y, at, ahead, some, width, z, bfloat16);
}

INLINE void KERNEL(add_acting)(
    float *y, const FeedForward *feed_forward, const int32_t *which, int64_t count, const float *given, const float *x,
    bool bfloat16)
{
    int64_t half = count / 2, last = count - 1;
    for (int64_t i = 0; i < half; i++) {
        bool more = i + 1 < half;
        int32_t now[] = {which[i], which[i + half]};
        int32_t later[] = {which[more ? i + 1 : last], which[more ? i + 1 + half : last]};
        float both[] = {given[i], given[i + half]};
        KERNEL(add_neurons)(y, feed_forward, now, later, 2, both, x, bfloat16);
    }
    if (count % 2)
        KERNEL(add_neurons)(y, feed_forward, which + last, which + last, 1, given + last, x, bfloat16);
}

static void KERNEL(add_acting_float)(
    float *y, const FeedForward *feed_forward, const int32_t *which, int64_t count, const float *given, const float *x)
{
    KERNEL(add_acting)(y, feed_forward, which, count, given, x, false);
}

static void KERNEL(add_acting_bfloat16)(
    float *y, const FeedForward *feed_forward, const int32_t *which, int64_t count, const float *given, const float *x)
{
    KERNEL(add_acting)(y, feed_forward, which, count, given, x, true);
}

INLINE float KERNEL(total)(const float *x, int64_t count, float less, bool squared)
{
    Vector sum = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Vector value = KERNEL(load)((const char *)x, i, false) - less;
        sum += squared ? value * value : value;
    }
    float rest = 0;
    for (; i < count; i++)
        rest += squared ? (x[i] - less) * (x[i] - less) : x[i] - less;
    return KERNEL(sum)(sum) + rest;
}

static void KERNEL(norm)(float *out, const float *x, const Norm *norm)
{
    int64_t width = norm->width;
    float mean = norm->centred ? KERNEL(total)(x, width, 0, false) / (float)width : 0;
    float factor = 1 / sqrtf(KERNEL(total)(x, width, mean, true) / (float)width + norm->eps);
    for (int64_t i = 0; i < width; i++)
        out[i] = (x[i] - mean) * factor * norm->weight[i];
    for (int64_t i = 0; norm->bias && i < width; i++)
        out[i] += norm->bias[i];
}

/* Within 2 units in the last place. Written for the compiler to vectorise: neither calls nor branches. */
INLINE float KERNEL(exponential)(float x)
{
    const float magic = 0x1.8p23f;
    x = x > 88 ? 88 : x;
    x = x < -87 ? -87 : x;
    float whole = x * 0x1.715476p0f + magic;
    uint32_t bits;
    memcpy(&bits, &whole, sizeof bits);
    whole -= magic;
    float r = x - whole * 0x1.62e4p-1f;
    r -= whole * 0x1.7f7d1cp-20f;
    float power = 1.9875691500e-4f;
    power = power * r + 1.3981999507e-3f;
    power = power * r + 8.3334519073e-3f;
    power = power * r + 4.1665795894e-2f;
    power = power * r + 1.6666665459e-1f;
    power = power * r + 5.0000001201e-1f;
    power = power * r * r + r + 1;
    bits = (bits << 23) + 0x3f800000u;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return power * scale;
}

INLINE float KERNEL(activated)(float x, int64_t activation)
{
    switch (activation) {
    case SILU:
        return x / (1 + KERNEL(exponential)(-x));
    case GELU:
        return 0.5f * x * (1 + erff(x * 0x1.6a09e6p-1f));
    case GELU_TANH:
        /* (1 + tanh(u)) / 2 is 1 / (1 + e^-2u). */
        return x / (1 + KERNEL(exponential)(-0x1.988454p0f * (x + 0.044715f * x * x * x)));
    default:
        return x > 0 ? x : 0;
    }
}

INLINE void KERNEL(activate_all)(float *z, const float *up, int64_t count, int64_t activation)
{
    for (int64_t i = 0; i < count; i++)
        z[i] = KERNEL(activated)(z[i], activation);
    for (int64_t i = 0; up && i < count; i++)
        z[i] *= up[i];
}

static void KERNEL(activate)(float *z, const float *up, int64_t count, int64_t activation)
{
    switch (activation) {
    case SILU:
        KERNEL(activate_all)(z, up, count, SILU);
        break;
    case GELU:
        KERNEL(activate_all)(z, up, count, GELU);
        break;
    case GELU_TANH:
        KERNEL(activate_all)(z, up, count, GELU_TANH);
        break;
    default:
        KERNEL(activate_all)(z, up, count, RELU);
    }
}

static float KERNEL(exponentials)(float *values, int64_t count, float highest)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = KERNEL(exponential)(values[i] - highest);
    return KERNEL(total)(values, count, 0, false);
}

/* tanh(u) is 1 - 2 / (1 + e^2u). */
static void KERNEL(cap)(float *values, int64_t count, float cap)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = cap - 2 * cap / (1 + KERNEL(exponential)(2 / cap * values[i]));
}

static const Kernels KERNEL(kernels) = {
    .dot = {KERNEL(dot_float), KERNEL(dot_bfloat16)},
    .add = {KERNEL(add_float), KERNEL(add_bfloat16)},
    .add_acting = {KERNEL(add_acting_float), KERNEL(add_acting_bfloat16)},
    .norm = KERNEL(norm),
    .activate = KERNEL(activate),
    .exponentials = KERNEL(exponentials),
    .cap = KERNEL(cap),
};

#undef LANES
#undef Vector
#undef INLINE
#undef UNROLLED

#endif
