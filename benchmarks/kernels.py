"""Instructions per multiply-accumulate of the C kernels on emulated cores: `python benchmarks/kernels.py`.

Six layers of a mobile network, requantization included, counted exactly (tflm_export/emulator.py), every output compared
with NumPy. Beside them, on the same core, layers of int8 weights and multiplication written with the same care: on
cores with packed multiplication our own kernels reading int8 weights, elsewhere kernels/baseline.c; and CMSIS-NN of July
2026, counted the same way, for the first four. RV32 without the M extension has three baselines, by how they
multiply: the compiler's library, an unrolled shift-and-add, a table of quarter squares.

    --cores m0,m3     some cores only            --json    rows, as JSON
    --store           writes kernels/budget.json, which tests/test_kernel_budget.py holds the kernels to
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import kernel_cases  # noqa: E402

from tflm_export import emulator, native  # noqa: E402

HERE = ROOT / "benchmarks" / "kernels"
BUDGET = HERE / "budget.json"

# kernel, height and width, input channels, output channels, stride; padded as Keras pads "same".
SHAPES = {
    "1x1-24": (1, 16, 24, 96, 1),
    "1x1-96": (1, 8, 96, 24, 1),
    "dw3": (3, 16, 96, 96, 1),
    "dw5": (5, 16, 96, 96, 1),
    "dw3s2": (3, 20, 120, 120, 2),
    "1x1-160": (1, 5, 160, 320, 1),
}

# Counted on Cortex-M0, M3, M4 and M55, in the order of SHAPES; the M7 runs the M4's instructions. The last two layers were
# not counted.
CMSIS_NN = {
    "m0": (10.1, 7.09, 37.6, 39.0),
    "m3": (4.04, 2.93, 9.68, 17.8),
    "m4": (3.26, 1.86, 8.27, 9.20),
    "m7": (3.26, 1.86, 8.27, 9.20),
    "m55": (0.82, 0.32, 2.17, 1.62),
}

OPERATORS = ("shift", "binary", "adder", "channelshift")
DEPTHWISE_ONLY = ("channelshift",)  # beside a depthwise layer of products and its MACs
# Also the requantization without a product, in ours and in the baseline: no multiplication in the whole network.
POWER_OF_TWO = ", power-of-two requantization"

# How many times fewer instructions than CMSIS-NN (Arm) or than a baseline (RV32) a kernel is meant to take.
TARGETS = {
    ("m0", "shift"): (1.4, 2.0, 3.0, 3.0),
    ("m3", "shift"): (1.5, 1.5, 1.6, 1.6),
    ("m4", "shift"): (1.9, 1.4, 2.4, 4.0),
    ("m7", "shift"): (1.9, 1.4, 2.4, 4.0),
    ("m4", "adder"): (2.8, 2.8, None, None),
    ("m7", "adder"): (2.8, 2.8, None, None),
    ("m55", "shift"): (1.0, 1.0, None, None),
    ("rv32", "shift"): (1.8, 1.8, 1.8, 1.8),
    ("rv32-no-m", "shift"): (20.0, 20.0, 20.0, 20.0),
    ("rv32-no-m", f"shift{POWER_OF_TWO}"): (20.0, 20.0, 20.0, 20.0),
}
TARGET_OF_HAND_TUNED = 5.0


class Int8Case(kernel_cases.Case):
    """A layer whose codes are int8 weights to multiply with."""

    def weights(self):
        return kernel_cases.pack(self.codes, kernel_cases.BYTE)

    def expected(self):
        x = kernel_cases.windows(self)
        if "depthwise" in self.op:
            x = np.moveaxis(x, -1, 3).reshape(*x.shape[:3], len(self.codes), -1)
        else:
            x = x.reshape(*x.shape[:3], 1, -1)
        acc = (x * self.codes.astype(np.int64)).sum(axis=-1) + self.params[:, 0].astype(np.int64)
        return kernel_cases.requantize(acc, self)


def shift_codes(weights):
    """Nibbles of weights rounded to powers of two as the layers do: the 7 largest exponents of a channel, and zero."""
    magnitude = np.abs(weights)
    top = np.round(np.log2(magnitude.max(axis=1, keepdims=True)))
    level = np.round(np.log2(magnitude)) - top + 7
    level = np.where(magnitude < 2.0 ** (top - 7), 0, np.clip(level, 1, 7)).astype(int)
    return np.where(level == 0, 0, level + 8 * (weights < 0))


def layer(shape, operator):
    """A layer with normally distributed weights: `operator` is of OPERATORS or "int8", and may have POWER_OF_TWO after it."""
    operator, power_of_two = operator.removesuffix(POWER_OF_TWO), operator.endswith(POWER_OF_TWO)
    kernel, size, in_c, out_c, stride = SHAPES[shape]
    out_size = -(-size // stride)
    pad = max(0, (out_size - 1) * stride + kernel - size) // 2
    depthwise = shape.startswith("dw")
    taps = kernel * kernel * (1 if depthwise else in_c)
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(out_c, taps))
    if operator == "channelshift":
        return kernel_cases.random_case(
            rng,
            "channel_shift",
            kernel=(kernel, kernel),
            strides=(stride, stride),
            dilations=(1, 1),
            pads=(pad, pad),
            size=(size, size),
            in_c=in_c,
            batches=1,
            out_size=(out_size, out_size),
        )
    x = np.clip(np.round(rng.normal(0, 40, (1, size, size, in_c))), -128, 127).astype(np.int8)
    if operator == "adder":
        codes, layout = np.clip(np.round(40 * weights), -128, 127).astype(int) + 128, kernel_cases.OFFSET
    elif operator == "int8":
        codes = np.round(127 * weights / np.abs(weights).max(axis=1, keepdims=True)).astype(int)
        layout = kernel_cases.BYTE
    elif operator == "binary":
        codes, layout = (weights < 0).astype(int), kernel_cases.BIT
    else:
        codes, layout = shift_codes(weights), kernel_cases.NIBBLE
    case = (Int8Case if operator == "int8" else kernel_cases.Case)(
        op=f"{'adder' if operator == 'adder' else 'shift'}_{'depthwise_conv' if depthwise else 'conv'}_2d",
        layout=layout,
        requant=kernel_cases.POWER_OF_TWO if power_of_two else kernel_cases.Q31,
        kernel=(kernel, kernel),
        strides=(stride, stride),
        dilations=(1, 1),
        pads=(pad, pad),
        depth_multiplier=1,
        zero_points=(-3, 5),
        activation=(-128, 127),
        input=x,
        out_size=(out_size, out_size, out_c),
        codes=codes,
        params=np.stack([np.zeros(out_c), np.full(out_c, 2**30), np.ones(out_c)], axis=1).astype(np.int32),
    )
    return with_scales(case, power_of_two)


def with_scales(case, power_of_two):
    """The same layer with biases and scales that give outputs a mean of 0 and a deviation of 40."""
    if isinstance(case, Int8Case):
        x = kernel_cases.windows(case)
        x = (
            np.moveaxis(x, -1, 3).reshape(*x.shape[:3], len(case.codes), -1)
            if "depthwise" in case.op
            else x.reshape(*x.shape[:3], 1, -1)
        )
        acc = (x * case.codes.astype(np.int64)).sum(axis=-1)
    else:
        acc = kernel_cases.accumulators(case)
    acc = acc.reshape(-1, acc.shape[-1])
    gain = 40 / acc.std(axis=0)
    exponent = np.ceil(np.log2(gain)).astype(int)
    if power_of_two:
        multiplier, shift = np.ones(len(gain)), -np.round(np.log2(gain)).astype(int)
    else:
        multiplier, shift = np.round(gain / 2.0**exponent * 2**31) - 1, -exponent
    if shift.min() < 1:
        raise ValueError(f"with_scales: the gain of {case.op} must be at most 1/2. Received: gain={gain.max()}.")
    params = np.stack([-np.round(acc.mean(axis=0)), multiplier, shift], axis=1).astype(np.int32)
    return dataclasses.replace(case, params=params)


def layers_of(operators):
    """(operator, shape) of the layers that there are."""
    return [(o, s) for o in operators for s in SHAPES if o not in DEPTHWISE_ONLY or s.startswith("dw")]


@dataclasses.dataclass(frozen=True)
class Count:
    """One run of a layer: instructions, bytes of scratch."""

    instructions: int
    scratch: int


def kernel_sources():
    kernels = kernel_cases.KERNELS
    return tuple(sorted([*kernels.glob("src/*.c"), *kernels.glob("src/*/*.c")]))


def image_of(core, directory, name, flags=()):
    """count.c with every version of the kernels and the baseline."""
    kernels = kernel_cases.KERNELS
    include = (kernels / "include", kernels / "src")
    objects = emulator.compile_once(core, kernel_sources(), include, flags)
    return emulator.build(
        core,
        [HERE / "count.c", HERE / "baseline.c", *objects],
        directory,
        include=[*include, kernels / "src" / "portable", HERE, native.PLAIN],
        name=name,
        flags=(*emulator.WARNINGS, *flags),
    )


def count(core, image, mode, cases, directory):
    """Counts of the cases; an output that is not NumPy's is an error."""
    path = pathlib.Path(directory) / "layers.bin"
    kernel_cases.write_cases(path, cases)
    result = emulator.run(core, image, [mode, path])
    lines = [line.split() for line in result.output.splitlines()]
    if result.status or len(lines) != len(cases):
        raise RuntimeError(f"{core.name}: the count ended with status {result.status}: {result.output}")
    for case, (ticks, right, _) in zip(cases, lines, strict=True):
        if right != "1":
            raise RuntimeError(f"{core.name}: {case.op} {case.kernel} ({mode}) does not give NumPy's output")
        if core.instructions(int(ticks)) is None:
            raise RuntimeError(f"{core.name}: {case.op} {case.kernel} ({mode}) takes more than the counter counts")
    return [Count(core.instructions(int(ticks)), int(scratch)) for ticks, _, scratch in lines]


