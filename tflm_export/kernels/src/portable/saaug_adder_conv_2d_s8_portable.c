/* ADDER_CONV_2D, portable: blocks of pixels (saaug_blocks.h), distances by table (saaug_distance_table.h). */
#include "saaug_distance_table.h"

#define GROUP_CHANNELS 32 /* that are computed together; pixels find their places once for each group */

typedef struct {
    int32_t taps, chunk, chunks, channels;
    int64_t block, scales, accs, bytes; /* into scratch, the table being first; all of it */
} layout;

/* For columns of `words` words. */
static layout lay_out(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    layout l;
    l.taps = options->kernel_h * options->kernel_w * shape->in_c;
    l.chunks = saaug_divide_up(l.taps, SAAUG_DISTANCE_BLOCK_TAPS);
    l.chunk = saaug_divide_up(saaug_divide_up(l.taps, l.chunks), 4) * 4;
    l.chunks = saaug_divide_up(l.taps, l.chunk);
    l.channels = shape->out_c < GROUP_CHANNELS ? shape->out_c : GROUP_CHANNELS;
    l.block = SAAUG_DISTANCE_TABLE_BYTES;
    l.scales = l.block + (int64_t)l.chunk * words * 8;
    l.accs = l.scales + (int64_t)l.channels * (int64_t)sizeof(saaug_bucket_scale);
    l.bytes = l.accs + (int64_t)8 * words * l.channels;
    return l;
}

static int64_t size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    return lay_out(options, shape, words).bytes;
}

SAAUG_PORTABLE_SIZES(saaug_adder_conv_2d_s8, size)

/* Adds a block's distances to a channel's accumulators, or sets them to those of the first one. */
static inline void add_distances(const uint32_t *block, const uint8_t *table, const uint8_t *row, int32_t taps,
                                 int32_t positions, int first, int32_t *acc)
{
    int32_t more[SAAUG_PIXELS], k;
    saaug_distance_sums(block, table, row, saaug_divide_up(taps, 4), positions, first ? acc : more);
    if (!first) {
        for (k = 0; k < positions; ++k) {
            acc[k] += more[k];
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
    uint8_t *const table = scratch;
    uint32_t *const block = (void *)((uint8_t *)scratch + l.block);
    saaug_bucket_scale *const scales = (void *)((uint8_t *)scratch + l.scales);
    int32_t *const accs = (void *)((uint8_t *)scratch + l.accs);
    int32_t p, o, first, chunk;
    saaug_distance_table(table);
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
            for (chunk = 0; chunk < l.chunks; ++chunk) {
                const int32_t taps = l.taps - first_tap < l.chunk ? l.taps - first_tap : l.chunk;
                saaug_distance_places(options, shape, input, windows, &tap, taps, count, table, block);
                for (o = 0; o < channels; ++o) {
                    const uint8_t *const row = rows + first_tap + (size_t)o * (size_t)row_bytes;
                    add_distances(block, table, row, taps, count, chunk == 0, accs + o * SAAUG_PIXELS);
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
