/**
 * ADDER_DEPTHWISE_CONV_2D for cores with USADA8. Four input channels at a time are taken apart into planes of bytes in offset
 * binary, padding included, so that one instruction handles four neighbouring taps of a channel.
 */
#include "saaug_dsp.h"


/* Planes of one strip of output rows, in bytes; a strip has one row at least. */
#define STRIP_BYTES 5120
/* Channels whose planes are made together: the bytes of a word. */
#define PLANES 4

#define INLINE static inline __attribute__((always_inline))

/* Order in scratch: planes, weights of a channel. */
typedef struct {
    int32_t words;       /* of one kernel row */
    int32_t row_words;   /* of a plane; a word has four columns */
    int32_t strip_rows;  /* output rows per strip; 0: the reference does it */
    int64_t plane_words; /* of one channel's strip */
    int64_t weights_words;
} layout;

static layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    layout result;
    /* A dilated row is as many rows as the dilation, interleaved: see the kernel. */
    const int32_t columns = (shape->out_w + options->dilation_w - 1) / options->dilation_w;
    const int32_t reach = (options->kernel_h - 1) * options->dilation_h + 1;
    int64_t rows;
    memset(&result, 0, sizeof result);
    if (options->dilation_w > 1 && options->stride_w > 1) {
        return result;
    }
    result.words = (options->kernel_w + 3) / 4;
    result.row_words = ((columns - 1) * options->stride_w + 3) / 4 + result.words;
    rows = STRIP_BYTES / ((int64_t)result.row_words * 4 * PLANES);
    result.strip_rows = rows < reach ? 1 : (int32_t)((rows - reach) / options->stride_h + 1);
    if (result.strip_rows > shape->out_h) {
        result.strip_rows = shape->out_h;
    }
    result.plane_words = ((int64_t)(result.strip_rows - 1) * options->stride_h + reach) * result.row_words;
    result.weights_words = (int64_t)options->kernel_h * result.words;
    return result;
}

int64_t saaug_adder_depthwise_conv_2d_s8_dsp_size(const saaug_options *options, const saaug_shape *shape)
{
    const layout sizes = lay_out(options, shape);
    return (sizes.plane_words * PLANES + sizes.weights_words) * 4;
}

#if defined(SAAUG_DSP)

/* One channel of one strip. */
typedef struct {
    const uint8_t *plane;
    int32_t column_step, row_step; /* bytes of the plane between two outputs */
    int32_t tap_step;              /* bytes between the plane's rows of two kernel rows */
    const uint32_t *weights;
    uint32_t mask; /* of the last word of a kernel row: the bytes that are taps */
    int32_t kernel_h, words;
    int32_t rows, columns; /* of output */
    int8_t *output;
    int32_t out_row_step, out_column_step; /* bytes */
    saaug_channel channel;
    int simple;
    const int32_t *params;
    const saaug_options *options;
} job;

/* Distances of two outputs, `column_step` apart. */
INLINE void distances(const uint8_t *x, const uint32_t *w, int32_t kernel_h, int32_t words, int32_t column_step,
                      int32_t tap_step, uint32_t mask, uint32_t *sums)
{
    uint32_t sum0 = 0, sum1 = 0;
    int32_t i, k;
    for (i = 0; i < kernel_h; ++i, x += tap_step) {
        const uint8_t *const x1 = x + column_step;
        for (k = 0; k < words - 1; ++k, ++w) {
            sum0 = saaug_usada8(saaug_load_word(x + 4 * k), *w, sum0);
            sum1 = saaug_usada8(saaug_load_word(x1 + 4 * k), *w, sum1);
        }
        sum0 = saaug_usada8(saaug_load_word(x + 4 * k) & mask, *w, sum0);
        sum1 = saaug_usada8(saaug_load_word(x1 + 4 * k) & mask, *w++, sum1);
    }
    sums[0] = sum0;
    sums[1] = sum1;
}

