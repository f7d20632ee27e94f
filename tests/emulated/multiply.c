/* An instruction that the smaller core of a family lacks: MUL.W of Thumb-2, or the M extension's MUL. */
#include <stdio.h>

int main(void)
{
#if defined(__riscv)
    __asm__ volatile(".word 0x02a50533" ::: "a0"); /* mul a0, a0, a0 */
#else
    __asm__ volatile(".short 0xfb00, 0xf000" ::: "r0"); /* mul.w r0, r0, r0 */
#endif
    printf("done\n");
    return 0;
}
