/**
 * SHIFT_DEPTHWISE_CONV_2D for cores with SMLAD. Four input channels at a time are taken apart into planes of int16, padding
 * included, so that one instruction handles two neighbouring taps of a channel. Strides along a row of 1 and 2 and kernels up
 * to 7 wide have their inner loops; others are left to the reference.
 */
#include "saaug_dsp.h"


/* Planes of one strip of output rows, in bytes; a strip has one row at least. */
#define STRIP_BYTES 5120
/* Channels whose planes are made together: the bytes of a word. */
#define PLANES 4
/* Output positions that the inner loop computes together. */
#define GROUP 4

#define INLINE static inline __attribute__((always_inline))

/* Order in scratch: planes, weights of a channel as pairs of int16, its taps one by one. */
typedef struct {
    int32_t pairs;      /* words of one kernel row's weights, and of its odd phase: see decode_channel() */
    int32_t row_words;  /* of a plane */
    int32_t strip_rows; /* output rows per strip; 0: the reference does it */
    int64_t plane_words; /* of one channel's strip */
    int64_t weights_words;
    int64_t taps_words;
} layout;

static layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    layout result;
    /* A dilated row is as many rows as the dilation, interleaved; see strip(). */
    const int32_t columns = (shape->out_w + options->dilation_w - 1) / options->dilation_w;
    const int32_t groups = (columns + GROUP - 1) / GROUP;
    const int32_t reach = (options->kernel_h - 1) * options->dilation_h + 1;
    int64_t rows;
    memset(&result, 0, sizeof result);
    result.pairs = options->kernel_w / 2 + 1 < 2 ? 2 : options->kernel_w / 2 + 1;
    if (result.pairs > 4 || options->stride_w > 2 || (options->stride_w == 2 && options->dilation_w > 1)) {
        return result;
    }
    result.row_words = groups * GROUP * options->stride_w / 2 + result.pairs;
    rows = STRIP_BYTES / ((int64_t)result.row_words * 4 * PLANES);
    result.strip_rows = rows < reach ? 1 : (int32_t)((rows - reach) / options->stride_h + 1);
    if (result.strip_rows > shape->out_h) {
        result.strip_rows = shape->out_h;
    }
    result.plane_words = ((int64_t)(result.strip_rows - 1) * options->stride_h + reach) * result.row_words;
    result.weights_words = (int64_t)options->kernel_h * result.pairs * 2;
    result.taps_words = ((int64_t)options->kernel_h * options->kernel_w + 3) / 4 * 2;
    return result;
}

int64_t saaug_shift_depthwise_conv_2d_s8_dsp_size(const saaug_options *options, const saaug_shape *shape)
{
    const layout sizes = lay_out(options, shape);
    return (sizes.plane_words * PLANES + sizes.weights_words + sizes.taps_words) * 4;
}

#if defined(SAAUG_DSP)

/* One channel of one strip. */
typedef struct {
    const uint32_t *plane;
    int32_t row_step; /* words between the planes' rows of two output rows */
    int32_t tap_step; /* words between the planes' rows of two kernel rows */
    const uint32_t *weights;
    int32_t kernel_h;
    int32_t rows, columns; /* of output */
    int8_t *output;
    int32_t out_row_step, out_column_step; /* bytes */
    saaug_channel channel;
    int doubled; /* the accumulators are */
    int simple;
    const int32_t *params;
    const saaug_options *options;
} job;

/**
 * Two or four neighbouring outputs. With stride 1, outputs 0 and 2 read pairs of taps that begin at an even column, 1 and 3 at
 * an odd one: so there are two sets of weights, side by side. With stride 2 all begin at even columns.
 */
