#include "saaug_plain.h"

#include <stddef.h>
#include <string.h>

/* The right shift of a negative number is the compiler's choice in C99; this file needs the arithmetic one. */
typedef char saaug_plain_right_shift_is_arithmetic[(-3 >> 1) == -2 ? 1 : -1];

static int32_t clamp(int32_t value, int32_t low, int32_t high) { return value < low ? low : value > high ? high : value; }

static int32_t shift_left(int32_t value, int32_t bits) { return (int32_t)((uint32_t)value << bits); }

/** value * multiplier / 2^31 to nearest. @pre not both -2^31. */
static int32_t multiply_high(int32_t value, int32_t multiplier)
{
    return (int32_t)(((int64_t)value * multiplier + ((int64_t)1 << 30)) >> 31);
}

/** value / 2^shift to nearest, halves away from zero; shift in [0, 31]. */
static int32_t rounding_shift(int32_t value, int32_t shift)
{
    const uint32_t mask = shift > 0 ? 0xFFFFFFFFu >> (32 - shift) : 0;
    const uint32_t rest = (uint32_t)value & mask;
    return (value >> (shift < 31 ? shift : 31)) + (rest > (mask >> 1) + (value < 0 ? 1u : 0u) ? 1 : 0);
}

static int32_t rescale(int32_t value, saaug_plain_scale scale)
{
    if (scale.shift < 0) {
        value = shift_left(value, -scale.shift);
    }
    /* A multiplier of 2^30 is a half: networks whose scales are powers of two multiply nothing. */
    value = scale.multiplier == 1 << 30 ? (value >> 1) + (value & 1) : multiply_high(value, scale.multiplier);
    return scale.shift > 0 ? rounding_shift(value, scale.shift) : value;
}

static int8_t finish(const saaug_plain_conv *layer, int32_t acc, const int32_t *params)
{
    saaug_plain_scale scale;
    scale.multiplier = params[1];
    scale.shift = params[2];
    return (int8_t)clamp(rescale(acc, scale) + layer->output_zero_point, layer->act_min, layer->act_max);
}

/** The pixel under a tap of output position (y, x), or NULL outside the image. */
static const int8_t *pixel(const saaug_plain_window *w, const int8_t *input, int32_t y, int32_t x, int32_t i, int32_t j)
{
    const int32_t row = y * w->stride_h - w->pad_top + i * w->dilation_h;
    const int32_t column = x * w->stride_w - w->pad_left + j * w->dilation_w;
    if (row < 0 || row >= w->in_h || column < 0 || column >= w->in_w) {
        return NULL;
    }
    return input + ((size_t)row * (size_t)w->in_w + (size_t)column) * (size_t)w->in_c;
}

#define SIDE_BY_SIDE 4 /* output channels that share what is loaded of the input */

/** Adds products of `count` values, `step` apart, to the sums of successive output channels, `taps` weights apart. */
static inline void add_products(const int8_t *values, int32_t step, int32_t count, const int8_t *weights, int32_t taps,
                                int32_t channels, int32_t *acc)
{
    int32_t o;
    for (; count > 0; --count) {
        const int32_t value = *values;
        for (o = 0; o < channels; ++o) {
            acc[o] += value * weights[o * taps];
        }
        values += step;
        ++weights;
    }
}

/** Output channels at one position; `channels` is a constant where it is called. */
static inline void conv_channels(const saaug_plain_conv *layer, const int8_t *input, const int8_t *weights, int32_t taps,
                                 const int32_t *params, int32_t y, int32_t x, int32_t channels, int8_t *output)
{
    const saaug_plain_window *const w = &layer->window;
    const int8_t zero_point = (int8_t)layer->input_zero_point;
    const int32_t left = x * w->stride_w - w->pad_left;
    int32_t acc[SIDE_BY_SIDE], o, i, j, columns;
    for (o = 0; o < channels; ++o) {
        acc[o] = params[3 * o];
    }
    for (i = 0; i < w->kernel_h; ++i) {
        for (j = 0; j < w->kernel_w; j += columns) {
            const int8_t *values = pixel(w, input, y, x, i, j);
            int32_t step = 1;
            columns = 1;
            if (values == NULL) {
                values = &zero_point;
                step = 0;
            } else if (w->dilation_w == 1) { /* what is left of the window's row, or of the image's */
                columns = w->kernel_w - j < w->in_w - left - j ? w->kernel_w - j : w->in_w - left - j;
            }
            add_products(values, step, columns * w->in_c, weights, taps, channels, acc);
            weights += columns * w->in_c;
        }
    }
    for (o = 0; o < channels; ++o) {
        output[o] = finish(layer, acc[o], params + 3 * o);
    }
}

