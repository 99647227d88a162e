/*
 * Products with weights in groups (see Matrix in model.h), for one instruction set; kernels_for.h includes this file.
 *
 * Activations become integers of 16 bits; each 32 of them share a scale. Products with codes are summed exactly in 32
 * bits, and multiplied by scales once for each group. Processors multiply pairs of 16 bits. So a lane of four codes
 * becomes two pairs, one of its even codes and one of its odd codes.
 */

typedef uint8_t KERNEL(Codes) __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t KERNEL(Pairs) __attribute__((vector_size(VECTOR_BYTES)));
#define Codes KERNEL(Codes)
#define Pairs KERNEL(Pairs)
#define Whole KERNEL(Whole)

/* ---- Loads of a part of a vector; the rest is zero. Loads of whole vectors have no mask, which costs time. ---- */

/*
 * The baseline loads scales one by one. These loads are compiled once, not at each place: the library then builds in
 * two thirds of the time.
 */
#undef LOAD
#if VECTOR_BYTES == 16
#define LOAD static __attribute__((noinline))
#else
#define LOAD INLINE
#endif

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

LOAD Vector KERNEL(load_halves)(const char *at, int64_t lanes)
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

LOAD Vector KERNEL(load_bytes)(const char *at, int64_t lanes)
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

/* sums + the products of two neighbours. Both factors are signed. */
INLINE Whole KERNEL(add_products)(Whole sums, Pairs a, Pairs b)
{
#if VECTOR_BYTES == 64
    return (Whole)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif VECTOR_BYTES == 32
    return sums + (Whole)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return sums + (Whole)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
    int32x4_t first = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    return sums + (Whole)vpaddq_s32(first, vmull_high_s16((int16x8_t)a, (int16x8_t)b));
#else
    for (int i = 0; i < 2 * LANES; i++)
        sums[i / 2] += (int16_t)a[i] * (int16_t)b[i];
    return sums;
#endif
}

/* Load it once. A compiler would let each instruction load it again, and loads limit the speed as products do. */
INLINE Pairs KERNEL(held)(Pairs pairs)
{
#if VECTOR_BYTES == 64
    __asm__("" : "+v"(pairs));
#endif
    return pairs;
}

/* Codes of 4 bits as pairs: first the even and the odd codes in lower halves of bytes, then those in upper halves. */
INLINE void KERNEL(split_halves)(Pairs *pairs, Codes codes)
{
    Pairs both = KERNEL(held)((Pairs)codes);
    pairs[0] = both & 15;
    pairs[1] = both >> 8 & 15;
    pairs[2] = both >> 4 & 15;
    pairs[3] = both >> 12;
}

/* Codes of 8 bits as pairs: the even and the odd codes. */
INLINE void KERNEL(split)(Pairs *pairs, Codes codes)
{
    pairs[0] = (Pairs)codes & 255;
    pairs[1] = (Pairs)codes >> 8;
}

/* The largest absolute value; NaN if any value is NaN. Floats without a sign have the order of their bits. */
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

/* Unpack the quads ``quad`` and ``quad + 4`` of the blocks from ``codes`` on, two pairs each. blocks: in this tile. */
INLINE void KERNEL(unpack)(Pairs *pairs, const char *codes, int64_t blocks, int64_t lanes, int quad, int bits)
{
    Codes first = KERNEL(load_codes)(codes + quad * 4 * blocks, lanes), second;
    if (bits == 4) {
        KERNEL(split_halves)(pairs, first);
        return;
    }
    if (bits == 8)
        second = KERNEL(load_codes)(codes + (quad + 4) * 4 * blocks, lanes);
    else {
        Codes high = KERNEL(load_codes)(codes + (4 + quad / 2) * 4 * blocks, lanes) >> quad % 2 * 4;
        second = first >> 4 | (high << 2 & 48);
        first = (first & 15) | (high << 4 & 48);
    }
    KERNEL(split)(pairs, first);
    KERNEL(split)(pairs + 2, second);
}

/* Scales or minimums of up to LANES blocks; with two levels, a block's value times its superblock's. */
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

/* Scales of up to LANES groups. minimum: zeros if there are none. */
typedef struct {
    Vector scale, minimum;
} KERNEL(Scales);
#define Scales KERNEL(Scales)

/* at: place of the first scale. */
INLINE Scales KERNEL(load_record)(const Groups *groups, int64_t record, int64_t at, int64_t block, int64_t lanes)
{
    Scales found = {{0}, {0}};
    const char *supers = groups->supers ? groups->supers + record + block / 8 * 2 : NULL;
    found.scale = KERNEL(load_scales)(groups->scales + record + at * groups->bytes, supers, lanes);
    if (groups->minimums) {
        supers = groups->supers ? groups->super_minimums + record + block / 8 * 2 : NULL;
        found.minimum = KERNEL(load_scales)(groups->minimums + record + at * groups->bytes, supers, lanes);
    }
    return found;
}

