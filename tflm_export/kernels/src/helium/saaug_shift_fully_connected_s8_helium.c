/* SHIFT_FULLY_CONNECTED for Helium: a convolution of 1 x 1 images. */
#include "../saaug_internal.h"

int64_t saaug_shift_fully_connected_s8_helium_size(const saaug_options *options, const saaug_shape *shape)
{
    return saaug_shift_conv_2d_s8_helium_size(options, shape);
}

#if defined(SAAUG_HELIUM)

saaug_status saaug_shift_fully_connected_s8_helium(const saaug_options *options, const saaug_shape *shape,
                                                  const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                  int8_t *output, void *scratch)
{
    return saaug_shift_conv_2d_s8_helium(options, shape, input, weights, params, output, scratch);
}

#endif
