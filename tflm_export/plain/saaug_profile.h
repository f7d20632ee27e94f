/**
 * @file saaug_profile.h
 * What each layer of a network takes on the target. A network compiled with -DSAAUG_PROFILE calls saaug_profile(), which
 * the program defines, behind every layer; without that macro nothing of this is in it.
 *
 * The clock, and its tick:
 *   Cortex-M3 and later     CYCCNT of the DWT unit, a cycle
 *   Cortex-M0, M0+, M23     SysTick, a cycle; only while nobody else uses it
 *   RISC-V                  mcycle, a cycle; in machine mode, and where mcountinhibit does not stop it
 *   elsewhere, or with -DSAAUG_PROFILE_CLOCK    uint32_t saaug_clock(void), which the program defines; where it must, there
 *                           is a macro SAAUG_CLOCK_OF_PROGRAM
 * -DSAAUG_PROFILE_SYSTICK takes SysTick on every Cortex-M, also where a chip or an emulator has no CYCCNT.
 */
#ifndef SAAUG_PROFILE_H
#define SAAUG_PROFILE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A layer of a network, as the exporter knows it. */
typedef struct {
    const char *network, *name, *operation;
    uint32_t index; /* of the layer, from 0 */
    uint64_t macs;  /* taps of a layer with weights: products, shifts or differences, each with its addition; else 0 */
} saaug_profile_layer;

/** More ticks than the clock counts, or a clock that is another's. */
#define SAAUG_TICKS_UNKNOWN 0xFFFFFFFFu

/**
 * Called behind every layer of a network that is compiled with SAAUG_PROFILE; the program defines it.
 * @param[in] layer  lives as long as the program.
 * @param[in] ticks  of the layer alone, or SAAUG_TICKS_UNKNOWN; what this function takes is in no layer.
 */
void saaug_profile(const saaug_profile_layer *layer, uint32_t ticks);

/* saaug_ticks_begin() sets the clock going where it stands; saaug_ticks_end() gives the ticks since. */
#define SAAUG_REGISTER(address) (*(volatile uint32_t *)(address))

#if defined(__riscv) && !defined(SAAUG_PROFILE_CLOCK)

static inline uint32_t saaug_ticks_begin(void)
{
    uint32_t count;
    /* csrr count, mcycle; as a number for assemblers that are told of no extension Zicsr */
    __asm__ volatile(".insn i 0x73, 2, %0, x0, -1280" : "=r"(count)::"memory");
    return count;
}

static inline uint32_t saaug_ticks_end(uint32_t begun) { return saaug_ticks_begin() - begun; }

#elif defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M' && !defined(SAAUG_PROFILE_CLOCK)
#if defined(SAAUG_PROFILE_SYSTICK) || __ARM_ARCH_ISA_THUMB == 1

#define SAAUG_SYSTICK(word) SAAUG_REGISTER(0xE000E010u + 4u * (word)) /* control, reload, current */

static inline uint32_t saaug_ticks_begin(void)
{
    if ((SAAUG_SYSTICK(0) & 1u) == 0 || SAAUG_SYSTICK(1) == 0xFFFFFFu) { /* else an operating system's, which stays so */
        SAAUG_SYSTICK(0) = 0;
        SAAUG_SYSTICK(1) = 0xFFFFFFu;
        SAAUG_SYSTICK(2) = 0;
        SAAUG_SYSTICK(0) = 5u; /* enabled, processor clock, no interrupt */
    }
    (void)SAAUG_SYSTICK(2);
    (void)SAAUG_SYSTICK(0); /* the first reads after the start see the reload; reading clears the overflow flag */
    __asm__ volatile("nop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop" ::: "memory");
    return SAAUG_SYSTICK(2);
}

static inline uint32_t saaug_ticks_end(uint32_t begun)
{
    const uint32_t now = SAAUG_SYSTICK(2);
    const uint32_t went_round = SAAUG_SYSTICK(0) & (1u << 16);
    return (went_round | (SAAUG_SYSTICK(1) ^ 0xFFFFFFu)) != 0 ? SAAUG_TICKS_UNKNOWN : begun - now;
}

#else

static inline uint32_t saaug_ticks_begin(void)
{
    SAAUG_REGISTER(0xE000EDFCu) = SAAUG_REGISTER(0xE000EDFCu) | (1u << 24); /* DEMCR: the DWT unit is on */
    SAAUG_REGISTER(0xE0001FB0u) = 0xC5ACCE55u;                              /* its lock, which some cores have */
    SAAUG_REGISTER(0xE0001000u) = SAAUG_REGISTER(0xE0001000u) | 1u;         /* DWT_CTRL: CYCCNT counts */
    return SAAUG_REGISTER(0xE0001004u);
}

static inline uint32_t saaug_ticks_end(uint32_t begun) { return SAAUG_REGISTER(0xE0001004u) - begun; }

#endif
#else

#define SAAUG_CLOCK_OF_PROGRAM
/** Counts up and goes round at 2^32; the program defines it. */
uint32_t saaug_clock(void);

static inline uint32_t saaug_ticks_begin(void) { return saaug_clock(); }
static inline uint32_t saaug_ticks_end(uint32_t begun) { return saaug_clock() - begun; }

#endif

/** What a network calls behind a layer; gives the beginning of the next one. */
static inline uint32_t saaug_profile_next(const saaug_profile_layer *layer, uint32_t begun)
{
    saaug_profile(layer, saaug_ticks_end(begun));
    return saaug_ticks_begin();
}

#ifdef __cplusplus
}
#endif
#endif
