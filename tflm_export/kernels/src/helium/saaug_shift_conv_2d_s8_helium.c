/**
 * SHIFT_CONV_2D for Helium. The vector unit multiplies sixteen pairs of bytes in one instruction and adds them up, so there is
 * nothing to gain from shifting: nibbles become int8 weights, once per call. Byte codes become int16, eight to a vector.
 */
#include "saaug_helium_layout.h"

/* Do int8 weights do? */
static int is_narrow(const saaug_options *options)
{
#if defined(SAAUG_PLAIN_BYTES)
    (void)options;
    return 1;
#else
    return options->layout != SAAUG_LAYOUT_BYTE;
#endif
}

static saaug_conv_layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    return is_narrow(options) ? saaug_lay_out_conv(options, shape, 16, 1) : saaug_lay_out_conv(options, shape, 8, 2);
}

int64_t saaug_shift_conv_2d_s8_helium_size(const saaug_options *options, const saaug_shape *shape)
{
    const saaug_conv_layout sizes = lay_out(options, shape);
    return saaug_conv_layout_bytes(&sizes);
}

#if defined(SAAUG_HELIUM)
#include "saaug_helium_conv.h"

/* One window to vectors that are two apart; zeros behind. */
SAAUG_APART static void place_pixel(const int8_t *from, int32_t taps, int32_t unit, int8_t *to)
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

/* A row of nibbles to int8. */
static void prepare_nibbles(const uint8_t *row, int32_t bytes, int8_t *to)
{
#if defined(SAAUG_PLAIN_BYTES)
    for (; bytes > 0; bytes -= 16, row += 16, to += 32) {
        vstrbq_s8(to, vldrbq_z_s8((const int8_t *)row, vctp8q((uint32_t)bytes)));
    }
#endif
    for (; bytes >= 8; bytes -= 8, row += 8, to += 32) {
        vstrbq_s8(to, vldrbq_gather_offset_s8(saaug_nibble_weights, saaug_spread_codes(vldrbq_u16(row))));
    }
    if (bytes > 0) {
        vstrbq_s8(to, vldrbq_gather_offset_s8(saaug_nibble_weights, saaug_sixteen_codes(row, bytes)));
    }
}

/* A row of bits to int8: sixteen bits are the predicate that selects from two vectors. */
static void prepare_bits(const uint8_t *row, int32_t bytes, int8_t *to)
{
    const int8x16_t plus = vdupq_n_s8(1 << SAAUG_BIT_SCALE_LOG2), minus = vnegq_s8(plus);
    for (; bytes > 0; bytes -= 2, row += 2, to += 32) {
        const uint32_t bits = row[0] | (bytes > 1 ? (uint32_t)row[1] << 8 : 0);
        vstrbq_s8(to, vpselq_s8(minus, plus, (mve_pred16_t)bits));
    }
}

/* A row of byte codes to int16. @return 0 if 2^15 occurs, which int16 does not hold. */
static int prepare_bytes(const uint8_t *row, int32_t bytes, int16_t *to)
{
    mve_pred16_t above = 0;
    for (; bytes > 0; bytes -= 8, row += 8, to += 16) {
        const int16x8_t code = vldrbq_z_s16((const int8_t *)row, vctp16q((uint32_t)bytes));
        const int16x8_t magnitude = vabsq_s16(code);
        const int16x8_t weight = vshlq_s16(vdupq_n_s16(1), vsubq_n_s16(magnitude, 1));
        above |= vcmpgtq_n_s16(magnitude, 15);
        vstrhq_s16(to, vpselq_s16(vnegq_s16(weight), weight, vcmpltq_n_s16(code, 0)));
    }
    return above == 0;
}

SAAUG_INLINE void store_four(int32x4_t sums, const saaug_four *four, saaug_finish finish, int8_t *output)
{
    const int32x4_t acc = vaddq_s32(sums, vldrwq_s32(four->bias));
    const int32x4_t result = saaug_finish_four(acc, vldrwq_s32(four->multiplier), vldrwq_s32(four->down), finish);
    vstrbq_scatter_offset_s32(output, vldrwq_u32(four->offsets), result);
}

/* All channels of a block at two output positions. */
SAAUG_APART static void run_nibbles(const int8_t *pixels, const int8_t *w, int32_t units, const saaug_four *four,
                                    int32_t pairs, const saaug_options *options, int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    for (; pairs != 0; --pairs, ++four, output += 2) {
        const int8_t *x = pixels;
        int32_t sum00 = 0, sum01 = 0, sum10 = 0, sum11 = 0;
        int32_t n = units;
        do {
            int8x16_t x0, x1, w0, w1;
            __asm__("vldrb.8 %q[x0], [%[x]], #16\n\t"
                    "vldrb.8 %q[w0], [%[w]], #16\n\t"
                    "vmladava.s8 %[s00], %q[x0], %q[w0]\n\t"
                    "vldrb.8 %q[x1], [%[x]], #16\n\t"
                    "vmladava.s8 %[s10], %q[x1], %q[w0]\n\t"
                    "vldrb.8 %q[w1], [%[w]], #16\n\t"
                    "vmladava.s8 %[s01], %q[x0], %q[w1]\n\t"
                    "vmladava.s8 %[s11], %q[x1], %q[w1]"
                    : [x0] "=&w"(x0), [x1] "=&w"(x1), [w0] "=&w"(w0), [w1] "=&w"(w1), [x] "+r"(x), [w] "+r"(w),
                      [s00] "+Te"(sum00), [s01] "+Te"(sum01), [s10] "+Te"(sum10), [s11] "+Te"(sum11)
                    :
                    : "memory");
        } while (--n != 0);
        store_four(saaug_gather_sums(sum00, sum01, sum10, sum11), four, finish, output);
    }
}

