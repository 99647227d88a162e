/*
 * Codes of a GGUF file are laid out for the decode step, which changes no value. They can also become plain numbers.
 *
 * model.h in decode/c defines groups and records. kernels.h there defines the order of the bytes in a row. Every
 * function works on some rows of a matrix, so that several threads can share the work.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "blocks.h"
#include "halves.h"
#include "instructions.h"

#define API __attribute__((visibility("default")))
/* Vectors of 64 bytes never leave inlined functions. */
#pragma GCC diagnostic ignored "-Wpsabi"

/* grouped.py passes this. Offsets are in bytes. bytes: the bytes of one scale. two_levels: there are supers. */
typedef struct {
    int64_t bits, size, bytes, two_levels, has_minimums, zero;
    /* From the beginning of a record. */
    int64_t scales, minimums, supers, super_minimums;
    /* From a row's, record's, or super's beginning to the next. */
    int64_t row_stride, record_stride, super_stride;
} Layout;

int allowed_instructions = INSTRUCTIONS;

/*
 * Use at most these instructions from now on. Open steps do not change. Only tests call this.
 * Returns the instructions in use: fewer if the processor has fewer.
 */
API int griffin_restrict(int most)
{
    allowed_instructions = most;
    return best_instructions();
}

/* ---- The places of codes. ---- */

#define INLINE static inline __attribute__((always_inline))

/* Put one block of 32 codes into a row. blocks: the number of blocks in its tile. */
INLINE void put_block(uint8_t *at, const uint8_t *codes, int64_t blocks, int bits)
{
    int64_t apart = 4 * blocks;
    for (int quad = 0; quad < 8 && bits == 8; quad++)
        memcpy(at + quad * apart, codes + 4 * quad, 4);
    if (bits == 8)
        return;
    uint8_t both[16];
    for (int i = 0; i < 16; i++)
        both[i] = (uint8_t)((codes[i] & 15) | codes[i + 16] << 4);
    for (int quad = 0; quad < 4; quad++)
        memcpy(at + quad * apart, both + 4 * quad, 4);
    for (int pair = 0; pair < 2 && bits == 6; pair++)
        for (int i = 8 * pair; i < 8 * pair + 4; i++)
            at[(4 + pair) * apart + i % 4] = (uint8_t)(codes[i] >> 4 | codes[i + 16] >> 4 << 2 | codes[i + 4] >> 4 << 4
                                                       | codes[i + 20] >> 4 << 6);
}

/*
 * Put one row of a tile of outputs with ``wide`` lanes, from codes that are ``apart``. The low half of a byte holds the
 * output of lane byte / 16 * 4 + byte % 4 and part byte % 16 / 4. The high half holds the one 4 ``wide`` outputs later.
 */
INLINE void put_tile(uint8_t *at, const uint8_t *codes, int64_t apart, int wide, int bits)
{
    int held = 2 * wide;
    for (int byte = 0; byte < 4 * wide; byte++) {
        int64_t output = wide * (byte % 16 / 4) + byte / 16 * 4 + byte % 4;
        uint8_t first = codes[output * apart], second = codes[(output + 4 * wide) * apart];
        if (bits == 8) {
            at[byte] = first;
            at[byte + 4 * wide] = second;
            continue;
        }
        at[byte] = (uint8_t)((first & 15) | second << 4);
        if (bits == 6) {
            /* Four to a byte: see load_high in grouped_for.h. */
            uint8_t both = (uint8_t)(first >> 4 | second >> 4 << 2), *high = at + 4 * wide + byte % held;
            *high = (uint8_t)(byte < held ? both : *high | both << 4);
        }
    }
}

/* A tile of so many rows. */
static void put_tiles(uint8_t *at, int64_t stride, const uint8_t *codes, int64_t apart, int64_t rows, int wide, int bits)
{
#define CASE(WIDE, BITS)                                                                                              \
    if (wide == WIDE && bits == BITS)                                                                                 \
        for (int64_t row = 0; row < rows; row++)                                                                      \
            put_tile(at + row * stride, codes + row, apart, WIDE, BITS);
    CASE(16, 4)
    CASE(16, 6)
    CASE(16, 8)
    CASE(8, 4)
    CASE(8, 6)
    CASE(8, 8)
#undef CASE
}

static void put_scale(uint8_t *at, uint16_t scale, int64_t bytes)
{
    memcpy(at, &scale, (size_t)bytes);
}

/* ---- From a file. ---- */

static int64_t numbers_of(const Layout *layout)
{
    return layout->two_levels ? 256 : 32;
}

