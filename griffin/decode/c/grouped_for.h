/*
 * Products with weights in groups (see Matrix in model.h), for one instruction set; kernels_for.h includes this file.
 *
 * Activations become whole numbers of 16 bits, 32 of them with a scale, in two halves: 256 high + low. Products of codes
 * and halves are summed up exactly in 32 bits, and meet scales once a group.
 */

typedef uint8_t KERNEL(Codes) __attribute__((vector_size(VECTOR_BYTES)));
#define Codes KERNEL(Codes)
#define Whole KERNEL(Whole)

/* ---- Loads of a part of a vector; what lies behind the part is zero. A mask costs time, so whole ones have none. ---- */

INLINE Codes KERNEL(load_codes)(const void *at, int64_t lanes)
{
    Codes codes = {0};
    if (lanes >= LANES)
        memcpy(&codes, at, sizeof codes);
    else
#if VECTOR_BYTES == 64
        codes = (Codes)_mm512_maskz_loadu_epi32((__mmask16)((1u << lanes) - 1), at);
#else
        memcpy(&codes, at, (size_t)lanes * 4);
#endif
    return codes;
}

INLINE Vector KERNEL(load_halves)(const char *at, int64_t lanes)
{
#if VECTOR_BYTES == 64
    if (lanes >= LANES)
        return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at));
    return (Vector)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << lanes) - 1), at));
#else
    uint16_t halves[LANES] = {0};
    memcpy(halves, at, (size_t)(lanes < LANES ? lanes : LANES) * sizeof *halves);
#if VECTOR_BYTES == 32
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
#else
    Vector vector;
    for (int i = 0; i < LANES; i++)
        vector[i] = from_float16(halves[i]);
    return vector;
#endif
#endif
}

INLINE Vector KERNEL(load_bytes)(const char *at, int64_t lanes)
{
#if VECTOR_BYTES == 64
    if (lanes >= LANES)
        return __builtin_convertvector(KERNEL(widen_bytes)(at), Vector);
    __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)((1u << lanes) - 1), at);
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
    int8_t bytes[LANES] = {0};
    memcpy(bytes, at, (size_t)(lanes < LANES ? lanes : LANES));
    return __builtin_convertvector(KERNEL(widen_bytes)((const char *)bytes), Vector);
#endif
}

/* ---- Arithmetic. ---- */

/* sums + products of four neighbours; only the second have a sign. */
INLINE Whole KERNEL(dot4)(Whole sums, Codes plain, Codes with_sign)
{
#if VECTOR_BYTES == 64
    return (Whole)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)plain, (__m512i)with_sign);
#elif VECTOR_BYTES == 32
    __m256i pairs = _mm256_maddubs_epi16((__m256i)plain, (__m256i)with_sign);
    return sums + (Whole)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int i = 0; i < LANES; i++)
        for (int k = 4 * i; k < 4 * i + 4; k++)
            sums[i] += plain[k] * (int8_t)with_sign[k];
    return sums;
#endif
}

/* Sums of codes times the high and the low half of activations. */
typedef struct {
    Whole high, low;
} KERNEL(Sums);
#define Sums KERNEL(Sums)

/* AVX2 adds two products in 16 bits, which is too little for codes of 8 bits: they go by halves. */
INLINE void KERNEL(multiply)(Sums *sums, Codes codes, Codes high, Codes low, int bits)
{
    if (bits < 8) {
        sums->high = KERNEL(dot4)(sums->high, codes, high);
        sums->low = KERNEL(dot4)(sums->low, low, codes);
        return;
    }
#if VECTOR_BYTES == 64
    sums->high = KERNEL(dot4)(sums->high, codes, high);
    sums->low = KERNEL(dot4)(sums->low, low, codes ^ 128);
#else
    Codes first = codes & 15, second = codes >> 4;
    Whole none = {0};
    sums->high = KERNEL(dot4)(sums->high, first, high) + (KERNEL(dot4)(none, second, high) << 4);
    sums->low = KERNEL(dot4)(sums->low, low, first) + (KERNEL(dot4)(none, low, second) << 4);
#endif
}

