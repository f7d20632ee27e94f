/* Programs over packed pixels: making, running, requantizing. */
#include "saaug_bucket.h"

#define SAAUG_LEVELS_OF(layout) ((layout) == SAAUG_LAYOUT_NIBBLE ? 7 : 16)
#define SAAUG_LANE_LIMIT 255 /* 255 * 128 <= 32767: most that the weights of a sum of int8 in int16 may add up to */

/* Instructions of a program. */
#if SAAUG_THUMB
/* Two uint16: offset in the interpreter's table, operand. The operand is a column, or the exponent of a spill. */
#define SAAUG_STEP 2
#if SAAUG_THUMB == 2
#define SAAUG_ADD(distance) ((uint16_t)(4 * (distance))) /* distance in exponents from the spill: 0..7 */
#define SAAUG_SUB(distance) ((uint16_t)(32 + 4 * (distance)))
#define SAAUG_SPILL_SET 64
#define SAAUG_SPILL_ADD 68
#define SAAUG_END 72
#else
#define SAAUG_ADD 0
#define SAAUG_SUB 4
#define SAAUG_DOUBLE_ADD 8
#define SAAUG_DOUBLE_SUB 12
#define SAAUG_DOUBLE 16
#define SAAUG_SPILL_SET 20
#define SAAUG_SPILL_ADD 24
#define SAAUG_END 28
#endif
#else
/* One uint16, kind + 8 * operand, and after SAAUG_ADD and SAAUG_SUB as many columns as the operand says. */
#define SAAUG_STEP 1
#define SAAUG_ADD 0
#define SAAUG_SUB 1
#define SAAUG_DOUBLE 2
#define SAAUG_SPILL_SET 3
#define SAAUG_SPILL_ADD 4
#define SAAUG_END 5
#endif

int32_t saaug_bucket_program_length(int32_t taps, int32_t layout)
{
    const int32_t levels = SAAUG_LEVELS_OF(layout);
#if SAAUG_THUMB
    return 2 * (taps + 2 * levels + 1); /* per level at most one doubling and one spill; one end */
#else
    return (taps + 4 * levels + 3) & ~1; /* and two runs */
#endif
}

static uint16_t *emit(uint16_t *program, int32_t kind, int32_t operand)
{
#if SAAUG_THUMB
    *program++ = (uint16_t)kind;
    *program++ = (uint16_t)operand;
#else
    *program++ = (uint16_t)(kind + 8 * operand);
#endif
    return program;
}

/* Room for the `count` columns of one code; *place is where they go. */
static uint16_t *emit_run(uint16_t *program, int32_t kind, int32_t count, uint16_t **place)
{
#if SAAUG_THUMB
    *place = program + 1;
    for (; count > 0; --count) {
        *program = (uint16_t)kind;
        program += 2;
    }
#else
    if (count > 0) {
        program = emit(program, kind, count);
    }
    *place = program;
    program += count;
#endif
    return program;
}

/* The runs of magnitude `level`, in a group of magnitudes [base, top]. */
static uint16_t *emit_level(uint16_t *program, int32_t level, int32_t base, int32_t top, int32_t adds, int32_t subs,
                            uint16_t **add_place, uint16_t **sub_place)
{
#if SAAUG_THUMB == 2
    (void)top;
    program = emit_run(program, SAAUG_ADD(level - base), adds, add_place);
    return emit_run(program, SAAUG_SUB(level - base), subs, sub_place);
#else
    uint16_t *const first = program;
    (void)base;
#if SAAUG_THUMB == 1
    program = emit_run(program, SAAUG_ADD, adds, add_place);
    program = emit_run(program, SAAUG_SUB, subs, sub_place);
    if (level != top && program == first) {
        program = emit(program, SAAUG_DOUBLE, 0);
    } else if (level != top) {
        *first = adds > 0 ? SAAUG_DOUBLE_ADD : SAAUG_DOUBLE_SUB;
    }
    return program;
#else
    (void)first;
    if (level != top) {
        program = emit(program, SAAUG_DOUBLE, 1);
    }
    program = emit_run(program, SAAUG_ADD, adds, add_place);
    return emit_run(program, SAAUG_SUB, subs, sub_place);
#endif
#endif
}

