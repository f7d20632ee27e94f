/**
 * @file saaug_internal.h
 * The seam between the public functions and their versions, and the small integer helpers that all versions share.
 *
 * A version of an operator is a pair of functions with these two types; its size must come from the same static layout
 * helper as its kernel. Options and shape are checked before a version is called.
 */
#ifndef SAAUG_INTERNAL_H
#define SAAUG_INTERNAL_H

#include "saaug_nn.h"

typedef saaug_layer saaug_kernel;
typedef int64_t saaug_kernel_size(const saaug_options *options, const saaug_shape *shape);

/* The version, chosen once, here. -DSAAUG_FORCE_<VERSION> overrides the compiler's target. */
#if defined(SAAUG_FORCE_REFERENCE)
#define SAAUG_REFERENCE 1
#elif defined(SAAUG_FORCE_PORTABLE)
#define SAAUG_PORTABLE 1
#elif defined(SAAUG_FORCE_DSP)
#define SAAUG_DSP 1
#elif defined(SAAUG_FORCE_HELIUM)
#define SAAUG_HELIUM 1
#elif defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define SAAUG_HELIUM 1
#elif defined(__ARM_FEATURE_SIMD32) && defined(__ARM_FEATURE_DSP)
#define SAAUG_DSP 1
#else
#define SAAUG_PORTABLE 1
#endif

#include "portable/saaug_words.h"

#if defined(SAAUG_REFERENCE)
#define SAAUG_VERSION_NAME "reference"
#define SAAUG_VERSIONED(op) op##_reference
#elif defined(SAAUG_PORTABLE)
#define SAAUG_VERSION_NAME "portable"
#define SAAUG_VERSIONED(op) op##_portable
#elif defined(SAAUG_DSP)
#define SAAUG_VERSION_NAME "dsp"
#define SAAUG_VERSIONED(op) op##_dsp
#else
#define SAAUG_VERSION_NAME "helium"
#define SAAUG_VERSIONED(op) op##_helium
#endif

/* ..._portable_size is ..._portable4_size or ..._portable8_size, by SAAUG_WORDS; every build has both, for planning the
 * memory of another core. */
#define SAAUG_DECLARE_VERSIONS(NAME, name, number, KIND, TERMS)                                                        \
    saaug_kernel saaug_##name##_s8_reference, saaug_##name##_s8_portable, saaug_##name##_s8_dsp,                       \
        saaug_##name##_s8_helium;                                                                                      \
    saaug_kernel_size saaug_##name##_s8_reference_size, saaug_##name##_s8_portable_size, saaug_##name##_s8_dsp_size,   \
        saaug_##name##_s8_helium_size, saaug_##name##_s8_portable4_size, saaug_##name##_s8_portable8_size;
SAAUG_FOR_EACH_OP(SAAUG_DECLARE_VERSIONS)
#undef SAAUG_DECLARE_VERSIONS

/** What the table says of an operator: its kind and its terms. */
typedef enum { SAAUG_KIND_CONV, SAAUG_KIND_DEPTHWISE, SAAUG_KIND_DENSE } saaug_kind;
typedef enum { SAAUG_TERMS_SHIFT, SAAUG_TERMS_ADDER, SAAUG_TERMS_MOVES } saaug_terms;

/** Is there such an operator? */
static inline int saaug_is_op(int32_t op)
{
#define SAAUG_IS_OP(NAME, name, number, KIND, TERMS) || op == number
    return 0 SAAUG_FOR_EACH_OP(SAAUG_IS_OP);
#undef SAAUG_IS_OP
}

/** @pre saaug_is_op(op) */
static inline saaug_kind saaug_kind_of(int32_t op)
{
#define SAAUG_KIND_OF(NAME, name, number, KIND, TERMS) op == number ? SAAUG_KIND_##KIND :
    return SAAUG_FOR_EACH_OP(SAAUG_KIND_OF) SAAUG_KIND_CONV;
#undef SAAUG_KIND_OF
}

/** @pre saaug_is_op(op) */
static inline saaug_terms saaug_terms_of(int32_t op)
{
#define SAAUG_TERMS_OF(NAME, name, number, KIND, TERMS) op == number ? SAAUG_TERMS_##TERMS :
    return SAAUG_FOR_EACH_OP(SAAUG_TERMS_OF) SAAUG_TERMS_SHIFT;
#undef SAAUG_TERMS_OF
}

saaug_status saaug_check_options(const saaug_options *options);

/* Every public function is this: check, then the one version that was compiled in. Expected options->op is `kind`. */
saaug_status saaug_run(saaug_kernel *kernel, saaug_kernel_size *size, int32_t kind, const saaug_options *options,
                       const saaug_shape *shape, const int8_t *input, const uint8_t *weights, const int32_t *params,
                       int8_t *output, void *scratch);
int32_t saaug_buffer_size(saaug_kernel_size *size, int32_t kind, const saaug_options *options, const saaug_shape *shape);

#define SAAUG_DISPATCH(op, kind)                                                                                       \
    saaug_status op(const saaug_options *options, const saaug_shape *shape, const int8_t *input,                      \
                    const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)                      \
    {                                                                                                                  \
        return saaug_run(SAAUG_VERSIONED(op), SAAUG_SIZED(SAAUG_VERSIONED(op)), kind, options, shape, input, weights,  \
                         params, output, scratch);                                                                     \
    }                                                                                                                  \
    int32_t op##_get_buffer_size(const saaug_options *options, const saaug_shape *shape)                               \
    {                                                                                                                  \
        return saaug_buffer_size(SAAUG_SIZED(SAAUG_VERSIONED(op)), kind, options, shape);                              \
    }
