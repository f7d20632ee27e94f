"""Where the buffers of a network lie in one arena: the static plan of plain C, and TFLite Micro's own planner."""

from __future__ import annotations

import bisect
import functools
import random
from dataclasses import dataclass

STATIC_ALIGNMENT = 8
TFLM_ALIGNMENT = 16  # bytes; TFLite Micro's MicroArenaBufferAlignment()
_TRIES = 300  # orders of the buffers
# Kinds of operators that may write over an input that ends with them.
_IN_PLACE = ("add", "hard_swish", "leaky_relu", "multiply", "reshape", "sigmoid", "softmax")


@dataclass(frozen=True)
class Step:
    """One operator as a planner sees it. A tensor is (name, bytes).

    Args:
        kind: its name, as in `tflm_export.graph`.
    """

    kind: str
    inputs: tuple[tuple[str, int], ...]
    output: tuple[str, int]


def lives(steps, outside, scratch_bytes=()):
    """({buffer: (first step, last step, bytes)}, {tensor: its buffer}).

    A buffer is named by its first tensor, or is the index of the step whose scratch it is; an operator that may work in
    place shares its input's.

    Args:
        steps: of the network. outside: names of tensors that are the caller's.
        scratch_bytes: per step, 0 for none; empty for no scratch at all.
    """
    last = {name: index for index, step in enumerate(steps) for name, _ in step.inputs}
    homes, found = {}, {}
    for index, step in enumerate(steps):
        name, size = step.output
        if name not in outside:
            home = name
            if step.kind in _IN_PLACE:
                for tensor, bytes_ in step.inputs[: 1 if step.kind == "multiply" else None]:
                    if tensor not in outside and last[tensor] == index and bytes_ == size:
                        home = homes[tensor]
                        break
            homes[name] = home
            first = found[home][0] if home in found else index
            found[home] = (first, last[name], size)
        if len(scratch_bytes) and scratch_bytes[index]:
            found[index] = (index, index, int(scratch_bytes[index]))
    return found, homes


def static_plan(found, count):
    """({buffer: offset}, bytes of the arena): buffers one after another, each at the lowest offset free during its life.

    Their order decides how much is wasted between them. The largest go first; where that takes more than the step that
    needs most does, orders near the best one so far are tried.

    Args:
        found: of `lives`. count: how many steps.
    """
    order = sorted(found, key=lambda buffer: (-found[buffer][2], found[buffer][0], str(buffer)))
    places, arena = _search(tuple(found[buffer] for buffer in order), count)
    return {order[index]: offset for index, offset in places}, arena


@functools.lru_cache(maxsize=1 << 12)
def _search(buffers, count):
    """(((index, offset), ...) in the order of placing, bytes of the arena)."""
    most = [0] * count
    for first, last, size in buffers:
        for step in range(first, last + 1):
            most[step] += -(-size // STATIC_ALIGNMENT) * STATIC_ALIGNMENT
    most, order = max(most, default=0), list(range(len(buffers)))
    offsets, arena = _first_fit(buffers, count, STATIC_ALIGNMENT)
    draw = random.Random(0)  # the same network, the same plan
    for _ in range(_TRIES):
        if arena <= most or len(order) < 2:
            break
        trial = order.copy()
        trial.insert(draw.randrange(len(trial)), trial.pop(draw.randrange(len(trial))))
        placed, size = _first_fit([buffers[index] for index in trial], count, STATIC_ALIGNMENT)
        if size <= arena:
            order, offsets, arena = trial, placed, size
    return tuple(zip(order, offsets, strict=True)), arena


def alive(found, count):
    """Bytes that are alive at each step."""
    return [sum(size for start, end, size in found.values() if start <= index <= end) for index in range(count)]


def tflm_plan(buffers) -> int:
    """Bytes that TFLite Micro's greedy memory planner needs for buffers with lifetimes.

    The largest buffer comes first; each goes to the lowest gap that is large enough between those placed before it
    which are alive at the same time. Equal sizes are placed from the last to the first.

    Args:
        buffers: (bytes, first use, last use) of each, uses counted in operators from 0.
    """
    order = sorted(range(len(buffers)), key=lambda index: (-buffers[index][0], -index))
    count = 1 + max((last for _, _, last in buffers), default=-1)
    return _first_fit([(buffers[index][1], buffers[index][2], buffers[index][0]) for index in order], count, TFLM_ALIGNMENT)[1]


def _first_fit(buffers, count, alignment):
    """(offsets, bytes of the arena) of (first, last, bytes) that are placed in their order, each at the lowest offset."""
    placed = [[] for _ in range(count)]
    offsets, total = [], 0
    for first, last, size in buffers:
        size = -(-size // alignment) * alignment
        neighbours = placed[first] if first == last else sorted({b for step in placed[first : last + 1] for b in step})
        offset = 0
        for start, end in neighbours:
            if start - offset >= size:
                break
            if end > offset:
                offset = end
        offsets.append(offset)
        if offset + size > total:
            total = offset + size
        for step in placed[first : last + 1]:
            bisect.insort(step, (offset, offset + size))
    return offsets, total
