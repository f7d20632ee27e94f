"""Ordinary multiplication."""

from saaug_keras.operators.operator import Operator, dataclass


@dataclass(frozen=True)
class Conv(Operator):
    """Products, as everywhere: y = x * w; deployed as int8 multiplications."""

    family = "conv"
    free = False
    inputs_bits = None

    def arguments(self):
        return {}

    def layers(self):
        import keras

        return {"conv": keras.layers.Conv2D, "depthwise": keras.layers.DepthwiseConv2D, "dense": keras.layers.Dense}