void saaug_plain_conv_2d(const saaug_plain_conv *layer, const int8_t *input, const int8_t *weights, const int32_t *params,
                         int8_t *output)
{
    const saaug_plain_window *const w = &layer->window;
    const int32_t taps = w->kernel_h * w->kernel_w * w->in_c;
    int32_t y, x, o;
    for (y = 0; y < w->out_h; ++y) {
        for (x = 0; x < w->out_w; ++x) {
            for (o = 0; o + SIDE_BY_SIDE <= w->out_c; o += SIDE_BY_SIDE) {
                conv_channels(layer, input, weights + o * taps, taps, params + 3 * o, y, x, SIDE_BY_SIDE, output + o);
            }
            for (; o < w->out_c; ++o) {
                conv_channels(layer, input, weights + o * taps, taps, params + 3 * o, y, x, 1, output + o);
            }
            output += w->out_c;
        }
    }
}

void saaug_plain_depthwise_conv_2d(const saaug_plain_conv *layer, const int8_t *input, const int8_t *weights,
                                   const int32_t *params, int8_t *output)
{
    const saaug_plain_window *const w = &layer->window;
    const int32_t multiplier = w->out_c / w->in_c;
    int32_t y, x, o, i, j;
    for (y = 0; y < w->out_h; ++y) {
        for (x = 0; x < w->out_w; ++x) {
            const int8_t *weight = weights;
            for (o = 0; o < w->out_c; ++o) {
                int32_t acc = params[3 * o];
                for (i = 0; i < w->kernel_h; ++i) {
                    for (j = 0; j < w->kernel_w; ++j) {
                        const int8_t *const values = pixel(w, input, y, x, i, j);
                        acc += *weight++ * (values != NULL ? values[o / multiplier] : layer->input_zero_point);
                    }
                }
                *output++ = finish(layer, acc, params + 3 * o);
            }
        }
    }
}

static int in_range(int32_t value, int32_t low, int32_t high) { return value >= low && value <= high; }

int saaug_plain_check_conv(const saaug_plain_conv *layer, const int8_t *weights, int32_t taps, const int32_t *params)
{
    const saaug_plain_window *const w = &layer->window;
    int32_t o, i;
    if (w->in_h < 1 || w->in_w < 1 || w->in_c < 1 || w->out_h < 1 || w->out_w < 1 || w->out_c < 1 || w->kernel_h < 1 ||
        w->kernel_w < 1 || w->stride_h < 1 || w->stride_w < 1 || w->dilation_h < 1 || w->dilation_w < 1 || w->pad_top < 0 ||
        w->pad_left < 0) {
        return 0;
    }
    if (!in_range(layer->input_zero_point, -128, 127) || !in_range(layer->output_zero_point, -128, 127) ||
        !in_range(layer->act_min, -128, 127) || !in_range(layer->act_max, layer->act_min, 127)) {
        return 0;
    }
    for (o = 0; o < w->out_c; ++o, weights += taps, params += 3) {
        int64_t reach = params[0] < 0 ? -(int64_t)params[0] : params[0];
        for (i = 0; i < taps; ++i) {
            reach += 128 * (weights[i] < 0 ? -weights[i] : weights[i]);
        }
        if (reach > INT32_MAX || params[1] == INT32_MIN || !in_range(params[2], -31, 31)) {
            return 0;
        }
    }
    return 1;
}

void saaug_plain_add_any(const saaug_plain_add *layer, const int8_t *a, const int8_t *b, int8_t *output)
{
    const saaug_plain_add l = *layer; /* which the output might be, for all that the compiler knows */
    int32_t i;
    for (i = 0; i < l.count; ++i) {
        const int32_t first = rescale(shift_left(a[i] - l.zero_points[0], 20), l.inputs[0]);
        const int32_t second = rescale(shift_left(b[i] - l.zero_points[1], 20), l.inputs[1]);
        const int32_t sum = rescale(first + second, l.output) + l.output_zero_point;
        output[i] = (int8_t)clamp(sum, l.act_min, l.act_max);
    }
}

