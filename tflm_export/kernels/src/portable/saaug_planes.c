#include "saaug_planes.h"

static int32_t at_most(int32_t value, int32_t limit) { return value < limit ? value : limit; }

static int32_t rows_of_plane(const saaug_options *options, int32_t output_rows)
{
    return (output_rows - 1) * options->stride_h + (options->kernel_h - 1) * options->dilation_h + 1;
}

saaug_planes saaug_planes_of(const saaug_options *options, const saaug_shape *shape, int32_t budget)
{
    const int32_t reach = (options->kernel_w - 1) * options->dilation_w;
    saaug_planes planes;
    int32_t strips;
    int64_t row_bytes;
    planes.blocks = (shape->out_w + SAAUG_WORDS - 1) / SAAUG_WORDS;
    planes.phases = at_most(options->stride_w, reach + 1);
    planes.width = planes.blocks * SAAUG_WORDS + reach / options->stride_w;
    planes.pitch = planes.phases * planes.width;
    planes.rows = (shape->out_h + 1) / 2;
    row_bytes = (int64_t)4 * planes.pitch;
    if (row_bytes * rows_of_plane(options, planes.rows) > budget) {
        const int64_t room = budget / row_bytes - rows_of_plane(options, 1);
        const int32_t fit = room < 0 ? 1 : (int32_t)(room / options->stride_h) + 1;
        strips = (planes.rows + fit - 1) / fit;
        planes.rows = (planes.rows + strips - 1) / strips;
    }
    planes.height = rows_of_plane(options, planes.rows);
    planes.bytes = row_bytes * planes.height;
    if (planes.bytes > 65535) {
        planes.rows = 0;
        planes.bytes = 0;
    }
    return planes;
}

void saaug_planes_taps(const saaug_planes *planes, const saaug_options *options, uint16_t *taps)
{
    int32_t i, j;
    for (i = 0; i < options->kernel_h; ++i) {
        for (j = 0; j < options->kernel_w; ++j) {
            const int32_t right = j * options->dilation_w;
            const int32_t word = i * options->dilation_h * planes->pitch +
                                 right % options->stride_w * planes->width + right / options->stride_w;
            *taps++ = (uint16_t)(4 * word);
        }
    }
}

/* A row of one phase. Pointers walk over one channel of a row; a row outside of the image is the zero point, step 0. */
static void fill_row(const int8_t *low, int32_t low_step, const int8_t *high, int32_t high_step, int32_t before,
                     int32_t inside, int32_t after, uint32_t outside, uint32_t *word)
{
    for (; before > 0; --before) {
        *word++ = outside;
    }
    for (; inside > 0; --inside) {
        *word++ = saaug_pair(*low, *high);
        low += low_step;
        high += high_step;
    }
    for (; after > 0; --after) {
        *word++ = outside;
    }
}

void saaug_planes_fill(const saaug_planes *planes, const saaug_options *options, const saaug_shape *shape,
                       const int8_t *image, int32_t channel, int32_t first, uint32_t *plane)
{
    const int8_t zero_point = (int8_t)options->input_zero_point;
    const uint32_t outside = saaug_pair(zero_point, zero_point);
    const int32_t column_step = options->stride_w * shape->in_c;
    const uint32_t row_step = (uint32_t)(shape->in_w * shape->in_c); /* offsets are modulo 2^32 */
    const int32_t top = first * options->stride_h - options->pad_top;
    const int32_t down = planes->rows * options->stride_h;
    const uint32_t down_step = (uint32_t)down * row_step;
    int32_t phase, r, column;
    for (phase = 0; phase < planes->phases; ++phase) {
        uint32_t *words = plane + phase * planes->width;
        uint32_t offset = (uint32_t)top * row_step;
        int32_t before = 0, inside = 0, start = phase - options->pad_left;
        for (; start < 0 && before < planes->width; start += options->stride_w) {
            ++before;
        }
        for (column = start; column < shape->in_w && before + inside < planes->width; column += options->stride_w) {
            ++inside;
        }
        offset += (uint32_t)(start * shape->in_c + channel);
        for (r = top; r < top + planes->height; ++r) {
            const int low_inside = inside > 0 && (uint32_t)r < (uint32_t)shape->in_h;
            const int high_inside = inside > 0 && (uint32_t)(r + down) < (uint32_t)shape->in_h;
            fill_row(low_inside ? image + offset : &zero_point, low_inside ? column_step : 0,
                     high_inside ? image + (offset + down_step) : &zero_point, high_inside ? column_step : 0, before,
                     inside, planes->width - before - inside, outside, words);
            words += planes->pitch;
            offset += row_step;
        }
    }
}
