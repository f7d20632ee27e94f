/* SHIFT_CONV_2D, portable: a group of output channels at a time as programs (saaug_bucket.h), and for each group all
 * blocks of pixels, packed once a group. More taps than a program has come in chunks of taps; their sums wait in
 * accumulators for a tile of blocks. */
#include "saaug_blocks.h"

#define PROGRAM_BYTES 6144 /* of a group of channels; more channels in a group mean that pixels are packed less often */
#define TILE_BLOCKS 8

typedef struct {
    int32_t taps, chunk, chunks;           /* taps of a channel, of a chunk; chunks of a channel */
    int32_t channels, length;              /* channels of a group; uint16 of a program */
    int32_t pixels, tile;                  /* output positions; blocks of a tile */
    int64_t programs, scales, accs, bytes; /* offsets into scratch, the block being first; all of it */
} layout;

/* For columns of `words` words. */
static layout lay_out(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    layout l;
    int32_t groups;
    l.taps = options->kernel_h * options->kernel_w * shape->in_c;
    l.chunks = saaug_divide_up(l.taps, SAAUG_PROGRAM_TAPS);
    l.chunk = saaug_divide_up(saaug_divide_up(l.taps, l.chunks), 4) * 4;
    l.chunks = saaug_divide_up(l.taps, l.chunk);
    l.length = saaug_bucket_program_length(l.chunk, options->layout);
    groups = saaug_divide_up(shape->out_c, PROGRAM_BYTES / (2 * l.length));
    l.channels = saaug_divide_up(shape->out_c, groups);
    l.pixels = shape->batches * shape->out_h * shape->out_w;
    l.tile = saaug_divide_up(l.pixels, 2 * words);
    if (l.chunks > 1 && l.tile > TILE_BLOCKS) {
        l.tile = TILE_BLOCKS;
    }
    l.programs = (int64_t)l.chunk * words * 4;
    l.scales = l.programs + (int64_t)l.channels * l.length * 2;
    l.accs = l.scales + (int64_t)l.channels * (int64_t)sizeof(saaug_bucket_scale);
    l.bytes = l.accs + (int64_t)8 * words * (l.chunks > 1 ? l.tile * l.channels : 1);
    return l;
}

static int64_t size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    return lay_out(options, shape, words).bytes;
}

SAAUG_PORTABLE_SIZES(saaug_shift_conv_2d_s8, size)

saaug_status saaug_shift_conv_2d_s8_portable(const saaug_options *options, const saaug_shape *shape,
                                             const int8_t *input, const uint8_t *weights, const int32_t *params,
                                             int8_t *output, void *scratch)
{
    const layout l = lay_out(options, shape, SAAUG_WORDS);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    uint32_t *const block = scratch;
    uint16_t *const programs = (void *)((uint8_t *)scratch + l.programs);
    saaug_bucket_scale *const scales = (void *)((uint8_t *)scratch + l.scales);
    int32_t *const accs = (void *)((uint8_t *)scratch + l.accs);
    saaug_block_walk tile_start = saaug_block_walk_begin(options, shape);
    int32_t first_pixel, first_channel, chunk, o, p;
    for (first_pixel = 0; first_pixel < l.pixels;) {
        const int32_t room = l.tile * SAAUG_PIXELS;
        const int32_t pixels = l.pixels - first_pixel < room ? l.pixels - first_pixel : room;
        int8_t *const tile_output = output + (size_t)first_pixel * (size_t)shape->out_c;
        saaug_block_walk walk = tile_start;
        for (first_channel = 0; first_channel < shape->out_c; first_channel += l.channels) {
            const int32_t left = shape->out_c - first_channel;
            const int32_t channels = left < l.channels ? left : l.channels;
            const uint8_t *const rows = weights + (size_t)first_channel * (size_t)row_bytes;
            saaug_block_tap chunk_start = {0, 0, 0, 0, 0};
            for (o = 0; o < channels; ++o) {
                saaug_bucket_prepare(params + 3 * (first_channel + o), options, scales + o);
            }
            for (chunk = 0; chunk < l.chunks; ++chunk) {
                const int32_t first_tap = chunk * l.chunk;
                const int32_t taps = l.taps - first_tap < l.chunk ? l.taps - first_tap : l.chunk;
                const uint8_t *row = rows;
                uint16_t *program = programs;
                size_t block_offset = (size_t)first_channel;
                int32_t *acc = accs;
                saaug_block_tap tap = chunk_start;
                for (o = 0; o < channels; ++o) {
                    saaug_bucket_program(row, options->layout, first_tap, taps, NULL, chunk > 0, program);
                    row += row_bytes;
                    program += l.length;
                }
                walk = tile_start;
                for (p = 0; p < pixels; p += SAAUG_PIXELS) {
                    const int32_t count = pixels - p < SAAUG_PIXELS ? pixels - p : SAAUG_PIXELS;
                    saaug_block_window windows[SAAUG_PIXELS];
                    int8_t *channel_output = tile_output + block_offset;
                    saaug_block_walk_take(&walk, options, shape, count, windows);
                    tap = chunk_start;
                    /* What is missing of a last block keeps the pixels of the block before it. */
                    saaug_blocks_pack(options, shape, input, windows, &tap, taps, p > 0 ? (count + 1) / 2 : SAAUG_WORDS,
                                      block);
                    program = programs;
                    for (o = 0; o < channels; ++o) {
                        saaug_bucket_run(program, block, acc);
                        if (chunk == l.chunks - 1) {
                            saaug_bucket_store(acc, (count + 1) / 2, count / 2, scales + o, options, channel_output,
                                               channel_output + (count > 1 ? shape->out_c : 0), 2 * shape->out_c);
                        }
                        program += l.length;
                        ++channel_output;
                        if (l.chunks > 1) {
                            acc += SAAUG_PIXELS;
                        }
                    }
                    block_offset += (size_t)SAAUG_PIXELS * (size_t)shape->out_c;
                }
                chunk_start = tap;
            }
        }
        tile_start = walk;
        first_pixel += pixels;
    }
    return SAAUG_OK;
}
