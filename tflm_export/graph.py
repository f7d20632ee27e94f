"""Keras functional model -> a list of frozen `Op` records.

Batch norm is folded, ReLU, ReLU6 and hard-sigmoid are fused, padding is made explicit, dropout and identities are gone.
The private names of Keras graphs are used here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass

import keras
import numpy as np

from saaug_keras import _validate
from saaug_keras import layers as ours
from saaug_keras import ops as saaug_ops
from saaug_keras.operators.channelshift import kernel_of
from tflm_export import operators
from tflm_export.checking import MOST_JOINED

WEIGHTED = ("conv", "depthwise", "dense")
CLAMPS = {None: (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hard_sigmoid": (0.0, 1.0)}

KINDS = (
    "add",
    "average_pool",
    "channel_shift",
    "concatenate",
    "conv",
    "dense",
    "depthwise",
    "hard_swish",
    "leaky_relu",
    "max_pool",
    "mean",
    "multiply",
    "pad",
    "reshape",
    "resize",
    "sigmoid",
    "softmax",
)

_L = keras.layers
_WITH_WEIGHTS = {layer: operator for operator in operators.ALL for layer in operator.layers()}
_HYBRID = (ours.HybridConv2D, ours.HybridDepthwise, ours.HybridDense, ours.HybridBatchNormalization)
_DROPPED = (
    _L.Dropout,
    _L.SpatialDropout2D,
    _L.GaussianDropout,
    _L.GaussianNoise,
    _L.AlphaDropout,
    _L.Identity,
    _L.ActivityRegularization,
)
_KNOWN = (
    *_WITH_WEIGHTS,
    *_HYBRID,
    *_DROPPED,
    _L.BatchNormalization,
    _L.ReLU,
    _L.Activation,
    _L.Softmax,
    _L.Add,
    _L.Multiply,
    _L.GlobalAveragePooling2D,
    _L.MaxPooling2D,
    _L.AveragePooling2D,
    _L.Flatten,
    _L.Reshape,
    _L.Resizing,
    _L.UpSampling2D,
    _L.Rescaling,
    _L.ZeroPadding2D,
    _L.SeparableConv2D,
    _L.Concatenate,
    _L.LeakyReLU,
    ours.ChannelShift2D,
)
_WITH_A_NUMBER = ("Add", "Divide", "Multiply", "Subtract", "TrueDivide")  # operations on tensors
LEAKY_SLOPE = 0.2  # of keras.activations.leaky_relu
# What a subclass of a known layer may define anew: none of it is run when the layer computes.
_HARMLESS = {
    "build",
    "get_config",
    "from_config",
    "get_build_config",
    "build_from_config",
    "save_own_variables",
    "load_own_variables",
}
_HARMFUL_DUNDERS = {"__call__", "__getattr__", "__getattribute__", "__new__", "__setattr__"}


@dataclass(frozen=True, eq=False)
class Weights:
    """What a weighted op computes: y = gain * operator(x, kernel) + bias, per output channel.

    Args:
        operator: what is summed of inputs and weights, as "conv": products.
        kernel: float32 (O, kernel_h, kernel_w, I), the deployed kernel before the batch norm; I = 1 for depthwise.
        gain, bias: float64 (O,), batch norm and the layer's bias together.
        levels: of a shift kernel, how many exponents its layer can use; else 0.
        input_range: (low, high) that the layer's input quantizer was trained with, or None.
        input_bits: of that quantizer.
    """

    operator: operators.Deployed
    kernel: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    levels: int = 0
    input_range: tuple[float, float] | None = None
    input_bits: int = 8


@dataclass(frozen=True, eq=False)
class Op:
    """One operation of the deployed network.

    Args:
        kind: "conv", "depthwise", "dense", "add", "multiply", "mean" (over height and width), "resize" (bilinear,
            half-pixel centres), "hard_swish", "max_pool", "average_pool", "pad", "reshape", "softmax", "sigmoid",
            "leaky_relu", "concatenate" or "channel_shift" (see `saaug_keras.layers.ChannelShift2D`).
        name: of the Keras layer that it began with; unique.
        inputs, output: tensor names.
        activation: fused: None, "relu", "relu6" or "hard_sigmoid" (the last is folded into gain and bias, the clamp to
            [0, 1] remains).
        kernel_size, strides, dilation: (h, w).
        pads: zeros at (top, left, bottom, right).
        slope: of a leaky ReLU, below 0.
        axis: of a concatenation, without the batch: 0 is the first of the shape.
        layers: names of the Keras layers that it stands for, in order.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    weights: Weights | None = None
    activation: str | None = None
    kernel_size: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    slope: float = 0.0
    axis: int = 0
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Graph:
    """Ops in the order of computation. `shapes` gives (H, W, C) or (C,) of every tensor, without the batch."""

    name: str
    ops: tuple[Op, ...]
    shapes: dict[str, tuple[int, ...]]
    input: str
    output: str

    def consumers(self, tensor):
        """The ops that read a tensor."""
        return [op for op in self.ops if tensor in op.inputs]


