"""Layers that hold a multiplication-free target inside a larger multiplicative layer: one latent kernel for both.

outputs    m of the target   M - m more
         +-----------------+-----------+
n inputs |  target: view   |           |    The latent kernel (kh, kw, N, M). The target reads its leading block of
         |  of the block   |           |    n x m channels through a `View`: remap, then the operator's rounding. The
         +-----------------+           |    augmented layer multiplies with the whole kernel, that block replaced by
N - n    |      products               |    the view; an operator that is a distance has zeros there, and its own
more     |                             |    result is added to the leading outputs.
         +-----------------------------+
"""

import dataclasses

import keras
import numpy as np
from keras import ops as K

from saaug_keras import _validate, operators, ops, remap
from saaug_keras._backend import choose, has_sizes_at_run_time, subgraph
from saaug_keras.operators.layer import QuantizedLayer, channels_of, set_window, window_of
from saaug_keras.operators.shift_layers import assign_kernel, kernel_of

# The Laplacian of the standard deviation that add kernels have.
LAPLACE_SCALE = float(operators.Adder().start_scale() / np.sqrt(2))


@dataclasses.dataclass(frozen=True)
class View:
    """How a target sees its slice of a latent kernel; hashable, so that layers alike share what is traced of it.

    Its methods take the latent kernel and the tensors of `parts`, in that order.
    """

    operator: operators.Operator
    block: tuple  # the target's channels per axis of the kernel, None for all
    remap: bool | str
    mutable: bool
    laplace_scale: float
    channel_axes: tuple  # of an output channel

    @property
    def parts(self):
        """Names of the layer's weights that it takes beside the latent kernel."""
        remap = ("fc_kernel", "fc_bias") if self.remap else ()
        return remap + ("remap_values",) * (self.remap == "learned") + ("gate",) * self.mutable

    def _named(self, parts):
        return dict(zip(self.parts, parts, strict=True))

    def slices(self):
        return tuple(slice(channels) for channels in self.block)

    def remapped(self, latent, *parts, block=None, **options):
        """The target's kernel before any rounding; of other leading channels with `block`, `options` of
        `remap.remap_kernel` in the place of the layer's own."""
        kernel = latent[self.slices() if block is None else block]
        if not self.remap:
            return kernel
        parts = self._named(parts)
        return remap.remap_kernel(
            kernel,
            parts["fc_kernel"],
            parts["fc_bias"],
            moments=remap.moments(latent),
            values=parts.get("remap_values"),
            **{"distance": self.operator.distance, "laplace_scale": self.laplace_scale} | options,
        )

    def divergence(self, latent, *parts):
        """How far the learned remap's weights are from Laplacian ones, in nats."""
        return remap.laplace_divergence(self.remapped(latent, *parts, distance=True, laplace_scale=1.0))

    def rounded(self, kernel):
        """Of products: the kernel's deployed values."""
        return self.operator.round_shared(kernel, self.channel_axes)

    def target(self, latent, *parts):
        """The kernel of a target of products."""
        kernel = self.rounded(self.remapped(latent, *parts))
        if not self.mutable:
            return kernel
        return K.where(self._named(parts)["gate"] > 0.5, kernel, latent[self.slices()])

    def merged(self, latent, *parts):
        """The latent kernel with the target's in its place; of a distance, what still multiplies there."""
        if not self.operator.free:
            return latent
        if not self.operator.distance:
            block = self.target(latent, *parts)
        else:
            block = latent[self.slices()] * ((1 - self._named(parts)["gate"]) if self.mutable else 0.0)
        for axis in reversed(range(len(self.block))):
            if self.block[axis] is not None:
                rest = [slice(channels) for channels in self.block[:axis]]
                block = K.concatenate([block, latent[(*rest, slice(self.block[axis], None))]], axis=axis)
        return block


@subgraph
def target_kernel(latent, *parts, view):
    """`View.target`, traced once for layers alike."""
    return view.target(latent, *parts)


@subgraph
def divergence(latent, *parts, view):
    """`View.divergence`, traced once for layers alike."""
    return view.divergence(latent, *parts)


@subgraph
def merged_kernel(latent, *parts, view):
    """`View.merged`, traced once for layers alike."""
    return view.merged(latent, *parts)


