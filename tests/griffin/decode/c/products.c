/*
 * A program that compares products with codes in groups with sums of the same numbers in double precision. It tests
 * processors for which there is only a compiler and an emulator. It prints each error, and then its exit code is 1.
 */

#include <stdio.h>

#include "../../../../griffin/decode/c/step.c"

/* The same as in grouped.c. */
typedef struct {
    int64_t bits, size, bytes, two_levels, has_minimums, zero, scales, minimums, supers, super_minimums;
    int64_t row_stride, record_stride, super_stride;
} Layout;

int griffin_restrict(int most);
void griffin_lay_rows(
    uint8_t *target, const uint8_t *source, const Layout *layout, int64_t type, int64_t block_bytes, int64_t columns,
    const int64_t *order, int64_t first, int64_t end);
int griffin_lay_columns(
    uint8_t *codes, uint8_t *records, uint8_t *supers, const uint8_t *source, const Layout *layout, int64_t type,
    int64_t block_bytes, int64_t rows, int64_t columns, int64_t first, int64_t end);
void griffin_widen_rows(
    void *out, int halves, int64_t apart, const uint8_t *rows, const Layout *layout, int64_t columns, int64_t first,
    int64_t end);
int griffin_widen_columns(
    void *out, int halves, int64_t apart, const uint8_t *codes, const uint8_t *records, const uint8_t *supers,
    const Layout *layout, const int32_t *neurons, int64_t columns, int64_t first, int64_t end);

/* A type of GGUF files; halves: where a block's float16 numbers are, or -1. */
typedef struct {
    const char *name;
    int64_t type, block_bytes, bits, size, two_levels, minimums, zero, halves[2];
} Kind;

static const Kind KINDS[] = {
    {"Q4_0", 2, 18, 4, 32, 0, 0, 8, {0, -1}},     {"Q4_1", 3, 20, 4, 32, 0, 1, 0, {0, 2}},
    {"Q5_0", 6, 22, 6, 32, 0, 0, 16, {0, -1}},    {"Q5_1", 7, 24, 6, 32, 0, 1, 0, {0, 2}},
    {"Q8_0", 8, 34, 8, 32, 0, 0, 128, {0, -1}},   {"Q2_K", 10, 84, 4, 16, 1, 1, 0, {80, 82}},
    {"Q3_K", 11, 110, 4, 16, 1, 0, 4, {108, -1}}, {"Q4_K", 12, 144, 4, 32, 1, 1, 0, {0, 2}},
    {"Q5_K", 13, 176, 6, 32, 1, 1, 0, {0, 2}},    {"Q6_K", 14, 210, 6, 16, 1, 0, 32, {208, -1}},
};
static const int64_t WIDTHS[] = {64, 192, 256, 320, 512, 576, 768};
enum { ROWS = 37, NEURONS = 768, TOKENS = 5 };

static uint64_t state = 1;
static int wrong = 0;