def lower(model) -> Graph:
    """Lowers a functional or sequential model with one input and one output.

    A layer is known by its class. A subclass is taken for its parent only where it defines nothing of the parent's anew
    but constructor, `build`, configuration and saving: what else it overrides might be its arithmetic.

    Raises:
        TypeError: not such a model.
        ValueError: a layer that export does not know, or that computes in its own way; the message names it.
    """
    if not isinstance(model, keras.Model) or not hasattr(_functional(model), "_nodes_by_depth"):
        raise TypeError(
            "tflm_export: `model` must be a built functional or sequential keras.Model. Received: "
            f"model={type(model).__name__}. An AugmentedModel gives one by export_target()."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "tflm_export: `model` must have one input and one output. Received: "
            f"{_named(model.inputs, 'inputs')}; {_named(model.outputs, 'outputs')}."
        )
    return _Lowering(model).graph()


def _named(tensors, what):
    names = ", ".join(f"'{tensor._keras_history.operation.name}'" for tensor in tensors)
    return f"{len(tensors)} {what} ({names})"


def same_pads(size, kernel, stride, dilation):
    """(before, after) zeros of padding "same" along one axis; the odd one after, as TensorFlow does."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def output_size(size, kernel, stride, dilation, pads):
    """Positions of a window along one axis."""
    return (size + sum(pads) - (kernel - 1) * dilation - 1) // stride + 1


def padding_is_same(op: Op, input_shape):
    """Whether the op's zeros are those of padding "same" (True), none ("valid", False), or others (None)."""
    if not any(op.pads):
        return False
    vertical, horizontal = (same_pads(input_shape[i], op.kernel_size[i], op.strides[i], op.dilation[i]) for i in (0, 1))
    return True if op.pads == (vertical[0], horizontal[0], vertical[1], horizontal[1]) else None


# ---------------------------------------------------------------------------------------------------------------------


def _fail(layer, must_be, received):
    raise ValueError(f"tflm_export: layer '{layer.name}' ({type(layer).__name__}) {must_be}. Received: {received}.")


def _functional(model):
    """The functional model inside a Sequential, else the model itself."""
    return getattr(model, "_functional", None) or model


def _check_model(model):
    """Refuses a functional or sequential model whose class has a `call` of its own: its layers are not what it computes."""
    for cls in type(model).__mro__:
        if cls.__module__.startswith("keras."):
            break
        if {"call", "__call__"} & set(vars(cls)):
            _fail(model, "must compute what its layers compute", f"class {cls.__name__} with a `call` of its own")
    if {"call", "__call__"} & set(vars(model)):
        _fail(model, "must compute what its layers compute", "a `call` of its own")


def _known_class(layer):
    """The known class that a layer computes as, None for none; refuses what overrides more than is harmless."""
    classes = type(layer).__mro__
    known = next((cls for cls in classes if cls in _KNOWN), None)
    if known is None:
        return None
    defined = {name for cls in classes[: classes.index(known)] for name in vars(cls)}
    dunders = {name for name in defined if name.startswith("__") and name.endswith("__")}
    harmless = _HARMLESS | (_WITH_WEIGHTS[known].overridable if known in _WITH_WEIGHTS else set())
    own = {name for name in defined - dunders - harmless if hasattr(known, name)} | (dunders & _HARMFUL_DUNDERS)
    # Keras itself gives every layer a `build` and a `quantize` of its own.
    own |= {name for name in vars(layer) if callable(getattr(known, name, None))} - {"build", "quantize"}
    if own:
        _fail(
            layer,
            f"must compute as {known.__name__} does: export knows that arithmetic and no other. Use "
            f"{known.__name__} itself, or a subclass that overrides no more than constructor, build and configuration",
            f"a layer with its own {', '.join(sorted(own))}",
        )
    return known