/* Whether ``multiply`` has taken 128 from the codes that meet low halves. */
#define HALF_CENTRED(bits) ((bits) == 8 && VECTOR_BYTES == 64)

INLINE Vector KERNEL(total)(Sums sums)
{
    return __builtin_convertvector((sums.high << 8) + sums.low, Vector);
}

/* The largest absolute value; not a number if any is none. As integers, floats without a sign have the same order. */
INLINE float KERNEL(highest)(const float *x, int64_t count)
{
    uint32_t highest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffff;
        highest = bits > highest ? bits : highest;
    }
    float value;
    memcpy(&value, &highest, sizeof value);
    return value;
}

/* ---- Rows times x: groups lie along the rows. ---- */

/* Of the blocks from ``codes`` on, the quads ``quad`` and ``quad + 4``. blocks: in this tile. */
INLINE void KERNEL(unpack)(
    Codes *first, Codes *second, const char *codes, int64_t blocks, int64_t lanes, int quad, int bits)
{
    Codes both = KERNEL(load_codes)(codes + quad * 4 * blocks, lanes);
    if (bits == 8) {
        *first = both;
        *second = KERNEL(load_codes)(codes + (quad + 4) * 4 * blocks, lanes);
        return;
    }
    *first = both & 15;
    *second = both >> 4;
    if (bits == 6) {
        Codes high = KERNEL(load_codes)(codes + (4 + quad / 2) * 4 * blocks, lanes) >> quad % 2 * 4;
        *first |= high << 4 & 48;
        *second |= high << 2 & 48;
    }
}

/* Scales or minimums of up to LANES blocks; of two levels, a block's times its superblock's. */
INLINE Vector KERNEL(load_scales)(const char *scales, const char *supers, int64_t lanes)
{
    if (!supers)
        return KERNEL(load_halves)(scales, lanes);
#if VECTOR_BYTES == 64
    /* Two superblocks of eight blocks. */
    __m512 both = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_loadu_si32(supers)));
    __m512i which = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    Vector super = (Vector)_mm512_maskz_permutexvar_ps((__mmask16)((1u << lanes) - 1), which, both);
#else
    uint16_t half;
    memcpy(&half, supers, sizeof half);
    Vector super = (Vector){0} + from_float16(half);
#endif
    return KERNEL(load_bytes)(scales, lanes) * super;
}

/* What the groups that ``sums`` are of add to a row's result. at: of their first one's scale. */
INLINE Vector KERNEL(close)(
    Vector result, Vector sums, const Groups *groups, int64_t record, int64_t at, int64_t block, int64_t lanes,
    const float *scales, const float *weighted, const float *high_weighted, int bits)
{
    const char *supers = groups->supers ? groups->supers + record + block / 8 * 2 : NULL;
    Vector scale = KERNEL(load_scales)(groups->scales + record + at * groups->bytes, supers, lanes);
    Vector of_ones = KERNEL(load)((const char *)weighted, 0, FLOAT32);
    Vector of_zero = HALF_CENTRED(bits) ? KERNEL(load)((const char *)high_weighted, 0, FLOAT32) : of_ones;
    result += scale * (KERNEL(load)((const char *)scales, 0, FLOAT32) * sums - groups->zero * of_zero);
    if (groups->minimums) {
        supers = groups->supers ? groups->super_minimums + record + block / 8 * 2 : NULL;
        result += KERNEL(load_scales)(groups->minimums + record + at * groups->bytes, supers, lanes) * of_ones;
    }
    return result;
}