class Hybrid(QuantizedLayer, keras.layers.Layer):
    """What the hybrid layers share: the latent kernel, the target's view of it, and the two input ranges."""

    _channel_axes = (-1,)
    _kind = "conv"

    def _set_options(
        self, *, operator, target_channels, remap, mutable, laplace_scale, extra, use_bias, kl_weight, input_activation
    ):
        owner = type(self).__name__
        self.operator = operator
        if self._kind not in operator.kinds:
            raise ValueError(
                f"{owner}: `operator` must be one that {self._kind} layers can have. Received: operator='{operator}', "
                f"which {', '.join(operator.kinds) or 'no'} layers can have."
            )
        self.target_channels = _validate.int_in(owner, "target_channels", target_channels, 1, 1 << 20)
        self.remap = _validate.one_of(owner, "remap", remap, (True, False, "learned"))
        self.kl_weight = _validate.number_in(owner, "kl_weight", kl_weight, 0, 1e6)
        self.mutable = _validate.one_of(owner, "mutable", mutable, (True, False))
        self.laplace_scale = _validate.number_in(owner, "laplace_scale", laplace_scale, 1e-6, 1e6)
        self.extra = _validate.one_of(owner, "extra", extra, ("multiplicative", "same"))
        self.use_bias = _validate.one_of(owner, "use_bias", use_bias, (True, False))
        self.input_activation = _validate.one_of(owner, "input_activation", input_activation, (None, *ops.CLIPS))
        self.activation_bits = operator.inputs_bits
        if operator.moves and use_bias:
            raise ValueError(
                f"{owner}: `use_bias` must be False for operator '{operator}', which computes nothing. Received: "
                f"use_bias={use_bias}."
            )
        if operator.distance and extra == "same" and not has_sizes_at_run_time():
            raise ValueError(
                f"{owner}: `extra` must be 'multiplicative' for operator '{operator}' on the JAX backend, where absent "
                "channels are zeros and zeros have a distance. Received: extra='same'. Use the TensorFlow backend."
            )

    def _check_channels(self, input_shape):
        """The channel count of the latent kernel, from the shape at build time."""
        if input_shape[-1] is None or input_shape[-1] < self.target_channels:
            raise ValueError(
                f"{type(self).__name__}: the inputs must have at least target_channels={self.target_channels} "
                f"channels. Received: input_shape={tuple(input_shape)}."
            )
        return input_shape[-1]

    def _check_inputs(self, inputs, augmented):
        """Channels of a call: the target's exactly, or between the target's and the latent kernel's."""
        count, most = inputs.shape[-1], self.kernel.shape[-2 if len(self.kernel.shape) == 4 else 0]
        low, high = (self.target_channels, most) if augmented else (self.target_channels,) * 2
        if count is not None and not low <= count <= high:
            must_be = f"{low} to {high}" if augmented else f"{low}"
            raise ValueError(
                f"{type(self).__name__}: `inputs` must have {must_be} channels. Received: shape {tuple(inputs.shape)}."
            )

    def _add_latent(self, shape, target_axes, fan_shape):
        """The latent kernel of `shape`, whose target is the leading block of `target_axes` {axis: size}."""
        operator, std = self.operator, self.operator.start_scale()
        remaps = operator.free and not operator.moves
        base = keras.initializers.HeNormal() if operator.distance else keras.initializers.GlorotNormal()
        self._view = View(
            operator=operator,
            block=tuple(target_axes.get(axis) for axis in range(len(shape))),
            remap=remaps and self.remap,
            mutable=self.mutable and operator.free,
            laplace_scale=self.laplace_scale,
            channel_axes=self._channel_axes,
        )
        # What a distance reads as it is, is compared with activations and starts at their size.
        as_it_is = operator.distance and not (self.remap and self.extra == "multiplicative")

        def initial(shape, dtype=None):
            value = K.reshape(base(fan_shape, dtype=dtype), shape)
            if as_it_is:
                mask = np.zeros(shape, "float32")
                mask[self._view.slices() if self.extra == "multiplicative" else ...] = 1
                value = K.where(mask > 0, keras.initializers.RandomNormal(stddev=std)(shape, dtype), value)
            return value

        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=initial)
        # The remap scales latent weights to add weights, so steps of the size of latent weights are scaled back.
        stored = None if as_it_is else float(np.sqrt(2 / np.prod(fan_shape[:-1])))
        block = tuple(target_axes.items()) if self.extra == "multiplicative" else None
        self.gradient_rule = operator.gradient_rule(stored, block)
        self.fc_kernel = self.fc_bias = self.remap_values = self.gate = None
        if remaps and self.remap:
            taps = int(np.prod(shape[:2])) if len(shape) == 4 else 1
            self.fc_kernel = self.add_weight(name="fc_kernel", shape=(taps, taps), initializer="identity", trainable=False)
            self.fc_bias = self.add_weight(name="fc_bias", shape=(taps,), initializer="zeros", trainable=False)
            if self.remap == "learned":
                self.remap_values = self.add_weight(
                    name="remap_values",
                    shape=(remap.BINS,),
                    initializer=lambda shape, dtype=None: K.convert_to_tensor(remap.learned_values(), dtype),
                )
        if operator.free and self.mutable:
            self.gate = self.add_weight(name="gate", shape=(), initializer="ones", trainable=False)
        self.input_range = self._add_range()
        self.augmented_range = self._add_range("augmented_range")

    def fit_fc(self, trained_kernel, twin_kernel, **options):
        """Pretrains the frozen FC of the remap by matching quantiles; see `remap.fit_fc`.

        Args:
            trained_kernel: of a convolution like this layer, trained as such; any channel counts.
            twin_kernel: of this layer's target, trained directly as a multiplication-free layer.
            options: further arguments of `remap.fit_fc`.
        Raises:
            ValueError: the layer has no remap.
        """
        if self.fc_kernel is None:
            raise ValueError(f"{type(self).__name__}: `remap` must be True and `operator` multiplication-free for fit_fc.")
        fc_kernel, fc_bias = remap.fit_fc(
            trained_kernel, twin_kernel, distance=self.operator.distance, laplace_scale=self.laplace_scale, **options
        )
        self.fc_kernel.assign(fc_kernel)
        self.fc_bias.assign(fc_bias)

    def _parts(self):
        """What the view takes beside the latent kernel."""
        return [getattr(self, name).value for name in self._view.parts]

    def remapped_kernel(self, block=None):
        """The target's float kernel, a view of the latent one: FC, then the remap; before any rounding."""
        return self._view.remapped(self.kernel.value, *self._parts(), block=block)

    def _merged_kernel(self, count, filters=None):
        """The augmented layer's multiplicative kernel for the leading `count` inputs and `filters` outputs.

        Its leading block is the target's; of a distance it is zero, or what still multiplies.
        """
        merged = merged_kernel(self.kernel.value, *self._parts(), view=self._view)
        if len(merged.shape) == 2:
            return merged[:count]
        return merged[:, :, :count] if filters is None else merged[:, :, :count, :filters]

    def _target_kernel(self):
        """The kernel of a target of products; where the gate is closed, of what still multiplies."""
        return target_kernel(self.kernel.value, *self._parts(), view=self._view)

    def _distance(self, inputs, step):
        """The target of a distance."""
        kernel = self.operator.round_on(self.remapped_kernel(), step)
        return self.operator.apply(self._kind, inputs, kernel, **window_of(self))

    def _where_open(self, free, multiplicative):
        """What one of two functions computes, by the gate; the other one costs nothing, except where JAX vectorises."""
        return free() if self.gate is None else choose(self.gate.value > 0.5, free, multiplicative)

    def _all_free(self, inputs, block, step):
        """An augmented layer that is multiplication-free as a whole, with that block of the latent kernel."""
        kernel = self.remapped_kernel(block)
        if not self.operator.distance:
            return self._multiply(inputs, self._view.rounded(kernel))
        return self.operator.apply(self._kind, inputs, self.operator.round_on(kernel, step), **window_of(self))

    def quantized_kernel(self):
        """The target's kernel as it is deployed."""
        kernel = self.remapped_kernel()
        if not self.operator.distance:
            return self._view.rounded(kernel)
        return self.operator.round_on(kernel, self._grid_step())

    def clipped_kernel(self):
        """The latent kernel of an add layer, its add weights clipped to the range of their inputs and half a step.

        A range that has seen no input clips nothing, and neither does a closed gate.
        """
        latent, ranges = self.kernel.value, [self.input_range.value]
        if self.extra == "same":
            ranges.append(self.augmented_range.value)
            chosen = np.True_
        else:
            chosen = np.zeros(latent.shape, bool)
            chosen[self._view.slices()] = True
        # Ranges that are still empty are (0, 0), and every range includes 0.
        low = K.minimum(K.min(K.stack([each[0] for each in ranges])), 0.0)
        high = K.maximum(K.max(K.stack([each[1] for each in ranges])), 0.0)
        half = ops.quantization_scale(low, high, self.activation_bits) / 2
        chosen = K.logical_and(chosen, high > low)
        if self.gate is not None:
            chosen = K.logical_and(chosen, self.gate.value > 0.5)
        return K.where(chosen, K.clip(latent, low - half, high + half), latent)

    def settled_kernel(self, pull):
        """The latent kernel, the target's block moved towards what it is rounded to; not while the gate is closed.

        k <- k - pull * (k - round(k)). Under a remap r, which keeps signs and order, k gets the same share of its own:
        k <- k * (1 - pull * (r - round(r)) / r).
        """
        block, latent = self._view.slices(), self.kernel.value
        if self.gate is not None:
            pull = pull * self.gate.value
        seen = self.remapped_kernel()
        away = K.stop_gradient(seen - self._view.rounded(seen))
        if self.remap:
            away = latent[block] * K.where(seen == 0, 0.0, away / K.where(seen == 0, 1.0, seen))
        if away.shape == latent.shape:
            return latent - pull * away
        edges = [(0, full - size) for full, size in zip(latent.shape, away.shape, strict=True)]
        return latent - pull * K.pad(away, edges)

    def baked_kernel(self):
        """The target's kernel for the plain layer, a NumPy array: the remap is in it, the rounding is not."""
        return np.array(K.convert_to_numpy(self.remapped_kernel()))

    def copy_target_to(self, layer):
        """Gives a plain layer (ShiftConv2D, keras.layers.Dense, ...) this layer's target.

        The plain layer then computes what this one computes on the target's inputs.

        Raises:
            ValueError: an option that it has otherwise: it would compute something else.
        """
        its = getattr(layer, "operator", operators.Conv())
        its = {"activation_bits": its.inputs_bits, **its.deployed_options()}
        for option, mine in {"activation_bits": self.activation_bits, **self.operator.deployed_options()}.items():
            if mine != its.get(option):
                raise ValueError(
                    f"{type(self).__name__}: `layer` must have {option}={mine!r}, as '{self.name}' was trained with. "
                    f"Received: {type(layer).__name__} '{layer.name}' with {option}={its.get(option)!r}."
                )
        if not self.operator.moves:
            assign_kernel(layer, self.baked_kernel())
        if self.use_bias:
            layer.bias.assign(K.convert_to_numpy(self.bias)[: layer.bias.shape[0]])
        if self.activation_bits is not None:
            layer.input_range.assign(K.convert_to_numpy(self.input_range))

    def start_from(self, layer) -> bool:
        """Takes the weights of a plain layer for the target's, as a start of training, and says whether they fit.

        What a kernel multiplies and what it is compared with are no start for each other, and neither are other shapes.
        The latent kernel gets the layer's kernel as it is: under a remap the target sees it through that.
        """
        its = getattr(layer, "operator", operators.Conv())
        if its.moves or self.operator.moves or its.distance != self.operator.distance:
            return False
        kernel, block = K.convert_to_numpy(kernel_of(layer)), self._view.slices()
        latent = np.array(K.convert_to_numpy(self.kernel))
        bias = np.array(K.convert_to_numpy(self.bias)) if self.use_bias else None
        if latent[block].shape != kernel.shape or self.use_bias != (getattr(layer, "bias", None) is not None):
            return False
        latent[block] = kernel
        self.kernel.assign(latent)
        if self.use_bias:
            bias[: layer.bias.shape[0]] = K.convert_to_numpy(layer.bias)
            self.bias.assign(bias)
        if self.activation_bits is not None and hasattr(layer, "input_range"):
            self.input_range.assign(K.convert_to_numpy(layer.input_range))
        return True

    def _quantize_target(self, inputs, augmented, training):
        """The activated inputs with the target's channels on their grid, those channels alone, and the grid's step."""
        if training and not augmented and self.remap_values is not None:
            self.add_loss(self.kl_weight * divergence(self.kernel.value, *self._parts(), view=self._view))
        activation, count = self.input_activation, self.target_channels
        if self.activation_bits is None:
            inputs = inputs if activation is None else ops.CLIPS[activation](inputs)
            return inputs, inputs[..., :count], None
        whole = not augmented or self.extra == "same" or inputs.shape[-1] == count
        low, high, step = self._grid_of(
            inputs if whole else inputs[..., :count],
            training,
            self.augmented_range if augmented else self.input_range,
            activation=activation,
        )
        options = {"channels": None if whole else count, "activation": activation, "fused": bool(training)}
        if self.operator.distance:
            return *ops.activate_and_quantize(inputs, low, high, self.activation_bits, split=True, **options), step
        return ops.activate_and_quantize(inputs, low, high, self.activation_bits, **options), None, step

    def get_config(self):
        config = {
            **super().get_config(),
            "operator": str(self.operator),
            "target_channels": self.target_channels,
            "remap": self.remap,
            "kl_weight": self.kl_weight,
            "mutable": self.mutable,
            "laplace_scale": self.laplace_scale,
            "extra": self.extra,
            "use_bias": self.use_bias,
            "input_activation": self.input_activation,
        }
        if hasattr(self, "kernel_size"):
            config |= {"kernel_size": self.kernel_size, **window_of(self)}
        return config


