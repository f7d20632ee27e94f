/**
 * @file saaug_op_list.h
 * Generated from CUSTOM in tflm_export/records.py: the operators, as X(NAME, name, number, KIND, TERMS).
 *
 * number  in the option record
 * KIND    CONV, DEPTHWISE or DENSE (fully connected)
 * TERMS   SHIFT, signed shifts of the inputs, ADDER, distances from them, or MOVES, none: no weights, no sum
 */
#ifndef SAAUG_OP_LIST_H
#define SAAUG_OP_LIST_H

#define SAAUG_FOR_EACH_OP(X) \
    X(SHIFT_CONV_2D, shift_conv_2d, 1, CONV, SHIFT) \
    X(SHIFT_DEPTHWISE_CONV_2D, shift_depthwise_conv_2d, 2, DEPTHWISE, SHIFT) \
    X(SHIFT_FULLY_CONNECTED, shift_fully_connected, 3, DENSE, SHIFT) \
    X(ADDER_CONV_2D, adder_conv_2d, 4, CONV, ADDER) \
    X(ADDER_DEPTHWISE_CONV_2D, adder_depthwise_conv_2d, 5, DEPTHWISE, ADDER) \
    X(CHANNEL_SHIFT, channel_shift, 6, DEPTHWISE, MOVES)

#endif /* SAAUG_OP_LIST_H */
