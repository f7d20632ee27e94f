"""Requantization by shifts alone: networks in which nothing is multiplied.

Every scale of an activation becomes a power of two, and so does the gain of every output channel of our layers. A
channel is then off by up to a factor of 2**0.5; layer after layer, the shift and the bias are chosen that bring the
channel's output closest to the float network's on representative data, given the int8 input that the layer really gets.
So an error that one layer leaves is the next one's to take back where it can.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tflm_export import graph as ir
from tflm_export import reference
from tflm_export.fixed_point import ACCUMULATOR_LIMIT
from tflm_export.quantize import Network

_IMAGES = 32


def requantize_by_shifts(network: Network, graph: ir.Graph, images) -> Network:
    """The network with shifts in the place of the multiplications that requantize our layers.

    Args:
        network: of the custom flavour, quantized as usual.
        graph: that it was made of.
        images: representative float32 (N, H, W, C); the first 32 are used.
    Raises:
        ValueError: a layer whose inputs have fewer than 8 bits, whose grid would have to be a power of two; or a bias
            that a shift alone cannot bring into the accumulator.
    """
    for op in graph.ops:
        if op.weights is not None and op.weights.input_bits < 8:
            raise ValueError(
                f"tflm_export: layer '{op.name}' must have `activation_bits` 8 or None for requantization "
                f"'power-of-two'. Received: activation_bits={op.weights.input_bits}. Export with requantization='q31'."
            )
    images = images[:_IMAGES]
    wanted = {}
    ir.run_float(graph, images, wanted)
    values = {network.input.name: network.input.quantize(images)}
    steps = []
    for step in network.steps:
        inputs = [values[tensor.name] for tensor in step.inputs]
        if step.constants is not None and step.constants.operator.kernels:
            step = _shifted(step, inputs[0], wanted[step.op.name])
        values[step.output.name] = reference.run_step(step, inputs)
        steps.append(step)
    return dataclasses.replace(network, steps=tuple(steps))


def _shifted(step, x, wanted):
    constants = step.constants
    channels = len(constants.bias)
    sums = reference.accumulate(step, x).reshape(-1, channels).astype("float64")
    wanted = wanted.reshape(-1, channels) / float(step.output.scale)  # in steps of the output, zero at zero
    wanted = np.clip(wanted, -(2.0**16), 2.0**16)  # the output holds 256 of them, and a bias must fit
    low, high = step.act_min - step.output.zero_point, step.act_max - step.output.zero_point
    sign = np.where(constants.multiplier < 0, -1.0, 1.0)
    gain = np.abs(constants.multiplier) * 2.0 ** (-31 - constants.shift.astype("float64"))
    nearest = np.round(-np.log2(np.maximum(gain, 2.0**-30)))
    best = np.full(channels, np.inf)
    shift, offset = np.ones(channels), np.zeros(channels)
    for change in (0, -1, 1):
        candidate = np.clip(nearest + change, 1, 30)
        scaled = sums * (sign * 2.0**-candidate)
        candidate_offset = wanted.mean(axis=0) - scaled.mean(axis=0)
        error = np.square(np.clip(scaled + candidate_offset, low, high) - np.clip(wanted, low, high)).mean(axis=0)
        better = error < best
        best = np.where(better, error, best)
        shift, offset = np.where(better, candidate, shift), np.where(better, candidate_offset, offset)
    most = _largest_bias(step)
    # A constant channel takes the finest shift that its bias allows; so does a channel whose bias is too large.
    bias = np.round(offset * 2.0**shift * sign)
    while (np.abs(bias) > most).any():
        shift = np.where(np.abs(bias) > most, shift - 1, shift)
        bias = np.round(offset * 2.0**shift * sign)
    if shift.min() < 1:
        channel = int(shift.argmin())
        raise ValueError(
            f"tflm_export: layer '{step.op.name}', output channel {channel}: with a shift alone its bias of "
            f"{offset[channel]:,.3g} output steps does not fit the accumulator. Export with requantization='q31'."
        )
    changed = dataclasses.replace(
        constants, bias=bias.astype("int32"), multiplier=sign.astype("int32"), shift=shift.astype("int32"), power_of_two=True
    )
    return dataclasses.replace(step, constants=changed)


def _largest_bias(step):
    """Per channel, the largest bias that leaves the accumulator within the kernels' contract."""
    operator, weights = step.constants.operator, step.constants.weights
    rows = weights.reshape(len(weights), -1).astype("int64")
    folded = np.abs(operator.folded(np.zeros(len(rows), "int64"), rows, step.inputs[0].zero_point))
    return ACCUMULATOR_LIMIT - folded - operator.reach(rows)
