/* SHIFT_FULLY_CONNECTED, portable: several vectors are the pixels of a 1x1 convolution; for one, nothing can be packed.
 * */
#include "saaug_bucket.h"

#define LEAST_VECTORS 4

static int as_convolution(const saaug_shape *shape) { return shape->batches >= LEAST_VECTORS; }

static int64_t size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    if (!as_convolution(shape)) {
        return 0;
    }
    return words == 4 ? saaug_shift_conv_2d_s8_portable4_size(options, shape)
                      : saaug_shift_conv_2d_s8_portable8_size(options, shape);
}

SAAUG_PORTABLE_SIZES(saaug_shift_fully_connected_s8, size)

/* 2 * value * weight of a nibble's code. */
static inline int32_t twice_the_term(int32_t value, uint32_t code)
{
    const uint32_t magnitude = code & 7u;
    const int32_t term = saaug_shift_left(value, magnitude);
    return magnitude == 0 ? 0 : code > 8u ? -term : term;
}

static int32_t dot_nibbles(const int8_t *vector, const uint8_t *row, int32_t count)
{
    int32_t twice = 0;
    for (; count >= 2; count -= 2) {
        const uint32_t codes = *row++;
        twice += twice_the_term(vector[0], codes & 15u);
        twice += twice_the_term(vector[1], codes >> 4);
        vector += 2;
    }
    if (count > 0) {
        twice += twice_the_term(vector[0], *row & 15u);
    }
    return twice / 2;
}

static int32_t dot_bytes(const int8_t *vector, const uint8_t *row, int32_t count)
{
    int32_t acc = 0, c;
    for (c = 0; c < count; ++c) {
        acc += saaug_shift_term(vector[c], row, c, SAAUG_LAYOUT_BYTE);
    }
    return acc;
}

/* The sum of all values less twice those whose bit is set: one addition each, and one more for the set ones. */
static int32_t dot_bits(const int8_t *vector, const uint8_t *row, int32_t count)
{
    int32_t all = 0, taken = 0, c;
    uint32_t bits = 0;
    for (c = 0; c < count; ++c) {
        bits = (c & 7) == 0 ? row[c >> 3] : bits >> 1;
        all += vector[c];
        if ((bits & 1u) != 0) {
            taken += vector[c];
        }
    }
    return saaug_shift_left(all - 2 * taken, SAAUG_BIT_SCALE_LOG2);
}

static int32_t dot(const int8_t *vector, const uint8_t *row, int32_t count, int32_t layout)
{
    return layout == SAAUG_LAYOUT_NIBBLE ? dot_nibbles(vector, row, count)
           : layout == SAAUG_LAYOUT_BIT  ? dot_bits(vector, row, count)
                                         : dot_bytes(vector, row, count);
}

saaug_status saaug_shift_fully_connected_s8_portable(const saaug_options *options, const saaug_shape *shape,
                                                     const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                     int8_t *output, void *scratch)
{
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const uint8_t *row = weights;
    int32_t n, o;
    if (as_convolution(shape)) {
        return saaug_shift_conv_2d_s8_portable(options, shape, input, weights, params, output, scratch);
    }
    for (o = 0; o < shape->out_c; ++o) {
        const int8_t *vector = input;
        saaug_bucket_scale channel;
        saaug_bucket_prepare(params + 3 * o, options, &channel);
        for (n = 0; n < shape->batches; ++n) {
            const int32_t acc = dot(vector, row, shape->in_c, options->layout);
            saaug_bucket_store(&acc, 1, 0, &channel, options, output + n * shape->out_c + o, NULL, 0);
            vector += shape->in_c;
        }
        row += row_bytes;
    }
    return SAAUG_OK;
}