/*
 * The contribution of some groups to a row's result, from ``sums``. at: where the activations' scales begin; sums_at:
 * their sums. There are either minimums or codes of zero.
 */
INLINE Vector KERNEL(close)(
    Vector result, Whole sums, Scales own, Vector zero, const Input *x, int64_t at, int64_t sums_at, bool minimums)
{
    Vector product = KERNEL(load)((const char *)(x->scales + at), 0, FLOAT32) * __builtin_convertvector(sums, Vector);
    Vector of_ones = KERNEL(load)((const char *)(x->weighted + sums_at), 0, FLOAT32);
    if (minimums)
        return KERNEL(fused)(own.minimum, of_ones, KERNEL(fused)(own.scale, product, result));
    return KERNEL(fused)(own.scale, KERNEL(fused)(-zero, of_ones, product), result);
}

/*
 * Add the contribution of a tile's blocks ``first + h`` to ``first + h + lanes`` to some rows' and tokens' results.
 * halves: groups in a block.
 */
INLINE void KERNEL(dot_lanes)(
    Vector results[PAIR][SOME_TOKENS], const Matrix *matrix, const int64_t *rows, int some, const Input *x, int tokens,
    int64_t first, int64_t of_tile, int64_t h, int64_t lanes, int bits, int halves, bool minimums)
{
    const Groups *groups = &matrix->groups;
    Whole sums[PAIR][SOME_TOKENS][2] = {{{{0}}}};
    const int further = 64 / VECTOR_BYTES;
    _Pragma("GCC unroll 4") for (int quad = 0; quad < 4; quad++)
    {
        Pairs codes[PAIR][4];
        UNROLLED for (int k = 0; k < some; k++)
            KERNEL(unpack)(codes[k], matrix->codes + rows[k] + first * 4 * bits + 4 * h, of_tile, lanes, quad, bits);
        UNROLLED for (int t = 0; t < tokens; t++) {
            const Pairs *pairs = (const Pairs *)(x[t].pairs + 16 * first + h) + 2 * quad * further;
            UNROLLED for (int i = 0; i < 4; i++) {
                Pairs these = KERNEL(held)(pairs[(i / 2 * 8 + i % 2) * further]);
                UNROLLED for (int k = 0; k < some; k++)
                    sums[k][t][i / 2] = KERNEL(add_products)(sums[k][t][i / 2], codes[k][i], these);
            }
        }
    }
    Vector zero = (Vector){0} + groups->zero;
    UNROLLED for (int k = 0; k < some; k++)
        UNROLLED for (int half = 0; half < halves; half++) {
            int64_t at = first * halves + h + half * of_tile, sums_at = 3 * first + h + (halves == 2 ? 16 * half : 32);
            Scales own = KERNEL(load_record)(groups, rows[k], at, first + h, lanes);
            UNROLLED for (int t = 0; t < tokens; t++)
                results[k][t] = KERNEL(close)(
                    results[k][t], halves == 2 ? sums[k][t][half] : sums[k][t][0] + sums[k][t][1], own, zero, &x[t],
                    first + h, sums_at, minimums);
        }
}

/* ``rows_by_tokens`` for a known number of halves, with minimums or without. */
INLINE void KERNEL(dot_halves)(
    Outputs out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, int some,
    const Input *x, int tokens, int bits, int halves, bool minimums)
{
    int64_t blocks = matrix->columns / 32;
    Vector results[PAIR][SOME_TOKENS] = {{{0}}};
    for (int64_t first = 0; first < blocks; first += 16) {
        int64_t of_tile = blocks - first < 16 ? blocks - first : 16;
        /* Scales follow the codes: each tile fetches its share of the whole record. */
        int64_t share = matrix->stride * first / blocks, end = matrix->stride * (first + of_tile) / blocks;
        UNROLLED for (int k = 0; later && k < some; k++)
            ask_for(matrix->codes + later[k] + share, end - share);
        if (of_tile == 16)
            for (int64_t h = 0; h < 16; h += LANES)
                KERNEL(dot_lanes)(results, matrix, rows, some, x, tokens, first, 16, h, LANES, bits, halves, minimums);
        else
            for (int64_t h = 0; h < of_tile; h += LANES) {
                int64_t lanes = of_tile - h < LANES ? of_tile - h : LANES;
                KERNEL(dot_lanes)(
                    results, matrix, rows, some, x, tokens, first, of_tile, h, lanes, bits, halves, minimums);
            }
    }
    UNROLLED for (int k = 0; k < some; k++)
        UNROLLED for (int t = 0; t < tokens; t++)
            out.at[t * out.apart + k * apart] = KERNEL(sum)(results[k][t]);
}

/*
 * out_k = row k . x, for some rows and tokens at once. Results of successive rows are the given distance apart. rows:
 * the beginnings of the rows. later: the beginnings of rows to prefetch, or NULL. Both are in bytes.
 */