/* What the blocks ``first + h`` to ``first + h + lanes`` of a tile add to the results of some rows. */
INLINE void KERNEL(dot_lanes)(
    Vector *results, const Matrix *matrix, const int64_t *rows, int some, const Input *x, int64_t first, int64_t of_tile,
    int64_t h, int64_t lanes, int bits)
{
    const Groups *groups = &matrix->groups;
    int64_t halves = 32 / groups->size, at = first * halves + h, block = first + h;
    Sums sums[PAIR][2] = {{{{0}, {0}}}};
    const Codes *high = (const Codes *)(x->high + first * 32 + 4 * h);
    const Codes *low = (const Codes *)(x->low + first * 32 + 4 * h);
    const int step = 64 / VECTOR_BYTES;
    _Pragma("GCC unroll 4") for (int quad = 0; quad < 4; quad++)
    {
        UNROLLED for (int k = 0; k < some; k++) {
            Codes a, b;
            const char *codes = matrix->codes + rows[k] + first * 4 * bits + 4 * h;
            KERNEL(unpack)(&a, &b, codes, of_tile, lanes, quad, bits);
            KERNEL(multiply)(&sums[k][0], a, high[step * quad], low[step * quad], bits);
            KERNEL(multiply)(&sums[k][1], b, high[step * (quad + 4)], low[step * (quad + 4)], bits);
        }
    }
    const float *scales = x->scales + first + h, *weighted = x->weighted + 3 * first + h;
    const float *high_weighted = x->high_weighted + 3 * first + h;
    UNROLLED for (int k = 0; k < some; k++) {
        if (halves == 2) {
            results[k] = KERNEL(close)(
                results[k], KERNEL(total)(sums[k][0]), groups, rows[k], at, block, lanes, scales, weighted,
                high_weighted, bits);
            results[k] = KERNEL(close)(
                results[k], KERNEL(total)(sums[k][1]), groups, rows[k], at + of_tile, block, lanes, scales,
                weighted + 16, high_weighted + 16, bits);
        } else {
            Sums both = {sums[k][0].high + sums[k][1].high, sums[k][0].low + sums[k][1].low};
            results[k] = KERNEL(close)(
                results[k], KERNEL(total)(both), groups, rows[k], at, block, lanes, scales, weighted + 32,
                high_weighted + 32, bits);
        }
    }
}

/* out_k = row k . x, of some rows at once. rows: where they begin; later: what is fetched meanwhile; in bytes. */
INLINE void KERNEL(dot_grouped_rows)(
    float *out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, int some,
    const Input *x, int bits)
{
    int64_t blocks = matrix->columns / 32;
    Vector results[PAIR] = {{0}};
    for (int64_t first = 0; first < blocks; first += 16) {
        int64_t of_tile = blocks - first < 16 ? blocks - first : 16;
        /* Scales follow the codes: each tile asks for its share of the whole record. */
        int64_t share = matrix->stride * first / blocks, end = matrix->stride * (first + of_tile) / blocks;
        UNROLLED for (int k = 0; k < some; k++)
            ask_for(matrix->codes + later[k] + share, end - share);
        if (of_tile == 16)
            for (int64_t h = 0; h < 16; h += LANES)
                KERNEL(dot_lanes)(results, matrix, rows, some, x, first, 16, h, LANES, bits);
        else
            for (int64_t h = 0; h < of_tile; h += LANES) {
                int64_t lanes = of_tile - h < LANES ? of_tile - h : LANES;
                KERNEL(dot_lanes)(results, matrix, rows, some, x, first, of_tile, h, lanes, bits);
            }
    }
    UNROLLED for (int k = 0; k < some; k++)
        out[k * apart] = KERNEL(sum)(results[k]);
}

/* ---- Sums of weighted rows: groups are of neighbouring rows. ---- */

