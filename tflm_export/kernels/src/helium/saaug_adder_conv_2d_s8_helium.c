/**
 * ADDER_CONV_2D for Helium, which adds sixteen absolute differences of bytes to a sum in one instruction. Pixels and weights
 * are unsigned bytes in offset binary.
 */
#include "saaug_helium_layout.h"

static saaug_conv_layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    return saaug_lay_out_conv(options, shape, 16, 1);
}

int64_t saaug_adder_conv_2d_s8_helium_size(const saaug_options *options, const saaug_shape *shape)
{
    const saaug_conv_layout sizes = lay_out(options, shape);
    return saaug_conv_layout_bytes(&sizes);
}

#if defined(SAAUG_HELIUM)
#include "saaug_helium_conv.h"

/* One window to vectors that are two apart, in offset binary; zeros behind, as behind the rows of weights. */
SAAUG_APART static void place_pixel(const int8_t *from, int32_t taps, uint8_t *to)
{
    const uint8x16_t offset = vdupq_n_u8(128);
    const uint8_t *bytes = (const uint8_t *)from;
    for (; taps >= 16; taps -= 16, bytes += 16, to += 32) {
        vstrbq_u8(to, veorq_u8(vldrbq_u8(bytes), offset));
    }
    if (taps > 0) {
        const mve_pred16_t inside = vctp8q((uint32_t)taps);
        vstrbq_u8(to, veorq_m_u8(vdupq_n_u8(0), vldrbq_z_u8(bytes, inside), offset, inside));
    }
}

static void prepare_row(const uint8_t *row, int32_t bytes, uint8_t *to)
{
    for (; bytes > 0; bytes -= 16, row += 16, to += 32) {
        vstrbq_u8(to, vldrbq_z_u8(row, vctp8q((uint32_t)bytes)));
    }
}

/* All channels of a block at two output positions. */
SAAUG_APART static void run(const uint8_t *pixels, const uint8_t *w, int32_t units, const saaug_four *four, int32_t pairs,
                            const saaug_options *options, int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    for (; pairs != 0; --pairs, ++four, output += 2) {
        const uint8_t *x = pixels;
        uint32_t sum00 = 0, sum01 = 0, sum10 = 0, sum11 = 0;
        int32_t n = units;
        int32x4_t acc;
        do {
            uint8x16_t x0, x1, w0, w1;
            __asm__("vldrb.8 %q[x0], [%[x]], #16\n\t"
                    "vldrb.8 %q[w0], [%[w]], #16\n\t"
                    "vabav.u8 %[s00], %q[x0], %q[w0]\n\t"
                    "vldrb.8 %q[x1], [%[x]], #16\n\t"
                    "vabav.u8 %[s10], %q[x1], %q[w0]\n\t"
                    "vldrb.8 %q[w1], [%[w]], #16\n\t"
                    "vabav.u8 %[s01], %q[x0], %q[w1]\n\t"
                    "vabav.u8 %[s11], %q[x1], %q[w1]"
                    : [x0] "=&w"(x0), [x1] "=&w"(x1), [w0] "=&w"(w0), [w1] "=&w"(w1), [x] "+r"(x), [w] "+r"(w),
                      [s00] "+r"(sum00), [s01] "+r"(sum01), [s10] "+r"(sum10), [s11] "+r"(sum11)
                    :
                    : "memory");
        } while (--n != 0);
        acc = saaug_gather_sums((int32_t)sum00, (int32_t)sum01, (int32_t)sum10, (int32_t)sum11);
        acc = vaddq_s32(vshlq_n_s32(acc, SAAUG_ADDER_SCALE_LOG2), vldrwq_s32(four->bias));
        acc = saaug_finish_four(acc, vldrwq_s32(four->multiplier), vldrwq_s32(four->down), finish);
        vstrbq_scatter_offset_s32(output, vldrwq_u32(four->offsets), acc);
    }
}

saaug_status saaug_adder_conv_2d_s8_helium(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                           const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const saaug_conv_layout sizes = lay_out(options, shape);
    const int32_t taps = options->kernel_h * options->kernel_w * shape->in_c;
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    saaug_four *const fours = scratch;
    uint8_t *const pixels = (uint8_t *)scratch + sizes.channels_bytes;
    uint8_t *const prepared = pixels + sizes.pixels_bytes;
    int8_t *const staging = (int8_t *)prepared + sizes.weights_bytes;
    int32_t first, i, p;
    for (first = 0; first < shape->out_c; first += sizes.block) {
        const int32_t count = shape->out_c - first < sizes.block ? shape->out_c - first : sizes.block;
        saaug_window window = saaug_first_window(options, input);
        for (i = 0; i < (count + 1) / 2 * 2; ++i) {
            prepare_row(weights + (size_t)(first + (i < count ? i : count - 1)) * (size_t)row_bytes, row_bytes,
                        prepared + (size_t)(i / 2) * (size_t)sizes.units * 32 + i % 2 * 16);
        }
        saaug_prepare_fours(params + 3 * first, count, shape->out_c, fours);
        for (p = 0; p < sizes.positions; p += 2) {
            place_pixel(saaug_gather(options, shape, &window, staging), taps, pixels);
            if (p + 1 < sizes.positions) {
                saaug_next_window(options, shape, &window);
            } else {
                /* No second position: it repeats the first, whose results it overwrites. */
                saaug_drop_second(count, shape->out_c, fours);
            }
            place_pixel(saaug_gather(options, shape, &window, staging), taps, pixels + 16);
            saaug_next_window(options, shape, &window);
            run(pixels, prepared, sizes.units, fours, (count + 1) / 2, options,
                output + (size_t)p * (size_t)shape->out_c + first);
        }
    }
    return SAAUG_OK;
}

#endif