void saaug_plain_add_tensors(const saaug_plain_add *layer, const int8_t *a, const int8_t *b, int8_t *output)
{
    const saaug_plain_add l = *layer;
    const int32_t high = l.inputs[1].multiplier >> 11, low = l.inputs[1].multiplier & 2047;
    const int32_t half = 1 << (l.inputs[1].shift - 1), zero = -shift_left(l.zero_points[0], 19);
    const int32_t last = (1 << (l.output.shift - 1)) + shift_left(l.output_zero_point, l.output.shift);
    int32_t i;
    for (i = 0; i < l.count; ++i) {
        /* Before the last product no number leaves 32 bits: |value| < 2^9, and 2^20 / 2^31 of its scaling is 2^-11. */
        const int32_t value = b[i] - l.zero_points[1];
        const int32_t second = value * high + ((value * low + 1024) >> 11);
        const int32_t sum = shift_left(a[i], 19) + zero + ((second + half + (second >> 31)) >> l.inputs[1].shift);
        const int32_t scaled = multiply_high(sum, l.output.multiplier);
        output[i] = (int8_t)clamp((scaled + last + (scaled >> 31)) >> l.output.shift, l.act_min, l.act_max);
    }
}

void saaug_plain_add_same(const saaug_plain_add *layer, const int8_t *a, const int8_t *b, int8_t *output)
{
    int32_t i;
    for (i = 0; i < layer->count; ++i) {
        output[i] = (int8_t)clamp(a[i] + b[i] - layer->output_zero_point, layer->act_min, layer->act_max);
    }
}

void saaug_plain_multiply_tensors(const saaug_plain_multiply *layer, const int8_t *a, const int8_t *b, int8_t *output)
{
    int32_t i, j = 0;
    for (i = 0; i < layer->count; ++i) {
        const int32_t product = (a[i] - layer->zero_points[0]) * (b[j] - layer->zero_points[1]);
        const int32_t value = rescale(product, layer->output) + layer->output_zero_point;
        output[i] = (int8_t)clamp(value, layer->act_min, layer->act_max);
        j = j + 1 < layer->b_count ? j + 1 : 0;
    }
}

void saaug_plain_mean_over_image(const saaug_plain_mean *layer, const int8_t *input, int8_t *output)
{
    int32_t c, i;
    for (c = 0; c < layer->channels; ++c) {
        int32_t sum = -layer->input_zero_point * layer->positions;
        for (i = 0; i < layer->positions; ++i) {
            sum += input[(size_t)i * (size_t)layer->channels + (size_t)c];
        }
        output[c] = (int8_t)clamp(rescale(sum, layer->output) + layer->output_zero_point, -128, 127);
    }
}

/** Neighbours of output position `at` and the weight of the upper one, in 1/1024. */
static void neighbours(int32_t at, int32_t in, int32_t out, int32_t *lower, int32_t *upper, int32_t *weight)
{
    const int32_t step = (1024 * in + out / 2) / out;
    const int32_t position = at * step + step / 2 - 512;
    *lower = position / 1024 > 0 ? position / 1024 : 0;
    *upper = (position + 1023) / 1024 < in - 1 ? (position + 1023) / 1024 : in - 1;
    *weight = position - 1024 * *lower;
}

void saaug_plain_resize_bilinear(const saaug_plain_resize *layer, const int8_t *input, int8_t *output)
{
    const size_t channels = (size_t)layer->channels, row = (size_t)layer->in_w * channels;
    int32_t y, x, y0, y1, x0, x1, dy, dx;
    size_t c;
    for (y = 0; y < layer->out_h; ++y) {
        neighbours(y, layer->in_h, layer->out_h, &y0, &y1, &dy);
        for (x = 0; x < layer->out_w; ++x) {
            neighbours(x, layer->in_w, layer->out_w, &x0, &x1, &dx);
            for (c = 0; c < channels; ++c) {
                const int8_t *const above = input + (size_t)y0 * row + c, *const below = input + (size_t)y1 * row + c;
                const size_t left = (size_t)x0 * channels, right = (size_t)x1 * channels;
                const int64_t sum = ((int64_t)above[left] * (1024 - dx) + (int64_t)above[right] * dx) * (1024 - dy) +
                                    ((int64_t)below[left] * (1024 - dx) + (int64_t)below[right] * dx) * dy;
                *output++ = (int8_t)((sum + (sum > 0 ? 1 << 19 : -(1 << 19))) / (1 << 20));
            }
        }
    }
}

