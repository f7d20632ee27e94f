/* Programs over packed pixels: making, running, requantizing. */
#include "saaug_bucket.h"

#define LANE_LIMIT 255 /* 255 * 128 <= 32767: most that the weights of a sum of int8 in int16 may add up to */

/* Codes by index: the magnitude, or NEGATIVE + magnitude. */
#define LEVELS_OF(layout) ((layout) == SAAUG_LAYOUT_BYTE ? 16 : 7)
#define NEGATIVE_OF(layout) ((layout) == SAAUG_LAYOUT_BYTE ? 16 : 8)
#define INDICES 33

/* Most columns of a head in a threaded program. */
#define LONGEST_RUN 4

/* A program. Its instructions are heads; a head that adds or subtracts stands for a number of columns. */
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

int32_t saaug_bucket_program_length(int32_t taps, int32_t layout)
{
    /* The longest of all interpreters': a word in front, columns, heads of whole runs; a level of both signs has at
     * most two heads, a doubling and two words of a spill more; two words at the end. */
    return (1 + taps + taps / LONGEST_RUN + 5 * LEVELS_OF(layout) + 2 + 1) & ~1;
}

static uint16_t *emit_spill(uint16_t *head, int32_t accumulate, int32_t exponent)
{
    const int32_t kind = accumulate ? SPILL_ADD : SPILL_SET;
#if SAAUG_THREADED
    *head++ = HEAD(kind);
    *head++ = (uint16_t)(16 - exponent);
#else
    *head++ = (uint16_t)(kind + 8 * exponent);
#endif
    return head;
}

/* Heads for `count` columns of one code, and the place of the columns. In a threaded program columns have a place of
 * their own, from *column on. */
static uint16_t *emit_run(uint16_t *head, int32_t kind, int32_t count, uint16_t **column, uint16_t **place)
{
#if SAAUG_THREADED
    *place = *column;
    *column += count;
    for (; count > 0; count -= LONGEST_RUN) {
        *head++ = HEAD(kind + (count < LONGEST_RUN ? count : LONGEST_RUN) - 1);
        kind = ONCE(kind);
    }
#else
    (void)column;
    if (count > 0) {
        *head++ = (uint16_t)(kind + 8 * count);
    }
    *place = head;
    head += count;
#endif
    return head;
}

static int32_t byte_index(uint8_t code) { return code < 128 ? code : 16 + 256 - (int32_t)code; }

/* Bits [first, first + taps) of a row as nibbles; zeros behind them. */
static void expand_bits(const uint8_t *row, int32_t first, int32_t taps, uint8_t *nibbles)
{
    int32_t quad;
    for (quad = 0; 4 * quad < taps; ++quad, nibbles += 2) {
        const int32_t left = taps - 4 * quad;
        uint32_t codes = saaug_bits_as_nibbles(row, first / 4 + quad);
        codes = left < 4 ? codes & ((1u << 4 * left) - 1u) : codes;
        nibbles[0] = (uint8_t)codes;
        nibbles[1] = (uint8_t)(codes >> 8);
    }
}

static void count_codes(const uint8_t *codes, int32_t layout, int32_t taps, uint8_t *counts)
{
    if (layout == SAAUG_LAYOUT_NIBBLE) {
        for (taps = (taps + 1) / 2; taps > 0; --taps) {
            const uint32_t pair = *codes++;
            ++counts[pair & 15u];
            ++counts[pair >> 4];
        }
    } else {
        for (; taps > 0; --taps) {
            ++counts[byte_index(*codes++)];
        }
    }
}

static void put_columns(const uint8_t *codes, int32_t taps, uint16_t **places)
{
    uint32_t column = 0;
    for (; taps > 0; taps -= 2) { /* after an odd number of taps comes padding, which is zero */
        const uint32_t pair = *codes++;
        if ((pair & 15u) != 0) {
            *places[pair & 15u]++ = (uint16_t)column;
        }
        column += SAAUG_COLUMN_BYTES;
        if (pair >> 4 != 0) {
            *places[pair >> 4]++ = (uint16_t)column;
        }
        column += SAAUG_COLUMN_BYTES;
    }
}

static void put_listed_columns(const uint8_t *codes, int32_t layout, int32_t taps, const uint16_t *columns,
                               uint16_t **places)
{
    int32_t t;
    for (t = 0; t < taps; ++t) {
        const int32_t index = layout == SAAUG_LAYOUT_NIBBLE ? (int32_t)saaug_nibble(codes, t) : byte_index(codes[t]);
        if (index != 0) {
            *places[index]++ = columns != NULL ? columns[t] : (uint16_t)(t * SAAUG_COLUMN_BYTES);
        }
    }
}

