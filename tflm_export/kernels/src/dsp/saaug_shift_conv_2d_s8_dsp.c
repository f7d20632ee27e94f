/**
 * SHIFT_CONV_2D for cores with SMLAD. A core that multiplies two 16-bit pairs in one instruction has nothing to gain from
 * shifting: the nibbles become pairs of int16, once per call for a block of output channels, and the block stays in scratch
 * while all output positions pass by, two at a time. The inner loop is two positions times two channels times four taps.
 */
#include "saaug_dsp.h"

#if defined(SAAUG_DSP)
#include "../saaug_gather.h"

/* Decoded weights of one block, in bytes; a block has two channels at least. */
#define BLOCK_BYTES 4096

/* Order in scratch: pixels, channels, weights, staging. */
typedef struct {
    int32_t quads;     /* groups of four taps */
    int32_t positions; /* of the output, over all batches */
    int32_t block;     /* output channels per block, even; 0: one position, the weights are read directly */
    int64_t pixels_bytes, channels_bytes, weights_bytes;
    int64_t staging_bytes; /* the int8 copy of one window */
} layout;

static layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    layout result;
    const int64_t taps = (int64_t)options->kernel_h * options->kernel_w * shape->in_c;
    const int64_t most = BLOCK_BYTES / ((taps + 3) / 4 * 8);
    const int32_t even = (shape->out_c + 1) / 2 * 2;
    result.quads = (int32_t)((taps + 3) / 4);
    result.positions = shape->batches * shape->out_h * shape->out_w;
    result.staging_bytes = saaug_is_pointwise(options) ? 0 : (int64_t)result.quads * 4;
    if (result.positions == 1 && options->layout == SAAUG_LAYOUT_NIBBLE) {
        result.block = 0;
        result.pixels_bytes = (int64_t)result.quads * 8;
        result.channels_bytes = 2 * (int64_t)sizeof(saaug_channel);
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
    result.pixels_bytes = (int64_t)result.quads * 16;
    result.channels_bytes = result.block * (int64_t)sizeof(saaug_channel);
    result.weights_bytes = (int64_t)result.quads * 8 * result.block;
    return result;
}

/* Does a weight of 2^15 occur, which int16 does not hold? */
static int exceeds_int16(const saaug_options *options, const saaug_shape *shape, const uint8_t *weights)
{
    int32_t i;
    if (options->layout == SAAUG_LAYOUT_BYTE) {
        for (i = 0; i < saaug_weights_bytes(options, shape); ++i) {
            if (weights[i] == 16 || weights[i] == 256 - 16) {
                return 1;
            }
        }
    }
    return 0;
}

/* K int8 values to pairs of int16; `step` words from one quad to the next. */
static void expand(const int8_t *from, int32_t taps, uint32_t *to, int32_t step)
{
    int32_t n;
    for (n = taps; n >= 4; n -= 4, from += 4, to += step) {
        const uint32_t bytes = saaug_load_word(from);
        const uint32_t even = saaug_even_bytes(bytes), odd = saaug_odd_bytes(bytes);
        to[0] = saaug_low_halves(even, odd);
        to[1] = saaug_high_halves(even, odd);
    }
    if (n > 0) {
        const uint32_t bytes = saaug_load_part(from, n);
        const uint32_t even = saaug_even_bytes(bytes), odd = saaug_odd_bytes(bytes);
        to[0] = saaug_low_halves(even, odd);
        to[1] = saaug_high_halves(even, odd);
    }
}

static uint32_t byte_weight(uint8_t code)
{
    const uint32_t negative = code > 127;
    const uint32_t magnitude = negative ? 256u - code : code;
    const uint32_t weight = magnitude == 0 ? 0 : (uint32_t)1 << (magnitude - 1);
    return (negative ? 0u - weight : weight) & 0xFFFFu;
}

