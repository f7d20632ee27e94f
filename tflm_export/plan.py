"""A static memory plan: where every activation and scratch buffer of a network lies in one arena."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saaug_keras import _arena
from tflm_export.quantize import Network

ALIGNMENT = _arena.STATIC_ALIGNMENT


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


def steps_of(network: Network) -> tuple[_arena.Step, ...]:
    """The network's operators as a planner sees them."""
    return tuple(
        _arena.Step(
            step.op.kind,
            tuple((tensor.name, tensor_bytes(tensor)) for tensor in step.inputs),
            (step.output.name, tensor_bytes(step.output)),
        )
        for step in network.steps
    )


def _lives(network, scratch_bytes):
    return _arena.lives(steps_of(network), {network.input.name, network.output.name}, scratch_bytes)


def make_plan(network: Network, scratch_bytes=()) -> Plan:
    """Places activations and scratch, as `_arena.static_plan` says.

    Args:
        scratch_bytes: per step, 0 for none; empty for no scratch at all.
    """
    lives, homes = _lives(network, scratch_bytes)
    offsets, arena = _arena.static_plan(lives, len(network.steps))
    tensors = {name: offsets[home] for name, home in homes.items()}
    scratch = {buffer: offset for buffer, offset in offsets.items() if isinstance(buffer, int)}
    return Plan(tensors, scratch, arena)


def largest_step(network: Network, scratch_bytes=()):
    """(name of the op, bytes) where the most is alive together, the network's own input and output apart."""
    lives, _ = _lives(network, scratch_bytes)
    sizes = _arena.alive(lives, len(network.steps))
    index = int(np.argmax(sizes))
    return network.steps[index].op.name, sizes[index]
