/* Runs a program, in C: where there is no interpreter in assembly. */
#include "saaug_bucket_program.h"

#if !SAAUG_THREADED

static inline void add_column(uint32_t *sums, const uint8_t *block, uint32_t offset)
{
    const uint32_t *const column = (const uint32_t *)(const void *)(block + offset);
    int32_t k;
    for (k = 0; k < SAAUG_WORDS; ++k) {
        sums[k] += column[k];
    }
}

static inline void subtract_column(uint32_t *sums, const uint8_t *block, uint32_t offset)
{
    const uint32_t *const column = (const uint32_t *)(const void *)(block + offset);
    int32_t k;
    for (k = 0; k < SAAUG_WORDS; ++k) {
        sums[k] -= column[k];
    }
}

static inline void double_sums(uint32_t *sums)
{
    int32_t k;
    for (k = 0; k < SAAUG_WORDS; ++k) {
        sums[k] += sums[k];
    }
}

void saaug_bucket_run(const uint16_t *program, const uint32_t *words, int32_t *acc)
{
    const uint8_t *const block = (const uint8_t *)words;
    uint32_t sums[SAAUG_WORDS];
    int32_t k;
    for (k = 0; k < SAAUG_WORDS; ++k) {
        sums[k] = 0;
    }
    for (;;) {
        const uint32_t head = *program++;
        const uint32_t operand = head >> 3;
        const uint16_t *const end = program + operand;
        switch (head & 7u) {
        case DOUBLES + ADD:
            double_sums(sums);
            /* fall through */
        case ADD:
            do {
                add_column(sums, block, *program++);
            } while (program != end);
            break;
        case DOUBLES + SUB:
            double_sums(sums);
            /* fall through */
        case SUB:
            do {
                subtract_column(sums, block, *program++);
            } while (program != end);
            break;
        case DOUBLE:
            double_sums(sums);
            break;
        case SPILL_SET:
            for (k = 0; k < SAAUG_WORDS; ++k) {
                const int32_t low = (int16_t)(uint16_t)sums[k];
                acc[2 * k] = saaug_shift_left(low, operand);
                acc[2 * k + 1] = (int32_t)(sums[k] - (uint32_t)low) >> (16u - operand);
                sums[k] = 0;
            }
            break;
        case SPILL_ADD:
            for (k = 0; k < SAAUG_WORDS; ++k) {
                const int32_t low = (int16_t)(uint16_t)sums[k];
                acc[2 * k] += saaug_shift_left(low, operand);
                acc[2 * k + 1] += (int32_t)(sums[k] - (uint32_t)low) >> (16u - operand);
                sums[k] = 0;
            }
            break;
        default:
            return;
        }
    }
}

#endif
