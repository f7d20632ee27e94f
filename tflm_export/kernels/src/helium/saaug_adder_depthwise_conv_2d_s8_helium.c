/**
 * ADDER_DEPTHWISE_CONV_2D for Helium. Absolute differences of up to 257 taps fit in 16 bits.
 */
#include "saaug_helium_layout.h"

/* 257 * 255 = 2^16 - 1 */
#define MOST_TAPS 257

static saaug_depthwise_layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    saaug_depthwise_layout result = saaug_lay_out_depthwise(options, shape, 1, 1);
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

#if defined(SAAUG_HELIUM)
#include "saaug_helium_depthwise.h"

/* Weights of `count` channels as int8: sixteen channels of a tap, then the next tap; then the next sixteen. */
static void prepare_weights(const uint8_t *rows, int32_t row_bytes, int32_t count, int32_t taps, int8_t *to)
{
    int32_t c, t;
    for (c = 0; c < (count + 15) / 16 * 16; ++c) {
        const uint8_t *const row = rows + (size_t)(c < count ? c : 0) * (size_t)row_bytes;
        int8_t *out = to + c / 16 * 16 * taps + c % 16;
        for (t = 0; t < taps; ++t, out += 16) {
            *out = (int8_t)(c < count ? (int32_t)row[t] - 128 : 0);
        }
    }
}

/* All channels of a block at one output position. */
SAAUG_APART static void run(const int8_t *const *pointers, const int8_t *w, int32_t taps, const saaug_sixteen *sixteen,
                            int32_t count, const saaug_options *options, int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    int32_t c;
    for (c = 0; c < count; c += 16, ++sixteen) {
        const int8_t *const *p = pointers;
        uint16x8_t even = vdupq_n_u16(0), odd = even;
        int32x4_t acc[4];
        int32_t n = taps, v;
        if (count - c >= 16) {
            do {
                uint8x16_t x, weight;
                const int8_t *pixel;
                /* The difference of two int8 is a uint8. */
                __asm__("ldr %[pixel], [%[p]], #4\n\t"
                        "add %[pixel], %[c]\n\t"
                        "vldrb.8 %q[x], [%[pixel]]\n\t"
                        "vldrb.8 %q[weight], [%[w]], #16\n\t"
                        "vabd.s8 %q[x], %q[x], %q[weight]\n\t"
                        "vmovlb.u8 %q[weight], %q[x]\n\t"
                        "vmovlt.u8 %q[x], %q[x]\n\t"
                        "vadd.i16 %q[even], %q[even], %q[weight]\n\t"
                        "vadd.i16 %q[odd], %q[odd], %q[x]"
                        : [x] "=&w"(x), [weight] "=&w"(weight), [even] "+w"(even), [odd] "+w"(odd), [p] "+r"(p),
                          [w] "+r"(w), [pixel] "=&r"(pixel)
                        : [c] "r"(c)
                        : "memory");
            } while (--n != 0);
        } else {
            const mve_pred16_t inside = vctp8q((uint32_t)(count - c));
            for (; n != 0; --n, w += 16) {
                const int8x16_t x = vldrbq_z_s8(*p++ + c, inside);
                const uint8x16_t difference = vreinterpretq_u8_s8(vabdq_s8(x, vldrbq_s8(w)));
                even = vaddq_u16(even, vmovlbq_u8(difference));
                odd = vaddq_u16(odd, vmovltq_u8(difference));
            }
        }
        acc[0] = vreinterpretq_s32_u32(vmovlbq_u16(even));
        acc[1] = vreinterpretq_s32_u32(vmovltq_u16(even));
        acc[2] = vreinterpretq_s32_u32(vmovlbq_u16(odd));
        acc[3] = vreinterpretq_s32_u32(vmovltq_u16(odd));
        for (v = 0; v < 4; ++v) {
            acc[v] = vaddq_s32(vshlq_n_s32(acc[v], SAAUG_ADDER_SCALE_LOG2), vldrwq_s32(sixteen->bias[v]));
        }
        saaug_store_sixteen(acc[0], acc[1], acc[2], acc[3], sixteen, finish, output + c, count - c);
    }
}

saaug_status saaug_adder_depthwise_conv_2d_s8_helium(const saaug_options *options, const saaug_shape *shape,
                                                     const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                     int8_t *output, void *scratch)
{
    const saaug_depthwise_layout sizes = lay_out(options, shape);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const size_t image_bytes = (size_t)shape->in_h * (size_t)shape->in_w * (size_t)shape->in_c;
    saaug_sixteen *sixteens;
    int8_t *prepared, *zero;
    const int8_t **pointers;
    int32_t first, n, y, x;
    if (sizes.block == 0) {
        return saaug_adder_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    sixteens = scratch;
    prepared = (int8_t *)scratch + sizes.constants_bytes;
    pointers = (const int8_t **)(void *)(prepared + sizes.weights_bytes);
    zero = prepared + sizes.weights_bytes + sizes.pointers_bytes;
    memset(zero, options->input_zero_point, (size_t)sizes.zero_bytes);
    for (first = 0; first < shape->in_c; first += sizes.block) {
        const int32_t count = shape->in_c - first < sizes.block ? shape->in_c - first : sizes.block;
        int8_t *to = output + first;
        prepare_weights(weights + (size_t)first * (size_t)row_bytes, row_bytes, count, sizes.taps, prepared);
        saaug_prepare_sixteens(params + 3 * first, count, sixteens);
        for (n = 0; n < shape->batches; ++n) {
            for (y = 0; y < shape->out_h; ++y) {
                for (x = 0; x < shape->out_w; ++x, to += shape->out_c) {
                    saaug_point(options, shape, input + (size_t)n * image_bytes + first, y, x, zero, pointers);
                    run(pointers, prepared, sizes.taps, sixteens, count, options, to);
                }
            }
        }
    }
    return SAAUG_OK;
}

#endif
