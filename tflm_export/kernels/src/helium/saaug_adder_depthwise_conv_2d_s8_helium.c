/**
 * ADDER_DEPTHWISE_CONV_2D for Helium. Absolute differences of up to 257 taps fit in 16 bits.
 */
#include "../saaug_internal.h"

#if defined(SAAUG_HELIUM)
#include "saaug_helium_depthwise.h"

/* 257 * 255 = 2^16 - 1 */
#define MOST_TAPS 257

static saaug_depthwise_layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    saaug_depthwise_layout result = saaug_lay_out_depthwise(options, shape, 1);
    if (result.taps > MOST_TAPS) {
        memset(&result, 0, sizeof result);
    }
    return result;
}

int64_t saaug_adder_depthwise_conv_2d_s8_helium_size(const saaug_options *options, const saaug_shape *shape)
{
    const saaug_depthwise_layout sizes = lay_out(options, shape);
    return saaug_depthwise_layout_bytes(&sizes);
}

/* Weights of `count` channels as int8, tap by tap, `block` apart; zeros behind the last channel. */
static void prepare_weights(const uint8_t *rows, int32_t row_bytes, int32_t count, int32_t taps, int32_t block, int8_t *to)
{
    int32_t c, t;
    for (c = 0; c < block; ++c) {
        const uint8_t *const row = rows + (size_t)(c < count ? c : 0) * (size_t)row_bytes;
        int8_t *out = to + c;
        for (t = 0; t < taps; ++t, out += block) {
            *out = (int8_t)(c < count ? (int32_t)row[t] - 128 : 0);
        }
    }
}

/* All channels of a block at one output position. */
SAAUG_APART static void run(const int8_t *const *pointers, const int8_t *weights, int32_t taps, int32_t block,
                            const saaug_eight *eight, int32_t count, const saaug_options *options, int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    int32_t c, t;
    for (c = 0; c < count; c += 8, ++eight) {
        uint16x8_t sum = vdupq_n_u16(0);
        const int8_t *w = weights + c;
        int32x4_t even, odd;
        if (count - c >= 8) {
            for (t = 0; t < taps; ++t, w += block) {
                const int16x8_t difference = vabdq_s16(vldrbq_s16(pointers[t] + c), vldrbq_s16(w));
                sum = vaddq_u16(sum, vreinterpretq_u16_s16(difference));
            }
        } else {
            const mve_pred16_t inside = vctp16q((uint32_t)(count - c));
            for (t = 0; t < taps; ++t, w += block) {
                const int16x8_t difference = vabdq_s16(vldrbq_z_s16(pointers[t] + c, inside), vldrbq_s16(w));
                sum = vaddq_u16(sum, vreinterpretq_u16_s16(difference));
            }
        }
        even = vreinterpretq_s32_u32(vshlq_n_u32(vmovlbq_u16(sum), SAAUG_ADDER_SCALE_LOG2));
        odd = vreinterpretq_s32_u32(vshlq_n_u32(vmovltq_u16(sum), SAAUG_ADDER_SCALE_LOG2));
        saaug_store_eight(vaddq_s32(even, vldrwq_s32(eight->bias[0])), vaddq_s32(odd, vldrwq_s32(eight->bias[1])), eight,
                          finish, output + c, count - c);
    }
}

saaug_status saaug_adder_depthwise_conv_2d_s8_helium(const saaug_options *options, const saaug_shape *shape,
                                                     const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                     int8_t *output, void *scratch)
{
    const saaug_depthwise_layout sizes = lay_out(options, shape);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const size_t image_bytes = (size_t)shape->in_h * (size_t)shape->in_w * (size_t)shape->in_c;
    saaug_eight *eights;
    int8_t *prepared, *zero;
    const int8_t **pointers;
    int32_t first, n, y, x;
    if (sizes.block == 0) {
        return saaug_adder_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    eights = scratch;
    prepared = (int8_t *)scratch + sizes.eights_bytes;
    pointers = (const int8_t **)(void *)(prepared + sizes.weights_bytes);
    zero = prepared + sizes.weights_bytes + sizes.pointers_bytes;
    memset(zero, options->input_zero_point, (size_t)sizes.zero_bytes);
    for (first = 0; first < shape->in_c; first += sizes.block) {
        const int32_t count = shape->in_c - first < sizes.block ? shape->in_c - first : sizes.block;
        int8_t *to = output + first;
        prepare_weights(weights + (size_t)first * (size_t)row_bytes, row_bytes, count, sizes.taps, sizes.block, prepared);
        saaug_prepare_eights(params + 3 * first, count, eights);
        for (n = 0; n < shape->batches; ++n) {
            for (y = 0; y < shape->out_h; ++y) {
                for (x = 0; x < shape->out_w; ++x, to += shape->out_c) {
                    saaug_point(options, shape, input + (size_t)n * image_bytes + first, y, x, zero, pointers);
                    run(pointers, prepared, sizes.taps, sizes.block, eights, count, options, to);
                }
            }
        }
    }
    return SAAUG_OK;
}

#else
typedef int saaug_this_file_is_for_helium;
#endif
