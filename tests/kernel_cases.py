"""Random layers for the kernels, an independent NumPy implementation of them, and the file that kernel_driver.c reads.

The NumPy side shares nothing with the C side but the sentences of saaug_nn.h: weights are decoded to integers, windows
are cut from a padded image, sums are int64.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import struct
import subprocess

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
KERNELS = pathlib.Path(next(iter(importlib.util.find_spec("tflm_export").submodule_search_locations))) / "kernels"

OPS = {
    "shift_conv_2d": 1,
    "shift_depthwise_conv_2d": 2,
    "shift_fully_connected": 3,
    "adder_conv_2d": 4,
    "adder_depthwise_conv_2d": 5,
    "channel_shift": 6,
}
NIBBLE, BYTE, OFFSET, BIT, NONE = 0, 1, 2, 3, 4
Q31, POWER_OF_TWO = 0, 1
ADDER_SCALE = 256  # of an add layer's accumulator
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@functools.cache
def sanitizers_of(compiler):
    """SANITIZERS, or () where the compiler comes without their runtime: Debian's clang has it in another package.

    With gcc they are always asked for, so a machine that can check nothing fails.
    """
    if compiler == "gcc":
        return SANITIZERS
    command = [compiler, *SANITIZERS, "-x", "c", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input="int main(void) { return 0; }", text=True, capture_output=True)
    return SANITIZERS if done.returncode == 0 else ()


@dataclasses.dataclass
class Case:
    """One layer with its data. `codes` has shape (O, K); options and shape are in the order of the C structs."""

    op: str
    layout: int
    requant: int
    kernel: tuple
    strides: tuple
    dilations: tuple
    pads: tuple  # top, left
    depth_multiplier: int
    zero_points: tuple  # input, output
    activation: tuple  # least, most
    input: np.ndarray  # int8 (N, H, W, C)
    out_size: tuple  # H', W', O
    codes: np.ndarray
    params: np.ndarray  # int32 (O, 3)

    def options(self):
        fields = (OPS[self.op], self.layout, self.requant, *self.kernel, *self.strides, *self.dilations, *self.pads)
        return (*fields, self.depth_multiplier, *self.zero_points, *self.activation)

    def shape(self):
        return (*self.input.shape, *self.out_size)

    def weights(self):
        return pack(self.codes, self.layout)

    def expected(self):
        return run(self)


def pack(codes, layout):
    """(O, K) codes to bytes: rows padded to 4 codes, nibbles low first; bits low first, padded to bytes."""
    if layout == NONE:
        return np.zeros(0, np.uint8)
    if layout == BIT:
        return np.packbits(codes.astype(bool), axis=1, bitorder="little")
    rows = np.zeros((len(codes), -(-codes.shape[1] // 4) * 4), np.uint8)
    rows[:, : codes.shape[1]] = codes.astype(np.int64) & 255
    if layout == NIBBLE:
        rows = rows[:, 0::2] | rows[:, 1::2] << 4
    return rows


def decode(codes, layout):
    """Codes to the integers that they stand for."""
    codes = codes.astype(np.int64)
    if layout == BIT:
        return 64 - 128 * codes
    if layout == NIBBLE:
        magnitude, negative = codes & 7, codes > 7
    elif layout == BYTE:
        magnitude, negative = np.abs(codes), codes < 0
    else:
        return codes - 128
    return np.where(magnitude > 0, 2 ** np.maximum(magnitude - 1, 0), 0) * np.where(negative, -1, 1)


def windows(case):
    """Input values under every tap: (N, H', W', kh, kw, C)."""
    n, height, width, channels = case.input.shape
    out_h, out_w, _ = case.out_size
    need = [
        (out - 1) * stride + (taps - 1) * dilation + 1
        for out, stride, taps, dilation in zip(case.out_size[:2], case.strides, case.kernel, case.dilations, strict=True)
    ]
    image = np.full(
        (n, max(need[0], height + case.pads[0]), max(need[1], width + case.pads[1]), channels), case.zero_points[0], np.int64
    )
    image[:, case.pads[0] : case.pads[0] + height, case.pads[1] : case.pads[1] + width] = case.input
    result = np.empty((n, out_h, out_w, *case.kernel, channels), np.int64)
    for i in range(case.kernel[0]):
        for j in range(case.kernel[1]):
            top, left = i * case.dilations[0], j * case.dilations[1]
            result[:, :, :, i, j] = image[
                :,
                top : top + (out_h - 1) * case.strides[0] + 1 : case.strides[0],
                left : left + (out_w - 1) * case.strides[1] + 1 : case.strides[1],
            ]
    return result


def accumulators(case):
    """int64 (N, H', W', O), the bias included."""
    x = windows(case)
    weights = decode(case.codes, case.layout)
    if "depthwise" in case.op:
        x = np.repeat(x, case.depth_multiplier, axis=-1)
        x = np.moveaxis(x, -1, 3).reshape(*x.shape[:3], len(weights), -1)
    else:
        x = x.reshape(*x.shape[:3], 1, -1)
    terms = ADDER_SCALE * np.abs(x - weights) if case.op.startswith("adder") else x * weights
    return terms.sum(axis=-1) + case.params[:, 0].astype(np.int64)


def requantize(acc, case):
    multiplier, shift = (case.params[:, column].astype(np.int64) for column in (1, 2))
    if case.requant == Q31:
        product = acc * multiplier
        nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
        value = np.sign(product + nudge) * (np.abs(product + nudge) >> 31)  # towards zero, as TFLite Micro divides
    else:
        value = acc * multiplier
    remainder = value & ((1 << shift) - 1)
    threshold = (((1 << shift) - 1) >> 1) + (value < 0)
    value = (value >> shift) + (remainder > threshold)
    return np.clip(value + case.zero_points[1], *case.activation).astype(np.int8)


def moved(case):
    """The value at each channel's tap: groups of four channels take the taps in turn, from the middle of their shares."""
    channels, taps = case.input.shape[-1], case.kernel[0] * case.kernel[1]
    groups = -(-channels // 4)
    chosen = [int((channel // 4 + 0.5) * taps / groups + 1e-9) for channel in range(channels)]
    x = windows(case).reshape(case.input.shape[0], *case.out_size[:2], taps, channels)
    return np.stack([x[..., tap, channel] for channel, tap in enumerate(chosen)], axis=-1).astype(np.int8)


def run(case):
    return moved(case) if case.op == "channel_shift" else requantize(accumulators(case), case)


def random_case(rng, op, *, largest=9, channels=20, layout=None, requant=None, **fixed):
    """A lopsided layer: height is not width, no two strides or zero points are tied."""
    fully, moves, adder = op == "shift_fully_connected", op == "channel_shift", op.startswith("adder")
    depthwise = moves or "depthwise" in op
    if moves:
        layout, requant, fixed = NONE, Q31, {**fixed, "depth_multiplier": 1}
    elif layout is None:
        layout = OFFSET if adder else int(rng.choice([NIBBLE, NIBBLE, NIBBLE, BYTE, BIT, BIT]))
    requant = int(rng.choice([Q31, Q31, Q31, POWER_OF_TWO])) if requant is None else requant
    one = (1, 1)
    kernel = one if fully else tuple(int(k) for k in rng.choice([1, 1, 2, 3, 3, 4, 5, 7], 2))
    if not fully and not depthwise and rng.random() < 0.4:
        kernel = one
    strides = one if fully else tuple(int(k) for k in rng.choice([1, 1, 2, 3], 2))
    dilations = one if fully else tuple(int(k) for k in rng.choice([1, 1, 1, 2, 3], 2))
    kernel, strides = fixed.get("kernel", kernel), fixed.get("strides", strides)
    dilations = fixed.get("dilations", dilations)
    reach = tuple((k - 1) * d for k, d in zip(kernel, dilations, strict=True))
    pads = fixed.get("pads", tuple(int(rng.integers(0, r + 1)) for r in reach))
    size = one if fully else fixed.get("size", tuple(int(v) for v in rng.integers(1, largest + 1, 2)))
    out = []
    for axis in range(2):
        far = int(rng.integers(0, reach[axis] + 1))
        far += max(0, reach[axis] + 1 - size[axis] - pads[axis] - far)
        far = min(far, reach[axis]) if size[axis] + pads[axis] + far > reach[axis] else far
        out.append((size[axis] + pads[axis] + far - reach[axis] - 1) // strides[axis] + 1)
    out = fixed.get("out_size", out)
    in_c = int(fixed.get("in_c", rng.integers(1, channels + 1)))
    depth_multiplier = int(fixed.get("depth_multiplier", rng.choice([1, 1, 1, 2, 3]))) if depthwise else 1
    out_c = in_c * depth_multiplier if depthwise else int(fixed.get("out_c", rng.integers(1, channels + 1)))
    taps = kernel[0] * kernel[1] * (1 if depthwise else in_c)
    extremes = [-128, 127, 0]
    zero_points = fixed.get(
        "zero_points", tuple(int(rng.choice(extremes)) if rng.random() < 0.4 else int(v) for v in rng.integers(-128, 128, 2))
    )
    if rng.random() < 0.6:
        activation = (-128, 127)
    else:
        activation = tuple(sorted(int(v) for v in rng.integers(-128, 128, 2)))
    if moves:
        zero_points, activation = zero_points[:1] * 2, (-128, 127)
    x = rng.integers(-128, 128, (int(fixed.get("batches", rng.integers(1, 4))), *size, in_c)).astype(np.int8)
    if rng.random() < 0.15:
        x = rng.choice(np.array([-128, 127], np.int8), x.shape)
    if moves:
        nothing = np.zeros((0, 3), np.int32)
        return Case(
            op,
            layout,
            requant,
            kernel,
            strides,
            dilations,
            pads,
            1,
            zero_points,
            activation,
            x,
            (out[0], out[1], out_c),
            nothing,
            nothing,
        )
    if layout == BIT:
        codes = rng.integers(0, 2, (out_c, taps))
    elif layout == NIBBLE:
        codes = rng.choice([code for code in range(16) if code != 8], (out_c, taps))
    elif layout == BYTE:
        largest_code = int(rng.choice([7, 14, 15, 16]))  # where versions change their ways
        codes = rng.integers(-largest_code, largest_code + 1, (out_c, taps))
    else:
        codes = rng.integers(0, 256, (out_c, taps))
    weights = decode(codes, layout)
    # Of a sum over uniform inputs: mean, standard deviation and largest absolute value.
    if adder:
        mean = ADDER_SCALE * np.abs(np.arange(-128, 128) - weights[..., np.newaxis]).mean(axis=-1).sum(axis=1)
        deviation, spread = ADDER_SCALE * 60 * np.sqrt(taps), ADDER_SCALE * 255 * taps
    else:
        mean, spread = 0, 128 * np.abs(weights).sum(axis=1)
        deviation = 74 * np.sqrt((weights.astype(float) ** 2).sum(axis=1)) + 64
    bias = np.round(rng.uniform(-1, 1, out_c) * deviation - mean).astype(np.int64)
    room = 2**30 - 1 - spread
    bias = np.clip(bias, -room, room)
    # The result should fill the int8 range.
    shift = np.clip(np.round(np.log2(deviation / 50)), 1, 30).astype(np.int64) + np.zeros(out_c, np.int64)
    if requant == POWER_OF_TWO:
        multiplier = rng.choice([-1, 1], out_c)
    else:
        multiplier = rng.integers(2**30, 2**31, out_c) * rng.choice([-1, 1], out_c)
        shift = np.maximum(shift - 1, 1)
        multiplier[rng.random(out_c) < 0.03] = 0
    if rng.random() < 0.1:
        shift = np.minimum(shift + rng.integers(0, 20, out_c), 30)
    return Case(
        op,
        layout,
        requant,
        kernel,
        strides,
        dilations,
        pads,
        depth_multiplier,
        zero_points,
        activation,
        x,
        (out[0], out[1], out_c),
        codes,
        np.stack([bias, multiplier, shift], axis=1).astype(np.int32),
    )


def rests(rng):
    """Layers that end in the middle of what a version computes together: rows of 1 to 13 columns under strides of one axis
    and of both, with and without padding, channels that fill no group; 1 to 18 positions of a convolution, codes of no full
    group, taps of several chunks."""
    cases = []
    for width in range(1, 14):
        for index, strides in enumerate([(1, 1), (2, 2), (2, 1), (1, 2), (2, 2)]):
            kernel = [(3, 3), (3, 3), (5, 5), (2, 3), (3, 4)][(width + index) % 5]
            op = "adder" if index == 4 else "shift"
            dilations = (1, 2) if strides == (2, 1) and width % 3 == 0 else (2, 1) if width % 4 == 0 else (1, 1)
            case = random_case(
                rng,
                f"{op}_depthwise_conv_2d",
                kernel=kernel,
                strides=strides,
                dilations=dilations,
                pads=(index // 2 % 2, width // 2 % 2),
                size=(int(rng.integers(1, 12)), width),
                in_c=1 + (3 * width + index) % 11,
                depth_multiplier=1 + (width % 6 == 5),
                batches=1 + width % 2,
            )
            cases.append(dataclasses.replace(case, activation=(-128, 127)) if width % 4 else case)
    for positions in range(1, 19):
        for layout in (NIBBLE, BIT, BYTE):
            cases.append(
                random_case(
                    rng,
                    "shift_conv_2d",
                    layout=layout,
                    kernel=(1, 1),
                    strides=(1, 1),
                    size=(1, positions),
                    in_c=5 + (positions * 19) % 41,
                    out_c=1 + positions % 7,
                    batches=1,
                )
            )
        cases.append(
            random_case(rng, "adder_conv_2d", kernel=(1, 1), strides=(1, 1), size=(positions, 1), in_c=19, out_c=5, batches=1)
        )
    for layout in (NIBBLE, BIT, BYTE):
        for size in ((1, 3), (3, 3), (5, 5)):
            cases.append(
                random_case(
                    rng,
                    "shift_conv_2d",
                    layout=layout,
                    kernel=(3, 3),
                    pads=(1, 1),
                    strides=(2, 2),
                    dilations=(1, 1),
                    size=size,
                    in_c=58,
                    out_c=3,
                    batches=1,
                )
            )
    return cases


def write_cases(path, cases):
    """The file of kernel_driver.c: per case 25 int32 (options, shape, bytes of weights, params), then the data."""
    with open(path, "wb") as file:
        for case in cases:
            weights = case.weights().tobytes()
            file.write(struct.pack("<25i", *case.options(), *case.shape(), len(weights), case.params.size))
            for block in (case.input.tobytes(), weights, case.params.astype("<i4").tobytes(), case.expected().tobytes()):
                file.write(block)