def operators_of(core):
    return (*OPERATORS, "shift" + POWER_OF_TWO) if core.name == "rv32-no-m" else OPERATORS


def baseline_of(operator):
    return "int8" + (POWER_OF_TWO if operator.endswith(POWER_OF_TWO) else "")


def count_ours(core, directory):
    """{(operator, shape): Count} of our kernels on a core."""
    keys = layers_of(operators_of(core))
    image = image_of(core, directory, "ours")
    return dict(zip(keys, count(core, image, "ours", [layer(s, o) for o, s in keys], directory), strict=True))


def count_baselines(core, directory):
    """{name: {(operator, shape): Count}} of the int8 layers that multiply."""
    if core.name in ("m4", "m7", "m55"):
        builds = {"multiplying_baseline": ("ours", ("-DSAAUG_PLAIN_BYTES",))}
    elif core.name == "rv32-no-m":
        builds = {
            "multiplying_baseline": ("multiplying", ("-DSAAUG_NO_MULTIPLY=0",)),
            "hand_tuned_baseline": ("multiplying", ("-DBASELINE_MULTIPLY=1",)),
            "quarter_squares_baseline": ("multiplying", ("-DBASELINE_MULTIPLY=2",)),
        }
    else:
        builds = {"multiplying_baseline": ("multiplying", ())}
    keys = [(operator, shape) for operator in {baseline_of(o): None for o in operators_of(core)} for shape in SHAPES]
    cases = [layer(shape, operator) for operator, shape in keys]
    counts = {}
    for name, (mode, flags) in builds.items():
        image = image_of(core, directory, name, flags)
        counts[name] = dict(zip(keys, count(core, image, mode, cases, directory), strict=True))
    return counts


