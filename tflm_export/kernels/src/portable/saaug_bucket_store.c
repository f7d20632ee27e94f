/* Sums to int8: what a program's accumulators become. */
#include "saaug_bucket.h"

/* Requantization. Q31 with a shift of at most 22 bits adds the zero point with the half of 2^shift: beside them and a
 * value of 2^30 there is room in 32 bits. FULL is that with the whole int8 range, CLAMP with any; LONG is what
 * neither can do. */
enum { PATH_FULL, PATH_CLAMP, PATH_LONG, PATH_POWER_OF_TWO };
#define LONGEST_SHORT_SHIFT 22

#if SAAUG_NO_MULTIPLY

/* Requantization without a product. acc * multiplier / 2^(31 + shift) is acc / d with d = 2^(31 + shift) / multiplier
 * in (2^shift, 2^(shift + 1)]. `step` is d * 2^up, rounded down, up = 21 - shift: in [2^21, 2^22]. The nudge is the
 * zero point, the 128 that makes int8 unsigned and the half that rounds, in steps. (acc * 2^up + nudge) / step, bit by
 * bit, gives the result and a rest, which says how far acc is from where the result changes. The errors of the rounded
 * step (at most 256 of them, and the half) are below 2^9; rounding to Q31 first, as the contract has it, moves acc by
 * half a unit of Q31, which is 2^up at most, and halves go away from zero. The result is sure if the rest is further
 * than all that from 0 and from step. Accumulators beyond 2^(shift + 9) are beyond int8 for every zero point. */
#define STEP_BITS 21

static inline uint32_t margin_of(const saaug_bucket_scale *scale)
{
    return ((uint32_t)1 << (STEP_BITS - scale->shift)) + 512u;
}

/* Returns whether there is such a division. */
static int prepare_division(saaug_bucket_scale *scale)
{
    const uint32_t divisor = (uint32_t)(scale->multiplier < 0 ? -scale->multiplier : scale->multiplier);
    uint32_t remainder = ((uint32_t)1 << 31) - divisor, quotient = 1;
    int32_t bit;
    if (divisor <= (uint32_t)1 << 30 || scale->shift >= STEP_BITS) {
        return 0;
    }
    for (bit = 0; bit < STEP_BITS; ++bit) { /* a long division of 2^52, after its first digit */
        remainder += remainder;
        quotient += quotient;
        if (remainder >= divisor) {
            remainder -= divisor;
            ++quotient;
        }
    }
    scale->step = quotient;
    scale->nudge = (int32_t)(quotient >> 1);
    for (bit = 0; bit < 8; ++bit) {
        if (((scale->zero_point + 128) >> bit & 1) != 0) {
            scale->nudge += (int32_t)(quotient << bit);
        }
    }
    return 2 * margin_of(scale) < quotient;
}

/* Keeps what is rare out of the loop whose registers it would take. */
#if defined(__GNUC__)
#define SAAUG_APART __attribute__((noinline))
#else
#define SAAUG_APART
#endif

/* The product after all, near a change, by shifting and adding: the library's is made for 64 bits. */
SAAUG_APART static int32_t rescale_exactly(int32_t acc, const saaug_bucket_scale *scale)
{
    const int negative = (acc ^ scale->multiplier) < 0;
    uint32_t bits = (uint32_t)(acc < 0 ? -acc : acc), high = 0, low = 0;
    uint32_t shifted_high = 0, shifted = (uint32_t)(scale->multiplier < 0 ? -scale->multiplier : scale->multiplier);
    uint32_t nudged;
    for (; bits != 0; bits >>= 1) {
        if ((bits & 1u) != 0) {
            low += shifted;
            high += shifted_high + (low < shifted);
        }
        shifted_high = shifted_high << 1 | shifted >> 31;
        shifted <<= 1;
    }
    /* (product + 2^30) >> 31; for a negative product that is -((magnitude + 2^30 - 1) >> 31). */
    nudged = low + ((uint32_t)1 << 30) - (uint32_t)negative;
    high += nudged < low;
    nudged = high << 1 | nudged >> 31;
    return saaug_rounding_shift(negative ? -(int32_t)nudged : (int32_t)nudged, scale->shift) + scale->zero_point;
}

