/* SHIFT_FULLY_CONNECTED: dispatch and reference version. */
#include "saaug_internal.h"

SAAUG_DISPATCH(saaug_shift_fully_connected_s8, SAAUG_SHIFT_FULLY_CONNECTED)

int64_t saaug_shift_fully_connected_s8_reference_size(const saaug_options *options, const saaug_shape *shape)
{
    (void)options;
    (void)shape;
    return 0;
}

saaug_status saaug_shift_fully_connected_s8_reference(const saaug_options *options, const saaug_shape *shape,
                                                      const int8_t *input, const uint8_t *weights,
                                                      const int32_t *params, int8_t *output, void *scratch)
{
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    int32_t n, o, c;
    (void)scratch;
    for (n = 0; n < shape->batches; ++n) {
        const int8_t *vector = input + (size_t)n * (size_t)shape->in_c;
        for (o = 0; o < shape->out_c; ++o) {
            const uint8_t *row = weights + (size_t)o * (size_t)row_bytes;
            int32_t acc = params[3 * o];
            for (c = 0; c < shape->in_c; ++c) {
                acc += saaug_shift_term(vector[c], row, c, options->layout);
            }
            *output++ = saaug_requantize(acc, params + 3 * o, options);
        }
    }
    return SAAUG_OK;
}
