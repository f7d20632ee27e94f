/**
 * SHIFT_CONV_2D for cores with SMLAD. A core that multiplies two 16-bit pairs in one instruction has nothing to gain from
 * shifting: the nibbles become pairs of int16, once per call for a block of output channels, and the block stays in scratch
 * while all output positions pass by, two at a time. The inner loop is two positions times two channels times four taps.
 */
#include "saaug_dsp.h"

#include "../saaug_gather.h"

/* Decoded weights of one block, in bytes: 2560 weights. A block has two channels at least. */
#define BLOCK_BYTES 5120

/* Order in scratch: pixels, channels, weights, staging. */
typedef struct {
    int32_t quads;     /* groups of four taps */
    int32_t padded;    /* quads in scratch, even: the inner loop does two */
    int32_t positions; /* of the output, over all batches */
    int32_t block;     /* output channels per block, even; 0: one position, the weights are read directly */
    int64_t pixels_bytes, channels_bytes, weights_bytes;
    int64_t staging_bytes; /* the int8 copy of one window */
} layout;

static layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    layout result;
    const int64_t taps = (int64_t)options->kernel_h * options->kernel_w * shape->in_c;
    const int64_t most = BLOCK_BYTES / ((taps + 7) / 8 * 16);
    const int32_t even = (shape->out_c + 1) / 2 * 2;
    result.quads = (int32_t)((taps + 3) / 4);
    result.padded = (result.quads + 1) / 2 * 2;
    result.positions = shape->batches * shape->out_h * shape->out_w;
    result.staging_bytes = saaug_is_pointwise(options) ? 0 : (int64_t)result.quads * 4;
    if (result.positions == 1 && options->layout == SAAUG_LAYOUT_NIBBLE) {
        result.block = 0;
        result.pixels_bytes = (int64_t)result.quads * 8;
        result.channels_bytes = 0;
        result.weights_bytes = 0;
        return result;
    }
    if (most >= even) {
        result.block = even;
    } else {
        /* Blocks of equal size: the last one should not be a small one. */
        const int32_t blocks = most < 2 ? even / 2 : (int32_t)((even + most / 2 * 2 - 1) / (most / 2 * 2));
        result.block = (even / 2 + blocks - 1) / blocks * 2;
    }
    result.pixels_bytes = (int64_t)result.padded * 16;
    result.channels_bytes = result.block * (int64_t)sizeof(saaug_channel);
    result.weights_bytes = (int64_t)result.padded * 8 * result.block;
    return result;
}

int64_t saaug_shift_conv_2d_s8_dsp_size(const saaug_options *options, const saaug_shape *shape)
{
    const layout sizes = lay_out(options, shape);
    return sizes.pixels_bytes + sizes.channels_bytes + sizes.weights_bytes + sizes.staging_bytes;
}

#if defined(SAAUG_DSP)

static inline void expand_word(uint32_t bytes, uint32_t *to)
{
    const uint32_t even = saaug_even_bytes(bytes), odd = saaug_odd_bytes(bytes);
    to[0] = saaug_low_halves(even, odd);
    to[1] = saaug_high_halves(even, odd);
}

/* `taps` int8 values to pairs of int16; `step` words from one quad to the next. */
SAAUG_APART static void expand(const int8_t *from, int32_t taps, uint32_t *to, int32_t step)
{
    for (; taps >= 8; taps -= 8, from += 8, to += 2 * step) {
        expand_word(saaug_load_word(from), to);
        expand_word(saaug_load_word(from + 4), to + step);
    }
    if (taps >= 4) {
        expand_word(saaug_load_word(from), to);
        from += 4;
        to += step;
    }
    if ((taps & 3) != 0) {
        expand_word(saaug_load_part(from, taps & 3), to);
    }
}

static uint32_t byte_weight(uint8_t code, int doubled)
{
    return (uint32_t)saaug_byte_weight(code) << doubled & 0xFFFFu;
}

/* The rows of two channels, quad by quad side by side, zeros up to `padded`; a NULL row is zero. */
static void decode_rows(const uint8_t *first, const uint8_t *second, int32_t layout_id, int doubled, int32_t quads,
                        int32_t padded, uint32_t *to)
{
    const uint8_t *rows[2];
    int32_t n, i;
    rows[0] = first;
    rows[1] = second;
    for (i = 0; i < 2; ++i) {
        const uint8_t *row = rows[i];
        uint32_t *out = to + 2 * i;
        for (n = 0; n < padded; ++n, out += 4) {
            if (row == NULL || n >= quads) {
                out[0] = 0;
                out[1] = 0;
            } else if (layout_id == SAAUG_LAYOUT_NIBBLE) {
                out[0] = saaug_doubled_pairs[row[0]];
                out[1] = saaug_doubled_pairs[row[1]];
                row += 2;
            } else if (layout_id == SAAUG_LAYOUT_BIT) {
                const uint32_t codes = saaug_bits_as_nibbles(row, n);
                out[0] = saaug_doubled_pairs[codes & 255u];
                out[1] = saaug_doubled_pairs[codes >> 8];
            } else {
                out[0] = byte_weight(row[0], doubled) | byte_weight(row[1], doubled) << 16;
                out[1] = byte_weight(row[2], doubled) | byte_weight(row[3], doubled) << 16;
                row += 4;
            }
        }
    }
}