INLINE void KERNEL(rows_by_tokens)(
    Outputs out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, int some,
    const Input *x, int tokens, int bits)
{
    bool minimums = matrix->groups.minimums;
    if (matrix->groups.size == 32 && minimums)
        KERNEL(dot_halves)(out, apart, matrix, rows, later, some, x, tokens, bits, 1, true);
    else if (matrix->groups.size == 32)
        KERNEL(dot_halves)(out, apart, matrix, rows, later, some, x, tokens, bits, 1, false);
    else
        KERNEL(dot_halves)(out, apart, matrix, rows, later, some, x, tokens, bits, 2, minimums);
}

/* ---- Sums of weighted rows: groups are of neighbouring rows. ---- */

/* Handles RUN numbers at a time for any count, so that the compiler vectorises all loops. */
INLINE void KERNEL(prepare_weights)(Weights *weights, const float *z, int64_t count)
{
    float padded[RUN] = {0};
    int32_t whole[RUN], sum = 0;
    memcpy(padded, z, (size_t)count * sizeof *z);
    float highest = KERNEL(highest)(padded, RUN), inverse = inverse_of(highest);
    for (int i = 0; i < RUN; i++) {
        whole[i] = to_whole(padded[i] * inverse);
        sum += whole[i];
    }
    for (int i = 0; i < RUN / 2; i++)
        weights->pairs[i] = pair_of(whole, i);
    weights->scale = highest / LARGEST;
    weights->sum = (float)sum;
}

#if VECTOR_BYTES == 64
#define UNPACK(which, a, b) (Codes) _mm512_unpack##which((__m512i)(a), (__m512i)(b))
#elif VECTOR_BYTES == 32
#define UNPACK(which, a, b) (Codes) _mm256_unpack##which((__m256i)(a), (__m256i)(b))
#endif

/* Interleave the bytes of four rows: place 4 v + i of each 16 bytes goes to lane i of vector v. */
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

/* The two high bits of six-bit codes, for lanes from h on of a tile of width ``wide``. A byte holds four of them. */
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

/*
 * One quad of rows, for the 8 LANES outputs of a tile from lane h on: eight vectors of codes, or four vectors of 4-bit
 * codes, two in a byte. at: the tile's place in each row.
 */
INLINE void KERNEL(gather_quad)(
    Codes *codes, const char *const *rows, int64_t at, int64_t wide, int64_t h, int64_t lanes, int bits)
{
    Codes raw[4], quads[4] = {{0}}, more[4] = {{0}};
    UNROLLED for (int k = 0; k < 4; k++)
        raw[k] = KERNEL(load_codes)(rows[k] + at + 4 * h, lanes);
    KERNEL(interleave)(quads, raw);
    if (bits > 4) {
        UNROLLED for (int k = 0; k < 4; k++)
            raw[k] = bits == 8 ? KERNEL(load_codes)(rows[k] + at + 4 * wide + 4 * h, lanes)
                               : KERNEL(load_high)(rows[k] + at + 4 * wide, wide, h);
        KERNEL(interleave)(more, raw);
    }
    UNROLLED for (int v = 0; v < 4; v++) {
        codes[v] = bits == 6 ? (quads[v] & 15) | (more[v] << 4 & 48) : quads[v];
        if (bits > 4)
            codes[v + 4] = bits == 6 ? quads[v] >> 4 | (more[v] << 2 & 48) : more[v];
    }
}

/* Pairs of the vectors v and v + 4 of a gathered quad: of its even and its odd rows, two each. */
INLINE void KERNEL(gathered)(Pairs *pairs, const Codes *codes, int v, int bits)
{
    if (bits == 4) {
        KERNEL(split_halves)(pairs, codes[v]);
        return;
    }
    KERNEL(split)(pairs, codes[v]);
    KERNEL(split)(pairs + 2, codes[v + 4]);
}

/* Scales or minimums of some outputs; with two levels, without the second one. */
INLINE Vector KERNEL(load_first_level)(const char *scales, int64_t output, int64_t lanes, bool two)
{
    return two ? KERNEL(load_bytes)(scales + output, lanes) : KERNEL(load_halves)(scales + 2 * output, lanes);
}

/* Only AVX512 has vectors that can be longer than the rest of a tile. */
INLINE Vector KERNEL(load_outputs)(const float *y, int64_t lanes)
{
#if VECTOR_BYTES == 64
    if (lanes < LANES)
        return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), y);
#else
    (void)lanes;
#endif
    return KERNEL(load)((const char *)y, 0, FLOAT32);
}

INLINE void KERNEL(store_outputs)(float *y, Vector values, int64_t lanes)
{
#if VECTOR_BYTES == 64
    if (lanes < LANES) {
        _mm512_mask_storeu_ps(y, (__mmask16)((1u << lanes) - 1), (__m512)values);
        return;
    }
#else
    (void)lanes;
#endif
    memcpy(y, &values, sizeof values);
}

