/*
 * The kernels for one instruction set: TARGET, with vectors of VECTOR_BYTES. kernels.h includes this file several times.
 */

#define LANES (VECTOR_BYTES / 4)

typedef float KERNEL(Vector) __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t KERNEL(Bits) __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t KERNEL(Halves) __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef int32_t KERNEL(Whole) __attribute__((vector_size(VECTOR_BYTES)));
typedef int8_t KERNEL(Bytes) __attribute__((vector_size(VECTOR_BYTES / 4)));
#define Vector KERNEL(Vector)
#define INLINE static inline __attribute__((always_inline))
/* For loops over rows or tokens whose number is known after inlining. Their values then stay in registers. */
#define UNROLLED _Pragma("GCC unroll 4")
#define UNROLLED_8 _Pragma("GCC unroll 8")
/* AVX512 has 32 registers for sums, others have 16. */
#define TOKENS_AT_ONCE (VECTOR_BYTES == 64 ? SOME_TOKENS : 2)

/* a b + c, fused explicitly. If the compiler decided, a token's bits could differ with the tokens beside it. */
INLINE Vector KERNEL(fused)(Vector a, Vector b, Vector c)
{
#if VECTOR_BYTES == 64
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VECTOR_BYTES == 32
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* To 32 bits each. Written by hand, because the compiler needs four instructions where the processor has one. */
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

/* The same for signed bytes. */
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

INLINE Vector KERNEL(widen_float16)(const char *halves)
{
#if VECTOR_BYTES == 64
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
#elif VECTOR_BYTES == 32
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
#else
    Vector vector;
    for (int i = 0; i < LANES; i++) {
        uint16_t half;
        memcpy(&half, halves + 2 * i, sizeof half);
        vector[i] = from_float16(half);
    }
    return vector;
#endif
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
    if (format == FLOAT16)
        return KERNEL(widen_float16)(codes + 2 * at);
    Vector vector;
    memcpy(&vector, codes + 4 * at, sizeof vector);
    return vector;
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
 * out_k = codes_k . x, for some rows and tokens at once. Results of successive rows are the given distance apart. Each
 * sum is computed in the same way for any number of rows. ahead: for each row a place to prefetch from; or NULL.
 */
INLINE void KERNEL(dot_codes)(
    Outputs out, int64_t apart, const char *const *codes, const char *const *ahead, int some, int64_t width,
    const Input *x, int tokens, int64_t format)
{
    Vector even[STREAMS][SOME_TOKENS] = {{{0}}}, odd[STREAMS][SOME_TOKENS] = {{{0}}};
    float rest[STREAMS][SOME_TOKENS] = {{0}};
    int64_t size = code_bytes(format), i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        UNROLLED for (int k = 0; ahead && k < some; k++)
            ask_for(ahead[k] + i * size, 4 * LANES * size);
        for (int64_t at = i; at < i + 4 * LANES; at += 2 * LANES) {
            Vector first[SOME_TOKENS], second[SOME_TOKENS];
            UNROLLED for (int t = 0; t < tokens; t++) {
                first[t] = KERNEL(load)((const char *)x[t].values, at, FLOAT32);
                second[t] = KERNEL(load)((const char *)x[t].values, at + LANES, FLOAT32);
            }
            UNROLLED for (int k = 0; k < some; k++) {
                Vector one = KERNEL(load)(codes[k], at, format), other = KERNEL(load)(codes[k], at + LANES, format);
                UNROLLED for (int t = 0; t < tokens; t++) {
                    even[k][t] = KERNEL(fused)(one, first[t], even[k][t]);
                    odd[k][t] = KERNEL(fused)(other, second[t], odd[k][t]);
                }
            }
        }
    }
    for (; i + LANES <= width; i += LANES)
        UNROLLED for (int k = 0; k < some; k++) {
            Vector one = KERNEL(load)(codes[k], i, format);
            UNROLLED for (int t = 0; t < tokens; t++)
                even[k][t] = KERNEL(fused)(one, KERNEL(load)((const char *)x[t].values, i, FLOAT32), even[k][t]);
        }
    for (; i < width; i++)
        UNROLLED for (int k = 0; k < some; k++)
            UNROLLED for (int t = 0; t < tokens; t++)
                rest[k][t] += load_number(codes[k], i, format) * x[t].values[i];
    UNROLLED for (int k = 0; k < some; k++)
        UNROLLED for (int t = 0; t < tokens; t++)
            out.at[t * out.apart + k * apart] = KERNEL(sum)(even[k][t] + odd[k][t]) + rest[k][t];
}

/* Rows times one token's x. */
INLINE void KERNEL(dot)(
    Outputs out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, int64_t format)
{
    int64_t bytes = matrix->stride, width = matrix->columns, part = count / STREAMS;
    const char *row = matrix->codes + first * bytes, *at[STREAMS], *ahead[STREAMS];
    for (int64_t i = 0; i < part; i++, row += bytes) {
        UNROLLED for (int k = 0; k < STREAMS; k++) {
            at[k] = row + k * part * bytes;
            ahead[k] = at[k] + AHEAD_BYTES;
        }
        KERNEL(dot_codes)(beyond(out, 0, i), part, at, ahead, STREAMS, width, x, 1, format);
    }
    row += (STREAMS - 1) * part * bytes;
    for (int64_t i = STREAMS * part; i < count; i++, row += bytes) {
        const char *next = row + AHEAD_BYTES;
        KERNEL(dot_codes)(beyond(out, 0, i), 0, &row, &next, 1, width, x, 1, format);
    }
}

/* Rows times several tokens' x: pairs of rows, from two halves of all. */
INLINE void KERNEL(dot_tokens)(
    Outputs out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, int tokens, int64_t format)
{
    int64_t bytes = matrix->stride, width = matrix->columns, part = (count + 1) / PAIR;
    const char *start = matrix->codes + first * bytes;
    for (int64_t i = 0; i < part; i++) {
        /* If the number of rows is odd, the last pair has only one row. */
        int64_t other = i + part < count ? part : 0;
        const char *at[PAIR] = {start + i * bytes, start + (i + other) * bytes};
        const char *ahead[PAIR] = {at[0] + AHEAD_BYTES, at[1] + AHEAD_BYTES};
        int t = 0;
        for (; t + TOKENS_AT_ONCE <= tokens; t += TOKENS_AT_ONCE)
            KERNEL(dot_codes)(
                beyond(out, t, i), other, at, t ? NULL : ahead, PAIR, width, x + t, TOKENS_AT_ONCE, format);
        for (; t + 2 <= tokens; t += 2)
            KERNEL(dot_codes)(beyond(out, t, i), other, at, t ? NULL : ahead, PAIR, width, x + t, 2, format);
        for (; t < tokens; t++)
            KERNEL(dot_codes)(beyond(out, t, i), other, at, t ? NULL : ahead, PAIR, width, x + t, 1, format);
    }
}

INLINE void KERNEL(dot_any)(
    Outputs out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, int tokens, int64_t format)
{
    if (tokens == 1)
        KERNEL(dot)(out, matrix, first, count, x, format);
    else
        KERNEL(dot_tokens)(out, matrix, first, count, x, tokens, format);
    for (int t = 0; format == INT8 && t < tokens; t++)
        for (int64_t i = 0; i < count; i++)
            beyond(out, t, i).at[0] *= matrix->scales[first + i];
}

/* The beginnings of the rows from number i on, and of as many later rows to prefetch. */
INLINE void KERNEL(find)(
    const char **at, const char **ahead, const Matrix *matrix, const int32_t *rows, int64_t i, int some, int64_t count)
{
    UNROLLED for (int k = 0; k < some; k++) {
        int64_t later = i + some + k < count ? i + some + k : count - 1;
        at[k] = matrix->codes + rows[i + k] * matrix->stride;
        ahead[k] = matrix->codes + rows[later] * matrix->stride;
    }
}

INLINE void KERNEL(dot_some)(
    float *out, const Matrix *matrix, const int32_t *rows, int64_t i, int some, int64_t count, const Input *x,
    int64_t format)
{
    const char *at[PAIR], *ahead[PAIR];
    KERNEL(find)(at, ahead, matrix, rows, i, some, count);
    KERNEL(dot_codes)((Outputs){out + i, 0}, 1, at, ahead, some, matrix->columns, x, 1, format);
    UNROLLED for (int k = 0; format == INT8 && k < some; k++)
        out[i + k] *= matrix->scales[rows[i + k]];
}

INLINE void KERNEL(add_vectors)(
    Outputs y, const char *const *codes, int some, int64_t at, const float *z, int tokens, int64_t format)
{
    Vector rows[PAIR];
    UNROLLED for (int k = 0; k < some; k++)
        rows[k] = KERNEL(load)(codes[k], at, format);
    for (int t = 0; t < tokens; t++) {
        Vector sum = KERNEL(load)((const char *)(y.at + t * y.apart), at, FLOAT32);
        UNROLLED for (int k = 0; k < some; k++)
            sum = KERNEL(fused)((Vector){0} + z[PAIR * t + k], rows[k], sum);
        memcpy(y.at + t * y.apart + at, &sum, sizeof sum);
    }
}

/* y += sum over k of z_k codes_k, for some rows at once; a token's z are PAIR apart. ahead: as in dot_codes. */
INLINE void KERNEL(add_codes)(
    Outputs y, const char *const *codes, const char *const *ahead, int some, int64_t width, const float *z, int tokens,
    int64_t format)
{
    int64_t size = code_bytes(format), i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        UNROLLED for (int k = 0; k < some; k++)
            ask_for(ahead[k] + i * size, 4 * LANES * size);
        for (int64_t at = i; at < i + 4 * LANES; at += LANES)
            KERNEL(add_vectors)(y, codes, some, at, z, tokens, format);
    }
    for (; i + LANES <= width; i += LANES)
        KERNEL(add_vectors)(y, codes, some, i, z, tokens, format);
    for (; i < width; i++)
        for (int t = 0; t < tokens; t++)
            UNROLLED for (int k = 0; k < some; k++)
                y.at[t * y.apart + i] += z[PAIR * t + k] * load_number(codes[k], i, format);
}

