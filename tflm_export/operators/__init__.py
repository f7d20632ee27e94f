"""Operators once they are deployed: one value of each kind of arithmetic, found by a layer's type."""

import keras

from tflm_export.operators.adder import ADDER
from tflm_export.operators.binary import Binary
from tflm_export.operators.conv import CONV
from tflm_export.operators.deployed import Constants, Deployed, trained_as
from tflm_export.operators.shift import Shift

SHIFT, BINARY = Shift(), Binary()
ALL: tuple[Deployed, ...] = (CONV, SHIFT, ADDER, BINARY)

__all__ = ["ADDER", "ALL", "BINARY", "CONV", "SHIFT", "Constants", "Deployed", "of_layer", "trained_as"]


def of_layer(layer: keras.layers.Layer) -> Deployed:
    """The arithmetic of a layer with weights.

    Raises:
        ValueError: its operator names none; the message lists those there are.
    """
    operator = trained_as(layer)
    if operator is None:
        return CONV
    for deployed in ALL:
        if deployed.name == operator.deployed_as:
            return deployed
    raise ValueError(
        f"tflm_export: layer '{layer.name}': `deployed_as` of operator '{operator}' must be one of "
        f"{', '.join(repr(deployed.name) for deployed in ALL)}. Received: deployed_as={operator.deployed_as!r}."
    )