/* Eight times up to LANES outputs, ``wide`` apart: y += sums, times the superblock's factors if there are any. */
INLINE void KERNEL(add_sums)(float *y, const Vector *sums, const char *supers, int64_t wide, int64_t lanes)
{
    UNROLLED_8 for (int v = 0; v < 8; v++) {
        Vector before = KERNEL(load_outputs)(y + wide * v, lanes), after = before + sums[v];
        if (supers)
            after = KERNEL(fused)(KERNEL(load_halves)(supers + 2 * wide * v, lanes), sums[v], before);
        KERNEL(store_outputs)(y + wide * v, after, lanes);
    }
}

/* What the minimums of a stretch add to the outputs of one or two tokens. group: the first of their groups. */
INLINE void KERNEL(add_minimums)(
    Outputs y, const Groups *groups, const Stretch *stretch, const Group *group, int tokens, int some, int64_t wide,
    int64_t lanes, int64_t output, bool two)
{
    Vector sums[2][8] = {{{0}}};
    for (int64_t i = 0; i < stretch->count; i++, group += tokens) {
        const char *minimums = groups->minimums + group->number * groups->stride;
        UNROLLED_8 for (int v = 0; v < 8; v++) {
            Vector own = KERNEL(load_first_level)(minimums, output + wide * v, lanes, two);
            UNROLLED for (int t = 0; t < some; t++)
                sums[t][v] = KERNEL(fused)(
                    own, (Vector){0} + group[t].weights.scale * group[t].weights.sum, sums[t][v]);
        }
    }
    const char *supers = two ? groups->super_minimums + stretch->super + 2 * output : NULL;
    UNROLLED for (int t = 0; t < some; t++)
        KERNEL(add_sums)(beyond(y, t, output).at, sums[t], supers, wide, lanes);
}

/* Fetch what quad number ``quad`` of a stretch needs for one tile. */
INLINE void KERNEL(fetch_quad)(const Later *later, int64_t quad, int bits)
{
    if (quad < later->stretch->quads)
        UNROLLED for (int k = 0; k < 4; k++)
            ask_for(later->stretch->rows[4 * quad + k] + later->start * bits / 8, 16 * bits);
}

/* Fetch the scales that group number i of a stretch needs for one tile. */
INLINE void KERNEL(fetch_scales)(const Later *later, const Groups *groups, int64_t i, int tokens)
{
    if (i >= later->stretch->count)
        return;
    int64_t at = later->stretch->groups[i * tokens].number * groups->stride + later->start * groups->bytes;
    ask_for(groups->scales + at, 128 * groups->bytes);
    if (groups->minimums)
        ask_for(groups->minimums + at, 128 * groups->bytes);
}

/* Fetch what else a stretch needs for one tile: what a shorter one before it has not fetched. */
INLINE void KERNEL(fetch_rest)(
    const Later *later, const Groups *groups, const Stretch *before, int tokens, int bits)
{
    for (int64_t quad = before->quads; quad < later->stretch->quads; quad++)
        KERNEL(fetch_quad)(later, quad, bits);
    for (int64_t i = before->count; i < later->stretch->count; i++)
        KERNEL(fetch_scales)(later, groups, i, tokens);
    if (!groups->supers || !later->stretch->count)
        return;
    ask_for(groups->supers + later->stretch->super + 2 * later->start, 256);
    if (groups->minimums)
        ask_for(groups->super_minimums + later->stretch->super + 2 * later->start, 256);
}

/* The products of one quad's codes with the weights of some tokens are added to sums. */
INLINE void KERNEL(add_quad)(
    Whole (*sums)[8], const Codes *codes, const Group *group, int some, int64_t quad, int bits)
{
    Pairs even[2], odd[2];
    UNROLLED for (int t = 0; t < some; t++) {
        even[t] = (Pairs)((Whole){0} + group[t].weights.pairs[2 * quad]);
        odd[t] = (Pairs)((Whole){0} + group[t].weights.pairs[2 * quad + 1]);
    }
    UNROLLED for (int v = 0; v < 4; v++) {
        Pairs pairs[4];
        KERNEL(gathered)(pairs, codes, v, bits);
        UNROLLED for (int t = 0; t < some; t++) {
            sums[t][v] = KERNEL(add_products)(sums[t][v], pairs[0], even[t]);
            sums[t][v + 4] = KERNEL(add_products)(sums[t][v + 4], pairs[2], even[t]);
            sums[t][v] = KERNEL(add_products)(sums[t][v], pairs[1], odd[t]);
            sums[t][v + 4] = KERNEL(add_products)(sums[t][v + 4], pairs[3], odd[t]);
        }
    }
}

