/* The layers of the benchmark with int8 weights and multiplication, for cores without packed multiplication: tiles of
 * positions and channels in registers, planes of one channel for a depthwise layer, the requantization of our own
 * kernels. Dense 1x1 convolutions, and depthwise ones of 3x3 with strides 1 and 2 and of 5x5, with outputs of an even size:
 * what is measured.
 *
 * BASELINE_MULTIPLY chooses the product of two int8:
 *   0  the compiler's: an instruction, or without the M extension the library's function
 *   1  shift-and-add, eight steps unrolled
 *   2  quarter squares: a table of n * n / 4, since a * b = (a + b)^2 / 4 - (a - b)^2 / 4
 */
#include "baseline.h"
#include "saaug_blocks.h"

#ifndef BASELINE_MULTIPLY
#define BASELINE_MULTIPLY 0
#endif

/* Positions and channels of a tile of a convolution, and unrolled taps: the fastest that were tried on each core. */
#ifndef BASELINE_POSITIONS
#if BASELINE_MULTIPLY == 1
#define BASELINE_POSITIONS 8
#define BASELINE_CHANNELS 1
#define BASELINE_TAPS 1
#elif BASELINE_MULTIPLY == 2
#define BASELINE_POSITIONS 4
#define BASELINE_CHANNELS 2
#define BASELINE_TAPS 1
#elif SAAUG_THUMB == 1
#define BASELINE_POSITIONS 2
#define BASELINE_CHANNELS 2
#define BASELINE_TAPS 1
#else
#define BASELINE_POSITIONS 2
#define BASELINE_CHANNELS 2
#define BASELINE_TAPS 4
#endif
#endif

#define BLOCK 8 /* accumulators of a channel that are requantized together */

#if BASELINE_MULTIPLY == 0

static inline int32_t multiply(int32_t a, int32_t b) { return a * b; }

#elif BASELINE_MULTIPLY == 1

static inline int32_t multiply(int32_t a, int32_t b)
{
    const uint32_t value = (uint32_t)a;
    uint32_t product = 0;
    product += (b & 1) != 0 ? value : 0;
    product += (b & 2) != 0 ? value << 1 : 0;
    product += (b & 4) != 0 ? value << 2 : 0;
    product += (b & 8) != 0 ? value << 3 : 0;
    product += (b & 16) != 0 ? value << 4 : 0;
    product += (b & 32) != 0 ? value << 5 : 0;
    product += (b & 64) != 0 ? value << 6 : 0;
    product -= b < 0 ? value << 7 : 0;
    return (int32_t)product;
}

#else

#define QUARTER(n) ((uint16_t)((n) * (n) / 4))
#define QUARTERS4(n) QUARTER(n), QUARTER(n + 1), QUARTER(n + 2), QUARTER(n + 3)
#define QUARTERS16(n) QUARTERS4(n), QUARTERS4(n + 4), QUARTERS4(n + 8), QUARTERS4(n + 12)
#define QUARTERS64(n) QUARTERS16(n), QUARTERS16(n + 16), QUARTERS16(n + 32), QUARTERS16(n + 48)
static const uint16_t quarters[512] = {QUARTERS64(-256), QUARTERS64(-192), QUARTERS64(-128), QUARTERS64(-64),
                                       QUARTERS64(0),    QUARTERS64(64),   QUARTERS64(128),  QUARTERS64(192)};

static inline int32_t multiply(int32_t a, int32_t b) { return quarters[256 + a + b] - quarters[256 + a - b]; }

#endif

int32_t baseline_conv_size(const saaug_options *options, const saaug_shape *shape)
{
    (void)options;
    (void)shape;
    return 0;
}

