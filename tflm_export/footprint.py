"""What an exported network takes of a core's memory: linked where the core's compiler is there, else modelled."""

from __future__ import annotations

import dataclasses

from saaug_keras import _scratch, memory
from saaug_keras.memory import Memory, Operation
from tflm_export import flatbuffer, linking, plan, reference
from tflm_export.quantize import Network

_FUNCTIONS = {  # of plain C, by kind of op
    "average_pool": "saaug_plain_average_pool",
    "concatenate": "saaug_plain_copy_rows",
    "conv": "saaug_plain_conv_2d",
    "dense": "saaug_plain_conv_2d",
    "depthwise": "saaug_plain_depthwise_conv_2d",
    "hard_swish": "saaug_plain_hard_swish_tensor",
    "leaky_relu": "saaug_plain_look_up",
    "max_pool": "saaug_plain_max_pool",
    "mean": "saaug_plain_mean_over_image",
    "multiply": "saaug_plain_multiply_tensors",
    "pad": "saaug_plain_pad_image",
    "reshape": "memcpy",
    "resize": "saaug_plain_resize_bilinear",
    "sigmoid": "saaug_plain_look_up",
    "softmax": "saaug_plain_softmax_rows",
}


def operations_of(network: Network) -> tuple[Operation, ...]:
    """The network's operators as the model of `saaug_keras.memory` prices them."""
    ours = network.flavour == "custom"
    return tuple(_operation(step, seen, ours) for step, seen in zip(network.steps, plan.steps_of(network), strict=True))


def _operation(step, seen, ours):
    if ours and flatbuffer.is_ours(step):
        layer = flatbuffer.custom_layer(step)
        record = layer.record
        flat = step.op.kind == "dense"
        shapes = [(1, 1, plan.tensor_bytes(tensor)) if flat else tensor.shape for tensor in (step.inputs[0], step.output)]
        window = _scratch.Window(
            record.layout,
            *map(tuple, shapes),
            (record.kernel_h, record.kernel_w),
            (record.stride_h, record.stride_w),
            (record.dilation_h, record.dilation_w),
            record.depth_multiplier,
        )
        return Operation(seen, f"saaug_{layer.name.lower()}_s8", _words(layer.weights.nbytes) + layer.params.nbytes, window)
    kind = "depthwise" if step.op.kind == "channel_shift" else step.op.kind
    if kind == "add":
        return Operation(seen, reference.add_function(step), 0)
    calls = len(step.inputs) if kind == "concatenate" else 1
    constants, channels = 256 if _FUNCTIONS[kind] == "saaug_plain_look_up" else 0, 0
    if step.constants is not None:
        channels = len(step.constants.bias)
        constants = _words(step.constants.weights.size) + 12 * channels
    return Operation(dataclasses.replace(seen, kind=kind), _FUNCTIONS[kind], constants, calls=calls, channels=channels)


def _words(size):
    return -(-size // 4) * 4


def outside(network: Network) -> dict[str, int]:
    """{name: bytes} of the network's input and output."""
    return {tensor.name: plan.tensor_bytes(tensor) for tensor in (network.input, network.output)}


def measure_c(network: Network, sources, word, core, optimize=memory.OPTIMIZATIONS[0]) -> Memory:
    """What a project of plain C takes.

    Args:
        sources: texts of the generated C files, by name. word: the network's name in C.
        core, optimize: as `saaug_keras.memory.model_c`.
    """
    if not linking.can_link(core):
        return model_c(network, core, optimize)
    (flash, static), (run_alone, _) = linking.sizes(sources, word, core, optimize, (("run", "check"), ("run",)))
    operations = operations_of(network)
    constants, ram = memory.constants_c(operations), memory.ram_c(operations, outside(network), core)
    if more := static - ram["activations and scratch"]:
        ram["static data"] = more
    parts = {"constants": constants, "code": run_alone - constants, "check": flash - run_alone}
    return Memory.of("c", core, optimize, "linked", flash=parts, ram=ram)


def model_c(network: Network, core, optimize=memory.OPTIMIZATIONS[0], *, table=None) -> Memory:
    """The same without a compiler for the core. `table`: as `saaug_keras.memory.model_c`."""
    return memory.model_c(operations_of(network), outside(network), core, optimize, table=table)


def model_tflm(network: Network, model_bytes, core) -> Memory:
    """What a network takes with TFLite Micro, whose own code is not here to link: see `saaug_keras.memory.model_tflm`."""
    return memory.model_tflm(operations_of(network), outside(network), model_bytes, core)