/* The scales of a group for the outputs from ``output`` on. */
INLINE void KERNEL(load_group_scales)(
    Vector *scales, const Groups *groups, const Group *group, int64_t output, int64_t wide, int64_t lanes, bool two)
{
    const char *record = groups->scales + group->number * groups->stride;
    UNROLLED_8 for (int v = 0; v < 8; v++)
        scales[v] = KERNEL(load_first_level)(record, output + wide * v, lanes, two);
}

/* sums += scale products. The code of zero is a part of ``products``. */
INLINE void KERNEL(close_group)(Vector *sums, const Whole *products, const Vector *scales, const Weights *weights)
{
    Vector factor = (Vector){0} + weights->scale;
    UNROLLED_8 for (int v = 0; v < 8; v++)
        sums[v] = KERNEL(fused)(scales[v], __builtin_convertvector(products[v], Vector) * factor, sums[v]);
}

/* Where the sums of products begin: less the weights' sum times the code of zero. */
INLINE void KERNEL(begin_products)(Whole *products, const Groups *groups, const Weights *weights)
{
    Whole start = (Whole){0} - (int32_t)groups->zero * (int32_t)weights->sum;
    UNROLLED_8 for (int v = 0; v < 8; v++)
        products[v] = start;
}

/* Add a stretch to one token's outputs from ``output`` on, in the lanes from h on of a tile at ``at`` in each row. */
INLINE void KERNEL(add_to_one)(
    float *y, const Groups *groups, const Stretch *stretch, const Later *later, int64_t output, int64_t at,
    int64_t wide, int64_t h, int bits, bool two)
{
    int64_t lanes = wide < LANES ? wide : LANES, quad = 0;
    Vector sums[8] = {{0}};
    for (int64_t i = 0; i < stretch->count; i++) {
        const Group *group = &stretch->groups[i];
        Whole products[1][8];
        KERNEL(begin_products)(products[0], groups, &group->weights);
        if (!h)
            KERNEL(fetch_scales)(later, groups, i, 1);
        for (int64_t own = 0; own < quads_of(group); own++, quad++) {
            Codes codes[8];
            if (!h)
                KERNEL(fetch_quad)(later, quad, bits);
            KERNEL(gather_quad)(codes, stretch->rows + 4 * quad, at, wide, h, lanes, bits);
            KERNEL(add_quad)(products, codes, group, 1, own, bits);
        }
        Vector scales[8];
        KERNEL(load_group_scales)(scales, groups, group, output, wide, lanes, two);
        KERNEL(close_group)(sums, products[0], scales, &group->weights);
    }
    const char *supers = two ? groups->supers + stretch->super + 2 * output : NULL;
    KERNEL(add_sums)(y + output, sums, supers, wide, lanes);
}

/* Add a group's gathered quads to the sums of one or two tokens. */
INLINE void KERNEL(add_group)(
    Vector (*sums)[8], Codes (*codes)[8], int64_t quads, const Groups *groups, const Group *group, int some,
    const Vector *scales, int bits)
{
    Whole products[2][8];
    UNROLLED for (int t = 0; t < some; t++)
        KERNEL(begin_products)(products[t], groups, &group[t].weights);
    for (int64_t quad = 0; quad < quads; quad++)
        KERNEL(add_quad)(products, codes[quad], group, some, quad, bits);
    UNROLLED for (int t = 0; t < some; t++)
        KERNEL(close_group)(sums[t], products[t], scales, &group[t].weights);
}

/* The same for several tokens: codes and scales are read once and stay in the first cache. */
INLINE void KERNEL(add_to_several)(
    Outputs y, const Groups *groups, const Stretch *stretch, const Later *later, int tokens, int64_t output,
    int64_t at, int64_t wide, int64_t h, int bits, bool two)
{
    int64_t lanes = wide < LANES ? wide : LANES, quad = 0;
    Vector sums[MOST_TOKENS][8] = {{{0}}};
    for (int64_t i = 0; i < stretch->count; i++) {
        const Group *group = &stretch->groups[i * tokens];
        int64_t quads = quads_of(group);
        Codes codes[RUN / 4][8];
        Vector scales[8];
        KERNEL(load_group_scales)(scales, groups, group, output, wide, lanes, two);
        if (!h)
            KERNEL(fetch_scales)(later, groups, i, tokens);
        for (int64_t own = 0; own < quads; own++, quad++) {
            if (!h)
                KERNEL(fetch_quad)(later, quad, bits);
            KERNEL(gather_quad)(codes[own], stretch->rows + 4 * quad, at, wide, h, lanes, bits);
        }
        int t = 0;
        for (; t + 2 <= tokens; t += 2)
            KERNEL(add_group)(sums + t, codes, quads, groups, group + t, 2, scales, bits);
        if (t < tokens)
            KERNEL(add_group)(sums + t, codes, quads, groups, group + t, 1, scales, bits);
    }
    const char *supers = two ? groups->supers + stretch->super + 2 * output : NULL;
    for (int t = 0; t < tokens; t++)
        KERNEL(add_sums)(beyond(y, t, output).at, sums[t], supers, wide, lanes);
}

