"""From a `NetSpec` to its layers in the order of computation: the only place that knows the topology."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from saaug_keras import _validate, operators
from saaug_keras.backbones.records import NetSpec
from saaug_keras.operators import Operator

KINDS = ("conv", "depthwise", "dense", "pool", "add", "multiply", "resize")
"""Kinds of a `LayerSpec`."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a lowered network; shapes are (H, W, C), "input" names the image.

    kind: of `KINDS`; "pool" is the global average, to 1x1, "multiply" has a second input that is 1x1 and broadcast,
    "resize" is bilinear. `operator` is None where there are no weights. `scale` says what augmentation may widen:
    "width" (the residual stream), "expand" (inside a block) or "fixed".
    """

    name: str
    kind: str
    operator: Operator | None
    inputs: tuple[str, ...]
    input_shape: tuple[int, int, int]
    output_shape: tuple[int, int, int]
    kernel_size: int = 1
    strides: int = 1
    dilation: int = 1
    use_bias: bool = False
    batch_norm: bool = False
    activation: str | None = None
    block: int | None = None
    scale: str = "width"

    @property
    def weight_count(self) -> int:
        """Numbers in the kernel."""
        if self.operator is not None and self.operator.moves:
            return 0
        taps = self.kernel_size**2
        if self.kind in ("conv", "dense"):
            return taps * self.input_shape[2] * self.output_shape[2]
        if self.kind == "depthwise":
            return taps * self.output_shape[2]
        _validate.one_of("LayerSpec", "kind", self.kind, KINDS)
        return 0

    @property
    def bias_count(self) -> int:
        """Numbers in the bias once the batch norm is folded."""
        return self.output_shape[2] if self.use_bias or self.batch_norm else 0

    @property
    def taps(self) -> int:
        """Kernel applications (MACs of a multiplicative layer): weights times output positions."""
        return self.weight_count * self.output_shape[0] * self.output_shape[1]


class _Lowering:
    """Appends layers, following names and shapes."""

    def __init__(self, input_shape):
        self.layers = []
        self.shapes = {"input": tuple(input_shape)}

    def add(self, name, kind, inputs, channels=None, *, operator=None, strides=1, height_width=None, **rest):
        inputs = (inputs,) if isinstance(inputs, str) else inputs
        height, width, in_channels = self.shapes[inputs[0]]
        if kind == "pool":
            height = width = 1
        elif height_width is not None:
            height, width = height_width
        out = (-(-height // strides), -(-width // strides), channels or in_channels)
        self.layers.append(LayerSpec(name, kind, operator, tuple(inputs), self.shapes[inputs[0]], out, strides=strides, **rest))
        self.shapes[name] = out
        return name

    def weighted(self, name, kind, inputs, channels, operator, *, activation=None, strides=1, kernel_size=1, **rest):
        """A convolution; of a cascade one after another, each with its batch norm, the first with the strides."""
        parts = operator.cascade()
        if operator.moves:
            rest["batch_norm"], activation = False, None
        elif len(parts) > 1:
            rest["batch_norm"] = True
        rest.setdefault("batch_norm", True)
        for index, (suffix, part) in enumerate(parts):
            inputs = self.add(
                name + suffix,
                kind,
                inputs,
                channels,
                operator=part,
                strides=1 if index else strides,
                kernel_size=kernel_size,
                activation=activation if index == len(parts) - 1 else None,
                **rest,
            )
        return inputs


@functools.lru_cache(maxsize=4096)
def lower(spec: NetSpec, *, all_blocks: bool = False) -> tuple[LayerSpec, ...]:
    """Flattens a network into its layers, in the order of computation.

    Args:
        spec: the network.
        all_blocks: include the blocks of depth augmentation (`kept=False`); layer names do not depend on it.
    """
    net = _Lowering(spec.input_shape)
    stem = spec.stem
    out = net.weighted(
        "stem",
        "conv",
        "input",
        stem.filters,
        stem.operator,
        activation=stem.activation,
        strides=stem.strides,
        kernel_size=stem.kernel_size,
    )
    ends = {}
    for index, block in enumerate(spec.blocks):
        if block.kept or all_blocks:
            out = _lower_block(net, index, block, out)
        ends[index] = out
    if spec.segmentation is not None:
        _lower_segmentation(net, spec, out, ends)
        return tuple(net.layers)
    pooled = False
    for index, head in enumerate(spec.head):
        if head.pooled and not pooled:
            out, pooled = net.add("pool", "pool", out, scale="width"), True
        out = net.weighted(
            f"head{index}",
            "conv",
            out,
            head.filters,
            head.operator,
            activation=head.activation,
            batch_norm=head.batch_norm,
            use_bias=not head.batch_norm,
        )
    if not pooled:
        out = net.add("pool", "pool", out)
    net.add(
        "classifier", "dense", out, spec.num_classes, operator=spec.classifier_operator.as_dense, use_bias=True, scale="fixed"
    )
    return tuple(net.layers)


def _lower_block(net, index, block, entry):
    name, inside = f"block{index}_", {"block": index, "scale": "expand"}
    expand, depthwise, project = operators.parse_block(block.operator)
    out = entry
    if block.expanded != net.shapes[entry][2]:
        out = net.weighted(name + "expand", "conv", out, block.expanded, expand, activation=block.activation, **inside)
    else:
        inside["scale"] = "width"  # without an expansion the depthwise layer works on the residual stream itself
    out = net.weighted(
        name + "depthwise",
        "depthwise",
        out,
        block.expanded,
        depthwise,
        activation=block.activation,
        strides=block.strides,
        kernel_size=block.kernel_size,
        dilation=block.dilation,
        **inside,
    )
    if block.squeeze_excite:
        gate = net.add(name + "se_pool", "pool", out, **inside)
        operator = block.squeeze_excite_operator.as_dense
        gate = net.add(
            name + "se_reduce",
            "conv",
            gate,
            block.squeeze_excite,
            operator=operator,
            use_bias=True,
            activation="relu",
            block=index,
            scale="fixed",
        )
        gate = net.add(
            name + "se_expand",
            "conv",
            gate,
            block.expanded,
            operator=operator,
            use_bias=True,
            activation="hard_sigmoid",
            **inside,
        )
        out = net.add(name + "se_scale", "multiply", (out, gate), **inside)
    out = net.weighted(name + "project", "conv", out, block.filters, project, block=index)
    if block.residual:
        out = net.add(name + "add", "add", (entry, out), block=index)
    return out


def _lower_segmentation(net, spec, out, ends):
    head = spec.segmentation
    operator = head.operator.as_dense
    features = net.weighted("seg_branch", "conv", out, head.filters, operator, activation="relu", scale="fixed")
    gate = net.add("seg_pool", "pool", out)
    gate = net.add(
        "seg_gate", "conv", gate, head.filters, operator=operator, use_bias=True, activation="hard_sigmoid", scale="fixed"
    )
    features = net.add("seg_scale", "multiply", (features, gate), scale="fixed")
    logits_from = features
    if head.low_level_block is not None:
        low = ends[head.low_level_block]
        height, width, _ = net.shapes[low]
        features = net.add("seg_up", "resize", features, height_width=(height, width), scale="fixed")
        skip = net.weighted("seg_skip", "conv", low, head.filters, operator, scale="fixed")
        logits_from = net.add("seg_sum", "add", (features, skip), scale="fixed")
    logits = net.add("classifier", "conv", logits_from, spec.num_classes, operator=operator, use_bias=True, scale="fixed")
    net.add("seg_logits", "resize", logits, height_width=spec.input_shape[:2], scale="fixed")


def count_parameters(spec: NetSpec) -> int:
    """Weights and biases of the deployed network, batch norm folded."""
    return sum(layer.weight_count + layer.bias_count for layer in lower(spec))


def count_macs(spec: NetSpec) -> int:
    """Kernel applications of one inference: the MACs of the multiplicative network (1 MAC = 1 multiply + 1 add)."""
    return sum(layer.taps for layer in lower(spec))