void saaug_plain_max_pool(const saaug_plain_window *window, const int8_t *input, int8_t *output)
{
    int32_t y, x, c, i, j;
    for (y = 0; y < window->out_h; ++y) {
        for (x = 0; x < window->out_w; ++x) {
            for (c = 0; c < window->in_c; ++c) {
                int8_t largest = -128;
                for (i = 0; i < window->kernel_h; ++i) {
                    for (j = 0; j < window->kernel_w; ++j) {
                        const int8_t *const values = pixel(window, input, y, x, i, j);
                        if (values != NULL && values[c] > largest) {
                            largest = values[c];
                        }
                    }
                }
                *output++ = largest;
            }
        }
    }
}

void saaug_plain_average_pool(const saaug_plain_window *window, const int8_t *input, int8_t *output)
{
    int32_t y, x, c, i, j;
    for (y = 0; y < window->out_h; ++y) {
        for (x = 0; x < window->out_w; ++x) {
            for (c = 0; c < window->in_c; ++c) {
                int32_t sum = 0, count = 0;
                for (i = 0; i < window->kernel_h; ++i) {
                    for (j = 0; j < window->kernel_w; ++j) {
                        const int8_t *const values = pixel(window, input, y, x, i, j);
                        if (values != NULL) {
                            sum += values[c];
                            ++count;
                        }
                    }
                }
                *output++ = (int8_t)((sum > 0 ? sum + count / 2 : sum - count / 2) / count);
            }
        }
    }
}

void saaug_plain_pad_image(const saaug_plain_pad *layer, const int8_t *input, int8_t *output)
{
    const size_t row = (size_t)layer->in_w * (size_t)layer->channels;
    const size_t left = (size_t)layer->pad_left * (size_t)layer->channels;
    const size_t right = (size_t)layer->pad_right * (size_t)layer->channels;
    const size_t whole = left + row + right;
    int32_t y;
    memset(output, layer->value, whole * (size_t)layer->pad_top);
    output += whole * (size_t)layer->pad_top;
    for (y = 0; y < layer->in_h; ++y) {
        memset(output, layer->value, left);
        memcpy(output + left, input, row);
        memset(output + left + row, layer->value, right);
        input += row;
        output += whole;
    }
    memset(output, layer->value, whole * (size_t)layer->pad_bottom);
}

static int32_t to_int16(int32_t value) { return clamp(value, -32768, 32767); }

/** a * b / 2^15 to nearest, halves up. */
static int32_t multiply_high_16(int32_t a, int32_t b)
{
    const int32_t product = a * b;
    return (product + (product >= 0 ? 1 << 14 : 1 - (1 << 14))) / (1 << 15);
}

void saaug_plain_hard_swish_tensor(const saaug_plain_hard_swish *layer, const int8_t *input, int8_t *output)
{
    int32_t i;
    for (i = 0; i < layer->count; ++i) {
        const int32_t fine = (input[i] - layer->input_zero_point) * 128;
        const int32_t value = multiply_high_16(fine, layer->output_multiplier);
        int32_t gate = fine;
        if (layer->gate_shift > 0) {
            /* 15 bits to the left saturate anything but zero, and |gate| < 2^15, so nothing overflows. */
            gate = to_int16(gate * (1 << (layer->gate_shift < 16 ? layer->gate_shift - 1 : 15)));
        }
        gate = multiply_high_16(gate, layer->gate_multiplier);
        if (layer->gate_shift > 0) {
            gate = to_int16(gate * 2);
        } else {
            gate = rounding_shift(gate, -layer->gate_shift);
        }
        gate = (gate + 32768) >> 1;
        output[i] = (int8_t)clamp(rounding_shift(gate * value / (1 << 15), layer->output_shift) +
                                      layer->output_zero_point,
                                  -128, 127);
    }
}

