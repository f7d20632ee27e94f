"""Tiny backbones as data, and the one builder that turns them into Keras models.

A network is a `NetSpec`: a frozen record of a stem, inverted-residual blocks, heads and a classifier. `lower` flattens
it into `LayerSpec` records, the only place that knows the topology: the builder, the augmented network, the cost model
and the search all read its result.

Operators are values (`saaug_keras.operators`); a spec takes them or their texts, as "shift5", and writes the texts.

Sources: MobileNetV2 and MobileNetV3 in NetAug's tiny sizes (arXiv:2110.08890), ProxylessNAS (arXiv:1812.00332), MCUNet
(arXiv:2007.10319).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from saaug_keras import _validate, operators
from saaug_keras.operators import Operator

ACTIVATIONS = ("relu", "relu6", "hard_swish", "hard_sigmoid")
KINDS = ("conv", "depthwise", "dense", "pool", "add", "multiply", "resize")  # of a `LayerSpec`

# What `layer_options` may set of the layers in training, beside the options of operators. All else is the spec's.
LAYER_OPTIONS = ("extra", "kl_weight", "laplace_scale", "mutable", "remap")


def check_layer_options(owner: str, layer_options: dict | None, spec: NetSpec) -> dict:
    """Checks options of single layers: {layer name or "adder", "conv" or "shift": {option: value}}, as a dict.

    Raises:
        ValueError: neither a layer of the network nor a family, or an option that is not of `LAYER_OPTIONS`.
        TypeError: not a dict of dicts.
    """
    layer_options = {} if layer_options is None else layer_options
    if not isinstance(layer_options, dict):
        raise TypeError(
            f"{owner}: `layer_options` must be a dict of dicts, {{layer name or operator: {{option: value}}}}. "
            f"Received: layer_options={layer_options!r}."
        )
    layers = lower(spec, all_blocks=True)
    known = {*map(operators.parse, operators.names()), *(layer.operator for layer in layers if layer.operator)}
    of_operators = {option for operator in known if operator.kinds for option in operator.options()}
    owners = {*(operator.family for operator in known), *(layer.name for layer in layers)}
    for name, options in layer_options.items():
        _validate.one_of(owner, "layer_options", name, owners)
        if not isinstance(options, dict):
            raise TypeError(
                f"{owner}: `layer_options` must hold a dict of options for {name!r}. Received: {options!r}."
            )
        for option in options:
            _validate.one_of(owner, f"layer_options[{name!r}]", option, (*LAYER_OPTIONS, *sorted(of_operators)))
    return dict(layer_options)


def options_of(layer: LayerSpec, layer_options: dict | None) -> dict:
    """What `layer_options` say of one layer: its family's options, then its own."""
    layer_options = layer_options or {}
    return {**layer_options.get(layer.operator.family, {}), **layer_options.get(layer.name, {})}


def operator_of(layer: LayerSpec, layer_options: dict | None) -> Operator | None:
    """The operator of one layer with the options that `layer_options` set; None of one without weights."""
    if layer.operator is None or not layer_options:
        return layer.operator
    return layer.operator.with_options(options_of(layer, layer_options))


def _parse_fields(record, *names):
    """Operators of a frozen record that were given by text, as values."""
    for name in names:
        object.__setattr__(record, name, operators.parse(getattr(record, name), type(record).__name__))


def _as_text(data):
    """Nested plain data of a spec with the texts of operators in the place of their values."""
    if isinstance(data, Operator) or (isinstance(data, tuple) and data and isinstance(data[0], Operator)):
        return operators.to_text(data)
    if dataclasses.is_dataclass(data):
        return {field.name: _as_text(getattr(data, field.name)) for field in dataclasses.fields(data)}
    return type(data)(map(_as_text, data)) if isinstance(data, (list, tuple)) else data


@dataclass(frozen=True)
class StemSpec:
    """The first convolution: `filters` outputs, square kernel, batch norm and activation."""

    filters: int
    kernel_size: int = 3
    strides: int = 2
    activation: str = "relu6"
    operator: Operator | str = "conv"

    def __post_init__(self):
        _parse_fields(self, "operator")