/* RUN numbers at a time, whatever the count: then the compiler makes vectors of all. */
INLINE void KERNEL(prepare_weights)(Weights *weights, const float *z, int64_t count)
{
    float padded[RUN] = {0};
    int8_t high[RUN];
    uint8_t low[RUN];
    int32_t whole[RUN], sum = 0, high_sum = 0;
    memcpy(padded, z, (size_t)count * sizeof *z);
    float highest = KERNEL(highest)(padded, RUN), inverse = inverse_of(highest);
    for (int i = 0; i < RUN; i++)
        whole[i] = to_whole(padded[i] * inverse);
    for (int i = 0; i < RUN; i++) {
        high[i] = (int8_t)(whole[i] >> 8);
        low[i] = (uint8_t)whole[i];
        sum += whole[i];
        high_sum += whole[i] >> 8;
    }
    memcpy(weights->high, high, sizeof high);
    memcpy(weights->low, low, sizeof low);
    weights->scale = highest / LARGEST;
    weights->sum = (float)sum;
    weights->high_sum = (float)(high_sum * 256);
}

#if VECTOR_BYTES == 64
#define UNPACK(which, a, b) (Codes) _mm512_unpack##which((__m512i)(a), (__m512i)(b))
#elif VECTOR_BYTES == 32
#define UNPACK(which, a, b) (Codes) _mm256_unpack##which((__m256i)(a), (__m256i)(b))
#endif

/* Of four rows' bytes, those in one place become neighbours: place 4 v + i of each 16 goes to lane i of vector v. */
INLINE void KERNEL(interleave)(Codes *out, const Codes *rows)
{
#ifdef UNPACK
    Codes a = UNPACK(lo_epi8, rows[0], rows[1]), b = UNPACK(hi_epi8, rows[0], rows[1]);
    Codes c = UNPACK(lo_epi8, rows[2], rows[3]), d = UNPACK(hi_epi8, rows[2], rows[3]);
    out[0] = UNPACK(lo_epi16, a, c);
    out[1] = UNPACK(hi_epi16, a, c);
    out[2] = UNPACK(lo_epi16, b, d);
    out[3] = UNPACK(hi_epi16, b, d);
#else
    uint8_t from[4][VECTOR_BYTES], to[4][VECTOR_BYTES];
    memcpy(from, rows, sizeof from);
    for (int place = 0; place < 16; place++)
        for (int row = 0; row < 4; row++)
            to[place / 4][place % 4 * 4 + row] = from[row][place];
    memcpy(out, to, sizeof to);
#endif
}

/* The two high bits of codes of six, for lanes from h on of a tile so wide. They lie four to a byte. */
INLINE Codes KERNEL(load_high)(const char *at, int64_t wide, int64_t h)
{
#if VECTOR_BYTES == 64
    (void)h;
    if (wide == 16) {
        __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)at));
        return (Codes)_mm512_srlv_epi32(twice, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4));
    }
    __m512i often = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)at));
    return (Codes)_mm512_srlv_epi32(often, _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4));
#else
    Codes codes = {0};
    for (int64_t part = 0; part < VECTOR_BYTES / 16; part++) {
        typedef uint8_t Sixteen __attribute__((vector_size(16)));
        Sixteen bytes;
        int64_t number = h / 4 + part, held = wide / 8;
        memcpy(&bytes, at + number % held * 16, sizeof bytes);
        bytes >>= number / held * 4;
        memcpy((char *)&codes + part * 16, &bytes, sizeof bytes);
    }
    return codes;
#endif
}

/* Sums of one quad of rows, for the 8 LANES outputs of a tile from lane h on. */
INLINE void KERNEL(add_quad)(
    Sums *sums, const char *const *rows, int64_t wide, int64_t h, int64_t lanes, Codes high, Codes low, int bits)
{
    Codes raw[4], quads[4] = {{0}}, more[4] = {{0}};
    UNROLLED for (int k = 0; k < 4; k++)
        raw[k] = KERNEL(load_codes)(rows[k] + 4 * h, lanes);
    KERNEL(interleave)(quads, raw);
    if (bits > 4) {
        UNROLLED for (int k = 0; k < 4; k++)
            raw[k] = bits == 8 ? KERNEL(load_codes)(rows[k] + 4 * wide + 4 * h, lanes)
                               : KERNEL(load_high)(rows[k] + 4 * wide, wide, h);
        KERNEL(interleave)(more, raw);
    }
    UNROLLED for (int v = 0; v < 4; v++) {
        Codes first = quads[v], second = more[v];
        if (bits != 8) {
            first = quads[v] & 15;
            second = quads[v] >> 4;
        }
        if (bits == 6) {
            first |= more[v] << 4 & 48;
            second |= more[v] << 2 & 48;
        }
        KERNEL(multiply)(&sums[v], first, high, low, bits);
        KERNEL(multiply)(&sums[v + 4], second, high, low, bits);
    }
}

