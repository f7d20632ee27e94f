/**
 * @file saaug_plain.h
 * The layers of an exported network that have no kernel of their own: products, additions, pooling, resizing. Plain C99
 * for the projects that run without an interpreter; every result is bit for bit TFLite Micro's int8 reference kernel's.
 *
 * No heap, no globals, no floating point, no scratch; reentrant. Activations are int8, NHWC, one image. A fixed-point
 * scale is a Q31 multiplier and a right shift (negative: to the left): value * multiplier / 2^31 / 2^shift, rounded twice.
 */
#ifndef SAAUG_PLAIN_H
#define SAAUG_PLAIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int32_t multiplier; /* Q31 */
    int32_t shift;      /* right shift in [-31, 31] */
} saaug_plain_scale;

/** A window that moves over the input. A tap outside reads the zero point (convolution) or is left out (pooling). */
typedef struct {
    int32_t in_h, in_w, in_c, out_h, out_w, out_c;
    int32_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
} saaug_plain_window;

/**
 * y = clamp(requantize(bias + sum of weight * x) + output_zero_point, act_min, act_max)
 * @param[in] weights  int8 [O, kernel_h, kernel_w, C]; of a depthwise layer [O, kernel_h, kernel_w], whose output channel o
 *                     reads input channel o / (O / C).
 * @param[in] params   int32 [O, 3] = (bias, multiplier, right shift); the input's zero point is in the bias already.
 * @pre  |bias| + 128 * sum of |weights| < 2^31 for each output channel.
 */
typedef struct {
    saaug_plain_window window;
    int32_t input_zero_point, output_zero_point, act_min, act_max;
} saaug_plain_conv;

void saaug_plain_conv_2d(const saaug_plain_conv *layer, const int8_t *input, const int8_t *weights, const int32_t *params,
                         int8_t *output);
void saaug_plain_depthwise_conv_2d(const saaug_plain_conv *layer, const int8_t *input, const int8_t *weights,
                                   const int32_t *params, int8_t *output);

/**
 * 1 if a layer's options and constants are sound, else 0: ranges of all numbers, and that no accumulator can overflow.
 * @param taps  weights of one output channel: kernel_h * kernel_w * C, or kernel_h * kernel_w of a depthwise layer.
 */
int saaug_plain_check_conv(const saaug_plain_conv *layer, const int8_t *weights, int32_t taps, const int32_t *params);

/** y = clamp(a + b). Each input is scaled from 20 fraction bits. The output may be one of the inputs. */
typedef struct {
    int32_t count;
    int32_t zero_points[2], output_zero_point, act_min, act_max;
    saaug_plain_scale inputs[2], output;
} saaug_plain_add;

/** Any scales. Those that are powers of two multiply nothing. */
void saaug_plain_add_any(const saaug_plain_add *layer, const int8_t *a, const int8_t *b, int8_t *output);

/**
 * The same, in about half the instructions on Cortex-M0 and M4.
 * @pre inputs[0] is a half (2^30, 0), as that of the coarser grid is; inputs[1].shift in [1, 31]; output.shift in [1, 23].
 */
void saaug_plain_add_tensors(const saaug_plain_add *layer, const int8_t *a, const int8_t *b, int8_t *output);

/** y = clamp(a + b - zero_point) of three tensors on one grid: what saaug_plain_add_any gives there, no product. */
void saaug_plain_add_same(const saaug_plain_add *layer, const int8_t *a, const int8_t *b, int8_t *output);

/** y = clamp(a * b), b repeating every b_count elements. The output may be a. */
typedef struct {
    int32_t count, b_count;
    int32_t zero_points[2], output_zero_point, act_min, act_max;
    saaug_plain_scale output;
} saaug_plain_multiply;

void saaug_plain_multiply_tensors(const saaug_plain_multiply *layer, const int8_t *a, const int8_t *b, int8_t *output);

/** y[c] = mean over positions of x[position, c]; the division is in the scale. @pre positions <= 2^23. */
typedef struct {
    int32_t positions, channels, input_zero_point, output_zero_point;
    saaug_plain_scale output;
} saaug_plain_mean;

void saaug_plain_mean_over_image(const saaug_plain_mean *layer, const int8_t *input, int8_t *output);

/** Bilinear, half-pixel centres, in 1/1024 of a pixel. @pre sizes <= 2^15. */
typedef struct {
    int32_t in_h, in_w, out_h, out_w, channels;
} saaug_plain_resize;

void saaug_plain_resize_bilinear(const saaug_plain_resize *layer, const int8_t *input, int8_t *output);

void saaug_plain_max_pool(const saaug_plain_window *window, const int8_t *input, int8_t *output);
void saaug_plain_average_pool(const saaug_plain_window *window, const int8_t *input, int8_t *output);

/** Copies an image into a larger one, `value` around it. */
typedef struct {
    int32_t in_h, in_w, channels, pad_top, pad_left, pad_bottom, pad_right, value;
} saaug_plain_pad;

void saaug_plain_pad_image(const saaug_plain_pad *layer, const int8_t *input, int8_t *output);

/** y = x * min(max(x + 3, 0), 6) / 6. Multipliers are int16. The output may be the input. */
typedef struct {
    int32_t count, input_zero_point, output_zero_point;
    int32_t output_multiplier, output_shift; /* right shift >= 0 */
    int32_t gate_multiplier, gate_shift;     /* left shift, may be negative */
} saaug_plain_hard_swish;

void saaug_plain_hard_swish_tensor(const saaug_plain_hard_swish *layer, const int8_t *input, int8_t *output);

/** Any function of one value: `table` has its 256 results, for inputs from -128 on. The output may be the input. */
void saaug_plain_look_up(int32_t count, const int8_t *table, const int8_t *input, int8_t *output);

/** Copies rows of `bytes` into longer ones of `whole`, from byte `start` of each. */
typedef struct {
    int32_t rows, bytes, whole, start;
} saaug_plain_rows;

void saaug_plain_copy_rows(const saaug_plain_rows *layer, const int8_t *input, int8_t *output);

/** Softmax over the last axis; scale 1/256, zero point -128. The output may be the input. */
typedef struct {
    int32_t rows, depth;
    int32_t multiplier, left_shift; /* of the input's scale, to 26 fraction bits */
    int32_t least_difference;       /* from the largest, that still counts; negative */
} saaug_plain_softmax;

void saaug_plain_softmax_rows(const saaug_plain_softmax *layer, const int8_t *input, int8_t *output);

/** Index of the largest of `count` values, the first of equals. */
int32_t saaug_plain_argmax(const int8_t *values, int32_t count);

#ifdef __cplusplus
}
#endif

#endif /* SAAUG_PLAIN_H */
