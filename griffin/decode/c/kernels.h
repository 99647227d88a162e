/*
 * Kernels, compiled once for each instruction set. Opening a step chooses the best set that the processor has.
 */

#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../../model/matrix/c/halves.h"
#include "../../model/matrix/c/instructions.h"
#include "model.h"
#include "team.h"

/* Weights are prefetched this far ahead. From 2,048 to 8,192 bytes there is little difference. */
#define AHEAD_BYTES 4096
/* If rows are skipped, this many later rows of each stream are prefetched. */
#define AHEAD_ROWS 8
/* Products read their rows in this many places at once, because the processor's own prefetching stops at each page. */
#define STREAMS 4
/* Rows that are added to one sum, or multiplied by x, at a time. More would not be faster. */
#define PAIR 2
/* The most tokens by which some rows are multiplied at once. Their sums stay in registers. */
#define SOME_TOKENS 4
/* Pairs of rows that are multiplied by some tokens, before other tokens: their activations stay in the L1 cache. */
#define PAIRS_AT_ONCE 4

/* The most rows that share a scale. */
#define RUN 32
/* Numbers of a superblock, which share the second level of scales. */
#define SUPER 256
/* The largest integer that an activation becomes. */
#define LARGEST 32767
/* If all numbers are smaller than this, they become zeros. */
#define SMALLEST 0x1p-100f

/*
 * Activations. They are also integers if a grouped matrix is multiplied by them, otherwise only ``values``.
 *
 * Blocks of 32 have a scale. Sixteen blocks are a tile, of sixteen times sixteen pairs: pair b of number 2 q + i has the
 * activations 32 b + 4 q + i and 32 b + 4 q + i + 2.
 * scales: of each block.
 * weighted: of a tile, for each block: the sum of its first 16, of its second 16, and of all 32, times the scale.
 */
typedef struct {
    const float *values;
    int32_t *pairs;
    float *scales, *weighted;
} Input;

/* Weights of the rows of one group, as pairs of integers, and their sum. */
typedef struct {
    int32_t pairs[RUN / 2];
    float scale, sum;
} Weights;

/* The rows of a list from number ``first`` on that belong to one group of the matrix. */
typedef struct {
    int64_t number, first, count;
    Weights weights;
} Group;

/* The number of quads that a group's rows fill. */
static inline int64_t quads_of(const Group *group)
{
    return (group->count + 3) / 4;
}

/*
 * Rows by their numbers, in ascending order, and the weight of each.
 * groups: room for as many groups as there are rows, or as can exist; ``plan`` fills it if the format has groups.
 */
typedef struct {
    int32_t *rows;
    float *z;
    Group *groups;
    int64_t count, group_count;
} List;

/*
 * Successive groups of one superblock, by ascending number. One token's sums of a tile stay in registers.
 *
 * groups: for each group, one with the weights of each token.
 * quads: number of quads of rows; each group's begin anew.
 * rows: where they begin.
 * super: place of the superblock's factors.
 */
typedef struct {
    const Group *groups;
    int64_t count, quads, super;
    const char *rows[SUPER];
} Stretch;

/* What is fetched meanwhile: the tile from column ``start`` on of a stretch. */
typedef struct {
    const Stretch *stretch;
    int64_t start;
} Later;

/* One token's numbers; the next token's follow after ``stride`` floats. */
typedef struct {
    float *at;
    int64_t apart;
} Outputs;

/* The numbers from i on of token t. */
static inline Outputs beyond(Outputs outputs, int64_t t, int64_t i)
{
    return (Outputs){outputs.at + t * outputs.apart + i, outputs.apart};
}

/* The operations of a format. A new format is a row of products in kernels_for.h. */
typedef struct {
    /* out_i = row first + i . x, for each token's x. A token's results have the same bits with any other tokens. */
    void (*dot)(Outputs out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, int tokens);
    /* y += sum over i of z_i row first + i, for each token's y and z. Again the bits do not depend on other tokens. */
    void (*add)(Outputs y, const Matrix *matrix, int64_t first, int64_t count, Outputs z, int tokens);
    /* The same for listed rows, in ascending order. A list is planned once, before all products with it. */
    void (*dot_some)(float *out, const Matrix *matrix, const int32_t *rows, int64_t count, const Input *x);
    void (*plan)(List *list, const Matrix *matrix);
    void (*add_list)(float *y, const Matrix *matrix, const List *list);
} Format;

/* Rows of numbers, ``stride`` bytes from one to the next. */
typedef struct {
    const char *at;
    int64_t stride, rows;
} Table;

typedef struct {
    Format formats[FORMATS];
    /* Make the integers for ``count`` of the ``values``, a multiple of 32. */
    void (*make_whole)(Input *input, int64_t count);
    void (*norm)(float *out, const float *x, const Norm *norm);
    /* z = activation(z) up; up may be NULL */
    void (*activate)(float *z, const float *up, int64_t count, int64_t activation);
    /* e to the power of (each value - the highest); returns their sum */
    float (*exponentials)(float *values, int64_t count, float highest);
    /* c tanh(x / c) */
    void (*cap)(float *values, int64_t count, float cap);
    /* For some columns, the mean of z over rows where |z| <= limit |up|, and of ``extra`` zeros. No up counts as 1. */
    void (*rest_means)(
        float *resting, const Table *z, const Table *up, int64_t format, const float *limits, float extra,
        int64_t first, int64_t end);
} Kernels;