/* A tile of eight times ``wide`` outputs, 8 or 16: known where this is inlined. For one token, ``two`` is known too. */
INLINE void KERNEL(add_tile)(
    Outputs y, const Groups *groups, const Stretch *stretch, const Later *later, int tokens, int64_t output,
    int64_t wide, int bits, bool two)
{
    int64_t at = output * bits / 8, lanes = wide < LANES ? wide : LANES;
    for (int64_t h = 0; h < wide; h += LANES) {
        int t = 0;
        for (; groups->minimums && t + 2 <= tokens; t += 2)
            KERNEL(add_minimums)(
                beyond(y, t, 0), groups, stretch, stretch->groups + t, tokens, 2, wide, lanes, output + h, two);
        if (groups->minimums && t < tokens)
            KERNEL(add_minimums)(
                beyond(y, t, 0), groups, stretch, stretch->groups + t, tokens, 1, wide, lanes, output + h, two);
        if (tokens == 1)
            KERNEL(add_to_one)(y.at, groups, stretch, later, output + h, at, wide, h, bits, two);
        else
            KERNEL(add_to_several)(y, groups, stretch, later, tokens, output + h, at, wide, h, bits, two);
    }
    KERNEL(fetch_rest)(later, groups, stretch, tokens, bits);
}

/* y += sum over the rows of a stretch, which each token weights. next: the stretch to fetch meanwhile. */
INLINE void KERNEL(add_stretch)(
    Outputs y, const Matrix *matrix, const Stretch *stretch, const Stretch *next, int tokens, int bits, bool two)
{
    const Groups *groups = &matrix->groups;
    for (int64_t start = 0; start < matrix->columns; start += 128) {
        bool last = start + 128 >= matrix->columns;
        Later later = {last ? next : stretch, last ? 0 : start + 128};
        if (matrix->columns - start >= 128)
            KERNEL(add_tile)(y, groups, stretch, &later, tokens, start, 16, bits, two);
        else
            KERNEL(add_tile)(y, groups, stretch, &later, tokens, start, 8, bits, two);
    }
}

/* Plan the rows from number i on that belong to one group. rows: their numbers; NULL: successive from ``start`` on. */
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

INLINE void KERNEL(begin_stretch)(Stretch *stretch, const Group *groups)
{
    stretch->groups = groups;
    stretch->count = stretch->quads = 0;
}

/* Whether a group goes on with a stretch: its number is higher, and the superblock is the same. */
INLINE bool KERNEL(goes_on)(const Stretch *stretch, const Matrix *matrix, int64_t number, int tokens)
{
    if (!stretch->count)
        return true;
    int64_t last = stretch->groups[(stretch->count - 1) * tokens].number, groups = SUPER / matrix->groups.size;
    return last < number && last / groups == number / groups;
}

/* Add a group. Its last quad is filled up with its last row, which has the weight 0 there. */
INLINE void KERNEL(lengthen)(
    Stretch *stretch, const Matrix *matrix, const int32_t *rows, int64_t start, const Group *group)
{
    int64_t quads = quads_of(group);
    if (!stretch->count)
        stretch->super = group->number / (SUPER / matrix->groups.size) * matrix->groups.super_stride;
    for (int64_t k = 0; k < 4 * quads; k++) {
        int64_t i = group->first + (k < group->count ? k : group->count - 1);
        stretch->rows[4 * stretch->quads + k] = matrix->codes + (rows ? rows[i] : start + i) * matrix->stride;
    }
    stretch->quads += quads;
    stretch->count++;
}

typedef void KERNEL(AddStretch)(
    Outputs y, const Matrix *matrix, const Stretch *stretch, const Stretch *next, int tokens);

/* The stretch of a list from group number i on; it has no groups after the last one. */
static int64_t KERNEL(list_stretch)(Stretch *stretch, const Matrix *matrix, const List *list, int64_t i)
{
    KERNEL(begin_stretch)(stretch, list->groups + i);
    for (; i < list->group_count && KERNEL(goes_on)(stretch, matrix, list->groups[i].number, 1); i++)
        KERNEL(lengthen)(stretch, matrix, list->rows, 0, list->groups + i);
    return i;
}

static void KERNEL(add_listed)(
    float *y, const Matrix *matrix, const List *list, KERNEL(AddStretch) *add_stretch, int bits)
{
    static const Stretch none = {0};
    Stretch stretches[2];
    int64_t i = KERNEL(list_stretch)(&stretches[0], matrix, list, 0);
    Later first = {&stretches[0], 0};
    KERNEL(fetch_rest)(&first, &matrix->groups, &none, 1, bits);
    for (int turn = 0; stretches[turn].count; turn = 1 - turn) {
        i = KERNEL(list_stretch)(&stretches[1 - turn], matrix, list, i);
        add_stretch((Outputs){y, 0}, matrix, &stretches[turn], &stretches[1 - turn], 1);
    }
}

