/**
 * SHIFT_DEPTHWISE_CONV_2D for Helium. Nibble weights are int8 in scratch; the products of three taps fit in int16 before they
 * are widened. Byte codes are int32 and so are their products.
 */
#include "saaug_helium_layout.h"

/* Taps whose products, summed, fit in int16. */
#if defined(SAAUG_PLAIN_BYTES)
#define NARROW_TAPS 2 /* 2 * 128 * 127 < 2^15 */
#else
#define NARROW_TAPS 3 /* 3 * 128 * 64 < 2^15 */
#endif

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

static saaug_depthwise_layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    return is_narrow(options) ? saaug_lay_out_depthwise(options, shape, 1, NARROW_TAPS)
                              : saaug_lay_out_depthwise(options, shape, 4, 1);
}

int64_t saaug_shift_depthwise_conv_2d_s8_helium_size(const saaug_options *options, const saaug_shape *shape)
{
    const saaug_depthwise_layout sizes = lay_out(options, shape);
    return saaug_depthwise_layout_bytes(&sizes);
}

#if defined(SAAUG_HELIUM)
#include "saaug_helium_depthwise.h"

/* Weights of `count` channels: sixteen channels of a tap, then the next tap; then the next sixteen. Zeros where there are none. */
static void prepare_weights(const saaug_options *options, const uint8_t *rows, int32_t row_bytes, int32_t count,
                            int32_t taps, void *to)
{
    const int32_t kernel = options->kernel_h * options->kernel_w;
    int32_t c, t;
    for (c = 0; c < (count + 15) / 16 * 16; ++c) {
        const uint8_t *const row = rows + (size_t)(c < count ? c : 0) * (size_t)row_bytes;
        const int32_t from = c / 16 * 16 * taps + c % 16;
        for (t = 0; t < taps; ++t) {
            const int there = c < count && t < kernel;
            int32_t weight = 0;
            if (there) {
                weight = options->layout == SAAUG_LAYOUT_NIBBLE ? saaug_nibble_weights[saaug_nibble(row, t)]
                         : options->layout == SAAUG_LAYOUT_BIT  ? saaug_bit_weight(row, t)
                                                                : saaug_byte_weight(row[t]);
            }
            if (is_narrow(options)) {
                ((int8_t *)to)[from + 16 * t] = (int8_t)weight;
            } else {
                ((int32_t *)to)[from + 16 * t] = weight;
            }
        }
    }
}

/* Products of a tap's even and odd channels; added to those of the taps before; all added to the accumulators. */
#define FIRST_TAP                                                                                                      \
    "ldr %[pixel], [%[p]], #4\n\t"                                                                                     \
    "add %[pixel], %[c]\n\t"                                                                                           \
    "vldrb.8 %q[x], [%[pixel]]\n\t"                                                                                    \
    "vldrb.8 %q[weight], [%[w]], #16\n\t"                                                                              \
    "vmullb.s8 %q[even], %q[x], %q[weight]\n\t"                                                                        \
    "vmullt.s8 %q[odd], %q[x], %q[weight]\n\t"
/* The pixel is loaded twice because there are eight vector registers, not nine. */
#define NEXT_TAP                                                                                                       \
    "ldr %[pixel], [%[p]], #4\n\t"                                                                                     \
    "add %[pixel], %[c]\n\t"                                                                                           \
    "vldrb.8 %q[x], [%[pixel]]\n\t"                                                                                    \
    "vldrb.8 %q[weight], [%[w]], #16\n\t"                                                                              \
    "vmullb.s8 %q[x], %q[x], %q[weight]\n\t"                                                                           \
    "vadd.i16 %q[even], %q[even], %q[x]\n\t"                                                                           \
    "vldrb.8 %q[x], [%[pixel]]\n\t"                                                                                    \
    "vmullt.s8 %q[x], %q[x], %q[weight]\n\t"                                                                           \
    "vadd.i16 %q[odd], %q[odd], %q[x]\n\t"
#define WIDEN                                                                                                          \
    "vmovlb.s16 %q[x], %q[even]\n\t"                                                                                   \
    "vadd.i32 %q[a0], %q[a0], %q[x]\n\t"                                                                               \
    "vmovlt.s16 %q[x], %q[even]\n\t"                                                                                   \
    "vadd.i32 %q[a1], %q[a1], %q[x]\n\t"                                                                               \
    "vmovlb.s16 %q[x], %q[odd]\n\t"                                                                                    \
    "vadd.i32 %q[a2], %q[a2], %q[x]\n\t"                                                                               \
    "vmovlt.s16 %q[x], %q[odd]\n\t"                                                                                    \
    "vadd.i32 %q[a3], %q[a3], %q[x]"

