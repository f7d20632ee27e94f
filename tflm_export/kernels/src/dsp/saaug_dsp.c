/* What the DSP kernels share: the table of nibble pairs, and the constants of output channels. */
#include "saaug_dsp.h"

#define WEIGHT(code) ((((1u << (code) % 8) >> 1) * ((code) > 8 ? 0xFFFFu : 1u)) & 0xFFFFu)
#define PAIR(byte) (WEIGHT((byte) % 16) | WEIGHT((byte) / 16) << 16)
#define PAIRS4(byte) PAIR(byte), PAIR((byte) + 1), PAIR((byte) + 2), PAIR((byte) + 3)
#define PAIRS16(byte) PAIRS4(byte), PAIRS4((byte) + 4), PAIRS4((byte) + 8), PAIRS4((byte) + 12)
#define PAIRS64(byte) PAIRS16(byte), PAIRS16((byte) + 16), PAIRS16((byte) + 32), PAIRS16((byte) + 48)

const uint32_t saaug_nibble_pairs[256] = {PAIRS64(0), PAIRS64(64), PAIRS64(128), PAIRS64(192)};

int saaug_prepare_channels(const saaug_options *options, const int32_t *params, int32_t count,
                           saaug_channel_pair *pairs)
{
    int simple = options->requant == SAAUG_REQUANT_Q31 && options->act_min == -128 && options->act_max == 127;
    int32_t i;
    for (i = 0; i < (count + 1) / 2 * 2; ++i) {
        const int32_t *const from = params + 3 * (i < count ? i : count - 1);
        saaug_channel_pair *const pair = pairs + i / 2;
        int32_t rounding = (int32_t)((uint32_t)1 << (from[2] - 1));
        if (from[2] > SAAUG_MOST_FOLDED_SHIFT) {
            simple = 0;
        } else {
            rounding += saaug_shift_left(options->output_zero_point, (uint32_t)from[2]);
        }
        pair->bias[i & 1] = from[0];
        pair->finish[i & 1].multiplier = from[1];
        pair->finish[i & 1].rounding = rounding;
        pair->finish[i & 1].shift = from[2];
    }
    return simple;
}