@dataclass(frozen=True)
class BlockSpec:
    """One inverted residual: 1x1 expand (absent when `expanded` is the input's channel count), depthwise, 1x1 project.

    Args:
        filters: channels of the output.
        expanded: channels between expansion and projection.
        kernel_size, strides, dilation: of the depthwise layer.
        residual: the input is added to the output; needs stride 1 and as many input as output channels.
        operator: of the three convolutions, or three of them as "adder/shift/adder" (see `operators.parse_block`).
        activation: after expansion and depthwise; the projection is linear.
        squeeze_excite: channels of the bottleneck of squeeze-excite after the depthwise layer, 0 for none.
        squeeze_excite_operator: of its two 1x1 layers.
        kept: False marks depth augmentation: the block is trained and then leaves the target.
    """

    filters: int
    expanded: int
    kernel_size: int = 3
    strides: int = 1
    residual: bool = False
    operator: Operator | tuple[Operator, Operator, Operator] | str = "conv"
    activation: str = "relu6"
    squeeze_excite: int = 0
    squeeze_excite_operator: Operator | str = "conv"
    dilation: int = 1
    kept: bool = True

    def __post_init__(self):
        _parse_fields(self, "squeeze_excite_operator")
        three = operators.parse_block(self.operator, "BlockSpec")
        object.__setattr__(self, "operator", three[0] if len(set(three)) == 1 else three)


@dataclass(frozen=True)
class HeadSpec:
    """A 1x1 convolution after the blocks; `pooled` puts it behind the global average pooling."""

    filters: int
    activation: str = "relu6"
    operator: Operator | str = "conv"
    batch_norm: bool = True
    pooled: bool = False

    def __post_init__(self):
        _parse_fields(self, "operator")


@dataclass(frozen=True)
class SegmentationSpec:
    """A lite R-ASPP head: 1x1 branch times a pooled gate, upsampled, plus a skip from an earlier, finer stage.

    Args:
        filters: channels of the head.
        operator: of its convolutions.
        low_level_block: index of the block whose output is the skip; None for no skip.
    """

    filters: int = 32
    operator: Operator | str = "conv"
    low_level_block: int | None = None

    def __post_init__(self):
        _parse_fields(self, "operator")