/* The same group, with each token's weights. */
static void KERNEL(plan_tokens)(
    Group *groups, const Matrix *matrix, int64_t start, int64_t i, int64_t count, Outputs z, int tokens)
{
    for (int t = 0; t < tokens; t++)
        KERNEL(plan_group)(&groups[t], matrix, NULL, start, i, count, beyond(z, t, 0).at);
}

/* The stretch of successive rows from number i on. groups: room for its groups. */
static int64_t KERNEL(plan_stretch)(
    Stretch *stretch, Group *groups, const Matrix *matrix, int64_t start, int64_t i, int64_t count, Outputs z,
    int tokens)
{
    KERNEL(begin_stretch)(stretch, groups);
    while (i < count && KERNEL(goes_on)(stretch, matrix, group_of(matrix, start + i), tokens)) {
        Group *own = groups + stretch->count * tokens;
        KERNEL(plan_tokens)(own, matrix, start, i, count, z, tokens);
        KERNEL(lengthen)(stretch, matrix, NULL, start, own);
        i += own->count;
    }
    return i;
}

static void KERNEL(add_grouped)(
    Outputs y, const Matrix *matrix, int64_t first, int64_t count, Outputs z, int tokens,
    KERNEL(AddStretch) *add_stretch)
{
    Group groups[2][SUPER / 16 * MOST_TOKENS];
    Stretch stretches[2];
    int64_t i = KERNEL(plan_stretch)(&stretches[0], groups[0], matrix, first, 0, count, z, tokens);
    for (int turn = 0; stretches[turn].count; turn = 1 - turn) {
        i = KERNEL(plan_stretch)(&stretches[1 - turn], groups[1 - turn], matrix, first, i, count, z, tokens);
        add_stretch(y, matrix, &stretches[turn], &stretches[1 - turn], tokens);
    }
}

/* The integers for one block of 32 activations. tile: the number of its tile's first block. block: its number there. */
INLINE void KERNEL(make_block_whole)(Input *input, int64_t tile, int64_t block)
{
    const float *x = input->values + 32 * (tile + block);
    float highest = KERNEL(highest)(x, 32), inverse = inverse_of(highest), scale = highest / LARGEST;
    int32_t whole[32], sums[2] = {0, 0};
    for (int i = 0; i < 32; i++)
        whole[i] = to_whole(x[i] * inverse);
    for (int half = 0; half < 2; half++)
        for (int i = 16 * half; i < 16 * half + 16; i++)
            sums[half] += whole[i];
    for (int i = 0; i < 16; i++)
        input->pairs[16 * (tile + i) + block] = pair_of(whole, i);
    float *weighted = input->weighted + 3 * tile + block;
    input->scales[tile + block] = scale;
    weighted[0] = scale * (float)sums[0];
    weighted[16] = scale * (float)sums[1];
    weighted[32] = scale * (float)(sums[0] + sums[1]);
}

static void KERNEL(make_whole)(Input *input, int64_t count)
{
    for (int64_t block = 0; block < count / 32; block++)
        KERNEL(make_block_whole)(input, block / 16 * 16, block % 16);
}

typedef void KERNEL(Rows)(
    Outputs out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, const Input *x);

/* The functions for some rows with one, two or four tokens' x; NULL if there are too few registers. */
typedef struct {
    KERNEL(Rows) *one, *two, *four;
} KERNEL(ByTokens);
#define ByTokens KERNEL(ByTokens)

/* Pairs of rows with all tokens' x: each of ``pairs`` rows from number i on, and the row ``part`` after it. */
static void KERNEL(dot_pairs)(
    Outputs out, const Matrix *matrix, int64_t first, int64_t i, int64_t pairs, int64_t part, const Input *x,
    int tokens, const ByTokens *by)
{
    int64_t stride = matrix->stride;
    for (int t = 0, some; t < tokens; t += some) {
        KERNEL(Rows) *rows = by->one;
        some = 1;
        if (by->four && tokens - t >= 4) {
            rows = by->four;
            some = 4;
        } else if (by->two && tokens - t >= 2) {
            rows = by->two;
            some = 2;
        }
        for (int64_t pair = i; pair < i + pairs; pair++) {
            int64_t at[PAIR] = {(first + pair) * stride, (first + pair + part) * stride};
            int64_t later[PAIR] = {at[0] + AHEAD_BYTES, at[1] + AHEAD_BYTES};
            rows(beyond(out, t, pair), part, matrix, at, t ? NULL : later, x + t);
        }
    }
}