/* A digit of the division is a branch over a subtraction and an addition: two instructions on average. Some compilers
 * see a chain of selections in it, of several times as many. */
#if defined(__GNUC__)
#define KEEP_BRANCH(value) __asm__("" : "+r"(value))
#else
#define KEEP_BRANCH(value) ((void)0)
#endif

/* `negative` says whether the multiplier is, `full` whether the range is that of int8. */
static inline int32_t requantize(int32_t acc, const saaug_bucket_scale *scale, int32_t act_min, int32_t act_max,
                                 int negative, int full)
{
    const int32_t value = negative ? -scale->bias - acc : acc + scale->bias;
    const int32_t reach = (int32_t)((uint32_t)512 << scale->shift);
    const uint32_t step = scale->step, margin = margin_of(scale);
    uint32_t rest;
    int32_t result = -128;
    if ((uint32_t)(value + reach) >= 2 * (uint32_t)reach) {
        return value < 0 ? act_min : act_max;
    }
    rest = (uint32_t)saaug_shift_left(value, (uint32_t)STEP_BITS - scale->shift) + (uint32_t)scale->nudge;
    if (rest >= step << 8) {
        return (int32_t)rest < 0 ? act_min : act_max;
    }
#define DIGIT(bit)                                                                                                     \
    if (rest >= step << (bit)) {                                                                                       \
        rest -= step << (bit);                                                                                         \
        result += 1 << (bit);                                                                                          \
        KEEP_BRANCH(result);                                                                                           \
    }
    DIGIT(7)
    DIGIT(6)
    DIGIT(5)
    DIGIT(4)
    DIGIT(3)
    DIGIT(2)
    DIGIT(1)
    DIGIT(0)
#undef DIGIT
    if (rest - margin >= step - 2 * margin) {
        return saaug_clamp(rescale_exactly(acc + scale->bias, scale), act_min, act_max);
    }
    return full ? result : saaug_clamp(result, act_min, act_max);
}

#else

/* (acc * multiplier + 2^30) >> 31 as (2 * acc * multiplier + 2^31) >> 32. */
static inline int32_t multiply_high(int32_t twice, int32_t multiplier)
{
#if SAAUG_THUMB == 1
    /* No long multiplication: four products of halves. No sum overflows: 2^16 * 2^15 - 2^16 + 2^16 at most. */
    const int32_t a_low = twice & 0xFFFF, a_high = twice >> 16;
    const int32_t m_low = multiplier & 0xFFFF, m_high = multiplier >> 16;
    const uint32_t lowest = (uint32_t)a_low * (uint32_t)m_low;
    const int32_t middle = a_high * m_low + (int32_t)(lowest >> 16);
    const int32_t other = a_low * m_high + (middle & 0xFFFF);
    return a_high * m_high + (middle >> 16) + (other >> 16) + ((other >> 15) & 1);
#else
    const int64_t product = (int64_t)twice * multiplier;
    return (int32_t)(product >> 32) + (int32_t)((uint32_t)product >> 31);
#endif
}

static inline int32_t saturate(int32_t value)
{
#if SAAUG_THUMB == 2
    __asm__("ssat %0, #8, %1" : "=r"(value) : "r"(value) : "cc");
    return value;
#else
    return saaug_clamp(value, -128, 127);
#endif
}

static inline int32_t requantize(int32_t acc, const saaug_bucket_scale *channel, const saaug_options *range)
{
    const int32_t value = multiply_high(2 * acc + channel->bias, channel->multiplier);
    const int32_t result = (value + (value >> 31) + channel->nudge) >> channel->shift;
    return range == NULL ? saturate(result) : saaug_clamp(result, range->act_min, range->act_max);
}

#endif