/* All channels of a block at one output position: three taps of sixteen channels take 33 instructions. */
SAAUG_APART static void run_narrow(const int8_t *const *pointers, const int8_t *w, int32_t taps,
                                    const saaug_sixteen *sixteen, int32_t count, const saaug_options *options,
                                    int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    int32_t c;
    for (c = 0; c < count; c += 16, ++sixteen) {
        const int8_t *const *p = pointers;
        int32x4_t acc0 = vldrwq_s32(sixteen->bias[0]), acc1 = vldrwq_s32(sixteen->bias[1]);
        int32x4_t acc2 = vldrwq_s32(sixteen->bias[2]), acc3 = vldrwq_s32(sixteen->bias[3]);
        int32_t n = taps / NARROW_TAPS;
        if (count - c >= 16) {
            do {
                int8x16_t x, weight;
                int16x8_t even, odd;
                const int8_t *pixel;
                __asm__(FIRST_TAP NEXT_TAP
#if NARROW_TAPS == 3
                            NEXT_TAP
#endif
                                WIDEN
                        : [x] "=&w"(x), [weight] "=&w"(weight), [even] "=&w"(even), [odd] "=&w"(odd), [a0] "+w"(acc0),
                          [a1] "+w"(acc1), [a2] "+w"(acc2), [a3] "+w"(acc3), [p] "+r"(p), [w] "+r"(w),
                          [pixel] "=&r"(pixel)
                        : [c] "r"(c)
                        : "memory");
            } while (--n != 0);
        } else {
            const mve_pred16_t inside = vctp8q((uint32_t)(count - c));
            for (n = taps; n != 0; --n, w += 16) {
                const int8x16_t x = vldrbq_z_s8(*p++ + c, inside), weight = vldrbq_s8(w);
                const int16x8_t even = vmullbq_int_s8(x, weight), odd = vmulltq_int_s8(x, weight);
                acc0 = vaddq_s32(acc0, vmovlbq_s16(even));
                acc1 = vaddq_s32(acc1, vmovltq_s16(even));
                acc2 = vaddq_s32(acc2, vmovlbq_s16(odd));
                acc3 = vaddq_s32(acc3, vmovltq_s16(odd));
            }
        }
        saaug_store_sixteen(acc0, acc1, acc2, acc3, sixteen, finish, output + c, count - c);
    }
}

/* Adds a tap of the four channels x[0], x[4], x[8] and x[12], so many of them as `left` says. */
SAAUG_INLINE int32x4_t add_wide(int32x4_t acc, const int8_t *x, const int32_t *w, int32_t left)
{
    const uint32x4_t bytes = vidupq_n_u32(0, 4);
    const int32x4_t value = vldrbq_gather_offset_z_s32(x, bytes, vctp32q((uint32_t)(left + 3) / 4));
    return vaddq_s32(acc, vmulq_s32(value, vldrwq_gather_shifted_offset_s32(w, bytes)));
}

SAAUG_APART static void run_wide(const int8_t *const *pointers, const int32_t *w, int32_t taps,
                                  const saaug_sixteen *sixteen, int32_t count, const saaug_options *options,
                                  int8_t *output)
{
    const saaug_finish finish = saaug_finish_of(options);
    int32_t c, t;
    for (c = 0; c < count; c += 16, ++sixteen) {
        const int32_t left = count - c < 16 ? count - c : 16;
        int32x4_t acc0 = vldrwq_s32(sixteen->bias[0]), acc1 = vldrwq_s32(sixteen->bias[1]);
        int32x4_t acc2 = vldrwq_s32(sixteen->bias[2]), acc3 = vldrwq_s32(sixteen->bias[3]);
        for (t = 0; t < taps; ++t, w += 16) {
            const int8_t *const x = pointers[t] + c;
            acc0 = add_wide(acc0, x, w, left);
            acc1 = add_wide(acc1, x + 2, w + 2, left > 2 ? left - 2 : 0);
            acc2 = add_wide(acc2, x + 1, w + 1, left > 1 ? left - 1 : 0);
            acc3 = add_wide(acc3, x + 3, w + 3, left > 3 ? left - 3 : 0);
        }
        saaug_store_sixteen(acc0, acc1, acc2, acc3, sixteen, finish, output + c, left);
    }
}

saaug_status saaug_shift_depthwise_conv_2d_s8_helium(const saaug_options *options, const saaug_shape *shape,
                                                     const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                     int8_t *output, void *scratch)
{
    const saaug_depthwise_layout sizes = lay_out(options, shape);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const size_t image_bytes = (size_t)shape->in_h * (size_t)shape->in_w * (size_t)shape->in_c;
    saaug_sixteen *sixteens;
    uint8_t *prepared;
    const int8_t **pointers;
    int8_t *zero;
    int32_t first, n, y, x;
    if (sizes.block == 0) {
        return saaug_shift_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    sixteens = scratch;
    prepared = (uint8_t *)scratch + sizes.constants_bytes;
    pointers = (const int8_t **)(void *)(prepared + sizes.weights_bytes);
    zero = (int8_t *)(prepared + sizes.weights_bytes + sizes.pointers_bytes);
    memset(zero, options->input_zero_point, (size_t)sizes.zero_bytes);
    for (x = 0; x < sizes.taps; ++x) {
        pointers[x] = zero;
    }
    for (first = 0; first < shape->in_c; first += sizes.block) {
        const int32_t count = shape->in_c - first < sizes.block ? shape->in_c - first : sizes.block;
        int8_t *to = output + first;
        prepare_weights(options, weights + (size_t)first * (size_t)row_bytes, row_bytes, count, sizes.taps,
                        prepared);
        saaug_prepare_sixteens(params + 3 * first, count, sixteens);
        for (n = 0; n < shape->batches; ++n) {
            for (y = 0; y < shape->out_h; ++y) {
                for (x = 0; x < shape->out_w; ++x, to += shape->out_c) {
                    saaug_point(options, shape, input + (size_t)n * image_bytes + first, y, x, zero, pointers);
                    if (is_narrow(options)) {
                        run_narrow(pointers, (const int8_t *)prepared, sizes.taps, sixteens, count, options, to);
                    } else {
                        run_wide(pointers, (const int32_t *)(const void *)prepared, sizes.taps, sixteens, count,
                                  options, to);
                    }
                }
            }
        }
    }
    return SAAUG_OK;
}

#endif
