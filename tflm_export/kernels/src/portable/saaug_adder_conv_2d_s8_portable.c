/* ADDER_CONV_2D, portable: blocks of packed pixels (saaug_blocks.h), distances two at a time (saaug_distance.h). */
#include "saaug_blocks.h"
#include "saaug_distance.h"

#define GROUP_CHANNELS 16 /* that are computed together; pixels are packed once for each group */

typedef struct {
    int32_t taps, chunk, chunks, channels;
    int64_t scales, accs, bytes; /* into scratch, the block being first; all of it */
} layout;

/* For columns of `words` words. */
static layout lay_out(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    layout l;
    l.taps = options->kernel_h * options->kernel_w * shape->in_c;
    l.chunk = l.taps < SAAUG_DISTANCE_TAPS ? l.taps : SAAUG_DISTANCE_TAPS;
    l.chunks = saaug_divide_up(l.taps, l.chunk);
    l.channels = shape->out_c < GROUP_CHANNELS ? shape->out_c : GROUP_CHANNELS;
    l.scales = (int64_t)l.chunk * words * 4;
    l.accs = l.scales + (int64_t)l.channels * (int64_t)sizeof(saaug_bucket_scale);
    l.bytes = l.accs + (int64_t)8 * words * l.channels;
    return l;
}

static int64_t size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    return lay_out(options, shape, words).bytes;
}

SAAUG_PORTABLE_SIZES(saaug_adder_conv_2d_s8, size)

/* Sums of the pixels of each word of the columns. */
static void sum_columns(const uint32_t *block, int32_t taps, uint32_t *sums)
{
    int32_t k;
    for (k = 0; k < SAAUG_WORDS; ++k) {
        sums[k] = 0;
    }
    for (; taps > 0; --taps) {
        for (k = 0; k < SAAUG_WORDS; ++k) {
            sums[k] += block[k];
        }
        block += SAAUG_WORDS;
    }
}

/* Adds the distances of `taps` columns from a channel's weights to its accumulators. */
static void run(const uint32_t *block, const uint8_t *row, int32_t taps, const uint32_t *pixels, int32_t *acc)
{
    const uint32_t ones = saaug_distance_ones();
    int32_t first, t, k;
    for (first = 0; first < SAAUG_WORDS; first += SAAUG_DISTANCE_WORDS) {
        const uint32_t *column = block + first;
        uint32_t parts[SAAUG_DISTANCE_WORDS];
        int32_t weights = -128 * taps;
        for (k = 0; k < SAAUG_DISTANCE_WORDS; ++k) {
            parts[k] = 0;
        }
        for (t = 0; t < taps; ++t) {
            const uint32_t stored = row[t];
            const uint32_t bias = saaug_distance_bias(stored);
            weights += (int32_t)stored;
            for (k = 0; k < SAAUG_DISTANCE_WORDS; ++k) {
                parts[k] += saaug_distance_part(column[k], bias, ones);
            }
            column += SAAUG_WORDS;
        }
        for (k = 0; k < SAAUG_DISTANCE_WORDS; ++k) {
            saaug_distance_spill(parts[k], weights, pixels[first + k], acc + 2 * (first + k));
        }
    }
}

saaug_status saaug_adder_conv_2d_s8_portable(const saaug_options *options, const saaug_shape *shape,
                                             const int8_t *input, const uint8_t *weights, const int32_t *params,
                                             int8_t *output, void *scratch)
{
    const layout l = lay_out(options, shape, SAAUG_WORDS);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const int32_t pixels = shape->batches * shape->out_h * shape->out_w;
    uint32_t *const block = scratch;
    saaug_bucket_scale *const scales = (void *)((uint8_t *)scratch + l.scales);
    int32_t *const accs = (void *)((uint8_t *)scratch + l.accs);
    int32_t p, o, first, chunk, k;
    for (first = 0; first < shape->out_c; first += l.channels) {
        const int32_t channels = shape->out_c - first < l.channels ? shape->out_c - first : l.channels;
        const uint8_t *const rows = weights + (size_t)first * (size_t)row_bytes;
        saaug_block_walk walk = saaug_block_walk_begin(options, shape);
        int8_t *block_output = output + first;
        for (o = 0; o < channels; ++o) {
            saaug_bucket_prepare(params + 3 * (first + o), options, scales + o);
        }
        for (p = 0; p < pixels; p += SAAUG_PIXELS) {
            const int32_t count = pixels - p < SAAUG_PIXELS ? pixels - p : SAAUG_PIXELS;
            const int32_t next = count > 1 ? shape->out_c : 0;
            saaug_block_tap tap = {0, 0, 0, 0, 0};
            saaug_block_window windows[SAAUG_PIXELS];
            int32_t first_tap = 0;
            saaug_block_walk_take(&walk, options, shape, count, windows);
            for (k = 0; k < channels * SAAUG_PIXELS; ++k) {
                accs[k] = 0;
            }
            for (chunk = 0; chunk < l.chunks; ++chunk) {
                const int32_t taps = l.taps - first_tap < l.chunk ? l.taps - first_tap : l.chunk;
                const uint8_t *row = rows + first_tap;
                uint32_t sums[SAAUG_WORDS];
                saaug_blocks_pack(options, shape, input, windows, &tap, taps, SAAUG_WORDS, block);
                sum_columns(block, taps, sums);
                for (o = 0; o < channels; ++o) {
                    run(block, row, taps, sums, accs + o * SAAUG_PIXELS);
                    row += row_bytes;
                }
                first_tap += taps;
            }
            for (o = 0; o < channels; ++o) {
                saaug_bucket_store(accs + o * SAAUG_PIXELS, (count + 1) / 2, count / 2, scales + o, options,
                                   block_output + o, block_output + o + next, 2 * shape->out_c);
            }
            if (p + count < pixels) {
                block_output += count * shape->out_c;
            }
        }
    }
    return SAAUG_OK;
}