void saaug_bucket_prepare(const int32_t *params, const saaug_options *options, saaug_bucket_scale *channel)
{
    channel->bias = params[0];
    channel->multiplier = params[1];
    channel->shift = (uint8_t)params[2];
    channel->zero_point = (int8_t)options->output_zero_point;
    channel->nudge = 0;
    channel->step = 0;
    if (options->requant == SAAUG_REQUANT_POWER_OF_TWO) {
        channel->path = PATH_POWER_OF_TWO;
    } else if (params[2] > LONGEST_SHORT_SHIFT) {
        channel->path = PATH_LONG;
    } else {
        const int full = options->act_min == -128 && options->act_max == 127;
        channel->path = full ? PATH_FULL : PATH_CLAMP;
#if SAAUG_NO_MULTIPLY
        if (!prepare_division(channel)) {
            channel->path = PATH_LONG;
        }
#else
        channel->bias = 2 * params[0]; /* what requantize() adds */
        channel->nudge = saaug_shift_left(options->output_zero_point, (uint32_t)params[2]) +
                         (int32_t)((uint32_t)1 << (params[2] - 1));
#endif
    }
}

/* The rare paths. */
static int8_t requantize_plainly(int32_t acc, const saaug_bucket_scale *channel, const saaug_options *options)
{
    const int32_t params[3] = {0, channel->multiplier, channel->shift};
    return saaug_requantize(acc + channel->bias, params, options);
}

#if SAAUG_NO_MULTIPLY

/* One side after the other: all that an output needs then fits the registers. */
static inline void store_sides(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *shared,
                               const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride,
                               int negative, int full)
{
    const saaug_bucket_scale scale = *shared;
    const int32_t act_min = options->act_min, act_max = options->act_max;
    const int32_t *from = acc;
    int8_t *to = low_output;
    int32_t count = lows, side;
    for (side = 0; side < 2; ++side) {
        for (; count > 0; --count) {
            *to = (int8_t)requantize(*from, &scale, act_min, act_max, negative, full);
            from += 2;
            to += stride;
        }
        from = acc + 1;
        to = high_output;
        count = highs;
    }
}

static void store(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *scale,
                  const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    if (scale->multiplier < 0) {
        store_sides(acc, lows, highs, scale, options, low_output, high_output, stride, 1, 0);
    } else if (scale->path == PATH_FULL) {
        store_sides(acc, lows, highs, scale, options, low_output, high_output, stride, 0, 1);
    } else {
        store_sides(acc, lows, highs, scale, options, low_output, high_output, stride, 0, 0);
    }
}

#else

/* `range` is NULL for PATH_FULL. */
static inline void store_pairs(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *shared,
                               const saaug_options *range, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    const saaug_bucket_scale channel = *shared;
    int32_t k;
    for (k = highs; k < lows; ++k) {
        low_output[k * stride] = (int8_t)requantize(acc[2 * k], &channel, range);
    }
    if ((highs & 1) != 0) {
        *low_output = (int8_t)requantize(acc[0], &channel, range);
        *high_output = (int8_t)requantize(acc[1], &channel, range);
        acc += 2;
        low_output += stride;
        high_output += stride;
    }
    for (highs >>= 1; highs > 0; --highs) {
        low_output[0] = (int8_t)requantize(acc[0], &channel, range);
        high_output[0] = (int8_t)requantize(acc[1], &channel, range);
        low_output[stride] = (int8_t)requantize(acc[2], &channel, range);
        high_output[stride] = (int8_t)requantize(acc[3], &channel, range);
        acc += 4;
        low_output += 2 * stride;
        high_output += 2 * stride;
    }
}

static void store(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *channel,
                  const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    if (channel->path == PATH_FULL) {
        store_pairs(acc, lows, highs, channel, NULL, low_output, high_output, stride);
    } else {
        const saaug_options range = *options;
        store_pairs(acc, lows, highs, channel, &range, low_output, high_output, stride);
    }
}

#endif

void saaug_bucket_store(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *channel,
                        const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    int32_t k;
    if (channel->path == PATH_FULL || channel->path == PATH_CLAMP) {
        store(acc, lows, highs, channel, options, low_output, high_output, stride);
        return;
    }
    for (k = 0; k < lows; ++k) {
        low_output[k * stride] = requantize_plainly(acc[2 * k], channel, options);
        if (k < highs) {
            high_output[k * stride] = requantize_plainly(acc[2 * k + 1], channel, options);
        }
    }
}