#define FOUR_TAPS                                                                                                      \
    do {                                                                                                               \
        uint32_t x0, x1, x2, x3, w0, w1;                                                                               \
        SAAUG_LOAD_PAIR(x0, x1, x);                                                                                    \
        SAAUG_LOAD_PAIR(x2, x3, x);                                                                                    \
        SAAUG_LOAD_PAIR(w0, w1, w);                                                                                    \
        acc00 = saaug_smlad(x0, w0, acc00);                                                                            \
        acc10 = saaug_smlad(x2, w0, acc10);                                                                            \
        acc00 = saaug_smlad(x1, w1, acc00);                                                                            \
        acc10 = saaug_smlad(x3, w1, acc10);                                                                            \
        SAAUG_LOAD_PAIR(w0, w1, w);                                                                                    \
        acc01 = saaug_smlad(x0, w0, acc01);                                                                            \
        acc11 = saaug_smlad(x2, w0, acc11);                                                                            \
        acc01 = saaug_smlad(x1, w1, acc01);                                                                            \
        acc11 = saaug_smlad(x3, w1, acc11);                                                                            \
    } while (0)

/* Channels 0 and 1 of a pair at two positions: the sums of all taps. */
#define FOUR_SUMS(pixels, w, channel, quads, acc00, acc01, acc10, acc11)                                                  \
    do {                                                                                                               \
        const uint32_t *x = pixels;                                                                                    \
        int32_t n = quads;                                                                                             \
        acc00 = acc10 = (channel)[0].bias;                                                                               \
        acc01 = acc11 = (channel)[1].bias;                                                                               \
        do {                                                                                                           \
            FOUR_TAPS;                                                                                                 \
            FOUR_TAPS;                                                                                                 \
            n -= 2;                                                                                                    \
        } while (n != 0);                                                                                              \
    } while (0)

/**
 * An even number of channels at two output positions, `distance` bytes apart in the output. Where there is no second
 * position, the distance is 0 and the pixels are equal.
 */
SAAUG_APART static void simple_channels(const uint32_t *pixels, const uint32_t *w, const saaug_channel *channel,
                                        const saaug_channel *end, int32_t quads, int8_t *output, int32_t distance)
{
    for (; channel != end; channel += 2, output += 2) {
        int32_t acc00, acc01, acc10, acc11, multiplier, rounding, shift;
        FOUR_SUMS(pixels, w, channel, quads, acc00, acc01, acc10, acc11);
        multiplier = channel[0].multiplier;
        rounding = channel[0].rounding;
        shift = channel[0].shift;
        output[0] = saaug_finish_doubled(acc00, multiplier, rounding, shift);
        output[distance] = saaug_finish_doubled(acc10, multiplier, rounding, shift);
        multiplier = channel[1].multiplier;
        rounding = channel[1].rounding;
        shift = channel[1].shift;
        output[1] = saaug_finish_doubled(acc01, multiplier, rounding, shift);
        output[distance + 1] = saaug_finish_doubled(acc11, multiplier, rounding, shift);
    }
}

/* The same for any requantization, and for an odd number of channels, whose last pair has no second. `doubled`: the sums are. */
SAAUG_APART static void any_channels(const uint32_t *pixels, const uint32_t *w, const saaug_channel *channel,
                                     int32_t count, int32_t quads, int8_t *output, int32_t distance,
                                     const int32_t *params, const saaug_options *options, int doubled)
{
    for (; count > 0; channel += 2, output += 2, params += 6, count -= 2) {
        int32_t acc00, acc01, acc10, acc11;
        FOUR_SUMS(pixels, w, channel, quads, acc00, acc01, acc10, acc11);
        output[0] = saaug_finish_any(acc00 >> doubled, params, options);
        output[distance] = saaug_finish_any(acc10 >> doubled, params, options);
        if (count > 1) {
            output[1] = saaug_finish_any(acc01 >> doubled, params + 3, options);
            output[distance + 1] = saaug_finish_any(acc11 >> doubled, params + 3, options);
        }
    }
}

