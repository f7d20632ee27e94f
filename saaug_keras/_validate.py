"""Checks of arguments: the only place that words an argument error.

Every message says the owner, the argument, what it must be and what came. Values raise ValueError, kinds TypeError.
"""

import numbers
import operator


def _fail(kind, owner, name, must_be, value):
    raise kind(f"{owner}: `{name}` must be {must_be}. Received: {name}={value!r}.")


def int_in(owner, name, value, low, high, unit=""):
    """`value` as an int in [low, high]; bool is not an int."""
    must_be = f"an int in [{low}, {high}]{unit}"
    if isinstance(value, bool):
        _fail(TypeError, owner, name, must_be, value)
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None:
        _fail(TypeError, owner, name, must_be, value)
    if not low <= number <= high:
        _fail(ValueError, owner, name, must_be, value)
    return number


def number_in(owner, name, value, low, high, unit=""):
    """`value` as a float in [low, high]; NaN is outside."""
    must_be = f"a number in [{low}, {high}]{unit}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        _fail(TypeError, owner, name, must_be, value)
    if not low <= value <= high:
        _fail(ValueError, owner, name, must_be, value)
    return float(value)


def one_of(owner, name, value, choices):
    """`value`, one of `choices` (listed sorted in the message)."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        listed = ", ".join(repr(choice) for choice in sorted(choices, key=str))
        _fail(ValueError, owner, name, f"one of {listed}", value)
    return value


def pair_of(owner, name, value, low=1):
    """`value`, an int or two of them, each at least `low`, as a tuple of two ints."""
    must_be = f"an int or a pair of ints, each at least {low}"
    pair = (value, value) if not isinstance(value, (tuple, list)) else tuple(value)
    if len(pair) != 2:
        _fail(ValueError, owner, name, must_be, value)
    numbers_ = []
    for item in pair:
        if isinstance(item, bool):
            _fail(TypeError, owner, name, must_be, value)
        try:
            numbers_.append(operator.index(item))
        except TypeError:
            numbers_.append(None)
    if None in numbers_:
        _fail(TypeError, owner, name, must_be, value)
    if min(numbers_) < low:
        _fail(ValueError, owner, name, must_be, value)
    return tuple(numbers_)
