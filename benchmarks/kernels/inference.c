/* Counts the instructions of one inference of an exported network and compares its output with the exporter's.
 * Prints: ticks (see counter.h), 1 if the output is right. */
#include <stdio.h>
#include <string.h>

#include "counter.h"
#include "net.h"
#include "samples.h"

int main(void)
{
    static int8_t output[NET_OUTPUT_BYTES];
    const uint32_t start = counter_start();
    const int status = net_run(sample_images[0], output);
    const uint32_t ticks = counter_stop(start);
    printf("%lu %d\n", (unsigned long)ticks, status == 0 && memcmp(output, sample_outputs[0], sizeof output) == 0);
    return 0;
}
