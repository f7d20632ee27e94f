/* Programs over packed pixels, made of codes. */
#include "saaug_bucket_program.h"

#define LANE_LIMIT 255 /* 255 * 128 <= 32767: most that the weights of a sum of int8 in int16 may add up to */

/* Codes by index: the magnitude, or NEGATIVE + magnitude. */
#define LEVELS_OF(layout) ((layout) == SAAUG_LAYOUT_BYTE ? 16 : 7)
#define NEGATIVE_OF(layout) ((layout) == SAAUG_LAYOUT_BYTE ? 16 : 8)
#define INDICES 33

int32_t saaug_bucket_program_length(int32_t taps, int32_t layout)
{
    /* The longest of all interpreters': a word in front, columns, heads of whole runs; a level of both signs has at
     * most two heads, a doubling and two words of a spill more; two words at the end. No level has both heads and a
     * doubling of its own: so there is also room behind for the columns of zeros, up to a multiple of four taps. */
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
    for (; count > LONGEST_RUN; count -= LONGEST_RUN) {
        *head++ = HEAD(kind + LONGEST_RUN - 1);
        kind = ONCE(kind);
        __asm__("" : "+r"(count)); /* so that no compiler takes a few heads together, at a cost before and after */
    }
    if (count > 0) {
        *head++ = HEAD(kind + count - 1);
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
        for (; taps > 0; taps -= 4) { /* rows are padded to fours, with zeros */
            const uint32_t four = codes[0] | (uint32_t)codes[1] << 8;
            ++counts[four & 15u];
            ++counts[four >> 4 & 15u];
            ++counts[four >> 8 & 15u];
            ++counts[four >> 12];
            codes += 2;
        }
    } else {
        for (; taps > 0; --taps) {
            ++counts[byte_index(*codes++)];
        }
    }
}

/* Columns of zeros have a place too, that no head reads. */
static void put_columns(const uint8_t *codes, int32_t taps, uint16_t **places)
{
    uint32_t column = 0;
    for (; taps > 0; taps -= 4) {
        const uint32_t four = codes[0] | (uint32_t)codes[1] << 8;
        *places[four & 15u]++ = (uint16_t)column;
        *places[four >> 4 & 15u]++ = (uint16_t)(column + SAAUG_COLUMN_BYTES);
        *places[four >> 8 & 15u]++ = (uint16_t)(column + 2 * SAAUG_COLUMN_BYTES);
        *places[four >> 12]++ = (uint16_t)(column + 3 * SAAUG_COLUMN_BYTES);
        column += 4 * SAAUG_COLUMN_BYTES;
        codes += 2;
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
        places[0] = head + 1; /* there is room: see saaug_bucket_program_length() */
        put_columns(codes, taps, places);
    } else {
        put_listed_columns(codes, layout, taps, columns, places);
    }
}
