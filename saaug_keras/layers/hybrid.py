"""Layers that hold a multiplication-free target inside a larger multiplicative layer: one latent kernel for both."""

import keras
import numpy as np
from keras import ops as K

from saaug_keras import _validate, ops, remap
from saaug_keras.layers import adder
from saaug_keras.layers._common import PersistAllWeights, check_channels_last
from saaug_keras.layers.shift import ShiftWeights

OPERATORS = ("adder", "conv", "shift")
SHIFT_SCALE = 0.1  # of the latent kernel's sigma: the narrow Laplacian that a shift kernel adds
LAPLACE_SCALE = adder.INITIALIZER_STD / np.sqrt(2)  # the Laplacian of the standard deviation that add kernels have


class Hybrid(ShiftWeights, keras.layers.Layer):
    """What the hybrid layers share: the latent kernel, the target's view of it, and the two input ranges."""

    def _set_options(
        self, *, operator, target_channels, remap, mutable, laplace_scale, gradient_scale, extra, weight_bits,
        zero_code, exponent_scope, variant, activation_bits, use_bias,
    ):  # fmt: skip
        owner = type(self).__name__
        self.operator = _validate.one_of(owner, "operator", operator, OPERATORS)
        self.target_channels = _validate.int_in(owner, "target_channels", target_channels, 1, 1 << 20)
        self.remap = bool(remap)
        self.mutable = bool(mutable)
        self.laplace_scale = _validate.number_in(owner, "laplace_scale", laplace_scale, 1e-6, 1e6)
        self.gradient_scale = _validate.number_in(owner, "gradient_scale", gradient_scale, 0, 1e3)
        self.extra = _validate.one_of(owner, "extra", extra, ("multiplicative", "same"))
        self.use_bias = bool(use_bias)
        self._set_shift_options(weight_bits, zero_code, exponent_scope, variant, activation_bits)
        if operator == "conv":
            self.activation_bits = None

    def _add_latent(self, shape, target_axes):
        """The latent kernel of `shape`, whose target is the leading block of `target_axes` {axis: size}."""
        base = keras.initializers.HeNormal() if self.operator == "adder" else keras.initializers.GlorotNormal()
        block = tuple(slice(target_axes.get(axis)) for axis in range(len(shape)))
        own_size = self.operator == "adder" and not (self.remap and self.extra == "multiplicative")

        def initial(shape, dtype=None):
            value = base(self._fan_shape(shape), dtype=dtype)
            value = K.reshape(value, shape)
            if own_size:  # read as it is by an add operator, which compares it with activations
                mask = np.zeros(shape, "float32")
                mask[block if self.extra == "multiplicative" else ...] = 1
                value = value * (1 - mask) + mask * keras.initializers.RandomNormal(stddev=adder.INITIALIZER_STD)(shape)
            return value

        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=initial, autocast=False)
        self._block = block
        if self.operator == "adder":
            self.kernel.adder_learning_rate = self.gradient_scale
            if self.extra == "multiplicative":
                self.kernel.adder_target = tuple(target_axes.items())
        if self.operator == "shift" and self.variant == "ps":
            target_shape = tuple(target_axes.get(axis, size) for axis, size in enumerate(shape))
            self.shift = self._add_shift(target_shape)
        else:
            self.shift = None
        self.fc_kernel = self.fc_bias = self.gate = None
        if self.operator != "conv":
            if self.remap:
                taps = self._taps(shape)
                frozen = {"trainable": False, "autocast": False}
                self.fc_kernel = self.add_weight(
                    name="fc_kernel", shape=(taps, taps), initializer="identity", **frozen
                )
                self.fc_bias = self.add_weight(name="fc_bias", shape=(taps,), initializer="zeros", **frozen)
            if self.mutable:
                self.gate = self.add_weight(
                    name="gate", shape=(), initializer="ones", trainable=False, autocast=False
                )
        self.input_range = self._add_range()
        self.augmented_range = self._add_range("augmented_range")

    @staticmethod
    def _fan_shape(shape):
        return shape

    @staticmethod
    def _taps(shape):
        return int(np.prod(shape[:2])) if len(shape) == 4 else 1

    def remapped_kernel(self, block=None):
        """The target's float kernel, a view of the latent one: FC, then the remap; before any rounding."""
        latent = self.kernel.value
        kernel = latent[self._block if block is None else block]
        if self.operator == "conv" or not self.remap:
            return kernel
        mean, std = K.stop_gradient(K.mean(latent)), K.stop_gradient(K.std(latent))
        taps = self.fc_bias.shape[0]
        flat = K.reshape(kernel, (taps, -1))
        through = K.reshape(K.matmul(self.fc_kernel.value, flat) + self.fc_bias.value[:, None], K.shape(kernel))
        if self.operator == "adder":
            return remap.gaussian_to_laplace(through, mean=mean, std=std, scale=self.laplace_scale)
        return through + remap.gaussian_to_laplace(through, mean=mean, std=std, scale=SHIFT_SCALE * std)

    def _target_kernel(self, block=None):
        """The kernel of a shift target as it is deployed."""
        kernel = self.remapped_kernel(block)
        kernel = self.combine(kernel, self.shift) if self.variant == "ps" else self.round_kernel(kernel)
        return kernel if self.gate is None else K.where(self.gate.value > 0.5, kernel, self.kernel.value[self._block])

    def _adder_parts(self, step):
        """The add kernel on the input's grid, its weight (1 or, where the gate is closed, 0), and what multiplies."""
        kernel = self.on_grid(self.remapped_kernel(), step)
        if self.gate is None:
            return kernel, None, None
        return kernel, self.gate.value, self.kernel.value[self._block] * (1 - self.gate.value)

    on_grid = adder.AdderWeights.on_grid

    def quantized_kernel(self):
        """The target's kernel as it is deployed."""
        if self.operator == "conv":
            return self.remapped_kernel()
        if self.operator == "shift":
            return self._target_kernel()
        if self.activation_bits is None:
            return self.remapped_kernel()
        low, high = self.input_range.value[0], self.input_range.value[1]
        return self.on_grid(self.remapped_kernel(), ops.quantization_scale(low, high, self.activation_bits))

    def baked_kernel(self):
        """The target's kernel for the plain layer: remap baked in, not rounded. NumPy array."""
        return np.array(keras.ops.convert_to_numpy(self.remapped_kernel()))

    def copy_target_to(self, layer):
        """Gives a plain layer (ShiftConv2D, keras.layers.Dense, ...) this layer's target."""
        layer.kernel.assign(self.baked_kernel())
        if self.use_bias:
            layer.bias.assign(keras.ops.convert_to_numpy(self.bias)[: layer.bias.shape[0]])
        if getattr(layer, "input_range", None) is not None:
            layer.input_range.assign(keras.ops.convert_to_numpy(self.input_range))
        if self.shift is not None:
            layer.shift.assign(keras.ops.convert_to_numpy(self.shift))

    def _quantize_target(self, inputs, augmented, training):
        """The inputs with the target's channels on their grid, and the grid's step."""
        if self.activation_bits is None:
            return inputs, None
        variable = self.augmented_range if augmented else self.input_range
        count = self.target_channels
        if not augmented or self.extra == "same":
            return self._quantize(inputs, training, variable)
        head, step = self._quantize(inputs[..., :count], training, variable)
        if inputs.shape[-1] == count:
            return head, step
        return K.concatenate([head, inputs[..., count:]], axis=-1), step

    def _options_config(self):
        return {
            "operator": self.operator,
            "target_channels": self.target_channels,
            "remap": self.remap,
            "mutable": self.mutable,
            "laplace_scale": self.laplace_scale,
            "gradient_scale": self.gradient_scale,
            "extra": self.extra,
            "use_bias": self.use_bias,
            **self._shift_config(),
        }


