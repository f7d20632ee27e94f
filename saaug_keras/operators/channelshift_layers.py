"""The plain layer that moves channels."""

import keras
from keras import ops as K

from saaug_keras import ops
from saaug_keras.operators.channelshift import ChannelShift, kernel_of
from saaug_keras.operators.layer import set_window, window_of


@keras.saving.register_keras_serializable(package="saaug_keras")
class ChannelShift2D(keras.layers.Layer):
    """Moves every channel by a place of its window, in the place of a depthwise convolution.

        y[m, n, c] = x[s m + d i(c) - p, s n + d j(c) - p, c]

    (i, j)(c) is `operators.channelshift.tap_of_channels`, fixed and spread evenly over the window; outside of the image
    lie zeros. No weights, and no arithmetic once it is deployed.

    Args:
        kernel_size, strides, padding, dilation_rate: as `keras.layers.DepthwiseConv2D`, but padding "same" by default.
    Shapes:
        inputs (N, H, W, C) -> output (N, H', W', C), compute dtype.
    Raises:
        ValueError: an argument out of its range, or channels first.
    Source: ShiftNet, Wu et al. 2017, arXiv:1711.08141.
    """

    def __init__(self, kernel_size, *, strides=1, padding="same", dilation_rate=1, data_format=None, **kwargs):
        super().__init__(**kwargs)
        set_window(self, kernel_size, strides, padding, dilation_rate, data_format)

    @property
    def operator(self):
        """The layer's operator as a value."""
        return ChannelShift()

    def call(self, inputs):
        kernel = K.convert_to_tensor(kernel_of(*self.kernel_size, inputs.shape[-1]))
        return ops.depthwise_conv2d(inputs, K.cast(kernel, inputs.dtype), **window_of(self))

    def compute_output_shape(self, input_shape):
        return keras.layers.DepthwiseConv2D(self.kernel_size, **window_of(self)).compute_output_shape(input_shape)

    def get_config(self):
        own = {"kernel_size": self.kernel_size, "data_format": self.data_format}
        return {**super().get_config(), **own, **window_of(self)}