@dataclass(frozen=True)
class NetSpec:
    """A whole network. `input_shape` is (H, W, C); images are float32 in [0, 1]."""

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    stem: StemSpec
    blocks: tuple[BlockSpec, ...]
    head: tuple[HeadSpec, ...] = ()
    classifier_operator: Operator | str = "conv"
    segmentation: SegmentationSpec | None = None

    def __post_init__(self):
        owner = f"NetSpec '{self.name}'"
        if len(self.input_shape) != 3:
            raise ValueError(f"{owner}: `input_shape` must be (H, W, C). Received: input_shape={self.input_shape}.")
        for size in self.input_shape:
            _validate.int_in(owner, "input_shape", size, 1, 1 << 15, " pixels or channels")
        _validate.int_in(owner, "num_classes", self.num_classes, 1, 1 << 20)
        channels = self.stem.filters
        for part in (self.stem, *self.blocks, *self.head):
            if part.activation is not None:
                _validate.one_of(owner, "activation", part.activation, ACTIVATIONS)
            _validate.int_in(owner, "filters", part.filters, 1, 1 << 16)
        _parse_fields(self, "classifier_operator")
        for index, block in enumerate(self.blocks):
            if block.residual and (block.strides != 1 or block.filters != channels):
                raise ValueError(
                    f"{owner}: block {index} cannot be `residual`: it needs strides 1 and {channels} filters as its "
                    f"input has. Received: strides={block.strides}, filters={block.filters}."
                )
            if not block.kept and not block.residual:
                raise ValueError(
                    f"{owner}: block {index} cannot be depth augmentation (kept=False): only residual blocks can go, "
                    f"and it maps {channels} to {block.filters} channels with strides {block.strides}. Keep it, or "
                    "choose a residual block."
                )
            channels = block.filters

    def with_operator(
        self, operator, *, stem: Operator | str | None = None, classifier: Operator | str | None = None,
        squeeze_excite: Operator | str | None = None,
    ) -> NetSpec:  # fmt: skip
        """The same network under an operator policy.

        Args:
            operator: of every block: one operator or its text, three as "adder/shift/adder" (see
                `operators.parse_block`), or a sequence of such per block. Heads take the last block's projecting
                operator.
            stem, classifier, squeeze_excite: those layers' own operator. Default: what `operator` has in those places
                (`Operator.as_stem`, `as_dense`: the stem of an add network stays multiplicative, its classifier is a
                shift layer), and multiplicative squeeze-excite.
        Raises:
            ValueError: an unknown operator, or a sequence of another length than the blocks.
        """
        given = (operator,) * len(self.blocks) if isinstance(operator, (str, Operator)) else tuple(operator)
        if len(given) != len(self.blocks):
            raise ValueError(
                f"NetSpec '{self.name}': `operator` must be one operator or {len(self.blocks)} of them, one per block. "
                f"Received: {len(given)}."
            )
        blocks = [operators.parse_block(each) for each in given or (operator,)]
        # A block's own place in the stem's stead: the first that would be another there.
        stem = stem or next((each.as_stem for each in blocks[0] if each.as_stem != each), blocks[0][0])
        last = blocks[-1][-1]
        classifier = classifier or last.as_dense
        squeeze_excite = squeeze_excite or "conv"
        return dataclasses.replace(
            self,
            stem=dataclasses.replace(self.stem, operator=stem),
            blocks=tuple(
                dataclasses.replace(block, operator=each, squeeze_excite_operator=squeeze_excite)
                for block, each in zip(self.blocks, blocks if self.blocks else (), strict=True)
            ),
            head=tuple(
                dataclasses.replace(head, operator=last if head.batch_norm else last.as_dense)
                for head in self.head
            ),
            classifier_operator=classifier,
            segmentation=self.segmentation and dataclasses.replace(self.segmentation, operator=classifier),
        )

    def with_segmentation(
        self, *, filters: int = 32, output_stride: int = 16, skip_stride: int | None = 8
    ) -> NetSpec:
        """The same backbone with a lite R-ASPP head that labels every pixel; its own head goes.

        Args:
            filters: channels of the head.
            output_stride: largest reduction of the image; strides beyond it become dilation, 2 for 2.
            skip_stride: reduction of the finer stage whose last block also feeds the head; None for no skip.
        Raises:
            ValueError: an argument out of range, or no block with `skip_stride`.
        """
        owner = f"NetSpec '{self.name}'"
        _validate.int_in(owner, "filters", filters, 1, 1 << 12, " channels")
        _validate.one_of(owner, "output_stride", output_stride, (4, 8, 16, 32))
        stride, dilation, skip, blocks = self.stem.strides, 1, None, []
        for index, block in enumerate(self.blocks):
            if stride * block.strides > output_stride:
                dilation *= block.strides
                block = dataclasses.replace(block, strides=1)
            stride *= block.strides
            blocks.append(dataclasses.replace(block, dilation=dilation))
            if stride == skip_stride:
                skip = index
        if skip_stride is not None and skip is None:
            raise ValueError(
                f"{owner}: `skip_stride` must be a reduction that some block has, or None. Received: "
                f"skip_stride={skip_stride}."
            )
        head = SegmentationSpec(filters, self.classifier_operator.as_dense, skip)
        return dataclasses.replace(self, blocks=tuple(blocks), head=(), segmentation=head)

    def as_dict(self) -> dict:
        """Plain data for JSON or TOML; `from_dict` is the inverse."""
        return _as_text(self)

    @classmethod
    def from_dict(cls, data: dict) -> NetSpec:
        """A spec from what `as_dict` gave. Unknown or missing keys raise TypeError naming them."""
        data = dict(data)
        segmentation = data.pop("segmentation", None)
        return cls(
            input_shape=tuple(data.pop("input_shape")),
            stem=StemSpec(**data.pop("stem")),
            blocks=tuple(BlockSpec(**block) for block in data.pop("blocks")),
            head=tuple(HeadSpec(**head) for head in data.pop("head", ())),
            segmentation=segmentation and SegmentationSpec(**segmentation),
            **data,
        )


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
        self.layers.append(
            LayerSpec(name, kind, operator, tuple(inputs), self.shapes[inputs[0]], out, strides=strides, **rest)
        )
        self.shapes[name] = out
        return name

    def weighted(self, name, kind, inputs, channels, operator, *, activation=None, strides=1, kernel_size=1, **rest):
        """A convolution; of a cascade one after another, each with its batch norm, the first with the strides."""
        parts = operator.cascade()
        if len(parts) > 1:
            rest["batch_norm"] = True
        rest.setdefault("batch_norm", True)
        for index, (suffix, part) in enumerate(parts):
            inputs = self.add(
                name + suffix, kind, inputs, channels, operator=part, strides=1 if index else strides,
                kernel_size=kernel_size, activation=activation if index == len(parts) - 1 else None, **rest,
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
        "stem", "conv", "input", stem.filters, stem.operator, activation=stem.activation, strides=stem.strides,
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
            f"head{index}", "conv", out, head.filters, head.operator, activation=head.activation,
            batch_norm=head.batch_norm, use_bias=not head.batch_norm,
        )
    if not pooled:
        out = net.add("pool", "pool", out)
    net.add(
        "classifier", "dense", out, spec.num_classes, operator=spec.classifier_operator.as_dense, use_bias=True,
        scale="fixed",
    )
    return tuple(net.layers)


