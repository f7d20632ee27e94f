"""What the layers share: full-precision weights that are all saved, and the quantizer of their inputs."""

import keras
from keras import ops as K

from saaug_keras import _validate, ops
from saaug_keras.operators.operator import check_activation_bits

RANGE_MOMENTUM = 0.95


class PersistAllWeights:
    """Conv2D and Dense save their kernel and bias alone; a subclass's further weights need Layer's own way."""

    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables


class QuantizedLayer(PersistAllWeights):
    """A layer whose inputs are fake-quantized to `activation_bits`, None for not at all.

    `input_range` (2,) is a running average of the batches' smallest and largest value, taken while training; the first
    batch sets it. A layer that was never trained uses the batch at hand. A frozen layer (`trainable` False) keeps its
    range, as `keras.layers.BatchNormalization` keeps its statistics.
    """

    def add_weight(self, *args, **kwargs):
        # Kernels are rounded as they are stored: under mixed_float16 not after a rounding to float16.
        return super().add_weight(*args, **{"autocast": False, **kwargs})

    def _set_activation_bits(self, activation_bits):
        check_activation_bits(type(self).__name__, activation_bits)
        self.activation_bits = activation_bits

    def _add_range(self, name="input_range"):
        if self.activation_bits is None:
            return None
        return self.add_weight(name=name, shape=(2,), initializer="zeros", trainable=False, dtype="float32", aggregation="mean")

    def _grid_of(self, inputs, training, variable=None, *, activation=None):
        """(low, high, step) of the grid for inputs, of activated ones with `activation` (of `ops.CLIPS`).

        While training, the range is the running average after this batch has moved it, unless the layer is frozen.
        """
        variable = self.input_range if variable is None else variable
        training = training and self.trainable
        average, low, high, step = ops.observed_range(
            inputs,
            variable.value,
            momentum=RANGE_MOMENTUM if training else 1.0,
            bits=self.activation_bits,
            activation=activation,
        )
        if training:
            variable.assign(average)
        return low, high, step

    def _grid_step(self):
        """The step of `input_range`, None without quantization."""
        if self.activation_bits is None:
            return None
        low, high = self.input_range.value[0], self.input_range.value[1]
        # A layer that has seen no input has no grid yet.
        return K.where(high > low, ops.quantization_scale(low, high, self.activation_bits), 2.0**-40)

    def _quantize(self, inputs, training):
        """The inputs on their grid, and the grid's step (None without quantization)."""
        if self.activation_bits is None:
            return inputs, None
        low, high, step = self._grid_of(inputs, training)
        return ops.quantize_to(inputs, low, high, self.activation_bits), step

    def _convolve(self, convolution, inputs, training):
        """The layer of the deployed kernel: `convolution` is `ops.conv2d` or `ops.depthwise_conv2d`."""
        inputs, _ = self._quantize(inputs, training)
        kernel = K.cast(self.quantized_kernel(), inputs.dtype)
        return self._finish(convolution(inputs, kernel, **window_of(self)))

    def _finish(self, outputs):
        """Bias and activation."""
        if self.use_bias:
            outputs = outputs + K.cast(self.bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)


def check_layout(layer):
    """Our kernels are channels-last, as microcontrollers are, and have one group."""
    owner = type(layer).__name__
    _validate.one_of(owner, "data_format", layer.data_format, ("channels_last",))
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(
            f"{owner}: `groups` must be 1; use the depthwise layer for one group per channel. Received: groups={layer.groups}."
        )


def set_window(layer, kernel_size, strides, padding, dilation_rate, data_format):
    """Checks a window as Keras's convolutions have it, and makes it the layer's."""
    owner = type(layer).__name__
    data_format = keras.config.image_data_format() if data_format is None else data_format
    layer.data_format = _validate.one_of(owner, "data_format", data_format, ("channels_last",))
    layer.kernel_size = _validate.pair_of(owner, "kernel_size", kernel_size)
    layer.strides = _validate.pair_of(owner, "strides", strides)
    layer.dilation_rate = _validate.pair_of(owner, "dilation_rate", dilation_rate)
    layer.padding = _validate.one_of(owner, "padding", padding, ("same", "valid"))
    if max(layer.strides) > 1 and max(layer.dilation_rate) > 1:
        raise ValueError(
            f"{owner}: `strides` must be 1 where `dilation_rate` is not. "
            f"Received: strides={strides}, dilation_rate={dilation_rate}."
        )


def window_of(layer):
    """The window of a layer as arguments of a convolution, beside its kernel's size."""
    return {"strides": layer.strides, "padding": layer.padding, "dilation_rate": layer.dilation_rate}


def channels_of(tensor):
    """The channel count: an int, or a tensor where it is unknown while a graph is built."""
    return tensor.shape[-1] if tensor.shape[-1] is not None else K.shape(tensor)[-1]
