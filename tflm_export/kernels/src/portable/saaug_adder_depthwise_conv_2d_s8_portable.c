/* ADDER_DEPTHWISE_CONV_2D, portable: planes of one channel (saaug_planes.h), distances two at a time
 * (saaug_distance.h). */
#include "saaug_distance.h"
#include "saaug_planes.h"

/* A tap of the channel at hand. Before the first comes one that holds the sum of the weights and the number of taps. */
typedef struct {
    uint32_t bias;   /* saaug_distance_bias() of its weight */
    uint32_t offset; /* of its column in the plane, in bytes */
} distance_tap;

static void prepare(const saaug_options *options, const uint8_t *row, const uint16_t *offsets, void *taps)
{
    const int32_t count = options->kernel_h * options->kernel_w;
    distance_tap *const list = taps;
    int32_t sum = -128 * count, t;
    for (t = 0; t < count; ++t) {
        sum += (int32_t)row[t];
        list[t + 1].bias = saaug_distance_bias(row[t]);
        list[t + 1].offset = offsets[t];
    }
    list[0].bias = (uint32_t)sum;
    list[0].offset = (uint32_t)count;
}

static void run(const void *taps, const uint32_t *words, int32_t *acc)
{
    const distance_tap *const list = taps;
    const distance_tap *const end = list + list->offset;
    const int32_t weights = (int32_t)list->bias;
    const uint32_t ones = saaug_distance_ones();
    int32_t first, k;
    for (first = 0; first < SAAUG_WORDS; first += SAAUG_DISTANCE_WORDS) {
        const uint8_t *const base = (const uint8_t *)(words + first);
        const distance_tap *tap = list;
        uint32_t parts[SAAUG_DISTANCE_WORDS], pixels[SAAUG_DISTANCE_WORDS];
        for (k = 0; k < SAAUG_DISTANCE_WORDS; ++k) {
            parts[k] = 0;
            pixels[k] = 0;
        }
        while (tap != end) {
            const uint32_t *const column = (const uint32_t *)(const void *)(base + (++tap)->offset);
            const uint32_t bias = tap->bias;
            for (k = 0; k < SAAUG_DISTANCE_WORDS; ++k) {
                const uint32_t word = column[k];
                parts[k] += saaug_distance_part(word, bias, ones);
                pixels[k] += word;
            }
        }
        for (k = 0; k < SAAUG_DISTANCE_WORDS; ++k) {
            acc[2 * (first + k)] = 0;
            acc[2 * (first + k) + 1] = 0;
            saaug_distance_spill(parts[k], weights, pixels[k], acc + 2 * (first + k));
        }
    }
}

static saaug_plane_operator operator_of(const saaug_options *options)
{
    saaug_plane_operator operator;
    operator.taps_bytes = (int32_t)sizeof(distance_tap) * (options->kernel_h * options->kernel_w + 1);
    operator.prepare = prepare;
    operator.run = run;
    return operator;
}

/* Kernels beyond the reach of 16 bits and images too wide for planes go to the reference version. */
static int64_t planes_size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    const saaug_plane_operator operator = operator_of(options);
    if (options->kernel_h * options->kernel_w > SAAUG_DISTANCE_TAPS) {
        return -1;
    }
    return saaug_planes_size(&operator, options, shape, words);
}

static int64_t size(const saaug_options *options, const saaug_shape *shape, int32_t words)
{
    const int64_t bytes = planes_size(options, shape, words);
    return bytes >= 0 ? bytes : saaug_adder_depthwise_conv_2d_s8_reference_size(options, shape);
}

SAAUG_PORTABLE_SIZES(saaug_adder_depthwise_conv_2d_s8, size)

saaug_status saaug_adder_depthwise_conv_2d_s8_portable(const saaug_options *options, const saaug_shape *shape,
                                                       const int8_t *input, const uint8_t *weights,
                                                       const int32_t *params, int8_t *output, void *scratch)
{
    const saaug_plane_operator operator = operator_of(options);
    if (planes_size(options, shape, SAAUG_WORDS) < 0) {
        return saaug_adder_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
    }
    return saaug_planes_layer(&operator, options, shape, input, weights, params, output, scratch);
}
