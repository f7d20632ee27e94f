"""What a deployed network takes of a microcontroller's memory: everything in flash, everything in RAM.

A figure holds for a target and a core:

- target "c", a project of plain C: flash is the constants, the kernels that the network calls and the generated calls;
  RAM is activations and scratch in their static plan, the input and the output.
- target "tflm", TFLite Micro with our operators: flash is the model file, the interpreter with the operators that the model
  names, our kernels and their adapter; RAM is the arena (activations, scratch, and what TFLite Micro keeps of every
  operator and tensor), and the interpreter's own objects.

Not counted, since any program has them or they are the program: start-up code, the C library (memcpy, memset; in C++
also what `new` and `abort` need), the stack, and what calls the network. Functions that the compiler takes from libgcc
count.

`tflm_export` measures by linking where the core's compiler is installed ("linked"); `cost` models from a table of the
linked sizes of every kernel ("modelled").
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from dataclasses import dataclass

from saaug_keras import _arena, _scratch, _validate

TARGETS = ("c", "tflm")
OPTIMIZATIONS = ("-O3", "-Os")  # the first is that of the exported projects' build files, and every figure's


@dataclass(frozen=True)
class Core:
    """A processor core, and how the kernels are compiled for it.

    Args:
        name: by which everything here knows it. title: as its maker writes it.
        compiler: the program. flags: that choose the core.
        version: of the kernels that it gets, as `tflm_export` names them.
    """

    name: str
    title: str
    compiler: str
    flags: tuple[str, ...]
    version: str


def _arm(name, title, cpu, version, floats="soft"):
    return Core(name, title, "arm-none-eabi-gcc", ("-mthumb", f"-mcpu={cpu}", f"-mfloat-abi={floats}"), version)


def _riscv(name, title, march, mabi, version):
    return Core(name, title, "riscv64-unknown-elf-gcc", (f"-march={march}", f"-mabi={mabi}"), version)


CORES = {
    core.name: core
    for core in (
        _arm("m0", "Cortex-M0, M0+", "cortex-m0", "portable4"),
        _arm("m3", "Cortex-M3", "cortex-m3", "portable4"),
        _arm("m4", "Cortex-M4", "cortex-m4", "dsp"),
        _arm("m7", "Cortex-M7", "cortex-m7", "dsp"),
        _arm("m55", "Cortex-M55", "cortex-m55", "helium", "hard"),
        _riscv("rv32", "RV32IMAC", "rv32imac", "ilp32", "portable8"),
        _riscv("rv32-no-m", "RV32IAC", "rv32iac", "ilp32", "portable8"),
        _riscv("rv32e", "RV32EC", "rv32ec", "ilp32e", "portable4"),
    )
}


@dataclass(frozen=True)
class Memory:
    """What a network takes, in bytes.

    Args:
        flash_bytes, ram_bytes: everything; see the module.
        target: of `TARGETS`. core: of `CORES`. optimize: of `OPTIMIZATIONS`.
        how: "linked" or "modelled".
        flash, ram: the parts by name; they add up.
    """

    flash_bytes: int
    ram_bytes: int
    target: str
    core: str
    optimize: str
    how: str
    flash: dict[str, int]
    ram: dict[str, int]

    @classmethod
    def of(cls, target, core, optimize, how, *, flash, ram):
        """From the parts."""
        return cls(sum(flash.values()), sum(ram.values()), target, core, optimize, how, flash, ram)

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    def __str__(self):
        def parts(of):
            return ", ".join(f"{name} {size:,}" for name, size in of.items())

        where = f"target {self.target}, {CORES[self.core].title}, {self.optimize}, {self.how}"
        return (
            f"{where}: flash {self.flash_bytes:,} bytes ({parts(self.flash)}), RAM {self.ram_bytes:,} bytes ({parts(self.ram)})"
        )


def check(owner, target, core):
    """Refuses a target or a core that is not known.

    Raises:
        ValueError: says what it must be.
    """
    _validate.one_of(owner, "target", target, TARGETS)
    _validate.one_of(owner, "core", core, tuple(CORES))
    if target == "tflm" and core not in tflm_cores():
        known = ", ".join(map(repr, tflm_cores()))
        raise ValueError(
            f"{owner}: `core` must be one of {known}, where TFLite Micro was measured, for target 'tflm'. Received: "
            f"core={core!r}. Target 'c' knows every core."
        )


# ---------------------------------------------------------------------------------------------------------------------
# The model

# How far a figure modelled from a network's spec may be from that of its export, to either side; see benchmarks/sizes.py.
TOLERANCE = {"c": 0.01, "tflm": 0.03}
TABLE = pathlib.Path(__file__).parent / "_data" / "sizes.json"

# Bytes of the constant structs in front of a call in plain C: options and shape of our kernels, the structs of
# saaug_plain.h.
_OWN_RECORDS = 64 + 28
_PLAIN_RECORDS = {
    "saaug_plain_conv_2d": 72,
    "saaug_plain_depthwise_conv_2d": 72,
    "saaug_plain_add_tensors": 48,
    "saaug_plain_add_any": 48,
    "saaug_plain_add_same": 48,
    "saaug_plain_multiply_tensors": 36,
    "saaug_plain_mean_over_image": 24,
    "saaug_plain_resize_bilinear": 20,
    "saaug_plain_max_pool": 56,
    "saaug_plain_average_pool": 56,
    "saaug_plain_pad_image": 32,
    "saaug_plain_hard_swish_tensor": 28,
    "saaug_plain_look_up": 0,
    "saaug_plain_copy_rows": 16,
    "saaug_plain_softmax_rows": 20,
    "memcpy": 0,
}


_TFLM_NAMES = {  # of built-in operators, by kind of step
    "add": "ADD",
    "average_pool": "AVERAGE_POOL_2D",
    "concatenate": "CONCATENATION",
    "conv": "CONV_2D",
    "dense": "FULLY_CONNECTED",
    "depthwise": "DEPTHWISE_CONV_2D",
    "hard_swish": "HARD_SWISH",
    "leaky_relu": "LEAKY_RELU",
    "max_pool": "MAX_POOL_2D",
    "mean": "MEAN",
    "multiply": "MUL",
    "pad": "PAD",
    "reshape": "RESHAPE",
    "resize": "RESIZE_BILINEAR",
    "sigmoid": "LOGISTIC",
    "softmax": "SOFTMAX",
}


@dataclass(frozen=True)
class Operation:
    """One operator of a deployed network, as the model prices it.

    Args:
        step: what the planners see.
        function: that plain C calls.
        constants: bytes of weights, parameters and tables.
        window: of a kernel of ours, whose scratch depends on it; else None.
        calls: how often it is called.
        channels: output channels of a weighted operator that is not ours.
    """

    step: _arena.Step
    function: str
    constants: int
    window: _scratch.Window | None = None
    calls: int = 1
    channels: int = 0

    @property
    def name(self) -> str:
        """As TFLite Micro knows it."""
        if self.window is not None:
            return self.function.removeprefix("saaug_").removesuffix("_s8").upper()
        return _TFLM_NAMES[self.step.kind]

    @property
    def records(self) -> int:
        """Bytes of constant structs in plain C."""
        return _OWN_RECORDS if self.window is not None else self.calls * _PLAIN_RECORDS[self.function]

    def scratch(self, version) -> int:
        """Bytes of scratch, by version of the kernels."""
        if self.window is None:
            return 0
        return _scratch.scratch_bytes(self.function.removeprefix("saaug_").removesuffix("_s8"), self.window, version)


@functools.cache
def _table():
    return json.loads(TABLE.read_text("utf-8"))


def model_c(operations, outside, core, optimize=OPTIMIZATIONS[0], *, table=None) -> Memory:
    """What a project of plain C takes, without a compiler.

    Args:
        operations: sequence of `Operation`, in the order of computation.
        outside: {name: bytes} of the tensors that are the caller's, input and output.
        core: of `CORES`. optimize: of `OPTIMIZATIONS`.
        table: of the core's kernels, in place of the stored one.
    """
    calls = tuple((each.function, each.calls, each.constants > 0) for each in operations)
    code, check = _code_c(calls, core, optimize) if table is None else code_c(calls, table)
    flash = {"constants": constants_c(operations), "code": code, "check": check}
    return Memory.of("c", core, optimize, "modelled", flash=flash, ram=ram_c(operations, outside, core))


def constants_c(operations) -> int:
    """Bytes of the constants in plain C: weights, parameters and the structs in front of the calls."""
    return sum(-(-(each.constants + each.records) // 4) * 4 for each in operations)


def ram_c(operations, outside, core) -> dict[str, int]:
    """Parts of the RAM of plain C: activations and scratch in one static arena, and the tensors of the caller."""
    version = CORES[core].version
    found, _ = _arena.lives([each.step for each in operations], outside, [each.scratch(version) for each in operations])
    arena = max(_arena.static_plan(found, len(operations))[1], _arena.STATIC_ALIGNMENT)
    return {"activations and scratch": arena, "input and output": sum(outside.values())}


@functools.lru_cache(maxsize=1 << 12)
def _code_c(calls, core, optimize):
    return code_c(calls, _table()["cores"][core][optimize])


def code_c(calls, table) -> tuple[int, int]:
    """(bytes of the kernels and of the calls, bytes that the network's check adds).

    Args:
        calls: as `glue_counts`.
        table: {"groups": [[bytes, functions that need them], ...], "run": factors, "check": factors} of `glue_counts`.
    """
    counts = glue_counts(calls)
    glue = [round(sum(a * b for a, b in zip(table[part], counts, strict=True))) for part in ("run", "check")]
    run, check = kernel_bytes(calls, table["groups"])
    return run + glue[0], check + glue[1]


def kernel_bytes(calls, groups) -> tuple[int, int]:
    """(bytes of the kernels that a network runs, bytes of those that only its check needs)."""
    run = {function for function, _, _ in calls}
    own = {function for function in run if function.endswith("_s8")}
    both = run | {f"{function}_get_buffer_size" for function in own}
    both |= {"saaug_check", "saaug_check_constants"} if own else set()
    both |= {"saaug_plain_check_conv"} if any(function.endswith("conv_2d") for function in run) else set()
    first, second = (sum(size for size, users in groups if not roots.isdisjoint(users)) for roots in (run, both))
    return first, second - first


def glue_counts(calls) -> tuple[int, ...]:
    """What the size of the generated calls depends on: 1, and the calls of our kernels, with constants of ours without,
    of plain operators with constants, and of others.

    Args:
        calls: (function, how often, whether it has constants) of each operation.
    """
    counts = [1, 0, 0, 0, 0]
    for function, times, constants in calls:
        counts[1 + (0 if constants else 1) + (0 if function.endswith("_s8") else 2)] += times
    return tuple(counts)


def tflm_cores() -> tuple[str, ...]:
    """The cores that TFLite Micro's own code was measured on."""
    return tuple(_table()["tflm"]["cores"])


def tflm_source() -> str:
    """What TFLite Micro's figures hold for, in words."""
    return _table()["tflm"]["source"]


def model_tflm(operations, outside, model_bytes, core) -> Memory:
    """What a network takes with TFLite Micro: the model file exactly, TFLite Micro's own code from a table.

    Its records in the arena are fitted to what it allocated on a Cortex-M4, a core of 32 bits. While it plans the arena it
    needs some 5 KB there: a network whose activations take less needs up to 1 KB more than this says.

    Args:
        operations, outside, core: as `model_c`.
        model_bytes: of the model file.
    """
    check("memory", "tflm", core)
    table = _table()["tflm"]
    names = frozenset(each.name for each in operations)
    ours = any(each.window is not None for each in operations)
    interpreter, kernels = _code_tflm(names, ours, core)
    records, more = table["records"], table["cores"][core]["ram"]
    kept = records["network"] + sum(
        records["ours"] if each.window is not None else records[each.name] + 8 * each.channels for each in operations
    )
    arena = _tflm_arena(operations, outside, core)
    return Memory.of(
        "tflm",
        core,
        OPTIMIZATIONS[0],
        "modelled",
        flash={"model": model_bytes, "kernels": kernels, "interpreter": interpreter},
        ram={
            "activations and scratch": arena,
            "records": kept,
            "interpreter": more["interpreter"] + more["resolver"] + more["operator"] * len(names),
        },
    )


@functools.lru_cache(maxsize=1 << 10)
def _code_tflm(names, ours, core):
    """(bytes of the interpreter, bytes of the operators)."""
    groups = _table()["tflm"]["cores"][core]["groups"]
    roots = names | {"interpreter"} | ({"check"} if ours else set())
    interpreter, everything = (
        sum(size for size, users in groups if not each.isdisjoint(users)) for each in ({"interpreter"}, roots)
    )
    return interpreter, everything - interpreter


def _tflm_arena(operations, outside, core) -> int:
    """Bytes of activations and scratch as TFLite Micro's planner places them. A use is an operator's number, from 1."""
    steps = [each.step for each in operations]
    first = {name: (size, 0) for name, size in outside.items()} | {
        step.output[0]: (step.output[1], number) for number, step in enumerate(steps, 1)
    }
    last = {name: number for number, step in enumerate(steps, 1) for name, _ in step.inputs}
    buffers = [(size, start, last.get(name, start)) for name, (size, start) in first.items()]
    version = CORES[core].version
    buffers += [(size, number, number) for number, each in enumerate(operations, 1) if (size := each.scratch(version))]
    return _arena.tflm_plan(buffers)
