"""What a network costs, from its spec alone: operations, parameters, flash, SRAM, and energy and latency by a formula.

Three views that are never mixed in one number:

- Operations of one inference, by kind: multiplications, shifts, additions.
- Memory of a microcontroller: everything in flash and everything in RAM for a target and a core; see `memory`.
- Energy and latency of an Eyeriss-like accelerator with DRAM, the view of the papers. It predicts nothing about a
  microcontroller, which has neither DRAM nor an array of processing elements.

Two conventions:

- "honest", the default: a multiplication or shift is followed by an addition; an Add tap is a subtraction and an
  addition; integer layers requantize every output; residual additions, pooling and squeeze-excite count; a depthwise
  layer reads all its channels, which is 11 to 16% more energy for the tiny backbones at 32 bits.
- "paper": one operation per tap of a layer with weights and nothing else, as ShiftAddNAS and ShiftAddAug count, and the
  memory formula as they apply it, in which a depthwise layer's input has one channel. It reproduces the energies of
  ShiftAddAug's multiplicative networks to every printed digit.

Three bit widths (`bits`): 32 (floating point; shifts on 32-bit integers), 8 (integers, weights in a byte each) and
None, as deployed: 8-bit activations and weights of their operator's width. In the convention "paper", deployed means
the authors' rule instead: "conv" and "adder" at 32 bits, and shift layers with all their traffic, and their time, at
(16 + 5) / 2 bits. That rule gives the plotted 0.74 mJ of the shift MobileNetV2 and the speed-up of 3.05; what the
authors charged for Add layers is not known, and 32 bits is our choice.

Sources: Horowitz, ISSCC 2014 (energy of an operation); ShiftAddNet, arXiv:2010.12785, and ShiftAddNAS, arXiv:2205.08119
(shifts, the formula); Chen et al., Eyeriss, ISSCC 2016 (the accelerator).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np

from saaug_keras import _arena, _scratch, _validate, memory, operators
from saaug_keras.backbones import KINDS, LayerSpec, NetSpec, check_layer_options, lower, operator_of

CONVENTIONS = ("honest", "paper")

# Energy of an operation in pJ, 45 nm. Multiply and add: Horowitz, ISSCC 2014, fig. 1.1.9. Shift: ShiftAddNet, table 1.
MULTIPLY_PJ = {"fp32": 3.7, "int32": 3.1, "int8": 0.2}
ADD_PJ = {"fp32": 0.9, "int32": 0.1, "int8": 0.03}
SHIFT_PJ = {"int32": 0.13, "int8": 0.024}

# Energy of moving 16 bits in pJ: ShiftAddNAS, after Eyeriss's ratios of 200 : 6 : 2 : 1 to a register access of 3.7 pJ.
# DRAM keeps the absolute 200.
DRAM_PJ = 200.0
BUFFER_PJ = 6 * 3.7
NETWORK_PJ = 2 * 3.7
NETWORK_SUM_PJ = 1 * 3.7  # partial sums go to the neighbour
REGISTER_PJ = 1 * 3.7
REGISTER_WEIGHT_PJ = 2 * 3.7

CLOCK_HZ = 250e6  # ShiftAddNAS; Eyeriss ran at 200 MHz
# Capacities at 32 bits, in elements: ShiftAddNAS. At 8 bits memories hold twice as many, and there are four times as
# many processing elements.
SUM_REGISTERS = 16
INPUT_REGISTERS = 12
WEIGHT_REGISTERS = 192 * 5
BUFFER_ELEMENTS = 65536
PROCESSING_ELEMENTS = 16 * 12

# Bytes of an exported model beside weights and parameters: names, shapes, quantization and options of each operator and
# its tensors; fitted to some 60 exported networks, whose sizes it gives within 2.5%, large ones within 0.2%.
MODEL_NETWORK = 800
MODEL_OPERATOR = {"conv": 380, "custom": 325, "other": 200}
# An output channel of a layer with multiplications: scale of weight and bias, the bias, and a share of alignment that is
# fitted to exported files. Of our own operators: bias, multiplier and shift.
MODEL_CHANNEL = {"conv": 14, "custom": 12}

ROUNDING_STEPS = 2  # before a layer whose inputs had fewer than 8 bits in training


@dataclass(frozen=True)
class LayerCost:
    """Costs of one layer of one inference; energy and latency of the accelerator."""

    name: str
    kind: str
    operator: str
    macs: int
    multiplies: int
    shifts: int
    adds: int
    params: int
    model_bytes: int
    output_bytes: int
    energy_mj: float
    latency_ms: float


@dataclass(frozen=True)
class NetCost:
    """Costs of a network.

    Attributes:
        bits: 32, 8 or None (as deployed).
        convention: "honest" or "paper".
        macs: taps of all weights, whatever their operator: the MACs of the multiplicative network.
        multiplies, shifts, adds: operations by kind; `operations` is their sum.
        params: weights and biases, batch norm folded.
        flash_bytes, ram_bytes: everything that the deployed network takes of a core's memory; see `memory`. None at 32
            bits, which is never exported.
        memory: these two with their parts, a `memory.Memory`; None at 32 bits.
        model_bytes: the model file for TFLite Micro: as deployed, weights packed and our own operators; at 8 bits,
            built-in operators where there are any; at 32 bits 4 bytes a parameter.
        activation_bytes: the activations in TFLite Micro's arena, as its memory planner lays them out.
        energy_mj, latency_ms: of the accelerator.
        layers: tuple of `LayerCost`.
    """

    bits: int | None
    convention: str
    macs: int
    multiplies: int
    shifts: int
    adds: int
    params: int
    flash_bytes: int | None
    ram_bytes: int | None
    model_bytes: int
    activation_bytes: int
    energy_mj: float
    latency_ms: float
    memory: memory.Memory | None
    layers: tuple[LayerCost, ...]

    @property
    def operations(self) -> int:
        """Multiplications, shifts and additions together."""
        return self.multiplies + self.shifts + self.adds

    def as_dict(self, *, layers: bool = False) -> dict:
        """Plain data for JSON; with `layers`, those of every layer, too."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("layers", "memory")}
        data["bits"] = "deployed" if self.bits is None else self.bits
        data["operations"] = self.operations
        data["memory"] = self.memory and self.memory.as_dict()
        if layers:
            data["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        return data


_SUMMED = ("macs", "multiplies", "shifts", "adds", "params", "model_bytes", "energy_mj", "latency_ms")


def estimate(
    spec: NetSpec,
    *,
    bits: int | None = None,
    convention: str = "honest",
    layer_options: dict | None = None,
    target: str = "c",
    core: str = "m4",
) -> NetCost:
    """The costs of a network, without building it.

    The search for an accelerator's tiling is kept per layer geometry: a network of known geometries takes well under a
    millisecond; a first network takes some tens of milliseconds, and one that shares its shapes with those seen before
    pays for the new ones only.

    Args:
        spec: the network. Blocks of depth augmentation (`kept=False`) cost nothing: they are not deployed.
        bits: 32, 8 or None; see the module.
        convention: "honest" or "paper"; see the module.
        layer_options: as for `augment`; they count as deployed. Weights of up to 7 exponents are stored in half a byte,
            others in one. Activations take a byte; where a layer was trained with fewer bits, two steps before it round
            its inputs, whose operations and bytes are the layer's.
        target, core: of `memory.TARGETS` and `memory.CORES`: what flash and RAM are counted for.
    Raises:
        ValueError: an unknown convention, bit width, option, target or core.
        TypeError: `spec` is no `NetSpec`.
    """
    if not isinstance(spec, NetSpec):
        raise TypeError(f"cost.estimate: `spec` must be a NetSpec. Received: spec={spec!r}.")
    if bits not in (None, 8, 32) or isinstance(bits, float):
        raise ValueError(f"cost.estimate: `bits` must be 8, 32 or None (as deployed). Received: bits={bits!r}.")
    _validate.one_of("cost.estimate", "convention", convention, CONVENTIONS)
    memory.check("cost.estimate", target, core)
    lowered = lower(spec)
    if layer_options:
        layer_options = check_layer_options("cost.estimate", layer_options, spec)
    paper = convention == "paper"
    rounded = {layer.name for layer in lowered if bits is None and _reads_few_bits(layer, layer_options)}
    layers = tuple(
        _layer_cost(layer, _code_bytes(layer, layer_options), layer.name in rounded, bits, paper) for layer in lowered
    )
    total = {name: sum(getattr(layer, name) for layer in layers) for name in _SUMMED}
    total["model_bytes"] += 0 if bits == 32 else MODEL_NETWORK
    activations = _arena.tflm_plan(_buffers(lowered, 4 if bits == 32 else 1, rounded))
    taken = None if bits == 32 else _memory(lowered, layer_options, rounded, bits, target, core, total["model_bytes"])
    return NetCost(
        bits=bits,
        convention=convention,
        flash_bytes=taken and taken.flash_bytes,
        ram_bytes=taken and taken.ram_bytes,
        activation_bytes=activations,
        memory=taken,
        layers=layers,
        **total,
    )


def compare(spec: NetSpec, *, convention: str = "honest", layer_options: dict | None = None, **where) -> dict[str, NetCost]:
    """Operator and bit width apart: the costs of a network and of its multiplicative twin.

    Args: as `estimate`; `where`: target and core.
    Returns:
        "fp32_multiply" and "int8_multiply", the twin; "operator_alone", this network at 32 bits; "deployed".
    """
    twin = spec.with_operator("conv")
    return {
        "fp32_multiply": estimate(twin, bits=32, convention=convention, **where),
        "int8_multiply": estimate(twin, bits=8, convention=convention, **where),
        "operator_alone": estimate(spec, bits=32, convention=convention, **where),
        "deployed": estimate(spec, convention=convention, layer_options=layer_options, **where),
    }


# ---------------------------------------------------------------------------------------------------------------------
# One layer


@functools.lru_cache(maxsize=1 << 14)
def _layer_cost(layer: LayerSpec, code_bytes, rounds_inputs, bits, paper) -> LayerCost:
    _validate.one_of("cost", "kind", layer.kind, KINDS)
    operations, operation_pj = _operations(layer, bits, paper)
    model = _model(layer, code_bytes, bits)
    if rounds_inputs:  # depthwise steps of one tap
        channels, steps = layer.input_shape[2], ROUNDING_STEPS
        model += steps * (MODEL_OPERATOR["conv"] + channels * (1 + MODEL_CHANNEL["conv"]))
    energy, latency = (operation_pj, 0.0)
    if layer.weight_count:
        energy, latency = _accelerate(layer, code_bytes, bits, paper, operation_pj)
    if rounds_inputs and not paper:
        times = ROUNDING_STEPS * int(np.prod(layer.input_shape))
        each = {"multiplies": 2, "shifts": 1, "adds": 2}  # the tap, and requantization
        operations = {name: count + each[name] * times for name, count in operations.items()}
        wide = MULTIPLY_PJ["int32"] + SHIFT_PJ["int32"] + 2 * ADD_PJ["int32"]
        energy += times * (MULTIPLY_PJ["int8"] + wide)
    height, width, channels = layer.output_shape
    return LayerCost(
        name=layer.name,
        kind=layer.kind,
        operator=operators.to_text(layer.operator),
        macs=layer.taps,
        **operations,
        params=layer.weight_count + layer.bias_count,
        model_bytes=model,
        output_bytes=height * width * channels * (4 if bits == 32 else 1),
        energy_mj=energy * 1e-9,
        latency_ms=latency,
    )


def _operations(layer: LayerSpec, bits, paper):
    """Counts by kind, and their energy in pJ."""
    height, width, channels = layer.output_shape
    outputs = height * width * channels
    if bits is None and paper:
        bits = 32
    floats = bits == 32
    small, wide = ("fp32", "fp32") if floats else ("int8", "int32")
    shift_pj = SHIFT_PJ["int32" if floats else "int8"]
    multiplies = shifts = adds = 0
    energy = 0.0
    if layer.weight_count:
        tap, taps = layer.operator.tap, layer.taps
        counts = dict.fromkeys(("multiplies", "shifts", "adds"), 0)
        if tap is not None:
            _validate.one_of("cost", f"tap of operator {layer.operator}", tap, tuple(counts))
            counts[tap] = taps
            energy = taps * {"multiplies": MULTIPLY_PJ[small], "shifts": shift_pj, "adds": ADD_PJ[small]}[tap]
        multiplies, shifts, adds = counts.values()
        if not paper:  # the sum, which starts at the bias
            adds, energy = adds + taps, energy + taps * ADD_PJ[wide]
    elif not paper and not _moves(layer):
        inputs = int(np.prod(layer.input_shape))
        if layer.kind == "pool":
            adds, energy = inputs, inputs * ADD_PJ[wide]
        elif layer.kind == "add":
            adds, energy = outputs, outputs * ADD_PJ[wide]
        elif layer.kind == "multiply":
            multiplies, energy = outputs, outputs * MULTIPLY_PJ[small]
        elif layer.kind == "resize":  # bilinear, as TFLite Micro: four neighbours, each times two weights
            multiplies, adds = 8 * outputs, 3 * outputs
            energy = outputs * (8 * MULTIPLY_PJ[wide] + 3 * ADD_PJ[wide])
        else:
            _validate.one_of("cost", "kind without weights", layer.kind, ("add", "multiply", "pool", "resize"))
    swish = 0 if paper or layer.activation != "hard_swish" else outputs  # x * (relu6(x + 3) / 6)
    multiplies, adds, energy = multiplies + swish, adds + swish, energy + swish * (MULTIPLY_PJ[small] + ADD_PJ[small])
    if not (paper or floats or _moves(layer)):
        # Requantization: a 32-bit product, a rounding addition and a shift; a residual addition brings both its inputs
        # to one scale first. A resize keeps its scale and only rounds.
        times = outputs * {"add": 3, "resize": 0}.get(layer.kind, 1) + swish
        extra = max(times, outputs)
        multiplies, shifts, adds = multiplies + times, shifts + extra, adds + extra
        energy += times * MULTIPLY_PJ["int32"] + extra * (SHIFT_PJ["int32"] + ADD_PJ["int32"])
    return {"multiplies": multiplies, "shifts": shifts, "adds": adds}, energy


def _accelerate(layer: LayerSpec, code_bytes, bits, paper, operation_pj):
    """Energy (pJ) and latency (ms) of a layer with weights on the accelerator."""
    activation_bits = weight_bits = 8 if bits is None else bits
    slower = 1.0
    if bits is None:
        if paper:
            activation_bits = weight_bits = layer.operator.paper_bits
            slower = activation_bits / 32
        else:
            weight_bits = 8 * code_bytes
    height, width, channels = layer.input_shape
    memory, latency = _tile(
        height,
        width,
        1 if layer.kind == "depthwise" else channels,
        *layer.output_shape,
        layer.kernel_size,
        layer.strides,
        layer.dilation,
        operation_pj,
        activation_bits,
        weight_bits,
        layer.kind == "depthwise" and not paper,
        bits == 8 or (bits is None and not paper),
    )
    return operation_pj + memory, latency * slower


@functools.cache
def _factorizations(number: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """All ordered ways of writing `number` as a product of `parts` factors."""
    if parts == 1:
        return ((number,),)
    return tuple(
        (divisor, *rest)
        for divisor in range(1, number + 1)
        if number % divisor == 0
        for rest in _factorizations(number // divisor, parts - 1)
    )


@functools.lru_cache(maxsize=256)
def _factor_columns(number: int, parts: int) -> np.ndarray:
    return np.array(_factorizations(number, parts), np.float64).T


@functools.lru_cache(maxsize=1 << 15)
def _tile(
    height,
    width,
    channels,
    out_height,
    out_width,
    filters,
    kernel,
    stride,
    dilation,
    operation_pj,
    activation_bits,
    weight_bits,
    reads_all,
    eight_bit,
):
    """Energy of memory (pJ) and latency (ms) of the best tiling of a layer, by ShiftAddNAS's formula.

    With H, W, C the input's and E, F, M the output's sizes, R = S the kernel, M = M0 M1 M2 M3, C = C0 C1 C2, E = E1 E3:

        energy  = DRAM     * (M3 I + E3 K + O)
                + buffer   * (M3 M2 I + max(2 (C2 - 1), 1) O)
                + network  * (M3 M2 M1 R E/H I + E3 E1 K) + network_sum * max(C2 (C1 R - 1), 1) O
                + register * (M3 M2 M1 M0 R S E/H F/W I + max(2 C2 C1 R (C0 S - 1), 1) O) + register_weight * E3 E1 F K
        latency = M3 M2 M0 C2 C0 E3 F S / clock

    where I, K and O are the sizes of input, kernel and output. The best tiling has the least sum of energy above the
    least and latency above the least, each relative to its largest value. The input term depends on the tiling of M
    alone, the kernel's on E's and the output's on C's, so that only sums and limits are formed for every combination.

    `operation_pj` is the energy of the layer's operations, which weighs energy against latency. `reads_all`: the input
    of a depthwise layer (C = 1 per group) is read once per channel. Ours, where no tiling is legal: first E1 = 1 is
    allowed, as it is for dense layers, then every tiling.
    """
    m0, m1, m2, m3 = (column[:, None, None] for column in _factor_columns(filters, 4))
    c0, c1, c2 = (column[None, :, None] for column in _factor_columns(channels, 3))
    e1, e3 = (column[None, None, :] for column in _factor_columns(out_height, 2))

    more, elements = (2, 4) if eight_bit else (1, 1)
    legal_m = (m0 <= SUM_REGISTERS * more) & (m1 * kernel < PROCESSING_ELEMENTS * elements)
    legal_c = (c0 * kernel < INPUT_REGISTERS * more) & (c1 * kernel < PROCESSING_ELEMENTS * elements)
    if legal_m.any() and legal_c.any():
        m0, m1, m2, m3 = (column[legal_m][:, None, None] for column in (m0, m1, m2, m3))
        c0, c1, c2 = (column[legal_c][None, :, None] for column in (c0, c1, c2))
    reach = (kernel - 1) * dilation + 1
    legal = (
        (m0 * c0 * kernel < WEIGHT_REGISTERS * more)
        & ((m1 * e1) * c1 * kernel < PROCESSING_ELEMENTS * elements)
        & (
            c1 * c0 * (((e1 - 1) * stride + reach) * ((out_width - 1) * stride + reach)) + (m2 * m1 * m0) * (e1 * out_width)
            < BUFFER_ELEMENTS * more
        )
    )
    spread = legal & (e1 != 1)
    if spread.any():
        legal = spread
    elif not legal.any():
        legal = np.ones_like(legal)

    image, out = height * width * channels, out_height * out_width * filters
    weights = kernel * kernel * channels * filters
    rows, columns = out_height / height, out_width / width
    reads = (filters,) * 3 if reads_all else (m3, m3 * m2, m3 * m2 * m1)
    input_pj = image * (
        DRAM_PJ * reads[0]
        + BUFFER_PJ * reads[1]
        + NETWORK_PJ * kernel * rows * reads[2]
        + REGISTER_PJ * filters * kernel * kernel * rows * columns
    )
    output_pj = out * (
        DRAM_PJ
        + BUFFER_PJ * np.maximum(2 * (c2 - 1), 1)
        + NETWORK_SUM_PJ * np.maximum(c2 * (c1 * kernel - 1), 1)
        + REGISTER_PJ * np.maximum(2 * c2 * c1 * kernel * (c0 * kernel - 1), 1)
    )
    weight_pj = weights * (DRAM_PJ * e3 + NETWORK_PJ * out_height + REGISTER_WEIGHT_PJ * out_height * out_width)

    energy = (input_pj + output_pj) * (activation_bits / 16) + weight_pj * (weight_bits / 16)
    energy = np.broadcast_to(energy, legal.shape)[legal]
    cycles = ((m3 * m2 * m0) * (c2 * c0) * (e3 * (out_width * kernel)))[legal]
    most = energy.max() + operation_pj
    best = ((energy - energy.min()) / most + (cycles - cycles.min()) / cycles.max()).argmin()
    return float(energy[best]), float(cycles[best]) / CLOCK_HZ * 1e3


# ---------------------------------------------------------------------------------------------------------------------
# Memory of a microcontroller


def _code_bytes(layer: LayerSpec, layer_options) -> float:
    """Bytes of a deployed weight. The exporter halves those of a wide layer whose exponents happen to fit 4 bits."""
    operator = operator_of(layer, layer_options)
    return 1 if operator is None else operator.weight_bytes


def _reads_few_bits(layer: LayerSpec, layer_options) -> bool:
    """Whether a layer was trained with inputs of fewer bits than the exported model's."""
    if not layer_options or layer.operator is None:
        return False
    bits = operator_of(layer, layer_options).inputs_bits
    return bits is not None and bits < 8


def _moves(layer: LayerSpec) -> bool:
    """Whether a layer computes nothing: memory moves alone."""
    return layer.operator is not None and layer.operator.moves


def _is_custom(layer: LayerSpec, bits) -> bool:
    """Whether a layer is one of our own operators in the exported model."""
    operator = layer.operator
    return operator is not None and (operator.distance or (not operator.is_builtin and bits is None))


def _model(layer: LayerSpec, code_bytes, bits) -> int:
    """Bytes of a layer in the exported model."""
    if bits == 32:
        return 4 * (layer.weight_count + layer.bias_count)
    swish = MODEL_OPERATOR["other"] if layer.activation == "hard_swish" else 0
    channels, weights = layer.output_shape[2], layer.weight_count
    if _moves(layer) and bits == 8:
        weights = layer.kernel_size**2 * channels  # a built-in operator moves by weights of 0 and 1
    if not weights:
        return MODEL_OPERATOR["other"] + swish
    if not _is_custom(layer, bits):
        return weights + channels * MODEL_CHANNEL["conv"] + MODEL_OPERATOR["conv"] + swish
    return _packed(layer, code_bytes) + channels * MODEL_CHANNEL["custom"] + MODEL_OPERATOR["custom"] + swish


def _buffers(layers: tuple[LayerSpec, ...], element_bytes: int, rounded=()) -> list[tuple[int, int, int]]:
    """(bytes, first use, last use) of every activation, in the order of TFLite Micro's tensors.

    A use is an operator's number, from 1; the image is there at 0. Batch norm and clamping activations are part of the
    layer's operator; hard-swish is an operator of its own, and so are the steps before layers whose names are `rounded`.
    """
    height, width, channels = layers[0].input_shape
    buffers = [[height * width * channels * element_bytes, 0, 0]]
    home, step = {"input": 0}, 0
    for layer in layers:
        inputs = [home[name] for name in layer.inputs]
        shapes = [layer.input_shape] * (ROUNDING_STEPS if layer.name in rounded else 0)
        shapes += [layer.output_shape] * (2 if layer.activation == "hard_swish" else 1)
        for height, width, channels in shapes:
            step += 1
            for index in inputs:
                buffers[index][2] = step
            inputs = [len(buffers)]
            buffers.append([height * width * channels * element_bytes, step, step])
        home[layer.name] = inputs[0]
    return [tuple(buffer) for buffer in buffers]


_PLAIN = {  # functions of plain C, by kind of layer
    "add": "saaug_plain_add_tensors",
    "conv": "saaug_plain_conv_2d",
    "dense": "saaug_plain_conv_2d",
    "depthwise": "saaug_plain_depthwise_conv_2d",
    "multiply": "saaug_plain_multiply_tensors",
    "pool": "saaug_plain_mean_over_image",
    "resize": "saaug_plain_resize_bilinear",
}
_OURS = {"conv": "conv_2d", "dense": "fully_connected", "depthwise": "depthwise_conv_2d"}
_KINDS = {"pool": "mean"}  # of `_arena.Step`, where the exporter has another name


def _memory(lowered, layer_options, rounded, bits, target, core, model_bytes):
    """The `memory.Memory` of a network's layers."""
    codes = (_code_bytes(layer, layer_options) for layer in lowered)
    operations = []
    for layer, code_bytes in zip(lowered, codes, strict=True):
        operations += _operations_of(layer, code_bytes, bits, layer.name in rounded)
    height, width, channels = lowered[0].input_shape
    outside = {"input": height * width * channels, operations[-1].step.output[0]: operations[-1].step.output[1]}
    if target == "tflm":
        return memory.model_tflm(operations, outside, model_bytes, core)
    return memory.model_c(operations, outside, core)


@functools.lru_cache(maxsize=1 << 14)
def _operations_of(layer: LayerSpec, code_bytes, bits, rounds_inputs) -> tuple[memory.Operation, ...]:
    """The operators that a layer is deployed as. Its last one's output has its name."""
    size = math.prod(layer.output_shape)
    function, constants, window = _call(layer, code_bytes, bits)
    name, result = layer.name, []
    sources = layer.inputs
    if rounds_inputs:
        channels = layer.input_shape[2]
        for step in range(ROUNDING_STEPS):
            output = (f"{name}/{step}", math.prod(layer.input_shape))
            seen = _arena.Step("depthwise", _tensors(sources, layer), output)
            result.append(memory.Operation(seen, _PLAIN["depthwise"], _words(channels) + 12 * channels, channels=channels))
            sources = (output[0],)
    swish = layer.activation == "hard_swish"
    output = (f"{name}/sum" if swish else name, size)
    seen = _arena.Step(_KINDS.get(layer.kind, layer.kind), _tensors(sources, layer), output)
    channels = layer.output_shape[2] if constants and window is None else 0
    result.append(memory.Operation(seen, function, constants, window, channels=channels))
    if swish:
        result.append(memory.Operation(_arena.Step("hard_swish", (output,), (name, size)), "saaug_plain_hard_swish_tensor", 0))
    return tuple(result)


def _tensors(sources, layer):
    """(name, bytes) of a layer's inputs: the second of a sum is as large as the first, of a product one pixel."""
    first = math.prod(layer.input_shape)
    others = layer.input_shape[2] if layer.kind == "multiply" else first
    return tuple((name, others if index else first) for index, name in enumerate(sources))


def _call(layer, code_bytes, bits):
    """(function of plain C, bytes of its constants, window of a kernel of ours or None)."""
    channels = layer.output_shape[2]
    if not _is_custom(layer, bits):
        weights = layer.weight_count
        if _moves(layer):
            weights = layer.kernel_size**2 * channels
        return _PLAIN[layer.kind], _words(weights) + 12 * channels if weights else 0, None
    distance, moves = layer.operator.distance, layer.operator.moves
    layout = {0.125: _scratch.BIT, 0.5: _scratch.NIBBLE}.get(code_bytes, _scratch.BYTE)
    layout = _scratch.OFFSET if distance else _scratch.NONE if moves else layout
    dense = layer.kind == "dense"
    shapes = [(1, 1, math.prod(shape)) if dense else shape for shape in (layer.input_shape, layer.output_shape)]
    pairs = ((size, size) for size in (layer.kernel_size, layer.strides, layer.dilation))
    multiplier = channels // layer.input_shape[2] if layer.kind == "depthwise" else 1
    window = _scratch.Window(layout, *shapes, *pairs, multiplier)
    if moves:
        return "saaug_channel_shift_s8", 0, window
    terms = "adder" if distance else "shift"
    return f"saaug_{terms}_{_OURS[layer.kind]}_s8", _words(_packed(layer, code_bytes)) + 12 * channels, window


def _packed(layer, code_bytes):
    """Bytes of packed codes: those of an output channel are padded to a multiple of 4, and to bytes."""
    channels = layer.output_shape[2]
    row = layer.weight_count // channels
    return channels * math.ceil(-(-row // 4) * 4 * code_bytes)


def _words(size):
    return -(-size // 4) * 4
