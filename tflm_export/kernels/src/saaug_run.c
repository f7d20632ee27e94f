/* What every public function does around the version that was compiled in. */
#include "saaug_internal.h"

const char *saaug_version(void) { return SAAUG_VERSION_NAME; }

int32_t saaug_buffer_size(saaug_kernel_size *size, int32_t kind, const saaug_options *options, const saaug_shape *shape)
{
    int64_t bytes;
    if (options->op != kind || saaug_check(options, shape) != SAAUG_OK) {
        return -1;
    }
    bytes = size(options, shape);
    return bytes > INT32_MAX ? -1 : (int32_t)bytes;
}

saaug_status saaug_run(saaug_kernel *kernel, saaug_kernel_size *size, int32_t kind, const saaug_options *options,
                       const saaug_shape *shape, const int8_t *input, const uint8_t *weights, const int32_t *params,
                       int8_t *output, void *scratch)
{
    saaug_status status;
    int64_t bytes;
    if (options->op != kind) {
        return SAAUG_BAD_OPTIONS;
    }
    status = saaug_check(options, shape);
    if (status != SAAUG_OK) {
        return status;
    }
    bytes = size(options, shape);
    if (bytes > INT32_MAX || (bytes > 0 && (scratch == NULL || ((uintptr_t)scratch & 3u) != 0))) {
        return SAAUG_BAD_SCRATCH;
    }
    return kernel(options, shape, input, weights, params, output, scratch);
}
