/**
 * @file saaug_blocks.h
 * Convolutions, portable: the pixels under the windows of SAAUG_PIXELS output positions, packed into a block.
 *
 * Word k of a column holds the pixels of positions 2 * k and 2 * k + 1 (saaug_bucket.h); the columns are the taps in
 * the order of the weights. No multiplication is made from one position or tap to the next.
 */
#ifndef SAAUG_BLOCKS_H
#define SAAUG_BLOCKS_H

#include "saaug_bucket.h"

/** Where the window of an output position begins in the input, which may be outside of it. Offsets are modulo 2^32:
 * only those of pixels inside are used. */
typedef struct {
    int32_t top, left;
    uint32_t offset;
} saaug_block_window;

/** A walk over the output positions of all batches. */
typedef struct {
    saaug_block_window at;
    int32_t y, x;
    uint32_t column_step, row_step, batch_step;
} saaug_block_walk;

/** A tap of the window: kernel column, input channel, and where its pixel is from the window's. Begins as all zeros. */
typedef struct {
    int32_t j, c, down, right;
    uint32_t offset;
} saaug_block_tap;

/** How far apart the pixels of neighbouring taps are: in a row of the window, and from its end to the next row's start.
 */
typedef struct {
    uint32_t right, down;
} saaug_block_steps;

saaug_block_steps saaug_block_steps_of(const saaug_options *options, const saaug_shape *shape);

/** The pixel under a tap of a window, or NULL outside of the image. */
static inline const int8_t *saaug_block_pixel(const saaug_shape *shape, const int8_t *input,
                                              const saaug_block_window *at, const saaug_block_tap *tap)
{
    if ((uint32_t)(at->top + tap->down) >= (uint32_t)shape->in_h ||
        (uint32_t)(at->left + tap->right) >= (uint32_t)shape->in_w) {
        return NULL;
    }
    return input + (at->offset + tap->offset);
}

/** Moves a tap on by channels of its pixel, at most to the next pixel. */
static inline void saaug_block_tap_move(const saaug_options *options, const saaug_shape *shape,
                                        const saaug_block_steps *steps, saaug_block_tap *tap, int32_t channels)
{
    tap->c += channels;
    if (tap->c == shape->in_c) {
        tap->c = 0;
        tap->right += options->dilation_w;
        tap->offset += steps->right;
        if (++tap->j == options->kernel_w) {
            tap->j = 0;
            tap->right = 0;
            tap->down += options->dilation_h;
            tap->offset += steps->down;
        }
    }
}

saaug_block_walk saaug_block_walk_begin(const saaug_options *options, const saaug_shape *shape);

/** Takes the windows of the next `count` positions, at most SAAUG_PIXELS; those that are missing repeat the last. */
void saaug_block_walk_take(saaug_block_walk *walk, const saaug_options *options, const saaug_shape *shape,
                           int32_t count, saaug_block_window *windows);

/** Packs `count` taps from *tap on, the first `words` words of their columns, and leaves the tap after them in *tap. */
void saaug_blocks_pack(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                       const saaug_block_window *windows, saaug_block_tap *tap, int32_t count, int32_t words,
                       uint32_t *block);

static inline int32_t saaug_divide_up(int32_t value, int32_t by) { return value / by + (value % by != 0); }

#endif /* SAAUG_BLOCKS_H */
