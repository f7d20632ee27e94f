/* The option record of the custom operators, byte by byte: no alignment, padding or byte order is assumed. */
#include "saaug_internal.h"

static int32_t signed_byte(uint8_t byte) { return byte < 128 ? byte : (int32_t)byte - 256; }

saaug_status saaug_parse_options(const void *record, size_t length, saaug_options *options)
{
    const uint8_t *bytes = record;
    saaug_options read;
    if (record == NULL || length != SAAUG_OPTIONS_BYTES) {
        return SAAUG_BAD_OPTIONS;
    }
    if (((uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24) !=
            SAAUG_OPTIONS_MAGIC ||
        bytes[4] != 1) {
        return SAAUG_BAD_OPTIONS;
    }
    read.op = bytes[5];
    read.layout = bytes[6];
    read.requant = bytes[7];
    read.kernel_h = bytes[8];
    read.kernel_w = bytes[9];
    read.stride_h = bytes[10];
    read.stride_w = bytes[11];
    read.dilation_h = bytes[12];
    read.dilation_w = bytes[13];
    read.depth_multiplier = (int32_t)bytes[14] | (int32_t)bytes[15] << 8;
    read.pad_top = (int32_t)bytes[16] | (int32_t)bytes[17] << 8;
    read.pad_left = (int32_t)bytes[18] | (int32_t)bytes[19] << 8;
    read.input_zero_point = signed_byte(bytes[20]);
    read.output_zero_point = signed_byte(bytes[21]);
    read.act_min = signed_byte(bytes[22]);
    read.act_max = signed_byte(bytes[23]);
    if (saaug_check_options(&read) != SAAUG_OK) {
        return SAAUG_BAD_OPTIONS;
    }
    *options = read;
    return SAAUG_OK;
}
