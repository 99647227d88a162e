/*
 * Codes to plain numbers, for one instruction set; grouped.c includes this file several times.
 *
 * First a tile's codes are brought into the order of their numbers, four bytes at a time. Then 16 numbers are made at
 * once.
 */

#define INLINE static inline __attribute__((always_inline))

typedef float WIDEN(Floats) __attribute__((vector_size(64)));
typedef uint32_t WIDEN(Words) __attribute__((vector_size(64)));
typedef uint8_t WIDEN(Bytes) __attribute__((vector_size(16)));
#define Floats WIDEN(Floats)
#define Words WIDEN(Words)
#define Bytes WIDEN(Bytes)

/* ---- 16 numbers. ---- */

INLINE Bytes WIDEN(load_bytes)(const void *at)
{
    Bytes bytes;
    memcpy(&bytes, at, sizeof bytes);
    return bytes;
}

INLINE Floats WIDEN(load_floats)(const float *at)
{
    Floats floats;
    memcpy(&floats, at, sizeof floats);
    return floats;
}

INLINE Floats WIDEN(to_floats)(Bytes bytes)
{
#if WIDTH == 64
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes));
#else
    Floats floats;
    for (int i = 0; i < 16; i++)
        floats[i] = (float)bytes[i];
    return floats;
#endif
}

/* Rounded to the nearest value; ties go to the even one. */
INLINE void WIDEN(put)(void *out, int halves, int64_t at, Floats values)
{
    if (!halves) {
        memcpy((float *)out + at, &values, sizeof values);
        return;
    }
#ifdef ROUNDS_HALVES
    __m256bh rounds = _mm512_cvtneps_pbh((__m512)values);
    memcpy((uint16_t *)out + at, &rounds, sizeof rounds);
    return;
#endif
    Words bits = (Words)values;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#if WIDTH == 64
    _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), _mm512_cvtepi32_epi16((__m512i)bits));
#else
    uint16_t rounded[16];
    for (int i = 0; i < 16; i++)
        rounded[i] = (uint16_t)bits[i];
    memcpy((uint16_t *)out + at, rounded, sizeof rounded);
#endif
}

/* ---- Scales. ---- */

/* Load successive scales or minimums. Scale i has super number i >> shift. With a shift there are at most 16. */
INLINE void WIDEN(load_scales)(
    float *out, const uint8_t *scales, const uint8_t *supers, int64_t count, int two_levels, int shift)
{
#if WIDTH == 64
    for (int64_t i = 0; i < count; i += 16) {
        __mmask16 mask = (__mmask16)(count - i < 16 ? (1u << (count - i)) - 1 : 0xffff);
        if (!two_levels) {
            _mm512_mask_storeu_ps(out + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, scales + 2 * i)));
            continue;
        }
        __m512 plain = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, scales + i)));
        __m512 super;
        if (shift) {
            __m512i which = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            __mmask8 there = count > 8 ? 3 : 1;
            super = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_maskz_loadu_epi16(there, supers)));
            super = _mm512_permutexvar_ps(which, super);
        } else {
            super = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, supers + 2 * i));
        }
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(plain, super));
    }
    return;
#endif
    if (!two_levels)
        for (int64_t i = 0; i < count; i++)
            out[i] = half_at(scales + 2 * i);
    else
        for (int64_t i = 0; i < count; i++)
            out[i] = (float)(int8_t)scales[i] * half_at(supers + 2 * (i >> shift));
}

/* Load a record's scales and minimums from ``place`` on, with their supers from ``super`` on. */
INLINE void WIDEN(load_record)(
    float *scales, float *minimums, const uint8_t *record, const uint8_t *supers, const Layout *layout, int64_t place,
    int64_t super, int64_t count, int shift)
{
    int two_levels = (int)layout->two_levels;
    WIDEN(load_scales)
    (scales, record + layout->scales + place, supers + layout->supers + super, count, two_levels, shift);
    if (layout->has_minimums)
        WIDEN(load_scales)
        (minimums, record + layout->minimums + place, supers + layout->super_minimums + super, count, two_levels, shift);
}

/* Call a function with the width of codes as a constant, which is then known after inlining. */
#define BY_BITS(CALL)                                                                                                 \
    if (layout->bits == 4)                                                                                            \
        CALL(4);                                                                                                      \
    else if (layout->bits == 6)                                                                                       \
        CALL(6);                                                                                                      \
    else                                                                                                              \
        CALL(8)

/* ---- Rows whose groups lie along them. ---- */