void saaug_bucket_program(const uint8_t *row, int32_t layout, int32_t first, int32_t taps, const uint16_t *columns,
                          int accumulate, uint16_t *program)
{
    const int32_t negative = NEGATIVE_OF(layout);
    const uint8_t *codes = row + (layout == SAAUG_LAYOUT_NIBBLE ? first / 2 : first);
    uint8_t nibbles[SAAUG_PROGRAM_TAPS / 2 + 2];
    uint8_t adds[INDICES] = {0}; /* at most SAAUG_PROGRAM_TAPS */
    uint16_t *places[INDICES];
    const uint8_t *const subs = adds + negative;
    uint16_t *column = program + 1, *head = program;
    int32_t level, low = 1, top = LEVELS_OF(layout);
    if (layout == SAAUG_LAYOUT_BIT) {
        expand_bits(row, first, taps, nibbles);
        codes = nibbles;
        layout = SAAUG_LAYOUT_NIBBLE;
    }
    count_codes(codes, layout, taps, adds);
#if SAAUG_THREADED
    for (level = 1; level <= top; ++level) {
        head += adds[level] + subs[level];
    }
    *program = (uint16_t)(2 * (head - program));
    ++head;
#endif
    while (top > 0 && adds[top] + subs[top] == 0) {
        --top;
    }
    while (low < top && adds[low] + subs[low] == 0) {
        ++low;
    }
    if (top == 0 && !accumulate) {
#if SAAUG_RV32
        *head++ = HEAD(CLEAR);
#endif
        head = emit_spill(head, 0, 0);
    }
    while (top >= low) {
        /* A group of levels, from the top down to where the sum may leave int16. */
        int32_t sum = adds[top] + subs[top], base = top;
        while (base > low && 2 * sum + adds[base - 1] + subs[base - 1] <= LANE_LIMIT) {
            --base;
            sum = 2 * sum + adds[base] + subs[base];
        }
        for (level = top; level >= base; --level) {
#if SAAUG_THUMB == 2
            head = emit_run(head, ADD(level - base), adds[level], &column, places + level);
            head = emit_run(head, SUB(level - base), subs[level], &column, places + negative + level);
#else
            const int32_t adding = level < top ? DOUBLES : STARTS, taking = adds[level] > 0 ? 0 : adding;
            if (level < top && adds[level] + subs[level] == 0) {
                *head++ = HEAD(DOUBLE);
            }
            head = emit_run(head, adding + ADD, adds[level], &column, places + level);
            head = emit_run(head, taking + SUB, subs[level], &column, places + negative + level);
#endif
        }
        head = emit_spill(head, accumulate, base - 1);
        accumulate = 1;
        for (top = base - 1; top >= low && adds[top] + subs[top] == 0; --top) {
        }
    }
    *head = HEAD(END);
    if (layout == SAAUG_LAYOUT_NIBBLE && columns == NULL) {
        put_columns(codes, taps, places);
    } else {
        put_listed_columns(codes, layout, taps, columns, places);
    }
}

#if SAAUG_THREADED

/* The interpreters. Four sums are in r8-r11 and columns come into r4-r7 on Cortex-M; eight sums are in t0-t6 and a5 on
 * RV32I. r0, a0: columns; r1, a1: block. Thumb-2: r2: accumulators, r12: heads, lr: table. Thumb-1: lr: accumulators,
 * r2: heads, r12: first routine. RV32I: a2: accumulators, a3: heads, a4: first routine. A spill of a sum s at exponent
 * p, q = 16 - p: the low pixel is (s << 16) >> q, and the high one (s - low) >> q. */