static inline float from_half(uint16_t half, int64_t format)
{
    float value;
    uint32_t bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return format == FLOAT16 ? from_float16(half) : value;
}

/* The group that a row belongs to. */
static inline int64_t group_of(const Matrix *matrix, int64_t row)
{
    const int32_t *neurons = matrix->groups.neurons;
    return (neurons ? neurons[row] : row) / matrix->groups.size;
}

static inline int64_t code_bytes(int64_t format)
{
    return format == FLOAT32 ? 4 : format == BFLOAT16 || format == FLOAT16 ? 2 : 1;
}

static inline bool is_grouped(const Matrix *matrix)
{
    return matrix->codes && matrix->format >= GROUPED4;
}

/* The scale or minimum with number ``at`` of a record; ``super``: the number of its superblock. */
static inline float load_scale(const char *scales, const char *supers, int64_t at, int64_t super)
{
    uint16_t half;
    memcpy(&half, supers ? supers + 2 * super : scales + 2 * at, sizeof half);
    return supers ? from_float16(half) * (float)(int8_t)scales[at] : from_float16(half);
}

/* One number of a row whose groups lie along it. */
static inline float load_grouped(const Matrix *matrix, int64_t row, int64_t column)
{
    const Groups *groups = &matrix->groups;
    int64_t block = column / 32, tile = block / 16 * 16, left = matrix->columns / 32 - tile;
    int64_t blocks = left < 16 ? left : 16, bits = matrix->format == GROUPED4 ? 4 : matrix->format == GROUPED6 ? 6 : 8;
    int64_t quad = column % 32 / 4, upper = quad / 4, lower = quad % 4, record = row * matrix->stride;
    const uint8_t *at = (uint8_t *)matrix->codes + record + tile * 4 * bits + 4 * (block - tile) + column % 4;
    int code;
    if (bits == 8)
        code = at[quad * 4 * blocks];
    else
        code = at[lower * 4 * blocks] >> 4 * upper & 15;
    if (bits == 6)
        code |= (at[(4 + lower / 2) * 4 * blocks] >> (lower % 2 * 4 + upper * 2) & 3) << 4;
    int64_t halves = 32 / groups->size, half = halves == 2 ? upper : 0, super = column / 256;
    int64_t scale = tile * halves + half * blocks + block - tile;
    float value = load_scale(groups->scales + record, groups->supers ? groups->supers + record : NULL, scale, super)
                  * ((float)code - groups->zero);
    if (groups->minimums)
        value += load_scale(
            groups->minimums + record, groups->supers ? groups->super_minimums + record : NULL, scale, super);
    return value;
}

/* One code of a row, as a float. */
static inline float load_number(const char *codes, int64_t number, int64_t format)
{
    float value;
    if (format == INT8)
        return (float)*(const int8_t *)(codes + number);
    if (format == BFLOAT16 || format == FLOAT16) {
        uint16_t half;
        memcpy(&half, codes + 2 * number, sizeof half);
        return from_half(half, format);
    }
    memcpy(&value, codes + 4 * number, sizeof value);
    return value;
}

/*
 * Start to fetch one line into the L2 cache. L2 can have more requests under way than L1, so with skipped rows this is
 * 1.2 to 1.5 times as fast. The address may lie outside our memory, because a prefetch never fails.
 */
static inline void ask_for_line(const char *at)
{
    __builtin_prefetch(at, 0, 2);
}

static inline void ask_for(const char *at, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += ALIGNMENT)
        ask_for_line(at + i);
}

/* The factor that makes the largest of some numbers LARGEST. 0 if it is too small to divide by, or not finite. */
static inline float inverse_of(float highest)
{
    return highest > SMALLEST && highest <= FLT_MAX ? LARGEST / highest : 0;
}

/* The nearest integer; any integer for NaN. */
static inline int32_t to_whole(float value)
{
    return (int32_t)rintf(value < LARGEST ? value : LARGEST);
}

/* Two numbers of 16 bits in one: number 2 q + i has those in the places 4 q + i and 4 q + i + 2. */
static inline int32_t pair_of(const int32_t *whole, int number)
{
    int first = number / 2 * 4 + number % 2;
    return (int32_t)((uint32_t)whole[first + 2] << 16 | (uint16_t)whole[first]);
}

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define KERNEL(name) PASTE(name, TARGET)

#define TARGET baseline
#define VECTOR_BYTES 16
#include "kernels_for.h"
#undef TARGET
#undef VECTOR_BYTES

#ifdef __x86_64__
#define TARGET avx2
#define VECTOR_BYTES 32
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "kernels_for.h"
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#include "kernels_for.h"
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
    if (best_instructions() >= AVX512_VNNI)
        return &kernels_avx512;
    if (best_instructions() >= AVX2)
        return &kernels_avx2;
#endif
    return &kernels_baseline;
}