INLINE void sum_taps(const uint32_t *x, const uint32_t *w, int32_t bias, int32_t kernel_h, int32_t tap_step,
                     const int pairs, const int stride, const int count, int32_t *acc)
{
    int32_t acc0 = bias, acc1 = bias, acc2 = bias, acc3 = bias;
    int32_t i;
    int k;
    for (i = kernel_h; i != 0; --i, x += tap_step) {
        uint32_t x0 = x[0], x1 = x[1], x2 = stride == 1 ? 0 : x[2];
        for (k = 0; k < pairs; ++k) {
            uint32_t even, odd;
            if (stride == 1) {
                SAAUG_LOAD_PAIR(even, odd, w);
                acc0 = saaug_smlad(x0, even, acc0);
                acc1 = saaug_smlad(x0, odd, acc1);
                if (count > 2) {
                    acc2 = saaug_smlad(x1, even, acc2);
                    acc3 = saaug_smlad(x1, odd, acc3);
                }
                x0 = x1;
                x1 = k + 1 < pairs ? x[k + 2] : 0;
            } else {
                const uint32_t x3 = x[k + 3];
                even = *w++;
                acc0 = saaug_smlad(x0, even, acc0);
                acc1 = saaug_smlad(x1, even, acc1);
                if (count > 2) {
                    acc2 = saaug_smlad(x2, even, acc2);
                    acc3 = saaug_smlad(x3, even, acc3);
                }
                x0 = x1;
                x1 = x2;
                x2 = x3;
            }
        }
    }
    acc[0] = acc0;
    acc[1] = acc1;
    acc[2] = acc2;
    acc[3] = acc3;
}

/**
 * `count` neighbouring columns, from top to bottom, of a simple layer. Outputs beyond the row's end go where the first one
 * goes, which is stored last.
 */
INLINE void run_columns(const job *my, const uint32_t *x, int8_t *out, int32_t left, const int pairs, const int stride,
                        const int32_t kernel_h, const int count)
{
    const int32_t row_step = my->row_step, tap_step = my->tap_step, out_row_step = my->out_row_step;
    const int32_t step = my->out_column_step, bias = my->channel.bias, multiplier = my->channel.multiplier;
    const int32_t rounding = my->channel.rounding, shift = my->channel.shift;
    const int32_t second = left > 1 ? step : 0, third = left > 2 ? 2 * step : 0, fourth = left > 3 ? 3 * step : 0;
    const uint32_t *const w = my->weights;
    int32_t y;
    for (y = my->rows; y != 0; --y, x += row_step, out += out_row_step) {
        int32_t acc[GROUP];
        sum_taps(x, w, bias, kernel_h, tap_step, pairs, stride, count, acc);
        if (count > 2) {
            out[fourth] = saaug_finish_doubled(acc[3], multiplier, rounding, shift);
            out[third] = saaug_finish_doubled(acc[2], multiplier, rounding, shift);
        }
        out[second] = saaug_finish_doubled(acc[1], multiplier, rounding, shift);
        out[0] = saaug_finish_doubled(acc[0], multiplier, rounding, shift);
    }
}

/* Groups of four columns from left to right; the last one may be of two. */
INLINE void run_simple(const job *my, const int pairs, const int stride, const int32_t kernel_h, const int least)
{
    const job here = *my; /* so that no store to the output makes the compiler read it again */
    const uint32_t *group = here.plane;
    int8_t *to = here.output;
    int32_t left = here.columns;
    for (; left > GROUP - least; left -= GROUP, group += GROUP / 2 * stride, to += GROUP * here.out_column_step) {
        run_columns(&here, group, to, left, pairs, stride, kernel_h, GROUP);
    }
    if (least < GROUP && left > 0) {
        run_columns(&here, group, to, left, pairs, stride, kernel_h, least);
    }
}

