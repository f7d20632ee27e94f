/**
 * @file saaug_helium.h
 * What the kernels for Helium (the vector extension of Armv8.1-M, integer part) share.
 */
#ifndef SAAUG_HELIUM_H
#define SAAUG_HELIUM_H

#include <arm_mve.h>
#include <string.h>

#include "../saaug_internal.h"

/* Keeps a hot loop out of its caller, whose many variables would take its registers. */
#define SAAUG_APART __attribute__((noinline))
#define SAAUG_INLINE static inline __attribute__((always_inline))

/** The int8 weight of each nibble code. */
extern const int8_t saaug_nibble_weights[16];

/** What all outputs of a layer share. To be held in local variables: the compiler then keeps it in registers. */
typedef struct {
    int32x4_t act_min, act_max;
    int32_t zero_point;
    int power_of_two;
} saaug_finish;

SAAUG_INLINE saaug_finish saaug_finish_of(const saaug_options *options)
{
    saaug_finish finish;
    finish.act_min = vdupq_n_s32(options->act_min);
    finish.act_max = vdupq_n_s32(options->act_max);
    finish.zero_point = options->output_zero_point;
    finish.power_of_two = options->requant == SAAUG_REQUANT_POWER_OF_TWO;
    return finish;
}

/** Results of four accumulators; `down` is minus the shift. */
SAAUG_INLINE int32x4_t saaug_finish_four(int32x4_t acc, int32x4_t multiplier, int32x4_t down, saaug_finish finish)
{
    int32x4_t value = finish.power_of_two ? vmulq_s32(acc, multiplier) : vqrdmulhq_s32(acc, multiplier);
    value = vrshlq_s32(vaddq_s32(value, vshrq_n_s32(value, 31)), down);
    return vminq_s32(vmaxq_s32(vaddq_n_s32(value, finish.zero_point), finish.act_min), finish.act_max);
}

/** Four sums to one vector. */
SAAUG_INLINE int32x4_t saaug_gather_sums(int32_t a, int32_t b, int32_t c, int32_t d)
{
    int32x4_t sums;
    __asm__("vmov %q0[2], %q0[0], %1, %2\n\tvmov %q0[3], %q0[1], %3, %4"
            : "=&w"(sums)
            : "r"(a), "r"(c), "r"(b), "r"(d));
    return sums;
}

/** Codes of 16 nibbles, of which each half of `packed` holds two in its low byte. */
SAAUG_INLINE uint8x16_t saaug_spread_codes(uint16x8_t packed)
{
    const uint16x8_t spread = vsliq_n_u16(packed, vshrq_n_u16(packed, 4), 8);
    return vandq_u8(vreinterpretq_u8_u16(spread), vdupq_n_u8(15));
}

/** Codes of 16 nibbles from 8 bytes; those of bytes from `left` on are zero. */
SAAUG_INLINE uint8x16_t saaug_sixteen_codes(const uint8_t *bytes, int32_t left)
{
    return saaug_spread_codes(vldrbq_z_u16(bytes, vctp16q((uint32_t)left)));
}

#endif /* SAAUG_HELIUM_H */
