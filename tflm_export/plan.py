"""A static memory plan: where every activation and scratch buffer of a network lies in one arena."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tflm_export.quantize import Network

ALIGNMENT = 8
_TRIES = 300  # orders of the buffers
# Kinds that may write over an input that ends with them.
_IN_PLACE = ("add", "hard_swish", "leaky_relu", "multiply", "reshape", "sigmoid", "softmax")


@dataclass(frozen=True, eq=False)
class Plan:
    """Offsets in bytes into an arena of `arena_bytes`.

    Args:
        tensors: name -> offset. The network's input and output are the caller's and have none.
        scratch: index of a step -> offset, for steps with scratch.
    """

    tensors: dict[str, int]
    scratch: dict[int, int]
    arena_bytes: int


def tensor_bytes(tensor):
    """Bytes of an int8 activation."""
    return int(np.prod(tensor.shape))


def _buffers(network: Network, scratch_bytes):
    """({buffer: (first step, last step, bytes)}, {tensor: its buffer}).

    A buffer is named by its first tensor, or is the index of the step whose scratch it is; an op that may work in place
    shares its input's.
    """
    outside = {network.input.name, network.output.name}
    last = {tensor.name: index for index, step in enumerate(network.steps) for tensor in step.inputs}
    homes, lives = {}, {}
    for index, step in enumerate(network.steps):
        name, size = step.output.name, tensor_bytes(step.output)
        if name not in outside:
            home = name
            if step.op.kind in _IN_PLACE:
                for tensor in step.inputs[: 1 if step.op.kind == "multiply" else None]:
                    ends_here = tensor.name not in outside and last[tensor.name] == index
                    if ends_here and tensor_bytes(tensor) == size:
                        home = homes[tensor.name]
                        break
            homes[name] = home
            first = lives[home][0] if home in lives else index
            lives[home] = (first, last[name], size)
        if len(scratch_bytes) and scratch_bytes[index]:
            lives[index] = (index, index, int(scratch_bytes[index]))
    return lives, homes


def make_plan(network: Network, scratch_bytes=()) -> Plan:
    """Places buffers one after another, each at the lowest offset that is free during its life.

    Their order decides how much is wasted between them. The largest go first; where that takes more than the step that
    needs most does, orders near the best one so far are tried.

    Args:
        scratch_bytes: per step, 0 for none; empty for no scratch at all.
    """
    lives, homes = _buffers(network, scratch_bytes)
    most = max(_alive(lives, len(network.steps), _aligned), default=0)
    order = sorted(lives, key=lambda buffer: (-lives[buffer][2], lives[buffer][0], str(buffer)))
    offsets, arena = _place(order, lives)
    draw = random.Random(0)  # the same network, the same plan
    for _ in range(_TRIES):
        if arena <= most or len(order) < 2:
            break
        trial = order.copy()
        trial.insert(draw.randrange(len(trial)), trial.pop(draw.randrange(len(trial))))
        found, size = _place(trial, lives)
        if size <= arena:
            order, offsets, arena = trial, found, size
    tensors = {name: offsets[home] for name, home in homes.items()}
    scratch = {buffer: offset for buffer, offset in offsets.items() if isinstance(buffer, int)}
    return Plan(tensors, scratch, arena)


def _place(order, lives):
    """({buffer: offset}, bytes of the arena) for buffers placed in an order."""
    offsets, arena = {}, 0
    for buffer in order:
        start, end, size = lives[buffer]
        offset = 0
        for other in sorted(offsets, key=offsets.get):
            if lives[other][1] < start or lives[other][0] > end:
                continue
            if offset + size <= offsets[other]:
                break
            offset = max(offset, _aligned(offsets[other] + lives[other][2]))
        offsets[buffer] = offset
        arena = max(arena, offset + size)
    return offsets, _aligned(arena)


def _alive(lives, steps, size_of=int):
    """Bytes that are alive at each step."""
    return [sum(size_of(size) for start, end, size in lives.values() if start <= index <= end) for index in range(steps)]


def largest_step(network: Network, scratch_bytes=()):
    """(name of the op, bytes) where the most is alive together, the network's own input and output apart."""
    lives, _ = _buffers(network, scratch_bytes)
    sizes = _alive(lives, len(network.steps))
    index = int(np.argmax(sizes))
    return network.steps[index].op.name, sizes[index]


def _aligned(offset):
    return -(-offset // ALIGNMENT) * ALIGNMENT
