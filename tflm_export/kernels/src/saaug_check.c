/* Everything that a damaged model can get wrong, found before a kernel runs. */
#include "saaug_internal.h"

#define SAAUG_ACCUMULATOR_LIMIT (((int64_t)1 << 30) - 1)
#define SAAUG_MOST_TAPS ((int32_t)1 << 22)

static int in_range(int32_t value, int32_t low, int32_t high) { return value >= low && value <= high; }

static int is_depthwise(const saaug_options *options)
{
    return saaug_kind_of(options->op) == SAAUG_KIND_DEPTHWISE;
}

static int is_adder(const saaug_options *options)
{
    return saaug_terms_of(options->op) == SAAUG_TERMS_ADDER;
}

static int moves(const saaug_options *options) { return saaug_terms_of(options->op) == SAAUG_TERMS_MOVES; }

static int is_dense(const saaug_options *options) { return saaug_kind_of(options->op) == SAAUG_KIND_DENSE; }

saaug_status saaug_check_options(const saaug_options *options)
{
    if (!saaug_is_op(options->op) ||
        !in_range(options->requant, SAAUG_REQUANT_Q31, SAAUG_REQUANT_POWER_OF_TWO) ||
        !in_range(options->layout, SAAUG_LAYOUT_NIBBLE, SAAUG_LAYOUT_NONE) ||
        is_adder(options) != (options->layout == SAAUG_LAYOUT_OFFSET) ||
        moves(options) != (options->layout == SAAUG_LAYOUT_NONE)) {
        return SAAUG_BAD_OPTIONS;
    }
    if (!in_range(options->kernel_h, 1, 255) || !in_range(options->kernel_w, 1, 255) ||
        !in_range(options->stride_h, 1, 255) || !in_range(options->stride_w, 1, 255) ||
        !in_range(options->dilation_h, 1, 255) || !in_range(options->dilation_w, 1, 255)) {
        return SAAUG_BAD_OPTIONS;
    }
    if (!in_range(options->pad_top, 0, (options->kernel_h - 1) * options->dilation_h) ||
        !in_range(options->pad_left, 0, (options->kernel_w - 1) * options->dilation_w) ||
        !in_range(options->depth_multiplier, 1, is_depthwise(options) ? 65535 : 1)) {
        return SAAUG_BAD_OPTIONS;
    }
    if (is_dense(options) &&
        (options->kernel_h != 1 || options->kernel_w != 1 || options->stride_h != 1 || options->stride_w != 1 ||
         options->dilation_h != 1 || options->dilation_w != 1)) {
        return SAAUG_BAD_OPTIONS;
    }
    if (!in_range(options->input_zero_point, -128, 127) || !in_range(options->output_zero_point, -128, 127) ||
        !in_range(options->act_min, -128, 127) || !in_range(options->act_max, options->act_min, 127)) {
        return SAAUG_BAD_OPTIONS;
    }
    if (moves(options) && (options->requant != SAAUG_REQUANT_Q31 || options->depth_multiplier != 1 ||
                           options->input_zero_point != options->output_zero_point || options->act_min != -128 ||
                           options->act_max != 127)) {
        return SAAUG_BAD_OPTIONS;
    }
    return SAAUG_OK;
}

/* Is `out` the output size of some bottom (or right) padding between 0 and the kernel's extent less 1? */
static int output_follows(int32_t in, int32_t out, int32_t kernel, int32_t stride, int32_t dilation, int32_t pad)
{
    const int32_t reach = (kernel - 1) * dilation;
    const int32_t unpadded = in + pad - reach - 1;
    const int32_t least = unpadded < 0 ? 1 : unpadded / stride + 1;
    const int32_t most = (in + pad - 1) / stride + 1;
    return out >= least && out <= most;
}

/* Sizes of a tensor, each in [1, 65535], with a product of at most 2^31 - 1. */
static int size_is_sound(int32_t n, int32_t h, int32_t w, int32_t c)
{
    return in_range(n, 1, 65535) && in_range(h, 1, 65535) && in_range(w, 1, 65535) && in_range(c, 1, 65535) &&
           (uint64_t)((uint32_t)n * (uint32_t)h) * (uint32_t)w <= INT32_MAX &&
           (uint64_t)((uint32_t)n * (uint32_t)h * (uint32_t)w) * (uint32_t)c <= INT32_MAX;
}

static int64_t taps_of(const saaug_options *options, const saaug_shape *shape)
{
    const int32_t window = options->kernel_h * options->kernel_w;
    return is_depthwise(options) ? window : (int64_t)window * shape->in_c;
}

static int64_t row_bytes_of(const saaug_options *options, const saaug_shape *shape)
{
    const int64_t taps = taps_of(options, shape);
    if (options->layout == SAAUG_LAYOUT_NONE) {
        return 0;
    }
    return options->layout == SAAUG_LAYOUT_BIT ? (taps + 7) / 8
                                               : (taps + 3) / 4 * (options->layout == SAAUG_LAYOUT_NIBBLE ? 2 : 4);
}