/* The rows of two channels, quad by quad side by side; a NULL row is zero. */
static void decode_rows(const uint8_t *first, const uint8_t *second, int32_t layout_id, int32_t quads, uint32_t *to)
{
    const uint8_t *rows[2];
    int32_t n, i;
    rows[0] = first;
    rows[1] = second;
    for (i = 0; i < 2; ++i) {
        const uint8_t *row = rows[i];
        uint32_t *out = to + 2 * i;
        for (n = 0; n < quads; ++n, out += 4) {
            if (row == NULL) {
                out[0] = 0;
                out[1] = 0;
            } else if (layout_id == SAAUG_LAYOUT_NIBBLE) {
                out[0] = saaug_nibble_pairs[row[0]];
                out[1] = saaug_nibble_pairs[row[1]];
                row += 2;
            } else {
                out[0] = byte_weight(row[0]) | byte_weight(row[1]) << 16;
                out[1] = byte_weight(row[2]) | byte_weight(row[3]) << 16;
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

/* All channels of a block at two output positions. Where there is no second position, out1 is out0 and the pixels are equal. */
static void two_positions(const uint32_t *pixels, const uint32_t *w, const saaug_channel *channel, int32_t quads,
                          int32_t count, int simple, const int32_t *params, const saaug_options *options, int8_t *out0,
                          int8_t *out1)
{
    for (; count > 0; count -= 2, channel += 2, params += 6, out0 += 2, out1 += 2) {
        const uint32_t *x = pixels;
        int32_t acc00 = channel[0].bias, acc01 = channel[1].bias, acc10 = acc00, acc11 = acc01;
        int32_t n = quads >> 1;
        if ((quads & 1) != 0) {
            FOUR_TAPS;
        }
        for (; n != 0; --n) {
            FOUR_TAPS;
            FOUR_TAPS;
        }
        if (simple) {
            int32_t multiplier = channel[0].multiplier, rounding = channel[0].rounding, shift = channel[0].shift;
            out0[0] = saaug_finish_simple(acc00, multiplier, rounding, shift);
            out1[0] = saaug_finish_simple(acc10, multiplier, rounding, shift);
            if (count > 1) {
                multiplier = channel[1].multiplier;
                rounding = channel[1].rounding;
                shift = channel[1].shift;
                out0[1] = saaug_finish_simple(acc01, multiplier, rounding, shift);
                out1[1] = saaug_finish_simple(acc11, multiplier, rounding, shift);
            }
        } else {
            out0[0] = saaug_requantize(acc00, params, options);
            out1[0] = saaug_requantize(acc10, params, options);
            if (count > 1) {
                out0[1] = saaug_requantize(acc01, params + 3, options);
                out1[1] = saaug_requantize(acc11, params + 3, options);
            }
        }
    }
}

/* One output position: every weight is used once, so the nibbles are looked up on the way. */
static void one_position(const uint32_t *pixels, const uint8_t *weights, int32_t row_bytes, int32_t quads,
                         const saaug_options *options, const saaug_shape *shape, const int32_t *params, int8_t *output,
                         saaug_channel *channels)
{
    int32_t o;
    for (o = 0; o < shape->out_c; o += 2, params += 6) {
        const int32_t count = shape->out_c - o > 1 ? 2 : 1;
        const int simple = saaug_prepare_channels(options, params, 0, count, 2, channels);
        const uint8_t *row0 = weights + (size_t)o * (size_t)row_bytes;
        const uint8_t *row1 = row0 + (count > 1 ? row_bytes : 0);
        const uint32_t *x = pixels;
        int32_t acc0 = channels[0].bias, acc1 = channels[1].bias;
        int32_t n;
        for (n = quads; n != 0; --n) {
            uint32_t x0, x1;
            SAAUG_LOAD_PAIR(x0, x1, x);
            acc0 = saaug_smlad(x0, saaug_nibble_pairs[row0[0]], acc0);
            acc0 = saaug_smlad(x1, saaug_nibble_pairs[row0[1]], acc0);
            acc1 = saaug_smlad(x0, saaug_nibble_pairs[row1[0]], acc1);
            acc1 = saaug_smlad(x1, saaug_nibble_pairs[row1[1]], acc1);
            row0 += 2;
            row1 += 2;
        }
        output[o] = simple ? saaug_finish_simple(acc0, channels[0].multiplier, channels[0].rounding, channels[0].shift)
                           : saaug_requantize(acc0, params, options);
        if (count > 1) {
            output[o + 1] = simple ? saaug_finish_simple(acc1, channels[1].multiplier, channels[1].rounding,
                                                         channels[1].shift)
                                   : saaug_requantize(acc1, params + 3, options);
        }
    }
}

int64_t saaug_shift_conv_2d_s8_dsp_size(const saaug_options *options, const saaug_shape *shape)
{
    const layout sizes = lay_out(options, shape);
    return sizes.pixels_bytes + sizes.channels_bytes + sizes.weights_bytes + sizes.staging_bytes;
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
    int32_t first, i, p;
    if (exceeds_int16(options, shape, weights)) {
        return saaug_shift_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    if (sizes.block == 0) {
        const saaug_window window = saaug_first_window(options, input);
        expand(saaug_gather(options, shape, &window, staging), taps, pixels, 2);
        one_position(pixels, weights, row_bytes, sizes.quads, options, shape, params, output, channels);
        return SAAUG_OK;
    }
    for (first = 0; first < shape->out_c; first += sizes.block) {
        const int32_t count = shape->out_c - first < sizes.block ? shape->out_c - first : sizes.block;
        const int simple = saaug_prepare_channels(options, params, first, count, (count + 1) / 2 * 2, channels);
        saaug_window window = saaug_first_window(options, input);
        for (i = 0; i < count; i += 2) {
            const uint8_t *const row = weights + (size_t)(first + i) * (size_t)row_bytes;
            decode_rows(row, i + 1 < count ? row + row_bytes : NULL, options->layout, sizes.quads,
                        decoded + (size_t)i * (size_t)sizes.quads * 2);
        }
        for (p = 0; p < sizes.positions; p += 2) {
            const int two = p + 1 < sizes.positions;
            int8_t *const out0 = output + (size_t)p * (size_t)shape->out_c + first;
            for (i = 0; i < 2; ++i) {
                expand(saaug_gather(options, shape, &window, staging), taps, pixels + 2 * i, 4);
                if (two) {
                    saaug_next_window(options, shape, &window);
                }
            }
            two_positions(pixels, decoded, channels, sizes.quads, count, simple, params + 3 * first, options, out0,
                          two ? out0 + shape->out_c : out0);
        }
    }
    return SAAUG_OK;
}

#else
typedef int saaug_this_file_is_for_dsp_cores;
#endif
