/* CHANNEL_SHIFT: dispatch, reference version, and the one version of all cores, since nothing but memory moves. */
#include <string.h>

#include "saaug_internal.h"

SAAUG_DISPATCH(saaug_channel_shift_s8, SAAUG_CHANNEL_SHIFT)

/* The tap that a group of channels is read at. @pre taps <= 255 * 255 and groups <= 2^14: nothing leaves 31 bits. */
static int32_t tap_of(int32_t group, int32_t groups, int32_t taps) { return (2 * group + 1) * taps / (2 * groups); }

static int32_t groups_of(const saaug_shape *shape)
{
    return (shape->in_c + SAAUG_MOVED_TOGETHER - 1) / SAAUG_MOVED_TOGETHER;
}

saaug_status saaug_channel_shift_s8_reference(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                              const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const int32_t taps = options->kernel_h * options->kernel_w;
    int32_t n, y, x, c;
    (void)weights;
    (void)params;
    (void)scratch;
    for (n = 0; n < shape->batches; ++n) {
        for (y = 0; y < shape->out_h; ++y) {
            for (x = 0; x < shape->out_w; ++x) {
                for (c = 0; c < shape->in_c; ++c) {
                    const int32_t tap = tap_of(c / SAAUG_MOVED_TOGETHER, groups_of(shape), taps);
                    const int8_t *const pixel = saaug_pixel(options, shape, input, n, y, x, tap / options->kernel_w,
                                                            tap % options->kernel_w);
                    *output++ = (int8_t)(pixel != NULL ? pixel[c] : options->input_zero_point);
                }
            }
        }
    }
    return SAAUG_OK;
}

/* Some channels of a run of pixels. Distances from one pixel to the next are in bytes. */
typedef struct {
    const int8_t *from;
    int8_t *to;
    size_t from_step, to_step, bytes;
    int32_t pixels;
} pixel_run;

/* `words` is a constant of the call, so that the inner loop is none. */
static inline void move_words(const pixel_run *run, size_t words)
{
    const int8_t *from = run->from;
    int8_t *to = run->to;
    int32_t left;
    for (left = run->pixels; left > 0; --left, from += run->from_step, to += run->to_step) {
        size_t i;
        for (i = 0; i < words; ++i) {
            uint32_t word;
#if defined(__GNUC__) /* as words where the core wants them aligned */
            memcpy(&word, (const int8_t *)__builtin_assume_aligned(from, 4) + 4 * i, 4);
            memcpy((int8_t *)__builtin_assume_aligned(to, 4) + 4 * i, &word, 4);
#else
            memcpy(&word, from + 4 * i, 4);
            memcpy(to + 4 * i, &word, 4);
#endif
        }
    }
}

static void move(const pixel_run *run)
{
    const int8_t *from = run->from;
    int8_t *to = run->to;
    int32_t left;
    if ((((uintptr_t)from | (uintptr_t)to | run->from_step | run->to_step | run->bytes) & 3u) == 0) {
        switch (run->bytes / 4) {
        case 1:
            move_words(run, 1);
            return;
        case 2:
            move_words(run, 2);
            return;
        case 3:
            move_words(run, 3);
            return;
        case 4:
            move_words(run, 4);
            return;
        default:
            move_words(run, run->bytes / 4);
            return;
        }
    }
    for (left = run->pixels; left > 0; --left, from += run->from_step, to += run->to_step) {
        size_t i;
        for (i = 0; i < run->bytes; ++i) {
            to[i] = from[i];
        }
    }
}

static int8_t *fill(int8_t *to, size_t step, size_t bytes, int32_t pixels, int32_t value)
{
    for (; pixels > 0; --pixels, to += step) {
        memset(to, value, bytes);
    }
    return to;
}

/* How many of `count` positions lie before the image, and how many before its end, of those whose first is at `start`. */
static void inside(int32_t start, int32_t stride, int32_t size, int32_t count, int32_t *first, int32_t *end)
{
    *first = start < 0 ? (-start + stride - 1) / stride : 0;
    *end = start < size ? (size - start + stride - 1) / stride : 0;
    *first = *first < count ? *first : count;
    *end = *end < count ? *end : count;
}

