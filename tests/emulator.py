"""Bare-metal programs on emulated microcontroller cores: build an image, run it in QEMU, read what it printed.

    image = emulator.build(emulator.CORES["m0"], sources, directory, include=[...])
    result = emulator.run(emulator.CORES["m0"], image, ["argument"])

Programs are plain C with main, printf and files: semihosting does the input and output. emulated/counter.h counts
instructions; `Core.instructions` turns its ticks into instructions. A core whose compiler or emulator is not there is
reported by `missing(core)`.
"""

import atexit
import dataclasses
import fractions
import functools
import pathlib
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent / "emulated"

# Debian and Ubuntu packages with everything that this module runs.
PACKAGES = (
    "gcc-arm-none-eabi",
    "libnewlib-arm-none-eabi",
    "qemu-system-arm",
    "gcc-riscv64-unknown-elf",
    "picolibc-riscv64-unknown-elf",
    "qemu-system-misc",
)

OPTIMIZE = ("-O3", "-ffunction-sections", "-fdata-sections")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
NANOSECONDS = 8  # of virtual time an Arm instruction takes: -icount shift=3


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
        """Instructions in `ticks` of counter.h. On Arm exact to one tick: a part in 100 000 of any of our kernels."""
        if self.clock_mhz is None:
            return ticks
        return round(ticks * fractions.Fraction(1000, self.clock_mhz * NANOSECONDS))

    @property
    def is_arm(self):
        return self.compiler.startswith("arm")

    @property
    def specs(self):
        """The C library with semihosting: newlib or picolibc."""
        return "rdimon.specs" if self.is_arm else "picolibc.specs"


def _arm(name, cpu, machine, memory, clock_mhz, extra=()):
    flags = ("-mthumb", f"-mcpu={cpu}", *extra)
    return Core(name, "arm-none-eabi-gcc", flags, "qemu-system-arm", machine, memory, clock_mhz)


def _riscv(name, march, mabi, cpu):
    return Core(
        name,
        "riscv64-unknown-elf-gcc",
        (f"-march={march}", f"-mabi={mabi}"),
        "qemu-system-riscv32",
        ("-machine", "virt", "-bios", "none", "-cpu", cpu),
        (0x80000000, None, 0x80800000, 0x2000000),
        None,
    )


_MPS2 = (0, 0x80000, 0x20000000, 0x400000)
CORES = {
    core.name: core
    for core in (
        # The microbit's chip with the memory that our layers need: a real Cortex-M0, which faults on Thumb-2.
        _arm(
            "m0",
            "cortex-m0",
            ("-machine", "microbit", "-global", "nrf51-soc.flash-size=0x400000", "-global", "nrf51-soc.sram-size=0x400000"),
            _MPS2,
            16,
            ("-mfloat-abi=soft",),
        ),
        _arm("m3", "cortex-m3", ("-machine", "mps2-an385"), _MPS2, 25, ("-mfloat-abi=soft",)),
        _arm("m4", "cortex-m4", ("-machine", "mps2-an386"), _MPS2, 25, ("-mfloat-abi=soft",)),
        _arm("m7", "cortex-m7", ("-machine", "mps2-an500"), _MPS2, 25, ("-mfloat-abi=soft",)),
        _arm("m55", "cortex-m55", ("-machine", "mps3-an547"), (0, 0x60000000, 0x31000000, 0x200000), 32, ("-mfloat-abi=hard",)),
        _riscv("rv32", "rv32imac", "ilp32", "rv32,f=off,d=off"),
        _riscv("rv32-no-m", "rv32iac", "ilp32", "rv32,m=off,f=off,d=off"),
    )
}


def missing(core):
    """What is not on this machine of what `core` needs: a sentence, or None."""
    absent = [tool for tool in (core.compiler, core.emulator) if shutil.which(tool) is None]
    if not absent:
        found = subprocess.run([core.compiler, f"-print-file-name={core.specs}"], capture_output=True, text=True).stdout
        absent = [] if pathlib.Path(found.strip()).is_absolute() else [f"the C library of {core.compiler}"]
    if absent:
        return f"{' and '.join(absent)} not found; on Debian or Ubuntu: apt-get install {' '.join(PACKAGES)}"
    return None


def _call(core, command, folder, what):
    command = [core.compiler, *core.flags, f"--specs={core.specs}", "-std=c99", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{core.name}: {what} did not build:\n{done.stderr or done.stdout}")


@functools.cache
def compile_once(core, sources, include=(), flags=(), optimize=OPTIMIZE):
    """Object files of C files, compiled once a process with all warnings as errors; `build` links them."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"objects-{core.name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _call(
        core,
        [*optimize, *WARNINGS, *(f"-I{path}" for path in include), *flags, "-c", *map(str, sources)],
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