static int32_t byte_index(int8_t code) { return code < 0 ? 16 - (int32_t)code : (int32_t)code; }

void saaug_bucket_program(const uint8_t *row, int32_t layout, int32_t first, int32_t taps, const uint16_t *columns,
                          int accumulate, uint16_t *program)
{
    /* Codes by index: magnitude, or `negative` + magnitude. */
    const int32_t levels = SAAUG_LEVELS_OF(layout);
    const int32_t negative = layout == SAAUG_LAYOUT_NIBBLE ? 8 : 16;
    const uint8_t *const codes = row + (layout == SAAUG_LAYOUT_NIBBLE ? first / 2 : first);
    uint16_t count[34] = {0}, *place[34];
    int32_t t, level, low = 1, top = levels, column = 0;
    if (layout == SAAUG_LAYOUT_NIBBLE) {
        for (t = 0; t < (taps + 1) / 2; ++t) {
            ++count[codes[t] & 15u];
            ++count[codes[t] >> 4];
        }
    } else {
        for (t = 0; t < taps; ++t) {
            ++count[byte_index((int8_t)codes[t])];
        }
    }
    while (top > 0 && count[top] + count[negative + top] == 0) {
        --top;
    }
    while (low < top && count[low] + count[negative + low] == 0) {
        ++low;
    }
    if (top == 0 && !accumulate) {
        program = emit(program, SAAUG_SPILL_SET, 0);
    }
    while (top >= low && top > 0) {
        int32_t sum = count[top] + count[negative + top];
        int32_t base = top;
        while (base > low && 2 * sum + count[base - 1] + count[negative + base - 1] <= SAAUG_LANE_LIMIT) {
            --base;
            sum = 2 * sum + count[base] + count[negative + base];
        }
        for (level = top; level >= base; --level) {
            program = emit_level(program, level, base, top, count[level], count[negative + level], &place[level],
                                 &place[negative + level]);
        }
        program = emit(program, accumulate ? SAAUG_SPILL_ADD : SAAUG_SPILL_SET, base - 1);
        accumulate = 1;
        for (top = base - 1; top >= low && count[top] + count[negative + top] == 0; --top) {
        }
    }
    (void)emit(program, SAAUG_END, 0);
    for (t = 0; t < taps; ++t) {
        const int32_t index =
            layout == SAAUG_LAYOUT_NIBBLE ? (int32_t)saaug_nibble(codes, t) : byte_index((int8_t)codes[t]);
        if (index != 0) {
            *place[index] = columns != NULL ? columns[t] : (uint16_t)column;
            place[index] += SAAUG_STEP;
        }
        column += SAAUG_COLUMN_BYTES;
    }
}

#if SAAUG_THUMB

/* The interpreters keep the four sums in r8-r11 and load columns into r4-r7. r0: program, r1: block, r2: accumulators. A
 * spill of a sum s at exponent p, q = 16 - p: the low pixel is (s << 16) >> q, and the high one (s - low) >> q. */
