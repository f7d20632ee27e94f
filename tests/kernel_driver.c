/* Runs the layers of a file that kernel_cases.py wrote and compares every byte. All buffers have their exact size, on the
 * heap, so that AddressSanitizer sees each access outside of them. Usage: kernel_driver FILE; status 0 if all agree. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "saaug_nn.h"

#define LAYER(NAME, name, number, KIND, TERMS) [number] = saaug_##name##_s8,
#define SIZE(NAME, name, number, KIND, TERMS) [number] = saaug_##name##_s8_get_buffer_size,
static saaug_layer *const layers[] = {SAAUG_FOR_EACH_OP(LAYER)};
static saaug_layer_size *const sizes[] = {SAAUG_FOR_EACH_OP(SIZE)};

static void *block(FILE *file, size_t bytes)
{
    void *data = malloc(bytes > 0 ? bytes : 1);
    if (data == NULL || (file != NULL && fread(data, 1, bytes, file) != bytes)) {
        fprintf(stderr, "cannot read or hold a block of %lu bytes\n", (unsigned long)bytes);
        exit(3);
    }
    return data;
}

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    int32_t header[25];
    long count = 0, failures = 0;
    if (file == NULL) {
        fprintf(stderr, "usage: kernel_driver FILE\n");
        return 3;
    }
    while (fread(header, 1, sizeof header, file) == sizeof header) {
        saaug_options options;
        saaug_shape shape;
        size_t in_bytes, out_bytes, i;
        int8_t *input, *expected, *output;
        uint8_t *weights;
        int32_t *params, scratch_bytes, channel;
        void *scratch;
        saaug_status status;
        memcpy(&options, header, sizeof options);
        memcpy(&shape, header + 16, sizeof shape);
        in_bytes = (size_t)shape.batches * (size_t)shape.in_h * (size_t)shape.in_w * (size_t)shape.in_c;
        out_bytes = (size_t)shape.batches * (size_t)shape.out_h * (size_t)shape.out_w * (size_t)shape.out_c;
        input = block(file, in_bytes);
        weights = block(file, (size_t)header[23]);
        params = block(file, (size_t)header[24] * 4);
        expected = block(file, out_bytes);
        output = block(NULL, out_bytes);
        status = saaug_check(&options, &shape);
        if (status == SAAUG_OK) {
            status = saaug_check_constants(&options, &shape, weights, (size_t)header[23], params, (size_t)header[24],
                                           &channel);
        }
        scratch_bytes = sizes[options.op](&options, &shape);
        scratch = block(NULL, scratch_bytes > 0 ? (size_t)scratch_bytes : 0);
        if (scratch_bytes > 0) {
            memset(scratch, 0x5A, (size_t)scratch_bytes);
        }
        if (status == SAAUG_OK) {
            status = layers[options.op](&options, &shape, input, weights, params, output,
                                            scratch_bytes > 0 ? scratch : NULL);
        }
        for (i = 0; status == SAAUG_OK && i < out_bytes && output[i] == expected[i]; ++i) {
        }
        if (status != SAAUG_OK || i < out_bytes) {
            ++failures;
            printf("case %ld: op %d, layout %d, kernel %dx%d, status %d, first wrong byte %ld of %ld\n", count,
                   (int)options.op, (int)options.layout, (int)options.kernel_h, (int)options.kernel_w, (int)status,
                   status == SAAUG_OK ? (long)i : -1L, (long)out_bytes);
        }
        free(input);
        free(weights);
        free(params);
        free(expected);
        free(output);
        free(scratch);
        ++count;
    }
    fclose(file);
    printf("%s: %ld cases, %ld failures\n", saaug_version(), count, failures);
    return failures != 0 || count == 0;
}
