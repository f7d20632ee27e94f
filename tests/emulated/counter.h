/* Counts executed instructions in the emulator. With a virtual clock that advances by a fixed time an instruction
 * (-icount), Arm's SysTick and RISC-V's instret are exact functions of the number of instructions: no host time enters.
 * SysTick has 24 bits: counter_stop() returns 0 where it went round. The unit is a tick; emulator.py knows how many
 * instructions a tick of each machine is. */
#ifndef COUNTER_H
#define COUNTER_H

#include <stdint.h>

#if defined(__riscv)

static inline uint32_t counter_read(void)
{
    uint32_t count;
    __asm__ volatile(".option push\n\t.option arch, +zicsr\n\tcsrr %0, instret\n\t.option pop" : "=r"(count)::"memory");
    return count;
}

static inline uint32_t counter_start(void) { return counter_read(); }
static inline uint32_t counter_stop(uint32_t start) { return counter_read() - start; }

#else

#define SYSTICK ((volatile uint32_t *)0xE000E010u) /* control, reload, current */

static inline uint32_t counter_start(void)
{
    SYSTICK[0] = 0;
    SYSTICK[1] = 0xFFFFFFu;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5u; /* enabled, processor clock, no interrupt */
    (void)SYSTICK[2];
    (void)SYSTICK[0]; /* the first reads after the start see the reload; reading clears the overflow flag */
    __asm__ volatile("nop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop\n\tnop" ::: "memory");
    return SYSTICK[2];
}

static inline uint32_t counter_stop(uint32_t start)
{
    const uint32_t now = SYSTICK[2];
    return (SYSTICK[0] & (1u << 16)) != 0 ? 0 : start - now;
}

#endif
#endif
