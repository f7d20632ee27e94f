"""What the layers share: saving of all weights, and the quantizer of their inputs."""

import keras
from keras import ops as K

from saaug_keras import _validate, ops

RANGE_MOMENTUM = 0.95


class PersistAllWeights:
    """Conv2D and Dense save their kernel and bias alone; a subclass's further weights need Layer's own way."""

    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables


class QuantizedInput(PersistAllWeights):
    """A layer whose inputs are fake-quantized to `activation_bits`, None for not at all.

    `input_range` (2,) is a running average of the batches' smallest and largest value, taken while training; the first
    batch sets it. A layer that was never trained uses the batch at hand.
    """

    def _set_activation_bits(self, activation_bits):
        if activation_bits is not None:
            _validate.int_in(type(self).__name__, "activation_bits", activation_bits, 2, 8, " bits, or None")
        self.activation_bits = activation_bits

    def _add_range(self, name="input_range"):
        if self.activation_bits is None:
            return None
        return self.add_weight(
            name=name, shape=(2,), initializer="zeros", trainable=False, dtype="float32", autocast=False,
            aggregation="mean",
        )  # fmt: skip

    def _grid_of(self, inputs, training, variable):
        """(low, high) that the inputs are quantized with; while training, after moving the average."""
        low_high = K.stop_gradient(K.cast(K.stack([K.min(inputs), K.max(inputs)]), "float32"))
        stored = variable.value
        known = stored[1] > stored[0]
        if training:
            stored = K.where(known, RANGE_MOMENTUM * stored + (1 - RANGE_MOMENTUM) * low_high, low_high)
            variable.assign(stored)
            return stored[0], stored[1]
        stored = K.where(known, stored, low_high)
        return stored[0], stored[1]

    def _quantize(self, inputs, training, variable=None):
        """The inputs on their grid, and the grid's step (None without quantization)."""
        if self.activation_bits is None:
            return inputs, None
        low, high = self._grid_of(inputs, training, self.input_range if variable is None else variable)
        return (
            ops.fake_quantize(inputs, low, high, self.activation_bits),
            ops.quantization_scale(low, high, self.activation_bits),
        )


def check_channels_last(layer, data_format):
    """Our kernels are channels-last, as microcontrollers are."""
    if data_format not in (None, "channels_last"):
        raise ValueError(
            f"{type(layer).__name__}: `data_format` must be 'channels_last'. Received: data_format={data_format!r}."
        )
