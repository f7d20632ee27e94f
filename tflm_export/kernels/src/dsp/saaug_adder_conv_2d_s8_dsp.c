/**
 * ADDER_CONV_2D for cores with USADA8, which adds four absolute differences to a sum in one instruction. The rows of a block of
 * output channels are copied to scratch, four channels side by side, and stay while all output positions pass by, two at a
 * time: the inner loop is two positions times four channels times four taps.
 */
#include "saaug_dsp.h"

#include "../saaug_gather.h"

/* Rows of one block, in bytes; a block has four channels at least. */
#define BLOCK_BYTES 2560
#define CHANNELS 4

/* Order in scratch: pixels, channels, weights, staging. */
typedef struct {
    int32_t quads;     /* groups of four taps */
    int32_t padded;    /* quads in scratch, even: the inner loop does two */
    int32_t positions; /* of the output, over all batches */
    int32_t block;     /* output channels per block, a multiple of four */
    int64_t pixels_bytes, channels_bytes, weights_bytes;
    int64_t staging_bytes; /* the int8 copy of one window */
} layout;

static layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    layout result;
    const int64_t taps = (int64_t)options->kernel_h * options->kernel_w * shape->in_c;
    const int32_t fours = (shape->out_c + CHANNELS - 1) / CHANNELS;
    int32_t most, blocks;
    result.quads = (int32_t)((taps + 3) / 4);
    result.padded = (result.quads + 1) / 2 * 2;
    result.positions = shape->batches * shape->out_h * shape->out_w;
    most = BLOCK_BYTES / (result.padded * 4 * CHANNELS);
    most = most < 1 ? 1 : most;
    /* Blocks of equal size: the last one should not be a small one. */
    blocks = (fours + most - 1) / most;
    result.block = (fours + blocks - 1) / blocks * CHANNELS;
    result.pixels_bytes = (int64_t)result.padded * 8;
    result.channels_bytes = result.block * (int64_t)sizeof(saaug_channel);
    result.weights_bytes = (int64_t)result.padded * 4 * result.block;
    result.staging_bytes = saaug_is_pointwise(options) ? 0 : (int64_t)result.quads * 4;
    return result;
}

int64_t saaug_adder_conv_2d_s8_dsp_size(const saaug_options *options, const saaug_shape *shape)
{
    const layout sizes = lay_out(options, shape);
    return sizes.pixels_bytes + sizes.channels_bytes + sizes.weights_bytes + sizes.staging_bytes;
}

#if defined(SAAUG_DSP)

/* Offset binary, as the weights are: then unsigned bytes differ by as much as the int8 did. Every other word of `to`. */
SAAUG_APART static void offset_pixels(const int8_t *from, int32_t taps, uint32_t *to)
{
    for (; taps >= 8; taps -= 8, from += 8, to += 4) {
        to[0] = saaug_load_word(from) ^ 0x80808080u;
        to[2] = saaug_load_word(from + 4) ^ 0x80808080u;
    }
    if (taps >= 4) {
        *to = saaug_load_word(from) ^ 0x80808080u;
        from += 4;
        to += 2;
    }
    if ((taps & 3) != 0) {
        /* The padding of weight rows is 0, so it must be 0 here too. */
        *to = saaug_load_part(from, taps & 3) ^ (0x80808080u & (((uint32_t)1 << 8 * (taps & 3)) - 1));
    }
}

/**
 * Word after word of four rows side by side, the last of an odd number followed by zeros. The results of rows beyond `count` are never stored: they
 * repeat the last one.
 */
static void interleave_rows(const uint8_t *rows, int32_t row_bytes, int32_t count, int32_t quads, uint32_t *to)
{
    int32_t i, n;
    for (i = 0; i < CHANNELS; ++i) {
        const uint8_t *row = rows + (size_t)(i < count ? i : count - 1) * (size_t)row_bytes;
        uint32_t *out = to + i;
        for (n = quads; n > 1; n -= 2, row += 8, out += 2 * CHANNELS) {
            out[0] = saaug_load_word(row);
            out[CHANNELS] = saaug_load_word(row + 4);
        }
        if (n != 0) {
            out[0] = saaug_load_word(row);
            out[CHANNELS] = 0;
        }
    }
}