static void KERNEL(dot_all)(
    Outputs out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, int tokens, const ByTokens *pairs,
    KERNEL(Rows) *one)
{
    int64_t part = count / PAIR, at_once = tokens == 1 ? part : PAIRS_AT_ONCE;
    for (int64_t i = 0; i < part; i += at_once)
        KERNEL(dot_pairs)(
            out, matrix, first, i, part - i < at_once ? part - i : at_once, part, x, tokens, pairs);
    for (int64_t i = PAIR * part; i < count; i++) {
        int64_t at = (first + i) * matrix->stride;
        for (int t = 0; t < tokens; t++)
            one(beyond(out, t, i), 0, matrix, &at, &at, x + t);
    }
}

/* Two streams, as in dot_all: the first and the second half of the rows. */
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
        pair((Outputs){out + i, 0}, part, matrix, at, later, x);
    }
    for (int64_t i = PAIR * part; i < count; i++) {
        at[0] = rows[i] * stride;
        one((Outputs){out + i, 0}, 1, matrix, at, at, x);
    }
}

/* The products of codes of one width. Large functions are compiled once for each width. */
#define ROWS_BY_TOKENS(NAME, SOME, TOKENS, BITS)                                                                      \
    static void KERNEL(NAME##BITS)(                                                                                   \
        Outputs out, int64_t apart, const Matrix *matrix, const int64_t *rows, const int64_t *later, const Input *x)  \
    {                                                                                                                 \
        KERNEL(rows_by_tokens)(out, apart, matrix, rows, later, SOME, x, TOKENS, BITS);                               \
    }

#if VECTOR_BYTES == 64
#define PAIRS(BITS)                                                                                                   \
    ROWS_BY_TOKENS(dot_pair_by_two, PAIR, 2, BITS)                                                                    \
    ROWS_BY_TOKENS(dot_pair_by_four, PAIR, 4, BITS)                                                                   \
    static const ByTokens KERNEL(pairs##BITS) = {                                                                     \
        KERNEL(dot_pair##BITS), KERNEL(dot_pair_by_two##BITS), KERNEL(dot_pair_by_four##BITS)};
#elif VECTOR_BYTES == 32
#define PAIRS(BITS)                                                                                                   \
    ROWS_BY_TOKENS(dot_pair_by_two, PAIR, 2, BITS)                                                                    \
    static const ByTokens KERNEL(pairs##BITS) = {KERNEL(dot_pair##BITS), KERNEL(dot_pair_by_two##BITS), NULL};
#else
#define PAIRS(BITS) static const ByTokens KERNEL(pairs##BITS) = {KERNEL(dot_pair##BITS), NULL, NULL};
#endif

#define GROUPED_PRODUCTS(BITS)                                                                                        \
    ROWS_BY_TOKENS(dot_one, 1, 1, BITS)                                                                               \
    ROWS_BY_TOKENS(dot_pair, PAIR, 1, BITS)                                                                           \
    PAIRS(BITS)                                                                                                       \
    static void KERNEL(dot_grouped##BITS)(                                                                            \
        Outputs out, const Matrix *matrix, int64_t first, int64_t count, const Input *x, int tokens)                  \
    {                                                                                                                 \
        KERNEL(dot_all)(out, matrix, first, count, x, tokens, &KERNEL(pairs##BITS), KERNEL(dot_one##BITS));           \
    }                                                                                                                 \
    static void KERNEL(dot_some_grouped##BITS)(                                                                       \
        float *out, const Matrix *matrix, const int32_t *rows, int64_t count, const Input *x)                         \
    {                                                                                                                 \
        KERNEL(dot_numbered)(out, matrix, rows, count, x, KERNEL(dot_pair##BITS), KERNEL(dot_one##BITS));             \
    }                                                                                                                 \
    static void KERNEL(add_stretch##BITS)(                                                                            \
        Outputs y, const Matrix *matrix, const Stretch *stretch, const Stretch *next, int tokens)                     \
    {                                                                                                                 \
        bool two = matrix->groups.supers;                                                                             \
        if (tokens > 1)                                                                                               \
            KERNEL(add_stretch)(y, matrix, stretch, next, tokens, BITS, two);                                         \
        else if (two)                                                                                                 \
            KERNEL(add_stretch)(y, matrix, stretch, next, 1, BITS, true);                                             \
        else                                                                                                          \
            KERNEL(add_stretch)(y, matrix, stretch, next, 1, BITS, false);                                            \
    }                                                                                                                 \
    static void KERNEL(add_grouped##BITS)(                                                                            \
        Outputs y, const Matrix *matrix, int64_t first, int64_t count, Outputs z, int tokens)                         \
    {                                                                                                                 \
        KERNEL(add_grouped)(y, matrix, first, count, z, tokens, KERNEL(add_stretch##BITS));                           \
    }                                                                                                                 \
    static void KERNEL(add_list_grouped##BITS)(float *y, const Matrix *matrix, const List *list)                      \
    {                                                                                                                 \
        KERNEL(add_listed)(y, matrix, list, KERNEL(add_stretch##BITS), BITS);                                         \
    }

GROUPED_PRODUCTS(4)
GROUPED_PRODUCTS(6)
GROUPED_PRODUCTS(8)
