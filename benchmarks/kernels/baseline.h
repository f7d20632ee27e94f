/* The same layers with int8 weights and multiplication, written with the same care as ours: what the shift kernels are
 * measured against. Signatures as in saaug_nn.h; `weights` are int8 [O, K], rows padded to 4 bytes. */
#ifndef BASELINE_H
#define BASELINE_H

#include "saaug_nn.h"

int32_t baseline_conv_size(const saaug_options *options, const saaug_shape *shape);
saaug_status baseline_conv(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                           const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch);

int32_t baseline_depthwise_size(const saaug_options *options, const saaug_shape *shape);
saaug_status baseline_depthwise(const saaug_options *options, const saaug_shape *shape, const int8_t *input,
                                const uint8_t *weights, const int32_t *params, int8_t *output, void *scratch);

#endif
