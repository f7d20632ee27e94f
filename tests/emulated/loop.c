/* Runs a loop of two instructions 10, 100, ..., 100 000 times and prints what the counter says. */
#include <stdio.h>

#include "saaug_profile.h"

int main(void)
{
    uint32_t times;
    for (times = 10; times <= 100000; times *= 10) {
        uint32_t left = times;
        const uint32_t start = saaug_ticks_begin();
#if defined(__riscv)
        __asm__ volatile("1: addi %0, %0, -1\n\tbnez %0, 1b" : "+r"(left));
#else
        __asm__ volatile(".syntax unified\n1: subs %0, %0, #1\n\tbne 1b" : "+l"(left)::"cc");
#endif
        printf("%lu\n", (unsigned long)saaug_ticks_end(start));
    }
    return 0;
}