INLINE Vector KERNEL(load_output_scales)(const char *scales, const char *supers, int64_t output, int64_t lanes, bool two)
{
    if (!two)
        return KERNEL(load_halves)(scales + 2 * output, lanes);
    return KERNEL(load_bytes)(scales + output, lanes) * KERNEL(load_halves)(supers + 2 * output, lanes);
}

INLINE Record KERNEL(record)(const Groups *groups, int64_t group)
{
    int64_t at = group * groups->stride, super = group / (256 / groups->size) * groups->super_stride;
    return (Record){groups->scales + at, groups->minimums + at, groups->supers + super, groups->super_minimums + super};
}

/* Only AVX512 has vectors that are longer than what may be left of a tile. */
INLINE void KERNEL(accumulate)(float *y, Vector change, int64_t lanes)
{
#if VECTOR_BYTES == 64
    if (lanes < LANES) {
        __mmask16 mask = (__mmask16)((1u << lanes) - 1);
        _mm512_mask_storeu_ps(y, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), (__m512)change));
        return;
    }
#else
    (void)lanes;
#endif
    change += KERNEL(load)((const char *)y, 0, FLOAT32);
    memcpy(y, &change, sizeof change);
}

/* y += scale (sum - zero) + minimum, for eight times up to LANES outputs, ``wide`` apart. */
INLINE void KERNEL(close_outputs)(
    float *y, const Sums *sums, const Record *record, int64_t output, int64_t wide, int64_t lanes,
    const Weights *weights, float of_zero, bool two, bool minimums)
{
    Vector factor = (Vector){0} + weights->scale, ones = (Vector){0} + weights->scale * weights->sum;
    _Pragma("GCC unroll 8") for (int v = 0; v < 8; v++)
    {
        int64_t at = output + wide * v;
        Vector scale = KERNEL(load_output_scales)(record->scales, record->supers, at, lanes, two);
        Vector change = scale * ((KERNEL(total)(sums[v]) - of_zero) * factor);
        if (minimums)
            change += KERNEL(load_output_scales)(record->minimums, record->super_minimums, at, lanes, two) * ones;
        KERNEL(accumulate)(y + at, change, lanes);
    }
}

/* Of some rows and of the next record, what the tile of outputs from ``start`` on needs. */
INLINE void KERNEL(fetch)(
    const Groups *groups, const char *const *rows, int64_t count, const char *record, int64_t start, int bits)
{
    for (int64_t k = 0; k < count; k++)
        ask_for(rows[k] + start * bits / 8, 128 * bits / 8);
    ask_for(record + start * groups->bytes, 128 * groups->bytes);
    if (groups->minimums)
        ask_for(record + (groups->minimums - groups->scales) + start * groups->bytes, 128 * groups->bytes);
}