def _flatten(model, env, calls):
    """Appends (operation, input keys, output key, output shape, numbers) of a model and of those nested in it, in order.
    Numbers are arguments beside the tensors, as (place, number): 3 in `3 * x` is (0, 3.0).

    `env` maps id(KerasTensor) to the key of the value; keys are ids of the tensors of the outermost place.
    """
    _check_model(model)
    inner = _functional(model)
    for depth in sorted(inner._nodes_by_depth, reverse=True):
        for node in inner._nodes_by_depth[depth]:
            operation = node.operation
            if type(operation).__name__ == "InputLayer":
                continue
            inputs = [env[id(tensor)] for tensor in node.input_tensors]
            if hasattr(_functional(operation), "_nodes_by_depth"):
                nested = dict(zip(map(id, operation.inputs), inputs, strict=True))
                nested = _flatten(operation, nested, calls)
                for tensor, inside in zip(node.output_tensors, operation.outputs, strict=True):
                    env[id(tensor)] = nested[id(inside)]
                continue
            if len(node.output_tensors) != 1:
                _fail(operation, "must have one output", f"{len(node.output_tensors)} outputs")
            # A layer in a nested model that is called twice has one node but two values.
            key = len(calls) + 1
            env[id(node.output_tensors[0])] = key
            calls.append((operation, inputs, key, tuple(node.output_tensors[0].shape[1:]), _numbers(node)))
    return env


def _numbers(node):
    """[(place, number)] of the arguments of an operation on tensors that are numbers."""
    if isinstance(node.operation, keras.layers.Layer):
        return []
    found = []
    for place, value in enumerate(node.arguments.args):
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            found.append((place, float(value)))
    return found


def _tuple2(value):
    return (value, value) if isinstance(value, int) else tuple(int(v) for v in value)


