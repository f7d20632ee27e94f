#include "saaug_planes.h"

#define PLANE_BYTES 4096

typedef struct {
    int32_t taps;
    int32_t rows;          /* output rows in half a strip */
    int32_t blocks;        /* blocks of output columns in a row */
    int32_t phases, width; /* of a row of the plane; words of a phase */
    int32_t pitch, height; /* words of a row of the plane; rows */
    int64_t channel, offsets, bytes; /* into scratch, the plane being first; all of it */
} layout;

static int32_t at_most(int32_t value, int32_t limit) { return value < limit ? value : limit; }

static int32_t rows_of_plane(const saaug_options *options, int32_t output_rows)
{
    return (output_rows - 1) * options->stride_h + (options->kernel_h - 1) * options->dilation_h + 1;
}

static layout lay_out(const saaug_plane_operator *operator, const saaug_options *options, const saaug_shape *shape,
                      int32_t words)
{
    const int32_t reach = (options->kernel_w - 1) * options->dilation_w;
    layout l;
    int64_t row_bytes;
    l.taps = options->kernel_h * options->kernel_w;
    l.blocks = (shape->out_w + words - 1) / words;
    l.phases = at_most(options->stride_w, reach + 1);
    l.width = l.blocks * words + reach / options->stride_w;
    l.pitch = l.phases * l.width;
    l.rows = (shape->out_h + 1) / 2;
    row_bytes = (int64_t)4 * l.pitch;
    if (row_bytes * rows_of_plane(options, l.rows) > PLANE_BYTES) {
        const int64_t room = PLANE_BYTES / row_bytes - rows_of_plane(options, 1);
        const int32_t fit = room < 0 ? 1 : (int32_t)(room / options->stride_h) + 1;
        const int32_t strips = (l.rows + fit - 1) / fit;
        l.rows = (l.rows + strips - 1) / strips;
    }
    l.height = rows_of_plane(options, l.rows);
    l.channel = row_bytes * l.height;
    l.offsets = l.channel + operator->taps_bytes;
    l.bytes = l.channel < 65536 ? l.offsets + (int64_t)2 * (l.taps + (l.taps & 1)) : -1;
    return l;
}

int64_t saaug_planes_size(const saaug_plane_operator *operator, const saaug_options *options, const saaug_shape *shape,
                          int32_t words)
{
    return lay_out(operator, options, shape, words).bytes;
}

/* Byte offset of each tap from the word of an output position. */
static void find_taps(const layout *l, const saaug_options *options, uint16_t *taps)
{
    int32_t i, j;
    for (i = 0; i < options->kernel_h; ++i) {
        for (j = 0; j < options->kernel_w; ++j) {
            const int32_t right = j * options->dilation_w;
            const int32_t word = i * options->dilation_h * l->pitch + right % options->stride_w * l->width +
                                 right / options->stride_w;
            *taps++ = (uint16_t)(4 * word);
        }
    }
}

/* A row of one phase, inside of the image. Pointers walk over one channel of a row; a row outside of the image is the zero
 * point, step 0. */
static void fill_row(const int8_t *low, int32_t low_step, const int8_t *high, int32_t high_step, int32_t count,
                     uint32_t *word)
{
    if ((count & 1) != 0) {
        *word++ = saaug_pair(*low, *high);
        low += low_step;
        high += high_step;
    }
    for (count >>= 1; count > 0; --count) {
        const uint32_t left = saaug_pair(low[0], high[0]), right = saaug_pair(low[low_step], high[high_step]);
        word[0] = left;
        word[1] = right;
        low += 2 * low_step;
        high += 2 * high_step;
        word += 2;
    }
}

/* Where a strip is in the image; the same for all channels, since a product may be slow. Offsets are modulo 2^32. */
typedef struct {
    int32_t top, down;              /* input row of the strip's first one; rows from there to the lower half's */
    int32_t begin, end;             /* words of phase 0 that are in the image: [begin, end) */
    int32_t begin_column, end_column; /* their input columns */
    int32_t column_step;            /* bytes from one column of a phase to the next */
    uint32_t row_step, down_step;   /* bytes to the next row, to the lower half's row */
    uint32_t corner;                /* of the first row and the column of `begin` */
} strip_place;

static strip_place place_strip(const layout *l, const saaug_options *options, const saaug_shape *shape, int32_t first)
{
    strip_place place;
    int32_t column = -options->pad_left;
    place.top = first * options->stride_h - options->pad_top;
    place.down = l->rows * options->stride_h;
    place.column_step = options->stride_w * shape->in_c;
    place.row_step = (uint32_t)(shape->in_w * shape->in_c);
    place.down_step = (uint32_t)place.down * place.row_step;
    for (place.begin = 0; column < 0; column += options->stride_w) {
        ++place.begin;
    }
    place.begin_column = column;
    place.corner = (uint32_t)place.top * place.row_step + (uint32_t)(column * shape->in_c);
    for (place.end = place.begin; column < shape->in_w; column += options->stride_w) {
        ++place.end;
    }
    place.end_column = column;
    return place;
}

