/**
 * @file saaug_bucket_program.h
 * What a program of saaug_bucket.h is made of, for what makes it and what runs it. Its instructions are heads; a head that adds
 * or subtracts stands for a number of columns.
 */
#ifndef SAAUG_BUCKET_PROGRAM_H
#define SAAUG_BUCKET_PROGRAM_H

#include "saaug_bucket.h"

/* Most columns of a head in a threaded program. */
#define LONGEST_RUN 4

#if SAAUG_THREADED
/* uint16: bytes from here to the heads, less 2; the columns of all heads; the heads. A head says where the
 * interpreter's routine is: for Thumb-2 in a table of addresses, else from the first routine on. After a spill comes 16
 * - exponent. A routine adds 1 to 4 columns. */
#if SAAUG_THUMB == 2
#define ADD(distance) (4 * (distance)) /* distance in exponents from the spill: 0..7 */
#define SUB(distance) (32 + 4 * (distance))
#define SPILL_SET 64
#define SPILL_ADD 65
#define END 66
#define HEAD(routine) ((uint16_t)(4 * (routine)))
#define ONCE(kind) (kind)
#else
#define ADD 0
#define SUB 4
#define DOUBLES 8 /* a run that doubles the sums first */
#define FIRST 16  /* a run that sets the sums; on RV32I */
#define DOUBLE 24
#define SPILL_SET 25
#define SPILL_ADD 26
#define CLEAR 27
#define END 28
#define HEAD(routine) (saaug_bucket_routines[routine])
#define ONCE(kind) ((kind) & SUB) /* of a run, only the first head doubles or sets */
extern const uint16_t saaug_bucket_routines[];
#endif
#else
/* uint16: head, its columns, head, its columns, ... A head is the kind + 8 * its number of columns, or the exponent of
 * a spill. */
#define ADD 0
#define SUB 1
#define DOUBLES 2
#define DOUBLE 4
#define SPILL_SET 5
#define SPILL_ADD 6
#define END 7
#define HEAD(kind) ((uint16_t)(kind))
#endif

/* How the first run of a group begins: only on RV32I are the sums not zero then. */
#if SAAUG_RV32
#define STARTS FIRST
#else
#define STARTS 0
#endif

#endif /* SAAUG_BUCKET_PROGRAM_H */
