/**
 * @file saaug_helium_conv.h
 * The frame of both convolutions for Helium: rows of a block of output channels are prepared in scratch, two channels side by
 * side, and stay while all output positions pass by, two at a time. What a row's preparation and the inner loop are is left
 * to the including file, which defines
 *   UNIT                taps of one vector, and of one step of the inner loop
 *   TAP_BYTES           bytes of a prepared tap
 *   prepare_row()       one row of weights to vectors that are 2 * UNIT taps apart
 *   two_by_two()        all steps: the sums of two positions times two channels, as one vector
 */
#ifndef SAAUG_HELIUM_CONV_H
#define SAAUG_HELIUM_CONV_H

#include "../saaug_gather.h"
#include "saaug_helium.h"

/* Prepared rows of one block, in bytes; a block has two channels at least. */
#define SAAUG_BLOCK_BYTES 4096

/* Two channels, at two positions each: what finishes a vector of sums. */
typedef struct {
    int32_t bias[4], multiplier[4], down[4];
    uint32_t offsets[4]; /* of the results in the output */
} saaug_four;

/* Order in scratch: channels, pixels, weights, staging. */
typedef struct {
    int32_t units;     /* steps of the inner loop */
    int32_t positions; /* of the output, over all batches */
    int32_t block;     /* output channels per block, even */
    int64_t channels_bytes, pixels_bytes, weights_bytes;
    int64_t staging_bytes; /* the copy of one window */
} saaug_conv_layout;

static inline saaug_conv_layout saaug_lay_out_conv(const saaug_options *options, const saaug_shape *shape, int32_t unit,
                                                   int32_t tap_bytes)
{
    saaug_conv_layout result;
    const int64_t taps = (int64_t)options->kernel_h * options->kernel_w * shape->in_c;
    const int32_t pairs = (shape->out_c + 1) / 2;
    int32_t most, blocks;
    result.units = (int32_t)((taps + unit - 1) / unit);
    result.positions = shape->batches * shape->out_h * shape->out_w;
    most = (int32_t)(SAAUG_BLOCK_BYTES / ((int64_t)result.units * unit * tap_bytes * 2));
    most = most < 1 ? 1 : most;
    /* Blocks of equal size: the last one should not be a small one. */
    blocks = (pairs + most - 1) / most;
    result.block = (pairs + blocks - 1) / blocks * 2;
    result.channels_bytes = result.block / 2 * (int64_t)sizeof(saaug_four);
    result.pixels_bytes = (int64_t)result.units * unit * 2;
    result.weights_bytes = (int64_t)result.units * unit * tap_bytes * result.block;
    result.staging_bytes = saaug_is_pointwise(options) ? 0 : taps;
    return result;
}

static inline int64_t saaug_conv_layout_bytes(const saaug_conv_layout *layout)
{
    return layout->channels_bytes + layout->pixels_bytes + layout->weights_bytes + layout->staging_bytes;
}

/* Constants of `count` channels in pairs; a missing second channel repeats the first, whose result it overwrites. */
static void saaug_prepare_fours(const int32_t *params, int32_t count, int32_t distance, saaug_four *fours)
{
    int32_t i, lane;
    for (i = 0; i < count; i += 2, ++fours) {
        for (lane = 0; lane < 4; ++lane) {
            const int32_t channel = (lane & 1) != 0 && i + 1 < count ? 1 : 0;
            const int32_t *const from = params + 3 * (i + channel);
            fours->bias[lane] = from[0];
            fours->multiplier[lane] = from[1];
            fours->down[lane] = -from[2];
            fours->offsets[lane] = (uint32_t)(channel + (lane >= 2 ? distance : 0));
        }
    }
}

/* One window to vectors that are two apart; zeros behind. */
SAAUG_APART static void saaug_place_pixel(const int8_t *from, int32_t taps, int32_t unit, int8_t *to)
{
    if (unit == 16) {
        for (; taps >= 16; taps -= 16, from += 16, to += 32) {
            vstrbq_s8(to, vldrbq_s8(from));
        }
        if (taps > 0) {
            vstrbq_s8(to, vldrbq_z_s8(from, vctp8q((uint32_t)taps)));
        }
    } else {
        for (; taps > 0; taps -= 8, from += 8, to += 16) {
            vstrbq_s16(to, vldrbq_z_s16(from, vctp16q((uint32_t)taps)));
        }
    }
}

#endif /* SAAUG_HELIUM_CONV_H */
