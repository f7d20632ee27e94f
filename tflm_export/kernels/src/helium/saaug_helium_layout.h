/**
 * @file saaug_helium_layout.h
 * What the kernels for Helium hold in scratch. No intrinsics: an exporter plans memory with it on any host.
 */
#ifndef SAAUG_HELIUM_LAYOUT_H
#define SAAUG_HELIUM_LAYOUT_H

#include <string.h>

#include "../saaug_gather.h"

/* ---- Convolutions ---- */

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

/* ---- Depthwise convolutions ---- */

/* Channels whose weights and constants are in scratch together, a multiple of sixteen. */
#define SAAUG_MOST_CHANNELS 128

/* Constants of sixteen channels, as four vectors. */
typedef struct {
    int32_t bias[4][4], multiplier[4][4], down[4][4];
} saaug_sixteen;

/* Order in scratch: constants, weights, pointers, zero pixel. */
typedef struct {
    int32_t taps;   /* a multiple of `multiple`; those beyond the kernel have zero weights and point at the zero pixel */
    int32_t block;  /* channels, a multiple of sixteen; 0: the reference does it */
    int64_t constants_bytes, weights_bytes, pointers_bytes, zero_bytes;
} saaug_depthwise_layout;

static inline saaug_depthwise_layout saaug_lay_out_depthwise(const saaug_options *options, const saaug_shape *shape,
                                                             int32_t weight_bytes, int32_t multiple)
{
    saaug_depthwise_layout result;
    const int32_t groups = (shape->in_c + 15) / 16;
    const int32_t blocks = (groups + SAAUG_MOST_CHANNELS / 16 - 1) / (SAAUG_MOST_CHANNELS / 16);
    memset(&result, 0, sizeof result);
    result.taps = (options->kernel_h * options->kernel_w + multiple - 1) / multiple * multiple;
    if (options->depth_multiplier == 1) {
        /* Blocks of equal size: the last one should not be a small one. */
        result.block = (groups + blocks - 1) / blocks * 16;
        result.constants_bytes = result.block / 16 * (int64_t)sizeof(saaug_sixteen);
        result.weights_bytes = (int64_t)result.taps * result.block * weight_bytes;
        result.pointers_bytes = (int64_t)result.taps * 4;
        result.zero_bytes = result.block;
    }
    return result;
}

static inline int64_t saaug_depthwise_layout_bytes(const saaug_depthwise_layout *layout)
{
    return layout->constants_bytes + layout->weights_bytes + layout->pointers_bytes + layout->zero_bytes;
}

#endif /* SAAUG_HELIUM_LAYOUT_H */