/* Add some rows that are ``part`` apart. The first is number i of the rows from ``first`` on. */
INLINE void KERNEL(add_rows)(
    Outputs y, const Matrix *matrix, int64_t first, int64_t i, int64_t part, int some, Outputs z, int tokens,
    int64_t format)
{
    const char *at[PAIR], *ahead[PAIR];
    float factors[PAIR * MOST_TOKENS];
    UNROLLED for (int k = 0; k < some; k++) {
        int64_t row = i + k * part;
        float scale = format == INT8 ? matrix->scales[first + row] : 1;
        at[k] = matrix->codes + (first + row) * matrix->stride;
        ahead[k] = at[k] + AHEAD_BYTES;
        for (int t = 0; t < tokens; t++)
            factors[PAIR * t + k] = format == INT8 ? beyond(z, t, row).at[0] * scale : beyond(z, t, row).at[0];
    }
    KERNEL(add_codes)(y, at, ahead, some, matrix->columns, factors, tokens, format);
}

INLINE void KERNEL(add)(
    Outputs y, const Matrix *matrix, int64_t first, int64_t count, Outputs z, int tokens, int64_t format)
{
    int64_t part = count / PAIR;
    for (int64_t i = 0; i < part; i++)
        KERNEL(add_rows)(y, matrix, first, i, part, PAIR, z, tokens, format);
    for (int64_t i = PAIR * part; i < count; i++)
        KERNEL(add_rows)(y, matrix, first, i, 0, 1, z, tokens, format);
}

