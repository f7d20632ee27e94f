/**
 * SHIFT_DEPTHWISE_CONV_2D for Helium. Nibble weights are int8 in scratch; the products of up to three taps fit in int16 before
 * they are widened. Byte codes are int32 and so are their products, four channels at a time.
 */
#include "../saaug_internal.h"

#if defined(SAAUG_HELIUM)
#include "saaug_helium_depthwise.h"

/* 3 * 128 * 64 < 2^15 */
#define NARROW_TAPS 3

static saaug_depthwise_layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    return saaug_lay_out_depthwise(options, shape, options->layout == SAAUG_LAYOUT_NIBBLE ? 1 : 4);
}

int64_t saaug_shift_depthwise_conv_2d_s8_helium_size(const saaug_options *options, const saaug_shape *shape)
{
    const saaug_depthwise_layout sizes = lay_out(options, shape);
    return saaug_depthwise_layout_bytes(&sizes);
}

/* Weights of `count` channels, tap by tap, `block` apart; zeros behind the last channel. */
static void prepare_weights(const saaug_options *options, const uint8_t *rows, int32_t row_bytes, int32_t count,
                            int32_t taps, int32_t block, void *to)
{
    int32_t c, t;
    for (c = 0; c < block; ++c) {
        const uint8_t *const row = rows + (size_t)(c < count ? c : 0) * (size_t)row_bytes;
        if (options->layout == SAAUG_LAYOUT_NIBBLE) {
            int8_t *out = (int8_t *)to + c;
            for (t = 0; t < taps; ++t, out += block) {
                *out = c < count ? saaug_nibble_weights[saaug_nibble(row, t)] : 0;
            }
        } else {
            int32_t *out = (int32_t *)to + c;
            for (t = 0; t < taps; ++t, out += block) {
                *out = c < count ? saaug_shift_term(1, row, t, SAAUG_LAYOUT_BYTE) : 0;
            }
        }
    }
}

/* Adds up to three taps of eight channels, in int16. */
SAAUG_INLINE void add_narrow(const int8_t *const *pointers, int32_t offset, const int8_t *w, int32_t step, const int taps,
                             mve_pred16_t inside, int32x4_t *even, int32x4_t *odd)
{
    int16x8_t sum = vmulq_s16(vldrbq_z_s16(pointers[0] + offset, inside), vldrbq_s16(w));
    if (taps > 1) {
        sum = vaddq_s16(sum, vmulq_s16(vldrbq_z_s16(pointers[1] + offset, inside), vldrbq_s16(w + step)));
    }
    if (taps > 2) {
        sum = vaddq_s16(sum, vmulq_s16(vldrbq_z_s16(pointers[2] + offset, inside), vldrbq_s16(w + 2 * step)));
    }
    *even = vaddq_s32(*even, vmovlbq_s16(sum));
    *odd = vaddq_s32(*odd, vmovltq_s16(sum));
}

/* The same of eight channels that all are there. */
SAAUG_INLINE void add_three(const int8_t *const *pointers, int32_t offset, const int8_t *w, int32_t step, int32x4_t *even,
                            int32x4_t *odd)
{
    int16x8_t sum = vmulq_s16(vldrbq_s16(pointers[0] + offset), vldrbq_s16(w));
    sum = vaddq_s16(sum, vmulq_s16(vldrbq_s16(pointers[1] + offset), vldrbq_s16(w + step)));
    sum = vaddq_s16(sum, vmulq_s16(vldrbq_s16(pointers[2] + offset), vldrbq_s16(w + 2 * step)));
    *even = vaddq_s32(*even, vmovlbq_s16(sum));
    *odd = vaddq_s32(*odd, vmovltq_s16(sum));
}

