/**
 * @file saaug_planes.h
 * Depthwise layers, portable: a plane of one channel at a time in which every word holds two pixels of different rows.
 *
 * A strip of 2 * rows output rows is computed together: the low pixels serve its upper half, the high ones its lower
 * half, `rows` output rows further down, so that one word is right for the same tap of both. Columns are taken apart by
 * the stride (column u of phase f is input column u * stride + f), so that neighbouring outputs read neighbouring
 * words. Padding is in the plane.
 */
#ifndef SAAUG_PLANES_H
#define SAAUG_PLANES_H

#include "saaug_bucket.h"

/** What an operator does with a plane. */
typedef struct {
    int32_t taps_bytes; /* of what `prepare` writes to `taps`; a multiple of 4 */
    /* Makes the taps of an output channel from its row of weights. `offsets` are those of the taps' columns in the
     * plane. */
    void (*prepare)(const saaug_options *options, const uint8_t *row, const uint16_t *offsets, void *taps);
    /* acc[2 * k] and acc[2 * k + 1] get the sums over all taps of the low and the high pixel of SAAUG_WORDS words. */
    void (*run)(const void *taps, const uint32_t *words, int32_t *acc);
} saaug_plane_operator;

/** Bytes of scratch for columns of `words` words; -1 if not even one output row has a plane of less than 2^16 bytes. */
int64_t saaug_planes_size(const saaug_plane_operator *operator, const saaug_options *options, const saaug_shape *shape,
                          int32_t words);

/** The layer. @pre saaug_planes_size() is not -1. */
saaug_status saaug_planes_layer(const saaug_plane_operator *operator, const saaug_options *options,
                                const saaug_shape *shape, const int8_t *input, const uint8_t *weights,
                                const int32_t *params, int8_t *output, void *scratch);

#endif /* SAAUG_PLANES_H */
