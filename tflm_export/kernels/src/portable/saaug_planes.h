/**
 * @file saaug_planes.h
 * Depthwise layers, portable: a plane of one channel at a time in which every word holds two pixels of different rows.
 *
 * A strip of 2 * rows output rows is computed together: the low pixels serve its upper half, the high ones its lower half,
 * `rows` output rows further down, so that one word is right for the same tap of both. Columns are taken apart by the
 * stride (column u of phase f is input column u * stride + f), so that neighbouring outputs read neighbouring words.
 * Padding is in the plane.
 */
#ifndef SAAUG_PLANES_H
#define SAAUG_PLANES_H

#include "saaug_bucket.h"

typedef struct {
    int32_t rows;          /* output rows in half a strip */
    int32_t blocks;        /* blocks of SAAUG_WORDS output columns in a row */
    int32_t phases, width; /* of a row of the plane; words of a phase */
    int32_t pitch, height; /* words of a row of the plane, rows */
    int64_t bytes;
} saaug_planes;

/** Sizes for planes of about `budget` bytes; .rows is 0 if not even one output row has a plane of less than 2^16 bytes. */
saaug_planes saaug_planes_of(const saaug_options *options, const saaug_shape *shape, int32_t budget);

/** Byte offset of each tap from the word of an output position, uint16 [kernel_h * kernel_w]. */
void saaug_planes_taps(const saaug_planes *planes, const saaug_options *options, uint16_t *taps);

/** Fills the plane of a channel for the strip that begins with output row `first`. `image` is one batch. */
void saaug_planes_fill(const saaug_planes *planes, const saaug_options *options, const saaug_shape *shape,
                       const int8_t *image, int32_t channel, int32_t first, uint32_t *plane);

#endif /* SAAUG_PLANES_H */