__asm__(
    ".syntax unified\n"
    ".section .text.saaug_bucket_run,\"ax\",%progbits\n"
    ".balign 4\n"
    ".global saaug_bucket_run\n"
    ".type saaug_bucket_run, %function\n"
    ".thumb_func\n"
#if SAAUG_THUMB == 2
    ".macro saaug_next\n"
    "    ldrh r4, [r0], #4\n"
    "    ldrh r3, [r0, #-2]\n"
    "    add r3, r3, r1\n"
    "    ldr pc, [lr, r4]\n"
    ".endm\n"
    ".macro saaug_column operation, label, distance\n"
    ".Lsaaug_\\label\\distance:\n"
    "    ldmia r3, {r4-r7}\n"
    "    \\operation r8, r8, r4, lsl #\\distance\n"
    "    \\operation r9, r9, r5, lsl #\\distance\n"
    "    \\operation r10, r10, r6, lsl #\\distance\n"
    "    \\operation r11, r11, r7, lsl #\\distance\n"
    "    saaug_next\n"
    ".endm\n"
    ".macro saaug_split sum\n"
    "    lsl r4, \\sum, #16\n"
    "    sub \\sum, \\sum, r4, asr #16\n"
    "    asr r4, r4, r3\n"
    "    asr r5, \\sum, r3\n"
    "    mov \\sum, #0\n"
    ".endm\n"
    ".macro saaug_set sum, offset\n"
    "    saaug_split \\sum\n"
    "    strd r4, r5, [r2, #\\offset]\n"
    ".endm\n"
    ".macro saaug_add sum, offset\n"
    "    saaug_split \\sum\n"
    "    ldrd r6, r7, [r2, #\\offset]\n"
    "    add r4, r4, r6\n"
    "    add r5, r5, r7\n"
    "    strd r4, r5, [r2, #\\offset]\n"
    ".endm\n"
    "saaug_bucket_run:\n"
    "    push {r4-r11, lr}\n"
    "    adr lr, .Lsaaug_table\n"
    "    mov r8, #0\n"
    "    mov r9, #0\n"
    "    mov r10, #0\n"
    "    mov r11, #0\n"
    "    saaug_next\n"
    ".balign 4\n"
    ".Lsaaug_table:\n"
    ".irp distance, 0, 1, 2, 3, 4, 5, 6, 7\n"
    "    .word .Lsaaug_plus\\distance + 1\n"
    ".endr\n"
    ".irp distance, 0, 1, 2, 3, 4, 5, 6, 7\n"
    "    .word .Lsaaug_minus\\distance + 1\n"
    ".endr\n"
    "    .word .Lsaaug_spill_set + 1, .Lsaaug_spill_add + 1, .Lsaaug_end + 1\n"
    ".irp distance, 0, 1, 2, 3, 4, 5, 6, 7\n"
    "    saaug_column add, plus, \\distance\n"
    "    saaug_column sub, minus, \\distance\n"
    ".endr\n"
    ".Lsaaug_spill_set:\n"
    "    subs r3, r3, r1\n"
    "    rsb r3, r3, #16\n"
    "    saaug_set r8, 0\n"
    "    saaug_set r9, 8\n"
    "    saaug_set r10, 16\n"
    "    saaug_set r11, 24\n"
    "    saaug_next\n"
    ".Lsaaug_spill_add:\n"
    "    subs r3, r3, r1\n"
    "    rsb r3, r3, #16\n"
    "    saaug_add r8, 0\n"
    "    saaug_add r9, 8\n"
    "    saaug_add r10, 16\n"
    "    saaug_add r11, 24\n"
    "    saaug_next\n"
    ".Lsaaug_end:\n"
    "    pop {r4-r11, pc}\n"
#else
    ".macro saaug_next\n"
    "    ldrh r4, [r0]\n"
    "    ldrh r3, [r0, #2]\n"
    "    adds r0, r0, #4\n"
    "    adds r3, r3, r1\n"
    "    ldr r4, [r2, r4]\n"
    "    mov pc, r4\n"
    ".endm\n"
    ".macro saaug_double\n"
    "    add r8, r8\n"
    "    add r9, r9\n"
    "    add r10, r10\n"
    "    add r11, r11\n"
    ".endm\n"
    ".macro saaug_sum\n"
    "    add r8, r8, r4\n"
    "    add r9, r9, r5\n"
    "    add r10, r10, r6\n"
    "    add r11, r11, r7\n"
    ".endm\n"
    ".macro saaug_split sum\n"
    "    mov r4, \\sum\n"
    "    lsls r5, r4, #16\n"
    "    asrs r6, r5, #16\n"
    "    subs r4, r4, r6\n"
    "    asrs r5, r5, r3\n"
    "    asrs r4, r4, r3\n"
    ".endm\n"
    ".macro saaug_set sum, offset\n"
    "    saaug_split \\sum\n"
    "    str r5, [r7, #\\offset]\n"
    "    str r4, [r7, #\\offset + 4]\n"
    ".endm\n"
    ".macro saaug_add sum, offset\n"
    "    saaug_split \\sum\n"
    "    ldr r6, [r7, #\\offset]\n"
    "    adds r5, r5, r6\n"
    "    str r5, [r7, #\\offset]\n"
    "    ldr r6, [r7, #\\offset + 4]\n"
    "    adds r4, r4, r6\n"
    "    str r4, [r7, #\\offset + 4]\n"
    ".endm\n"
    ".macro saaug_clear\n"
    "    movs r4, #0\n"
    "    mov r8, r4\n"
    "    mov r9, r4\n"
    "    mov r10, r4\n"
    "    mov r11, r4\n"
    ".endm\n"
    "saaug_bucket_run:\n"
    "    push {r4-r7, lr}\n"
    "    mov r4, r8\n"
    "    mov r5, r9\n"
    "    mov r6, r10\n"
    "    mov r7, r11\n"
    "    push {r4-r7}\n"
    "    mov r12, r2\n"
    "    adr r2, .Lsaaug_table\n"
    "    saaug_clear\n"
    "    saaug_next\n"
    ".balign 4\n"
    ".Lsaaug_table:\n"
    "    .word .Lsaaug_plus + 1, .Lsaaug_minus + 1, .Lsaaug_double_plus + 1, .Lsaaug_double_minus + 1\n"
    "    .word .Lsaaug_double + 1, .Lsaaug_spill_set + 1, .Lsaaug_spill_add + 1, .Lsaaug_end + 1\n"
    ".Lsaaug_double_plus:\n"
    "    saaug_double\n"
    ".Lsaaug_plus:\n"
    "    ldmia r3!, {r4-r7}\n"
    "    saaug_sum\n"
    "    saaug_next\n"
    ".Lsaaug_double_minus:\n"
    "    saaug_double\n"
    ".Lsaaug_minus:\n"
    "    ldmia r3!, {r4-r7}\n"
    "    rsbs r4, r4, #0\n"
    "    rsbs r5, r5, #0\n"
    "    rsbs r6, r6, #0\n"
    "    rsbs r7, r7, #0\n"
    "    saaug_sum\n"
    "    saaug_next\n"
    ".Lsaaug_double:\n"
    "    saaug_double\n"
    "    saaug_next\n"
    ".Lsaaug_spill_set:\n"
    "    subs r3, r3, r1\n"
    "    rsbs r3, r3, #0\n"
    "    adds r3, r3, #16\n"
    "    mov r7, r12\n"
    "    saaug_set r8, 0\n"
    "    saaug_set r9, 8\n"
    "    saaug_set r10, 16\n"
    "    saaug_set r11, 24\n"
    "    saaug_clear\n"
    "    saaug_next\n"
    ".Lsaaug_spill_add:\n"
    "    subs r3, r3, r1\n"
    "    rsbs r3, r3, #0\n"
    "    adds r3, r3, #16\n"
    "    mov r7, r12\n"
    "    saaug_add r8, 0\n"
    "    saaug_add r9, 8\n"
    "    saaug_add r10, 16\n"
    "    saaug_add r11, 24\n"
    "    saaug_clear\n"
    "    saaug_next\n"
    ".Lsaaug_end:\n"
    "    pop {r4-r7}\n"
    "    mov r8, r4\n"
    "    mov r9, r5\n"
    "    mov r10, r6\n"
    "    mov r11, r7\n"
    "    pop {r4-r7, pc}\n"
#endif
    ".size saaug_bucket_run, . - saaug_bucket_run\n"
    ".text\n");