INLINE void KERNEL(add_any)(
    Outputs y, const Matrix *matrix, int64_t first, int64_t count, Outputs z, int tokens, int64_t format)
{
    if (tokens == 1)
        KERNEL(add)(y, matrix, first, count, z, 1, format);
    else
        KERNEL(add)(y, matrix, first, count, z, tokens, format);
}

INLINE void KERNEL(add_some)(
    float *y, const Matrix *matrix, const List *list, int64_t i, int some, int64_t format)
{
    const char *at[PAIR], *ahead[PAIR];
    float factors[PAIR];
    KERNEL(find)(at, ahead, matrix, list->rows, i, some, list->count);
    UNROLLED for (int k = 0; k < some; k++)
        factors[k] = format == INT8 ? list->z[i + k] * matrix->scales[list->rows[i + k]] : list->z[i + k];
    KERNEL(add_codes)((Outputs){y, 0}, at, ahead, some, matrix->columns, factors, 1, format);
}

static void KERNEL(plan_nothing)(List *list, const Matrix *matrix)
{
    (void)list;
    (void)matrix;
}

/* The products of one format, for one instruction set. Both numbers of rows are known after inlining. */
#define FORMAT_PRODUCTS(NAME, FORMAT)                                                                                 \
    static void KERNEL(dot_##NAME)(                                                                                   \
        Outputs out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, int tokens)                  \
    {                                                                                                                 \
        KERNEL(dot_any)(out, matrix, first, count, x, tokens, FORMAT);                                                \
    }                                                                                                                 \
    static void KERNEL(add_##NAME)(                                                                                   \
        Outputs y, const Matrix *matrix, int64_t first, int64_t count, Outputs z, int tokens)                         \
    {                                                                                                                 \
        KERNEL(add_any)(y, matrix, first, count, z, tokens, FORMAT);                                                  \
    }                                                                                                                 \
    static void KERNEL(dot_some_##NAME)(                                                                              \
        float *out, const Matrix *matrix, const int32_t *rows, int64_t count, const Input *x)                         \
    {                                                                                                                 \
        int64_t i = 0;                                                                                                \
        for (; i + PAIR <= count; i += PAIR)                                                                          \
            KERNEL(dot_some)(out, matrix, rows, i, PAIR, count, x, FORMAT);                                           \
        for (; i < count; i++)                                                                                        \
            KERNEL(dot_some)(out, matrix, rows, i, 1, count, x, FORMAT);                                              \
    }                                                                                                                 \
    static void KERNEL(add_list_##NAME)(float *y, const Matrix *matrix, const List *list)                             \
    {                                                                                                                 \
        int64_t i = 0;                                                                                                \
        for (; i + PAIR <= list->count; i += PAIR)                                                                    \
            KERNEL(add_some)(y, matrix, list, i, PAIR, FORMAT);                                                       \
        for (; i < list->count; i++)                                                                                  \
            KERNEL(add_some)(y, matrix, list, i, 1, FORMAT);                                                          \
    }

FORMAT_PRODUCTS(float32, FLOAT32)
FORMAT_PRODUCTS(bfloat16, BFLOAT16)
FORMAT_PRODUCTS(float16, FLOAT16)
FORMAT_PRODUCTS(int8, INT8)
#undef FORMAT_PRODUCTS

#include "grouped_for.h"

INLINE float KERNEL(total_of)(const float *x, int64_t count, float less, bool squared)
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
    float mean = norm->centred ? KERNEL(total_of)(x, width, 0, false) / (float)width : 0;
    float factor = 1 / sqrtf(KERNEL(total_of)(x, width, mean, true) / (float)width + norm->eps);
    for (int64_t i = 0; i < width; i++)
        out[i] = (x[i] - mean) * factor * norm->weight[i];
    for (int64_t i = 0; norm->bias && i < width; i++)
        out[i] += norm->bias[i];
}

