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
#include "saaug_helium_layout.h"

/* The layout counts pointers of four bytes. */
typedef char saaug_pointers_have_four_bytes[sizeof(void *) == 4 ? 1 : -1];

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
