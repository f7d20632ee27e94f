/* Runs the layers of a file that kernel_cases.py wrote, counts each one's instructions and compares every byte.
 * Usage: count ours|multiplying FILE. Prints, a layer: its ticks (see saaug_profile.h), 1 if the output is right, scratch
 * bytes. `multiplying` reads int8 weights (SAAUG_LAYOUT_BYTE stands for them here) and runs baseline.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "baseline.h"
#include "saaug_nn.h"
#include "saaug_profile.h"

#define LAYER(NAME, name, number, KIND, TERMS) [number] = saaug_##name##_s8,
#define SIZE(NAME, name, number, KIND, TERMS) [number] = saaug_##name##_s8_get_buffer_size,
#define baseline_CONV baseline_conv
#define baseline_DENSE baseline_conv
#define baseline_DEPTHWISE baseline_depthwise
#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
#define BASELINE(NAME, name, number, KIND, TERMS) [number] = baseline_##KIND,
#define BASELINE_SIZE(NAME, name, number, KIND, TERMS) [number] = JOINED(baseline_##KIND, _size),
#define MOST 32 /* numbers of operators lie below */
static saaug_layer *const layers[2][MOST] = {{SAAUG_FOR_EACH_OP(LAYER)}, {SAAUG_FOR_EACH_OP(BASELINE)}};
static saaug_layer_size *const sizes[2][MOST] = {{SAAUG_FOR_EACH_OP(SIZE)}, {SAAUG_FOR_EACH_OP(BASELINE_SIZE)}};

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
        saaug_layer *run;
        memcpy(&options, header, sizeof options);
        memcpy(&shape, header + 16, sizeof shape);
        run = layers[multiplying][options.op];
        scratch_bytes = sizes[multiplying][options.op](&options, &shape);
        in_bytes = (size_t)shape.batches * (size_t)shape.in_h * (size_t)shape.in_w * (size_t)shape.in_c;
        out_bytes = (size_t)shape.batches * (size_t)shape.out_h * (size_t)shape.out_w * (size_t)shape.out_c;
        input = block(file, in_bytes);
        weights = block(file, (size_t)header[23]);
        params = block(file, (size_t)header[24] * 4);
        expected = block(file, out_bytes);
        output = block(NULL, out_bytes);
        scratch = block(NULL, scratch_bytes > 0 ? (size_t)scratch_bytes : 0);
        start = saaug_ticks_begin();
        status = run(&options, &shape, input, weights, params, output, scratch);
        ticks = saaug_ticks_end(start);
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
