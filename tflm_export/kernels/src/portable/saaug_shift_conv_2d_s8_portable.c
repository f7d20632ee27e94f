/* SHIFT_CONV_2D, portable: a group of output channels at a time as programs (saaug_bucket.h), and for each group all
 * blocks of pixels, packed once a group. More taps than a program has come in chunks of taps; their sums wait in
 * accumulators for a tile of blocks. */
#include "saaug_bucket.h"

#define PROGRAM_BYTES 6144 /* of a group of channels; more channels in a group mean that pixels are packed less often */
#define TILE_BLOCKS 8

typedef struct {
    int32_t taps, chunk, chunks;           /* taps of a channel, of a chunk; chunks of a channel */
    int32_t channels, length;              /* channels of a group; uint16 of a program */
    int32_t pixels, tile;                  /* output positions; blocks of a tile */
    int64_t programs, scales, accs, bytes; /* offsets into scratch, the block being first; all of it */
} layout;

static int32_t divide_up(int32_t value, int32_t by) { return value / by + (value % by != 0); }

static layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    layout l;
    int32_t groups;
    l.taps = options->kernel_h * options->kernel_w * shape->in_c;
    l.chunks = divide_up(l.taps, SAAUG_PROGRAM_TAPS);
    l.chunk = divide_up(divide_up(l.taps, l.chunks), 4) * 4;
    l.chunks = divide_up(l.taps, l.chunk);
    l.length = saaug_bucket_program_length(l.chunk, options->layout);
    groups = divide_up(shape->out_c, PROGRAM_BYTES / (2 * l.length));
    l.channels = divide_up(shape->out_c, groups);
    l.pixels = shape->batches * shape->out_h * shape->out_w;
    l.tile = divide_up(l.pixels, SAAUG_PIXELS);
    if (l.chunks > 1 && l.tile > TILE_BLOCKS) {
        l.tile = TILE_BLOCKS;
    }
    l.programs = (int64_t)l.chunk * SAAUG_COLUMN_BYTES;
    l.scales = l.programs + (int64_t)l.channels * l.length * 2;
    l.accs = l.scales + (int64_t)l.channels * (int64_t)sizeof(saaug_channel);
    l.bytes = l.accs + (int64_t)4 * SAAUG_PIXELS * (l.chunks > 1 ? l.tile * l.channels : 1);
    return l;
}

int64_t saaug_shift_conv_2d_s8_portable_size(const saaug_options *options, const saaug_shape *shape)
{
    return lay_out(options, shape).bytes;
}

/* Where the window of an output position begins in the input, which may be outside of it. Offsets are modulo 2^32: only
 * those of pixels inside are used. */
typedef struct {
    int32_t top, left;
    uint32_t offset;
} window;

/* A walk over the output positions of all batches, without multiplication from one to the next. */
typedef struct {
    window at;
    int32_t y, x;
    uint32_t column_step, row_step, batch_step;
} walk;

static walk begin(const saaug_options *options, const saaug_shape *shape)
{
    const uint32_t channels = (uint32_t)shape->in_c, width = (uint32_t)shape->in_w * channels;
    walk w;
    w.at.top = -options->pad_top;
    w.at.left = -options->pad_left;
    w.at.offset = (uint32_t)w.at.top * width + (uint32_t)w.at.left * channels;
    w.y = 0;
    w.x = 0;
    w.column_step = (uint32_t)options->stride_w * channels;
    w.row_step = (uint32_t)options->stride_h * width - (uint32_t)shape->out_w * w.column_step;
    w.batch_step = ((uint32_t)shape->in_h - (uint32_t)shape->out_h * (uint32_t)options->stride_h) * width;
    return w;
}

static void advance(walk *w, const saaug_options *options, const saaug_shape *shape)
{
    w->at.left += options->stride_w;
    w->at.offset += w->column_step;
    if (++w->x == shape->out_w) {
        w->x = 0;
        w->at.left = -options->pad_left;
        w->at.top += options->stride_h;
        w->at.offset += w->row_step;
        if (++w->y == shape->out_h) {
            w->y = 0;
            w->at.top = -options->pad_top;
            w->at.offset += w->batch_step;
        }
    }
}

/* A tap of the window: kernel column, input channel, and where its pixel is from the window's. */
typedef struct {
    int32_t j, c, down, right;
    uint32_t offset;
} tap;

static const int8_t *find(const saaug_shape *shape, const int8_t *input, const window *at, const tap *t)
{
    if ((uint32_t)(at->top + t->down) >= (uint32_t)shape->in_h || (uint32_t)(at->left + t->right) >= (uint32_t)shape->in_w) {
        return NULL;
    }
    return input + (at->offset + t->offset);
}

/* Two pixels' channels into the same word of successive columns. */
static void pack_pair(const int8_t *low, const int8_t *high, int32_t count, uint32_t *words)
{
    for (; count >= 4; count -= 4) {
        words[0] = saaug_pair(low[0], high[0]);
        words[SAAUG_WORDS] = saaug_pair(low[1], high[1]);
        words[2 * SAAUG_WORDS] = saaug_pair(low[2], high[2]);
        words[3 * SAAUG_WORDS] = saaug_pair(low[3], high[3]);
        low += 4;
        high += 4;
        words += 4 * SAAUG_WORDS;
    }
    for (; count > 0; --count) {
        *words = saaug_pair(*low++, *high++);
        words += SAAUG_WORDS;
    }
}