static uint32_t any(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static float any_float(void)
{
    return (float)any() / 0x1p30f - 1;
}

static void *room(int64_t bytes)
{
    void *at;
    if (posix_memalign(&at, ALIGNMENT, (size_t)bytes))
        exit(2);
    return memset(at, 0, (size_t)bytes);
}

static uint8_t *any_blocks(const Kind *kind, int64_t count)
{
    uint8_t *blocks = room(count * kind->block_bytes);
    for (int64_t i = 0; i < count * kind->block_bytes; i++)
        blocks[i] = (uint8_t)any();
    for (int64_t i = 0; i < count; i++)
        for (int half = 0; half < 2 && kind->halves[half] >= 0; half++) {
            /* Between 2^-8 and 2^-6, with either sign. */
            uint16_t bits = (uint16_t)(7 << 10 | (any() & 0x87ff));
            memcpy(blocks + i * kind->block_bytes + kind->halves[half], &bits, sizeof bits);
        }
    return blocks;
}

static Layout layout_of(const Kind *kind, int64_t columns, bool by_rows)
{
    int64_t bytes = kind->two_levels ? 1 : 2, codes = columns * kind->bits / 8, parts = 1 + kind->minimums;
    Layout layout = {kind->bits, kind->size, bytes, kind->two_levels, kind->minimums, kind->zero, 0, 0, 0, 0, 0, 0, 0};
    if (by_rows) {
        int64_t each = columns / kind->size * bytes, super = columns / 256 * 2 * kind->two_levels;
        layout.scales = codes;
        layout.minimums = codes + each;
        layout.supers = codes + each * parts;
        layout.super_minimums = layout.supers + super;
        layout.row_stride = (layout.supers + super * parts + 7) / 8 * 8;
    } else {
        layout.minimums = columns * bytes;
        layout.super_minimums = 2 * columns;
        layout.row_stride = codes;
        layout.record_stride = columns * bytes * parts;
        layout.super_stride = 2 * columns * parts * kind->two_levels;
    }
    return layout;
}

static Matrix matrix_of(
    const Kind *kind, const Layout *layout, char *codes, char *records, char *supers, int64_t rows, int64_t columns)
{
    Matrix matrix = {.codes = codes, .rows = rows, .columns = columns, .stride = layout->row_stride};
    matrix.format = kind->bits == 4 ? GROUPED4 : kind->bits == 6 ? GROUPED6 : GROUPED8;
    matrix.groups = (Groups){
        .scales = records + layout->scales, .size = kind->size, .bytes = layout->bytes, .zero = (float)kind->zero,
        .stride = codes == records ? layout->row_stride : layout->record_stride};
    if (kind->minimums)
        matrix.groups.minimums = records + layout->minimums;
    if (kind->two_levels) {
        matrix.groups.supers = supers + layout->supers;
        matrix.groups.super_stride = codes == supers ? layout->row_stride : layout->super_stride;
    }
    if (kind->two_levels && kind->minimums)
        matrix.groups.super_minimums = supers + layout->super_minimums;
    return matrix;
}

static void expect(double found, double wanted, double sizes, const char *what, const Kind *kind, int64_t columns)
{
    /* Negated, so that NaN is an error, too. */
    if (!(fabs(found - wanted) <= 1e-4 * sizes)) {
        fprintf(stderr, "%s of %s, %d columns: %g is not %g\n", what, kind->name, (int)columns, found, wanted);
        wrong = 1;
    }
}

static void expect_same(
    const float *found, const float *wanted, int64_t count, const char *what, const Kind *kind, int64_t columns)
{
    if (memcmp(found, wanted, (size_t)count * sizeof *found)) {
        fprintf(stderr, "%s of %s, %d columns: bits differ from those of one token\n", what, kind->name, (int)columns);
        wrong = 1;
    }
}

/* Every third row, but none of the second superblock. */
static int64_t some_rows(int32_t *rows, int64_t all)
{
    int64_t count = 0;
    for (int32_t row = 1; row < all; row += 3)
        if (row / 256 != 1)
            rows[count++] = row;
    return count;
}

static void check_rows(const Kernels *kernels, const Kind *kind, int64_t columns)
{
    Layout layout = layout_of(kind, columns, true);
    int64_t numbers = kind->two_levels ? 256 : 32, tiles = (columns + 511) / 512;
    uint8_t *source = any_blocks(kind, ROWS * columns / numbers);
    char *records = room(ROWS * layout.row_stride);
    griffin_lay_rows((uint8_t *)records, source, &layout, kind->type, kind->block_bytes, columns, NULL, 0, ROWS);
    Matrix matrix = matrix_of(kind, &layout, records, records, records, ROWS, columns);
    float *x = room(4 * columns), *scales = room(64 * tiles), *weighted = room(192 * tiles), found[ROWS], some[ROWS];
    Input input = {x, room(1024 * tiles), scales, weighted};
    for (int64_t i = 0; i < columns; i++)
        x[i] = any_float();
    kernels->make_whole(&input, columns);
    int32_t rows[ROWS];
    int64_t count = some_rows(rows, ROWS);
    const Format *format = &kernels->formats[matrix.format];
    /* A token's results do not depend on the other tokens of a call. */
    const Input inputs[TOKENS] = {input, input, input, input, input};
    float beside[TOKENS][ROWS];
    format->dot((Outputs){found, 0}, &matrix, 0, ROWS, &input, 1);
    format->dot((Outputs){beside[0], ROWS}, &matrix, 0, ROWS, inputs, TOKENS);
    for (int t = 0; t < TOKENS; t++)
        expect_same(beside[t], found, ROWS, "rows times x of several tokens", kind, columns);
    format->dot_some(some, &matrix, rows, count, &input);
    float *widened = room(4 * ROWS * columns);
    griffin_widen_rows(widened, 0, columns, (uint8_t *)records, &layout, columns, 0, ROWS);
    for (int64_t row = 0; row < ROWS; row++) {
        double sum = 0, sizes = 0;
        for (int64_t i = 0; i < columns; i++) {
            double number = load_grouped(&matrix, row, i), product = number * x[i];
            sum += product;
            sizes += fabs(product);
            expect(widened[row * columns + i], number, fabs(number) + 1e-3, "widened row", kind, columns);
        }
        expect(found[row], sum, sizes, "row times x", kind, columns);
        if (row % 3 == 1)
            expect(some[row / 3], sum, sizes, "chosen row times x", kind, columns);
    }
    free(source), free(records), free(x), free(scales), free(weighted);
    free(input.pairs), free(widened);
}

/* Compare with the sum of rows weighted by z. Rows whose z is 0 do not count. */
static void expect_sum(
    const float *found, const float *numbers, const float *z, const char *what, const Kind *kind, int64_t columns)
{
    for (int64_t i = 0; i < columns; i++) {
        double sum = 0, sizes = 0;
        for (int64_t row = 0; row < NEURONS; row++) {
            double product = (double)z[row] * numbers[row * columns + i];
            sum += product;
            sizes += fabs(product);
        }
        expect(found[i], sum, sizes, what, kind, columns);
    }
}

static void check_columns(const Kernels *kernels, const Kind *kind, int64_t columns)
{
    Layout layout = layout_of(kind, columns, false);
    uint8_t *source = any_blocks(kind, columns * NEURONS / (kind->two_levels ? 256 : 32));
    char *codes = room(NEURONS * layout.row_stride), *records = room(NEURONS / kind->size * layout.record_stride);
    char *supers = room(layout.super_stride ? NEURONS / 256 * layout.super_stride : 1);
    float *numbers = room(4 * NEURONS * columns), *found = room(4 * columns), z[NEURONS] = {0}, given[NEURONS];
    griffin_lay_columns(
        (uint8_t *)codes, (uint8_t *)records, (uint8_t *)supers, source, &layout, kind->type, kind->block_bytes, NEURONS,
        columns, 0, NEURONS);
    griffin_widen_columns(
        numbers, 0, columns, (uint8_t *)codes, (uint8_t *)records, (uint8_t *)supers, &layout, NULL, columns, 0,
        NEURONS);
    Matrix matrix = matrix_of(kind, &layout, codes, records, supers, NEURONS, columns);
    const Format *format = &kernels->formats[matrix.format];
    for (int64_t row = 0; row < NEURONS; row++)
        z[row] = any_float();
    format->add((Outputs){found, 0}, &matrix, 0, NEURONS, (Outputs){z, 0}, 1);
    expect_sum(found, numbers, z, "weighted rows", kind, columns);
    float *beside = room(4 * TOKENS * columns), weights[TOKENS][NEURONS];
    for (int t = 0; t < TOKENS; t++)
        for (int64_t row = 0; row < NEURONS; row++)
            weights[t][row] = any_float();
    format->add((Outputs){beside, columns}, &matrix, 0, NEURONS, (Outputs){weights[0], NEURONS}, TOKENS);
    for (int t = 0; t < TOKENS; t++) {
        memset(found, 0, (size_t)columns * sizeof *found);
        format->add((Outputs){found, 0}, &matrix, 0, NEURONS, (Outputs){weights[t], 0}, 1);
        expect_same(beside + t * columns, found, columns, "weighted rows of several tokens", kind, columns);
    }

    int32_t rows[NEURONS];
    int64_t count = some_rows(rows, NEURONS);
    memset(z, 0, sizeof z);
    memset(found, 0, (size_t)columns * sizeof *found);
    for (int64_t i = 0; i < count; i++)
        z[rows[i]] = given[i] = any_float();
    List list = {rows, given, room(count * (int64_t)sizeof(Group)), count, 0};
    format->plan(&list, &matrix);
    format->add_list(found, &matrix, &list);
    expect_sum(found, numbers, z, "chosen weighted rows", kind, columns);

    /* The same rows copied next to each other, like kept neurons. */
    char *kept = room(count * layout.row_stride);
    for (int64_t i = 0; i < count; i++)
        memcpy(kept + i * layout.row_stride, codes + rows[i] * layout.row_stride, (size_t)layout.row_stride);
    memset(found, 0, (size_t)columns * sizeof *found);
    matrix.codes = kept;
    matrix.groups.neurons = rows;
    format->add((Outputs){found, 0}, &matrix, 0, count, (Outputs){given, 0}, 1);
    expect_sum(found, numbers, z, "kept weighted rows", kind, columns);
    free(source), free(codes), free(records), free(supers), free(numbers), free(found), free(kept);
    free(beside);
}

static void check_halves(void)
{
    for (uint32_t half = 0; half < 0x10000; half++) {
        int exponent = half >> 10 & 31, fraction = half & 1023, sign = half >> 15 ? -1 : 1;
        double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        float value = from_float16((uint16_t)half);
        bool right = exponent < 31 ? value == sign * size : fraction ? value != value : value == sign * INFINITY;
        if (!right || (value == value && to_float16(value) != half)) {
            fprintf(stderr, "float16 %x is read as %g and written as %x\n", half, value, to_float16(value));
            wrong = 1;
        }
    }
}

int main(void)
{
    static const char *const names[] = {"plain", "AVX2", "AVX512", "AVX512-VNNI", "AVX512-BF16"};
    check_halves();
    for (int most = PLAIN; most < INSTRUCTIONS; most++) {
        if (griffin_restrict(most) != most)
            break;
        const Kernels *kernels = best_kernels();
        for (size_t kind = 0; kind < sizeof KINDS / sizeof *KINDS; kind++)
            for (size_t i = 0; i < sizeof WIDTHS / sizeof *WIDTHS; i++) {
                if (!KINDS[kind].two_levels || WIDTHS[i] % 256 == 0)
                    check_rows(kernels, &KINDS[kind], WIDTHS[i]);
                check_columns(kernels, &KINDS[kind], WIDTHS[i]);
            }
        printf("%s\n", names[most]);
    }
    return wrong;
}
