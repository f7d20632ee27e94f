/**
 * @file saaug_helium_conv.h
 * The frame of both convolutions for Helium: rows of a block of output channels are prepared in scratch, two channels side by
 * side, and stay while all output positions pass by, two at a time.
 */
#ifndef SAAUG_HELIUM_CONV_H
#define SAAUG_HELIUM_CONV_H

#include "../saaug_gather.h"
#include "saaug_helium.h"
#include "saaug_helium_layout.h"

/* Constants of `count` channels in pairs; a missing second channel repeats the first, whose result it overwrites. */
static void saaug_prepare_fours(const int32_t *params, int32_t count, int32_t distance, saaug_four *fours)
{
    int32_t i, lane;
    for (i = 0; i < count; i += 2, ++fours) {
        for (lane = 0; lane < 4; ++lane) {
            const int32_t channel = (lane & 1) != 0 && i + 1 < count ? 1 : 0;
            const int32_t *const from = params + 3 * (i + channel);
            fours->bias[lane] = from[0];
            fours->multiplier[lane] = from[1];
            fours->down[lane] = -from[2];
            fours->offsets[lane] = (uint32_t)(channel + (lane >= 2 ? distance : 0));
        }
    }
}

/* Makes the second position of `count` channels, `distance` bytes further, the first one. */
static void saaug_drop_second(int32_t count, int32_t distance, saaug_four *fours)
{
    for (; count > 0; count -= 2, ++fours) {
        fours->offsets[2] -= (uint32_t)distance;
        fours->offsets[3] -= (uint32_t)distance;
    }
}

#endif /* SAAUG_HELIUM_CONV_H */
