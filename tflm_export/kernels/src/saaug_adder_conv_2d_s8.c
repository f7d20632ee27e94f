/* ADDER_CONV_2D: dispatch and reference version. */
#include "saaug_internal.h"

SAAUG_DISPATCH(saaug_adder_conv_2d_s8, SAAUG_ADDER_CONV_2D)

int64_t saaug_adder_conv_2d_s8_reference_size(const saaug_options *options, const saaug_shape *shape)
{
    (void)options;
    (void)shape;
    return 0;
}

saaug_status saaug_adder_conv_2d_s8_reference(const saaug_options *options, const saaug_shape *shape,
                                              const int8_t *input, const uint8_t *weights, const int32_t *params,
                                              int8_t *output, void *scratch)
{
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    int32_t n, y, x, o, i, j, c;
    (void)scratch;
    for (n = 0; n < shape->batches; ++n) {
        for (y = 0; y < shape->out_h; ++y) {
            for (x = 0; x < shape->out_w; ++x) {
                for (o = 0; o < shape->out_c; ++o) {
                    const uint8_t *row = weights + (size_t)o * (size_t)row_bytes;
                    int32_t distance = 0;
                    int32_t tap = 0;
                    for (i = 0; i < options->kernel_h; ++i) {
                        for (j = 0; j < options->kernel_w; ++j) {
                            const int8_t *pixel = saaug_pixel(options, shape, input, n, y, x, i, j);
                            for (c = 0; c < shape->in_c; ++c, ++tap) {
                                const int32_t value = pixel != NULL ? pixel[c] : options->input_zero_point;
                                distance += saaug_adder_term(value, row, tap);
                            }
                        }
                    }
                    *output++ = saaug_requantize(saaug_adder_accumulator(distance, params + 3 * o), params + 3 * o,
                                                 options);
                }
            }
        }
    }
    return SAAUG_OK;
}