def place_of(figures, place):
    """The figure of a layer, or None where there is none."""
    return figures[place] if figures is not None and place < len(figures) else None


def rows_of(core, directory):
    ours, baselines = count_ours(core, directory), count_baselines(core, directory)
    rows = []
    for (operator, shape), counted in ours.items():
        place = list(SHAPES).index(shape)
        case, int8 = layer(shape, operator), layer(shape, baseline_of(operator))
        macs = int(np.prod(int8.out_size)) * int8.codes.shape[1]
        row = {
            "core": core.name,
            "operator": operator,
            "shape": shape,
            "instructions_per_mac": round(counted.instructions / macs, 4),
        }
        row.update(
            {name: round(by_layer[baseline_of(operator), shape].instructions / macs, 4) for name, by_layer in baselines.items()}
        )
        row["cmsis_nn"] = place_of(CMSIS_NN.get(core.name), place)
        row["target"] = place_of(TARGETS.get((core.name, operator)), place)
        row["instructions"], row["macs"], row["scratch_bytes"] = counted.instructions, macs, counted.scratch
        row["weight_bytes"], row["int8_weight_bytes"] = case.weights().nbytes, int8.weights().nbytes
        rows.append(row)
    return rows


def print_table(rows):
    print("instructions per MAC, requantization included; x: how many times fewer than the column before it")
    print(
        f"{'core':10}{'operator':36}{'shape':8}{'ours':>7}{'int8':>9}{'x':>7}{'by hand':>9}{'x':>6}"
        f"{'squares':>9}{'x':>6}{'CMSIS-NN':>10}{'x':>6}  target"
    )
    for row in rows:
        ours = row["instructions_per_mac"]
        columns = f"{row['core']:10}{row['operator']:36}{row['shape']:8}{ours:7.2f}"
        for name, width, gain in (
            ("multiplying_baseline", 9, 7),
            ("hand_tuned_baseline", 9, 6),
            ("quarter_squares_baseline", 9, 6),
            ("cmsis_nn", 10, 6),
        ):
            value = row.get(name)
            columns += " " * (width + gain) if value is None else f"{value:{width}.2f}{value / ours:{gain}.2f}"
        print(columns + verdict(row))