/* Groups along the rows: a row's record follows its codes. source: rows. order: for each row its source, or NULL. */
API void griffin_lay_rows(
    uint8_t *target, const uint8_t *source, const Layout *layout, int64_t type, int64_t block_bytes, int64_t columns,
    const int64_t *order, int64_t first, int64_t end)
{
    int64_t numbers = numbers_of(layout), blocks = columns / 32, groups = 32 / layout->size;
    for (int64_t row = first; row < end; row++) {
        const uint8_t *from = source + (order ? order[row] : row) * (columns / numbers) * block_bytes;
        uint8_t *to = target + row * layout->row_stride;
        Block block;
        for (int64_t number = 0; number < columns; number += numbers, from += block_bytes) {
            read_block(&block, from, (int)type);
            for (int64_t part = 0; part < numbers / 32; part++) {
                int64_t at = number / 32 + part, tile = at / 16 * 16;
                int64_t of_tile = blocks - tile < 16 ? blocks - tile : 16;
                uint8_t *place_of = to + tile * 4 * layout->bits + 4 * (at - tile);
                if (layout->bits == 4)
                    put_block(place_of, block.codes + 32 * part, of_tile, 4);
                else
                    put_block(place_of, block.codes + 32 * part, of_tile, (int)layout->bits);
                for (int64_t group = 0; group < groups; group++) {
                    int64_t place = (tile * groups + group * of_tile + at - tile) * layout->bytes;
                    int64_t own = part * groups + group;
                    put_scale(to + layout->scales + place, block.scales[own], layout->bytes);
                    if (layout->has_minimums)
                        put_scale(to + layout->minimums + place, block.minimums[own], layout->bytes);
                }
            }
            if (layout->two_levels) {
                put_scale(to + layout->supers + number / 256 * 2, block.super, 2);
                if (layout->has_minimums)
                    put_scale(to + layout->super_minimums + number / 256 * 2, block.super_minimum, 2);
            }
        }
    }
}

/* The source of a block of numbers: a tensor of a file, or rows that griffin_lay_rows has laid out. */
typedef struct {
    const uint8_t *at;
    /* The GGUF type of a tensor, and the bytes of its blocks. */
    int64_t type, block_bytes;
    /* The layout of rows; NULL for a tensor. */
    const Layout *layout;
} Source;

/* Take one block of 32 codes from a laid row. blocks: the number of blocks in its tile. */
INLINE void take_block(uint8_t *codes, const uint8_t *at, int64_t blocks, int bits)
{
    int64_t apart = 4 * blocks;
    for (int quad = 0; quad < 8 && bits == 8; quad++)
        memcpy(codes + 4 * quad, at + quad * apart, 4);
    for (int i = 0; i < 16 && bits != 8; i++) {
        uint8_t both = at[i / 4 * apart + i % 4], high = 0;
        if (bits == 6)
            high = at[(4 + i / 8) * apart + i % 4] >> i % 8 / 4 * 4;
        codes[i] = (uint8_t)((both & 15) | (high & 3) << 4);
        codes[i + 16] = (uint8_t)(both >> 4 | (high >> 2 & 3) << 4);
    }
}

/* The numbers from ``number`` on of a laid row, of ``columns``. */
static void take_laid(Block *block, const uint8_t *row, const Layout *layout, int64_t columns, int64_t number)
{
    int64_t blocks = columns / 32, groups = 32 / layout->size, count = numbers_of(layout) / 32;
    for (int64_t part = 0; part < count; part++) {
        int64_t at = number / 32 + part, tile = at / 16 * 16, of_tile = blocks - tile < 16 ? blocks - tile : 16;
        take_block(
            block->codes + 32 * part, row + tile * 4 * layout->bits + 4 * (at - tile), of_tile, (int)layout->bits);
        for (int64_t group = 0; group < groups; group++) {
            int64_t place = (tile * groups + group * of_tile + at - tile) * layout->bytes, own = part * groups + group;
            memcpy(&block->scales[own], row + layout->scales + place, (size_t)layout->bytes);
            if (layout->has_minimums)
                memcpy(&block->minimums[own], row + layout->minimums + place, (size_t)layout->bytes);
        }
    }
    if (layout->two_levels) {
        block->super = two_bytes(row + layout->supers + number / 256 * 2);
        if (layout->has_minimums)
            block->super_minimum = two_bytes(row + layout->super_minimums + number / 256 * 2);
    }
}

/* The numbers from ``number`` on of the source's row, of ``columns``. */
static void take(Block *block, const Source *source, const Layout *layout, int64_t row, int64_t columns, int64_t number)
{
    int64_t numbers = numbers_of(layout);
    if (source->layout)
        take_laid(block, source->at + row * source->layout->row_stride, source->layout, columns, number);
    else
        read_block(
            block, source->at + (row * (columns / numbers) + number / numbers) * source->block_bytes, (int)source->type);
}