/* The outputs of one tile that begin at lane h. output: the tile's first. */
INLINE void KERNEL(add_lanes)(
    float *y, const Groups *groups, const Record *record, int64_t output, int64_t wide, int64_t h,
    const char *const *rows, int64_t quads, const Weights *weights, int bits)
{
    int64_t lanes = wide < LANES ? wide : LANES, at = output * bits / 8;
    Sums sums[8] = {{{0}, {0}}};
    for (int64_t quad = 0; quad < quads; quad++) {
        const char *places[4];
        UNROLLED for (int k = 0; k < 4; k++)
            places[k] = rows[4 * quad + k] + at;
        Codes high = (Codes)((Whole){0} + weights->high[quad]), low = (Codes)((Whole){0} + weights->low[quad]);
        KERNEL(add_quad)(sums, places, wide, h, lanes, high, low, bits);
    }
    float of_zero = groups->zero * (HALF_CENTRED(bits) ? weights->high_sum : weights->sum);
    output += h;
    if (groups->supers && groups->minimums)
        KERNEL(close_outputs)(y, sums, record, output, wide, lanes, weights, of_zero, true, true);
    else if (groups->supers)
        KERNEL(close_outputs)(y, sums, record, output, wide, lanes, weights, of_zero, true, false);
    else if (groups->minimums)
        KERNEL(close_outputs)(y, sums, record, output, wide, lanes, weights, of_zero, false, true);
    else
        KERNEL(close_outputs)(y, sums, record, output, wide, lanes, weights, of_zero, false, false);
}

/* A tile of eight times ``wide`` outputs, 8 or 16: known where this is inlined. */
INLINE void KERNEL(add_tile)(
    float *y, const Groups *groups, const Record *record, int64_t output, int64_t wide, const char *const *rows,
    int64_t quads, const Weights *weights, int bits)
{
    for (int64_t h = 0; h < wide; h += LANES)
        KERNEL(add_lanes)(y, groups, record, output, wide, h, rows, quads, weights, bits);
}

/* y += sum over the rows of one group. later: rows to fetch meanwhile, so many. */
INLINE void KERNEL(add_group)(
    float *y, const Matrix *matrix, const Group *group, const char *const *rows, const char *const *later,
    int64_t following, int bits)
{
    const Groups *groups = &matrix->groups;
    Record record = KERNEL(record)(groups, group->number);
    const char *next = groups->scales + (group->number + 1) * groups->stride;
    int64_t quads = (group->count + 3) / 4;
    for (int64_t start = 0; start < matrix->columns; start += 128) {
        KERNEL(fetch)(groups, later, following, next, start, bits);
        if (matrix->columns - start >= 128)
            KERNEL(add_tile)(y, groups, &record, start, 16, rows, quads, &group->weights, bits);
        else
            KERNEL(add_tile)(y, groups, &record, start, 8, rows, quads, &group->weights, bits);
    }
}

/* The rows from number i on that belong to one group, of so many. rows: which these are, or NULL: from ``start`` on. */
INLINE void KERNEL(plan_group)(
    Group *group, const Matrix *matrix, const int32_t *rows, int64_t start, int64_t i, int64_t count, const float *z)
{
    int64_t end = i;
    group->number = i < count ? group_of(matrix, rows ? rows[i] : start + i) : 0;
    while (end < count && end - i < RUN && group_of(matrix, rows ? rows[end] : start + end) == group->number)
        end++;
    group->first = i;
    group->count = end - i;
    KERNEL(prepare_weights)(&group->weights, z + i, end - i);
}

static void KERNEL(plan)(List *list, const Matrix *matrix)
{
    list->group_count = 0;
    for (int64_t i = 0; i < list->count; list->group_count++) {
        Group *group = &list->groups[list->group_count];
        KERNEL(plan_group)(group, matrix, list->rows, 0, i, list->count, list->z);
        i += group->count;
    }
}

/* Where the rows of a group begin. Behind them its last one, which has no weight there; of no row, the matrix itself. */
INLINE void KERNEL(locate)(
    const char **at, const Matrix *matrix, const int32_t *rows, int64_t start, const Group *group)
{
    const char *last = matrix->codes;
    for (int64_t k = 0; k < RUN; k++) {
        if (k < group->count)
            last = matrix->codes + (rows ? rows[group->first + k] : start + group->first + k) * matrix->stride;
        at[k] = last;
    }
}

typedef void KERNEL(AddGroup)(
    float *y, const Matrix *matrix, const Group *group, const char *const *rows, const char *const *later,
    int64_t following);

