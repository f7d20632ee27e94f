/* Runs an exported network, "net", once on its first sample image. Prints ticks as of saaug_profile.h, of the whole run or,
 * where the network is compiled with SAAUG_PROFILE, of every layer; then the version of the kernels, and 1 if the output is
 * the exporter's. */
#include <stdio.h>
#include <string.h>

#include "net.h"
#include "saaug_nn.h"
#include "saaug_profile.h"
#include "samples.h"

void saaug_profile(const saaug_profile_layer *layer, uint32_t ticks)
{
    (void)layer;
    printf("%lu\n", (unsigned long)ticks);
}

int main(void)
{
    static int8_t output[NET_OUTPUT_BYTES];
    const uint32_t begun = saaug_ticks_begin();
    const int status = net_run(sample_images[0], output);
    const uint32_t ticks = saaug_ticks_end(begun);
#ifdef SAAUG_PROFILE
    (void)ticks; /* every layer sets the clock anew */
#else
    printf("%lu\n", (unsigned long)ticks);
#endif
    printf("%s %d\n", saaug_version(), status == 0 && memcmp(output, sample_outputs[0], sizeof output) == 0);
    return 0;
}