__asm__(
#if SAAUG_THUMB
    ".syntax unified\n"
#endif
    ".section .text.saaug_bucket_run,\"ax\",%progbits\n"
    ".balign 4\n"
    ".global saaug_bucket_run\n"
    ".type saaug_bucket_run, %function\n"
#if SAAUG_THUMB
    ".thumb_func\n"
#endif
#if SAAUG_THUMB == 2
    ".macro saaug_next\n"
    "    ldrh r4, [r12], #2\n"
    "    ldr pc, [lr, r4]\n"
    ".endm\n"
    ".macro saaug_columns operation, label, distance\n"
    ".irp count, 4, 3, 2, 1\n"
    ".Lsaaug_\\label\\distance\\()_\\count:\n"
    "    ldrh r3, [r0], #2\n"
    "    add r3, r3, r1\n"
    "    ldmia r3, {r4-r7}\n"
    "    \\operation r8, r8, r4, lsl #\\distance\n"
    "    \\operation r9, r9, r5, lsl #\\distance\n"
    "    \\operation r10, r10, r6, lsl #\\distance\n"
    "    \\operation r11, r11, r7, lsl #\\distance\n"
    ".endr\n"
    "    saaug_next\n"
    ".endm\n"
    ".macro saaug_routines label, distance\n"
    "    .word .Lsaaug_\\label\\distance\\()_1 + 1, .Lsaaug_\\label\\distance\\()_2 + 1\n"
    "    .word .Lsaaug_\\label\\distance\\()_3 + 1, .Lsaaug_\\label\\distance\\()_4 + 1\n"
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
    ".macro saaug_spill how\n"
    "    ldrh r3, [r12], #2\n"
    "    saaug_\\how r8, 0\n"
    "    saaug_\\how r9, 8\n"
    "    saaug_\\how r10, 16\n"
    "    saaug_\\how r11, 24\n"
    "    saaug_next\n"
    ".endm\n"
    "saaug_bucket_run:\n"
    "    push {r4-r11, lr}\n"
    "    adr lr, .Lsaaug_table\n"
    "    ldrh r12, [r0], #2\n"
    "    add r12, r12, r0\n"
    "    mov r8, #0\n"
    "    mov r9, #0\n"
    "    mov r10, #0\n"
    "    mov r11, #0\n"
    "    saaug_next\n"
    ".balign 4\n"
    ".Lsaaug_table:\n"
    ".irp distance, 0, 1, 2, 3, 4, 5, 6, 7\n"
    "    saaug_routines plus, \\distance\n"
    ".endr\n"
    ".irp distance, 0, 1, 2, 3, 4, 5, 6, 7\n"
    "    saaug_routines minus, \\distance\n"
    ".endr\n"
    "    .word .Lsaaug_spill_set + 1, .Lsaaug_spill_add + 1, .Lsaaug_end + 1\n"
    ".irp distance, 0, 1, 2, 3, 4, 5, 6, 7\n"
    "    saaug_columns add, plus, \\distance\n"
    "    saaug_columns sub, minus, \\distance\n"
    ".endr\n"
    ".Lsaaug_spill_set:\n"
    "    saaug_spill set\n"
    ".Lsaaug_spill_add:\n"
    "    saaug_spill add\n"
    ".Lsaaug_end:\n"
    "    pop {r4-r11, pc}\n"
#elif SAAUG_THUMB == 1
    ".macro saaug_next\n"
    "    ldrh r4, [r2]\n"
    "    adds r2, r2, #2\n"
    "    add r4, r4, r12\n"
    "    mov pc, r4\n"
    ".endm\n"
    ".macro saaug_double\n"
    "    add r8, r8\n"
    "    add r9, r9\n"
    "    add r10, r10\n"
    "    add r11, r11\n"
    ".endm\n"
    ".macro saaug_load\n"
    "    ldrh r3, [r0]\n"
    "    adds r0, r0, #2\n"
    "    adds r3, r3, r1\n"
    "    ldmia r3!, {r4-r7}\n"
    ".endm\n"
    ".macro saaug_sum\n"
    "    add r8, r8, r4\n"
    "    add r9, r9, r5\n"
    "    add r10, r10, r6\n"
    "    add r11, r11, r7\n"
    ".endm\n"
    ".macro saaug_negate\n"
    "    rsbs r4, r4, #0\n"
    "    rsbs r5, r5, #0\n"
    "    rsbs r6, r6, #0\n"
    "    rsbs r7, r7, #0\n"
    ".endm\n"
    ".macro saaug_doubling label, count\n"
    ".Lsaaug_double_\\label\\()_\\count:\n"
    "    saaug_double\n"
    "    b .Lsaaug_\\label\\()_\\count\n"
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
    ".macro saaug_spill how\n"
    "    ldrh r3, [r2]\n"
    "    adds r2, r2, #2\n"
    "    mov r7, lr\n"
    "    saaug_\\how r8, 0\n"
    "    saaug_\\how r9, 8\n"
    "    saaug_\\how r10, 16\n"
    "    saaug_\\how r11, 24\n"
    "    saaug_clear\n"
    "    saaug_next\n"
    ".endm\n"
    "saaug_bucket_run:\n"
    "    push {r4-r7, lr}\n"
    "    mov r4, r8\n"
    "    mov r5, r9\n"
    "    mov r6, r10\n"
    "    mov r7, r11\n"
    "    push {r4-r7}\n"
    "    mov lr, r2\n"
    "    ldrh r2, [r0]\n"
    "    adds r0, r0, #2\n"
    "    adds r2, r2, r0\n"
    "    adr r4, .Lsaaug_first\n"
    "    mov r12, r4\n"
    "    saaug_clear\n"
    "    saaug_next\n"
    ".balign 4\n"
    ".Lsaaug_first:\n"
    ".irp count, 1, 2, 3, 4\n"
    "    saaug_doubling plus, \\count\n"
    ".endr\n"
    ".irp count, 4, 3, 2, 1\n"
    ".Lsaaug_plus_\\count:\n"
    "    saaug_load\n"
    "    saaug_sum\n"
    ".endr\n"
    "    saaug_next\n"
    ".irp count, 1, 2, 3, 4\n"
    "    saaug_doubling minus, \\count\n"
    ".endr\n"
    ".irp count, 4, 3, 2, 1\n"
    ".Lsaaug_minus_\\count:\n"
    "    saaug_load\n"
    "    saaug_negate\n"
    "    saaug_sum\n"
    ".endr\n"
    "    saaug_next\n"
    ".Lsaaug_double:\n"
    "    saaug_double\n"
    "    saaug_next\n"
    ".Lsaaug_spill_set:\n"
    "    saaug_spill set\n"
    ".Lsaaug_spill_add:\n"
    "    saaug_spill add\n"
    ".Lsaaug_clear:\n"
    "    saaug_clear\n"
    "    saaug_next\n"
    ".Lsaaug_end:\n"
    "    pop {r4-r7}\n"
    "    mov r8, r4\n"
    "    mov r9, r5\n"
    "    mov r10, r6\n"
    "    mov r11, r7\n"
    "    pop {r4-r7, pc}\n"
#else
    ".option push\n"
    ".option norelax\n"
    ".macro saaug_next\n"
    "    lhu a7, 0(a3)\n"
    "    addi a3, a3, 2\n"
    "    add a7, a7, a4\n"
    "    jr a7\n"
    ".endm\n"
    ".macro saaug_double\n"
    ".irp sum, t0, t1, t2, t3, t4, t5, t6, a5\n"
    "    slli \\sum, \\sum, 1\n"
    ".endr\n"
    ".endm\n"
    ".macro saaug_column operation, place\n"
    "    lhu a7, \\place(a0)\n"
    "    add a7, a7, a1\n"
    "    lw a6, 0(a7)\n"
    "    lw s0, 4(a7)\n"
    "    lw s1, 8(a7)\n"
    "    lw s2, 12(a7)\n"
    "    \\operation t0, t0, a6\n"
    "    \\operation t1, t1, s0\n"
    "    \\operation t2, t2, s1\n"
    "    \\operation t3, t3, s2\n"
    "    lw a6, 16(a7)\n"
    "    lw s0, 20(a7)\n"
    "    lw s1, 24(a7)\n"
    "    lw s2, 28(a7)\n"
    "    \\operation t4, t4, a6\n"
    "    \\operation t5, t5, s0\n"
    "    \\operation t6, t6, s1\n"
    "    \\operation a5, a5, s2\n"
    ".endm\n"
    ".macro saaug_set_plus place\n"
    "    lhu a7, \\place(a0)\n"
    "    add a7, a7, a1\n"
    "    lw t0, 0(a7)\n"
    "    lw t1, 4(a7)\n"
    "    lw t2, 8(a7)\n"
    "    lw t3, 12(a7)\n"
    "    lw t4, 16(a7)\n"
    "    lw t5, 20(a7)\n"
    "    lw t6, 24(a7)\n"
    "    lw a5, 28(a7)\n"
    ".endm\n"
    ".macro saaug_set_minus place\n"
    "    saaug_set_plus \\place\n"
    ".irp sum, t0, t1, t2, t3, t4, t5, t6, a5\n"
    "    neg \\sum, \\sum\n"
    ".endr\n"
    ".endm\n"
    ".macro saaug_end columns\n"
    "    addi a0, a0, 2 * \\columns\n"
    "    saaug_next\n"
    ".endm\n"
    ".macro saaug_routines operation, label\n"
    ".Lsaaug_double_\\label\\()_1:\n"
    "    saaug_double\n"
    ".Lsaaug_\\label\\()_1:\n"
    "    saaug_column \\operation, 0\n"
    "    saaug_end 1\n"
    ".Lsaaug_first_\\label\\()_1:\n"
    "    saaug_set_\\label 0\n"
    "    saaug_end 1\n"
    ".Lsaaug_first_\\label\\()_2:\n"
    "    saaug_set_\\label 0\n"
    "    saaug_column \\operation, 2\n"
    "    saaug_end 2\n"
    ".Lsaaug_double_\\label\\()_2:\n"
    "    saaug_double\n"
    ".Lsaaug_\\label\\()_2:\n"
    "    saaug_column \\operation, 0\n"
    "    saaug_column \\operation, 2\n"
    "    saaug_end 2\n"
    ".Lsaaug_first_\\label\\()_3:\n"
    "    saaug_set_\\label 0\n"
    "    j .Lsaaug_\\label\\()_last_2_of_3\n"
    ".Lsaaug_double_\\label\\()_3:\n"
    "    saaug_double\n"
    ".Lsaaug_\\label\\()_3:\n"
    "    saaug_column \\operation, 0\n"
    ".Lsaaug_\\label\\()_last_2_of_3:\n"
    "    saaug_column \\operation, 2\n"
    "    saaug_column \\operation, 4\n"
    "    saaug_end 3\n"
    ".Lsaaug_first_\\label\\()_4:\n"
    "    saaug_set_\\label 0\n"
    "    j .Lsaaug_\\label\\()_last_3_of_4\n"
    ".Lsaaug_double_\\label\\()_4:\n"
    "    saaug_double\n"
    ".Lsaaug_\\label\\()_4:\n"
    "    saaug_column \\operation, 0\n"
    ".Lsaaug_\\label\\()_last_3_of_4:\n"
    "    saaug_column \\operation, 2\n"
    "    saaug_column \\operation, 4\n"
    "    saaug_column \\operation, 6\n"
    "    saaug_end 4\n"
    ".endm\n"
    ".macro saaug_split sum\n"
    "    slli a6, \\sum, 16\n"
    "    srai s0, a6, 16\n"
    "    sub \\sum, \\sum, s0\n"
    "    sra a6, a6, a7\n"
    "    sra s0, \\sum, a7\n"
    ".endm\n"
    ".macro saaug_set sum, low, high\n"
    "    saaug_split \\sum\n"
    "    sw a6, \\low(a2)\n"
    "    sw s0, \\high(a2)\n"
    ".endm\n"
    ".macro saaug_add sum, low, high\n"
    "    saaug_split \\sum\n"
    "    lw s1, \\low(a2)\n"
    "    lw s2, \\high(a2)\n"
    "    add a6, a6, s1\n"
    "    add s0, s0, s2\n"
    "    sw a6, \\low(a2)\n"
    "    sw s0, \\high(a2)\n"
    ".endm\n"
    ".macro saaug_spill how\n"
    "    lhu a7, 0(a3)\n"
    "    addi a3, a3, 2\n"
    "    saaug_\\how t0, 0, 4\n"
    "    saaug_\\how t1, 8, 12\n"
    "    saaug_\\how t2, 16, 20\n"
    "    saaug_\\how t3, 24, 28\n"
    "    saaug_\\how t4, 32, 36\n"
    "    saaug_\\how t5, 40, 44\n"
    "    saaug_\\how t6, 48, 52\n"
    "    saaug_\\how a5, 56, 60\n"
    "    saaug_next\n"
    ".endm\n"
    "saaug_bucket_run:\n"
    "    addi sp, sp, -16\n"
    "    sw s0, 0(sp)\n"
    "    sw s1, 4(sp)\n"
    "    sw s2, 8(sp)\n"
    "    lhu a3, 0(a0)\n"
    "    addi a0, a0, 2\n"
    "    add a3, a3, a0\n"
    "    la a4, .Lsaaug_first\n"
    "    saaug_next\n"
    ".Lsaaug_first:\n"
    "    saaug_routines add, plus\n"
    "    saaug_routines sub, minus\n"
    ".Lsaaug_double:\n"
    "    saaug_double\n"
    "    saaug_next\n"
    ".Lsaaug_spill_set:\n"
    "    saaug_spill set\n"
    ".Lsaaug_spill_add:\n"
    "    saaug_spill add\n"
    ".Lsaaug_clear:\n"
    ".irp sum, t0, t1, t2, t3, t4, t5, t6, a5\n"
    "    li \\sum, 0\n"
    ".endr\n"
    "    saaug_next\n"
    ".Lsaaug_end:\n"
    "    lw s0, 0(sp)\n"
    "    lw s1, 4(sp)\n"
    "    lw s2, 8(sp)\n"
    "    addi sp, sp, 16\n"
    "    ret\n"
    ".option pop\n"
#endif
    ".size saaug_bucket_run, . - saaug_bucket_run\n"
#if SAAUG_THUMB != 2
    ".section .rodata.saaug_bucket_routines,\"a\",%progbits\n"
    ".balign 4\n"
    ".global saaug_bucket_routines\n"
    "saaug_bucket_routines:\n"
#if SAAUG_RV32
    ".irp label, plus, minus, double_plus, double_minus, first_plus, first_minus\n"
#else
    ".irp label, plus, minus, double_plus, double_minus, plus, minus\n"
#endif
    ".irp count, 1, 2, 3, 4\n"
    "    .2byte .Lsaaug_\\label\\()_\\count - .Lsaaug_first\n"
    ".endr\n"
    ".endr\n"
    ".irp label, double, spill_set, spill_add, clear, end\n"
    "    .2byte .Lsaaug_\\label - .Lsaaug_first\n"
    ".endr\n"
#endif
    ".text\n");

