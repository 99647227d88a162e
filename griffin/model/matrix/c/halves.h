/* Float16 (as bits) to float and back, for processors without an instruction for it. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float from_float16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    /* By a power of two all exponents are right, those of subnormal numbers too; infinity stays to be mended. */
    value *= 0x1p112f;
    memcpy(&bits, &value, sizeof bits);
    bits |= sign | ((half & 0x7fff) >= 0x7c00 ? 0x7f800000u : 0);
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounded to the nearest value; ties go to the even one. Numbers that are too large become infinite. */
static inline uint16_t to_float16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float size = fabsf(value);
    if (value != value)
        return 0x7e00;
    if (size >= 65520)
        return sign | 0x7c00;
    if (size < 0x1p-14f)
        /* In steps of the smallest number, which adding half of 2^24 of them rounds to. */
        return sign | (uint16_t)(size * 0x1p24f + 0x1.8p23f - 0x1.8p23f);
    memcpy(&bits, &size, sizeof bits);
    return sign | (uint16_t)((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}