SAAUG_APART static void run_bytes(const int8_t *pixels, const int16_t *w, int32_t units, const saaug_four *four,
                                  int32_t pairs, const saaug_options *options, int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    for (; pairs != 0; --pairs, ++four, output += 2) {
        const int8_t *x = pixels;
        int32_t sum00 = 0, sum01 = 0, sum10 = 0, sum11 = 0;
        int32_t n;
        for (n = units; n != 0; --n, x += 16, w += 16) {
            const int16x8_t x0 = vldrbq_s16(x), x1 = vldrbq_s16(x + 8);
            const int16x8_t w0 = vldrhq_s16(w), w1 = vldrhq_s16(w + 8);
            sum00 = vmladavaq_s16(sum00, x0, w0);
            sum10 = vmladavaq_s16(sum10, x1, w0);
            sum01 = vmladavaq_s16(sum01, x0, w1);
            sum11 = vmladavaq_s16(sum11, x1, w1);
        }
        store_four(saaug_gather_sums(sum00, sum01, sum10, sum11), four, finish, output);
    }
}

/* Prepares `count` rows; a missing second row of a pair repeats the first. @return 0 if int16 does not hold a weight. */
static int prepare_rows(const saaug_options *options, const uint8_t *rows, int32_t row_bytes, int32_t count,
                        int32_t units, int8_t *to)
{
    int32_t i;
    for (i = 0; i < (count + 1) / 2 * 2; ++i) {
        const uint8_t *const row = rows + (size_t)(i < count ? i : count - 1) * (size_t)row_bytes;
        int8_t *const narrow = to + (size_t)(i / 2) * (size_t)units * 32 + i % 2 * 16;
        if (options->layout == SAAUG_LAYOUT_BIT) {
            prepare_bits(row, row_bytes, narrow);
        } else if (is_narrow(options)) {
            prepare_nibbles(row, row_bytes, narrow);
        } else if (!prepare_bytes(row, row_bytes,
                                  (int16_t *)(void *)to + (size_t)(i / 2) * (size_t)units * 16 + i % 2 * 8)) {
            return 0;
        }
    }
    return 1;
}

saaug_status saaug_shift_conv_2d_s8_helium(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                           const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const saaug_conv_layout sizes = lay_out(options, shape);
    const int32_t taps = options->kernel_h * options->kernel_w * shape->in_c;
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const int32_t unit = is_narrow(options) ? 16 : 8;
    saaug_four *const fours = scratch;
    int8_t *const pixels = (int8_t *)scratch + sizes.channels_bytes;
    int8_t *const prepared = pixels + sizes.pixels_bytes;
    int8_t *const staging = prepared + sizes.weights_bytes;
    int32_t first, p;
    for (first = 0; first < shape->out_c; first += sizes.block) {
        const int32_t count = shape->out_c - first < sizes.block ? shape->out_c - first : sizes.block;
        saaug_window window = saaug_first_window(options, input);
        if (!prepare_rows(options, weights + (size_t)first * (size_t)row_bytes, row_bytes, count, sizes.units, prepared)) {
            return saaug_shift_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
        }
        saaug_prepare_fours(params + 3 * first, count, shape->out_c, fours);
        for (p = 0; p < sizes.positions; p += 2) {
            int8_t *const to = output + (size_t)p * (size_t)shape->out_c + first;
            place_pixel(saaug_gather(options, shape, &window, staging), taps, unit, pixels);
            if (p + 1 < sizes.positions) {
                saaug_next_window(options, shape, &window);
            } else {
                /* No second position: it repeats the first, whose results it overwrites. */
                saaug_drop_second(count, shape->out_c, fours);
            }
            place_pixel(saaug_gather(options, shape, &window, staging), taps, unit, pixels + unit);
            saaug_next_window(options, shape, &window);
            if (is_narrow(options)) {
                run_nibbles(pixels, prepared, sizes.units, fours, (count + 1) / 2, options, to);
            } else {
                run_bytes(pixels, (const int16_t *)(const void *)prepared, sizes.units, fours, (count + 1) / 2, options,
                          to);
            }
        }
    }
    return SAAUG_OK;
}

#endif