#else

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

/* Requantization. Q31 with a shift of at most 22 bits adds the zero point with the half of 2^shift: beside them and a
 * value of 2^30 there is room in 32 bits. FULL is that with the whole int8 range, CLAMP with any; LONG is what
 * neither can do. */
enum { PATH_FULL, PATH_CLAMP, PATH_LONG, PATH_POWER_OF_TWO };
#define LONGEST_SHORT_SHIFT 22

#if SAAUG_NO_MULTIPLY

/* Requantization without a product. acc * multiplier / 2^(31 + shift) is acc / d with d = 2^(31 + shift) / multiplier
 * in (2^shift, 2^(shift + 1)]. `step` is d * 2^up, rounded down, up = 21 - shift: in [2^21, 2^22]. The nudge is the
 * zero point, the 128 that makes int8 unsigned and the half that rounds, in steps. (acc * 2^up + nudge) / step, bit by
 * bit, gives the result and a rest, which says how far acc is from where the result changes. The errors of the rounded
 * step (at most 256 of them, and the half) are below 2^9; rounding to Q31 first, as the contract has it, moves acc by
 * half a unit of Q31, which is 2^up at most, and halves go away from zero. The result is sure if the rest is further
 * than all that from 0 and from step. Accumulators beyond 2^(shift + 9) are beyond int8 for every zero point. */