class _Lowering:
    """Walks the calls once, in order; every value is an `_Value`, and an op that can still take more is open."""

    def __init__(self, model):
        self.model = model
        source = model.inputs[0]
        shape = tuple(source.shape[1:])
        if len(shape) != 3 or None in shape:
            raise ValueError(
                f"tflm_export: the model's input must be images (H, W, C) of a known size. Received: shape={shape}."
            )
        self.calls = []
        env = _flatten(model, {id(source): 0}, self.calls)
        self.result = env[id(model.outputs[0])]
        self.uses = {self.result: 1}
        for _, inputs, *_ in self.calls:
            for key in inputs:
                self.uses[key] = self.uses.get(key, 0) + 1
        self.values = {0: "input"}  # key -> tensor name
        self.shapes = {"input": shape}
        self.pending = {}  # stand-in for a padded tensor -> (tensor, zeros, layer); its consumer takes the zeros over
        self.ops = {}  # output tensor -> Op
        self.names = set()

    def graph(self):
        for operation, inputs, key, shape, numbers in self.calls:
            self.values[key] = self.lower(operation, [self.values[k] for k in inputs], inputs, shape, numbers)
        output = self.values[self.result]
        if output in self.pending:
            output = self.emit_pad(output)
        if not self.ops:
            raise ValueError("tflm_export: the model has no layer that computes anything.")
        return Graph(self.model.name, tuple(self.ops.values()), self.shapes, "input", output)

    # ---- building blocks

    def unique(self, name):
        candidate, number = name, 1
        while candidate in self.names or candidate == "input":
            number += 1
            candidate = f"{name}_{number}"
        self.names.add(candidate)
        return candidate

    def emit(self, kind, layer, inputs, shape, **rest):
        name = self.unique(layer.name)
        op = Op(kind, name, tuple(inputs), name, layers=(layer.name,), **rest)
        self.ops[name] = op
        self.shapes[name] = tuple(shape)
        return name

    def extend(self, tensor, layer, **changes):
        """The op that makes `tensor` takes over one more layer."""
        op = self.ops[tensor]
        self.ops[tensor] = dataclasses.replace(op, layers=(*op.layers, layer.name), **changes)
        return tensor

    def open_op(self, tensor, key, kinds):
        """The op behind `tensor` if a following layer may be merged into it, else None."""
        op = self.ops.get(tensor)
        if op is None or op.kind not in kinds or op.activation is not None or self.uses[key] != 1:
            return None
        return op

    def emit_pad(self, stand_in):
        source, pads, layer = self.pending[stand_in]
        height, width, channels = self.shapes[source]
        shape = (height + pads[0] + pads[2], width + pads[1] + pads[3], channels)
        return self.emit("pad", layer, [source], shape, pads=pads)

    # ---- one call

    def lower(self, layer, tensors, keys, shape, numbers=()):
        kind = type(layer).__name__
        if isinstance(layer, _HYBRID):
            _fail(layer, "belongs to an augmented model; export the model that export_target() gives", kind)
        known = _known_class(layer)
        if known is None and not isinstance(layer, keras.layers.Layer) and type(layer).__module__.startswith("keras."):
            if len(tensors) == 1 and len(numbers) == 1 and kind in _WITH_A_NUMBER:
                return self.lower_number(layer, tensors[0], keys[0], *numbers[0])
            # `a + b`, `a * b` and keras.ops.concatenate of tensors
            known = {"Add": _L.Add, "Multiply": _L.Multiply, "Concatenate": _L.Concatenate}.get(kind)
        if known is None:
            names = ", ".join(cls.__name__ for cls in _KNOWN if cls not in _HYBRID)
            _fail(layer, f"is of a kind that export does not know; it knows {names}", kind)
        if getattr(layer, "data_format", None) not in (None, "channels_last"):
            _fail(layer, "must be channels-last", f"data_format={layer.data_format!r}")
        if getattr(layer, "quantization_mode", None) is not None:
            _fail(layer, "must not be quantized by Keras", f"quantization_mode={layer.quantization_mode!r}")
        if known in _DROPPED:
            return tensors[0]
        if isinstance(layer, keras.layers.ZeroPadding2D):
            return self.lower_padding(layer, tensors[0])
        if not isinstance(layer, (_L.Conv2D, _L.DepthwiseConv2D, _L.SeparableConv2D)):
            tensors = [self.emit_pad(t) if t in self.pending else t for t in tensors]
        if isinstance(layer, _L.SeparableConv2D):
            return self.lower_separable(layer, tensors[0], shape)
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            return self.lower_convolution("depthwise", layer, tensors[0], shape)
        if isinstance(layer, keras.layers.Conv2D):
            if layer.groups != 1:
                _fail(layer, "must have one group", f"groups={layer.groups}")
            return self.lower_convolution("conv", layer, tensors[0], shape)
        if isinstance(layer, keras.layers.Dense):
            return self.lower_dense(layer, tensors[0], shape)
        if isinstance(layer, keras.layers.BatchNormalization):
            return self.lower_batch_norm(layer, tensors[0], keys[0])
        if isinstance(layer, keras.layers.ReLU):
            negative = float(np.max(layer.negative_slope or 0))
            if float(layer.threshold or 0) or layer.max_value not in (None, 6) or (negative and layer.max_value):
                _fail(
                    layer,
                    "must be a plain ReLU, ReLU6 or leaky ReLU",
                    f"max_value={layer.max_value}, negative_slope={negative}, threshold={layer.threshold}",
                )
            if negative:
                return self.emit_leaky_relu(layer, tensors[0], negative)
            return self.lower_activation(layer, "relu" if layer.max_value is None else "relu6", tensors[0], keys[0])
        if known is _L.LeakyReLU:
            return self.emit_leaky_relu(layer, tensors[0], float(layer.negative_slope))
        if known is _L.Concatenate:
            return self.lower_concatenation(layer, tensors, shape)
        if isinstance(layer, keras.layers.Softmax):
            if layer.axis not in (-1, len(shape)):
                _fail(layer, "must have the last axis", f"axis={layer.axis}")
            return self.lower_activation(layer, "softmax", tensors[0], keys[0])
        if isinstance(layer, keras.layers.Activation):
            return self.lower_activation(layer, _activation_name(layer), tensors[0], keys[0])
        if isinstance(layer, keras.layers.Rescaling):
            gain, bias = (np.broadcast_to(np.asarray(v, "float64"), shape[-1:]) for v in (layer.scale, layer.offset))
            return self.lower_affine(layer, gain, bias, tensors[0])
        if known is _L.Add:
            return self.lower_pair("add", layer, tensors, shape)
        if known is _L.Multiply:
            return self.lower_pair("multiply", layer, tensors, shape)
        if isinstance(layer, keras.layers.GlobalAveragePooling2D):
            return self.emit("mean", layer, tensors, shape)
        if isinstance(layer, keras.layers.Flatten):
            return tensors[0] if len(self.shapes[tensors[0]]) == 1 else self.emit("reshape", layer, tensors, shape)
        if isinstance(layer, keras.layers.Reshape):
            same = self.shapes[tensors[0]] == tuple(shape)
            return tensors[0] if same else self.emit("reshape", layer, tensors, shape)
        if isinstance(layer, keras.layers.Resizing):
            odd = layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or getattr(layer, "antialias", False)
            if layer.interpolation != "bilinear" or odd:
                _fail(layer, "must resize bilinearly, without crop, pad or antialias", f"interpolation={layer.interpolation!r}")
            return self.emit("resize", layer, tensors, shape)
        if isinstance(layer, keras.layers.UpSampling2D):
            if layer.interpolation != "bilinear":
                _fail(layer, "must have interpolation 'bilinear'", f"interpolation={layer.interpolation!r}")
            return self.emit("resize", layer, tensors, shape)
        if known in (_L.MaxPooling2D, _L.AveragePooling2D):
            which = "max_pool" if known is _L.MaxPooling2D else "average_pool"
            return self.emit(which, layer, tensors, shape, **self.window(layer, layer.pool_size, tensors[0]))
        if known is ours.ChannelShift2D:
            return self.emit("channel_shift", layer, tensors, shape, **self.window(layer, layer.kernel_size, tensors[0]))
        raise NotImplementedError(f"tflm_export: {known.__name__} is listed as known, and nothing lowers it.")

    def window(self, layer, kernel_size, tensor, pads=(0, 0, 0, 0)):
        kernel, strides = _tuple2(kernel_size), _tuple2(layer.strides)
        dilation = _tuple2(getattr(layer, "dilation_rate", 1))
        if layer.padding == "same":
            height, width, _ = self.shapes[tensor]
            inner = (height + pads[0] + pads[2], width + pads[1] + pads[3])
            vertical, horizontal = (same_pads(inner[i], kernel[i], strides[i], dilation[i]) for i in (0, 1))
            pads = (pads[0] + vertical[0], pads[1] + horizontal[0], pads[2] + vertical[1], pads[3] + horizontal[1])
        elif layer.padding != "valid":
            _fail(layer, "must have padding 'same' or 'valid'", f"padding={layer.padding!r}")
        return {"kernel_size": kernel, "strides": strides, "dilation": dilation, "pads": pads}

    def lower_convolution(self, kind, layer, tensor, shape):
        source, pads, _ = self.pending.get(tensor, (tensor, (0, 0, 0, 0), None))
        kernel = _deployed_kernel(layer)
        kernel = kernel.transpose(3, 0, 1, 2) if kind == "conv" else _depthwise_rows(kernel)
        output = self.emit(
            kind, layer, [source], shape, weights=_weights(layer, kernel), **self.window(layer, layer.kernel_size, source, pads)
        )
        return self.lower_own_activation(layer, output)

    def lower_separable(self, layer, tensor, shape):
        """A depthwise convolution without bias or activation, then a 1x1 convolution."""
        source, pads, _ = self.pending.get(tensor, (tensor, (0, 0, 0, 0), None))
        depthwise, pointwise = (
            np.asarray(keras.ops.convert_to_numpy(kernel), "float32")
            for kernel in (layer.depthwise_kernel, layer.pointwise_kernel)
        )
        rows = _depthwise_rows(depthwise)
        nothing = np.zeros(len(rows))
        inner = self.emit(
            "depthwise",
            layer,
            [source],
            (*shape[:2], len(rows)),
            weights=Weights(operators.CONV, _finite(layer, rows), nothing + 1, nothing),
            **self.window(layer, layer.kernel_size, source, pads),
        )
        output = self.emit("conv", layer, [inner], shape, weights=_weights(layer, pointwise.transpose(3, 0, 1, 2)))
        return self.lower_own_activation(layer, output)

    def lower_dense(self, layer, tensor, shape):
        kernel = _deployed_kernel(layer).T
        op = self.ops.get(tensor)
        if op is not None and op.kind == "reshape" and len(shape) == 1:
            tensor = self.bypass(op)
        elif len(shape) > 1 and any(size != 1 for size in shape[:-1]):
            if len(shape) != 3:
                _fail(layer, "must work on vectors or images", f"output shape {shape}")
        kind = "dense" if len(shape) == 1 else "conv"
        weights = _weights(layer, kernel.reshape(kernel.shape[0], 1, 1, -1))
        return self.lower_own_activation(layer, self.emit(kind, layer, [tensor], shape, weights=weights))

    def bypass(self, op):
        """A fully connected layer reads its input flat: the reshape before it is not needed for it."""
        key = next(k for k, name in self.values.items() if name == op.output)
        if self.uses[key] == 1:
            del self.ops[op.output]
            del self.shapes[op.output]
        return op.inputs[0]

    def lower_own_activation(self, layer, tensor):
        name = _activation_name(layer)
        return tensor if name is None else self.activate(layer, name, tensor, self.ops[tensor], own=True)

    def lower_activation(self, layer, name, tensor, key):
        if name is None:
            return tensor
        return self.activate(layer, name, tensor, self.open_op(tensor, key, (*WEIGHTED, "add", "multiply")))

    def activate(self, layer, name, tensor, op, own=False):
        """Applies an activation to a tensor whose op, if not None, may be changed."""
        shape = self.shapes[tensor]
        if name in ("hard_swish", "softmax", "sigmoid"):
            return self.emit(name, layer, [tensor], shape)
        if name == "silu":
            return self.emit("multiply", layer, [tensor, self.emit("sigmoid", layer, [tensor], shape)], shape)
        if name == "leaky_relu":
            return self.emit_leaky_relu(layer, tensor, LEAKY_SLOPE)
        if name == "hard_sigmoid":
            if op is not None and op.kind in WEIGHTED:
                weights = dataclasses.replace(op.weights, gain=op.weights.gain / 6, bias=op.weights.bias / 6 + 0.5)
                changes = {"weights": weights, "activation": name}
                if own:
                    self.ops[tensor] = dataclasses.replace(op, **changes)
                    return tensor
                return self.extend(tensor, layer, **changes)
            sixth = np.full(shape[-1], 1 / 6)
            return self.lower_affine(layer, sixth, np.full(shape[-1], 0.5), tensor, name)
        if op is None:
            return self.lower_affine(layer, np.ones(shape[-1]), np.zeros(shape[-1]), tensor, name)
        if own:
            self.ops[tensor] = dataclasses.replace(op, activation=name)
            return tensor
        return self.extend(tensor, layer, activation=name)

    def emit_leaky_relu(self, layer, tensor, slope):
        if not 2.0**-10 <= slope <= 2.0**10:
            _fail(layer, "must have a negative slope from 1/1024 to 1024", f"negative_slope={slope:g}")
        return self.emit("leaky_relu", layer, [tensor], self.shapes[tensor], slope=slope)

    def lower_concatenation(self, layer, tensors, shape):
        axis = layer.axis if layer.axis >= 0 else layer.axis + len(shape) + 1
        if axis == 0:
            _fail(layer, "must join along an axis behind the batch", f"axis={layer.axis}")
        if len(tensors) > MOST_JOINED:
            _fail(
                layer,
                f"must have at most {MOST_JOINED} inputs, as TFLite Micro takes; join in two steps",
                f"{len(tensors)} inputs",
            )
        return tensors[0] if len(tensors) == 1 else self.emit("concatenate", layer, tensors, shape, axis=axis - 1)

    def lower_number(self, layer, tensor, key, place, number):
        """A tensor and a number: gain * x + bias, which the op before takes over where it can."""
        kind = type(layer).__name__
        wrong = kind in ("Divide", "TrueDivide") and (place == 0 or number == 0)
        if wrong or not math.isfinite(number) or (kind == "Multiply" and number == 0):
            _fail(layer, "must add, subtract, multiply by or divide by a finite number", f"{number} as argument {place}")
        tensor = self.emit_pad(tensor) if tensor in self.pending else tensor
        gain = {"Multiply": number, "Divide": 1 / (number or 1), "TrueDivide": 1 / (number or 1)}.get(kind, 1.0)
        bias = {"Add": number, "Subtract": -number}.get(kind, 0.0)
        if kind == "Subtract" and place == 0:
            gain, bias = -1.0, number
        op = self.ops.get(tensor)
        sixth = op is not None and op.activation == "relu6" and abs(6 * gain - 1) < 1e-6 and bias == 0
        if sixth and op.kind in WEIGHTED and self.uses[key] == 1:  # relu6(z) / 6 = min(max(z / 6, 0), 1)
            weights = dataclasses.replace(op.weights, gain=op.weights.gain / 6, bias=op.weights.bias / 6)
            return self.extend(tensor, layer, weights=weights, activation="hard_sigmoid")
        size = self.shapes[tensor][-1]
        op = self.open_op(tensor, key, WEIGHTED)
        if op is None:
            return self.lower_affine(layer, np.full(size, gain), np.full(size, bias), tensor)
        weights = dataclasses.replace(op.weights, gain=op.weights.gain * gain, bias=op.weights.bias * gain + bias)
        return self.extend(tensor, layer, weights=weights)

    def lower_affine(self, layer, gain, bias, tensor, activation=None):
        """gain * x + bias per channel that nothing before can take over: a 1x1 depthwise convolution."""
        shape = self.shapes[tensor]
        if len(shape) not in (1, 3):
            _fail(layer, "must work on images or vectors", f"shape {shape}")
        weights = Weights(operators.CONV, np.ones((shape[-1], 1, 1, 1), "float32"), np.array(gain), np.array(bias))
        if len(shape) == 3:
            return self.emit("depthwise", layer, [tensor], shape, weights=weights, activation=activation)
        pixel = (1, 1, *shape)  # a vector as an image of one pixel, and back
        tensor = self.emit("reshape", layer, [tensor], pixel)
        tensor = self.emit("depthwise", layer, [tensor], pixel, weights=weights, activation=activation)
        return self.emit("reshape", layer, [tensor], shape)

    def lower_batch_norm(self, layer, tensor, key):
        shape = self.shapes[tensor]
        axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
        if axis not in (-1, len(shape)):
            _fail(layer, "must normalise the last axis", f"axis={layer.axis}")
        gain, offset = _batch_norm(layer)
        op = self.open_op(tensor, key, WEIGHTED)
        if op is None:
            return self.lower_affine(layer, gain, offset, tensor)
        weights = dataclasses.replace(op.weights, gain=op.weights.gain * gain, bias=op.weights.bias * gain + offset)
        return self.extend(tensor, layer, weights=weights)

    def lower_pair(self, kind, layer, tensors, shape):
        if len(tensors) != 2:
            _fail(layer, "must have two tensors as inputs", f"{len(tensors)} inputs")
        shapes = [self.shapes[tensor] for tensor in tensors]
        if kind == "add" and shapes[0] != shapes[1]:
            _fail(layer, "must add tensors of one shape", f"{shapes[0]} and {shapes[1]}")
        if kind == "multiply":
            if shapes[0] != tuple(shape):
                tensors, shapes = tensors[::-1], shapes[::-1]
            if shapes[0] != tuple(shape) or (shapes[1] != shapes[0] and shapes[1] != (1, 1, shape[-1])):
                _fail(layer, "must multiply by a tensor of its shape or by (1, 1, C)", f"{shapes[0]} and {shapes[1]}")
        return self.emit(kind, layer, tensors, shape)

    def lower_padding(self, layer, tensor):
        (top, bottom), (left, right) = layer.padding
        source, pads, _ = self.pending.get(tensor, (tensor, (0, 0, 0, 0), None))
        stand_in = f"pending:{len(self.pending)}"
        self.pending[stand_in] = (source, (pads[0] + top, pads[1] + left, pads[2] + bottom, pads[3] + right), layer)
        return stand_in


