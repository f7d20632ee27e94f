/* Prints the scratch of every layer of a file that kernel_cases.py wrote: what a memory plan made elsewhere must equal.
 * */
#include <stdio.h>
#include <string.h>

#include "saaug_nn.h"

#define SIZE(NAME, name, number, KIND, TERMS) [number] = saaug_##name##_s8_get_buffer_size,
static saaug_layer_size *const sizes[] = {SAAUG_FOR_EACH_OP(SIZE)};

int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    int32_t header[25];
    if (file == NULL) {
        printf("usage: sizes FILE\n");
        return 3;
    }
    while (fread(header, 1, sizeof header, file) == sizeof header) {
        saaug_options options;
        saaug_shape shape;
        memcpy(&options, header, sizeof options);
        memcpy(&shape, header + 16, sizeof shape);
        printf("%ld\n", (long)sizes[options.op](&options, &shape));
        fseek(file, (long)shape.batches * shape.in_h * shape.in_w * shape.in_c + header[23] + 4L * header[24] +
                        (long)shape.batches * shape.out_h * shape.out_w * shape.out_c, SEEK_CUR);
    }
    fclose(file);
    return 0;
}