/* One group of four taps: two words of pixels, four of weights, eight sums. */
#if defined(__arm__) && defined(__OPTIMIZE__)
/* Thirteen of the fourteen registers; left to itself the compiler keeps sums in memory. */
#define FOUR_TAPS                                                                                                      \
    do {                                                                                                               \
        uint32_t x0, x1, row;                                                                                          \
        __asm__("ldrd %[x0], %[x1], [%[x]], #8\n\t"                                                                    \
                "ldr %[row], [%[w]], #4\n\t"                                                                           \
                "usada8 %[s00], %[x0], %[row], %[s00]\n\t"                                                             \
                "usada8 %[s10], %[x1], %[row], %[s10]\n\t"                                                             \
                "ldr %[row], [%[w]], #4\n\t"                                                                           \
                "usada8 %[s01], %[x0], %[row], %[s01]\n\t"                                                             \
                "usada8 %[s11], %[x1], %[row], %[s11]\n\t"                                                             \
                "ldr %[row], [%[w]], #4\n\t"                                                                           \
                "usada8 %[s02], %[x0], %[row], %[s02]\n\t"                                                             \
                "usada8 %[s12], %[x1], %[row], %[s12]\n\t"                                                             \
                "ldr %[row], [%[w]], #4\n\t"                                                                           \
                "usada8 %[s03], %[x0], %[row], %[s03]\n\t"                                                             \
                "usada8 %[s13], %[x1], %[row], %[s13]"                                                                 \
                : [x0] "=&r"(x0), [x1] "=&r"(x1), [row] "=&r"(row), [x] "+r"(x), [w] "+r"(w), [s00] "+r"(sum00),       \
                  [s01] "+r"(sum01), [s02] "+r"(sum02), [s03] "+r"(sum03), [s10] "+r"(sum10), [s11] "+r"(sum11),       \
                  [s12] "+r"(sum12), [s13] "+r"(sum13)                                                                 \
                :                                                                                                      \
                : "memory");                                                                                           \
    } while (0)
#else
#define FOUR_TAPS                                                                                                      \
    do {                                                                                                               \
        const uint32_t x0 = x[0], x1 = x[1];                                                                           \
        sum00 = saaug_usada8(x0, w[0], sum00);                                                                         \
        sum10 = saaug_usada8(x1, w[0], sum10);                                                                         \
        sum01 = saaug_usada8(x0, w[1], sum01);                                                                         \
        sum11 = saaug_usada8(x1, w[1], sum11);                                                                         \
        sum02 = saaug_usada8(x0, w[2], sum02);                                                                         \
        sum12 = saaug_usada8(x1, w[2], sum12);                                                                         \
        sum03 = saaug_usada8(x0, w[3], sum03);                                                                         \
        sum13 = saaug_usada8(x1, w[3], sum13);                                                                         \
        x += 2;                                                                                                        \
        w += CHANNELS;                                                                                                 \
    } while (0)
#endif

/* Sums of four channels at two positions; `quads` is even. */
#define EIGHT_SUMS(pixels, w, quads)                                                                                   \
    do {                                                                                                               \
        const uint32_t *x = pixels;                                                                                    \
        int32_t n = quads;                                                                                             \
        sum00 = sum01 = sum02 = sum03 = sum10 = sum11 = sum12 = sum13 = 0;                                             \
        do {                                                                                                           \
            FOUR_TAPS;                                                                                                 \
            FOUR_TAPS;                                                                                                 \
            n -= 2;                                                                                                    \
        } while (n != 0);                                                                                              \
    } while (0)

/* Stores two positions of channel `index` of a group of four, whose constants are next at `word`. */
#define FINISH(index, sum0, sum1)                                                                                      \
    do {                                                                                                               \
        uint32_t bias, multiplier, rounding, shift;                                                                    \
        int32_t twice0, twice1;                                                                                        \
        SAAUG_LOAD_PAIR(bias, multiplier, word);                                                                       \
        SAAUG_LOAD_PAIR(rounding, shift, word);                                                                        \
        twice0 = (int32_t)(bias + ((sum0) << (SAAUG_ADDER_SCALE_LOG2 + 1)));                                           \
        twice1 = (int32_t)(bias + ((sum1) << (SAAUG_ADDER_SCALE_LOG2 + 1)));                                           \
        output[index] = saaug_finish_doubled(twice0, (int32_t)multiplier, (int32_t)rounding, (int32_t)shift);          \
        output[distance + (index)] =                                                                                   \
            saaug_finish_doubled(twice1, (int32_t)multiplier, (int32_t)rounding, (int32_t)shift);                      \
    } while (0)

/**
 * `count` channels, a multiple of four, at two output positions, `distance` bytes apart in the output. Where there is no second
 * position, the distance is 0 and the pixels are equal.
 */