#define STEP_BITS 21

static inline uint32_t margin_of(const saaug_bucket_scale *scale)
{
    return ((uint32_t)1 << (STEP_BITS - scale->shift)) + 512u;
}

/* Returns whether there is such a division. */
static int prepare_division(saaug_bucket_scale *scale)
{
    const uint32_t divisor = (uint32_t)(scale->multiplier < 0 ? -scale->multiplier : scale->multiplier);
    uint32_t remainder = ((uint32_t)1 << 31) - divisor, quotient = 1;
    int32_t bit;
    if (divisor <= (uint32_t)1 << 30 || scale->shift >= STEP_BITS) {
        return 0;
    }
    for (bit = 0; bit < STEP_BITS; ++bit) { /* a long division of 2^52, after its first digit */
        remainder += remainder;
        quotient += quotient;
        if (remainder >= divisor) {
            remainder -= divisor;
            ++quotient;
        }
    }
    scale->step = quotient;
    scale->nudge = (int32_t)(quotient >> 1);
    for (bit = 0; bit < 8; ++bit) {
        if (((scale->zero_point + 128) >> bit & 1) != 0) {
            scale->nudge += (int32_t)(quotient << bit);
        }
    }
    return 2 * margin_of(scale) < quotient;
}

/* Keeps what is rare out of the loop whose registers it would take. */
#if defined(__GNUC__)
#define SAAUG_APART __attribute__((noinline))
#else
#define SAAUG_APART
#endif

