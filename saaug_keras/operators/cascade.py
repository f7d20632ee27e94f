"""Operators one after another."""

from saaug_keras.operators.adder import Adder
from saaug_keras.operators.operator import Operator, dataclass
from saaug_keras.operators.shift import Shift


@dataclass(frozen=True)
class ShiftAdd(Operator):
    """A shift layer followed by an add layer, each with its batch norm (ShiftAddNet, arXiv:2010.12785).

    It has no layers of its own: a network is lowered to those of its parts.
    """

    shift: Shift = Shift()
    adder: Adder = Adder()

    family = "shiftadd"
    kinds = ()
    deployed_as = "adder"
    tap = "shifts"

    def layers(self):
        return {}

    @property
    def as_stem(self):
        return self.adder.as_stem

    @property
    def as_dense(self):
        return self.adder.as_dense

    def cascade(self):
        return ("_shift", self.shift), ("_add", self.adder)