/* The zero point everywhere: what is outside of the image stays so for all channels of a strip. */
static void clear(const layout *l, const saaug_options *options, uint32_t *plane)
{
    const uint32_t outside = saaug_pair(options->input_zero_point, options->input_zero_point);
    const uint32_t *const end = plane + l->channel / 4;
    while (plane != end) {
        *plane++ = outside;
    }
}

/* Fills the plane of a channel where it is inside of the image; `image` points at the channel's first value. */
static void fill(const layout *l, const strip_place *place, const saaug_options *options, const saaug_shape *shape,
                 const int8_t *image, uint32_t *plane)
{
    const int8_t zero_point = (int8_t)options->input_zero_point;
    uint32_t phase_offset = place->corner;
    int32_t begin = place->begin, end = place->end;
    int32_t begin_column = place->begin_column, end_column = place->end_column;
    int32_t phase, r;
    for (phase = 0; phase < l->phases; ++phase) {
        const int32_t inside = at_most(end, l->width) - begin;
        uint32_t *words = plane + begin;
        uint32_t offset = phase_offset;
        for (r = inside > 0 ? l->height : 0; r > 0; --r) {
            const int32_t row = place->top + l->height - r;
            const int8_t *low = &zero_point, *high = &zero_point;
            int32_t low_step = 0, high_step = 0;
            if ((uint32_t)row < (uint32_t)shape->in_h) {
                low = image + offset;
                low_step = place->column_step;
            }
            if ((uint32_t)(row + place->down) < (uint32_t)shape->in_h) {
                high = image + (offset + place->down_step);
                high_step = place->column_step;
            }
            fill_row(low, low_step, high, high_step, inside, words);
            words += l->pitch;
            offset += place->row_step;
        }
        /* The next phase's columns are one further to the right. */
        plane += l->width;
        phase_offset += (uint32_t)shape->in_c;
        if (++begin_column >= options->stride_w && begin > 0) {
            begin_column -= options->stride_w;
            phase_offset -= (uint32_t)place->column_step;
            --begin;
        }
        if (++end_column - options->stride_w >= shape->in_w && end > begin) {
            end_column -= options->stride_w;
            --end;
        }
    }
}

saaug_status saaug_planes_layer(const saaug_plane_operator *operator, const saaug_options *options,
                                const saaug_shape *shape, const int8_t *input, const uint8_t *weights,
                                const int32_t *params, int8_t *output, void *scratch)
{
    const layout l = lay_out(operator, options, shape, SAAUG_WORDS);
    uint32_t *const plane = scratch;
    void *const taps = (uint8_t *)scratch + l.channel;
    uint16_t *const offsets = (void *)((uint8_t *)scratch + l.offsets);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const int32_t out_row = shape->out_w * shape->out_c;
    const int32_t half_strip = l.rows * out_row, block_bytes = SAAUG_WORDS * shape->out_c;
    const int32_t rest = shape->out_w - (l.blocks - 1) * SAAUG_WORDS; /* columns of a row's last block */
    const int32_t words_of_row = options->stride_h * l.pitch;
    const int8_t *image = input;
    int8_t *strip = output;
    int32_t n, first, c, m, y, b;
    find_taps(&l, options, offsets);
    for (n = 0; n < shape->batches; ++n) {
        for (first = 0; first < shape->out_h; first += 2 * l.rows) {
            const strip_place place = place_strip(&l, options, shape, first);
            const int32_t rows_left = shape->out_h - first;
            const uint8_t *row = weights;
            int32_t o = 0;
            clear(&l, options, plane);
            for (c = 0; c < shape->in_c; ++c) {
                fill(&l, &place, options, shape, image + c, plane);
                for (m = 0; m < options->depth_multiplier; ++m, ++o) {
                    int32_t word_of_row = 0, output_row = o;
                    saaug_bucket_scale scale;
                    operator->prepare(options, row, offsets, taps);
                    saaug_bucket_prepare(params + 3 * o, options, &scale);
                    for (y = 0; y < l.rows && y < rows_left; ++y) {
                        const int is_whole = y + l.rows < rows_left;
                        const uint32_t *words = plane + word_of_row;
                        int8_t *block = strip + output_row;
                        for (b = l.blocks; b > 0; --b) {
                            const int32_t count = b > 1 ? SAAUG_WORDS : rest;
                            int32_t acc[SAAUG_PIXELS];
                            operator->run(taps, words, acc);
                            saaug_bucket_store(acc, count, is_whole ? count : 0, &scale, options, block,
                                               block + (is_whole ? half_strip : 0), shape->out_c);
                            words += SAAUG_WORDS;
                            block += b > 1 ? block_bytes : 0;
                        }
                        word_of_row += words_of_row;
                        output_row += out_row;
                    }
                    row += row_bytes;
                }
            }
            strip += at_most(2 * l.rows, rows_left) * out_row;
        }
        image += shape->in_h * shape->in_w * shape->in_c;
    }
    return SAAUG_OK;
}