def _lower_block(net, index, block, entry):
    name, inside = f"block{index}_", {"block": index, "scale": "expand"}
    expand, depthwise, project = operators.parse_block(block.operator)
    out = entry
    if block.expanded != net.shapes[entry][2]:
        out = net.weighted(
            name + "expand", "conv", out, block.expanded, expand, activation=block.activation, **inside
        )
    else:
        inside["scale"] = "width"  # without an expansion the depthwise layer works on the residual stream itself
    out = net.weighted(
        name + "depthwise", "depthwise", out, block.expanded, depthwise, activation=block.activation,
        strides=block.strides, kernel_size=block.kernel_size, dilation=block.dilation, **inside,
    )
    if block.squeeze_excite:
        gate = net.add(name + "se_pool", "pool", out, **inside)
        operator = block.squeeze_excite_operator.as_dense
        gate = net.add(
            name + "se_reduce", "conv", gate, block.squeeze_excite, operator=operator, use_bias=True,
            activation="relu", block=index, scale="fixed",
        )
        gate = net.add(
            name + "se_expand", "conv", gate, block.expanded, operator=operator, use_bias=True,
            activation="hard_sigmoid", **inside,
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
        "seg_gate", "conv", gate, head.filters, operator=operator, use_bias=True, activation="hard_sigmoid",
        scale="fixed",
    )
    features = net.add("seg_scale", "multiply", (features, gate), scale="fixed")
    logits_from = features
    if head.low_level_block is not None:
        low = ends[head.low_level_block]
        height, width, _ = net.shapes[low]
        features = net.add("seg_up", "resize", features, height_width=(height, width), scale="fixed")
        skip = net.weighted("seg_skip", "conv", low, head.filters, operator, scale="fixed")
        logits_from = net.add("seg_sum", "add", (features, skip), scale="fixed")
    logits = net.add(
        "classifier", "conv", logits_from, spec.num_classes, operator=operator, use_bias=True, scale="fixed"
    )
    net.add("seg_logits", "resize", logits, height_width=spec.input_shape[:2], scale="fixed")


def count_parameters(spec: NetSpec) -> int:
    """Weights and biases of the deployed network, batch norm folded."""
    return sum(layer.weight_count + layer.bias_count for layer in lower(spec))


def count_macs(spec: NetSpec) -> int:
    """Kernel applications of one inference: the MACs of the multiplicative network (1 MAC = 1 multiply + 1 add)."""
    return sum(layer.taps for layer in lower(spec))


