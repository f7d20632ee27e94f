"""The networks that have a name.

Sources: MobileNetV2 and MobileNetV3 in NetAug's tiny sizes (arXiv:2110.08890), ProxylessNAS (arXiv:1812.00332), MCUNet
(arXiv:2007.10319); tiny32 is ours, for images of 32x32.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from saaug_keras import _validate
from saaug_keras.backbones.records import BlockSpec, HeadSpec, NetSpec, StemSpec
from saaug_keras.operators import Operator


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `divisor` and at least 90% of `channels` (MobileNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class _Network:
    """A network of the catalogue.

    Args:
        resolution: pixels of the publication's images.
        blocks: in words of "expanded,kernel,filters", perhaps with a fourth number, channels of squeeze-excite. Before them
            stand "/" for stride 2, "+" for a residual block, "r" for ReLU and "h" for h-swish in the place of ReLU6.
    """

    resolution: int
    stem: StemSpec
    blocks: str
    head: tuple[HeadSpec, ...] = ()

    def block_specs(self):
        return tuple(map(_block, self.blocks.split()))


def _block(word):
    flags, numbers = re.fullmatch(r"([/+rh]*)([\d,]+)", word).groups()
    expanded, kernel_size, filters, *squeeze_excite = map(int, numbers.split(","))
    return BlockSpec(
        filters,
        expanded,
        kernel_size,
        strides=2 if "/" in flags else 1,
        residual="+" in flags,
        activation="relu" if "r" in flags else "hard_swish" if "h" in flags else "relu6",
        squeeze_excite=squeeze_excite[0] if squeeze_excite else 0,
    )


_MOBILENET_V2 = """
    16,3,8 /48,3,8 +48,3,8 /48,3,16 +96,3,16 +96,3,16 /96,3,24 +144,3,24 +144,3,24 +144,3,24 144,3,32
    +192,3,32 +192,3,32 /192,3,56 +336,3,56 +336,3,56 336,3,112"""
_CATALOGUE = {
    "tiny32-44k": _Network(32, StemSpec(16), "+48,3,16 /48,3,24 +72,3,24 /72,3,40 +120,3,40", (HeadSpec(128),)),
    "tiny32-93k": _Network(
        32,
        StemSpec(16, strides=1),
        """
        /48,3,24 +72,3,24 /72,3,40 +120,3,40 +120,3,40 /120,3,56 +168,3,56""",
        (HeadSpec(160),),
    ),
    "mobilenetv2-tiny": _Network(144, StemSpec(16), _MOBILENET_V2, (HeadSpec(448),)),
    "mobilenetv2-w0.35": _Network(160, StemSpec(16), _MOBILENET_V2, (HeadSpec(1280),)),
    "mobilenetv3-w0.35": _Network(
        160,
        StemSpec(8, activation="hard_swish"),
        """
        +r8,3,8 /r24,3,8 +r24,3,8 /r24,5,16,16 +r40,5,16,16 +r40,5,16,16 /h88,3,32 +h72,3,32 +h64,3,32
        +h64,3,32 h168,3,40,40 +h232,3,40,56 /h232,5,56,56 +h336,5,56,88 +h336,5,56,88""",
        (HeadSpec(336, "hard_swish"), HeadSpec(1280, "hard_swish", batch_norm=False, pooled=True)),
    ),
    "proxylessnas-w0.35": _Network(
        160,
        StemSpec(16),
        """
        16,3,8 /24,5,16 +48,3,16 /48,7,16 +48,3,16 +48,5,16 +48,5,16 /96,7,32 +96,5,32 +96,5,32 +96,5,32
        192,5,32 +96,5,32 +96,5,32 +96,5,32 /192,7,64 +384,7,64 +192,7,64 +192,7,64 384,7,112""",
        (HeadSpec(1280),),
    ),
    "mcunet-in0": _Network(
        48,
        StemSpec(24),
        """
        24,3,16 /64,5,16 +48,3,16 +64,3,16 /80,7,24 +96,5,24 +120,5,24 /120,7,48 +192,5,48 240,3,56
        +224,5,56 +280,3,56 /336,3,112 +448,5,112 672,3,192""",
    ),
    "mcunet-in1": _Network(
        96,
        StemSpec(16),
        """
        16,3,8 /32,3,16 +48,3,16 /48,7,24 +120,3,24 /120,3,40 +160,7,40 160,5,48 +144,3,48 +192,3,48
        /240,7,96 +384,5,96 +384,5,96 576,3,160""",
    ),
    "mcunet-in2": _Network(
        160,
        StemSpec(16),
        """
        16,3,8 /24,5,16 +96,7,16 +80,3,16 +80,5,16 /80,3,24 +144,7,24 +144,5,24 /96,7,40 +200,5,40 200,3,48
        +240,5,48 +192,3,48 /288,5,96 +384,5,96 +288,5,96 +384,3,96 480,5,160""",
    ),
    "mcunet-in3": _Network(
        176,
        StemSpec(16),
        """
        16,3,8 /24,7,16 +80,3,16 +80,7,16 +64,5,16 /80,5,24 +120,5,24 +120,5,24 /120,3,40 +240,7,40
        +160,5,40 200,5,48 +240,7,48 +240,3,48 /288,3,96 +480,7,96 +384,3,96 480,7,160""",
    ),
    "mcunet-in4": _Network(
        160,
        StemSpec(32),
        """
        32,3,16 /48,7,24 +120,3,24 +96,5,24 /120,7,40 +160,3,40 +160,7,40 /120,7,80 +240,3,80 +240,7,80
        320,3,96 +288,5,96 +288,5,96 /384,7,192 +576,7,192 +576,5,192 768,5,320""",
    ),
}
NAMES = tuple(sorted(_CATALOGUE))
"""Names of the networks that `spec` knows."""


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
    network = _CATALOGUE[name]
    stem, blocks, head, resolution = network.stem, network.block_specs(), network.head, network.resolution
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
        new.append(dataclasses.replace(block, filters=scaled(block.filters), expanded=expanded, squeeze_excite=reduced))
        inputs, new_inputs = block.filters, scaled(block.filters)
    return (
        dataclasses.replace(stem, filters=scaled(stem.filters)),
        tuple(new),
        tuple(dataclasses.replace(h, filters=scaled(h.filters)) for h in head),
    )
