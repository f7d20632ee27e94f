"""Weights of one bit: the operator. Its plain layers are those of `product_layers`."""

from saaug_keras import _validate
from saaug_keras.operators.operator import Operator, check_activation_bits, dataclass
from saaug_keras.operators.shift import Shift


@dataclass(frozen=True)
class Binary(Operator):
    """Signs in the place of weights: inputs are added or taken away, and the sum is scaled once.

        y = s * sum of x * sign(k),    s = mean|k| of an output channel

    Rounding and gradient are those of `ops.round_to_sign`. Deployed, a weight takes one bit, and s is part of the
    requantization of its output. Activations are int8, as everywhere here.

    Args:
        clip: number > 0, size from which on a weight gets no gradient.
        activation_bits: int in [2, 8] of the inputs, or None for no quantization.
    Source: BNN, Courbariaux et al. 2016, arXiv:1602.02830, whose activations are signs, too.
    """

    clip: float = 1.0
    activation_bits: int | None = 8

    family = "binary"
    deployed_as = "binary"
    tap = None
    paper_bits = (16 + 1) / 2

    def __post_init__(self):
        _validate.number_in("Binary", "clip", self.clip, 1e-6, 1e6)
        check_activation_bits("Binary", self.activation_bits)

    def deployed_options(self):
        return {"activation_bits": self.activation_bits}

    @property
    def weight_bytes(self):
        """An eighth."""
        return 0.125

    @property
    def as_stem(self):
        """Shifts: of an image's three channels, signs alone say too little."""
        return Shift()

    def round(self, kernel, channel_axes=(-1,)):
        from saaug_keras import ops

        return ops.round_to_sign(kernel, clip=self.clip, channel_axes=channel_axes)