# ---------------------------------------------------------------------------------------------------------------------
# The catalogue


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `divisor` and at least 90% of `channels` (MobileNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _mobilenet_v2(head):
    # in -> mid -> out, kernel, stride, repeats of the same shape that are residual
    rows = [(48, 8, 2, 1), (48, 16, 2, 0), (96, 16, 1, 2), (96, 24, 2, 0), (144, 24, 1, 3), (144, 32, 1, 0),
            (192, 32, 1, 2), (192, 56, 2, 0), (336, 56, 1, 2), (336, 112, 1, 0)]  # fmt: skip
    blocks = [BlockSpec(8, 16)]
    for mid, out, strides, residuals in rows:
        if residuals == 0 or strides == 2:
            blocks.append(BlockSpec(out, mid, strides=strides))
        blocks.extend(BlockSpec(out, mid, residual=True) for _ in range(residuals))
    return StemSpec(16), tuple(blocks), (HeadSpec(head),)


def _proxyless():
    rows = [(24, 16, 5, 2, 0), (48, 16, 3, 1, 1), (48, 16, 7, 2, 0), (48, 16, 3, 1, 1), (48, 16, 5, 1, 1),
            (48, 16, 5, 1, 1), (96, 32, 7, 2, 0), (96, 32, 5, 1, 1), (96, 32, 5, 1, 1), (96, 32, 5, 1, 1),
            (192, 32, 5, 1, 0), (96, 32, 5, 1, 1), (96, 32, 5, 1, 1), (96, 32, 5, 1, 1), (192, 64, 7, 2, 0),
            (384, 64, 7, 1, 1), (192, 64, 7, 1, 1), (192, 64, 7, 1, 1), (384, 112, 7, 1, 0)]  # fmt: skip
    blocks = (BlockSpec(8, 16),) + tuple(BlockSpec(out, mid, k, s, bool(r)) for mid, out, k, s, r in rows)
    return StemSpec(16), blocks, (HeadSpec(1280),)


def _mobilenet_v3():
    relu, swish = "relu", "hard_swish"
    rows = [(8, 8, 3, 1, 1, relu, 0), (24, 8, 3, 2, 0, relu, 0), (24, 8, 3, 1, 1, relu, 0),
            (24, 16, 5, 2, 0, relu, 16), (40, 16, 5, 1, 1, relu, 16), (40, 16, 5, 1, 1, relu, 16),
            (88, 32, 3, 2, 0, swish, 0), (72, 32, 3, 1, 1, swish, 0), (64, 32, 3, 1, 1, swish, 0),
            (64, 32, 3, 1, 1, swish, 0), (168, 40, 3, 1, 0, swish, 40), (232, 40, 3, 1, 1, swish, 56),
            (232, 56, 5, 2, 0, swish, 56), (336, 56, 5, 1, 1, swish, 88), (336, 56, 5, 1, 1, swish, 88)]  # fmt: skip
    blocks = tuple(BlockSpec(out, mid, k, s, bool(r), "conv", act, se) for mid, out, k, s, r, act, se in rows)
    head = (HeadSpec(336, swish), HeadSpec(1280, swish, batch_norm=False, pooled=True))
    return StemSpec(8, activation=swish), blocks, head


_MCUNET = {  # stem, first projection, default resolution, then expand,kernel,channels with / for stride 2
    "in0": (24, 16, 48, "/4,5,16 3,3,16 4,3,16 /5,7,24 4,5,24 5,5,24 /5,7,48 4,5,48 5,3,56 4,5,56 5,3,56 /6,3,112 "
            "4,5,112 6,3,192"),
    "in1": (16, 8, 96, "/4,3,16 3,3,16 /3,7,24 5,3,24 /5,3,40 4,7,40 4,5,48 3,3,48 4,3,48 /5,7,96 4,5,96 4,5,96 "
            "6,3,160"),
    "in2": (16, 8, 160, "/3,5,16 6,7,16 5,3,16 5,5,16 /5,3,24 6,7,24 6,5,24 /4,7,40 5,5,40 5,3,48 5,5,48 4,3,48 "
            "/6,5,96 4,5,96 3,5,96 4,3,96 5,5,160"),
    "in3": (16, 8, 176, "/3,7,16 5,3,16 5,7,16 4,5,16 /5,5,24 5,5,24 5,5,24 /5,3,40 6,7,40 4,5,40 5,5,48 5,7,48 "
            "5,3,48 /6,3,96 5,7,96 4,3,96 5,7,160"),
    "in4": (32, 16, 160, "/3,7,24 5,3,24 4,5,24 /5,7,40 4,3,40 4,7,40 /3,7,80 3,3,80 3,7,80 4,3,96 3,5,96 3,5,96 "
            "/4,7,192 3,7,192 3,5,192 4,5,320"),
}  # fmt: skip


def _mcunet(which):
    stem, channels, _, text = _MCUNET[which]
    blocks = [BlockSpec(channels, stem)]
    for entry in text.split():
        strides = 2 if entry.startswith("/") else 1
        expand, kernel, filters = map(int, entry.lstrip("/").split(","))
        blocks.append(BlockSpec(filters, expand * channels, kernel, strides, strides == 1 and filters == channels))
        channels = filters
    return StemSpec(stem), tuple(blocks), ()


def _tiny32(strides, stages, head):
    """Inverted residuals of expansion 3 for images of 32x32; a stage is (channels, blocks, stride of its first)."""
    channels, blocks = 16, []
    for filters, repeats, first in stages:
        for index in range(repeats):
            stride = first if index == 0 else 1
            blocks.append(BlockSpec(filters, 3 * channels, 3, stride, stride == 1 and filters == channels))
            channels = filters
    return StemSpec(16, strides=strides), tuple(blocks), (HeadSpec(head),)


_CATALOGUE = {
    "tiny32-44k": (lambda: _tiny32(2, [(16, 1, 1), (24, 2, 2), (40, 2, 2)], 128), 32),
    "tiny32-93k": (lambda: _tiny32(1, [(24, 2, 2), (40, 3, 2), (56, 2, 2)], 160), 32),
    "mobilenetv2-tiny": (lambda: _mobilenet_v2(448), 144),
    "mobilenetv2-w0.35": (lambda: _mobilenet_v2(1280), 160),
    "mobilenetv3-w0.35": (_mobilenet_v3, 160),
    "proxylessnas-w0.35": (_proxyless, 160),
    **{f"mcunet-{key}": (functools.partial(_mcunet, key), value[2]) for key, value in _MCUNET.items()},
}
NAMES = tuple(sorted(_CATALOGUE))


def spec(
    name: str,
    *,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int = 1000,
    operator: Operator | str = "conv",
    strides: tuple[int, ...] | None = None,
    width: float = 1.0,
    **policy,
) -> NetSpec:
    """A backbone from the catalogue.

    Args:
        name: one of `NAMES`.
        input_shape: (H, W, C); default: the resolution of the publication, in colour.
        num_classes: outputs of the classifier.
        operator: policy of `NetSpec.with_operator`; `policy` holds its other arguments.
        strides: in order, the strides of the stem and of every block that has stride 2 in the publication; (1, 1, 2,
            2, 2) is usual for 32x32 images. Default: as published.
        width: multiplier of every channel count but the image's and the classes', rounded to multiples of 8.
    Raises:
        ValueError: an unknown name, or `strides` of the wrong length or with other values than 1 and 2.
    """
    _validate.one_of("backbones.spec", "name", name, NAMES)
    make, resolution = _CATALOGUE[name]
    stem, blocks, head = make()
    if width != 1:
        _validate.number_in("backbones.spec", "width", width, 0.1, 10)
        stem, blocks, head = _scale_width(stem, blocks, head, width)
    places = [-1] + [index for index, block in enumerate(blocks) if block.strides == 2]
    if strides is not None:
        strides = tuple(strides)
        if len(strides) != len(places) or any(s not in (1, 2) for s in strides):
            raise ValueError(
                f"backbones.spec: `strides` must be {len(places)} numbers, each 1 or 2 (the stem and the "
                f"{len(places) - 1} blocks of stride 2). Received: strides={strides}."
            )
        stem = dataclasses.replace(stem, strides=strides[0])
        new = dict(zip(places[1:], strides[1:], strict=True))
        blocks = tuple(dataclasses.replace(b, strides=new.get(i, b.strides)) for i, b in enumerate(blocks))
    shape = tuple(input_shape) if input_shape is not None else (resolution, resolution, 3)
    return NetSpec(name, shape, num_classes, stem, blocks, head).with_operator(operator, **policy)


def _scale_width(stem, blocks, head, width):
    def scaled(channels):
        return make_divisible(channels * width)

    new, inputs, new_inputs = [], stem.filters, scaled(stem.filters)
    for block in blocks:
        # An absent expansion stays absent, and an expansion ratio stays what it was.
        expanded = new_inputs if block.expanded == inputs else scaled(block.expanded)
        if expanded == new_inputs and block.expanded != inputs:
            expanded = new_inputs + 8
        reduced = scaled(block.squeeze_excite) if block.squeeze_excite else 0
        new.append(
            dataclasses.replace(block, filters=scaled(block.filters), expanded=expanded, squeeze_excite=reduced)
        )
        inputs, new_inputs = block.filters, scaled(block.filters)
    return (
        dataclasses.replace(stem, filters=scaled(stem.filters)),
        tuple(new),
        tuple(dataclasses.replace(h, filters=scaled(h.filters)) for h in head),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The builder


def build(spec: NetSpec, *, name: str | None = None, layer_options: dict | None = None):
    """A functional Keras model of the deployed network; its outputs are logits.

    Layers are named as `lower` names them, with "_bn" and "_act" behind the batch norm's and the activation's. Blocks
    of depth augmentation are left out.

    Args:
        spec: the network.
        name: of the model; default: the spec's.
        layer_options: as for `augment`: what it was trained with is what is built. Options of training alone are ignored.
    Shapes:
        inputs (N, H, W, C) float32 in [0, 1] -> (N, num_classes), or (N, H, W, num_classes) for segmentation.
    """
    import keras

    layer_options = check_layer_options("backbones.build", layer_options, spec)
    image = keras.Input(spec.input_shape, name="image")
    tensors = {"input": image}
    for layer in lower(spec):
        inputs = [tensors[name] for name in layer.inputs]
        if layer.kind == "dense":
            inputs = [keras.layers.Flatten(name="flatten")(inputs[0])]
        out = make_layer(layer, layer_options)(inputs if len(inputs) > 1 else inputs[0])
        if layer.batch_norm:
            out = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=layer.name + "_bn")(out)
        if layer.activation:
            out = make_activation(layer.activation, layer.name + "_act")(out)
        tensors[layer.name] = out
    return keras.Model(image, out, name=name or spec.name.replace(".", "_"))


def make_activation(activation: str, name: str):
    """The Keras layer of an activation's name."""
    import keras

    _validate.one_of("make_activation", "activation", activation, ACTIVATIONS)
    if activation == "relu6":
        return keras.layers.ReLU(max_value=6.0, name=name)
    if activation == "relu":
        return keras.layers.ReLU(name=name)
    return keras.layers.Activation(activation, name=name)


def make_layer(layer: LayerSpec, layer_options: dict | None = None):
    """The plain (deployed) Keras layer of one `LayerSpec`, without its batch norm and activation.

    Raises:
        ValueError: a kind, or an operator of that kind, that there is no layer for.
    """
    import keras

    if layer.kind == "pool":
        return keras.layers.GlobalAveragePooling2D(keepdims=True, name=layer.name)
    if layer.kind == "add":
        return keras.layers.Add(name=layer.name)
    if layer.kind == "multiply":
        return keras.layers.Multiply(name=layer.name)
    if layer.kind == "resize":
        return keras.layers.Resizing(*layer.output_shape[:2], interpolation="bilinear", name=layer.name)
    _validate.one_of("make_layer", "kind", layer.kind, KINDS)
    options = {"use_bias": layer.use_bias, "name": layer.name}
    if layer.kind != "dense":
        options |= {
            "kernel_size": layer.kernel_size, "strides": layer.strides, "padding": "same",
            "dilation_rate": layer.dilation,
        }  # fmt: skip
    channels = () if layer.kind == "depthwise" else (layer.output_shape[2],)
    return operator_of(layer, layer_options).make_layer(layer.kind, *channels, **options)