/* The sums of a tile: acc[channel][position]. */
static inline void tile(const int8_t *pixels, const int8_t *rows, int32_t taps, int32_t row_bytes, int32_t *acc)
{
    const int8_t *x[BASELINE_POSITIONS], *w[BASELINE_CHANNELS];
    int32_t sums[BASELINE_CHANNELS][BASELINE_POSITIONS];
    int32_t c, i, p, o;
    for (p = 0; p < BASELINE_POSITIONS; ++p) {
        x[p] = pixels + p * taps;
    }
    for (o = 0; o < BASELINE_CHANNELS; ++o) {
        w[o] = rows + o * row_bytes;
        for (p = 0; p < BASELINE_POSITIONS; ++p) {
            sums[o][p] = 0;
        }
    }
    for (c = 0; c < taps; c += BASELINE_TAPS) {
        for (i = c; i < c + BASELINE_TAPS; ++i) {
            for (o = 0; o < BASELINE_CHANNELS; ++o) {
                for (p = 0; p < BASELINE_POSITIONS; ++p) {
                    sums[o][p] += multiply(x[p][i], w[o][i]);
                }
            }
        }
    }
    for (o = 0; o < BASELINE_CHANNELS; ++o) {
        for (p = 0; p < BASELINE_POSITIONS; ++p) {
            acc[o * BLOCK + p] = sums[o][p];
        }
    }
}

saaug_status baseline_conv(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                           const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const int32_t row_bytes = saaug_row_bytes(options, shape);
    const int32_t positions = shape->out_h * shape->out_w;
    const int8_t *rows = (const int8_t *)weights;
    int32_t o, p, i, count;
    (void)scratch;
    if (options->kernel_h != 1 || options->kernel_w != 1 || positions < BLOCK ||
        shape->out_c % BASELINE_CHANNELS != 0) {
        return SAAUG_BAD_OPTIONS;
    }
    for (o = 0; o < shape->out_c; o += BASELINE_CHANNELS) {
        saaug_bucket_scale scales[BASELINE_CHANNELS];
        for (i = 0; i < BASELINE_CHANNELS; ++i) {
            saaug_bucket_prepare(params + 3 * (o + i), options, scales + i);
        }
        for (p = 0; p < positions; p += count) {
            int32_t acc[BASELINE_CHANNELS * BLOCK];
            const int8_t *pixels;
            int8_t *to;
            count = BLOCK;
            if (positions - p < BLOCK) { /* whole tiles, the first of which may begin in what is done */
                count = saaug_divide_up(positions - p, BASELINE_POSITIONS) * BASELINE_POSITIONS;
                p = positions - count;
            }
            pixels = input + p * shape->in_c;
            to = output + o + p * shape->out_c;
            for (i = 0; i < count; i += BASELINE_POSITIONS) {
                tile(pixels, rows, shape->in_c, row_bytes, acc + i);
                pixels += BASELINE_POSITIONS * shape->in_c;
            }
            for (i = 0; i < BASELINE_CHANNELS; ++i) {
                saaug_bucket_store(acc + i * BLOCK, count / 2, count / 2, scales + i, options, to + i,
                                   to + i + shape->out_c, 2 * shape->out_c);
            }
        }
        rows += BASELINE_CHANNELS * row_bytes;
    }
    return SAAUG_OK;
}

/* A plane: one channel as int8, with its padding. */
static int32_t pitch_of(const saaug_shape *shape, int32_t kernel) { return shape->in_w + kernel - 1; }

int32_t baseline_depthwise_size(const saaug_options *options, const saaug_shape *shape)
{
    return pitch_of(shape, options->kernel_w) * (shape->in_h + options->kernel_h - 1);
}

static void fill(const saaug_shape *shape, const int8_t *input, int32_t kernel, int8_t zero_point, int8_t *plane)
{
    const int32_t pad = kernel / 2, width = pitch_of(shape, kernel);
    int32_t y, x;
    for (y = -pad; y < shape->in_h + pad; ++y) {
        const int inside = y >= 0 && y < shape->in_h;
        for (x = 0; x < pad; ++x) {
            *plane++ = zero_point;
        }
        if (inside) {
            for (x = 0; x < shape->in_w; ++x) {
                *plane++ = *input;
                input += shape->in_c;
            }
        }
        for (x = inside ? shape->in_w + pad : pad; x < width; ++x) {
            *plane++ = zero_point;
        }
    }
}

