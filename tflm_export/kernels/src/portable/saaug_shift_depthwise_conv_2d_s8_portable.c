/* SHIFT_DEPTHWISE_CONV_2D, portable: planes of one channel (saaug_planes.h), taps as a program (saaug_bucket.h). */
#include "saaug_planes.h"

static void prepare(const saaug_options *options, const uint8_t *row, const uint16_t *offsets, void *taps)
{
    saaug_bucket_program(row, options->layout, 0, options->kernel_h * options->kernel_w, offsets, 0, taps);
}

static void run(const void *taps, const uint32_t *words, int32_t *acc) { saaug_bucket_run(taps, words, acc); }

static saaug_plane_operator operator_of(const saaug_options *options)
{
    saaug_plane_operator operator;
    operator.taps_bytes = 2 * saaug_bucket_program_length(options->kernel_h * options->kernel_w, options->layout);
    operator.prepare = prepare;
    operator.run = run;
    return operator;
}

/* Kernels beyond a program's length and images too wide for planes go to the reference version. */
static int64_t planes_size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    const saaug_plane_operator operator = operator_of(options);
    if (options->kernel_h * options->kernel_w > SAAUG_PROGRAM_TAPS) {
        return -1;
    }
    return saaug_planes_size(&operator, options, shape, words);
}

static int64_t size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    const int64_t bytes = planes_size(options, shape, words);
    return bytes >= 0 ? bytes : saaug_shift_depthwise_conv_2d_s8_reference_size(options, shape);
}

SAAUG_PORTABLE_SIZES(saaug_shift_depthwise_conv_2d_s8, size)

saaug_status saaug_shift_depthwise_conv_2d_s8_portable(const saaug_options *options, const saaug_shape *shape,
                                                       const int8_t *input, const uint8_t *weights,
                                                       const int32_t *params, int8_t *output, void *scratch)
{
    const saaug_plane_operator operator = operator_of(options);
    if (planes_size(options, shape, SAAUG_WORDS) < 0) {
        return saaug_shift_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    return saaug_planes_layer(&operator, options, shape, input, weights, params, output, scratch);
}
