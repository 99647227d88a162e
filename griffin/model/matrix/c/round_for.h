/*
 * Plain numbers to 4-bit codes, for one instruction set; grouped.c includes this file after widen_for.h.
 *
 * A number is near minimum + code * scale, which is a line in the code. A block's 32 numbers share one line. The search
 * looks for the line with the least squared error. A line gives the nearest codes, and codes give the line that fits
 * them best, with a smaller error. These two steps are repeated ROUNDS times. The result depends on the first line, so
 * many first lines are tried: each cuts off a part of the range of numbers at either side.
 *
 * The search handles as many blocks at once as a vector has lanes. Wider vectors would be compared number by number.
 */

/* Products are always rounded before they are added, so that codes do not depend on a fused instruction. */
#ifdef __clang__
#pragma clang fp contract(off)
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif
#define LANES (WIDTH / 4)
typedef float WIDEN(Lines) __attribute__((vector_size(WIDTH)));
typedef uint32_t WIDEN(Choice) __attribute__((vector_size(WIDTH)));
#define Floats WIDEN(Lines)
#define Words WIDEN(Choice)
#define INLINE static inline __attribute__((always_inline))

INLINE Floats WIDEN(chosen)(Words where, Floats yes, Floats no)
{
    return (Floats)(((Words)yes & where) | ((Words)no & ~where));
}

INLINE Floats WIDEN(smaller)(Floats a, Floats b)
{
#if WIDTH == 64
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return WIDEN(chosen)((Words)(a < b), a, b);
#endif
}

INLINE Floats WIDEN(larger)(Floats a, Floats b)
{
#if WIDTH == 64
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return WIDEN(chosen)((Words)(a > b), a, b);
#endif
}

/* The nearest codes: adding and subtracting 1.5 times 2 to the 23 leaves an integer. */
INLINE Floats WIDEN(nearest)(Floats steps)
{
    return WIDEN(larger)(WIDEN(smaller)(steps, (Floats){0} + 15), (Floats){0}) + 0x1.8p23f - 0x1.8p23f;
}

/* Replace a line (scale and minimum) by the one that fits its codes best. Returns that one's error. */
INLINE Floats WIDEN(fit)(Floats *scale, Floats *minimum, const Floats *numbers, Floats sum, Floats squares)
{
    Floats codes = {0}, code_squares = {0}, products = {0}, inverse = 1 / *scale;
    for (int i = 0; i < 32; i++) {
        Floats code = WIDEN(nearest)((numbers[i] - *minimum) * inverse);
        codes += code;
        code_squares += code * code;
        products += code * numbers[i];
    }
    *scale = (32 * products - codes * sum) / (32 * code_squares - codes * codes);
    *minimum = (sum - *scale * codes) * (1.0f / 32);
    return squares - *scale * products - *minimum * sum;
}

/* Scales and minimums of LANES blocks. source: block by block. Blocks of equal numbers have scale 0. */
static void WIDEN(search)(Floats *best_scale, Floats *best_minimum, const float *source)
{
    Floats numbers[32], low = {0}, high = {0}, sum = {0}, squares = {0}, least = {0};
    for (int i = 0; i < 32; i++) {
        for (int lane = 0; lane < LANES; lane++)
            numbers[i][lane] = source[32 * lane + i];
        low = i ? WIDEN(smaller)(low, numbers[i]) : numbers[0];
        high = i ? WIDEN(larger)(high, numbers[i]) : numbers[0];
    }
    /* Subtract the smallest number, so that the differences of sums below are precise. */
    for (int i = 0; i < 32; i++) {
        numbers[i] -= low;
        sum += numbers[i];
        squares += numbers[i] * numbers[i];
    }
    Floats range = high - low;
    least = squares + 1;
    *best_scale = *best_minimum = (Floats){0};
    for (int below = 0; below < CUTS; below++)
        for (int above = 0; above < CUTS; above++) {
            Floats minimum = range * (below * CUT - CUT), scale = range * ((1 - (below + above - 2) * CUT) / 15);
            for (int round = 0; round < ROUNDS; round++) {
                Floats error = WIDEN(fit)(&scale, &minimum, numbers, sum, squares);
                /* If all codes are equal, scale and error are NaN, and both comparisons are false. */
                Words better = (Words)((error < least) & (scale > 0));
                least = WIDEN(chosen)(better, error, least);
                *best_scale = WIDEN(chosen)(better, scale, *best_scale);
                *best_minimum = WIDEN(chosen)(better, minimum, *best_minimum);
            }
        }
    *best_minimum += low;
}

/* A block of 32 numbers as Q4_1: scale and minimum in float16, and the codes that are nearest with these. */
static void WIDEN(put_q4_1)(uint8_t *at, const float *numbers, float scale, float minimum)
{
    uint16_t halves[2] = {to_float16(scale), to_float16(minimum)};
    memcpy(at, halves, 4);
    float step = half_at(at), start = half_at(at + 2), inverse = step > 0 ? 1 / step : 0;
    uint8_t codes[32];
    for (int i = 0; i < 32; i++) {
        float steps = (numbers[i] - start) * inverse + 0.5f;
        codes[i] = (uint8_t)(steps < 0 ? 0 : steps > 15 ? 15 : steps);
    }
    for (int i = 0; i < 16; i++)
        at[4 + i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
}

static void WIDEN(round_blocks)(uint8_t *blocks, const float *numbers, int64_t count)
{
    for (int64_t first = 0; first < count; first += LANES) {
        int64_t own = count - first < LANES ? count - first : LANES;
        float source[32 * LANES] = {0};
        memcpy(source, numbers + 32 * first, (size_t)own * 32 * sizeof *source);
        Floats scale, minimum;
        WIDEN(search)(&scale, &minimum, source);
        for (int64_t i = 0; i < own; i++)
            WIDEN(put_q4_1)(blocks + (first + i) * 20, source + 32 * i, scale[i], minimum[i]);
    }
}

#ifndef __clang__
#pragma GCC pop_options
#endif
#undef LANES
#undef INLINE
#undef Floats
#undef Words
