"""Operators by their text: `parse` reads what `str` writes, in recipes, on the command line and in reports."""

from __future__ import annotations

import dataclasses

from saaug_keras.operators.adder import Adder
from saaug_keras.operators.binary import Binary
from saaug_keras.operators.cascade import ShiftAdd
from saaug_keras.operators.channelshift import ChannelShift
from saaug_keras.operators.conv import Conv
from saaug_keras.operators.operator import Operator, literal_options
from saaug_keras.operators.shift import Shift

_CATALOGUE: dict[str, Operator] = {
    "conv": Conv(),
    "shift": Shift(),
    "shift5": Shift(weight_bits=5),
    "shift-ps": Shift(variant="ps"),
    "shift5-ps": Shift(weight_bits=5, variant="ps"),
    "adder": Adder(),
    "shiftadd": ShiftAdd(),
    "binary": Binary(),
    "channelshift": ChannelShift(),
}


_BLOCK_KINDS = ("conv", "depthwise", "conv")  # of a block's expanding, depthwise and projecting layer


def names() -> tuple[str, ...]:
    """The names that `parse` knows."""
    return tuple(_CATALOGUE)


def option_names() -> tuple[str, ...]:
    """The options that layers of one or another known operator have."""
    return tuple(sorted({option for operator in _CATALOGUE.values() if operator.kinds for option in operator.options()}))


def register(name: str, operator: Operator):
    """Makes an operator known by a name, to specs, recipes, the command line and the cost model of this process.

    Args:
        name: letters, digits and "-"; not one that is taken by another operator.
        operator: the value.
    Raises:
        TypeError: not an `Operator`.
        ValueError: a name that is taken or is none.
    """
    if not isinstance(operator, Operator):
        raise TypeError(f"operators.register: `operator` must be an Operator. Received: operator={operator!r}.")
    if not (isinstance(name, str) and name.replace("-", "").isalnum()):
        raise ValueError(f"operators.register: `name` must be letters, digits and '-'. Received: name={name!r}.")
    if _CATALOGUE.get(name, operator) != operator:
        raise ValueError(
            f"operators.register: `name` must not be taken by another operator. Received: name={name!r}, which is "
            f"{_CATALOGUE[name]!r}."
        )
    _CATALOGUE[name] = operator


def parse(text: str | Operator, owner: str = "operators.parse") -> Operator:
    """The operator of a text.

    Args:
        text: one of `names()`, perhaps with options: "shift5", "shift(zero_code=False)". An operator is given back.
        owner: who asks, for the message.
    Raises:
        ValueError: an unknown name, with those that are known; options that the operator has not.
    """
    if isinstance(text, Operator):
        return text
    name, bracket, rest = str(text).partition("(")
    must = f"`operator` must be one of {', '.join(map(repr, _CATALOGUE))}, perhaps with options in parentheses"
    if name not in _CATALOGUE or (bracket and not rest.endswith(")")):
        raise ValueError(f"{owner}: {must}. Received: operator={text!r}.")
    if not bracket:
        return _CATALOGUE[name]
    try:
        return dataclasses.replace(_CATALOGUE[name], **literal_options(rest[:-1]))
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{owner}: {must}. Received: operator={text!r}: {error}.") from error


def parse_block(text: str | Operator | tuple, owner: str = "operators.parse_block") -> tuple[Operator, Operator, Operator]:
    """The operators of a block's expanding, depthwise and projecting layer.

    Args:
        text: one operator for all three, or three as "adder/shift/adder"; or three values.
        owner: who asks, for the message.
    Raises:
        ValueError: an unknown name, neither one nor three, or an operator that such a layer cannot have.
    """
    parts = text if isinstance(text, tuple) else text.split("/") if isinstance(text, str) else (text,)
    found = tuple(parse(part, owner) for part in parts)
    if len(found) not in (1, 3):
        raise ValueError(
            f"{owner}: `operator` must be one operator, or three as 'adder/shift/adder', of the expanding, the depthwise "
            f"and the projecting layer. Received: operator={text!r}."
        )
    three = found * 3 if len(found) == 1 else found
    for operator, kind, place in zip(three, _BLOCK_KINDS, ("expanding", "depthwise", "projecting"), strict=True):
        for _, part in operator.cascade():
            if kind not in part.kinds:
                raise ValueError(
                    f"{owner}: the operator of the {place} layer must be one that {kind} layers can have. Received: "
                    f"operator={to_text(found if len(found) > 1 else found[0])!r}, of which '{part}' can be: "
                    f"{', '.join(part.kinds)}. Give three, as 'shift/{part}/shift'."
                )
    return three


def to_text(operator: Operator | tuple | None) -> str:
    """What `parse` or `parse_block` reads as that operator, or those three; "none" for None."""
    if operator is None:
        return "none"
    return "/".join(map(str, operator)) if isinstance(operator, tuple) else str(operator)


def text_of(operator: Operator) -> str:
    """The name of an operator, with what it has otherwise than the nearest of that name."""
    own = operator.options()
    best = None
    for name, known in _CATALOGUE.items():
        if type(known) is type(operator):
            theirs = known.options()
            changed = {key: value for key, value in own.items() if value != theirs[key]}
            if best is None or len(changed) < len(best[1]):
                best = name, changed
    if best is None:
        return repr(operator)
    name, changed = best
    return name + (f"({', '.join(f'{key}={value!r}' for key, value in changed.items())})" if changed else "")