def _activation_functions():
    """[(function, name)] of the activations that export knows; a function of the user's of that name is another one."""
    names = (
        "linear",
        "relu",
        "relu6",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "softmax",
        "sigmoid",
        "silu",
        "swish",
        "leaky_relu",
    )
    places = [keras.activations, keras.ops]
    if "tensorflow" in sys.modules:
        places.append(sys.modules["tensorflow"].nn)
    found = [(getattr(place, name, None), name) for place in places for name in names]
    aliases = {"linear": None, "hard_silu": "hard_swish", "swish": "silu"}
    return [(function, aliases.get(name, name)) for function, name in found if function is not None]


def _activation_name(layer):
    activation = layer.activation
    if activation is None:
        return None
    for function, name in _activation_functions():
        if activation is function:
            return name
    known = "Keras's own relu, relu6, leaky_relu, hard_sigmoid, hard_swish, sigmoid, silu, softmax or none"
    _fail(layer, f"must have activation {known}", f"activation={getattr(activation, '__name__', activation)!r}")


def _depthwise_rows(kernel):
    """(kernel_h, kernel_w, C, multiplier) -> (C * multiplier, kernel_h, kernel_w, 1)."""
    height, width, channels, multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, height, width, 1)


def _finite(layer, values):
    if not np.isfinite(values).all():
        _fail(layer, "must have finite weights", "NaN or infinity")
    return values


