/**
 * @file saaug_bucket.h
 * Shift layers without multiplication on cores without packed arithmetic: two pixels in every 32-bit addition.
 *
 * A word holds two pixels, low + high * 2^16, as one number: sums of words are sums of both pixels, and exact as long
 * as each pixel's sum stays in int16. SAAUG_WORDS words side by side, one for each pair of pixels, are a column; the
 * columns of all taps are a block. An output channel is a program over the block, made once from its codes and run for
 * every block of pixels: it adds and subtracts columns, largest exponents first, and doubles the sums from one exponent
 * to the next (Horner). Before 128 * sum |weight| can leave int16 it moves the sums out to int32 accumulators
 * ("spill"); for a layer of some dozen taps that happens two or three times.
 *
 * On Cortex-M and RV32I the program is threaded code for an interpreter in assembly, elsewhere a list of runs for one
 * in C.
 */
#ifndef SAAUG_BUCKET_H
#define SAAUG_BUCKET_H

#include "../saaug_internal.h"
#include "saaug_words.h"

/* Most taps of a program: the sum of one exponent stays in int16 (252 * 128 <= 32767), and the next begins on a byte.
 * */
#define SAAUG_PROGRAM_TAPS 252

/** What requantizes an output channel, made once for many blocks; see saaug_bucket_store.c. Of one size on all cores. */
typedef struct {
    int32_t bias, multiplier;
    int32_t nudge; /* half of 2^shift and the zero point, where they may be added together */
    uint32_t step; /* of the division that takes the place of a multiplication */
    uint8_t shift, path;
    int8_t zero_point;
} saaug_bucket_scale;

void saaug_bucket_prepare(const int32_t *params, const saaug_options *options, saaug_bucket_scale *channel);

/** Length of the longest program of `taps` taps, in uint16; even. What is in it is in saaug_bucket_program.h. */
int32_t saaug_bucket_program_length(int32_t taps, int32_t layout);

/**
 * Makes the program of taps [first, first + taps) of a row of codes.
 * @param columns     byte offset of each tap's column in the block; or NULL: tap first + t is column t.
 * @param accumulate  the program adds to the accumulators; otherwise it sets them.
 * @pre   first is a multiple of 4, taps <= SAAUG_PROGRAM_TAPS, the offsets are below 2^16.
 */
void saaug_bucket_program(const uint8_t *row, int32_t layout, int32_t first, int32_t taps, const uint16_t *columns,
                          int accumulate, uint16_t *program);

/** Runs a program: acc[2 * k] and acc[2 * k + 1] get the sums of the low and the high pixel of word k of the columns.
 * */
void saaug_bucket_run(const uint16_t *program, const uint32_t *block, int32_t *acc);

/**
 * Requantizes the accumulators of one channel and stores them `stride` bytes apart.
 * @param lows, highs  how many of the low pixels acc[0], acc[2], ... and of the high pixels acc[1], acc[3], ...;
 *                     lows >= highs.
 */
void saaug_bucket_store(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *channel,
                        const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride);

/** Two pixels in a word. */
static inline uint32_t saaug_pair(int32_t low, int32_t high) { return (uint32_t)low + ((uint32_t)high << 16); }

/* The three getters of a size that depends on the words of a column. */
#define SAAUG_PORTABLE_SIZES(op, size)                                                                                 \
    int64_t op##_portable4_size(const saaug_options *options, const saaug_shape *shape)                                \
    {                                                                                                                  \
        return size(options, shape, 4);                                                                                \
    }                                                                                                                  \
    int64_t op##_portable8_size(const saaug_options *options, const saaug_shape *shape)                                \
    {                                                                                                                  \
        return size(options, shape, 8);                                                                                \
    }                                                                                                                  \
    int64_t op##_portable_size(const saaug_options *options, const saaug_shape *shape)                                 \
    {                                                                                                                  \
        return size(options, shape, SAAUG_WORDS);                                                                      \
    }

#endif /* SAAUG_BUCKET_H */
