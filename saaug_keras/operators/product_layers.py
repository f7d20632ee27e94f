"""Plain layers of any operator that multiplies with rounded weights: what an operator has that brings none of its own."""

import keras
from keras import ops as K

from saaug_keras import ops
from saaug_keras.operators.layer import QuantizedLayer, check_layout
from saaug_keras.operators.names import parse


class RoundedWeights(QuantizedLayer):
    """Weights rounded by an operator, and inputs on the grid that it asks for."""

    _channel_axes = (-1,)

    def _set_operator(self, operator):
        self.operator = parse(operator, type(self).__name__)
        if self.operator.distance or self.operator.moves:
            raise ValueError(
                f"{type(self).__name__}: `operator` must be one of products. Received: operator='{self.operator}', which "
                f"{'has distances' if self.operator.distance else 'moves its inputs'} in their place."
            )
        self._set_activation_bits(self.operator.inputs_bits)

    def build(self, input_shape):
        super().build(input_shape)
        self.input_range = self._add_range()
        self.built = True

    def quantized_kernel(self):
        """The kernel that is deployed."""
        return self.operator.round(self.kernel.value, self._channel_axes)

    def get_config(self):
        return {**super().get_config(), "operator": str(self.operator)}


@keras.saving.register_keras_serializable(package="saaug_keras")
class RoundedConv2D(RoundedWeights, keras.layers.Conv2D):
    """2D convolution with the weights of an operator.

        y = conv2d(q(x), round(k)) + b

    Args:
        filters, kernel_size, **kwargs: as `keras.layers.Conv2D`, channels last, one group.
        operator: an `operators.Operator` of products, or its text; its `round` gives the deployed weights and its
            `inputs_bits` the grid of the fake-quantized inputs.
    Shapes:
        inputs (N, H, W, C) -> output (N, H', W', filters), compute dtype; kernel (kh, kw, C, filters).
    Raises:
        ValueError: an unknown operator or a distance, channels first, or more than one group.
    """

    def __init__(self, filters, kernel_size, *, operator, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)
        check_layout(self)
        self._set_operator(operator)

    def call(self, inputs, training=None):
        return self._convolve(ops.conv2d, inputs, training)


@keras.saving.register_keras_serializable(package="saaug_keras")
class RoundedDepthwiseConv2D(RoundedWeights, keras.layers.DepthwiseConv2D):
    """Depthwise 2D convolution with the weights of an operator; see `RoundedConv2D`."""

    _channel_axes = (-2, -1)

    def __init__(self, kernel_size, *, operator, **kwargs):
        super().__init__(kernel_size, **kwargs)
        check_layout(self)
        self._set_operator(operator)

    def call(self, inputs, training=None):
        return self._convolve(ops.depthwise_conv2d, inputs, training)


@keras.saving.register_keras_serializable(package="saaug_keras")
class RoundedDense(RoundedWeights, keras.layers.Dense):
    """Fully connected layer with the weights of an operator; see `RoundedConv2D`."""

    def __init__(self, units, *, operator, **kwargs):
        super().__init__(units, **kwargs)
        self._set_operator(operator)

    def call(self, inputs, training=None):
        inputs, _ = self._quantize(inputs, training)
        return self._finish(K.matmul(inputs, K.cast(self.quantized_kernel(), inputs.dtype)))