/* The source's columns become rows. Makes some of these rows, in whole blocks. */
static int lay_across(
    uint8_t *codes, uint8_t *records, uint8_t *supers, const Source *source, const Layout *layout, int64_t rows,
    int64_t columns, int64_t first, int64_t end)
{
    int64_t numbers = numbers_of(layout), size = layout->size;
    Block *blocks = malloc(128 * sizeof *blocks);
    for (int64_t start = first; blocks && start < end; start += numbers)
        for (int64_t output = 0; output < columns; output += 128) {
            int64_t wide = columns - output < 128 ? 8 : 16;
            for (int64_t i = 0; i < 8 * wide; i++) {
                Block *block = &blocks[i];
                take(block, source, layout, output + i, rows, start);
                for (int64_t group = 0; group < numbers / size; group++) {
                    uint8_t *record = records + (start / size + group) * layout->record_stride;
                    int64_t place = (output + i) * layout->bytes;
                    put_scale(record + layout->scales + place, block->scales[group], layout->bytes);
                    if (layout->has_minimums)
                        put_scale(record + layout->minimums + place, block->minimums[group], layout->bytes);
                }
                if (layout->two_levels) {
                    uint8_t *super = supers + start / 256 * layout->super_stride + 2 * (output + i);
                    put_scale(super + layout->supers, block->super, 2);
                    if (layout->has_minimums)
                        put_scale(super + layout->super_minimums, block->super_minimum, 2);
                }
            }
            put_tiles(
                codes + start * layout->row_stride + output * layout->bits / 8, layout->row_stride, blocks->codes,
                sizeof *blocks, numbers, (int)wide, (int)layout->bits);
        }
    free(blocks);
    return blocks ? 0 : -1;
}

/*
 * Groups across rows: a file's columns become rows. source: ``columns`` rows of ``rows`` numbers.
 * first, end: of the rows, multiples of a block's numbers.
 */
API int griffin_lay_columns(
    uint8_t *codes, uint8_t *records, uint8_t *supers, const uint8_t *source, const Layout *layout, int64_t type,
    int64_t block_bytes, int64_t rows, int64_t columns, int64_t first, int64_t end)
{
    Source tensor = {.at = source, .type = type, .block_bytes = block_bytes};
    return lay_across(codes, records, supers, &tensor, layout, rows, columns, first, end);
}

/* The same for rows with the layout of griffin_lay_rows. */
API int griffin_turn_rows(
    uint8_t *codes, uint8_t *records, uint8_t *supers, const uint8_t *source, const Layout *of_rows,
    const Layout *layout, int64_t rows, int64_t columns, int64_t first, int64_t end)
{
    Source laid = {.at = source, .layout = of_rows};
    return lay_across(codes, records, supers, &laid, layout, rows, columns, first, end);
}

/* ---- From plain numbers. ---- */

/* At each end, round_for.h first cuts off 0 to CUTS - 2 times this part of the range, or adds this part. */
#define CUT 0.035f
#define CUTS 6
#define ROUNDS 3

/* ---- For each instruction set: to plain numbers, and the search for the best codes. ---- */

static inline float half_at(const uint8_t *at)
{
    return from_float16(two_bytes(at));
}

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define WIDEN(name) PASTE(name, TARGET)

#define TARGET baseline
#define WIDTH 16
#include "widen_for.h"
#include "round_for.h"
#undef TARGET
#undef WIDTH

#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define TARGET avx2
#define WIDTH 32
#include "widen_for.h"
#include "round_for.h"
#undef TARGET
#undef WIDTH
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define TARGET avx512
#define WIDTH 64
#include "widen_for.h"
#include "round_for.h"
#undef TARGET
#undef WIDTH
#pragma GCC pop_options

/* The same for processors with an instruction that rounds to bfloat16. It turns subnormal numbers into zeros. */
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#define TARGET avx512bf16
#define WIDTH 64
#define ROUNDS_HALVES
#include "widen_for.h"
#include "round_for.h"
#undef TARGET
#undef WIDTH
#undef ROUNDS_HALVES
#pragma GCC pop_options
#define BEST(name)                                                                                                    \
    (best_instructions() >= AVX512_BF16 ? name##_avx512bf16                                                           \
     : best_instructions() >= AVX512    ? name##_avx512                                                               \
     : best_instructions() >= AVX2      ? name##_avx2                                                                 \
                                        : name##_baseline)
#else
#define BEST(name) name##_baseline
#endif

/* The rows from first to end as float32, or as bfloat16 if ``halves``. apart: numbers from one row to the next. */
API void griffin_widen_rows(
    void *out, int halves, int64_t apart, const uint8_t *rows, const Layout *layout, int64_t columns, int64_t first,
    int64_t end)
{
    BEST(widen_rows)(out, halves, apart, rows, layout, columns, first, end);
}

/*
 * The same for rows whose groups lie across them. neurons: for each row its number in the records, or NULL.
 * Returns -1 if there is no memory.
 */
API int griffin_widen_columns(
    void *out, int halves, int64_t apart, const uint8_t *codes, const uint8_t *records, const uint8_t *supers,
    const Layout *layout, const int32_t *neurons, int64_t columns, int64_t first, int64_t end)
{
    return BEST(widen_columns)(out, halves, apart, codes, records, supers, layout, neurons, columns, first, end);
}

/* Turn blocks of 32 numbers into Q4_1, with the least squared error that the search finds. */
API void griffin_round_q4_1(uint8_t *blocks, const float *numbers, int64_t count)
{
    BEST(round_blocks)(blocks, numbers, count);
}