/* The product after all, near a change, by shifting and adding: the library's is made for 64 bits. */
SAAUG_APART static int32_t rescale_exactly(int32_t acc, const saaug_bucket_scale *scale)
{
    const int negative = (acc ^ scale->multiplier) < 0;
    uint32_t bits = (uint32_t)(acc < 0 ? -acc : acc), high = 0, low = 0;
    uint32_t shifted_high = 0, shifted = (uint32_t)(scale->multiplier < 0 ? -scale->multiplier : scale->multiplier);
    uint32_t nudged;
    for (; bits != 0; bits >>= 1) {
        if ((bits & 1u) != 0) {
            low += shifted;
            high += shifted_high + (low < shifted);
        }
        shifted_high = shifted_high << 1 | shifted >> 31;
        shifted <<= 1;
    }
    /* (product + 2^30) >> 31; for a negative product that is -((magnitude + 2^30 - 1) >> 31). */
    nudged = low + ((uint32_t)1 << 30) - (uint32_t)negative;
    high += nudged < low;
    nudged = high << 1 | nudged >> 31;
    return saaug_rounding_shift(negative ? -(int32_t)nudged : (int32_t)nudged, scale->shift) + scale->zero_point;
}

/* A digit of the division is a branch over a subtraction and an addition: two instructions on average. Some compilers
 * see a chain of selections in it, of several times as many. */