/* The same with pixels outside of the image, NULL. */
static void pack_pair_outside(const int8_t *low, const int8_t *high, int32_t count, int32_t zero_point, uint32_t *words)
{
    int32_t c;
    for (c = 0; c < count; ++c) {
        *words = saaug_pair(low != NULL ? low[c] : zero_point, high != NULL ? high[c] : zero_point);
        words += SAAUG_WORDS;
    }
}

/* Packs `count` taps from *t on, and leaves the tap after them in *t. */
static void pack(const saaug_options *options, const saaug_shape *shape, const int8_t *input, const window *windows, tap *t,
                 int32_t count, uint32_t *words)
{
    const uint32_t right_step = (uint32_t)(options->dilation_w * shape->in_c);
    const uint32_t down_step = (uint32_t)(options->dilation_h * shape->in_w) * (uint32_t)shape->in_c -
                               (uint32_t)options->kernel_w * right_step;
    while (count > 0) {
        const int32_t run = count < shape->in_c - t->c ? count : shape->in_c - t->c;
        int32_t k;
        for (k = 0; k < SAAUG_WORDS; ++k) {
            const int8_t *const low = find(shape, input, windows + 2 * k, t);
            const int8_t *const high = find(shape, input, windows + 2 * k + 1, t);
            if (low != NULL && high != NULL) {
                pack_pair(low + t->c, high + t->c, run, words + k);
            } else {
                pack_pair_outside(low != NULL ? low + t->c : NULL, high != NULL ? high + t->c : NULL, run,
                                  options->input_zero_point, words + k);
            }
        }
        words += run * SAAUG_WORDS;
        count -= run;
        t->c += run;
        if (t->c == shape->in_c) {
            t->c = 0;
            t->right += options->dilation_w;
            t->offset += right_step;
            if (++t->j == options->kernel_w) {
                t->j = 0;
                t->right = 0;
                t->down += options->dilation_h;
                t->offset += down_step;
            }
        }
    }
}

saaug_status saaug_shift_conv_2d_s8_portable(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                             const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const layout l = lay_out(options, shape);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    uint32_t *const block = scratch;
    uint16_t *const programs = (void *)((uint8_t *)scratch + l.programs);
    saaug_channel *const scales = (void *)((uint8_t *)scratch + l.scales);
    int32_t *const accs = (void *)((uint8_t *)scratch + l.accs);
    walk tile_start = begin(options, shape);
    int32_t first_pixel, first_channel, chunk, o, p;
    for (first_pixel = 0; first_pixel < l.pixels;) {
        const int32_t room = l.tile * SAAUG_PIXELS;
        const int32_t pixels = l.pixels - first_pixel < room ? l.pixels - first_pixel : room;
        int8_t *const tile_output = output + (size_t)first_pixel * (size_t)shape->out_c;
        walk w = tile_start;
        for (first_channel = 0; first_channel < shape->out_c; first_channel += l.channels) {
            const int32_t left = shape->out_c - first_channel;
            const int32_t channels = left < l.channels ? left : l.channels;
            const uint8_t *const rows = weights + (size_t)first_channel * (size_t)row_bytes;
            tap chunk_start = {0, 0, 0, 0, 0};
            for (o = 0; o < channels; ++o) {
                saaug_bucket_channel(params + 3 * (first_channel + o), options, scales + o);
            }
            for (chunk = 0; chunk < l.chunks; ++chunk) {
                const int32_t first_tap = chunk * l.chunk;
                const int32_t taps = l.taps - first_tap < l.chunk ? l.taps - first_tap : l.chunk;
                const uint8_t *row = rows;
                uint16_t *program = programs;
                int8_t *block_output = tile_output + first_channel;
                int32_t *acc = accs;
                tap t = chunk_start;
                for (o = 0; o < channels; ++o) {
                    saaug_bucket_program(row, options->layout, first_tap, taps, NULL, chunk > 0, program);
                    row += row_bytes;
                    program += l.length;
                }
                w = tile_start;
                for (p = 0; p < pixels; p += SAAUG_PIXELS) {
                    const int32_t count = pixels - p < SAAUG_PIXELS ? pixels - p : SAAUG_PIXELS;
                    window windows[SAAUG_PIXELS];
                    int8_t *channel_output = block_output;
                    int32_t k;
                    for (k = 0; k < SAAUG_PIXELS; ++k) {
                        windows[k] = k < count ? w.at : windows[k - 1];
                        if (k < count) {
                            advance(&w, options, shape);
                        }
                    }
                    t = chunk_start;
                    pack(options, shape, input, windows, &t, taps, block);
                    program = programs;
                    for (o = 0; o < channels; ++o) {
                        saaug_bucket_run(program, block, acc);
                        if (chunk == l.chunks - 1) {
                            saaug_bucket_store(acc, (count + 1) / 2, count / 2, scales + o, options, channel_output,
                                               channel_output + shape->out_c, 2 * shape->out_c);
                        }
                        program += l.length;
                        ++channel_output;
                        if (l.chunks > 1) {
                            acc += SAAUG_PIXELS;
                        }
                    }
                    block_output += SAAUG_PIXELS * shape->out_c;
                }
                chunk_start = t;
            }
        }
        tile_start = w;
        first_pixel += pixels;
    }
    return SAAUG_OK;
}
