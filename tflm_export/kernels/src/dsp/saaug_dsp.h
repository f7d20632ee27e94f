/**
 * @file saaug_dsp.h
 * The instructions of Arm's DSP extension that the kernels use. Elsewhere the same operations in C, so that a host test runs
 * the very source that a microcontroller runs.
 */
#ifndef SAAUG_DSP_H
#define SAAUG_DSP_H

#include <string.h>

#include "../saaug_internal.h"

#if defined(__ARM_FEATURE_SIMD32)
#include <arm_acle.h>

/** acc + low(a) * low(b) + high(a) * high(b), halves signed. */
static inline int32_t saaug_smlad(uint32_t a, uint32_t b, int32_t acc)
{
    return __smlad((int16x2_t)a, (int16x2_t)b, acc);
}

/** acc + the sum of the absolute differences of four unsigned bytes. */
static inline uint32_t saaug_usada8(uint32_t a, uint32_t b, uint32_t acc) { return (uint32_t)__usada8(a, b, acc); }

static inline int32_t saaug_saturate8(int32_t value)
{
    int32_t result;
    __asm__("ssat %0, #8, %1" : "=r"(result) : "r"(value)); /* arm_acle.h differs in the type of its __ssat */
    return result;
}

/** (a * b + 2^31) >> 32 */
static inline int32_t saaug_smmulr(int32_t a, int32_t b)
{
    int32_t result;
    __asm__("smmulr %0, %1, %2" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

/** Bytes 0 and 2, sign extended to halves; bytes 1 and 3. */
static inline uint32_t saaug_even_bytes(uint32_t bytes) { return (uint32_t)__sxtb16((int8x4_t)bytes); }

static inline uint32_t saaug_odd_bytes(uint32_t bytes)
{
    uint32_t result;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(result) : "r"(bytes));
    return result;
}

/** low half of a, low half of b above it; high half of a, high half of b above it. */
static inline uint32_t saaug_low_halves(uint32_t a, uint32_t b)
{
    uint32_t result;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

static inline uint32_t saaug_high_halves(uint32_t a, uint32_t b)
{
    uint32_t result;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(result) : "r"(b), "r"(a));
    return result;
}

/* Two words from `pointer`, which moves on; one instruction. */
#define SAAUG_LOAD_PAIR(first, second, pointer)                                                                        \
    __asm__("ldrd %0, %1, [%2], #8"                                                                                    \
            : "=&r"(first), "=&r"(second), "+r"(pointer)                                                               \
            : "m"((pointer)[0]), "m"((pointer)[1]))


#else

static inline int32_t saaug_half(uint32_t word, int high) { return (int16_t)(uint16_t)(high ? word >> 16 : word); }

static inline int32_t saaug_smlad(uint32_t a, uint32_t b, int32_t acc)
{
    return acc + saaug_half(a, 0) * saaug_half(b, 0) + saaug_half(a, 1) * saaug_half(b, 1);
}

static inline uint32_t saaug_usada8(uint32_t a, uint32_t b, uint32_t acc)
{
    int i;
    for (i = 0; i < 32; i += 8) {
        const uint32_t x = (a >> i) & 255u, y = (b >> i) & 255u;
        acc += x > y ? x - y : y - x;
    }
    return acc;
}

static inline int32_t saaug_saturate8(int32_t value) { return saaug_clamp(value, -128, 127); }

static inline int32_t saaug_smmulr(int32_t a, int32_t b)
{
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 31)) >> 32);
}

static inline uint32_t saaug_low_halves(uint32_t a, uint32_t b) { return (a & 0xFFFFu) | b << 16; }

static inline uint32_t saaug_high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xFFFF0000u); }

static inline uint32_t saaug_even_bytes(uint32_t bytes)
{
    return saaug_low_halves((uint32_t)(int8_t)(uint8_t)bytes, (uint32_t)(int8_t)(uint8_t)(bytes >> 16));
}

static inline uint32_t saaug_odd_bytes(uint32_t bytes) { return saaug_even_bytes(bytes >> 8); }

#define SAAUG_LOAD_PAIR(first, second, pointer) ((first) = (pointer)[0], (second) = (pointer)[1], (pointer) += 2)
#endif

/** Four bytes at any address, in memory order from the lowest bits. */
static inline uint32_t saaug_load_word(const void *from)
{
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

/** The first `count` < 4 bytes, zeros above. */
static inline uint32_t saaug_load_part(const void *from, int32_t count)
{
    uint32_t word = 0;
    memcpy(&word, from, (size_t)count);
    return word;
}

/* Both weights of a byte of nibbles, doubled, as int16, low nibble in the low half. */
extern const uint32_t saaug_doubled_pairs[256];

/** The largest magnitude code of the weights, in [0, 16]: the exponent plus 1. */
int32_t saaug_largest_code(const saaug_options *options, const saaug_shape *shape, const uint8_t *weights);

/* int16 holds the weights up to code 15, and their doubles up to code 14. */
#define SAAUG_INT16_CODE 15

/* Keeps a hot loop out of its caller, whose many variables would take its registers. */
#define SAAUG_APART __attribute__((noinline))

/**
 * What finishes an output channel. The bias is doubled if the accumulators are. `rounding` is 2^(shift-1), and output zero
 * point * 2^shift if the layer is `simple`.
 */
typedef struct {
    int32_t bias, multiplier, rounding, shift;
} saaug_channel;

/* No shift above: then |v| + rounding < 2^31 also with the zero point in it. */
#define SAAUG_MOST_FOLDED_SHIFT 22

/**
 * Fills `padded` channels; those beyond `count` repeat the last one.
 * @param params   of the first of these channels.
 * @param doubled  1 if accumulators will be twice their value, else 0.
 * @return 1 if saaug_finish_doubled() gives these channels' results, 0 if saaug_finish_any() must be used.
 */
int saaug_prepare_channels(const saaug_options *options, const int32_t *params, int32_t count, int32_t padded,
                           int doubled, saaug_channel *channels);

/** saaug_requantize() with the instructions at hand. */
int8_t saaug_finish_any(int32_t acc, const int32_t *params, const saaug_options *options);

/**
 * Result of an accumulator, given twice its value, for a simple layer: Q31, full activation range, shifts up to 22. Twice,
 * because SMMULR divides by 2^32 where the contract says 2^31.
 */
static inline int8_t saaug_finish_doubled(int32_t twice, int32_t multiplier, int32_t rounding, int32_t shift)
{
    const int32_t value = saaug_smmulr(twice, multiplier);
    return (int8_t)saaug_saturate8((value + (value >> 31) + rounding) >> shift);
}

#endif /* SAAUG_DSP_H */
