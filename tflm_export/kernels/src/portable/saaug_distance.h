/**
 * @file saaug_distance.h
 * Depthwise add layers on cores without packed absolute differences: two pixels in every operation.
 *
 * |x - w| = (w - x) + 2 * max(x - w, 0). The first part sums to a constant of the channel less a sum of the pixels.
 * For the second, t = x - w + 256 is in [1, 511] for each pixel of a word: bit 8 says whether x >= w, and the bits
 * below it are x - w then.
 */
#ifndef SAAUG_DISTANCE_H
#define SAAUG_DISTANCE_H

#include "saaug_bucket.h"

/* Sums of max(x - w, 0) and of x stay in 16 bits: 252 * 255 < 2^16, 252 * 128 < 2^15. */
#define SAAUG_DISTANCE_TAPS 252

/* Words of a column that are summed in one pass over the weights: as many as leave the rest of the registers free. */
#if SAAUG_THUMB == 1
#define SAAUG_DISTANCE_WORDS 2
#else
#define SAAUG_DISTANCE_WORDS 4
#endif

/** 256 - w of a stored weight w + 128 in both halves: what makes t of a word of pixels. */
static inline uint32_t saaug_distance_bias(uint32_t stored)
{
    const uint32_t bias = 256u + 128u - stored;
    return bias | bias << 16;
}

/** Bit 0 of both halves. Compilers see a constant and then cannot shift the other operand in the same instruction. */
static inline uint32_t saaug_distance_ones(void)
{
    uint32_t ones = 0x00010001u;
#if defined(__GNUC__)
    __asm__("" : "+r"(ones));
#endif
    return ones;
}

/** max(x - w, 0) of both pixels. */
static inline uint32_t saaug_distance_part(uint32_t word, uint32_t bias, uint32_t ones)
{
    const uint32_t t = word + bias;
    const uint32_t above = ones & (t >> 8);
    return t & ((above << 8) - above);
}

/** Adds 2 * sum max(x - w, 0) + sum w - sum x, scaled as the contract has it, to the low and the high accumulator. */
static inline void saaug_distance_spill(uint32_t parts, int32_t weights, uint32_t pixels, int32_t *acc)
{
    const int32_t low = (int16_t)(uint16_t)pixels;
    const int32_t high = (int32_t)(pixels - (uint32_t)low) >> 16;
    acc[0] += ((int32_t)(2 * (parts & 0xFFFFu)) + weights - low) * (1 << SAAUG_ADDER_SCALE_LOG2);
    acc[1] += ((int32_t)(2 * (parts >> 16)) + weights - high) * (1 << SAAUG_ADDER_SCALE_LOG2);
}

#endif /* SAAUG_DISTANCE_H */