def _deployed_kernel(layer):
    kernel = layer.kernel if operators.trained_as(layer) is None else layer.quantized_kernel()
    return np.asarray(keras.ops.convert_to_numpy(kernel), "float32")


def _weights(layer, kernel):
    channels = kernel.shape[0]
    bias = layer.bias if layer.use_bias else None
    bias = np.zeros(channels) if bias is None else np.asarray(keras.ops.convert_to_numpy(bias), "float64")
    _finite(layer, kernel)
    _finite(layer, bias)
    operator, low_high, bits = operators.of_layer(layer), None, 8
    if operators.trained_as(layer) is not None and layer.activation_bits is not None:
        low, high = (float(v) for v in keras.ops.convert_to_numpy(layer.input_range))
        low_high, bits = (low, high) if high > low else None, layer.activation_bits
        if low_high is None and bits < 8:
            _fail(layer, "must have seen inputs in training: its range is not known", f"activation_bits={bits}")
    weights = Weights(operator, kernel, np.ones(channels), bias, 0, low_high, bits)
    return dataclasses.replace(weights, **operator.read(layer, kernel))


def _batch_norm(layer):
    mean, variance = (np.asarray(keras.ops.convert_to_numpy(v), "float64") for v in (layer.moving_mean, layer.moving_variance))
    gain = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        gain = gain * np.asarray(keras.ops.convert_to_numpy(layer.gamma), "float64")
    offset = -mean * gain
    if layer.center:
        offset = offset + np.asarray(keras.ops.convert_to_numpy(layer.beta), "float64")
    if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
        _fail(layer, "must have finite statistics", "NaN or infinity")
    return gain, offset


