#include "saaug_blocks.h"

saaug_block_walk saaug_block_walk_begin(const saaug_options *options, const saaug_shape *shape)
{
    const uint32_t channels = (uint32_t)shape->in_c, width = (uint32_t)shape->in_w * channels;
    saaug_block_walk walk;
    walk.at.top = -options->pad_top;
    walk.at.left = -options->pad_left;
    walk.at.offset = (uint32_t)walk.at.top * width + (uint32_t)walk.at.left * channels;
    walk.y = 0;
    walk.x = 0;
    walk.column_step = (uint32_t)options->stride_w * channels;
    walk.row_step = (uint32_t)options->stride_h * width - (uint32_t)shape->out_w * walk.column_step;
    walk.batch_step = ((uint32_t)shape->in_h - (uint32_t)shape->out_h * (uint32_t)options->stride_h) * width;
    return walk;
}

void saaug_block_walk_take(saaug_block_walk *walk, const saaug_options *options, const saaug_shape *shape,
                           int32_t count, saaug_block_window *windows)
{
    saaug_block_walk w = *walk;
    int32_t k;
    for (k = 0; k < SAAUG_PIXELS; ++k) {
        if (k >= count) {
            windows[k] = windows[k - 1];
            continue;
        }
        windows[k] = w.at;
        w.at.left += options->stride_w;
        w.at.offset += w.column_step;
        if (++w.x == shape->out_w) {
            w.x = 0;
            w.at.left = -options->pad_left;
            w.at.top += options->stride_h;
            w.at.offset += w.row_step;
            if (++w.y == shape->out_h) {
                w.y = 0;
                w.at.top = -options->pad_top;
                w.at.offset += w.batch_step;
            }
        }
    }
    *walk = w;
}

saaug_block_steps saaug_block_steps_of(const saaug_options *options, const saaug_shape *shape)
{
    saaug_block_steps steps;
    steps.right = (uint32_t)(options->dilation_w * shape->in_c);
    steps.down = (uint32_t)(options->dilation_h * shape->in_w) * (uint32_t)shape->in_c -
                 (uint32_t)options->kernel_w * steps.right;
    return steps;
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

void saaug_blocks_pack(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                       const saaug_block_window *windows, saaug_block_tap *t, int32_t count, int32_t words,
                       uint32_t *block)
{
    const saaug_block_steps steps = saaug_block_steps_of(options, shape);
    while (count > 0) {
        const int32_t run = count < shape->in_c - t->c ? count : shape->in_c - t->c;
        int32_t k;
        for (k = 0; k < words; ++k) {
            const int8_t *const low = saaug_block_pixel(shape, input, windows + 2 * k, t);
            const int8_t *const high = saaug_block_pixel(shape, input, windows + 2 * k + 1, t);
            if (low != NULL && high != NULL) {
                pack_pair(low + t->c, high + t->c, run, block + k);
            } else {
                pack_pair_outside(low != NULL ? low + t->c : NULL, high != NULL ? high + t->c : NULL, run,
                                  options->input_zero_point, block + k);
            }
        }
        block += run * SAAUG_WORDS;
        count -= run;
        saaug_block_tap_move(options, shape, &steps, t, run);
    }
}