/* Two columns after two columns, each from top to bottom. */
INLINE void run_job(const job *my, const int32_t kernel_h, const int32_t words)
{
    const int32_t row_step = my->row_step, tap_step = my->tap_step, out_row_step = my->out_row_step;
    const int32_t bias = my->channel.bias, multiplier = my->channel.multiplier;
    const int32_t rounding = my->channel.rounding, shift = my->channel.shift;
    /* A single column is done twice, and so is the last but one of an odd number. */
    const int32_t column_step = my->columns > 1 ? my->column_step : 0;
    const int32_t out_column_step = my->columns > 1 ? my->out_column_step : 0;
    const uint32_t *const w = my->weights;
    const uint32_t mask = my->mask;
    const uint8_t *columns = my->plane;
    int8_t *to = my->output;
    uint32_t sums[2];
    int32_t left, y;
    for (left = my->columns; left > 0; left -= 2, columns += 2 * column_step, to += 2 * out_column_step) {
        const uint8_t *x = left > 1 ? columns : columns - column_step;
        int8_t *out = left > 1 ? to : to - out_column_step;
        if (my->simple) {
            for (y = my->rows; y != 0; --y, x += row_step, out += out_row_step) {
                distances(x, w, kernel_h, words, column_step, tap_step, mask, sums);
                out[0] = saaug_finish_doubled(
                    saaug_shift_left((int32_t)sums[0], SAAUG_ADDER_SCALE_LOG2 + 1) + bias, multiplier, rounding, shift);
                out[out_column_step] = saaug_finish_doubled(
                    saaug_shift_left((int32_t)sums[1], SAAUG_ADDER_SCALE_LOG2 + 1) + bias, multiplier, rounding, shift);
            }
        } else {
            for (y = my->rows; y != 0; --y, x += row_step, out += out_row_step) {
                distances(x, w, kernel_h, words, column_step, tap_step, mask, sums);
                out[0] = saaug_finish_any(saaug_adder_accumulator((int32_t)sums[0], my->params), my->params,
                                          my->options);
                out[out_column_step] = saaug_finish_any(saaug_adder_accumulator((int32_t)sums[1], my->params),
                                                        my->params, my->options);
            }
        }
    }
}

SAAUG_APART static void run_3x3(const job *my) { run_job(my, 3, 1); }
SAAUG_APART static void run_5x5(const job *my) { run_job(my, 5, 2); }
SAAUG_APART static void run_other(const job *my) { run_job(my, my->kernel_h, my->words); }

/* Weights of one channel: every kernel row in whole words, zeros behind. */
static void spread_channel(const saaug_options *options, const uint8_t *row, int32_t words, uint32_t *weights)
{
    int32_t i, k;
    for (i = 0; i < options->kernel_h; ++i) {
        for (k = 0; k < words; ++k) {
            const int32_t left = options->kernel_w - 4 * k;
            *weights++ = saaug_load_part(row + i * options->kernel_w + 4 * k, left < 4 ? left : 4);
        }
    }
}

/* Which part of the image the planes hold: rows from `top`, columns origin + m * step. */
typedef struct {
    int32_t top, rows;
    int32_t origin, step;
    int32_t columns; /* that an output reads */
    int32_t row_words;
} strip;

/* The channels of one pixel of a row of the image, or the zero point outside of it; the row is NULL above and below. */
INLINE uint32_t pixel_or_zero(const int8_t *row, const saaug_shape *shape, int32_t column, int32_t count, uint32_t zero)
{
    if (row == NULL || column < 0 || column >= shape->in_w) {
        return zero;
    }
    row += column * shape->in_c;
    return count == PLANES ? saaug_load_word(row) : saaug_load_part(row, count);
}

/* Four neighbouring pixels of four channels go to four planes, in offset binary. */
INLINE void store_four(const uint32_t *pixels, uint32_t *plane, int64_t plane_words)
{
    /* Bytes 0 and 2 (1 and 3) of two pixels side by side: channel 0 (1) in the low half, 2 (3) in the high half. */
    const uint32_t even01 = (pixels[0] & 0x00FF00FFu) | (pixels[1] & 0x00FF00FFu) << 8;
    const uint32_t even23 = (pixels[2] & 0x00FF00FFu) | (pixels[3] & 0x00FF00FFu) << 8;
    const uint32_t odd01 = (pixels[0] >> 8 & 0x00FF00FFu) | (pixels[1] & 0xFF00FF00u);
    const uint32_t odd23 = (pixels[2] >> 8 & 0x00FF00FFu) | (pixels[3] & 0xFF00FF00u);
    plane[0] = saaug_low_halves(even01, even23) ^ 0x80808080u;
    plane[plane_words] = saaug_low_halves(odd01, odd23) ^ 0x80808080u;
    plane[2 * plane_words] = saaug_high_halves(even01, even23) ^ 0x80808080u;
    plane[3 * plane_words] = saaug_high_halves(odd01, odd23) ^ 0x80808080u;
}

