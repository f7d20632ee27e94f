"""Options of single layers, which a spec does not have: {layer name or family of operators: {option: value}}."""

from __future__ import annotations

from saaug_keras import _validate, operators
from saaug_keras.backbones.lowering import LayerSpec, lower
from saaug_keras.backbones.records import NetSpec
from saaug_keras.operators import Operator

LAYER_OPTIONS = ("extra", "kl_weight", "laplace_scale", "mutable", "remap")
"""What `layer_options` may set of the layers in training, beside the options of operators. All else is the spec's."""


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
            raise TypeError(f"{owner}: `layer_options` must hold a dict of options for {name!r}. Received: {options!r}.")
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
