/* The option record of the custom operators, byte by byte: no alignment, padding or byte order is assumed. */
#include "saaug_internal.h"
#include "saaug_option_record.h"

static int32_t signed_byte(uint8_t byte) { return byte < 128 ? byte : (int32_t)byte - 256; }

static uint32_t two_bytes(const uint8_t *bytes) { return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8; }

saaug_status saaug_parse_options(const void *record, size_t length, saaug_options *options)
{
    const uint8_t *const bytes = record;
    saaug_options read;
    if (record == NULL || length != SAAUG_OPTIONS_BYTES) {
        return SAAUG_BAD_OPTIONS;
    }
    if ((two_bytes(bytes + SAAUG_OPTION_MAGIC) | two_bytes(bytes + SAAUG_OPTION_MAGIC + 2) << 16) !=
            SAAUG_OPTIONS_MAGIC ||
        two_bytes(bytes + SAAUG_OPTION_VERSION) != SAAUG_OPTIONS_VERSION ||
        two_bytes(bytes + SAAUG_OPTION_LENGTH) != length || bytes[SAAUG_OPTION_RESERVED] != 0) {
        return SAAUG_BAD_OPTIONS;
    }
    read.op = bytes[SAAUG_OPTION_OP];
    read.layout = bytes[SAAUG_OPTION_LAYOUT];
    read.requant = bytes[SAAUG_OPTION_REQUANT];
    read.kernel_h = bytes[SAAUG_OPTION_KERNEL_H];
    read.kernel_w = bytes[SAAUG_OPTION_KERNEL_W];
    read.stride_h = bytes[SAAUG_OPTION_STRIDE_H];
    read.stride_w = bytes[SAAUG_OPTION_STRIDE_W];
    read.dilation_h = bytes[SAAUG_OPTION_DILATION_H];
    read.dilation_w = bytes[SAAUG_OPTION_DILATION_W];
    read.pad_top = (int32_t)two_bytes(bytes + SAAUG_OPTION_PAD_TOP);
    read.pad_left = (int32_t)two_bytes(bytes + SAAUG_OPTION_PAD_LEFT);
    read.depth_multiplier = (int32_t)two_bytes(bytes + SAAUG_OPTION_DEPTH_MULTIPLIER);
    read.input_zero_point = signed_byte(bytes[SAAUG_OPTION_INPUT_ZERO_POINT]);
    read.output_zero_point = signed_byte(bytes[SAAUG_OPTION_OUTPUT_ZERO_POINT]);
    read.act_min = signed_byte(bytes[SAAUG_OPTION_ACT_MIN]);
    read.act_max = signed_byte(bytes[SAAUG_OPTION_ACT_MAX]);
    if (saaug_check_options(&read) != SAAUG_OK) {
        return SAAUG_BAD_OPTIONS;
    }
    *options = read;
    return SAAUG_OK;
}
