"""Signed powers of two: the operator. Its plain layers are in `shift_layers`, which needs Keras."""

from saaug_keras import _validate
from saaug_keras.operators.operator import Operator, check_activation_bits, dataclass

NIBBLE_LEVELS = 7  # exponents that a 4-bit code tells apart, beside sign and zero


def check_shift_options(owner, weight_bits, zero_code, exponent_scope, variant, activation_bits):
    """Raises ValueError for an option out of its range."""
    _validate.int_in(owner, "weight_bits", weight_bits, 3, 8, " bits")
    _validate.one_of(owner, "zero_code", zero_code, (True, False))
    _validate.one_of(owner, "exponent_scope", exponent_scope, ("channel", "layer"))
    _validate.one_of(owner, "variant", variant, ("ps", "q"))
    check_activation_bits(owner, activation_bits)


@dataclass(frozen=True)
class Shift(Operator):
    """Products with signed powers of two, which a shift does: y = x * sign(k) * 2**p. Options as of `ShiftConv2D`."""

    weight_bits: int = 4
    zero_code: bool = True
    exponent_scope: str = "channel"
    variant: str = "q"
    activation_bits: int | None = 8

    family = "shift"
    deployed_as = "shift"
    tap = "shifts"
    paper_bits = (16 + 5) / 2  # of all traffic of a shift layer; ShiftAddNAS's program rounds it down to 10

    def __post_init__(self):
        check_shift_options("Shift", **self.options())

    def arguments(self):
        return self.options()

    def layers(self):
        from saaug_keras.operators import shift_layers as plain

        return {"conv": plain.ShiftConv2D, "depthwise": plain.ShiftDepthwiseConv2D, "dense": plain.ShiftDense}

    def deployed_options(self):
        return {name: value for name, value in self.options().items() if name != "variant"}

    @property
    def levels(self) -> int:
        """How many exponents a weight can have, beside sign and zero."""
        return 2 ** (self.weight_bits - 1) - (1 if self.zero_code else 0)

    @property
    def weight_bytes(self):
        """Half a byte where seven exponents do."""
        return 0.5 if self.levels <= NIBBLE_LEVELS else 1

    @property
    def fits_int8(self):
        return self.levels <= NIBBLE_LEVELS

    def round(self, kernel, channel_axes=(-1,)):
        from saaug_keras import ops

        axes = channel_axes if self.exponent_scope == "channel" else ()
        return ops.round_to_power_of_two(kernel, bits=self.weight_bits, zero_code=self.zero_code, channel_axes=axes)

    def round_shared(self, kernel, channel_axes=(-1,)):
        """In variant "ps" the gradient passes straight through the rounding of log2|k|."""
        rounded = self.round(kernel, channel_axes)
        if self.variant == "q":
            return rounded
        from keras import ops as K

        from saaug_keras import ops

        rounded, kernel = K.stop_gradient(rounded), K.convert_to_tensor(kernel)
        ratio = K.where(rounded == 0, 1.0, rounded / K.where(rounded == 0, 1.0, K.stop_gradient(kernel)))
        return ops.straight_through(rounded, kernel * ratio)
