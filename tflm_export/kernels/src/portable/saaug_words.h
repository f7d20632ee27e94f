/**
 * @file saaug_words.h
 * What the portable version is on this core: SAAUG_WORDS is all that the sizes of its scratch depend on.
 */
#ifndef SAAUG_WORDS_H
#define SAAUG_WORDS_H

/* The interpreters in assembly. THUMB is 1 for Thumb-1 (Cortex-M0), 2 for Thumb-2 (Cortex-M3 and up); RV32 is for the
 * 32 registers of RV32I. */
#if defined(__GNUC__) && defined(__thumb__) && defined(__ARM_ARCH_PROFILE) && !defined(SAAUG_NO_ASM)
#if __ARM_ARCH_PROFILE == 'M' && defined(__ARMEL__)
#define SAAUG_THUMB __ARM_ARCH_ISA_THUMB
#endif
#elif defined(__GNUC__) && defined(__riscv) && !defined(__riscv_32e) && !defined(SAAUG_NO_ASM)
#if __riscv_xlen == 32
#define SAAUG_RV32 1
#endif
#endif
#ifndef SAAUG_THUMB
#define SAAUG_THUMB 0
#endif
#ifndef SAAUG_RV32
#define SAAUG_RV32 0
#endif
#define SAAUG_THREADED (SAAUG_THUMB || SAAUG_RV32)

/* Words of a column: as many as sums fit the registers. */
#if SAAUG_THUMB
#define SAAUG_WORDS 4
#elif SAAUG_RV32
#define SAAUG_WORDS 8
#elif !defined(SAAUG_WORDS)
#if defined(__arm__) || defined(__riscv_32e)
#define SAAUG_WORDS 4
#else
#define SAAUG_WORDS 8
#endif
#endif
#define SAAUG_PIXELS (2 * SAAUG_WORDS)
#define SAAUG_COLUMN_BYTES (4 * SAAUG_WORDS)

/* No multiplication at all on this core: the library's takes hundreds of steps. */
#ifndef SAAUG_NO_MULTIPLY
#if defined(__riscv) && !defined(__riscv_mul)
#define SAAUG_NO_MULTIPLY 1
#else
#define SAAUG_NO_MULTIPLY 0
#endif
#endif

#if defined(SAAUG_PORTABLE) && SAAUG_WORDS == 4
#define SAAUG_PORTABLE4 1
#elif defined(SAAUG_PORTABLE)
#define SAAUG_PORTABLE8 1
#endif

#endif /* SAAUG_WORDS_H */
