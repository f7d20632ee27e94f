/* SHIFT_DEPTHWISE_CONV_2D, portable: channel after channel, its pixels packed into a plane (saaug_planes.h), its taps a
 * program (saaug_bucket.h). */
#include "saaug_planes.h"

#define PLANE_BYTES 4096

typedef struct {
    saaug_planes planes;
    int32_t taps;
    int64_t program, offsets, bytes; /* into scratch, the plane being first; all of it */
} layout;

static layout lay_out(const saaug_options *options, const saaug_shape *shape)
{
    layout l;
    l.taps = options->kernel_h * options->kernel_w;
    l.planes = saaug_planes_of(options, shape, PLANE_BYTES);
    l.program = l.planes.bytes;
    l.offsets = l.program + 2 * saaug_bucket_program_length(l.taps, options->layout);
    l.bytes = l.offsets + (int64_t)2 * (l.taps + (l.taps & 1));
    return l;
}

/* Kernels and images beyond a program's reach go to the reference version. */
static int is_possible(const layout *l) { return l->taps <= SAAUG_PROGRAM_TAPS && l->planes.rows > 0; }

int64_t saaug_shift_depthwise_conv_2d_s8_portable_size(const saaug_options *options, const saaug_shape *shape)
{
    const layout l = lay_out(options, shape);
    return is_possible(&l) ? l.bytes : saaug_shift_depthwise_conv_2d_s8_reference_size(options, shape);
}

saaug_status saaug_shift_depthwise_conv_2d_s8_portable(const saaug_options *options, const saaug_shape *shape,
                                                       const int8_t *input, const uint8_t *weights,
                                                       const int32_t *params, int8_t *output, void *scratch)
{
    const layout l = lay_out(options, shape);
    const saaug_planes *const planes = &l.planes;
    uint32_t *const plane = scratch;
    uint16_t *const program = (void *)((uint8_t *)scratch + l.program);
    uint16_t *const offsets = (void *)((uint8_t *)scratch + l.offsets);
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const int32_t out_row = shape->out_w * shape->out_c;
    const int32_t half_strip = planes->rows * out_row;
    const int8_t *image = input;
    int8_t *image_output = output;
    int32_t n, first, c, m, y, b;
    if (!is_possible(&l)) {
        return saaug_shift_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    saaug_planes_taps(planes, options, offsets);
    for (n = 0; n < shape->batches; ++n) {
        int8_t *strip = image_output;
        for (first = 0; first < shape->out_h; first += 2 * planes->rows) {
            const uint8_t *row = weights;
            int32_t o = 0;
            for (c = 0; c < shape->in_c; ++c) {
                saaug_planes_fill(planes, options, shape, image, c, first, plane);
                for (m = 0; m < options->depth_multiplier; ++m, ++o) {
                    int32_t word = 0;
                    int8_t *upper = strip + o;
                    saaug_channel channel;
                    saaug_bucket_program(row, options->layout, 0, l.taps, offsets, 0, program);
                    saaug_bucket_channel(params + 3 * o, options, &channel);
                    for (y = first; y < first + planes->rows && y < shape->out_h; ++y) {
                        int8_t *block = upper;
                        int32_t columns = shape->out_w;
                        for (b = 0; b < planes->blocks; ++b) {
                            const int32_t count = columns < SAAUG_WORDS ? columns : SAAUG_WORDS;
                            int32_t acc[SAAUG_PIXELS];
                            saaug_bucket_run(program, plane + (word + b * SAAUG_WORDS), acc);
                            saaug_bucket_store(acc, count, y + planes->rows < shape->out_h ? count : 0, &channel, options,
                                               block, block + half_strip, shape->out_c);
                            block += SAAUG_WORDS * shape->out_c;
                            columns -= SAAUG_WORDS;
                        }
                        word += options->stride_h * planes->pitch;
                        upper += out_row;
                    }
                    row += row_bytes;
                }
            }
            strip += 2 * half_strip;
        }
        image += shape->in_h * shape->in_w * shape->in_c;
        image_output += shape->out_h * out_row;
    }
    return SAAUG_OK;
}
