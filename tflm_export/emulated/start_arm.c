/* Start-up of a Cortex-M image in the emulator: vectors, memory, command line and exit through semihosting (newlib's
 * librdimon does files and printf). A fault ends the run with status 70: nothing may hang. */
#include <stdint.h>

extern uint32_t __stack, __bss_start__, __bss_end__;
extern void initialise_monitor_handles(void);
extern int main(int argc, char **argv);
void start(void);

#define SYS_GET_CMDLINE 0x15u
#define SYS_EXIT_EXTENDED 0x20u
#define APPLICATION_EXIT 0x20026u
#define FAULT_STATUS 70u

static uint32_t semihost(uint32_t operation, const void *block)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void leave(uint32_t status)
{
    const uint32_t block[2] = {APPLICATION_EXIT, status};
    for (;;) {
        (void)semihost(SYS_EXIT_EXTENDED, block);
    }
}

static void fault(void) { leave(FAULT_STATUS); }

__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vectors = {&__stack, {start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault}};

/* The words of the command line, taken apart in place. */
static int split(char *line, char **words, int most)
{
    int count = 0;
    while (count < most) {
        while (*line == ' ') {
            *line++ = '\0';
        }
        if (*line == '\0') {
            break;
        }
        words[count++] = line;
        while (*line != ' ' && *line != '\0') {
            ++line;
        }
    }
    words[count] = (char *)0;
    return count;
}

void start(void)
{
    static char line[256], *words[9];
    struct {
        char *text;
        uint32_t length;
    } request = {line, sizeof line};
    uint32_t *word;
#if (defined(__ARM_FP) && __ARM_FP) || (defined(__ARM_FEATURE_MVE) && __ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: floating-point and vector registers on */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    for (word = &__bss_start__; word < &__bss_end__; ++word) {
        *word = 0;
    }
    initialise_monitor_handles();
    (void)semihost(SYS_GET_CMDLINE, &request);
    leave((uint32_t)main(split(line, words, 8), words));
}

void *__exidx_start, *__exidx_end; /* no unwinding */
void _fini(void) {}
