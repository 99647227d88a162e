/*
 * Kernels, compiled once for each instruction set. The best one that the processor has is chosen when a step is opened.
 */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "model.h"
#include "team.h"

/* Weights are asked for so much ahead of where they are read; from 2,048 to 8,192 it makes little difference. */
#define AHEAD_BYTES 4096
/* Products walk their rows in so many places at once: the processor's own prefetching goes page by page. */
#define STREAMS 4
/* Rows that are added to one sum at a time. More gain nothing, and would leave over more of the acting neurons. */
#define PAIR 2

/* What a format must be able to do. Another one is a row of products in kernels_for.h. */
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

static inline int64_t code_bytes(int64_t format)
{
    return format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1;
}

/* One code of a row, as a float. */
static inline float load_number(const char *codes, int64_t number, int64_t format)
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
#include "kernels_for.h"
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
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
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return &kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &kernels_avx2;
#endif
    return &kernels_baseline;
}