#if defined(__GNUC__)
#define KEEP_BRANCH(value) __asm__("" : "+r"(value))
#else
#define KEEP_BRANCH(value) ((void)0)
#endif

/* `negative` says whether the multiplier is, `full` whether the range is that of int8. */
static inline int32_t requantize(int32_t acc, const saaug_bucket_scale *scale, int32_t act_min, int32_t act_max,
                                 int negative, int full)
{
    const int32_t value = negative ? -scale->bias - acc : acc + scale->bias;
    const int32_t reach = (int32_t)((uint32_t)512 << scale->shift);
    const uint32_t step = scale->step, margin = margin_of(scale);
    uint32_t rest;
    int32_t result = -128;
    if ((uint32_t)(value + reach) >= 2 * (uint32_t)reach) {
        return value < 0 ? act_min : act_max;
    }
    rest = (uint32_t)saaug_shift_left(value, (uint32_t)STEP_BITS - scale->shift) + (uint32_t)scale->nudge;
    if (rest >= step << 8) {
        return (int32_t)rest < 0 ? act_min : act_max;
    }
#define DIGIT(bit)                                                                                                     \
    if (rest >= step << (bit)) {                                                                                       \
        rest -= step << (bit);                                                                                         \
        result += 1 << (bit);                                                                                          \
        KEEP_BRANCH(result);                                                                                           \
    }
    DIGIT(7)
    DIGIT(6)
    DIGIT(5)
    DIGIT(4)
    DIGIT(3)
    DIGIT(2)
    DIGIT(1)
    DIGIT(0)
#undef DIGIT
    if (rest - margin >= step - 2 * margin) {
        return saaug_clamp(rescale_exactly(acc + scale->bias, scale), act_min, act_max);
    }
    return full ? result : saaug_clamp(result, act_min, act_max);
}

#else

/* (acc * multiplier + 2^30) >> 31 as (2 * acc * multiplier + 2^31) >> 32. */
static inline int32_t multiply_high(int32_t twice, int32_t multiplier)
{
#if SAAUG_THUMB == 1
    /* No long multiplication: four products of halves. No sum overflows: 2^16 * 2^15 - 2^16 + 2^16 at most. */
    const int32_t a_low = twice & 0xFFFF, a_high = twice >> 16;
    const int32_t m_low = multiplier & 0xFFFF, m_high = multiplier >> 16;
    const uint32_t lowest = (uint32_t)a_low * (uint32_t)m_low;
    const int32_t middle = a_high * m_low + (int32_t)(lowest >> 16);
    const int32_t other = a_low * m_high + (middle & 0xFFFF);
    return a_high * m_high + (middle >> 16) + (other >> 16) + ((other >> 15) & 1);
#else
    const int64_t product = (int64_t)twice * multiplier;
    return (int32_t)(product >> 32) + (int32_t)((uint32_t)product >> 31);
#endif
}

static inline int32_t saturate(int32_t value)
{
#if SAAUG_THUMB == 2
    __asm__("ssat %0, #8, %1" : "=r"(value) : "r"(value) : "cc");
    return value;
#else
    return saaug_clamp(value, -128, 127);
#endif
}

