/**
 * @file saaug_gather.h
 * Walks the output positions of a convolution and copies the int8 window under each into one contiguous row.
 */
#ifndef SAAUG_GATHER_H
#define SAAUG_GATHER_H

#include <string.h>

#include "saaug_internal.h"

/** The top left input position of the window of one output position, and what is needed to go to the next. */
typedef struct {
    const int8_t *image; /* of this batch */
    int32_t row, column; /* of tap (0, 0), possibly outside the image */
    int32_t y, x;        /* output position */
} saaug_window;

static inline saaug_window saaug_first_window(const saaug_options *options, const int8_t *input)
{
    saaug_window window;
    window.image = input;
    window.row = -options->pad_top;
    window.column = -options->pad_left;
    window.y = 0;
    window.x = 0;
    return window;
}

static inline void saaug_next_window(const saaug_options *options, const saaug_shape *shape, saaug_window *window)
{
    window->column += options->stride_w;
    if (++window->x == shape->out_w) {
        window->x = 0;
        window->column = -options->pad_left;
        window->row += options->stride_h;
        if (++window->y == shape->out_h) {
            window->y = 0;
            window->row = -options->pad_top;
            window->image += (size_t)shape->in_h * (size_t)shape->in_w * (size_t)shape->in_c;
        }
    }
}

/** Is the window of a position one contiguous pixel that needs no copy? */
static inline int saaug_is_pointwise(const saaug_options *options)
{
    return options->kernel_h == 1 && options->kernel_w == 1;
}

/** Is output position p simply input pixel p? */
static inline int saaug_is_dense(const saaug_options *options)
{
    return saaug_is_pointwise(options) && options->stride_h == 1 && options->stride_w == 1;
}

/**
 * The window's K values, contiguous: those in the image itself where that is possible, else a copy in `row`, which holds K
 * bytes. Taps outside the image become the zero point.
 */
static inline const int8_t *saaug_gather(const saaug_options *options, const saaug_shape *shape,
                                         const saaug_window *window, int8_t *row)
{
    const int32_t channels = shape->in_c;
    int8_t *to = row;
    int32_t i, j;
    if (saaug_is_pointwise(options)) {
        return window->image +
               ((size_t)window->row * (size_t)shape->in_w + (size_t)window->column) * (size_t)channels;
    }
    for (i = 0; i < options->kernel_h; ++i) {
        const int32_t y = window->row + i * options->dilation_h;
        const int32_t last = window->column + (options->kernel_w - 1) * options->dilation_w;
        const int32_t length = options->kernel_w * channels;
        if (y < 0 || y >= shape->in_h) {
            memset(to, options->input_zero_point, (size_t)length);
            to += length;
        } else if (options->dilation_w == 1 && window->column >= 0 && last < shape->in_w) {
            memcpy(to, window->image + ((size_t)y * (size_t)shape->in_w + (size_t)window->column) * (size_t)channels,
                   (size_t)length);
            to += length;
        } else {
            for (j = 0; j < options->kernel_w; ++j, to += channels) {
                const int32_t x = window->column + j * options->dilation_w;
                if (x < 0 || x >= shape->in_w) {
                    memset(to, options->input_zero_point, (size_t)channels);
                } else {
                    memcpy(to, window->image + ((size_t)y * (size_t)shape->in_w + (size_t)x) * (size_t)channels,
                           (size_t)channels);
                }
            }
        }
    }
    return row;
}

#endif /* SAAUG_GATHER_H */
