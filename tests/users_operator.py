"""An operator as a user of the package writes it, in a file of his own."""

from dataclasses import dataclass

from keras import ops as K

from saaug_keras import operators, ops


@dataclass(frozen=True)
class Ternary(operators.Operator):
    """Weights -s, 0 and s, a scale s per output channel; the sum of the inputs that are added or taken away.

    w = sign(k) * s if |k| > threshold * mean|k| else 0,    s = mean of the |k| that are kept
    """

    threshold: float = 0.7
    activation_bits: int | None = 8

    family = "ternary"
    tap = None

    def round(self, kernel, channel_axes=(-1,)):
        axes = [axis for axis in range(len(kernel.shape)) if axis - len(kernel.shape) not in channel_axes]
        size = K.abs(kernel)
        kept = K.cast(size > self.threshold * K.mean(size, axis=axes, keepdims=True), kernel.dtype)
        scale = K.sum(size * kept, axis=axes, keepdims=True) / K.maximum(K.sum(kept, axis=axes, keepdims=True), 1.0)
        return ops.straight_through(K.sign(kernel) * kept * scale, K.convert_to_tensor(kernel))


operators.register("ternary", Ternary())