/* `count` neighbouring outputs: acc[0], acc[2], acc[4], ... */
static inline void sums_of(const int8_t *x, int32_t pitch, const int8_t *weights, int kernel, int stride, int count,
                           int32_t *acc)
{
    int32_t sums[4] = {0, 0, 0, 0};
    int i, j, p;
    for (i = 0; i < kernel; ++i) {
        for (j = 0; j < kernel; ++j) {
            const int32_t w = *weights++;
            for (p = 0; p < count; ++p) {
                sums[p] += multiply(x[j + p * stride], w);
            }
        }
        x += pitch;
    }
    for (p = 0; p < count; ++p) {
        acc[2 * p] = sums[p];
    }
}

#define SUMS(kernel, stride, count)                                                                                    \
    static void sums_##kernel##_##stride##_##count(const int8_t *x, int32_t pitch, const int8_t *weights,              \
                                                   int32_t *acc)                                                       \
    {                                                                                                                  \
        sums_of(x, pitch, weights, kernel, stride, count, acc);                                                        \
    }
SUMS(3, 1, 4)
SUMS(3, 1, 2)
SUMS(3, 2, 4)
SUMS(3, 2, 2)
SUMS(5, 1, 4)
SUMS(5, 1, 2)

/* Calls by name: through pointers, compilers make slower code. */
#define TWO_ROWS(kernel, stride, count)                                                                                \
    do {                                                                                                               \
        sums_##kernel##_##stride##_##count(at, pitch, row, acc);                                                       \
        sums_##kernel##_##stride##_##count(at + (stride) * pitch, pitch, row, acc + 1);                                \
    } while (0)

saaug_status baseline_depthwise(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch)
{
    const int32_t kernel = options->kernel_w, stride = options->stride_w, pitch = pitch_of(shape, kernel);
    const int32_t row_bytes = saaug_row_bytes(options, shape), out_row = shape->out_w * shape->out_c;
    const int32_t first = (kernel / 2 - options->pad_top) * pitch + kernel / 2 - options->pad_left;
    const int8_t *row = (const int8_t *)weights;
    int32_t c, y, x, count;
    if ((kernel != 3 && kernel != 5) || stride > (kernel == 3 ? 2 : 1) || stride != options->stride_h ||
        shape->out_w % 2 != 0 || shape->out_h % 2 != 0) {
        return SAAUG_BAD_OPTIONS;
    }
    for (c = 0; c < shape->in_c; ++c) {
        const int8_t *from = (const int8_t *)scratch + first;
        int8_t *to = output + c;
        saaug_bucket_scale scale;
        fill(shape, input + c, kernel, (int8_t)options->input_zero_point, scratch);
        saaug_bucket_prepare(params + 3 * c, options, &scale);
        for (y = 0; y < shape->out_h; y += 2) {
            for (x = 0; x < shape->out_w; x += count) {
                int32_t acc[BLOCK];
                const int8_t *const at = from + x * stride;
                count = shape->out_w - x < 4 ? 2 : 4;
                if (kernel == 5) {
                    if (count == 4) {
                        TWO_ROWS(5, 1, 4);
                    } else {
                        TWO_ROWS(5, 1, 2);
                    }
                } else if (stride == 1) {
                    if (count == 4) {
                        TWO_ROWS(3, 1, 4);
                    } else {
                        TWO_ROWS(3, 1, 2);
                    }
                } else if (count == 4) {
                    TWO_ROWS(3, 2, 4);
                } else {
                    TWO_ROWS(3, 2, 2);
                }
                saaug_bucket_store(acc, count, count, &scale, options, to, to + out_row, shape->out_c);
                to += count * shape->out_c;
            }
            to += out_row;
            from += 2 * stride * pitch;
        }
        row += row_bytes;
    }
    return SAAUG_OK;
}
