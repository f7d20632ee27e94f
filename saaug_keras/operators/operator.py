"""What an operator is: the one object that training, pricing and building ask."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from saaug_keras import _validate

KINDS = ("conv", "depthwise", "dense")  # of layers with weights


@dataclass(frozen=True)
class Operator:
    """What a layer with weights does with its inputs, as a value: hashable, and equal to another of the same options.

    A subclass is a family of operators, a frozen dataclass whose fields are its options. One of products needs `round`
    alone; its plain layers are then those of `product_layers`. `operators.register` makes its name known.

    Class attributes:
        family: name of the family, by which `layer_options` address its layers.
        kinds: of layers that it can be, of `KINDS`.
        free: whether it is free of multiplication: its layers see a shared kernel through the remap and may be mutable.
        distance: False where a layer is a sum of products with rounded weights, x * round(w). True where it is a sum
            of another function of input and weight, `apply`.
        moves: True where a layer has no weights and sums nothing: its outputs are inputs, each moved. What `round` gives is
            then fixed, no batch norm or activation follows, and the remap has nothing to do.
        deployed_as: the arithmetic of the exporter that computes it: "conv", int8 products, whose weights are multiples of
            127ths of an output channel's largest: they hold a channel of 0 and plus and minus one number exactly, and
            the exporter refuses weights that they do not; "shift", signed powers of two; "binary", weights of one size in
            an output channel; "adder", distances; "channelshift", nothing but moves.
        tap: what one application of a weight is, beside the addition to the sum: "multiplies", "shifts", "adds" or
            None for nothing.
        paper_bits: bits of weights and activations in the convention "paper" of the cost model.
    """

    family: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = KINDS
    free: ClassVar[bool] = True
    distance: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    deployed_as: ClassVar[str] = "conv"
    tap: ClassVar[str | None] = "multiplies"
    paper_bits: ClassVar[float] = 32

    def layers(self) -> dict:
        """{kind: class of its plain Keras layer}, of each of `kinds`."""
        from saaug_keras.operators import product_layers as plain

        return {"conv": plain.RoundedConv2D, "depthwise": plain.RoundedDepthwiseConv2D, "dense": plain.RoundedDense}

    def arguments(self) -> dict:
        """The keyword arguments with which a plain layer is this operator."""
        return {"operator": self}

    def options(self) -> dict:
        """Its fields, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def deployed_options(self) -> dict:
        """Those of `options` that what is deployed depends on."""
        return self.options()

    def with_options(self, options: dict) -> Operator:
        """The same with those of `options` that are its fields; others, which another part reads, are passed over."""
        names = {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: value for name, value in options.items() if name in names})

    def make_layer(self, kind: str, *sizes, **options):
        """The plain layer of a kind.

        Raises:
            ValueError: it is no operator of that kind of layer.
        """
        _validate.one_of(f"operator '{self}'", "kind", kind, self.kinds or ("none, it is lowered to others",))
        return self.layers()[kind](*sizes, **self.arguments(), **options)

    @property
    def inputs_bits(self) -> int | None:
        """Bits of the grid that the inputs are rounded to in training; None for not at all."""
        return getattr(self, "activation_bits", 8)

    @property
    def weight_bytes(self) -> float:
        """Bytes of a deployed weight."""
        return 1

    @property
    def is_builtin(self) -> bool:
        """Whether TFLite Micro's own operators compute it."""
        return self.deployed_as == "conv"

    @property
    def fits_int8(self) -> bool:
        """Whether its deployed weights are int8 numbers, so that a built-in operator can take them."""
        return not any(part.distance for _, part in self.cascade())

    @property
    def settles(self) -> bool:
        """Whether its weights are on a coarse grid, so that training can draw a kernel to it: powers of two, signs."""
        return self.free and not self.distance and not self.moves

    @property
    def as_stem(self) -> Operator:
        """What the first layer is in a network of this operator."""
        return self

    @property
    def as_dense(self) -> Operator:
        """What a layer is that no batch norm follows: dense, or behind a global pooling."""
        return self

    def cascade(self) -> tuple[tuple[str, Operator], ...]:
        """The layers that one of this operator is, in order: (what follows its name, its operator)."""
        return (("", self),)

    def round(self, kernel, channel_axes: tuple = (-1,)):
        """The kernel as it is deployed; `channel_axes` are those of an output channel. The gradient may pass straight
        through."""
        return kernel

    def round_shared(self, kernel, channel_axes: tuple = (-1,)):
        """`round` with the gradient that a kernel shared with a multiplicative layer gets."""
        return self.round(kernel, channel_axes)

    def start_scale(self) -> float | None:
        """Standard deviation at which its kernels start; None for that of a multiplicative kernel."""
        return None

    def gradient_rule(self, stored_std: float | None = None, block: tuple | None = None):
        """What becomes of its kernel's gradient, an `operators.gradients.AdaptiveRate`; None for nothing.

        Args:
            stored_std: standard deviation at which the kernel is stored, where that is not the `start_scale` at which it
                is used.
            block: (axis, size) pairs of the leading block of a latent kernel that it uses, or None for all.
        """
        return None

    def round_on(self, kernel, step):
        """Of a `distance`: the kernel as it is deployed, on the grid of its inputs of that `step`; None for no grid."""
        return kernel

    def apply(self, kind: str, inputs, kernel, **window):
        """Of a `distance`: the layer of a kind, of inputs and a kernel on one grid."""
        raise NotImplementedError(f"operator '{self}': `apply` must be defined, since `distance` is True.")

    def __str__(self):
        from saaug_keras.operators.names import text_of

        return text_of(self)


def literal_options(text: str) -> dict:
    """The options in "zero_code=False, exponent_scope='layer'"."""
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("options must have names")
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def check_activation_bits(owner, activation_bits):
    """Raises ValueError for bits of a grid that there are none of."""
    if activation_bits is not None:
        _validate.int_in(owner, "activation_bits", activation_bits, 2, 8, " bits, or None")
