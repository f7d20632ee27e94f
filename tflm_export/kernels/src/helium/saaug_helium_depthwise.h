/**
 * @file saaug_helium_depthwise.h
 * The frame of both depthwise convolutions for Helium. Channels are the lanes of vectors, sixteen at a time. For every output
 * position there is a list of pointers, one for each tap, to the pixel under it, or to a pixel of zero points.
 *
 * Sixteen channels become four vectors of int32 by taking even and odd lanes twice: vector v has the channels
 * v / 2 + v % 2 * 2 + 4 * lane, and the same way back restores their order.
 */
#ifndef SAAUG_HELIUM_DEPTHWISE_H
#define SAAUG_HELIUM_DEPTHWISE_H

#include "saaug_helium.h"

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
        result.pointers_bytes = result.taps * (int64_t)sizeof(const int8_t *);
        result.zero_bytes = result.block;
    }
    return result;
}

static inline int64_t saaug_depthwise_layout_bytes(const saaug_depthwise_layout *layout)
{
    return layout->constants_bytes + layout->weights_bytes + layout->pointers_bytes + layout->zero_bytes;
}

/* Constants of `count` channels; lanes beyond are harmless and never stored. */
static void saaug_prepare_sixteens(const int32_t *params, int32_t count, saaug_sixteen *sixteens)
{
    int32_t c;
    for (c = 0; c < (count + 15) / 16 * 16; ++c) {
        saaug_sixteen *const to = sixteens + c / 16;
        const int32_t *const from = params + 3 * (c < count ? c : count - 1);
        const int32_t vector = c % 2 * 2 + c / 2 % 2, lane = c / 4 % 4;
        to->bias[vector][lane] = from[0];
        to->multiplier[vector][lane] = from[1];
        to->down[vector][lane] = -from[2];
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

/* Stores the first `left` of sixteen results from four vectors of accumulators, bias included. */
SAAUG_INLINE void saaug_store_sixteen(int32x4_t acc0, int32x4_t acc1, int32x4_t acc2, int32x4_t acc3,
                                      const saaug_sixteen *sixteen, saaug_finish finish, int8_t *output, int32_t left)
{
    int16x8_t even = vdupq_n_s16(0), odd = even;
    int8x16_t all = vdupq_n_s8(0);
    acc0 = saaug_finish_four(acc0, vldrwq_s32(sixteen->multiplier[0]), vldrwq_s32(sixteen->down[0]), finish);
    acc1 = saaug_finish_four(acc1, vldrwq_s32(sixteen->multiplier[1]), vldrwq_s32(sixteen->down[1]), finish);
    even = vmovntq_s32(vmovnbq_s32(even, acc0), acc1);
    acc2 = saaug_finish_four(acc2, vldrwq_s32(sixteen->multiplier[2]), vldrwq_s32(sixteen->down[2]), finish);
    acc3 = saaug_finish_four(acc3, vldrwq_s32(sixteen->multiplier[3]), vldrwq_s32(sixteen->down[3]), finish);
    odd = vmovntq_s32(vmovnbq_s32(odd, acc2), acc3);
    all = vmovntq_s16(vmovnbq_s16(all, even), odd);
    if (left >= 16) {
        vstrbq_s8(output, all);
    } else {
        vstrbq_p_s8(output, all, vctp8q((uint32_t)left));
    }
}

#endif /* SAAUG_HELIUM_DEPTHWISE_H */
