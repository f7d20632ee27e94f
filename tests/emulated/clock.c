/* What saaug_profile.h's SysTick says of more instructions than it counts, and where it is an operating system's: prints 1
 * for ticks that are unknown, and 1 where that system's settings stand. */
#include <stdio.h>

#include "saaug_profile.h"

static uint32_t ticks_of(uint32_t times)
{
    const uint32_t begun = saaug_ticks_begin();
    __asm__ volatile(".syntax unified\n1: subs %0, %0, #1\n\tbne 1b" : "+l"(times)::"cc");
    return saaug_ticks_end(begun);
}

int main(void)
{
    printf("%d %d\n", ticks_of(30000000) == SAAUG_TICKS_UNKNOWN, ticks_of(50000000) == SAAUG_TICKS_UNKNOWN);
    SAAUG_SYSTICK(0) = 0;
    SAAUG_SYSTICK(1) = 0xFFFF;
    SAAUG_SYSTICK(0) = 5;
    printf("%d %d\n", ticks_of(1000) == SAAUG_TICKS_UNKNOWN, SAAUG_SYSTICK(1) == 0xFFFF && (SAAUG_SYSTICK(0) & 5) == 5);
    return 0;
}
