/**
 * @file saaug_helium_depthwise.h
 * The frame of both depthwise convolutions for Helium. Channels are the lanes of vectors: eight at a time, as int16. For every
 * output position there is a list of pointers, one for each tap, to the pixel under it, or to a pixel of zero points.
 */
#ifndef SAAUG_HELIUM_DEPTHWISE_H
#define SAAUG_HELIUM_DEPTHWISE_H

#include "saaug_helium.h"

/* Channels whose weights and constants are in scratch together, a multiple of eight. */
#define SAAUG_MOST_CHANNELS 128

/* Eight channels: even lanes, odd lanes, as vectors are widened. */
typedef struct {
    int32_t bias[2][4], multiplier[2][4], down[2][4];
} saaug_eight;

/* Order in scratch: constants, weights, pointers, zero pixel. */
typedef struct {
    int32_t taps;
    int32_t block; /* channels, a multiple of eight; 0: the reference does it */
    int64_t eights_bytes, weights_bytes, pointers_bytes, zero_bytes;
} saaug_depthwise_layout;

static inline saaug_depthwise_layout saaug_lay_out_depthwise(const saaug_options *options, const saaug_shape *shape,
                                                             int32_t weight_bytes)
{
    saaug_depthwise_layout result;
    const int32_t eights = (shape->in_c + 7) / 8;
    const int32_t blocks = (eights + SAAUG_MOST_CHANNELS / 8 - 1) / (SAAUG_MOST_CHANNELS / 8);
    memset(&result, 0, sizeof result);
    result.taps = options->kernel_h * options->kernel_w;
    if (options->depth_multiplier == 1) {
        /* Blocks of equal size: the last one should not be a small one. */
        result.block = (eights + blocks - 1) / blocks * 8;
        result.eights_bytes = result.block / 8 * (int64_t)sizeof(saaug_eight);
        result.weights_bytes = (int64_t)result.taps * result.block * weight_bytes;
        result.pointers_bytes = result.taps * (int64_t)sizeof(const int8_t *);
        result.zero_bytes = result.block;
    }
    return result;
}

static inline int64_t saaug_depthwise_layout_bytes(const saaug_depthwise_layout *layout)
{
    return layout->eights_bytes + layout->weights_bytes + layout->pointers_bytes + layout->zero_bytes;
}

/* Constants of `count` channels; lanes beyond are harmless and never stored. */
static void saaug_prepare_eights(const int32_t *params, int32_t count, saaug_eight *eights)
{
    int32_t c;
    for (c = 0; c < (count + 7) / 8 * 8; ++c) {
        saaug_eight *const eight = eights + c / 8;
        const int32_t *const from = params + 3 * (c < count ? c : count - 1);
        eight->bias[c & 1][c / 2 % 4] = from[0];
        eight->multiplier[c & 1][c / 2 % 4] = from[1];
        eight->down[c & 1][c / 2 % 4] = -from[2];
    }
}

/* Pointers to the pixels under all taps of output position (y, x), channel `first` on. */
SAAUG_APART static void saaug_point(const saaug_options *options, const saaug_shape *shape, const int8_t *image, int32_t y,
                                    int32_t x, const int8_t *zero, const int8_t **pointers)
{
    const int32_t top = y * options->stride_h - options->pad_top;
    const int32_t left = x * options->stride_w - options->pad_left;
    const int32_t across = options->dilation_w * shape->in_c;
    int32_t i, j;
    for (i = 0; i < options->kernel_h; ++i) {
        const int32_t row = top + i * options->dilation_h;
        if (row < 0 || row >= shape->in_h) {
            for (j = 0; j < options->kernel_w; ++j) {
                *pointers++ = zero;
            }
        } else if (left >= 0 && left + (options->kernel_w - 1) * options->dilation_w < shape->in_w) {
            const int8_t *pixel = image + ((size_t)row * (size_t)shape->in_w + (size_t)left) * (size_t)shape->in_c;
            for (j = options->kernel_w; j > 1; --j, pixel += across) {
                *pointers++ = pixel;
            }
            *pointers++ = pixel;
        } else {
            for (j = 0; j < options->kernel_w; ++j) {
                const int32_t column = left + j * options->dilation_w;
                *pointers++ = column < 0 || column >= shape->in_w
                                  ? zero
                                  : image + ((size_t)row * (size_t)shape->in_w + (size_t)column) * (size_t)shape->in_c;
            }
        }
    }
}

/* Stores up to eight results from the accumulators of even and odd channels, bias included. */
SAAUG_INLINE void saaug_store_eight(int32x4_t even, int32x4_t odd, const saaug_eight *eight, saaug_finish finish,
                                    int8_t *output, int32_t left)
{
    int16x8_t both = vdupq_n_s16(0);
    even = saaug_finish_four(even, vldrwq_s32(eight->multiplier[0]), vldrwq_s32(eight->down[0]), finish);
    odd = saaug_finish_four(odd, vldrwq_s32(eight->multiplier[1]), vldrwq_s32(eight->down[1]), finish);
    both = vmovntq_s32(vmovnbq_s32(both, even), odd);
    if (left >= 8) {
        vstrbq_s16(output, both);
    } else {
        vstrbq_p_s16(output, both, vctp16q((uint32_t)left));
    }
}

#endif /* SAAUG_HELIUM_DEPTHWISE_H */