# Options of the hybrid layers, beside those of the operator and of Keras's layer, with their defaults.
OPTIONS = {
    "operator": "shift",
    "remap": True,
    "kl_weight": 0.1,
    "mutable": False,
    "laplace_scale": LAPLACE_SCALE,
    "extra": "multiplicative",
    "use_bias": False,
    "input_activation": None,
}


def _sorted_out(owner, options):
    """(those of `OPTIONS`, of Keras's layer); those of the operator go into it."""
    mine = {**OPTIONS, **{key: options[key] for key in options if key in OPTIONS}}
    operator = operators.parse(mine["operator"], owner)
    ours = {*OPTIONS, *operator.options(), *operators.option_names()}
    layer_options = {key: options[key] for key in options if key not in ours}
    return {**mine, "operator": operator.with_options(options)}, layer_options


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridConv2D(Hybrid):
    """2D convolution whose leading block is multiplication-free.

        Y_t = MF(q(X_t)) + M(X_a),    Y_a = M([q(X_t), X_a]),    Y = concat(Y_t, Y_a)

    X_t are the first `target_channels` inputs, quantized once; Y_t the first `target_filters` outputs; M the ordinary
    convolution with the latent `kernel`; MF the target's operator on its view of the latent kernel's leading block,
    `remap.remap_kernel` followed by the rounding of the plain layer.

    Args:
        filters: int >= 1, outputs of the latent kernel; kernel_size, strides, padding, dilation_rate: as
            `keras.layers.Conv2D`, but padding "same" and use_bias False by default.
        target_filters, target_channels: outputs and inputs of the target.
        operator: the target's, an `operators.Operator` or its text, as "shift5". Its options may also stand here by name:
            weight_bits, zero_code, exponent_scope, variant, activation_bits, and gradient_scale, as for `ShiftConv2D` and
            `AdderConv2D`. "conv" has no quantization and no remap. In variant "ps" gradients pass straight through the
            rounding of log2|k| in the place of k: the shared kernel's form of DeepShift-PS.
        remap: whether the target sees its slice through the Gaussian-to-Laplace remap; "learned" for ShiftAddNAS's way,
            a learned function (the weight `remap_values`) in the place of the quantile map.
        kl_weight: number >= 0, weight of the loss that draws the learned remap's weights to Laplacian ones
            (`remap.laplace_divergence`).
        mutable: adds the weight `gate`, 1 = multiplication-free target, 0 = the target still multiplies.
        extra: "multiplicative"; or "same" for an augmented layer that is multiplication-free as a whole.
        laplace_scale: number > 0, of the remapped add kernel; prior knowledge, the standard deviation of add kernels
            divided by sqrt 2.
        input_activation: "relu" or "relu6", applied to the inputs before they are quantized, in the same loop over
            memory; None for none.
    Call:
        inputs (N, H, W, c). augmented False: the target alone, c = target_channels -> (N, H', W', target_filters). True:
        the augmented layer, from c leading channels; `filters`, an int or int tensor in [target_filters, filters], says
        how many outputs, None all. With a tensor, TensorFlow slices; JAX, whose shapes are static, computes all outputs
        and zeroes those from `filters` on.
    Raises:
        ValueError: an option out of its range, channels first, too few or too many channels, or an operator
            that is a distance with extra "same" on JAX.
    Source: ShiftAddAug, arXiv:2407.02881, section 3.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        target_filters,
        target_channels,
        strides=1,
        padding="same",
        dilation_rate=1,
        data_format=None,
        **options,
    ):
        mine, layer_options = _sorted_out(type(self).__name__, options)
        super().__init__(**layer_options)
        self.filters = _validate.int_in("HybridConv2D", "filters", filters, 1, 1 << 20)
        self.target_filters = _validate.int_in("HybridConv2D", "target_filters", target_filters, 1, filters)
        set_window(self, kernel_size, strides, padding, dilation_rate, data_format)
        self._set_options(target_channels=target_channels, **mine)

    def build(self, input_shape):
        shape = (*self.kernel_size, self._check_channels(input_shape), self.filters)
        self._add_latent(shape, {2: self.target_channels, 3: self.target_filters}, shape)
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros") if self.use_bias else None
        self.built = True

    def call(self, inputs, augmented=False, filters=None, training=None):
        self._check_inputs(inputs, augmented)
        if not augmented:
            if filters is not None:
                raise ValueError(
                    f"HybridConv2D: `filters` must be None where `augmented` is False: the target has {self.target_filters}. "
                    f"Received: filters={filters}."
                )
            out = self._target(inputs, training)
            bias = self.bias.value[: self.target_filters] if self.use_bias else None
        else:
            filters = self.filters if filters is None else filters
            if isinstance(filters, (int, np.integer)):
                filters = _validate.int_in("HybridConv2D", "filters", filters, self.target_filters, self.filters)
            out, bias = self._augmented(inputs, filters, training)
        return out if bias is None else out + K.cast(bias, out.dtype)

    def _multiply(self, inputs, kernel):
        return ops.conv2d(inputs, K.cast(kernel, inputs.dtype), **window_of(self))

    def _target(self, inputs, training):
        n, m = self.target_channels, self.target_filters
        inputs, _, step = self._quantize_target(inputs, False, training)
        if not self.operator.distance:
            return self._multiply(inputs, self._target_kernel())
        return self._where_open(lambda: self._distance(inputs, step), lambda: self._multiply(inputs, self._merged_kernel(n, m)))

    def _augmented(self, inputs, filters, training):
        c = channels_of(inputs)
        masked = not isinstance(filters, int) and not has_sizes_at_run_time()
        count = self.filters if masked else filters
        inputs, head, step = self._quantize_target(inputs, True, training)
        if self.extra == "same" and self.operator.free:
            out = self._all_free(inputs, (slice(None), slice(None), slice(c), slice(count)), step)
        else:
            # Weights are concatenated, not activations: one convolution computes all that multiplies.
            out = self._multiply(inputs, self._merged_kernel(c, count))
            if self.operator.distance:
                products = out
                out = self._where_open(lambda: ops.add_to_head(products, self._distance(head, step)), lambda: products)
        bias = self.bias.value[:count] if self.use_bias else None
        if masked:
            mask = K.cast(K.arange(self.filters) < filters, out.dtype)
            out, bias = out * mask, None if bias is None else bias * K.cast(mask, bias.dtype)
        return out, bias

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "target_filters": self.target_filters}


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridDepthwise(Hybrid):
    """Depthwise 2D convolution whose leading channels are multiplication-free.

        Y_t = MF(q(X_t)),    Y_a = M(X_a),    Y = concat(Y_t, Y_a)

    Args:
        kernel_size, strides, padding, dilation_rate: as `keras.layers.DepthwiseConv2D`, but padding "same" and use_bias
            False by default. The depth multiplier is 1.
        target_channels: channels of the target.
        operator and its options, remap, mutable, extra, laplace_scale: as for `HybridConv2D`.
    Call:
        inputs (N, H, W, c) -> (N, H', W', c). augmented False: the target alone, c = target_channels; True: any leading
        slice of the latent kernel's channels with c >= target_channels.
    Raises:
        ValueError: as `HybridConv2D`.
    Source: ShiftAddAug, arXiv:2407.02881, section 3.
    """

    _channel_axes = (-2, -1)
    _kind = "depthwise"

    def __init__(
        self, kernel_size, *, target_channels, strides=1, padding="same", dilation_rate=1, data_format=None, **options
    ):
        mine, layer_options = _sorted_out(type(self).__name__, options)
        super().__init__(**layer_options)
        set_window(self, kernel_size, strides, padding, dilation_rate, data_format)
        self._set_options(target_channels=target_channels, **mine)

    def build(self, input_shape):
        channels = self._check_channels(input_shape)
        # A channel reads its own taps alone.
        self._add_latent((*self.kernel_size, channels, 1), {2: self.target_channels}, (*self.kernel_size, 1, channels))
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros") if self.use_bias else None
        self.built = True

    def call(self, inputs, augmented=False, training=None):
        self._check_inputs(inputs, augmented)
        n = self.target_channels
        inputs, head, step = self._quantize_target(inputs, augmented, training)
        c = channels_of(inputs) if augmented else n
        if augmented and self.extra == "same" and self.operator.free:
            out = self._all_free(inputs, (slice(None), slice(None), slice(c), slice(None)), step)
        elif not self.operator.distance:
            out = self._multiply(inputs, self._merged_kernel(c) if augmented else self._target_kernel())
        else:
            # With zeros in the place of the target's taps, or with what still multiplies.
            def products():
                return self._multiply(inputs, self._merged_kernel(c))

            def distances():
                out = self._distance(head, step)
                return ops.add_to_head(products(), out) if augmented and inputs.shape[-1] != n else out

            out = self._where_open(distances, products)
        return out + K.cast(self.bias.value[:c], out.dtype) if self.use_bias else out

    def _multiply(self, inputs, kernel):
        return ops.depthwise_conv2d(inputs, K.cast(kernel, inputs.dtype), **window_of(self))


@keras.saving.register_keras_serializable(package="saaug_keras")
class HybridDense(Hybrid):
    """Fully connected layer whose leading inputs are multiplication-free; its outputs are never widened.

        Y = MF(q(X_t)) + M(X_a);    the bias belongs to the multiplication-free part

    Args:
        units: int >= 1, outputs. use_bias: True by default.
        target_channels: inputs of the target.
        operator: one that dense layers can have; the classifier of an add network is a shift layer.
        remap, mutable, extra and the operator's options: as for `HybridConv2D`.
    Call:
        inputs (N, c) -> (N, units). augmented False: the target alone, c = target_channels; True: any leading slice of
        the latent kernel's inputs with c >= target_channels.
    Raises:
        ValueError: as `HybridConv2D`, or an operator without dense layers.
    Source: ShiftAddAug, arXiv:2407.02881, section 3.
    """

    _kind = "dense"

    def __init__(self, units, *, target_channels, **options):
        mine, layer_options = _sorted_out(type(self).__name__, {"use_bias": True, **options})
        super().__init__(**layer_options)
        self.units = _validate.int_in("HybridDense", "units", units, 1, 1 << 20)
        self._set_options(target_channels=target_channels, **mine)

    def build(self, input_shape):
        shape = (self._check_channels(input_shape), self.units)
        self._add_latent(shape, {0: self.target_channels}, shape)
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros") if self.use_bias else None
        self.built = True

    def call(self, inputs, augmented=False, training=None):
        self._check_inputs(inputs, augmented)
        n = self.target_channels
        inputs, _, _ = self._quantize_target(inputs, augmented, training)
        c = channels_of(inputs) if augmented else n
        if augmented and self.extra == "same" and self.operator.free:
            kernel = self._view.rounded(self.remapped_kernel((slice(c), slice(None))))
        else:
            kernel = self._merged_kernel(c) if augmented else self._target_kernel()
        out = K.matmul(inputs, K.cast(kernel, inputs.dtype))
        return out + K.cast(self.bias.value, out.dtype) if self.use_bias else out

    def get_config(self):
        return {**super().get_config(), "units": self.units}