#if WIDTH == 64
/* Write the words in the same place of four vectors one after the other: 16 bytes for each of 16 blocks. */
INLINE void WIDEN(transpose)(uint8_t *out, int64_t apart, const __m512i *rows)
{
    __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpackhi_epi32(rows[0], rows[1]);
    __m512i c = _mm512_unpacklo_epi32(rows[2], rows[3]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    const __m512i blocks[] = {
        _mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
        _mm512_unpackhi_epi64(b, d)};
    for (int k = 0; k < 4; k++) {
        _mm_storeu_si128((__m128i *)(out + k * apart), _mm512_castsi512_si128(blocks[k]));
        _mm_storeu_si128((__m128i *)(out + (4 + k) * apart), _mm512_extracti32x4_epi32(blocks[k], 1));
        _mm_storeu_si128((__m128i *)(out + (8 + k) * apart), _mm512_extracti32x4_epi32(blocks[k], 2));
        _mm_storeu_si128((__m128i *)(out + (12 + k) * apart), _mm512_extracti32x4_epi32(blocks[k], 3));
    }
}

/* A whole tile's codes, one block after the other. */
INLINE void WIDEN(order_tile)(uint8_t *out, const uint8_t *codes, int bits)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(48);
    __m512i first[4], second[4];
    for (int quad = 0; quad < 4; quad++) {
        __m512i both = _mm512_loadu_si512(codes + 64 * quad);
        if (bits == 8) {
            first[quad] = both;
            second[quad] = _mm512_loadu_si512(codes + 64 * (quad + 4));
            continue;
        }
        first[quad] = _mm512_and_si512(both, low);
        second[quad] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        if (bits == 6) {
            __m512i more = _mm512_loadu_si512(codes + 64 * (4 + quad / 2));
            more = quad % 2 ? _mm512_srli_epi16(more, 4) : more;
            first[quad] = _mm512_or_si512(first[quad], _mm512_and_si512(_mm512_slli_epi16(more, 4), high));
            second[quad] = _mm512_or_si512(second[quad], _mm512_and_si512(_mm512_slli_epi16(more, 2), high));
        }
    }
    WIDEN(transpose)(out, 32, first);
    WIDEN(transpose)(out + 16, 32, second);
}
#endif

/* The codes of each block of a tile, one block after the other. */
INLINE void WIDEN(order_blocks)(uint8_t *out, const uint8_t *codes, int64_t blocks, int bits)
{
#if WIDTH == 64
    if (blocks == 16) {
        WIDEN(order_tile)(out, codes, bits);
        return;
    }
#endif
    int64_t apart = 4 * blocks;
    for (int64_t block = 0; block < blocks; block++) {
        const uint8_t *at = codes + 4 * block;
        uint8_t both[16], high[16], *to = out + 32 * block;
        for (int quad = 0; quad < 8 && bits == 8; quad++)
            memcpy(to + 4 * quad, at + quad * apart, 4);
        if (bits == 8)
            continue;
        for (int quad = 0; quad < 4; quad++)
            memcpy(both + 4 * quad, at + quad * apart, 4);
        Bytes nibbles = WIDEN(load_bytes)(both), first = nibbles & 15, second = nibbles >> 4;
        if (bits == 6) {
            for (int quad = 0; quad < 4; quad++)
                memcpy(high + 4 * quad, at + (4 + quad / 2) * apart, 4);
            const Bytes shifts = {0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4};
            Bytes more = WIDEN(load_bytes)(high) >> shifts;
            first |= more << 4 & 48;
            second |= more << 2 & 48;
        }
        memcpy(to, &first, sizeof first);
        memcpy(to + 16, &second, sizeof second);
    }
}

INLINE void WIDEN(row)(
    void *out, int halves, int64_t start, const uint8_t *row, const Layout *layout, int64_t columns, int bits)
{
    int64_t blocks = columns / 32, groups = 32 / layout->size, zero = layout->zero;
    uint8_t codes[512];
    float scales[32], minimums[32] = {0};
    for (int64_t tile = 0; tile < blocks; tile += 16) {
        int64_t count = blocks - tile < 16 ? blocks - tile : 16, super = tile / 8 * 2;
        WIDEN(order_blocks)(codes, row + tile * 4 * bits, count, bits);
        for (int64_t group = 0; group < groups; group++) {
            int64_t place = (tile * groups + group * count) * layout->bytes;
            WIDEN(load_record)
            (scales + 16 * group, minimums + 16 * group, row, row, layout, place, super, count, 3);
        }
        for (int64_t block = 0; block < count; block++)
            for (int64_t half = 0; half < 2; half++) {
                int64_t group = block + 16 * half * (groups - 1);
                Floats values = WIDEN(to_floats)(WIDEN(load_bytes)(codes + 32 * block + 16 * half)) - (float)zero;
                WIDEN(put)
                (out, halves, start + 32 * (tile + block) + 16 * half, values * scales[group] + minimums[group]);
            }
    }
}

static void WIDEN(widen_rows)(
    void *out, int halves, int64_t apart, const uint8_t *rows, const Layout *layout, int64_t columns, int64_t first,
    int64_t end)
{
    for (int64_t row = first; row < end; row++) {
        const uint8_t *at = rows + row * layout->row_stride;
        int64_t start = (row - first) * apart;
#define CALL(BITS) WIDEN(row)(out, halves, start, at, layout, columns, BITS)
        BY_BITS(CALL);
#undef CALL
    }
}

/* ---- Rows whose groups lie across them. ---- */