static void KERNEL(add_listed)(float *y, const Matrix *matrix, const List *list, KERNEL(AddGroup) *add_group)
{
    static const Group none = {0};
    const char *at[2][RUN];
    if (list->group_count)
        KERNEL(locate)(at[0], matrix, list->rows, 0, list->groups);
    for (int64_t i = 0; i < list->group_count; i++) {
        const Group *group = &list->groups[i], *next = i + 1 < list->group_count ? group + 1 : &none;
        KERNEL(locate)(at[(i + 1) % 2], matrix, list->rows, 0, next);
        add_group(y, matrix, group, at[i % 2], at[(i + 1) % 2], next->count);
    }
}

static void KERNEL(add_grouped)(
    float *y, const Matrix *matrix, int64_t first, int64_t count, const float *z, KERNEL(AddGroup) *add_group)
{
    Group groups[2];
    const char *at[2][RUN];
    KERNEL(plan_group)(&groups[0], matrix, NULL, first, 0, count, z);
    KERNEL(locate)(at[0], matrix, NULL, first, &groups[0]);
    for (int turn = 0; groups[turn].count; turn = 1 - turn) {
        const Group *group = &groups[turn];
        Group *next = &groups[1 - turn];
        KERNEL(plan_group)(next, matrix, NULL, first, group->first + group->count, count, z);
        KERNEL(locate)(at[1 - turn], matrix, NULL, first, next);
        add_group(y, matrix, group, at[turn], at[1 - turn], next->count);
    }
}

/* Whole numbers for one block of 32 activations. tile: the number of its tile's first block; block: within that. */
INLINE void KERNEL(make_block_whole)(Input *input, int64_t tile, int64_t block)
{
    const float *x = input->values + 32 * (tile + block);
    float highest = KERNEL(highest)(x, 32), inverse = inverse_of(highest), scale = highest / LARGEST;
    int32_t whole[32], sums[2] = {0, 0}, high_sums[2] = {0, 0};
    for (int i = 0; i < 32; i++)
        whole[i] = to_whole(x[i] * inverse);
    for (int half = 0; half < 2; half++)
        for (int i = 16 * half; i < 16 * half + 16; i++) {
            sums[half] += whole[i];
            high_sums[half] += whole[i] >> 8;
        }
    for (int quad = 0; quad < 8; quad++)
        for (int i = 0; i < 4; i++) {
            int64_t at = 32 * tile + 64 * quad + 4 * block + i;
            input->high[at] = (int8_t)(whole[4 * quad + i] >> 8);
            input->low[at] = (uint8_t)whole[4 * quad + i];
        }
    float *weighted = input->weighted + 3 * tile + block, *high = input->high_weighted + 3 * tile + block;
    input->scales[tile + block] = scale;
    weighted[0] = scale * (float)sums[0];
    weighted[16] = scale * (float)sums[1];
    weighted[32] = scale * (float)(sums[0] + sums[1]);
    high[0] = scale * 256 * (float)high_sums[0];
    high[16] = scale * 256 * (float)high_sums[1];
    high[32] = scale * 256 * (float)(high_sums[0] + high_sums[1]);
}

static void KERNEL(make_whole)(Input *input, int64_t count)
{
    for (int64_t block = 0; block < count / 32; block++)
        KERNEL(make_block_whole)(input, block / 16 * 16, block % 16);
}

typedef void KERNEL(Rows)(
    float *out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, const Input *x);

static void KERNEL(dot_all)(
    float *out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, KERNEL(Rows) *pair,
    KERNEL(Rows) *one)
{
    int64_t stride = matrix->stride, part = count / PAIR, at[PAIR], later[PAIR];
    for (int64_t i = 0; i < part; i++) {
        for (int k = 0; k < PAIR; k++) {
            at[k] = (first + i + k * part) * stride;
            later[k] = at[k] + AHEAD_BYTES;
        }
        pair(out + i, part, matrix, at, later, x);
    }
    for (int64_t i = PAIR * part; i < count; i++) {
        at[0] = (first + i) * stride;
        one(out + i, 0, matrix, at, at, x);
    }
}

