/* What the DSP kernels share: the table of nibble pairs, and the constants of output channels. */
#include "saaug_dsp.h"

#define WEIGHT(code) (((1u << (code) % 8 & 0xFEu) * ((code) > 8 ? 0xFFFFu : 1u)) & 0xFFFFu)
#define PAIR(byte) (WEIGHT((byte) % 16) | WEIGHT((byte) / 16) << 16)
#define PAIRS4(byte) PAIR(byte), PAIR((byte) + 1), PAIR((byte) + 2), PAIR((byte) + 3)
#define PAIRS16(byte) PAIRS4(byte), PAIRS4((byte) + 4), PAIRS4((byte) + 8), PAIRS4((byte) + 12)
#define PAIRS64(byte) PAIRS16(byte), PAIRS16((byte) + 16), PAIRS16((byte) + 32), PAIRS16((byte) + 48)

const uint32_t saaug_doubled_pairs[256] = {PAIRS64(0), PAIRS64(64), PAIRS64(128), PAIRS64(192)};

int saaug_prepare_channels(const saaug_options *options, const int32_t *params, int32_t count, int32_t padded,
                           int doubled, saaug_channel *channels)
{
    int simple = doubled && options->requant == SAAUG_REQUANT_Q31 && options->act_min == -128 && options->act_max == 127;
    int32_t i;
    for (i = 0; i < padded; ++i, ++channels) {
        const int32_t shift = params[2];
        channels->bias = doubled ? 2 * params[0] : params[0];
        channels->multiplier = params[1];
        channels->rounding = (int32_t)((uint32_t)1 << (shift - 1));
        channels->shift = shift;
        if (shift > SAAUG_MOST_FOLDED_SHIFT) {
            simple = 0;
        } else {
            channels->rounding += saaug_shift_left(options->output_zero_point, (uint32_t)shift);
        }
        params += i + 1 < count ? 3 : 0;
    }
    return simple;
}

int8_t saaug_finish_any(int32_t acc, const int32_t *params, const saaug_options *options)
{
    int32_t value = saaug_smmulr(2 * acc, params[1]);
    if (options->requant == SAAUG_REQUANT_POWER_OF_TWO) {
        value = params[1] < 0 ? -acc : acc;
    }
    value = saaug_rounding_shift(value, params[2]) + options->output_zero_point;
    return (int8_t)saaug_clamp(value, options->act_min, options->act_max);
}

int32_t saaug_largest_code(const saaug_options *options, const saaug_shape *shape, const uint8_t *weights)
{
    int32_t bytes, largest = 0;
    if (options->layout == SAAUG_LAYOUT_NIBBLE) {
        return 7;
    }
    if (options->layout == SAAUG_LAYOUT_BIT) {
        return SAAUG_BIT_SCALE_LOG2 + 1;
    }
#if defined(SAAUG_PLAIN_BYTES)
    return 8;
#endif
    for (bytes = saaug_weights_bytes(options, shape); bytes != 0; --bytes) {
        const int32_t code = (int8_t)*weights++;
        const int32_t magnitude = code < 0 ? -code : code;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}