#else

void saaug_bucket_run(const uint16_t *program, const uint32_t *block, int32_t *acc)
{
    const uint8_t *const base = (const uint8_t *)block;
    uint32_t sums[SAAUG_WORDS];
    int32_t k;
    for (k = 0; k < SAAUG_WORDS; ++k) {
        sums[k] = 0;
    }
    for (;;) {
        const uint32_t instruction = *program++;
        const uint32_t operand = instruction >> 3;
        const uint16_t *const end = program + operand;
        switch (instruction & 7u) {
        case SAAUG_ADD:
            do {
                const uint32_t *const column = (const uint32_t *)(const void *)(base + *program++);
                for (k = 0; k < SAAUG_WORDS; ++k) {
                    sums[k] += column[k];
                }
            } while (program != end);
            break;
        case SAAUG_SUB:
            do {
                const uint32_t *const column = (const uint32_t *)(const void *)(base + *program++);
                for (k = 0; k < SAAUG_WORDS; ++k) {
                    sums[k] -= column[k];
                }
            } while (program != end);
            break;
        case SAAUG_DOUBLE:
            for (k = 0; k < SAAUG_WORDS; ++k) {
                sums[k] += sums[k];
            }
            break;
        case SAAUG_SPILL_SET:
            for (k = 0; k < SAAUG_WORDS; ++k) {
                const int32_t low = (int16_t)(uint16_t)sums[k];
                acc[2 * k] = saaug_shift_left(low, operand);
                acc[2 * k + 1] = (int32_t)(sums[k] - (uint32_t)low) >> (16u - operand);
                sums[k] = 0;
            }
            break;
        case SAAUG_SPILL_ADD:
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

#if SAAUG_NO_MULTIPLY

/* Requantization without a product. acc * multiplier / 2^(31 + shift) is acc / d with d = 2^(31 + shift) / multiplier in
 * (2^shift, 2^(shift + 1)]. `step` is d * 2^(21 - shift), rounded down: in [2^21, 2^22]. Dividing by it bit by bit gives
 * the nearest integer q and a remainder, which says how far acc is from where q changes. The errors of the rounded step
 * (256 of them, and the half that is added) are below 2^9 of a step; rounding to Q31 first, as the contract has it, moves
 * the result by at most 2^-(shift + 1) steps. Nearer than both to a change, the product decides. */
#define SAAUG_STEP_BITS 21

void saaug_bucket_channel(const int32_t *params, const saaug_options *options, saaug_channel *channel)
{
    const uint32_t multiplier = (uint32_t)(params[1] < 0 ? -params[1] : params[1]);
    uint32_t remainder, quotient = 0;
    int32_t bit;
    channel->bias = params[0];
    channel->multiplier = params[1];
    channel->shift = params[2];
    channel->step = 0;
    if (options->requant == SAAUG_REQUANT_POWER_OF_TWO || multiplier <= (uint32_t)1 << 30 ||
        params[2] > SAAUG_STEP_BITS - 1) {
        return;
    }
    /* 2^(31 + 21) / multiplier: the quotient is 2^21 and the bits of a long division. */
    remainder = ((uint32_t)1 << 31) - multiplier;
    quotient = 1;
    for (bit = 0; bit < SAAUG_STEP_BITS; ++bit) {
        remainder += remainder;
        quotient += quotient;
        if (remainder >= multiplier) {
            remainder -= multiplier;
            ++quotient;
        }
    }
    channel->step = quotient;
}

static int32_t rescale(int32_t acc, const saaug_channel *channel)
{
    const uint32_t magnitude = (uint32_t)(acc < 0 ? -acc : acc);
    const uint32_t step = channel->step;
    if (step != 0) {
        uint32_t quotient = 0, part = step << 7, rest, margin;
        int32_t bit;
        if ((magnitude >> 9) >> channel->shift != 0) {
            quotient = 256; /* acc >= 2^9 * 2^shift >= 256 * d: beyond int8 for every zero point */
            rest = step >> 1;
        } else {
            rest = (magnitude << (SAAUG_STEP_BITS - channel->shift)) + (step >> 1);
            if (rest >= step << 8) {
                quotient = 256;
                rest = step >> 1;
            }
        }
        if (quotient == 0) {
            for (bit = 0; bit < 8; ++bit) {
                quotient += quotient;
                if (rest >= part) {
                    rest -= part;
                    ++quotient;
                }
                part >>= 1;
            }
        }
        margin = ((uint32_t)1 << (SAAUG_STEP_BITS + 1 - channel->shift)) + 512u;
        if (rest > margin && rest + margin < step) {
            return (acc < 0) != (channel->multiplier < 0) ? -(int32_t)quotient : (int32_t)quotient;
        }
    }
    return saaug_rounding_shift(saaug_multiply_high(acc, channel->multiplier), channel->shift);
}

#else

void saaug_bucket_channel(const int32_t *params, const saaug_options *options, saaug_channel *channel)
{
    (void)options;
    channel->bias = params[0];
    channel->multiplier = params[1];
    channel->shift = params[2];
}

/* (acc * multiplier + 2^30) >> 31 as (2 * acc * multiplier + 2^31) >> 32. */
static inline int32_t multiply_high(int32_t acc, int32_t multiplier)
{
#if SAAUG_THUMB == 1
    /* No long multiplication: four products of halves. Each sum fits: 2^16 * 2^15 - 2^16 + 2^16. */
    const int32_t twice = 2 * acc;
    const int32_t a_low = twice & 0xFFFF, a_high = twice >> 16;
    const int32_t m_low = multiplier & 0xFFFF, m_high = multiplier >> 16;
    const uint32_t lowest = (uint32_t)a_low * (uint32_t)m_low;
    const int32_t middle = a_high * m_low + (int32_t)(lowest >> 16);
    const int32_t other = a_low * m_high + (middle & 0xFFFF);
    return a_high * m_high + (middle >> 16) + (other >> 16) + ((other >> 15) & 1);
#else
    const int64_t product = (int64_t)(2 * acc) * multiplier;
    return (int32_t)(product >> 32) + (int32_t)((uint32_t)product >> 31);
#endif
}

static inline int32_t rescale(int32_t acc, const saaug_channel *channel)
{
    return saaug_rounding_shift(multiply_high(acc, channel->multiplier), channel->shift);
}

#endif

static inline void store(const int32_t *acc, int32_t step, int32_t count, const saaug_channel *channel,
                         int32_t output_zero_point, int32_t act_min, int32_t act_max, int8_t *output, int32_t stride)
{
    const saaug_channel local = *channel;
    for (; count > 0; --count) {
        *output = (int8_t)saaug_clamp(rescale(*acc + local.bias, &local) + output_zero_point, act_min, act_max);
        acc += step;
        output += stride;
    }
}

void saaug_bucket_store(const int32_t *acc, int32_t step, int32_t count, const saaug_channel *channel,
                        const saaug_options *options, int8_t *output, int32_t stride)
{
    const int32_t zero_point = options->output_zero_point;
    if (options->requant == SAAUG_REQUANT_POWER_OF_TWO) {
        for (; count > 0; --count) {
            const int32_t value = *acc + channel->bias;
            const int32_t scaled = saaug_rounding_shift(channel->multiplier < 0 ? -value : value, channel->shift);
            *output = (int8_t)saaug_clamp(scaled + zero_point, options->act_min, options->act_max);
            acc += step;
            output += stride;
        }
    } else if (options->act_min == -128 && options->act_max == 127) {
        store(acc, step, count, channel, zero_point, -128, 127, output, stride);
    } else {
        store(acc, step, count, channel, zero_point, options->act_min, options->act_max, output, stride);
    }
}