int32_t saaug_row_bytes(const saaug_options *options, const saaug_shape *shape)
{
    return (int32_t)row_bytes_of(options, shape);
}

int32_t saaug_weights_bytes(const saaug_options *options, const saaug_shape *shape)
{
    return (int32_t)(row_bytes_of(options, shape) * shape->out_c);
}

saaug_status saaug_check(const saaug_options *options, const saaug_shape *shape)
{
    const saaug_status status = saaug_check_options(options);
    if (status != SAAUG_OK) {
        return status;
    }
    if (!size_is_sound(shape->batches, shape->in_h, shape->in_w, shape->in_c)) {
        return SAAUG_BAD_INPUT;
    }
    if (is_dense(options) && (shape->in_h != 1 || shape->in_w != 1)) {
        return SAAUG_BAD_INPUT;
    }
    if (!size_is_sound(shape->batches, shape->out_h, shape->out_w, shape->out_c) ||
        !output_follows(shape->in_h, shape->out_h, options->kernel_h, options->stride_h, options->dilation_h,
                        options->pad_top) ||
        !output_follows(shape->in_w, shape->out_w, options->kernel_w, options->stride_w, options->dilation_w,
                        options->pad_left)) {
        return SAAUG_BAD_OUTPUT;
    }
    if (is_depthwise(options) && shape->out_c != (int64_t)shape->in_c * options->depth_multiplier) {
        return SAAUG_BAD_OUTPUT;
    }
    if (taps_of(options, shape) > SAAUG_MOST_TAPS || row_bytes_of(options, shape) * shape->out_c > INT32_MAX) {
        return SAAUG_BAD_WEIGHTS;
    }
    return SAAUG_OK;
}

/* The sum of a row's weight magnitudes, or -1 for a reserved code or nonzero padding. */
static int64_t sum_of_row(const saaug_options *options, const uint8_t *row, int32_t taps)
{
    const int32_t padded = (taps + 3) / 4 * 4;
    int64_t sum = 0;
    int32_t i;
    if (options->layout == SAAUG_LAYOUT_BIT) {
        return (taps & 7) != 0 && row[taps >> 3] >> (taps & 7) != 0 ? -1 : (int64_t)taps << SAAUG_BIT_SCALE_LOG2;
    }
    for (i = 0; i < padded; ++i) {
        if (options->layout == SAAUG_LAYOUT_NIBBLE) {
            const uint32_t code = saaug_nibble(row, i);
            if (code == 8u || (i >= taps && code != 0)) {
                return -1;
            }
            sum += (code & 7u) != 0 ? (int32_t)1 << ((code & 7u) - 1) : 0;
        } else if (options->layout == SAAUG_LAYOUT_BYTE) {
            const int32_t code = (int8_t)row[i];
            const int32_t magnitude = code < 0 ? -code : code;
            if (magnitude > 16 || (i >= taps && code != 0)) {
                return -1;
            }
            sum += magnitude != 0 ? (int32_t)1 << (magnitude - 1) : 0;
        } else if (i >= taps && row[i] != 0) {
            return -1;
        }
    }
    return sum;
}

saaug_status saaug_check_constants(const saaug_options *options, const saaug_shape *shape, const uint8_t *weights,
                                   size_t weights_bytes, const int32_t *params, size_t params_count, int32_t *channel)
{
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const int32_t taps = (int32_t)taps_of(options, shape);
    int32_t ignored, o;
    int32_t *const fault = channel != NULL ? channel : &ignored;
    *fault = -1;
    if (moves(options)) {
        return SAAUG_OK;
    }
    if (weights_bytes < (size_t)saaug_weights_bytes(options, shape)) {
        return SAAUG_BAD_WEIGHTS;
    }
    if (params_count / 3 < (size_t)shape->out_c) {
        return SAAUG_BAD_PARAMS;
    }
    for (o = 0; o < shape->out_c; ++o, weights += row_bytes, params += 3) {
        const int64_t sum = sum_of_row(options, weights, taps);
        const int64_t reach = is_adder(options) ? ((int64_t)255 << SAAUG_ADDER_SCALE_LOG2) * taps : 128 * sum;
        const int64_t bias = params[0] < 0 ? -(int64_t)params[0] : params[0];
        *fault = o;
        if (sum < 0) {
            return SAAUG_BAD_WEIGHTS;
        }
        if (!in_range(params[2], 1, 30) || bias + reach > SAAUG_ACCUMULATOR_LIMIT) {
            return SAAUG_BAD_PARAMS;
        }
        if (options->requant == SAAUG_REQUANT_POWER_OF_TWO ? params[1] != 1 && params[1] != -1
                                                           : params[1] == INT32_MIN) {
            return SAAUG_BAD_PARAMS;
        }
    }
    *fault = -1;
    return SAAUG_OK;
}