/* Layers of all kinds. The rows of 3x3 of stride 1 are unrolled here too: it takes 8% fewer instructions. */
INLINE void run_any(const job *my, const int pairs, const int stride)
{
    const int32_t row_step = my->row_step, tap_step = my->tap_step, out_row_step = my->out_row_step;
    const int32_t step = my->out_column_step, bias = my->channel.bias, kernel_h = my->kernel_h;
    const uint32_t *const w = my->weights;
    const uint32_t *group = my->plane;
    int8_t *to = my->output;
    int32_t left = my->columns;
    int32_t k, y;
    if (my->simple) {
        run_simple(my, pairs, stride, kernel_h, GROUP);
        return;
    }
    for (; left > 0; left -= GROUP, group += GROUP / 2 * stride, to += GROUP * step) {
        const uint32_t *x = group;
        int8_t *out = to;
        for (y = my->rows; y != 0; --y, x += row_step, out += out_row_step) {
            int32_t acc[GROUP];
            if (pairs == 2 && stride == 1 && kernel_h == 3) {
                sum_taps(x, w, bias, 3, tap_step, pairs, stride, GROUP, acc);
            } else {
                sum_taps(x, w, bias, kernel_h, tap_step, pairs, stride, GROUP, acc);
            }
            for (k = 0; k < GROUP && k < left; ++k) {
                out[k * step] = saaug_finish_any(acc[k] >> my->doubled, my->params, my->options);
            }
        }
    }
}

typedef void runner(const job *my);

/* By stride and pairs; and of simple layers with square kernels, whose rows are unrolled. */
SAAUG_APART static void run_1_2(const job *my) { run_any(my, 2, 1); }
SAAUG_APART static void run_1_3(const job *my) { run_any(my, 3, 1); }
SAAUG_APART static void run_1_4(const job *my) { run_any(my, 4, 1); }
SAAUG_APART static void run_2_2(const job *my) { run_any(my, 2, 2); }
SAAUG_APART static void run_2_3(const job *my) { run_any(my, 3, 2); }
SAAUG_APART static void run_2_4(const job *my) { run_any(my, 4, 2); }
SAAUG_APART static void run_1_3x3(const job *my) { run_simple(my, 2, 1, 3, GROUP / 2); }
SAAUG_APART static void run_1_5x5(const job *my) { run_simple(my, 3, 1, 5, GROUP / 2); }
SAAUG_APART static void run_2_3x3(const job *my) { run_simple(my, 2, 2, 3, GROUP / 2); }

static runner *choose(int32_t stride, int32_t pairs, int32_t kernel_h, int simple)
{
    if (pairs == 2 && kernel_h == 3 && simple) {
        return stride == 2 ? run_2_3x3 : run_1_3x3;
    }
    if (stride == 2) {
        return pairs == 2 ? run_2_2 : pairs == 3 ? run_2_3 : run_2_4;
    }
    if (pairs == 3) {
        return kernel_h == 5 && simple ? run_1_5x5 : run_1_3;
    }
    return pairs == 2 ? run_1_2 : run_1_4;
}

