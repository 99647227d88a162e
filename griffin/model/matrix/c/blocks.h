/*
 * One block of a GGUF file, as it is in the file: codes and scales, for all types that are read.
 *
 * The layouts are those of ggml-common.h in ggml. A block has 32 numbers, or 256 if there are two levels of scales.
 */

#pragma once

#include <stdint.h>
#include <string.h>

/* GGUF's numbers for its types. */
enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14 };

/*
 * A number is scale (code - zero) + minimum. With two levels, scale and minimum are int8 times a super.
 * scales, minimums: of groups of neighbours; float16 bits, or int8 in the low byte.
 */
typedef struct {
    uint8_t codes[256];
    uint16_t scales[16], minimums[16], super, super_minimum;
} Block;

static inline uint16_t two_bytes(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

/* 16 bytes hold the first 16 codes in their low halves, and the next 16 codes in their high halves. */
static inline void read_nibbles(uint8_t *codes, const uint8_t *at)
{
    for (int i = 0; i < 16; i++) {
        codes[i] = at[i] & 15;
        codes[i + 16] = at[i] >> 4;
    }
}

static inline void read_fifth_bits(uint8_t *codes, const uint8_t *at)
{
    for (int i = 0; i < 32; i++)
        codes[i] |= (uint8_t)((at[i / 8] >> i % 8 & 1) << 4);
}

/* 8 scales and 8 minimums of 6 bits each, in 12 bytes. */
static inline void read_six_bits(Block *block, const uint8_t *at)
{
    for (int i = 0; i < 4; i++) {
        block->scales[i] = at[i] & 63;
        block->minimums[i] = at[i + 4] & 63;
        block->scales[i + 4] = (at[i + 8] & 15) | at[i] >> 6 << 4;
        block->minimums[i + 4] = at[i + 8] >> 4 | at[i + 4] >> 6 << 4;
    }
}

static inline void read_q2_k(Block *block, const uint8_t *at)
{
    for (int i = 0; i < 16; i++) {
        block->scales[i] = at[i] & 15;
        block->minimums[i] = at[i] >> 4;
    }
    for (int part = 0; part < 8; part++)
        for (int i = 0; i < 32; i++)
            block->codes[32 * part + i] = at[16 + part / 4 * 32 + i] >> part % 4 * 2 & 3;
    block->super = two_bytes(at + 80);
    block->super_minimum = two_bytes(at + 82);
}

/* In the file, 4 is subtracted from a code unless its third bit is set. Here codes have their zero at 4 instead. */
static inline void read_q3_k(Block *block, const uint8_t *at)
{
    const uint8_t *scales = at + 96;
    for (int part = 0; part < 8; part++)
        for (int i = 0; i < 32; i++) {
            uint8_t low = at[32 + part / 4 * 32 + i] >> part % 4 * 2 & 3;
            block->codes[32 * part + i] = (uint8_t)(low | (at[i] >> part & 1) << 2);
        }
    for (int i = 0; i < 16; i++) {
        int low = i < 8 ? scales[i] & 15 : scales[i - 8] >> 4, high = scales[8 + i % 4] >> i / 4 * 2 & 3;
        block->scales[i] = (uint8_t)((low | high << 4) - 32);
    }
    block->super = two_bytes(at + 108);
}

static inline void read_q4_k(Block *block, const uint8_t *at)
{
    read_six_bits(block, at + 4);
    for (int part = 0; part < 8; part++)
        for (int i = 0; i < 32; i++)
            block->codes[32 * part + i] = at[16 + part / 2 * 32 + i] >> part % 2 * 4 & 15;
    block->super = two_bytes(at);
    block->super_minimum = two_bytes(at + 2);
}

static inline void read_q5_k(Block *block, const uint8_t *at)
{
    read_six_bits(block, at + 4);
    for (int part = 0; part < 8; part++)
        for (int i = 0; i < 32; i++) {
            uint8_t low = at[48 + part / 2 * 32 + i] >> part % 2 * 4 & 15;
            block->codes[32 * part + i] = (uint8_t)(low | (at[16 + i] >> part & 1) << 4);
        }
    block->super = two_bytes(at);
    block->super_minimum = two_bytes(at + 2);
}

static inline void read_q6_k(Block *block, const uint8_t *at)
{
    for (int part = 0; part < 8; part++)
        for (int i = 0; i < 32; i++) {
            uint8_t low = at[part / 4 * 64 + part % 2 * 32 + i] >> part % 4 / 2 * 4 & 15;
            uint8_t high = at[128 + part / 4 * 32 + i] >> part % 4 * 2 & 3;
            block->codes[32 * part + i] = (uint8_t)(low | high << 4);
        }
    for (int i = 0; i < 16; i++)
        block->scales[i] = at[192 + i];
    block->super = two_bytes(at + 208);
}

static inline void read_q8_0(Block *block, const uint8_t *at)
{
    for (int i = 0; i < 32; i++)
        block->codes[i] = at[2 + i] ^ 128;
    block->scales[0] = two_bytes(at);
}

static inline void read_block(Block *block, const uint8_t *at, int type)
{
    switch (type) {
    case Q4_0:
        block->scales[0] = two_bytes(at);
        read_nibbles(block->codes, at + 2);
        break;
    case Q4_1:
        block->scales[0] = two_bytes(at);
        block->minimums[0] = two_bytes(at + 2);
        read_nibbles(block->codes, at + 4);
        break;
    case Q5_0:
        block->scales[0] = two_bytes(at);
        read_nibbles(block->codes, at + 6);
        read_fifth_bits(block->codes, at + 2);
        break;
    case Q5_1:
        block->scales[0] = two_bytes(at);
        block->minimums[0] = two_bytes(at + 2);
        read_nibbles(block->codes, at + 8);
        read_fifth_bits(block->codes, at + 4);
        break;
    case Q8_0:
        read_q8_0(block, at);
        break;
    case Q2_K:
        read_q2_k(block, at);
        break;
    case Q3_K:
        read_q3_k(block, at);
        break;
    case Q4_K:
        read_q4_k(block, at);
        break;
    case Q5_K:
        read_q5_k(block, at);
        break;
    case Q6_K:
        read_q6_k(block, at);
        break;
    }
    /* In the file, minimums are subtracted. */
    if (type == Q2_K || type == Q4_K || type == Q5_K)
        block->super_minimum ^= 0x8000;
}