void saaug_plain_look_up(int32_t count, const int8_t *table, const int8_t *input, int8_t *output)
{
    int32_t i;
    for (i = 0; i < count; ++i) {
        output[i] = table[input[i] + 128];
    }
}

void saaug_plain_copy_rows(const saaug_plain_rows *layer, const int8_t *input, int8_t *output)
{
    int32_t row;
    output += layer->start;
    for (row = 0; row < layer->rows; ++row, input += layer->bytes, output += layer->whole) {
        memcpy(output, input, (size_t)layer->bytes);
    }
}

/** exp(value) as Q0.31 of a Q5.26 value in [-32, 0]. */
static int32_t exp_of_negative(int32_t value)
{
    /* exp(-1/4), exp(-1/2), ... exp(-16) in Q0.31 */
    static const int32_t powers[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter = 1 << 24;
    const int32_t fraction = (value & (quarter - 1)) - quarter;
    const int32_t rest = fraction - value;
    const int32_t x = shift_left(fraction, 5) + (1 << 28);
    const int32_t x2 = multiply_high(x, x), x3 = multiply_high(x2, x), x4 = multiply_high(x2, x2);
    const int32_t inner = rounding_shift(multiply_high(rounding_shift(x4, 2) + x3, 715827883) + x2, 1);
    int32_t result = 1895147668 + multiply_high(1895147668, x + inner);
    int32_t bit;
    if (value == 0) {
        return INT32_MAX;
    }
    for (bit = 0; bit < 7; ++bit) {
        if (((rest >> (24 + bit)) & 1) != 0) {
            result = multiply_high(result, powers[bit]);
        }
    }
    return result;
}

static int32_t saturate(int64_t value)
{
    return value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : (int32_t)value;
}

/** 1 / (1 + x) as Q0.31 of Q0.31 x in [0, 1]: Newton's iteration on half the denominator. */
static int32_t one_over_one_plus(int32_t x)
{
    const int32_t half = (int32_t)(((int64_t)x + INT32_MAX + 1) / 2);
    int32_t guess = 1515870810 + multiply_high(half, -1010580540);
    int step;
    for (step = 0; step < 3; ++step) {
        const int32_t error = (1 << 29) - multiply_high(half, guess);
        guess += saturate((int64_t)multiply_high(guess, error) * 4);
    }
    return saturate((int64_t)guess * 2);
}

void saaug_plain_softmax_rows(const saaug_plain_softmax *layer, const int8_t *input, int8_t *output)
{
    int32_t row, i;
    for (row = 0; row < layer->rows; ++row, input += layer->depth, output += layer->depth) {
        const int32_t largest = input[saaug_plain_argmax(input, layer->depth)];
        int32_t sum = 0, headroom = 0, reciprocal;
        for (i = 0; i < layer->depth; ++i) {
            const int32_t difference = input[i] - largest;
            if (difference >= layer->least_difference) {
                sum += rounding_shift(
                    exp_of_negative(multiply_high(shift_left(difference, layer->left_shift), layer->multiplier)), 12);
            }
        }
        while (headroom < 31 && (((uint32_t)sum << headroom) & 0x80000000u) == 0) {
            ++headroom;
        }
        reciprocal = one_over_one_plus((int32_t)(((uint32_t)sum << headroom) ^ 0x80000000u));
        for (i = 0; i < layer->depth; ++i) {
            const int32_t difference = input[i] - largest;
            int32_t value = -128;
            if (difference >= layer->least_difference) {
                value += rounding_shift(
                    multiply_high(reciprocal, exp_of_negative(multiply_high(shift_left(difference, layer->left_shift),
                                                                            layer->multiplier))),
                    12 - headroom + 23);
            }
            output[i] = (int8_t)clamp(value, -128, 127);
        }
    }
}

int32_t saaug_plain_argmax(const int8_t *values, int32_t count)
{
    int32_t best = 0, i;
    for (i = 1; i < count; ++i) {
        if (values[i] > values[best]) {
            best = i;
        }
    }
    return best;
}