/* Takes `count` channels from `image` (which points at the first of them) apart. */
SAAUG_APART static void fill_planes(const saaug_options *options, const saaug_shape *shape, const strip *s,
                                    const int8_t *image, int32_t count, uint32_t *planes, int64_t plane_words)
{
    const uint32_t zero = (uint32_t)(uint8_t)options->input_zero_point * 0x01010101u;
    const int32_t pixel_bytes = s->step * shape->in_c;
    const int32_t words = (s->columns + 3) / 4;
    /* Words [begin, end) of a row have all columns inside the image. */
    int32_t begin = s->origin >= 0 ? 0 : (-s->origin + 4 * s->step - 1) / (4 * s->step);
    int32_t end = s->origin >= shape->in_w ? 0 : ((shape->in_w - 1 - s->origin) / s->step + 1) / 4;
    uint32_t pixels[4];
    int32_t r, m, k;
    end = count < PLANES ? 0 : end > words ? words : end;
    for (r = 0; r < s->rows; ++r, planes += s->row_words) {
        const int32_t y = s->top + r;
        const int8_t *const row = y >= 0 && y < shape->in_h ? image + (size_t)y * (size_t)(shape->in_w * shape->in_c) : NULL;
        for (m = 0; m < words; ++m) {
            const int32_t column = s->origin + 4 * m * s->step;
            if (row != NULL && m >= begin && m < end) {
                const int8_t *const from = row + column * shape->in_c;
                pixels[0] = saaug_load_word(from);
                pixels[1] = saaug_load_word(from + pixel_bytes);
                pixels[2] = saaug_load_word(from + 2 * pixel_bytes);
                pixels[3] = saaug_load_word(from + 3 * pixel_bytes);
            } else {
                for (k = 0; k < 4; ++k) {
                    pixels[k] = pixel_or_zero(row, shape, column + k * s->step, count, zero);
                }
            }
            store_four(pixels, planes + m, plane_words);
        }
    }
}

saaug_status saaug_adder_depthwise_conv_2d_s8_dsp(const saaug_options *options, const saaug_shape *shape,
                                                  const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                  int8_t *output, void *scratch)
{
    const layout sizes = lay_out(options, shape);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const size_t image_bytes = (size_t)shape->in_h * (size_t)shape->in_w * (size_t)shape->in_c;
    const int32_t last = options->kernel_w - 4 * (sizes.words - 1);
    uint32_t *planes, *spread;
    int32_t n, first, phase, c, i, m;
    job work;
    strip s;
    if (sizes.strip_rows == 0) {
        return saaug_adder_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    planes = scratch;
    spread = planes + PLANES * sizes.plane_words;
    work.column_step = options->stride_w;
    work.row_step = options->stride_h * sizes.row_words * 4;
    work.tap_step = options->dilation_h * sizes.row_words * 4;
    work.weights = spread;
    work.mask = last == 4 ? 0xFFFFFFFFu : ((uint32_t)1 << 8 * last) - 1;
    work.kernel_h = options->kernel_h;
    work.words = sizes.words;
    work.out_row_step = shape->out_w * shape->out_c;
    work.out_column_step = options->dilation_w * shape->out_c;
    work.options = options;
    s.step = options->dilation_w;
    s.row_words = sizes.row_words;
    for (n = 0; n < shape->batches; ++n) {
        for (first = 0; first < shape->out_h; first += sizes.strip_rows) {
            work.rows = shape->out_h - first < sizes.strip_rows ? shape->out_h - first : sizes.strip_rows;
            s.top = first * options->stride_h - options->pad_top;
            s.rows = (work.rows - 1) * options->stride_h + (options->kernel_h - 1) * options->dilation_h + 1;
            /* Outputs `phase`, `phase` + dilation, ... read one and the same set of columns: they are a dense row. */
            for (phase = 0; phase < options->dilation_w && phase < shape->out_w; ++phase) {
                s.origin = phase - options->pad_left;
                work.columns = (shape->out_w - phase + options->dilation_w - 1) / options->dilation_w;
                s.columns = (work.columns - 1) * options->stride_w + options->kernel_w;
                for (c = 0; c < shape->in_c; c += PLANES) {
                    /* The last group moves back to be whole; channels that were done already are passed over. */
                    const int32_t start = c + PLANES > shape->in_c && shape->in_c >= PLANES ? shape->in_c - PLANES : c;
                    const int32_t count = shape->in_c - start < PLANES ? shape->in_c - start : PLANES;
                    fill_planes(options, shape, &s, input + (size_t)n * image_bytes + start, count, planes,
                                sizes.plane_words);
                    for (i = c - start; i < count; ++i) {
                        for (m = 0; m < options->depth_multiplier; ++m) {
                            const int32_t o = (start + i) * options->depth_multiplier + m;
                            spread_channel(options, weights + (size_t)o * (size_t)row_bytes, sizes.words, spread);
                            work.plane = (const uint8_t *)(planes + i * sizes.plane_words);
                            work.output = output +
                                          (((size_t)n * (size_t)shape->out_h + (size_t)first) * (size_t)shape->out_w +
                                           (size_t)phase) * (size_t)shape->out_c + (size_t)o;
                            work.params = params + 3 * o;
                            work.simple = saaug_prepare_channels(options, work.params, 1, 1, 1, &work.channel);
                            if (options->kernel_h == 3 && options->kernel_w == 3) {
                                run_3x3(&work);
                            } else if (options->kernel_h == 5 && options->kernel_w == 5) {
                                run_5x5(&work);
                            } else {
                                run_other(&work);
                            }
                        }
                    }
                }
            }
        }
    }
    return SAAUG_OK;
}

#endif