/* The channels from `c` on that are read at one tap, of all positions. */
static void move_group(const saaug_options *options, const saaug_shape *shape, const int8_t *input, int8_t *output,
                       int32_t tap, int32_t c, int32_t channels)
{
    const int32_t top = tap / options->kernel_w * options->dilation_h - options->pad_top;
    const int32_t left = tap % options->kernel_w * options->dilation_w - options->pad_left;
    const size_t channel_count = (size_t)shape->in_c;
    int32_t n, y, first, end;
    pixel_run row;
    inside(left, options->stride_w, shape->in_w, shape->out_w, &first, &end);
    row.from_step = channel_count * (size_t)options->stride_w;
    row.to_step = channel_count;
    row.bytes = (size_t)channels;
    row.pixels = end - first;
    for (n = 0; n < shape->batches; ++n) {
        const int8_t *const image = input + (size_t)n * (size_t)shape->in_h * (size_t)shape->in_w * channel_count + c;
        int8_t *to = output + (size_t)n * (size_t)shape->out_h * (size_t)shape->out_w * channel_count + c;
        for (y = 0; y < shape->out_h; ++y) {
            const int32_t from_y = y * options->stride_h + top;
            if (from_y < 0 || from_y >= shape->in_h || row.pixels <= 0) {
                to = fill(to, channel_count, row.bytes, shape->out_w, options->input_zero_point);
                continue;
            }
            row.to = fill(to, channel_count, row.bytes, first, options->input_zero_point);
            row.from = image + ((size_t)from_y * (size_t)shape->in_w +
                                (size_t)(left + first * options->stride_w)) * channel_count;
            move(&row);
            to = fill(row.to + (size_t)row.pixels * channel_count, channel_count, row.bytes, shape->out_w - end,
                      options->input_zero_point);
        }
    }
}

static saaug_status move_all(const saaug_options *options, const saaug_shape *shape, const int8_t *input, int8_t *output)
{
    const int32_t groups = groups_of(shape), taps = options->kernel_h * options->kernel_w;
    int32_t group = 0;
    while (group < groups) { /* neighbours that are read at one tap, together */
        const int32_t first = group, tap = tap_of(group, groups, taps);
        int32_t end;
        do {
            ++group;
        } while (group < groups && tap_of(group, groups, taps) == tap);
        end = group < groups ? group * SAAUG_MOVED_TOGETHER : shape->in_c;
        move_group(options, shape, input, output, tap, first * SAAUG_MOVED_TOGETHER, end - first * SAAUG_MOVED_TOGETHER);
    }
    return SAAUG_OK;
}

#define DEFINE_VERSION(version)                                                                                        \
    saaug_status saaug_channel_shift_s8_##version(const saaug_options *options, const saaug_shape *shape,              \
                                                  const int8_t *input, const uint8_t *weights, const int32_t *params,  \
                                                  int8_t *output, void *scratch)                                       \
    {                                                                                                                  \
        (void)weights;                                                                                                 \
        (void)params;                                                                                                  \
        (void)scratch;                                                                                                 \
        return move_all(options, shape, input, output);                                                                \
    }
DEFINE_VERSION(portable)
DEFINE_VERSION(dsp)
DEFINE_VERSION(helium)

#define DEFINE_SIZE(version)                                                                                           \
    int64_t saaug_channel_shift_s8_##version##_size(const saaug_options *options, const saaug_shape *shape)            \
    {                                                                                                                  \
        (void)options;                                                                                                 \
        (void)shape;                                                                                                   \
        return 0;                                                                                                      \
    }
DEFINE_SIZE(reference)
DEFINE_SIZE(portable)
DEFINE_SIZE(portable4)
DEFINE_SIZE(portable8)
DEFINE_SIZE(dsp)
DEFINE_SIZE(helium)
