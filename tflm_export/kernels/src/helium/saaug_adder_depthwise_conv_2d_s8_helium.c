/* ADDER_DEPTHWISE_CONV_2D for Helium: a convolution of 1 x 1 images. */
#include "../saaug_internal.h"

#if defined(SAAUG_HELIUM)
int64_t saaug_adder_depthwise_conv_2d_s8_helium_size(const saaug_options *options, const saaug_shape *shape)
{
    return saaug_adder_depthwise_conv_2d_s8_reference_size(options, shape);
}

saaug_status saaug_adder_depthwise_conv_2d_s8_helium(const saaug_options *options, const saaug_shape *shape,
                                                  const int8_t *input, const uint8_t *weights, const int32_t *params,
                                                  int8_t *output, void *scratch)
{
    return saaug_adder_depthwise_conv_2d_s8_reference(options, shape, input, weights, params, output, scratch);
}
#else
typedef int saaug_this_file_is_for_helium;
#endif
