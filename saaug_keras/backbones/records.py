"""Networks as data: frozen records of a stem, inverted-residual blocks, heads and a classifier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from saaug_keras import _validate, operators
from saaug_keras.operators import Operator

ACTIVATIONS = ("relu", "relu6", "hard_swish", "hard_sigmoid")
"""Names of activations that a spec may have."""


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
        self,
        operator,
        *,
        stem: Operator | str | None = None,
        classifier: Operator | str | None = None,
        squeeze_excite: Operator | str | None = None,
    ) -> NetSpec:
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
            head=tuple(dataclasses.replace(head, operator=last if head.batch_norm else last.as_dense) for head in self.head),
            classifier_operator=classifier,
            segmentation=self.segmentation and dataclasses.replace(self.segmentation, operator=classifier),
        )

    def with_segmentation(self, *, filters: int = 32, output_stride: int = 16, skip_stride: int | None = 8) -> NetSpec:
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
                f"{owner}: `skip_stride` must be a reduction that some block has, or None. Received: skip_stride={skip_stride}."
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
