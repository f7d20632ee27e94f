/* Runs the layers of a file that kernel_cases.py wrote, counts each one's instructions and compares every byte.
 * Usage: count ours|multiplying FILE. Prints, a layer: its ticks (see counter.h), 1 if the output is right, scratch
 * bytes. `multiplying` reads int8 weights (SAAUG_LAYOUT_BYTE stands for them here) and runs baseline.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "baseline.h"
#include "counter.h"
#include "saaug_nn.h"

typedef saaug_status layer(const saaug_options *, const saaug_shape *, const int8_t *, const uint8_t *, const int32_t *,
                           int8_t *, void *);
typedef int32_t layer_size(const saaug_options *, const saaug_shape *);

static layer *const layers[2][5] = {
    {saaug_shift_conv_2d_s8, saaug_shift_depthwise_conv_2d_s8, saaug_shift_fully_connected_s8, saaug_adder_conv_2d_s8,
     saaug_adder_depthwise_conv_2d_s8},
    {baseline_conv, baseline_depthwise, baseline_conv, baseline_conv, baseline_depthwise}};
static layer_size *const sizes[2][5] = {
    {saaug_shift_conv_2d_s8_get_buffer_size, saaug_shift_depthwise_conv_2d_s8_get_buffer_size,
     saaug_shift_fully_connected_s8_get_buffer_size, saaug_adder_conv_2d_s8_get_buffer_size,
     saaug_adder_depthwise_conv_2d_s8_get_buffer_size},
    {baseline_conv_size, baseline_depthwise_size, baseline_conv_size, baseline_conv_size, baseline_depthwise_size}};

static void *block(FILE *file, size_t bytes)
{
    void *data = malloc(bytes > 0 ? bytes : 1);
    if (data == NULL || (file != NULL && fread(data, 1, bytes, file) != bytes)) {
        printf("cannot read or hold a block of %lu bytes\n", (unsigned long)bytes);
        exit(3);
    }
    return data;
}

int main(int argc, char **argv)
{
    FILE *file = argc > 2 ? fopen(argv[2], "rb") : NULL;
    const int multiplying = argc > 2 && strcmp(argv[1], "multiplying") == 0;
    int32_t header[25];
    if (file == NULL) {
        printf("usage: count ours|multiplying FILE\n");
        return 3;
    }
    while (fread(header, 1, sizeof header, file) == sizeof header) {
        saaug_options options;
        saaug_shape shape;
        size_t in_bytes, out_bytes;
        int8_t *input, *expected, *output;
        uint8_t *weights;
        int32_t *params, scratch_bytes;
        void *scratch;
        saaug_status status;
        uint32_t start, ticks;
        layer *run;
        memcpy(&options, header, sizeof options);
        memcpy(&shape, header + 16, sizeof shape);
        run = layers[multiplying][options.op - 1];
        scratch_bytes = sizes[multiplying][options.op - 1](&options, &shape);
        in_bytes = (size_t)shape.batches * (size_t)shape.in_h * (size_t)shape.in_w * (size_t)shape.in_c;
        out_bytes = (size_t)shape.batches * (size_t)shape.out_h * (size_t)shape.out_w * (size_t)shape.out_c;
        input = block(file, in_bytes);
        weights = block(file, (size_t)header[23]);
        params = block(file, (size_t)header[24] * 4);
        expected = block(file, out_bytes);
        output = block(NULL, out_bytes);
        scratch = block(NULL, scratch_bytes > 0 ? (size_t)scratch_bytes : 0);
        start = counter_start();
        status = run(&options, &shape, input, weights, params, output, scratch);
        ticks = counter_stop(start);
        printf("%lu %d %ld\n", (unsigned long)ticks, status == SAAUG_OK && memcmp(output, expected, out_bytes) == 0,
               (long)scratch_bytes);
        free(input);
        free(weights);
        free(params);
        free(expected);
        free(output);
        free(scratch);
    }
    fclose(file);
    return 0;
}
