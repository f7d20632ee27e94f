/**
 * @file saaug_nn.h
 * Multiplication-free layers for microcontrollers: int8 activations, shift weights (signed powers of two) or add weights
 * (L1 distance). This header is the contract; every version (reference, portable C, Arm DSP, Helium) gives the same bits.
 *
 * Words: O = output channels, C = input channels, K = taps of one output channel: kernel_h * kernel_w * C for a
 * convolution, kernel_h * kernel_w for a depthwise one, C for a fully connected layer.
 *
 * Activations  int8, NHWC, contiguous. A tap outside the image reads the input's zero point.
 *
 * Weights      One row of K codes per output channel, in the order kernel_h, kernel_w, C (O,H,W,I row-major; I = 1 for a
 *              depthwise layer, whose output channel o reads input channel o / depth_multiplier). Every row is padded to a
 *              multiple of 4 codes, of 8 bits; the padding is zero. saaug_row_bytes() is the distance between rows.
 *   SAAUG_LAYOUT_NIBBLE   shift layers, 4 bits a code, low nibble first. Bit 3 is the sign, bits 2..0 are a magnitude e:
 *                         0 is zero, e in [1, 7] is 2^(e-1). Code 8 (a negative zero) is reserved and refused.
 *   SAAUG_LAYOUT_BYTE     shift layers of more than 7 exponents, one int8 a code: 0 is zero, else |code| in [1, 16] means
 *                         sign(code) * 2^(|code| - 1). The exponents of 5 bits, and of 4 bits without a zero code, fit.
 *   SAAUG_LAYOUT_BIT      shift layers whose weights have one size, 1 bit a code, the lowest bit first: 0 is 64, 1 is -64.
 *                         64 lets a gain be up to 32, as batch norms need.
 *   SAAUG_LAYOUT_OFFSET   add layers, one uint8 a code: w' + 128, where w' = w + input zero point clipped to [-128, 127].
 *                         |x - w| over real values is |x - w'| + |w' - clip(w')| for every int8 x; the constant goes into
 *                         the bias.
 *   SAAUG_LAYOUT_NONE     a channel shift, which has neither weights nor params: 0 bytes, NULL.
 *
 * Params       int32 [O, 3] = (bias, multiplier, shift) of each output channel.
 *
 * Result       shift:  acc = bias + sum of  sign * (x << exponent)      the zero point is in the bias already:
 *                                                                       bias = b - input_zero_point * sum of weights
 *              add:    acc = bias + 256 * sum of |x - w'|               the operator's minus sign is in the multiplier; 256
 *                                                                       lets a gain be up to 128, as batch norms need
 *              SAAUG_REQUANT_Q31           v = (acc * multiplier + 2^30) >> 31    multiplier in [-(2^31 - 1), 2^31 - 1]
 *              SAAUG_REQUANT_POWER_OF_TWO  v = acc * multiplier                   multiplier is 1 or -1: no product is made
 *              y = clamp(((v + 2^(shift-1) + (v >> 31)) >> shift) + output_zero_point, act_min, act_max)
 *              shift in [1, 30]. Q31 is exactly TFLite Micro's SaturatingRoundingDoublingHighMul followed by
 *              RoundingDivideByPOT, for shift >= 1.
 *
 * Moves        A channel shift reads channel c at tap floor((2 g + 1) * taps / (2 * groups)) of its window, where
 *              g = floor(c / 4) and groups = ceil(C / 4); taps are counted row by row. The output has the input's zero point
 *              and scale, requant is Q31, and act_min and act_max are -128 and 127.
 *
 * Overflow     @pre of every kernel, tested at the bound: for each output channel
 *              shift:  |bias| + 128 * sum of |weights| <= 2^30 - 1
 *              add:    |bias| + 256 * 255 * K          <= 2^30 - 1
 *
 * Scratch      saaug_<op>_s8_get_buffer_size() bytes, aligned to 4 bytes (to 8 for the fastest path); its contents need not
 *              survive between calls. No heap, no mutable globals, no floating point; every function is reentrant.
 *
 * Division of labour: saaug_parse_options(), saaug_check() and saaug_check_constants() find everything that a damaged model
 * can get wrong; they run once. The kernels repeat saaug_check(), which costs some thirty comparisons, and trust the rest.
 */
#ifndef SAAUG_NN_H
#define SAAUG_NN_H

#include <stddef.h>
#include <stdint.h>

#include "saaug_op_list.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    SAAUG_OK = 0,
    SAAUG_BAD_OPTIONS = 1, /* the option record: length, magic, version, or a field out of its range */
    SAAUG_BAD_INPUT = 2,   /* the input's shape does not fit the options */
    SAAUG_BAD_WEIGHTS = 3, /* length, a reserved code, or nonzero padding */
    SAAUG_BAD_PARAMS = 4,  /* length, a multiplier or shift out of range, or an accumulator that could overflow */
    SAAUG_BAD_OUTPUT = 5,  /* the output's shape does not follow from input and options */
    SAAUG_BAD_SCRATCH = 6  /* scratch is needed and NULL, or not aligned */
} saaug_status;

/** The operators: SAAUG_SHIFT_CONV_2D, SAAUG_ADDER_CONV_2D, ... of saaug_op_list.h. */
typedef enum {
#define SAAUG_NUMBER_OF(NAME, name, number, KIND, TERMS) SAAUG_##NAME = number,
    SAAUG_FOR_EACH_OP(SAAUG_NUMBER_OF)
#undef SAAUG_NUMBER_OF
    SAAUG_NO_OP = 0
} saaug_op;