#if WIDTH == 64
/* As ``order_outputs``, for a whole tile. */
INLINE void WIDEN(order_all_outputs)(uint8_t *out, const uint8_t *tile, int bits)
{
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(48);
    const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i both = _mm512_permutexvar_epi32(words, _mm512_loadu_si512(tile)), first = both, second;
    if (bits == 8) {
        second = _mm512_permutexvar_epi32(words, _mm512_loadu_si512(tile + 64));
    } else {
        first = _mm512_and_si512(both, low);
        second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
    if (bits == 6) {
        const __m512i twice = _mm512_setr_epi32(0, 4, 0, 4, 1, 5, 1, 5, 2, 6, 2, 6, 3, 7, 3, 7);
        const __m512i shifts = _mm512_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4);
        __m512i more = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(tile + 64)));
        more = _mm512_srlv_epi32(_mm512_permutexvar_epi32(twice, more), shifts);
        first = _mm512_or_si512(first, _mm512_and_si512(_mm512_slli_epi16(more, 4), high));
        second = _mm512_or_si512(second, _mm512_and_si512(_mm512_slli_epi16(more, 2), high));
    }
    _mm512_storeu_si512(out, first);
    _mm512_storeu_si512(out + 64, second);
}
#endif

/* The codes of one tile of ``wide`` lanes, in the order of its outputs. */
INLINE void WIDEN(order_outputs)(uint8_t *out, const uint8_t *tile, int64_t wide, int bits)
{
#if WIDTH == 64
    if (wide == 16) {
        WIDEN(order_all_outputs)(out, tile, bits);
        return;
    }
#endif
    for (int v = 0; v < 4; v++) {
        uint8_t both[16] = {0}, high[16] = {0};
        for (int64_t i = 0; i < wide / 4; i++)
            memcpy(both + 4 * i, tile + 16 * i + 4 * v, 4);
        Bytes nibbles = WIDEN(load_bytes)(both), first = nibbles & 15, second = nibbles >> 4;
        if (bits == 8) {
            for (int64_t i = 0; i < wide / 4; i++)
                memcpy(high + 4 * i, tile + 4 * wide + 16 * i + 4 * v, 4);
            first = nibbles;
            second = WIDEN(load_bytes)(high);
        }
        if (bits == 6) {
            int64_t held = wide / 8;
            for (int64_t i = 0; i < wide / 4; i++)
                memcpy(high + 4 * i, tile + 4 * wide + i % held * 16 + 4 * v, 4);
            const Bytes of_eight = {0, 0, 0, 0, 4, 4, 4, 4}, of_sixteen = {0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4};
            Bytes more = WIDEN(load_bytes)(high) >> (wide == 16 ? of_sixteen : of_eight);
            first |= more << 4 & 48;
            second |= more << 2 & 48;
        }
        memcpy(out + wide * v, &first, (size_t)wide);
        memcpy(out + wide * (v + 4), &second, (size_t)wide);
    }
}

INLINE void WIDEN(outputs)(
    void *out, int halves, int64_t start, const uint8_t *codes, const float *scales, const float *minimums,
    int64_t columns, int64_t zero, int bits)
{
    uint8_t ordered[128];
    for (int64_t output = 0; output < columns; output += 128) {
        int64_t wide = columns - output < 128 ? 8 : 16;
        WIDEN(order_outputs)(ordered, codes + output * bits / 8, wide, bits);
        for (int64_t at = 0; at < 8 * wide; at += 16) {
            Floats values = WIDEN(to_floats)(WIDEN(load_bytes)(ordered + at)) - (float)zero;
            Floats scale = WIDEN(load_floats)(scales + output + at), minimum = WIDEN(load_floats)(minimums + output + at);
            WIDEN(put)(out, halves, start + output + at, values * scale + minimum);
        }
    }
}

/* Returns -1 if there is no memory. Rows of one group mostly follow each other, and share their plain scales. */
static int WIDEN(widen_columns)(
    void *out, int halves, int64_t apart, const uint8_t *codes, const uint8_t *records, const uint8_t *supers,
    const Layout *layout, const int32_t *neurons, int64_t columns, int64_t first, int64_t end)
{
    int64_t held = -1;
    float *scales = calloc((size_t)columns * 2, sizeof *scales), *minimums = scales + columns;
    for (int64_t row = first; scales && row < end; row++) {
        int64_t neuron = neurons ? neurons[row] : row, start = (row - first) * apart, group = neuron / layout->size;
        const uint8_t *at = codes + row * layout->row_stride, *record = records + group * layout->record_stride;
        const uint8_t *super = supers ? supers + neuron / 256 * layout->super_stride : record;
        if (group != held) {
            held = group;
            WIDEN(load_record)(scales, minimums, record, super, layout, 0, 0, columns, 0);
        }
#define CALL(BITS) WIDEN(outputs)(out, halves, start, at, scales, minimums, columns, layout->zero, BITS)
        BY_BITS(CALL);
#undef CALL
    }
    int outcome = scales ? 0 : -1;
    free(scales);
    return outcome;
}

#undef BY_BITS
#undef Floats
#undef Words
#undef Bytes
