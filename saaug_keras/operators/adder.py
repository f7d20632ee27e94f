"""The l1 distance in the place of products: the operator. Its plain layers are in `adder_layers`, which needs Keras."""

from saaug_keras import _validate
from saaug_keras.operators.conv import Conv
from saaug_keras.operators.operator import Operator, check_activation_bits, dataclass
from saaug_keras.operators.shift import Shift

# Half the range of ReLU6. Narrower than the activations, a kernel makes every output nearly -sum |x|: a few layers on,
# all channels carry the same signal.
INITIALIZER_STD = 3.0


@dataclass(frozen=True)
class Adder(Operator):
    """Differences: y = -|x - w|, with weights on the grid of the inputs. Options as of `AdderConv2D`."""

    activation_bits: int | None = 8
    gradient_scale: float = 0.2

    family = "adder"
    kinds = ("conv", "depthwise")  # not dense: see `as_dense`
    distance = True
    deployed_as = "adder"
    tap = "adds"

    def __post_init__(self):
        _validate.number_in("Adder", "gradient_scale", self.gradient_scale, 0, 1e3)
        check_activation_bits("Adder", self.activation_bits)

    def arguments(self):
        return self.options()

    def layers(self):
        from saaug_keras.operators import adder_layers as plain

        return {"conv": plain.AdderConv2D, "depthwise": plain.AdderDepthwiseConv2D}

    def deployed_options(self):
        return {"activation_bits": self.activation_bits}

    @property
    def as_stem(self):
        """Multiplications: an image's three channels say too little by their distances."""
        return Conv()

    @property
    def as_dense(self):
        """Shifts: distances are large and have one sign until a batch norm follows."""
        return Shift()

    def start_scale(self):
        return INITIALIZER_STD

    def gradient_rule(self, stored_std=None, block=None):
        from saaug_keras.operators.gradients import AdaptiveRate

        eta = self.gradient_scale if stored_std is None else self.gradient_scale * stored_std / self.start_scale()
        return AdaptiveRate(eta, block)

    def round_on(self, kernel, step):
        from saaug_keras import ops

        return kernel if step is None else ops.round_to_step(kernel, step)

    def apply(self, kind, inputs, kernel, **window):
        from saaug_keras import ops

        return {"conv": ops.adder_conv2d, "depthwise": ops.adder_depthwise_conv2d}[kind](inputs, kernel, **window)
