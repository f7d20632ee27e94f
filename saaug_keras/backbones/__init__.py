"""Tiny networks as data, and the one builder that turns them into Keras models.

A network is a `NetSpec`: a frozen record of a stem, inverted-residual blocks, heads and a classifier. `spec` gives those of
the catalogue. `lower` flattens one into `LayerSpec` records, the only place that knows the topology: the builder, the
augmented network and the cost model read its result.

Operators are values (`saaug_keras.operators`); a spec takes them or their texts, as "shift5", and writes the texts.
"""

from saaug_keras.backbones.building import build, make_activation, make_layer
from saaug_keras.backbones.catalogue import NAMES, make_divisible, spec
from saaug_keras.backbones.layer_options import LAYER_OPTIONS, check_layer_options, operator_of, options_of
from saaug_keras.backbones.lowering import KINDS, LayerSpec, count_macs, count_parameters, lower
from saaug_keras.backbones.records import ACTIVATIONS, BlockSpec, HeadSpec, NetSpec, SegmentationSpec, StemSpec

__all__ = [
    "ACTIVATIONS",
    "BlockSpec",
    "HeadSpec",
    "KINDS",
    "LAYER_OPTIONS",
    "LayerSpec",
    "NAMES",
    "NetSpec",
    "SegmentationSpec",
    "StemSpec",
    "build",
    "check_layer_options",
    "count_macs",
    "count_parameters",
    "lower",
    "make_activation",
    "make_divisible",
    "make_layer",
    "operator_of",
    "options_of",
    "spec",
]
