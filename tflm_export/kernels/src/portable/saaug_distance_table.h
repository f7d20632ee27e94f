/**
 * @file saaug_distance_table.h
 * Distances of 1x1 and other convolutions by table, on cores without packed absolute differences: a load and an addition
 * a tap, where cores of one difference at a time need a subtraction, the absolute value of it and an addition.
 *
 * Every pixel takes a word, its place in the table: the weight, added to it, leads to the distance. All channels share
 * the places, so that nothing is left to compute but the sum.
 */
#ifndef SAAUG_DISTANCE_TABLE_H
#define SAAUG_DISTANCE_TABLE_H

#include "saaug_blocks.h"

/* Entry 255 + d is |d|. It lies in RAM: flash with wait states would be slower than computing. */
#define SAAUG_DISTANCE_TABLE_BYTES 512

/* Most taps of a block, a multiple of 4. Cores of 16-bit sums need 255 * taps < 2^16. */
#define SAAUG_DISTANCE_BLOCK_TAPS 128

/* Positions whose words lie side by side, a column of a tap: as many as one pass over the weights serves. A block is the
 * columns of all taps for its first positions, then those for the next. */
#if SAAUG_THUMB == 1
#define SAAUG_DISTANCE_COLUMN 4
#elif SAAUG_RV32
#define SAAUG_DISTANCE_COLUMN 16
#else
#define SAAUG_DISTANCE_COLUMN 8
#endif

void saaug_distance_table(uint8_t *table);

/** Writes the places of `count` taps from *tap on at the first `positions` windows, in whole columns, and leaves the tap
 * after them in *tap. Taps up to the next multiple of 4 become places where the zero weights of a row's padding find a
 * distance of 0. */
void saaug_distance_places(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                           const saaug_block_window *windows, saaug_block_tap *tap, int32_t count,
                           int32_t positions, const uint8_t *table, uint32_t *block);

/** Sets a channel's accumulators of the first `positions` to the distances of the block's 4 * quads taps from its weights,
 * scaled as the contract has it; whole columns of them, at most SAAUG_PIXELS. */
void saaug_distance_sums(const uint32_t *block, const uint8_t *table, const uint8_t *row, int32_t quads,
                         int32_t positions, int32_t *acc);

/** The same of one column of positions; in assembly where there is some. */
void saaug_distance_run(const uint32_t *columns, const uint8_t *row, int32_t quads, int32_t *acc, const uint8_t *table);

#endif /* SAAUG_DISTANCE_TABLE_H */
