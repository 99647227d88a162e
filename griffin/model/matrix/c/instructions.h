/*
 * The instruction sets for which functions are compiled. The processor decides which version of a function runs.
 */

#pragma once

/* Each set includes the sets before it. */
enum { PLAIN, AVX2, AVX512, AVX512_VNNI, AVX512_BF16, INSTRUCTIONS };

/* The largest set that may be used: see griffin_restrict in grouped.c. */
extern int allowed_instructions;

static inline int instructions_of_processor(void)
{
#ifdef __x86_64__
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return PLAIN;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")
        || !__builtin_cpu_supports("avx512vl"))
        return AVX2;
    if (!__builtin_cpu_supports("avx512vnni"))
        return AVX512;
    return __builtin_cpu_supports("avx512bf16") ? AVX512_BF16 : AVX512_VNNI;
#else
    return PLAIN;
#endif
}

static inline int best_instructions(void)
{
    int best = instructions_of_processor();
    return best < allowed_instructions ? best : allowed_instructions;
}
