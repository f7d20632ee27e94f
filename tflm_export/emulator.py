"""Bare-metal programs on emulated microcontroller cores: build an image, run it in QEMU, read what it printed.

    image = emulator.build(emulator.CORES["m0"], sources, directory, include=[...])
    result = emulator.run(emulator.CORES["m0"], image, ["argument"])

Programs are plain C with main, printf and files: semihosting does the input and output. With a virtual clock that
advances by a fixed time an instruction (-icount), the counters of plain/saaug_profile.h, SysTick and mcycle, are exact
functions of the number of instructions: no time of this machine enters. `Core.instructions` turns their ticks into
instructions. A core whose compiler or emulator is not there is reported by `missing(core)`.
"""

from __future__ import annotations

import atexit
import dataclasses
import fractions
import functools
import pathlib
import shutil
import subprocess
import tempfile

from saaug_keras import _validate
from saaug_keras.memory import CORES as _MADE

HERE = pathlib.Path(__file__).resolve().parent / "emulated"

# Debian and Ubuntu packages with everything that a core needs.
_ARM_PACKAGES = ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi", "qemu-system-arm")
_RISCV_PACKAGES = ("gcc-riscv64-unknown-elf", "picolibc-riscv64-unknown-elf", "qemu-system-misc")

OPTIMIZE = ("-O3", "-ffunction-sections", "-fdata-sections")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
NANOSECONDS = 8  # of virtual time an Arm instruction takes: -icount shift=3
_UNKNOWN = 0xFFFFFFFF  # SAAUG_TICKS_UNKNOWN of saaug_profile.h


@dataclasses.dataclass(frozen=True)
class Core:
    """A processor: how to compile for it, which machine of QEMU has it, where its memory is."""

    name: str
    compiler: str
    flags: tuple
    emulator: str
    machine: tuple
    memory: tuple  # address of code, of constants, of RAM, and bytes of RAM
    clock_mhz: int | None  # of SysTick; None where ticks are instructions

    def instructions(self, ticks):
        """Instructions in `ticks` of saaug_profile.h; None where they are more than it counts, 130 million on an M0.

        On Arm exact to one tick of 4 to 8 instructions: a part in 100 000 of any of our kernels.
        """
        if ticks == _UNKNOWN:
            return None
        if self.clock_mhz is None:
            return ticks
        return round(ticks * fractions.Fraction(1000, self.clock_mhz * NANOSECONDS))

    @property
    def is_arm(self):
        return "-mthumb" in self.flags

    @property
    def packages(self):
        """Of Debian and Ubuntu, with what it needs."""
        return _ARM_PACKAGES if self.is_arm else _RISCV_PACKAGES

    @property
    def specs(self):
        """The C library with semihosting: newlib or picolibc."""
        return "rdimon.specs" if self.is_arm else "picolibc.specs"


def _arm(name, machine, memory, clock_mhz):
    made = _MADE[name]
    flags = (*made.flags, "-DSAAUG_PROFILE_SYSTICK")  # the emulator has no CYCCNT
    return Core(name, made.compiler, flags, "qemu-system-arm", machine, memory, clock_mhz)


def _riscv(name, cpu):
    made = _MADE[name]
    machine, memory = ("-machine", "virt", "-bios", "none", "-cpu", cpu), (0x80000000, None, 0x80800000, 0x2000000)
    return Core(name, made.compiler, made.flags, "qemu-system-riscv32", machine, memory, None)


_MPS2 = (0, 0x80000, 0x20000000, 0x400000)
CORES = {
    core.name: core
    for core in (
        # The microbit's chip with the memory that our layers need: a real Cortex-M0, which faults on Thumb-2.
        _arm(
            "m0",
            ("-machine", "microbit", "-global", "nrf51-soc.flash-size=0x400000", "-global", "nrf51-soc.sram-size=0x400000"),
            _MPS2,
            16,
        ),
        _arm("m3", ("-machine", "mps2-an385"), _MPS2, 25),
        _arm("m4", ("-machine", "mps2-an386"), _MPS2, 25),
        _arm("m7", ("-machine", "mps2-an500"), _MPS2, 25),
        _arm("m55", ("-machine", "mps3-an547"), (0, 0x60000000, 0x31000000, 0x200000), 32),
        _riscv("rv32", "rv32,f=off,d=off"),
        _riscv("rv32-no-m", "rv32,m=off,f=off,d=off"),
    )
}