static inline int32_t requantize(int32_t acc, const saaug_bucket_scale *channel, const saaug_options *range)
{
    const int32_t value = multiply_high(2 * acc + 2 * channel->bias, channel->multiplier);
    const int32_t result = (value + (value >> 31) + channel->nudge) >> channel->shift;
    return range == NULL ? saturate(result) : saaug_clamp(result, range->act_min, range->act_max);
}

#endif

void saaug_bucket_prepare(const int32_t *params, const saaug_options *options, saaug_bucket_scale *channel)
{
    channel->bias = params[0];
    channel->multiplier = params[1];
    channel->shift = (uint8_t)params[2];
    channel->zero_point = (int8_t)options->output_zero_point;
    channel->nudge = 0;
    channel->step = 0;
    if (options->requant == SAAUG_REQUANT_POWER_OF_TWO) {
        channel->path = PATH_POWER_OF_TWO;
    } else if (params[2] > LONGEST_SHORT_SHIFT) {
        channel->path = PATH_LONG;
    } else {
        const int full = options->act_min == -128 && options->act_max == 127;
        channel->path = full ? PATH_FULL : PATH_CLAMP;
#if SAAUG_NO_MULTIPLY
        if (!prepare_division(channel)) {
            channel->path = PATH_LONG;
        }
#else
        channel->nudge = saaug_shift_left(options->output_zero_point, (uint32_t)params[2]) +
                         (int32_t)((uint32_t)1 << (params[2] - 1));
#endif
    }
}

/* The rare paths. */
static int8_t requantize_plainly(int32_t acc, const saaug_bucket_scale *channel, const saaug_options *options)
{
    const int32_t params[3] = {0, channel->multiplier, channel->shift};
    return saaug_requantize(acc + channel->bias, params, options);
}

#if SAAUG_NO_MULTIPLY

/* One side after the other: all that an output needs then fits the registers. */
static inline void store_sides(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *shared,
                               const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride,
                               int negative, int full)
{
    const saaug_bucket_scale scale = *shared;
    const int32_t act_min = options->act_min, act_max = options->act_max;
    const int32_t *from = acc;
    int8_t *to = low_output;
    int32_t count = lows, side;
    for (side = 0; side < 2; ++side) {
        for (; count > 0; --count) {
            *to = (int8_t)requantize(*from, &scale, act_min, act_max, negative, full);
            from += 2;
            to += stride;
        }
        from = acc + 1;
        to = high_output;
        count = highs;
    }
}

static void store(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *scale,
                  const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    if (scale->multiplier < 0) {
        store_sides(acc, lows, highs, scale, options, low_output, high_output, stride, 1, 0);
    } else if (scale->path == PATH_FULL) {
        store_sides(acc, lows, highs, scale, options, low_output, high_output, stride, 0, 1);
    } else {
        store_sides(acc, lows, highs, scale, options, low_output, high_output, stride, 0, 0);
    }
}

#else

/* `range` is NULL for PATH_FULL. */
static inline void store_pairs(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *shared,
                               const saaug_options *range, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    const saaug_bucket_scale channel = *shared;
    int32_t k;
    for (k = 0; k < highs; ++k) {
        *low_output = (int8_t)requantize(acc[0], &channel, range);
        *high_output = (int8_t)requantize(acc[1], &channel, range);
        acc += 2;
        low_output += stride;
        high_output += stride;
    }
    for (; k < lows; ++k) {
        *low_output = (int8_t)requantize(acc[0], &channel, range);
        acc += 2;
        low_output += stride;
    }
}

static void store(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *channel,
                  const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    if (channel->path == PATH_FULL) {
        store_pairs(acc, lows, highs, channel, NULL, low_output, high_output, stride);
    } else {
        const saaug_options range = *options;
        store_pairs(acc, lows, highs, channel, &range, low_output, high_output, stride);
    }
}

#endif

void saaug_bucket_store(const int32_t *acc, int32_t lows, int32_t highs, const saaug_bucket_scale *channel,
                        const saaug_options *options, int8_t *low_output, int8_t *high_output, int32_t stride)
{
    int32_t k;
    if (channel->path == PATH_FULL || channel->path == PATH_CLAMP) {
        store(acc, lows, highs, channel, options, low_output, high_output, stride);
        return;
    }
    for (k = 0; k < lows; ++k) {
        low_output[k * stride] = requantize_plainly(acc[2 * k], channel, options);
        if (k < highs) {
            high_output[k * stride] = requantize_plainly(acc[2 * k + 1], channel, options);
        }
    }
}