SAAUG_APART static void simple_channels(const uint32_t *pixels, const uint32_t *w, const saaug_channel *channels,
                                        int32_t count, int32_t quads, int8_t *output, int32_t distance)
{
    const uint32_t *word = (const uint32_t *)(const void *)channels;
    for (; count > 0; count -= CHANNELS, output += CHANNELS) {
        uint32_t sum00, sum01, sum02, sum03, sum10, sum11, sum12, sum13;
        EIGHT_SUMS(pixels, w, quads);
        FINISH(0, sum00, sum10);
        FINISH(1, sum01, sum11);
        FINISH(2, sum02, sum12);
        FINISH(3, sum03, sum13);
    }
}

/* The same for any requantization and any number of channels. */
SAAUG_APART static void any_channels(const uint32_t *pixels, const uint32_t *w, int32_t count, int32_t quads,
                                     int8_t *output, int32_t distance, const int32_t *params,
                                     const saaug_options *options)
{
    int32_t i;
    for (; count > 0; count -= CHANNELS, output += CHANNELS, params += 3 * CHANNELS) {
        uint32_t sum00, sum01, sum02, sum03, sum10, sum11, sum12, sum13;
        int32_t sums[2 * CHANNELS];
        EIGHT_SUMS(pixels, w, quads);
        sums[0] = (int32_t)sum00;
        sums[1] = (int32_t)sum01;
        sums[2] = (int32_t)sum02;
        sums[3] = (int32_t)sum03;
        sums[4] = (int32_t)sum10;
        sums[5] = (int32_t)sum11;
        sums[6] = (int32_t)sum12;
        sums[7] = (int32_t)sum13;
        for (i = 0; i < CHANNELS && i < count; ++i) {
            const int32_t *const mine = params + 3 * i;
            output[i] = saaug_finish_any(saaug_adder_accumulator(sums[i], mine), mine, options);
            output[distance + i] =
                saaug_finish_any(saaug_adder_accumulator(sums[CHANNELS + i], mine), mine, options);
        }
    }
}

saaug_status saaug_adder_conv_2d_s8_dsp(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                        const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const layout sizes = lay_out(options, shape);
    const int32_t taps = options->kernel_h * options->kernel_w * shape->in_c;
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    uint32_t *const pixels = scratch;
    saaug_channel *const channels = (saaug_channel *)(void *)((uint8_t *)scratch + sizes.pixels_bytes);
    uint32_t *const rows = (uint32_t *)(void *)((uint8_t *)scratch + sizes.pixels_bytes + sizes.channels_bytes);
    int8_t *const staging = (int8_t *)rows + sizes.weights_bytes;
    const int dense = saaug_is_dense(options);
    int32_t first, i, p;
    if (sizes.padded > sizes.quads) {
        memset(pixels + 2 * sizes.quads, 0, 8);
    }
    for (first = 0; first < shape->out_c; first += sizes.block) {
        const int32_t count = shape->out_c - first < sizes.block ? shape->out_c - first : sizes.block;
        const int simple = saaug_prepare_channels(options, params + 3 * first, count, (count + 3) / 4 * 4, 1, channels);
        const int32_t done = simple ? count / CHANNELS * CHANNELS : 0;
        saaug_window window = saaug_first_window(options, input);
        for (i = 0; i < count; i += CHANNELS) {
            interleave_rows(weights + (size_t)(first + i) * (size_t)row_bytes, row_bytes, count - i, sizes.quads,
                            rows + (size_t)i * (size_t)sizes.padded);
        }
        for (p = 0; p < sizes.positions; p += 2) {
            const int two = p + 1 < sizes.positions;
            const int32_t distance = two ? shape->out_c : 0;
            int8_t *const to = output + (size_t)p * (size_t)shape->out_c + first;
            if (dense) {
                const int8_t *const pixel = input + (size_t)p * (size_t)taps;
                offset_pixels(pixel, taps, pixels);
                offset_pixels(pixel + (two ? taps : 0), taps, pixels + 1);
            } else {
                offset_pixels(saaug_gather(options, shape, &window, staging), taps, pixels);
                if (two) {
                    saaug_next_window(options, shape, &window);
                }
                offset_pixels(saaug_gather(options, shape, &window, staging), taps, pixels + 1);
                saaug_next_window(options, shape, &window);
            }
            simple_channels(pixels, rows, channels, done, sizes.padded, to, distance);
            if (done < count) {
                any_channels(pixels, rows + (size_t)done * (size_t)sizes.padded, count - done, sizes.padded, to + done,
                             distance, params + 3 * (first + done), options);
            }
        }
    }
    return SAAUG_OK;
}

#endif
