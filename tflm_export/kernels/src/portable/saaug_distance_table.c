#include "saaug_distance_table.h"

#define VALUE_OF_ZERO 128 /* stored weights are weights + 128 */

void saaug_distance_table(uint8_t *table)
{
    int32_t distance;
    for (distance = 0; distance < 256; ++distance) {
        table[255 - distance] = (uint8_t)distance;
        table[255 + distance] = (uint8_t)distance;
    }
}

/* From the end, where distances begin to grow again, down by the value as weights are stored. */
static inline uint32_t place_of(uint32_t end, int32_t value) { return end - (uint32_t)(value + VALUE_OF_ZERO); }

/* Places of `count` channels of a pixel into successive columns. */
static void spread(const int8_t *pixel, int32_t count, uint32_t end, uint32_t *words)
{
    for (; count >= 4; count -= 4) {
        words[0] = place_of(end, pixel[0]);
        words[SAAUG_DISTANCE_COLUMN] = place_of(end, pixel[1]);
        words[2 * SAAUG_DISTANCE_COLUMN] = place_of(end, pixel[2]);
        words[3 * SAAUG_DISTANCE_COLUMN] = place_of(end, pixel[3]);
        pixel += 4;
        words += 4 * SAAUG_DISTANCE_COLUMN;
    }
    for (; count > 0; --count) {
        *words = place_of(end, *pixel++);
        words += SAAUG_DISTANCE_COLUMN;
    }
}

static void fill(int32_t count, uint32_t place, uint32_t *words)
{
    for (; count > 0; --count) {
        *words = place;
        words += SAAUG_DISTANCE_COLUMN;
    }
}

void saaug_distance_places(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                           const saaug_block_window *windows, saaug_block_tap *tap, int32_t count,
                           int32_t positions, const uint8_t *table, uint32_t *block)
{
    const int32_t padded = saaug_divide_up(count, 4) * 4, strip = padded * SAAUG_DISTANCE_COLUMN;
#if SAAUG_THREADED /* assembly reads from a place as from an address */
    const uint32_t end = (uint32_t)(uintptr_t)table + 255u;
#else
    const uint32_t end = 255;
    (void)table;
#endif
    const saaug_block_steps steps = saaug_block_steps_of(options, shape);
    uint32_t *columns;
    int32_t done, run, first, k;
    for (done = 0; done < count; done += run) {
        const int32_t left = count - done;
        run = left < shape->in_c - tap->c ? left : shape->in_c - tap->c;
        columns = block + done * SAAUG_DISTANCE_COLUMN;
        for (first = 0; first < positions; first += SAAUG_DISTANCE_COLUMN) {
            for (k = 0; k < SAAUG_DISTANCE_COLUMN; ++k) {
                const int8_t *const pixel = saaug_block_pixel(shape, input, windows + first + k, tap);
                if (pixel != NULL) {
                    spread(pixel + tap->c, run, end, columns + k);
                } else {
                    fill(run, place_of(end, options->input_zero_point), columns + k);
                }
            }
            columns += strip;
        }
        saaug_block_tap_move(options, shape, &steps, tap, run);
    }
    columns = block + count * SAAUG_DISTANCE_COLUMN;
    for (first = 0; first < positions; first += SAAUG_DISTANCE_COLUMN) {
        for (k = 0; k < (padded - count) * SAAUG_DISTANCE_COLUMN; ++k) {
            columns[k] = end;
        }
        columns += strip;
    }
}

void saaug_distance_sums(const uint32_t *block, const uint8_t *table, const uint8_t *row, int32_t quads,
                         int32_t positions, int32_t *acc)
{
    int32_t k;
    for (k = 0; k < SAAUG_PIXELS && k < positions; k += SAAUG_DISTANCE_COLUMN) {
        saaug_distance_run(block, row, quads, acc + k, table);
        block += 4 * quads * SAAUG_DISTANCE_COLUMN;
    }
}

#if !SAAUG_THREADED

void saaug_distance_run(const uint32_t *block, const uint8_t *row, int32_t quads, int32_t *acc, const uint8_t *table)
{
    uint32_t sums[SAAUG_DISTANCE_COLUMN] = {0};
    int32_t tap, k;
    for (tap = 0; tap < 4 * quads; ++tap) {
        const uint8_t *const distances = table + row[tap];
        for (k = 0; k < SAAUG_DISTANCE_COLUMN; ++k) {
            sums[k] += distances[block[k]];
        }
        block += SAAUG_DISTANCE_COLUMN;
    }
    for (k = 0; k < SAAUG_DISTANCE_COLUMN; ++k) {
        acc[k] = (int32_t)(sums[k] << SAAUG_ADDER_SCALE_LOG2);
    }
}

#endif