#define SAAUG_SIZED_(version) version##_size
#define SAAUG_SIZED(version) SAAUG_SIZED_(version)

/* The right shift of a negative number is the compiler's choice in C99; all versions need the arithmetic one. */
typedef char saaug_right_shift_is_arithmetic[(-3 >> 1) == -2 ? 1 : -1];

/** (acc * multiplier + 2^30) >> 31: SaturatingRoundingDoublingHighMul; the contract excludes its one saturating case. */
static inline int32_t saaug_multiply_high(int32_t acc, int32_t multiplier)
{
    return (int32_t)(((int64_t)acc * multiplier + ((int64_t)1 << 30)) >> 31);
}

/** RoundingDivideByPOT for shift in [1, 30] and |value| <= 2^30: to the nearest, halves away from zero. */
static inline int32_t saaug_rounding_shift(int32_t value, int32_t shift)
{
    return (value + (int32_t)((uint32_t)1 << (shift - 1)) + (value >> 31)) >> shift;
}

static inline int32_t saaug_clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/** The int8 result of an accumulator. `params` points at the channel's (bias, multiplier, shift). */
static inline int8_t saaug_requantize(int32_t acc, const int32_t *params, const saaug_options *options)
{
    int32_t value;
    if (options->requant == SAAUG_REQUANT_POWER_OF_TWO) {
        value = params[1] < 0 ? -acc : acc;
    } else {
        value = saaug_multiply_high(acc, params[1]);
    }
    value = saaug_rounding_shift(value, params[2]) + options->output_zero_point;
    return (int8_t)saaug_clamp(value, options->act_min, options->act_max);
}

/** Code number `index` of a row of nibbles. */
static inline uint32_t saaug_nibble(const uint8_t *row, int32_t index)
{
    return ((uint32_t)row[index >> 1] >> ((index & 1) * 4)) & 15u;
}

/** The weight of code number `index` of a row of bits. */
static inline int32_t saaug_bit_weight(const uint8_t *row, int32_t index)
{
    const int32_t weight = 1 << SAAUG_BIT_SCALE_LOG2;
    return ((row[index >> 3] >> (index & 7)) & 1) != 0 ? -weight : weight;
}

/** Codes 4 * quad to 4 * quad + 3 of a row of bits as four nibbles, the first the lowest. */
static inline uint32_t saaug_bits_as_nibbles(const uint8_t *row, int32_t quad)
{
    const uint32_t bits = (uint32_t)row[quad >> 1] >> ((quad & 1) * 4);
    return 0x1111u * (SAAUG_BIT_SCALE_LOG2 + 1) | (bits & 1u) << 3 | (bits & 2u) << 6 | (bits & 4u) << 9 | (bits & 8u) << 12;
}

/** value * 2^exponent, also for negative values. @pre no overflow. */
static inline int32_t saaug_shift_left(int32_t value, uint32_t exponent)
{
    return (int32_t)((uint32_t)value << exponent);
}

/**
 * The weight of a byte code. With SAAUG_PLAIN_BYTES, which only the benchmark's multiplying twin defines, the code is the weight:
 * an int8 as in any quantized network.
 */
static inline int32_t saaug_byte_weight(uint8_t code)
{
    const int32_t signed_code = (int8_t)code;
#if defined(SAAUG_PLAIN_BYTES)
    return signed_code;
#else
    const int32_t magnitude = signed_code < 0 ? -signed_code : signed_code;
    const int32_t weight = magnitude == 0 ? 0 : saaug_shift_left(1, (uint32_t)(magnitude - 1));
    return signed_code < 0 ? -weight : weight;
#endif
}

/** The term of a shift layer: value times the weight of code number `tap`. */
static inline int32_t saaug_shift_term(int32_t value, const uint8_t *row, int32_t tap, int32_t layout)
{
    int32_t magnitude, term;
    int negative;
    if (layout == SAAUG_LAYOUT_BIT) {
        return value * saaug_bit_weight(row, tap);
    }
    if (layout == SAAUG_LAYOUT_NIBBLE) {
        const uint32_t code = saaug_nibble(row, tap);
        magnitude = (int32_t)(code & 7u);
        negative = code > 8u;
    } else {
        const int32_t code = (int8_t)row[tap];
        negative = code < 0;
        magnitude = negative ? -code : code;
    }
    if (magnitude == 0) {
        return 0;
    }
    term = saaug_shift_left(value, (uint32_t)(magnitude - 1));
    return negative ? -term : term;
}

/** The term of an add layer: |value - w'| of code number `tap`. */
static inline int32_t saaug_adder_term(int32_t value, const uint8_t *row, int32_t tap)
{
    const int32_t difference = value + 128 - (int32_t)row[tap];
    return difference < 0 ? -difference : difference;
}

/** The accumulator of an add layer. @pre the overflow bound, so that nothing is shifted out. */
static inline int32_t saaug_adder_accumulator(int32_t distance, const int32_t *params)
{
    return params[0] + saaug_shift_left(distance, SAAUG_ADDER_SCALE_LOG2);
}

/** The pixel under tap (i, j) of output position (y, x), or NULL outside the image. */
static inline const int8_t *saaug_pixel(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                        int32_t n, int32_t y, int32_t x, int32_t i, int32_t j)
{
    const int32_t row = y * options->stride_h - options->pad_top + i * options->dilation_h;
    const int32_t column = x * options->stride_w - options->pad_left + j * options->dilation_w;
    if (row < 0 || row >= shape->in_h || column < 0 || column >= shape->in_w) {
        return NULL;
    }
    return input + (((size_t)n * (size_t)shape->in_h + (size_t)row) * (size_t)shape->in_w + (size_t)column) *
                       (size_t)shape->in_c;
}

#endif /* SAAUG_INTERNAL_H */