# ---------------------------------------------------------------------------------------------------------------------


def run_float(graph: Graph, images, unclamped=None) -> dict[str, np.ndarray]:
    """Computes every tensor in floating point, as the Keras model does, inputs of our layers quantized as trained.

    Args:
        graph: what `lower` gave.
        images: float32 (N, H, W, C).
        unclamped: a dict that takes the outputs of weighted ops before their activation, by op name; or None.
    Returns:
        Tensor name -> float32 (N, ...).
    """
    values = {graph.input: keras.ops.convert_to_tensor(np.asarray(images, "float32"))}
    for op in graph.ops:
        out = _float_op(op, [values[name] for name in op.inputs], graph.shapes[op.output])
        if unclamped is not None and op.weights is not None:
            unclamped[op.name] = np.asarray(keras.ops.convert_to_numpy(out))
        values[op.output] = out if op.activation is None else keras.ops.clip(out, *CLAMPS[op.activation])
    return {name: np.asarray(keras.ops.convert_to_numpy(value)) for name, value in values.items()}


def _float_op(op, inputs, shape):
    K = keras.ops
    x = inputs[0]
    if op.weights is not None:
        out = _float_weighted(op, x)
    elif op.kind == "add":
        out = x + inputs[1]
    elif op.kind == "multiply":
        out = x * inputs[1]
    elif op.kind == "mean":
        out = K.mean(x, axis=(1, 2), keepdims=len(shape) == 3)
    elif op.kind == "resize":
        out = K.image.resize(x, shape[:2], interpolation="bilinear", data_format="channels_last")
    elif op.kind == "pad":
        out = K.pad(x, _pad_widths(op.pads))
    elif op.kind in ("max_pool", "average_pool"):
        out = _float_pool(op, x)
    elif op.kind == "channel_shift":
        kernel = K.convert_to_tensor(kernel_of(*op.kernel_size, shape[-1]))
        window = {"strides": op.strides, "padding": "valid", "dilation_rate": op.dilation}
        out = saaug_ops.depthwise_conv2d(K.pad(x, _pad_widths(op.pads)), kernel, **window)
    elif op.kind == "reshape":
        out = K.reshape(x, (-1, *shape))
    elif op.kind == "hard_swish":
        out = K.hard_silu(x)
    elif op.kind == "softmax":
        out = K.softmax(x)
    elif op.kind == "sigmoid":
        out = K.sigmoid(x)
    elif op.kind == "leaky_relu":
        out = K.leaky_relu(x, op.slope)
    elif op.kind == "concatenate":
        out = K.concatenate(inputs, axis=1 + op.axis)
    else:
        _validate.one_of("tflm_export.run_float", "kind", op.kind, KINDS)
        raise NotImplementedError(f"tflm_export.run_float: kind {op.kind!r} without weights.")
    return out


def _pad_widths(pads):
    return ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0))


def _float_pool(op, x):
    K = keras.ops
    how = {"pool_size": op.kernel_size, "strides": op.strides, "padding": "valid", "data_format": "channels_last"}
    if op.kind == "max_pool":
        if any(op.pads):
            x = K.pad(x, _pad_widths(op.pads), constant_values=-np.inf)
        return K.max_pool(x, **how)
    counts = K.average_pool(K.pad(K.ones_like(x), _pad_widths(op.pads)), **how)
    return K.average_pool(K.pad(x, _pad_widths(op.pads)), **how) / counts


def _float_weighted(op, x):
    K = keras.ops
    weights = op.weights
    if weights.input_range is not None:
        x = saaug_ops.fake_quantize(x, *weights.input_range, weights.input_bits)
    channels = len(weights.kernel)
    if op.kind == "dense":
        x = K.reshape(x, (-1, 1, 1, weights.kernel.shape[3]))
    out = weights.operator.float_sums(op, x)
    out = out * np.asarray(weights.gain, "float32") + np.asarray(weights.bias, "float32")
    return K.reshape(out, (-1, channels)) if op.kind == "dense" else out