def cores_of(owner, names, argument="cores") -> list[Core]:
    """The cores of these names, whose tools are all there.

    Args:
        owner, argument: whose argument they are, for messages.
    Raises:
        ValueError: no name at all, or an unknown one. FileNotFoundError: tools that are missing; names their packages.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"{owner}: `{argument}` must be names of cores, at least one. Received: {argument}={names!r}.")
    found = [CORES[_validate.one_of(owner, argument, name, tuple(CORES))] for name in names]
    for core in found:
        if reason := missing(core):
            raise FileNotFoundError(f"{owner}: {core.name}: {reason}")
    return found


def missing(core):
    """What is not on this machine of what `core` needs: a sentence, or None."""
    absent = [tool for tool in (core.compiler, core.emulator) if shutil.which(tool) is None]
    if not absent:
        found = subprocess.run([core.compiler, f"-print-file-name={core.specs}"], capture_output=True, text=True).stdout
        absent = [] if pathlib.Path(found.strip()).is_absolute() else [f"the C library of {core.compiler}"]
    if absent:
        return f"{' and '.join(absent)} not found; on Debian or Ubuntu: apt-get install {' '.join(core.packages)}"
    return None


def _call(core, command, folder, what):
    command = [core.compiler, *core.flags, f"--specs={core.specs}", "-std=c99", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{core.name}: {what} did not build:\n{done.stderr or done.stdout}")


@functools.cache
def compile_once(core, sources, include=(), flags=(), optimize=OPTIMIZE, warnings=WARNINGS):
    """Object files of C files, compiled once a process, by default with all warnings as errors; `build` links them."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"objects-{core.name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _call(
        core,
        [*optimize, *warnings, *(f"-I{path}" for path in include), *flags, "-c", *map(str, sources)],
        folder,
        "the object files",
    )
    return tuple(sorted(folder.glob("*.o")))


def build(core, sources, directory, *, include=(), flags=(), name="program", optimize=OPTIMIZE):
    """Compiles C files, or takes object files, and links them for a core; returns the path of the image."""
    directory = pathlib.Path(directory).resolve()
    image = directory / f"{name}-{core.name}.elf"
    code, constants, ram, ram_bytes = core.memory
    command = [*optimize, *(f"-I{pathlib.Path(path).resolve()}" for path in (HERE, *include)), *flags]
    if core.is_arm:
        # newlib's own start-up file stays out: it knows no vector table.
        command += ["-nostartfiles", "-Wl,--gc-sections", f"-T{HERE / 'arm.ld'}", str(HERE / "start_arm.c")]
        symbols = {"CODE": code, "CONSTANTS": constants, "RAM": ram, "RAM_SIZE": ram_bytes}
    else:
        command += ["--crt0=semihost", "--oslib=semihost"]
        symbols = {"__flash": code, "__flash_size": ram - code, "__ram": ram, "__ram_size": ram_bytes, "__stack_size": 0x10000}
    command += [f"-Wl,--defsym={symbol}={value:#x}" for symbol, value in symbols.items()]
    command += [*(str(pathlib.Path(source).resolve()) for source in sources), "-o", str(image)]
    _call(core, command, directory, "the image")
    return image


@dataclasses.dataclass(frozen=True)
class Result:
    """How a program ended: its exit status and what it printed."""

    status: int
    output: str


def run(core, image, arguments=(), *, timeout=300, cwd=None):
    """Runs an image to its end, in the folder `cwd`. `arguments` are words without spaces or commas."""
    arguments = [str(argument) for argument in arguments]
    if any(character in argument for argument in arguments for character in " ,"):
        raise ValueError(f"emulator.run: `arguments` must hold no space or comma. Received: arguments={arguments!r}")
    words = (["program"] if core.is_arm else []) + arguments
    config = "enable=on,target=native,chardev=out" + "".join(f",arg={word}" for word in words)
    shift = NANOSECONDS.bit_length() - 1 if core.is_arm else 0
    command = [
        core.emulator,
        *core.machine,
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "none",
        "-parallel",
        "none",
        "-chardev",
        "stdio,id=out",
        "-semihosting-config",
        config,
        "-icount",
        f"shift={shift}",
        "-kernel",
        str(image),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, cwd=cwd)
    return Result(done.returncode, done.stdout)