/* One output position: every weight is used once, so the nibbles are looked up on the way. */
SAAUG_APART static void one_position(const uint32_t *pixels, const uint8_t *row0, int32_t row_bytes, int32_t quads,
                                     int32_t count, const saaug_options *options, const int32_t *params,
                                     int8_t *output)
{
    for (; count > 0; count -= 2, params += 6, output += 2) {
        const uint8_t *row1 = row0 + (count > 1 ? row_bytes : 0);
        const uint8_t *const next = row1 + row_bytes;
        const uint32_t *x = pixels;
        int32_t acc0 = 2 * params[0], acc1 = count > 1 ? 2 * params[3] : 0;
        int32_t n;
        for (n = quads; n != 0; --n) {
            uint32_t x0, x1;
            SAAUG_LOAD_PAIR(x0, x1, x);
            acc0 = saaug_smlad(x0, saaug_doubled_pairs[row0[0]], acc0);
            acc0 = saaug_smlad(x1, saaug_doubled_pairs[row0[1]], acc0);
            acc1 = saaug_smlad(x0, saaug_doubled_pairs[row1[0]], acc1);
            acc1 = saaug_smlad(x1, saaug_doubled_pairs[row1[1]], acc1);
            row0 += 2;
            row1 += 2;
        }
        output[0] = saaug_finish_any(acc0 >> 1, params, options);
        if (count > 1) {
            output[1] = saaug_finish_any(acc1 >> 1, params + 3, options);
        }
        row0 = next;
    }
}

saaug_status saaug_shift_conv_2d_s8_dsp(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                        const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const layout sizes = lay_out(options, shape);
    const int32_t taps = options->kernel_h * options->kernel_w * shape->in_c;
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    uint32_t *const pixels = scratch;
    saaug_channel *const channels = (saaug_channel *)(void *)((uint8_t *)scratch + sizes.pixels_bytes);
    uint32_t *const decoded = (uint32_t *)(void *)((uint8_t *)scratch + sizes.pixels_bytes + sizes.channels_bytes);
    int8_t *const staging = (int8_t *)decoded + sizes.weights_bytes;
    const int32_t largest = saaug_largest_code(options, shape, weights);
    const int doubled = largest < SAAUG_INT16_CODE;
    const int dense = saaug_is_dense(options);
    int32_t first, i, p;
    if (largest > SAAUG_INT16_CODE) {
        return saaug_shift_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    if (sizes.block == 0) {
        const saaug_window window = saaug_first_window(options, input);
        expand(saaug_gather(options, shape, &window, staging), taps, pixels, 2);
        one_position(pixels, weights, row_bytes, sizes.quads, shape->out_c, options, params, output);
        return SAAUG_OK;
    }
    if (sizes.padded > sizes.quads) {
        memset(pixels + 4 * sizes.quads, 0, 16);
    }
    for (first = 0; first < shape->out_c; first += sizes.block) {
        const int32_t count = shape->out_c - first < sizes.block ? shape->out_c - first : sizes.block;
        const int simple = saaug_prepare_channels(options, params + 3 * first, count, (count + 1) / 2 * 2,
                                                  doubled, channels);
        const int32_t done = simple ? count / 2 * 2 : 0;
        saaug_window window = saaug_first_window(options, input);
        for (i = 0; i < count; i += 2) {
            const uint8_t *const row = weights + (size_t)(first + i) * (size_t)row_bytes;
            decode_rows(row, i + 1 < count ? row + row_bytes : NULL, options->layout, doubled,
                        sizes.quads, sizes.padded, decoded + (size_t)i * (size_t)sizes.padded * 2);
        }
        for (p = 0; p < sizes.positions; p += 2) {
            const int two = p + 1 < sizes.positions;
            const int32_t distance = two ? shape->out_c : 0;
            int8_t *const to = output + (size_t)p * (size_t)shape->out_c + first;
            if (dense) {
                const int8_t *const pixel = input + (size_t)p * (size_t)taps;
                expand(pixel, taps, pixels, 4);
                expand(pixel + (two ? taps : 0), taps, pixels + 2, 4);
            } else {
                expand(saaug_gather(options, shape, &window, staging), taps, pixels, 4);
                if (two) {
                    saaug_next_window(options, shape, &window);
                }
                expand(saaug_gather(options, shape, &window, staging), taps, pixels + 2, 4);
                saaug_next_window(options, shape, &window);
            }
            simple_channels(pixels, decoded, channels, channels + done, sizes.padded, to, distance);
            if (done < count) {
                any_channels(pixels, decoded + (size_t)done * (size_t)sizes.padded * 2, channels + done, count - done,
                             sizes.padded, to + done, distance, params + 3 * (first + done), options, doubled);
            }
        }
    }
    return SAAUG_OK;
}

#endif