/* e to the power of x, within 2 units in the last place. It has no call or branch, so the compiler vectorises it. */
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
    return KERNEL(total_of)(values, count, 0, false);
}

/* tanh(u) is 1 - 2 / (1 + e^2u). */
static void KERNEL(cap)(float *values, int64_t count, float cap)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = cap - 2 * cap / (1 + KERNEL(exponential)(2 / cap * values[i]));
}

INLINE Vector KERNEL(size)(Vector value)
{
    return (Vector)((Whole)value & 0x7fffffff);
}

/* ``rest_means`` for up to LANES columns. */
INLINE Vector KERNEL(mean_at_rest)(
    const Table *z, const Table *up, int64_t column, Vector limits, float extra, int64_t format)
{
    Vector sum = {0}, count = {0}, most = limits;
    for (int64_t row = 0; row < z->rows; row++) {
        Vector value = KERNEL(load)(z->at + row * z->stride, column, format);
        if (up->at)
            most = limits * KERNEL(size)(KERNEL(load)(up->at + row * up->stride, column, format));
        Whole rests = KERNEL(size)(value) <= most;
        sum += (Vector)((Whole)value & rests);
        count -= __builtin_convertvector(rests, Vector);
    }
    return sum / (count + extra);
}

static void KERNEL(rest_means)(
    float *resting, const Table *z, const Table *up, int64_t format, const float *limits, float extra,
    int64_t first, int64_t end)
{
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) {
        Vector most = KERNEL(load)((const char *)limits, i, FLOAT32), means;
        if (format == BFLOAT16)
            means = KERNEL(mean_at_rest)(z, up, i, most, extra, BFLOAT16);
        else if (format == FLOAT16)
            means = KERNEL(mean_at_rest)(z, up, i, most, extra, FLOAT16);
        else
            means = KERNEL(mean_at_rest)(z, up, i, most, extra, FLOAT32);
        memcpy(resting + i, &means, sizeof means);
    }
    for (; i < end; i++) {
        float sum = 0, count = extra;
        for (int64_t row = 0; row < z->rows; row++) {
            float value = load_number(z->at + row * z->stride, i, format);
            float factor = up->at ? fabsf(load_number(up->at + row * up->stride, i, format)) : 1;
            if (fabsf(value) <= limits[i] * factor) {
                sum += value;
                count++;
            }
        }
        resting[i] = sum / count;
    }
}