def _defaults(options):
    defaults = {
        "operator": "shift", "remap": True, "mutable": False, "laplace_scale": LAPLACE_SCALE, "gradient_scale": 0.2,
        "extra": "multiplicative", "weight_bits": 4, "zero_code": True, "exponent_scope": "channel", "variant": "q",
        "activation_bits": 8, "use_bias": False,
    }  # fmt: skip
    layer_options = {key: options[key] for key in options if key not in defaults}
    return {**defaults, **{key: options[key] for key in options if key in defaults}}, layer_options


def _channels(tensor):
    """The channel count: an int, or a tensor where it is unknown while a graph is built."""
    return tensor.shape[-1] if tensor.shape[-1] is not None else K.shape(tensor)[-1]


_OPTIONS = """
        operator: "shift", "adder" or "conv", the target's.
        remap: whether the target sees its slice through the Gaussian-to-Laplace remap.
        mutable: adds the weight `gate`, 1 = multiplication-free target, 0 = the target still multiplies.
        extra: "multiplicative", or "same" for a larger layer that is multiplication-free as a whole (ablation).
        laplace_scale: of the remapped add kernel; prior knowledge, the standard deviation of add kernels / sqrt 2.
        gradient_scale: AdderNet's eta, for the target's block of an add layer.
        weight_bits, zero_code, exponent_scope, variant, activation_bits: as for `ShiftConv2D`.
"""


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridConv2D(Hybrid):
    __doc__ = (
        """2D convolution whose leading block is multiplication-free.

        Y_t = MF(q(X_t)) + M(X_a),   Y_a = M([q(X_t), X_a]),   Y = concat(Y_t, Y_a)

    X_t are the first `target_channels` inputs, quantized once; Y_t the first `target_filters` outputs; M the ordinary
    convolution with the latent `kernel`, MF the target's operator on its view of the leading block.

    Args:
        filters: outputs of the latent kernel. kernel_size, strides, padding, dilation_rate: as `keras.layers.Conv2D`.
        target_filters, target_channels: outputs and inputs of the target."""
        + _OPTIONS
        + """    Call:
        inputs (N, H, W, c); filters: None computes the target alone from c = target_channels inputs; an int or int
        tensor >= target_filters that many outputs of the augmented layer. With a tensor, TensorFlow slices; JAX, whose
        shapes are static, computes all outputs and zeroes those from `filters` on.
    Source: ShiftAddAug, arXiv:2407.02881, section 3.
    """
    )
    _channel_axes = (-1,)

    def __init__(
        self, filters, kernel_size, *, target_filters, target_channels, strides=1, padding="same", dilation_rate=1,
        data_format=None, **options,
    ):  # fmt: skip
        mine, layer_options = _defaults(options)
        super().__init__(**layer_options)
        owner = "HybridConv2D"
        check_channels_last(self, data_format)
        self.filters = _validate.int_in(owner, "filters", filters, 1, 1 << 20)
        self.kernel_size = _validate.pair_of(owner, "kernel_size", kernel_size)
        self.strides = _validate.pair_of(owner, "strides", strides)
        self.dilation_rate = _validate.pair_of(owner, "dilation_rate", dilation_rate)
        self.padding = _validate.one_of(owner, "padding", padding, ("same", "valid"))
        self.target_filters = _validate.int_in(owner, "target_filters", target_filters, 1, filters)
        self._set_options(target_channels=target_channels, **mine)

    def build(self, input_shape):
        channels = _validate.int_in("HybridConv2D", "channels of the inputs", input_shape[-1], self.target_channels,
                                    1 << 20)  # fmt: skip
        self._add_latent((*self.kernel_size, channels, self.filters), {2: self.target_channels, 3: self.target_filters})
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros") if self.use_bias else None
        self.built = True

    def call(self, inputs, filters=None, training=None):
        if filters is None:
            out = self._target(inputs, training)
            bias = self.bias[: self.target_filters] if self.use_bias else None
        else:
            out, bias = self._augmented(inputs, filters, training)
        return out if bias is None else out + K.cast(bias, out.dtype)

    def _window(self):
        return {"strides": self.strides, "padding": self.padding, "dilation_rate": self.dilation_rate}

    def _multiply(self, inputs, kernel):
        return ops.conv2d(inputs, K.cast(kernel, inputs.dtype), **self._window())

    def _target(self, inputs, training):
        inputs, step = self._quantize_target(inputs, False, training)
        if self.operator == "conv":
            return self._multiply(inputs, self.remapped_kernel())
        if self.operator == "shift":
            return self._multiply(inputs, self._target_kernel())
        kernel, share, rest = self._adder_parts(step)
        out = ops.adder_conv2d(inputs, kernel, **self._window())
        return out if share is None else out * K.cast(share, out.dtype) + self._multiply(inputs, rest)

    def _augmented(self, inputs, filters, training):
        n, m, c = self.target_channels, self.target_filters, _channels(inputs)
        static = isinstance(filters, int) or keras.backend.backend() != "tensorflow"
        count = filters if isinstance(filters, int) else (self.filters if static else filters)
        latent = self.kernel.value
        inputs, step = self._quantize_target(inputs, True, training)
        active = latent[:, :, :c, :count]
        if self.operator == "conv":
            out = self._multiply(inputs, active)
        elif self.extra == "same":
            out = self._all_free(inputs, c, count, step)
        else:
            share = rest = None
            if self.operator == "shift":
                block = self._target_kernel()
            else:
                kernel, share, rest = self._adder_parts(step)
                block = K.zeros_like(kernel) if rest is None else rest
            top = K.concatenate([block, latent[:, :, :n, m:count]], axis=3)
            out = self._multiply(inputs, K.concatenate([top, latent[:, :, n:c, :count]], axis=2))
            if self.operator == "adder":
                y = ops.adder_conv2d(inputs[..., :n], kernel, **self._window())
                y = y if share is None else y * K.cast(share, y.dtype)
                out = K.concatenate([out[..., :m] + y, out[..., m:]], axis=-1)
        bias = self.bias[:count] if self.use_bias else None
        if static and not isinstance(filters, int):
            mask = K.cast(K.arange(self.filters) < filters, out.dtype)
            out, bias = out * mask, None if bias is None else bias * K.cast(mask, bias.dtype)
        return out, bias

    def _all_free(self, inputs, c, count, step):
        block = (slice(None), slice(None), slice(c), slice(count))
        if self.operator == "shift":
            return self._multiply(inputs, self.round_kernel(self.remapped_kernel(block)))
        return ops.adder_conv2d(inputs, self.on_grid(self.remapped_kernel(block), step), **self._window())

    def get_config(self):
        return {
            **super().get_config(), **self._options_config(), "filters": self.filters,
            "kernel_size": self.kernel_size, "target_filters": self.target_filters, "strides": self.strides,
            "padding": self.padding, "dilation_rate": self.dilation_rate,
        }  # fmt: skip


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridDepthwise(Hybrid):
    __doc__ = (
        """Depthwise 2D convolution whose leading channels are multiplication-free.

        Y_t = MF(q(X_t)),   Y_a = M(X_a),   Y = concat(Y_t, Y_a)

    Args:
        kernel_size, strides, padding, dilation_rate: as `keras.layers.DepthwiseConv2D`.
        target_channels: channels of the target."""
        + _OPTIONS
        + """    Call:
        inputs (N, H, W, c), c >= target_channels; augmented: False computes the target alone, c = target_channels.
    Source: ShiftAddAug, arXiv:2407.02881, section 3.
    """
    )
    _channel_axes = (-2, -1)

    def __init__(
        self, kernel_size, *, target_channels, strides=1, padding="same", dilation_rate=1, data_format=None, **options,
    ):  # fmt: skip
        mine, layer_options = _defaults(options)
        super().__init__(**layer_options)
        owner = "HybridDepthwise"
        check_channels_last(self, data_format)
        self.kernel_size = _validate.pair_of(owner, "kernel_size", kernel_size)
        self.strides = _validate.pair_of(owner, "strides", strides)
        self.dilation_rate = _validate.pair_of(owner, "dilation_rate", dilation_rate)
        self.padding = _validate.one_of(owner, "padding", padding, ("same", "valid"))
        self._set_options(target_channels=target_channels, **mine)

    @staticmethod
    def _fan_shape(shape):
        return (*shape[:2], 1, shape[2])  # each channel has its own taps alone

    def build(self, input_shape):
        channels = _validate.int_in("HybridDepthwise", "channels of the inputs", input_shape[-1], self.target_channels,
                                    1 << 20)  # fmt: skip
        self._add_latent((*self.kernel_size, channels, 1), {2: self.target_channels})
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros") if self.use_bias else None
        self.built = True

    def call(self, inputs, augmented=False, training=None):
        n = self.target_channels
        inputs, step = self._quantize_target(inputs, augmented, training)
        c = _channels(inputs) if augmented else n
        latent = self.kernel.value
        if self.operator == "conv":
            out = self._multiply(inputs, latent[:, :, :c])
        elif augmented and self.extra == "same":
            kernel = self.remapped_kernel((slice(None), slice(None), slice(c), slice(None)))
            if self.operator == "shift":
                out = self._multiply(inputs, self.round_kernel(kernel))
            else:
                out = ops.adder_depthwise_conv2d(inputs, self.on_grid(kernel, step), **self._window())
        elif self.operator == "shift":
            kernel = self._target_kernel()
            kernel = K.concatenate([kernel, latent[:, :, n:c]], axis=2) if augmented else kernel
            out = self._multiply(inputs, kernel)
        else:
            kernel, share, rest = self._adder_parts(step)
            target = inputs[..., :n]
            out = ops.adder_depthwise_conv2d(target, kernel, **self._window())
            if share is not None:
                out = out * K.cast(share, out.dtype) + self._multiply(target, rest)
            if augmented and inputs.shape[-1] != n:
                out = K.concatenate([out, self._multiply(inputs[..., n:], latent[:, :, n:c])], axis=-1)
        return out + K.cast(self.bias[:c], out.dtype) if self.use_bias else out

    def _window(self):
        return {"strides": self.strides, "padding": self.padding, "dilation_rate": self.dilation_rate}

    def _multiply(self, inputs, kernel):
        return ops.depthwise_conv2d(inputs, K.cast(kernel, inputs.dtype), **self._window())

    def get_config(self):
        return {
            **super().get_config(), **self._options_config(), "kernel_size": self.kernel_size,
            "strides": self.strides, "padding": self.padding, "dilation_rate": self.dilation_rate,
        }  # fmt: skip


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridDense(Hybrid):
    __doc__ = (
        """Fully connected layer whose leading inputs are multiplication-free; its outputs are never widened.

        Y = MF(q(X_t)) + M(X_a);   the bias belongs to the multiplication-free part

    Args:
        units: outputs.
        target_channels: inputs of the target."""
        + _OPTIONS
        + """    Call:
        inputs (N, c), c >= target_channels; augmented: False computes the target alone, c = target_channels.
    Raises:
        ValueError: operator "adder": a classifier of an add network is a shift layer.
    Source: ShiftAddAug, arXiv:2407.02881, section 3.
    """
    )
    _channel_axes = (-1,)

    def __init__(self, units, *, target_channels, **options):
        mine, layer_options = _defaults({"use_bias": True, **options})
        super().__init__(**layer_options)
        _validate.one_of("HybridDense", "operator", mine["operator"], ("conv", "shift"))
        self.units = _validate.int_in("HybridDense", "units", units, 1, 1 << 20)
        self._set_options(target_channels=target_channels, **mine)

    def build(self, input_shape):
        channels = _validate.int_in("HybridDense", "channels of the inputs", input_shape[-1], self.target_channels,
                                    1 << 20)  # fmt: skip
        self._add_latent((channels, self.units), {0: self.target_channels})
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros") if self.use_bias else None
        self.built = True

    def call(self, inputs, augmented=False, training=None):
        n = self.target_channels
        inputs, _ = self._quantize_target(inputs, augmented, training)
        c = _channels(inputs) if augmented else n
        latent = self.kernel.value
        if self.operator == "conv":
            kernel = latent[:c]
        elif augmented and self.extra == "same":
            kernel = self.round_kernel(self.remapped_kernel((slice(c), slice(None))))
        else:
            kernel = self._target_kernel()
            kernel = K.concatenate([kernel, latent[n:c]], axis=0) if augmented else kernel
        out = K.matmul(inputs, K.cast(kernel, inputs.dtype))
        return out + K.cast(self.bias, out.dtype) if self.use_bias else out

    def get_config(self):
        return {**super().get_config(), **self._options_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridBatchNormalization(PersistAllWeights, keras.layers.Layer):
    """Batch normalisation with shared scale and offset, and running statistics for target and augmented apart.

        y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

    Args:
        target_channels: channels of the target, a leading slice.
        momentum: number in [0, 1] of the running statistics; epsilon: number > 0 added to the variance.
    Call:
        inputs (N, H, W, c); augmented: whose statistics to use and update; the target has c = target_channels, an
        augmented network any leading slice of the channels.
    """

    def __init__(self, target_channels, *, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        owner = "HybridBatchNormalization"
        self.target_channels = _validate.int_in(owner, "target_channels", target_channels, 1, 1 << 20)
        self.momentum = _validate.number_in(owner, "momentum", momentum, 0, 1)
        self.epsilon = _validate.number_in(owner, "epsilon", epsilon, 1e-12, 1)

    def build(self, input_shape):
        channels, target = input_shape[-1], self.target_channels
        state = {"trainable": False, "autocast": False, "aggregation": "mean"}
        self.gamma = self.add_weight(name="gamma", shape=(channels,), initializer="ones", autocast=False)
        self.beta = self.add_weight(name="beta", shape=(channels,), initializer="zeros", autocast=False)
        self.moving_mean = self.add_weight(name="moving_mean", shape=(target,), initializer="zeros", **state)
        self.moving_variance = self.add_weight(name="moving_variance", shape=(target,), initializer="ones", **state)
        self.augmented_moving_mean = self.add_weight(
            name="augmented_moving_mean", shape=(channels,), initializer="zeros", **state
        )
        self.augmented_moving_variance = self.add_weight(
            name="augmented_moving_variance", shape=(channels,), initializer="ones", **state
        )
        self.built = True

    def call(self, inputs, augmented=False, training=None):
        c = _channels(inputs) if augmented else self.target_channels
        mean, variance = (
            (self.augmented_moving_mean, self.augmented_moving_variance)
            if augmented
            else (self.moving_mean, self.moving_variance)
        )
        gamma, beta = self.gamma.value[:c], self.beta.value[:c]
        if not training:
            return self._normalize(inputs, gamma, beta, mean.value[:c], variance.value[:c])
        out, batch_mean, batch_variance = self._normalize_batch(inputs, gamma, beta)
        for variable, batch in ((mean, batch_mean), (variance, batch_variance)):
            old = variable.value
            new = self.momentum * old[:c] + (1 - self.momentum) * K.stop_gradient(batch)
            variable.assign(K.concatenate([new, old[c:]], axis=0) if augmented else new)
        return out

    def _normalize(self, inputs, gamma, beta, mean, variance):
        if keras.backend.backend() == "tensorflow" and len(inputs.shape) == 4:
            import tensorflow as tf

            return tf.compat.v1.nn.fused_batch_norm(
                inputs, gamma, beta, mean=mean, variance=variance, epsilon=self.epsilon, is_training=False
            )[0]
        factor = gamma * K.rsqrt(variance + self.epsilon)
        return K.cast(K.cast(inputs, "float32") * factor + (beta - mean * factor), inputs.dtype)

    def _normalize_batch(self, inputs, gamma, beta):
        if keras.backend.backend() == "tensorflow" and len(inputs.shape) == 4:
            import tensorflow as tf

            out, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                inputs, gamma, beta, epsilon=self.epsilon, is_training=True
            )
            # The fused kernel gives the unbiased variance; Keras keeps the biased one.
            count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), "float32")
            return out, mean, variance * (count - 1) / count
        values = K.cast(inputs, "float32")
        mean, variance = K.moments(values, axes=tuple(range(len(inputs.shape) - 1)))
        return self._normalize(inputs, gamma, beta, mean, variance), mean, variance

    def reset_target_statistics(self):
        """The target's running statistics as at the start."""
        self.moving_mean.assign(K.zeros_like(self.moving_mean.value))
        self.moving_variance.assign(K.ones_like(self.moving_variance.value))

    def get_config(self):
        return {
            **super().get_config(), "target_channels": self.target_channels, "momentum": self.momentum,
            "epsilon": self.epsilon,
        }  # fmt: skip
