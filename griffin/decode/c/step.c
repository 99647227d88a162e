/*
 * One decode step of the common block (see weights.py), compiled: a token's id in, logits out.
 *
 * Decoding one token reads every weight once, so its speed is that of memory. A core reads memory fastest as a few
 * ascending streams, hence: each product walks its rows in the order they are stored, in several places at once; kept
 * neurons are copied next to each other once per request, as hopping between them in place takes longer than reading
 * them all. Weights are asked for in advance: the processor itself does so too late, and begins anew on each page.
 * Activations are fp32 throughout. Each matrix has a format of its own; keys and values are fp32 or bfloat16.
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

/* cosines, sines: (pairs,), written at the beginning of each step. */
typedef struct {
    const float *frequencies;
    float *cosines, *sines;
    int64_t pairs;
    double scaling;
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

/* A cap of 0 is none. */
typedef struct {
    Matrix embedding, positions;
    Projection head;
    Norm final_norm;
    const Layer *layers;
    Rotary *rotaries;
    int64_t layer_count, rotary_count;
    int64_t width, heads, kv_heads, head_size;
    double embedding_scale, scale, score_cap, logit_cap;
    int64_t activation;
    /* Of keys and values: FLOAT32 or BFLOAT16. */
    int64_t cache_format;
} Model;

/* ---- Kernels: what is compiled once for each instruction set. ---- */

/* What a format must be able to do. Another one is a row of FORMATS in the lower half of this file, and nothing else. */
typedef struct {
    /* out_i = row first + i . x */
    void (*dot)(float *out, const Matrix *matrix, int64_t first, int64_t count, const float *x);
    /* y += sum over i of z_i row first + i */
    void (*add)(float *y, const Matrix *matrix, int64_t first, int64_t count, const float *z);
    /* The same of some rows, PAIR at most, by their numbers; meanwhile as many later ones are fetched. */
    void (*dot_some)(
        float *out, const Matrix *matrix, const int32_t *rows, const int32_t *later, int some, const float *x);
    void (*add_some)(
        float *y, const Matrix *matrix, const int32_t *rows, const int32_t *later, int some, const float *z);
} Format;

typedef struct {
    Format formats[FORMATS];
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

/* Of the numbers of a row, without scales. */
static int64_t row_bytes(int64_t format, int64_t columns)
{
    return columns * (format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1);
}

static float load_number(const char *codes, int64_t number, int64_t format)
{
    float value;
    if (format == INT8)
        return (float)*(const int8_t *)(codes + number);
    if (format == BFLOAT16) {
        uint16_t half;
        memcpy(&half, codes + 2 * number, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, codes + 4 * number, sizeof value);
    }
    return value;
}

static void load_row(float *out, const Matrix *matrix, int64_t row)
{
    const char *codes = matrix->codes + row * matrix->stride;
    float scale = matrix->scales ? matrix->scales[row] : 1;
    for (int64_t i = 0; i < matrix->columns; i++)
        out[i] = load_number(codes, i, matrix->format) * scale;
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

/* Into the cache. */
static void store(const Model *model, char *at, const float *values, int64_t count)
{
    if (model->cache_format == FLOAT32) {
        memcpy(at, values, (size_t)count * sizeof *values);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half = to_bfloat16(values[i]);
        memcpy(at + 2 * i, &half, sizeof half);
    }
}

static void accumulate(float *sum, const float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] += values[i];
}

static const Format *format_of(const Step *step, const Matrix *matrix)
{
    return &step->kernels->formats[matrix->format];
}

static void dot_rows(const Step *step, float *out, const Projection *weights, int64_t first, int64_t behind, const float *x)
{
    const Matrix *matrix = &weights->matrix;
    format_of(step, matrix)->dot(out, matrix, first, behind - first, x);
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
    load_row(x, &model->embedding, step->id);
    for (int64_t i = 0; i < width; i++)
        x[i] *= (float)model->embedding_scale;
    const char *positions = model->positions.codes + step->position * model->positions.stride;
    for (int64_t i = 0; model->positions.codes && i < width; i++)
        x[i] += load_number(positions, i, model->positions.format);
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
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / weights->matrix.stride;
    int64_t first, behind;
    while (claim(&step->team, weights->matrix.rows, smallest, &first, &behind))
        dot_rows(step, out + first, weights, first, behind, x);
}

static void rotate(float *head, const Rotary *rotary)
{
    float *mate = head + rotary->pairs;
    for (int64_t i = 0; i < rotary->pairs; i++) {
        float first = head[i], second = mate[i];
        head[i] = first * rotary->cosines[i] - second * rotary->sines[i];
        mate[i] = second * rotary->cosines[i] + first * rotary->sines[i];
    }
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
    format_of(step, keys)->dot(scores, keys, first, count, query);
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
    for (int64_t i = 0; model->cache_format == BFLOAT16 && i < model->head_size; i++) {
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
        scratch->query[i] *= (float)model->scale;

    int64_t bytes = row_bytes(model->cache_format, size), start = group * layer->capacity * bytes;
    Matrix cached_keys = {(char *)layer->keys + start, NULL, layer->capacity, size, bytes, model->cache_format};
    Matrix cached_values = {(char *)layer->values + start, NULL, layer->capacity, size, bytes, model->cache_format};
    if (head % shared == 0) {
        store(model, cached_keys.codes + step->position * bytes, scratch->key, size);
        store(model, cached_values.codes + step->position * bytes, scratch->value, size);
    }

    Attention attention = {step->attended + head * size, -FLT_MAX, 0};
    memset(attention.sum, 0, (size_t)size * sizeof *attention.sum);
    Matrix own_key = {(char *)scratch->key, NULL, 1, size, 0, FLOAT32};
    Matrix own_value = {(char *)scratch->value, NULL, 1, size, 0, FLOAT32};
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

/* What some neurons give: y += sum over k of (given_k (up_k . x + its bias) - resting_k) contract_k. */
static void add_neurons(
    const Step *step, float *y, const FeedForward *feed_forward, const int32_t *which, const int32_t *later, int some,
    const float *given, const float *x)
{
    const Matrix *up = &feed_forward->up.matrix, *contract = &feed_forward->contract.matrix;
    float z[PAIR] = {1, 1};
    if (up->codes)
        format_of(step, up)->dot_some(z, up, which, later, some, x);
    for (int k = 0; k < some; k++) {
        if (feed_forward->up.bias)
            z[k] += feed_forward->up.bias[which[k]];
        z[k] = given[k] * z[k] - feed_forward->resting[which[k]];
    }
    format_of(step, contract)->add_some(y, contract, which, later, some, z);
}

/* What the acting neurons of a chunk give, two at a time; their numbers rise. Rows of the next two are fetched. */
static void add_acting(
    const Step *step, float *y, const FeedForward *feed_forward, int64_t count, const Scratch *scratch, const float *x)
{
    const int32_t *which = scratch->acting;
    const float *given = scratch->gate;
    int64_t half = count / 2, last = count - 1;
    for (int64_t i = 0; i < half; i++) {
        bool more = i + 1 < half;
        int32_t now[] = {which[i], which[i + half]};
        int32_t later[] = {which[more ? i + 1 : last], which[more ? i + 1 + half : last]};
        float both[] = {given[i], given[i + half]};
        add_neurons(step, y, feed_forward, now, later, 2, both, x);
    }
    if (count % 2)
        add_neurons(step, y, feed_forward, which + last, which + last, 1, given + last, x);
}

/* One chunk of neurons, from input to their part of the output: nothing needs to be waited for in between. */
static void feed_chunk(const Step *step, const Layer *layer, int64_t chunk, const float *x, const Scratch *scratch)
{
    const Model *model = step->model;
    const FeedForward *feed_forward = &layer->feed_forward;
    int64_t neurons = feed_forward->gate.matrix.rows, chunks = chunk_count(neurons);
    int64_t first = neurons * chunk / chunks, behind = neurons * (chunk + 1) / chunks, count = behind - first;
    float *sum = step->partial_sums + chunk * model->width;
    memset(sum, 0, (size_t)model->width * sizeof *sum);
    dot_rows(step, scratch->gate, &feed_forward->gate, first, behind, x);
    if (feed_forward->thresholds) {
        step->kernels->activate(scratch->gate, NULL, count, model->activation);
        int64_t acting = gate_chunk(feed_forward->thresholds, first, behind, scratch);
        /* Of neurons at rest nothing more is read. */
        add_acting(step, sum, feed_forward, acting, scratch, x);
        return;
    }
    bool gated = feed_forward->up.matrix.codes;
    if (gated)
        dot_rows(step, scratch->up, &feed_forward->up, first, behind, x);
    step->kernels->activate(scratch->gate, gated ? scratch->up : NULL, count, model->activation);
    const Matrix *contract = &feed_forward->contract.matrix;
    format_of(step, contract)->add(sum, contract, first, count, scratch->gate);
}

static void feed(Step *step, const Layer *layer, const float *x, const Scratch *scratch)
{
    int64_t first, behind;
    while (claim(&step->team, chunk_count(layer->feed_forward.gate.matrix.rows), 1, &first, &behind))
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
    for (int64_t chunk = 0; chunk < chunk_count(layer->feed_forward.gate.matrix.rows); chunk++)
        accumulate(out, step->partial_sums + chunk * width, width);
}

static void decode_layer(Step *step, const Layer *layer, const Scratch *scratch)
{
    int64_t width = step->model->width;
    const float *x = normed(step, &layer->before_attention, scratch->x, scratch->normed);
    project(step, step->query_key_value, &layer->query_key_value, x);
    barrier(&step->team);
    attend(step, layer, scratch);
    barrier(&step->team);
    project(step, step->projected, &layer->output, step->attended);
    barrier(&step->team);
    accumulate(scratch->x, normed(step, &layer->after_attention, step->projected, scratch->normed), width);
    x = normed(step, &layer->before_feed_forward, scratch->x, scratch->normed);
    feed(step, layer, x, scratch);
    barrier(&step->team);
    sum_chunks(step, layer, scratch->change);
    accumulate(scratch->x, normed(step, &layer->after_feed_forward, scratch->change, scratch->normed), width);
}

static void predict(Step *step, const float *x)
{
    const Model *model = step->model;
    int64_t smallest = 1 + SMALLEST_PORTION_BYTES / model->head.matrix.stride;
    int64_t first, behind;
    while (claim(&step->team, model->head.matrix.rows, smallest, &first, &behind)) {
        dot_rows(step, step->logits + first, &model->head, first, behind, x);
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

/* One row. Where the target has another format, whoever made it has filled it. */
static void copy_row(const Projection *to, int64_t target, const Projection *from, int64_t source)
{
    const Matrix *own = &to->matrix, *theirs = &from->matrix;
    if (own->codes && own->format == theirs->format) {
        memcpy(own->codes + target * own->stride, theirs->codes + source * theirs->stride,
               (size_t)row_bytes(own->format, own->columns));
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
static void keep(Step *step, int member)
{
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
typedef int32_t KERNEL(Whole) __attribute__((vector_size(VECTOR_BYTES)));
typedef int8_t KERNEL(Bytes) __attribute__((vector_size(VECTOR_BYTES / 4)));
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

/* Likewise, with their signs. */
INLINE KERNEL(Whole) KERNEL(widen_bytes)(const char *bytes)
{
#if VECTOR_BYTES == 64
    return (KERNEL(Whole))_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes));
#elif VECTOR_BYTES == 32
    return (KERNEL(Whole))_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
#else
    KERNEL(Bytes) codes;
    memcpy(&codes, bytes, sizeof codes);
    return __builtin_convertvector(codes, KERNEL(Whole));
#endif
}

INLINE int64_t KERNEL(size)(int64_t format)
{
    return format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1;
}

/* A vector of a row's codes, as floats. */
INLINE Vector KERNEL(load)(const char *codes, int64_t at, int64_t format)
{
    if (format == INT8)
        return __builtin_convertvector(KERNEL(widen_bytes)(codes + at), Vector);
    if (format == BFLOAT16) {
        KERNEL(Halves) halves;
        memcpy(&halves, codes + 2 * at, sizeof halves);
        return (Vector)(KERNEL(widen)(halves) << 16);
    }
    Vector vector;
    memcpy(&vector, codes + 4 * at, sizeof vector);
    return vector;
}

INLINE float KERNEL(load_one)(const char *codes, int64_t at, int64_t format)
{
    float value;
    if (format == INT8)
        return (float)*(const int8_t *)(codes + at);
    if (format == BFLOAT16) {
        uint16_t half;
        memcpy(&half, codes + 2 * at, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        memcpy(&value, codes + 4 * at, sizeof value);
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
 * out_k = codes_k . x, of some rows at once, results that far apart; each is summed up alike, however many there are.
 * ahead: a row, or another place, for each of them, that is fetched meanwhile.
 */
INLINE void KERNEL(dot_codes)(
    float *out, int64_t apart, const char *const *codes, const char *const *ahead, int some, int64_t width,
    const float *x, int64_t format)
{
    Vector even[STREAMS] = {{0}}, odd[STREAMS] = {{0}};
    float rest[STREAMS] = {0};
    int64_t size = KERNEL(size)(format), i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        UNROLLED for (int k = 0; k < some; k++)
            ask_for(ahead[k] + i * size, 4 * LANES * size);
        for (int64_t at = i; at < i + 4 * LANES; at += 2 * LANES) {
            Vector first = KERNEL(load)((const char *)x, at, FLOAT32);
            Vector second = KERNEL(load)((const char *)x, at + LANES, FLOAT32);
            UNROLLED for (int k = 0; k < some; k++) {
                even[k] += KERNEL(load)(codes[k], at, format) * first;
                odd[k] += KERNEL(load)(codes[k], at + LANES, format) * second;
            }
        }
    }
    for (; i + LANES <= width; i += LANES)
        UNROLLED for (int k = 0; k < some; k++)
            even[k] += KERNEL(load)(codes[k], i, format) * KERNEL(load)((const char *)x, i, FLOAT32);
    for (; i < width; i++)
        UNROLLED for (int k = 0; k < some; k++)
            rest[k] += KERNEL(load_one)(codes[k], i, format) * x[i];
    UNROLLED for (int k = 0; k < some; k++)
        out[k * apart] = KERNEL(sum)(even[k] + odd[k]) + rest[k];
}

INLINE void KERNEL(dot)(
    float *out, const Matrix *matrix, int64_t first, int64_t count, const float *x, int64_t format)
{
    int64_t bytes = matrix->stride, width = matrix->columns, part = count / STREAMS;
    const char *row = matrix->codes + first * bytes, *at[STREAMS], *ahead[STREAMS];
    for (int64_t i = 0; i < part; i++, row += bytes) {
        UNROLLED for (int k = 0; k < STREAMS; k++) {
            at[k] = row + k * part * bytes;
            ahead[k] = at[k] + AHEAD_BYTES;
        }
        KERNEL(dot_codes)(out + i, part, at, ahead, STREAMS, width, x, format);
    }
    row += (STREAMS - 1) * part * bytes;
    for (int64_t i = STREAMS * part; i < count; i++, row += bytes) {
        const char *next = row + AHEAD_BYTES;
        KERNEL(dot_codes)(out + i, 0, &row, &next, 1, width, x, format);
    }
    for (int64_t i = 0; format == INT8 && i < count; i++)
        out[i] *= matrix->scales[first + i];
}

/* Where some rows begin, and as many later ones. */
INLINE void KERNEL(find)(
    const char **at, const char **ahead, const Matrix *matrix, const int32_t *rows, const int32_t *later, int some)
{
    UNROLLED for (int k = 0; k < some; k++) {
        at[k] = matrix->codes + rows[k] * matrix->stride;
        ahead[k] = matrix->codes + later[k] * matrix->stride;
    }
}

INLINE void KERNEL(dot_some)(
    float *out, const Matrix *matrix, const int32_t *rows, const int32_t *later, int some, const float *x,
    int64_t format)
{
    const char *at[PAIR], *ahead[PAIR];
    KERNEL(find)(at, ahead, matrix, rows, later, some);
    KERNEL(dot_codes)(out, 1, at, ahead, some, matrix->columns, x, format);
    UNROLLED for (int k = 0; format == INT8 && k < some; k++)
        out[k] *= matrix->scales[rows[k]];
}

INLINE void KERNEL(add_vectors)(
    float *y, const char *const *codes, int some, int64_t at, const float *z, int64_t format)
{
    Vector sum = KERNEL(load)((const char *)y, at, FLOAT32);
    UNROLLED for (int k = 0; k < some; k++)
        sum += z[k] * KERNEL(load)(codes[k], at, format);
    memcpy(y + at, &sum, sizeof sum);
}

/* y += sum over k of z_k codes_k, of some rows at once; ahead: as in dot_codes. */
INLINE void KERNEL(add_codes)(
    float *y, const char *const *codes, const char *const *ahead, int some, int64_t width, const float *z,
    int64_t format)
{
    int64_t size = KERNEL(size)(format), i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        UNROLLED for (int k = 0; k < some; k++)
            ask_for(ahead[k] + i * size, 4 * LANES * size);
        for (int64_t at = i; at < i + 4 * LANES; at += LANES)
            KERNEL(add_vectors)(y, codes, some, at, z, format);
    }
    for (; i + LANES <= width; i += LANES)
        KERNEL(add_vectors)(y, codes, some, i, z, format);
    for (; i < width; i++)
        UNROLLED for (int k = 0; k < some; k++)
            y[i] += z[k] * KERNEL(load_one)(codes[k], i, format);
}

INLINE void KERNEL(add)(
    float *y, const Matrix *matrix, int64_t first, int64_t count, const float *z, int64_t format)
{
    int64_t bytes = matrix->stride, width = matrix->columns, part = count / PAIR;
    const char *row = matrix->codes + first * bytes, *at[PAIR], *ahead[PAIR];
    const float *scales = format == INT8 ? matrix->scales + first : NULL;
    float factors[PAIR];
    for (int64_t i = 0; i < part; i++, row += bytes) {
        UNROLLED for (int k = 0; k < PAIR; k++) {
            at[k] = row + k * part * bytes;
            ahead[k] = at[k] + AHEAD_BYTES;
            factors[k] = scales ? z[i + k * part] * scales[i + k * part] : z[i + k * part];
        }
        KERNEL(add_codes)(y, at, ahead, PAIR, width, factors, format);
    }
    row += (PAIR - 1) * part * bytes;
    for (int64_t i = PAIR * part; i < count; i++, row += bytes) {
        const char *next = row + AHEAD_BYTES;
        float factor = scales ? z[i] * scales[i] : z[i];
        KERNEL(add_codes)(y, &row, &next, 1, width, &factor, format);
    }
}

INLINE void KERNEL(add_some)(
    float *y, const Matrix *matrix, const int32_t *rows, const int32_t *later, int some, const float *z,
    int64_t format)
{
    const char *at[PAIR], *ahead[PAIR];
    float factors[PAIR];
    KERNEL(find)(at, ahead, matrix, rows, later, some);
    UNROLLED for (int k = 0; k < some; k++)
        factors[k] = format == INT8 ? z[k] * matrix->scales[rows[k]] : z[k];
    KERNEL(add_codes)(y, at, ahead, some, matrix->columns, factors, format);
}

/* The four products of one format, for one instruction set. Both numbers of rows are known where they are inlined. */
#define FORMAT_PRODUCTS(NAME, FORMAT)                                                                                 \
    static void KERNEL(dot_##NAME)(float *out, const Matrix *matrix, int64_t first, int64_t count, const float *x)    \
    {                                                                                                                 \
        KERNEL(dot)(out, matrix, first, count, x, FORMAT);                                                            \
    }                                                                                                                 \
    static void KERNEL(add_##NAME)(float *y, const Matrix *matrix, int64_t first, int64_t count, const float *z)      \
    {                                                                                                                 \
        KERNEL(add)(y, matrix, first, count, z, FORMAT);                                                              \
    }                                                                                                                 \
    static void KERNEL(dot_some_##NAME)(                                                                              \
        float *out, const Matrix *matrix, const int32_t *rows, const int32_t *later, int some, const float *x)        \
    {                                                                                                                 \
        if (some == PAIR)                                                                                             \
            KERNEL(dot_some)(out, matrix, rows, later, PAIR, x, FORMAT);                                              \
        else                                                                                                          \
            KERNEL(dot_some)(out, matrix, rows, later, 1, x, FORMAT);                                                 \
    }                                                                                                                 \
    static void KERNEL(add_some_##NAME)(                                                                              \
        float *y, const Matrix *matrix, const int32_t *rows, const int32_t *later, int some, const float *z)          \
    {                                                                                                                 \
        if (some == PAIR)                                                                                             \
            KERNEL(add_some)(y, matrix, rows, later, PAIR, z, FORMAT);                                                \
        else                                                                                                          \
            KERNEL(add_some)(y, matrix, rows, later, 1, z, FORMAT);                                                   \
    }

FORMAT_PRODUCTS(float32, FLOAT32)
FORMAT_PRODUCTS(bfloat16, BFLOAT16)
FORMAT_PRODUCTS(int8, INT8)
#undef FORMAT_PRODUCTS

INLINE float KERNEL(total)(const float *x, int64_t count, float less, bool squared)
{
    Vector sum = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        Vector value = KERNEL(load)((const char *)x, i, FLOAT32) - less;
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

#define FORMAT_ROW(NAME) {KERNEL(dot_##NAME), KERNEL(add_##NAME), KERNEL(dot_some_##NAME), KERNEL(add_some_##NAME)}
static const Kernels KERNEL(kernels) = {
    .formats = {
        [FLOAT32] = FORMAT_ROW(float32),
        [BFLOAT16] = FORMAT_ROW(bfloat16),
        [INT8] = FORMAT_ROW(int8),
    },
    .norm = KERNEL(norm),
    .activate = KERNEL(activate),
    .exponentials = KERNEL(exponentials),
    .cap = KERNEL(cap),
};

#undef FORMAT_ROW
#undef LANES
#undef Vector
#undef INLINE
#undef UNROLLED

#endif