/* All channels of a block at one output position. */
SAAUG_APART static void run_nibbles(const int8_t *const *pointers, const int8_t *weights, int32_t taps, int32_t block,
                                    const saaug_eight *eight, int32_t count, const saaug_options *options,
                                    int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    int32_t c, t;
    for (c = 0; c < count; c += 8, ++eight) {
        int32x4_t even = vldrwq_s32(eight->bias[0]), odd = vldrwq_s32(eight->bias[1]);
        const int8_t *w = weights + c;
        if (count - c >= 8) {
            for (t = 0; t + NARROW_TAPS <= taps; t += NARROW_TAPS, w += NARROW_TAPS * block) {
                add_three(pointers + t, c, w, block, &even, &odd);
            }
            for (; t < taps; ++t, w += block) {
                add_narrow(pointers + t, c, w, block, 1, (mve_pred16_t)0xFFFF, &even, &odd);
            }
        } else {
            const mve_pred16_t inside = vctp16q((uint32_t)(count - c));
            for (t = 0; t < taps; ++t, w += block) {
                add_narrow(pointers + t, c, w, block, 1, inside, &even, &odd);
            }
        }
        saaug_store_eight(even, odd, eight, finish, output + c, count - c);
    }
}

SAAUG_APART static void run_bytes(const int8_t *const *pointers, const int32_t *weights, int32_t taps, int32_t block,
                                  const saaug_eight *eight, int32_t count, const saaug_options *options, int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    const uint32x4_t lanes = vshlq_n_u32(vidupq_n_u32(0, 1), 1); /* 0, 2, 4, 6 */
    int32_t c, t;
    for (c = 0; c < count; c += 8, ++eight) {
        int32x4_t even = vldrwq_s32(eight->bias[0]), odd = vldrwq_s32(eight->bias[1]);
        const mve_pred16_t even_inside = vctp32q((uint32_t)(count - c + 1) / 2);
        const mve_pred16_t odd_inside = vctp32q((uint32_t)(count - c) / 2);
        const int32_t *w = weights + c;
        for (t = 0; t < taps; ++t, w += block) {
            const int8_t *const x = pointers[t] + c;
            even = vaddq_s32(even, vmulq_s32(vldrbq_gather_offset_z_s32(x, lanes, even_inside),
                                             vldrwq_gather_shifted_offset_s32(w, lanes)));
            odd = vaddq_s32(odd, vmulq_s32(vldrbq_gather_offset_z_s32(x + 1, lanes, odd_inside),
                                           vldrwq_gather_shifted_offset_s32(w + 1, lanes)));
        }
        saaug_store_eight(even, odd, eight, finish, output + c, count - c);
    }
}

saaug_status saaug_shift_depthwise_conv_2d_s8_helium(const saaug_options *options, const saaug_shape *shape,
                                                     const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                     int8_t *output, void *scratch)
{
    const saaug_depthwise_layout sizes = lay_out(options, shape);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const size_t image_bytes = (size_t)shape->in_h * (size_t)shape->in_w * (size_t)shape->in_c;
    saaug_eight *eights;
    uint8_t *prepared;
    const int8_t **pointers;
    int8_t *zero;
    int32_t first, n, y, x;
    if (sizes.block == 0) {
        return saaug_shift_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    eights = scratch;
    prepared = (uint8_t *)scratch + sizes.eights_bytes;
    pointers = (const int8_t **)(void *)(prepared + sizes.weights_bytes);
    zero = (int8_t *)(prepared + sizes.weights_bytes + sizes.pointers_bytes);
    memset(zero, options->input_zero_point, (size_t)sizes.zero_bytes);
    for (first = 0; first < shape->in_c; first += sizes.block) {
        const int32_t count = shape->in_c - first < sizes.block ? shape->in_c - first : sizes.block;
        int8_t *to = output + first;
        prepare_weights(options, weights + (size_t)first * (size_t)row_bytes, row_bytes, count, sizes.taps, sizes.block,
                        prepared);
        saaug_prepare_eights(params + 3 * first, count, eights);
        for (n = 0; n < shape->batches; ++n) {
            for (y = 0; y < shape->out_h; ++y) {
                for (x = 0; x < shape->out_w; ++x, to += shape->out_c) {
                    saaug_point(options, shape, input + (size_t)n * image_bytes + first, y, x, zero, pointers);
                    if (options->layout == SAAUG_LAYOUT_NIBBLE) {
                        run_nibbles(pointers, (const int8_t *)prepared, sizes.taps, sizes.block, eights, count, options,
                                    to);
                    } else {
                        run_bytes(pointers, (const int32_t *)(const void *)prepared, sizes.taps, sizes.block, eights,
                                  count, options, to);
                    }
                }
            }
        }
    }
    return SAAUG_OK;
}

#else
typedef int saaug_this_file_is_for_helium;
#endif