#define FORMAT_ROW(NAME, PLAN)                                                                                        \
    {KERNEL(dot_##NAME), KERNEL(add_##NAME), KERNEL(dot_some_##NAME), KERNEL(PLAN), KERNEL(add_list_##NAME)}
static const Kernels KERNEL(kernels) = {
    .formats = {
        [FLOAT32] = FORMAT_ROW(float32, plan_nothing),
        [BFLOAT16] = FORMAT_ROW(bfloat16, plan_nothing),
        [FLOAT16] = FORMAT_ROW(float16, plan_nothing),
        [INT8] = FORMAT_ROW(int8, plan_nothing),
        [GROUPED4] = FORMAT_ROW(grouped4, plan),
        [GROUPED6] = FORMAT_ROW(grouped6, plan),
        [GROUPED8] = FORMAT_ROW(grouped8, plan),
    },
    .make_whole = KERNEL(make_whole),
    .norm = KERNEL(norm),
    .activate = KERNEL(activate),
    .exponentials = KERNEL(exponentials),
    .cap = KERNEL(cap),
    .rest_means = KERNEL(rest_means),
};

#undef FORMAT_ROW
#undef LANES
#undef TOKENS_AT_ONCE
#undef Vector
#undef Whole
#undef Codes
#undef Pairs
#undef GROUPED_PRODUCTS
#undef ROWS_BY_TOKENS
#undef PAIRS
#undef ByTokens
#undef Scales
#undef UNPACK
#undef INLINE
#undef UNROLLED
#undef UNROLLED_8