/* Two streams, as in dot_all: of the first and of the second half of the rows. */
static void KERNEL(dot_numbered)(
    float *out, const Matrix *matrix, const int32_t *rows, int64_t count, const Input *x, KERNEL(Rows) *pair,
    KERNEL(Rows) *one)
{
    int64_t at[PAIR], later[PAIR], part = count / PAIR, stride = matrix->stride;
    for (int64_t i = 0; i < AHEAD_ROWS && i < part; i++)
        for (int k = 0; k < PAIR; k++)
            ask_for(matrix->codes + rows[i + k * part] * stride, stride);
    for (int64_t i = 0; i < part; i++) {
        int64_t ahead = i + AHEAD_ROWS < part ? i + AHEAD_ROWS : part - 1;
        for (int k = 0; k < PAIR; k++) {
            at[k] = rows[i + k * part] * stride;
            later[k] = rows[ahead + k * part] * stride;
        }
        pair(out + i, part, matrix, at, later, x);
    }
    for (int64_t i = PAIR * part; i < count; i++) {
        at[0] = rows[i] * stride;
        one(out + i, 1, matrix, at, at, x);
    }
}

/* The products of codes of so many bits. What is large is compiled once for each. */
#define GROUPED_PRODUCTS(BITS)                                                                                        \
    static void KERNEL(dot_pair##BITS)(                                                                               \
        float *out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, const Input *x)   \
    {                                                                                                                 \
        KERNEL(dot_grouped_rows)(out, apart, matrix, rows, later, PAIR, x, BITS);                                     \
    }                                                                                                                 \
    static void KERNEL(dot_one##BITS)(                                                                                \
        float *out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, const Input *x)   \
    {                                                                                                                 \
        KERNEL(dot_grouped_rows)(out, apart, matrix, rows, later, 1, x, BITS);                                        \
    }                                                                                                                 \
    static void KERNEL(dot_grouped##BITS)(                                                                            \
        float *out, const Matrix *matrix, int64_t first, int64_t count, const Input *x)                               \
    {                                                                                                                 \
        KERNEL(dot_all)(out, matrix, first, count, x, KERNEL(dot_pair##BITS), KERNEL(dot_one##BITS));                 \
    }                                                                                                                 \
    static void KERNEL(dot_some_grouped##BITS)(                                                                       \
        float *out, const Matrix *matrix, const int32_t *rows, int64_t count, const Input *x)                         \
    {                                                                                                                 \
        KERNEL(dot_numbered)(out, matrix, rows, count, x, KERNEL(dot_pair##BITS), KERNEL(dot_one##BITS));             \
    }                                                                                                                 \
    static void KERNEL(add_group##BITS)(                                                                              \
        float *y, const Matrix *matrix, const Group *group, const char *const *rows, const char *const *later,        \
        int64_t following)                                                                                            \
    {                                                                                                                 \
        KERNEL(add_group)(y, matrix, group, rows, later, following, BITS);                                            \
    }                                                                                                                 \
    static void KERNEL(add_grouped##BITS)(                                                                            \
        float *y, const Matrix *matrix, int64_t first, int64_t count, const float *z)                                 \
    {                                                                                                                 \
        KERNEL(add_grouped)(y, matrix, first, count, z, KERNEL(add_group##BITS));                                     \
    }                                                                                                                 \
    static void KERNEL(add_list_grouped##BITS)(float *y, const Matrix *matrix, const List *list)                      \
    {                                                                                                                 \
        KERNEL(add_listed)(y, matrix, list, KERNEL(add_group##BITS));                                                 \
    }

GROUPED_PRODUCTS(4)
GROUPED_PRODUCTS(6)
GROUPED_PRODUCTS(8)
