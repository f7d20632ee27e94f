/* The table that the kernels for Helium share. */
#include "../saaug_internal.h"

#if defined(SAAUG_HELIUM)
#include "saaug_helium.h"

const int8_t saaug_nibble_weights[16] = {0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64};
#endif

typedef int saaug_not_an_empty_file;