typedef enum {
    SAAUG_LAYOUT_NIBBLE = 0,
    SAAUG_LAYOUT_BYTE = 1,
    SAAUG_LAYOUT_OFFSET = 2,
    SAAUG_LAYOUT_BIT = 3,
    SAAUG_LAYOUT_NONE = 4
} saaug_layout;

/** The weights of a row of bits are plus and minus 2 to this. */
#define SAAUG_BIT_SCALE_LOG2 6

/** Channels that a channel shift moves together. */
#define SAAUG_MOVED_TOGETHER 4

/** An add layer's accumulator holds 2^this times the sum of distances. */
#define SAAUG_ADDER_SCALE_LOG2 8

typedef enum { SAAUG_REQUANT_Q31 = 0, SAAUG_REQUANT_POWER_OF_TWO = 1 } saaug_requant;

/** What is constant in a layer. A fully connected layer has kernel, strides, dilations and depth multiplier 1, pads 0. */
typedef struct {
    int32_t op;      /* saaug_op */
    int32_t layout;  /* saaug_layout: OFFSET for add layers, NONE for channel shifts, the others for shift layers */
    int32_t requant; /* saaug_requant */
    int32_t kernel_h, kernel_w;     /* taps, [1, 255] */
    int32_t stride_h, stride_w;     /* pixels, [1, 255] */
    int32_t dilation_h, dilation_w; /* pixels, [1, 255] */
    int32_t pad_top, pad_left;      /* pixels, [0, (kernel - 1) * dilation]; bottom and right follow from the output's size */
    int32_t depth_multiplier;       /* output channels of an input channel, [1, 65535]; 1 unless depthwise */
    int32_t input_zero_point, output_zero_point; /* [-128, 127] */
    int32_t act_min, act_max;                    /* -128 <= act_min <= act_max <= 127 */
} saaug_options;

/** Sizes of the two activations; each in [1, 65535], their products at most 2^31 - 1 bytes; K <= 2^22. */
typedef struct {
    int32_t batches;
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
} saaug_shape;

/** Name of the version that was compiled in: "reference", "portable", "dsp" or "helium". */
const char *saaug_version(void);

/**
 * Reads an option record, the custom_options of an operator, into `options`, which is untouched on failure. Version 1 is 28
 * bytes, little-endian, without padding: saaug_option_record.h has the offsets. Later versions are longer.
 * @return SAAUG_OK, or SAAUG_BAD_OPTIONS: length, magic, version, unknown enumeration, or a field out of its range.
 */
saaug_status saaug_parse_options(const void *record, size_t length, saaug_options *options);

/** Checks options and shape: ranges, and that the output's size follows. A constant number of steps. */
saaug_status saaug_check(const saaug_options *options, const saaug_shape *shape);

/** Bytes from one output channel's weights to the next, and of all weights. @pre saaug_check() is SAAUG_OK. */
int32_t saaug_row_bytes(const saaug_options *options, const saaug_shape *shape);
int32_t saaug_weights_bytes(const saaug_options *options, const saaug_shape *shape);

/**
 * Checks the constants of a layer, one pass over them: sizes, reserved codes, zero padding, multipliers, shifts, and that
 * no accumulator can overflow.
 * @param weights_bytes  at least saaug_weights_bytes().
 * @param params_count   number of int32 in params, at least 3 * out_c.
 * @param channel        on failure, the output channel at fault, or -1 if it is the length; may be NULL.
 * @pre saaug_check() is SAAUG_OK.
 */
saaug_status saaug_check_constants(const saaug_options *options, const saaug_shape *shape, const uint8_t *weights,
                                   size_t weights_bytes, const int32_t *params, size_t params_count, int32_t *channel);

/** What a layer is called through, and the bytes of scratch that it needs. */
typedef saaug_status saaug_layer(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                 const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch);
typedef int32_t saaug_layer_size(const saaug_options *options, const saaug_shape *shape);

/**
 * The layers: saaug_shift_conv_2d_s8(), saaug_adder_conv_2d_s8(), ... and saaug_shift_conv_2d_s8_get_buffer_size(), ... of
 * every operator in saaug_op_list.h. All share these arguments:
 * @param[in]  input    int8 [batches, in_h, in_w, in_c]
 * @param[in]  weights  saaug_weights_bytes() bytes, see above; aligned to 4 bytes; NULL where that is 0
 * @param[in]  params   int32 [out_c, 3]; NULL for a channel shift
 * @param[out] output   int8 [batches, out_h, out_w, out_c]; must not overlap the input
 * @param      scratch  ..._get_buffer_size() bytes; may be NULL where that is 0
 * @return SAAUG_OK, or what saaug_check() says, or SAAUG_BAD_SCRATCH; then the output is untouched.
 * A fully connected layer takes batches rows of in_c values to batches rows of out_c; in_h, in_w, out_h and out_w are 1.
 * The size getters return the bytes of scratch for this version, or -1 where saaug_check() fails or they exceed 2^31 - 1.
 */
#define SAAUG_DECLARE_LAYER(NAME, name, number, KIND, TERMS)                                                           \
    saaug_layer saaug_##name##_s8;                                                                                     \
    saaug_layer_size saaug_##name##_s8_get_buffer_size;
SAAUG_FOR_EACH_OP(SAAUG_DECLARE_LAYER)
#undef SAAUG_DECLARE_LAYER

#ifdef __cplusplus
}
#endif

#endif /* SAAUG_NN_H */