def verdict(row):
    """The target and whether it was met."""
    return "".join(f"  {target:g}x {name}{'met' if met else 'missed'}" for name, _, target, met in targets_of(row))


def targets_of(row):
    """(what it is to be compared with, ratio, target, whether it was met) of each target of a row."""
    if row["target"] is None:
        return []
    reference = row["cmsis_nn"] if row["cmsis_nn"] is not None else row["multiplying_baseline"]
    found = [("", reference, row["target"])]
    if "hand_tuned_baseline" in row:
        found.append(("by hand ", row["hand_tuned_baseline"], TARGET_OF_HAND_TUNED))
    ours = row["instructions_per_mac"]
    return [(name, value / ours, target, value / ours >= target) for name, value, target in found]


def compiler_version(core):
    command = [core.compiler, "-dumpfullversion"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def budget_of(core, counts):
    instructions = {f"{operator}, {shape}": counted.instructions for (operator, shape), counted in counts.items()}
    return {"compiler": f"{core.compiler} {compiler_version(core)}", "instructions": instructions}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", default=",".join(emulator.CORES), help="comma-separated; default: all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--store", action="store_true", help="store the counts of our kernels as the budget")
    arguments = parser.parse_args()
    names = arguments.cores.split(",")
    if unknown := sorted(set(names) - set(emulator.CORES)):
        parser.error(f"--cores must be of {', '.join(emulator.CORES)}. Received: {', '.join(unknown)}.")
    rows, budget = [], json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            core = emulator.CORES[name]
            if reason := emulator.missing(core):
                print(f"{name} is left out: {reason}", file=sys.stderr)
            elif arguments.store:
                budget[name] = budget_of(core, count_ours(core, directory))
            else:
                rows += rows_of(core, directory)
    if arguments.store:
        BUDGET.write_text(json.dumps(budget, indent=1) + "\n")
    elif arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