/* Weights of one channel: for every kernel row `pairs` times the even phase, with stride 1 also the odd phase. */
static void decode_channel(const saaug_options *options, const uint8_t *row, int32_t pairs, int doubled,
                           uint32_t *weights, int16_t *taps)
{
    const int32_t count = options->kernel_h * options->kernel_w;
    int32_t i, k;
    if (options->layout == SAAUG_LAYOUT_NIBBLE) {
        for (i = 0; i < count; i += 2) {
            const uint32_t pair = saaug_doubled_pairs[*row++];
            taps[i] = (int16_t)(uint16_t)pair;
            taps[i + 1] = (int16_t)(pair >> 16);
        }
    } else if (options->layout == SAAUG_LAYOUT_BIT) {
        for (i = 0; i < count; ++i) {
            taps[i] = (int16_t)saaug_shift_left(saaug_bit_weight(row, i), (uint32_t)doubled);
        }
    } else {
        for (i = 0; i < count; ++i) {
            taps[i] = (int16_t)saaug_shift_left(saaug_byte_weight(row[i]), (uint32_t)doubled);
        }
    }
    for (i = 0; i < options->kernel_h; ++i, taps += options->kernel_w) {
        uint32_t before = 0;
        for (k = 0; k < 2 * pairs; k += 2) {
            const uint32_t first = k < options->kernel_w ? (uint16_t)taps[k] : 0;
            const uint32_t second = k + 1 < options->kernel_w ? (uint16_t)taps[k + 1] : 0;
            *weights++ = first | second << 16;
            if (options->stride_w == 1) {
                *weights++ = before | first << 16;
                before = second;
            }
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

/* The int8 values of four (or the last one to three) channels of a pixel. */
INLINE uint32_t load_pixel(const int8_t *pixel, int32_t count)
{
    return count == PLANES ? saaug_load_word(pixel) : saaug_load_part(pixel, count);
}

/* Two neighbouring pixels go to four planes. */
INLINE void store_pair(uint32_t first, uint32_t second, uint32_t *plane, int64_t plane_words)
{
    const uint32_t first02 = saaug_even_bytes(first), first13 = saaug_odd_bytes(first);
    const uint32_t second02 = saaug_even_bytes(second), second13 = saaug_odd_bytes(second);
    plane[0] = saaug_low_halves(first02, second02);
    plane[plane_words] = saaug_low_halves(first13, second13);
    plane[2 * plane_words] = saaug_high_halves(first02, second02);
    plane[3 * plane_words] = saaug_high_halves(first13, second13);
}

/* The channels of one pixel of a row of the image, or the zero point outside of it. */
INLINE uint32_t pixel_or_zero(const int8_t *row, const saaug_shape *shape, int32_t column, int32_t count, uint32_t zero)
{
    return column >= 0 && column < shape->in_w ? load_pixel(row + column * shape->in_c, count) : zero;
}

/* The zero point everywhere: what is outside of the image stays so for all channels of a strip. */
static void clear_planes(const saaug_options *options, uint32_t *planes, int64_t plane_words)
{
    const uint32_t zero = (uint32_t)(uint16_t)options->input_zero_point * 0x00010001u;
    const uint32_t *const end = planes + PLANES * plane_words;
    while (planes != end) {
        *planes++ = zero;
    }
}

/* Takes `count` channels from `image` (which points at the first of them) apart, where it is inside of the strip. */
SAAUG_APART static void fill_planes(const saaug_options *options, const saaug_shape *shape, const strip *s,
                                    const int8_t *image, int32_t count, uint32_t *planes, int64_t plane_words)
{
    const uint32_t zero = (uint32_t)(uint8_t)options->input_zero_point * 0x01010101u;
    const int32_t pixel_bytes = s->step * shape->in_c, row_bytes = shape->in_w * shape->in_c;
    const int32_t words = (s->columns + 1) / 2;
    const int32_t below = s->top + s->rows < shape->in_h ? s->top + s->rows : shape->in_h;
    /* Words [begin, end) of a row have both columns inside the image, and [least, most) one at least. */
    int32_t begin = s->origin >= 0 ? 0 : (-s->origin + 2 * s->step - 1) / (2 * s->step);
    int32_t end = s->origin >= shape->in_w ? 0 : ((shape->in_w - 1 - s->origin) / s->step + 1) / 2;
    int32_t y = s->top < 0 ? 0 : s->top;
    int32_t least, most, m;
    end = end > words ? words : end;
    begin = begin > end ? end : begin;
    least = begin > 0 && s->origin + (2 * begin - 1) * s->step >= 0 ? begin - 1 : begin;
    most = end < words && s->origin + 2 * end * s->step < shape->in_w ? end + 1 : end;
    begin = count < PLANES ? most : begin;
    for (; y < below; ++y) {
        const int8_t *const row = image + (size_t)y * (size_t)row_bytes;
        uint32_t *const plane = planes + (y - s->top) * s->row_words;
        for (m = least; m < most; ++m) {
            const int32_t column = s->origin + 2 * m * s->step;
            if (m == begin && m < end) {
                const int8_t *from = row + column * shape->in_c;
                uint32_t *to = plane + m;
                int32_t left;
                for (left = end - begin;; from += 2 * pixel_bytes) {
                    store_pair(saaug_load_word(from), saaug_load_word(from + pixel_bytes), to++, plane_words);
                    if (--left == 0) {
                        break;
                    }
                }
                m = end - 1;
            } else {
                store_pair(pixel_or_zero(row, shape, column, count, zero),
                           pixel_or_zero(row, shape, column + s->step, count, zero), plane + m, plane_words);
            }
        }
    }
}

saaug_status saaug_shift_depthwise_conv_2d_s8_dsp(const saaug_options *options, const saaug_shape *shape,
                                                  const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                  int8_t *output, void *scratch)
{
    const layout sizes = lay_out(options, shape);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const int32_t largest = saaug_largest_code(options, shape, weights);
    uint32_t *planes, *decoded;
    int16_t *taps;
    int32_t n, first, phase, c, i, m;
    job work;
    if (sizes.strip_rows == 0 || largest > SAAUG_INT16_CODE) {
        return saaug_shift_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    planes = scratch;
    decoded = planes + PLANES * sizes.plane_words;
    taps = (int16_t *)(void *)(decoded + sizes.weights_words);
    work.row_step = options->stride_h * sizes.row_words;
    work.tap_step = options->dilation_h * sizes.row_words;
    work.weights = decoded;
    work.kernel_h = options->kernel_h;
    work.out_row_step = shape->out_w * shape->out_c;
    work.out_column_step = options->dilation_w * shape->out_c;
    work.options = options;
    work.doubled = largest < SAAUG_INT16_CODE;
    for (n = 0; n < shape->batches; ++n) {
        for (first = 0; first < shape->out_h; first += sizes.strip_rows) {
            work.rows = shape->out_h - first < sizes.strip_rows ? shape->out_h - first : sizes.strip_rows;
            /* Outputs `phase`, `phase` + dilation, ... read one and the same set of columns: they are a dense row. */
            for (phase = 0; phase < options->dilation_w && phase < shape->out_w; ++phase) {
                strip s;
                s.top = first * options->stride_h - options->pad_top;
                s.rows = (work.rows - 1) * options->stride_h + (options->kernel_h - 1) * options->dilation_h + 1;
                s.origin = phase - options->pad_left;
                s.step = options->dilation_w;
                s.row_words = sizes.row_words;
                work.columns = (shape->out_w - phase + options->dilation_w - 1) / options->dilation_w;
                s.columns = (work.columns - 1) * options->stride_w + options->kernel_w;
                clear_planes(options, planes, sizes.plane_words);
                for (c = 0; c < shape->in_c; c += PLANES) {
                    /* The last group moves back to be whole; channels that were done already are passed over. */
                    const int32_t start = c + PLANES > shape->in_c && shape->in_c >= PLANES ? shape->in_c - PLANES : c;
                    const int32_t count = shape->in_c - start < PLANES ? shape->in_c - start : PLANES;
                    fill_planes(options, shape, &s,
                                input + (size_t)n * (size_t)shape->in_h * (size_t)shape->in_w * (size_t)shape->in_c +
                                    start,
                                count, planes, sizes.plane_words);
                    for (i = c - start; i < count; ++i) {
                        for (m = 0; m < options->depth_multiplier; ++m) {
                            const int32_t o = (start + i) * options->depth_multiplier + m;
                            decode_channel(options, weights + (size_t)o * (size_t)row_bytes, sizes.pairs,
                                           work.doubled, decoded, taps);
                            work.plane = planes + i * sizes.plane_words;
                            work.output = output + (((size_t)n * (size_t)shape->out_h + (size_t)first) *
                                                        (size_t)shape->out_w + (size_t)phase) * (size_t)shape->out_c +
                                          (size_t)o;
                            work.params = params + 3 * o;
                            work.simple = saaug_prepare_channels(options, work.params, 1, 1, work.doubled, &work.channel);
                            choose(options->stride_w, sizes.pairs, options->kernel_h, work.simple)(&work);
                        }
                    }
                }
            }
        }
    }
    return SAAUG_OK;
}

#endif
