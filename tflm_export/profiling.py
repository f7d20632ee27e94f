"""What every layer of a network takes on a microcontroller core, counted in the emulator."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import tempfile
from dataclasses import dataclass

from tflm_export import emulator, exporting, firmware, flatbuffer, native, report

_OWNER = "tflm_export.profile"


@dataclass(frozen=True)
class Layer:
    """A row of a profile.

    Args:
        name: of the layer, as the Keras model has it. operator: of TFLite Micro's or of ours.
        macs: taps of a layer with weights, a product, a shift or a difference each; else 0.
        instructions: of the layer in the whole network.
    """

    name: str
    operator: str
    macs: int
    instructions: int

    @property
    def per_mac(self) -> float | None:
        """Instructions per tap; None for a layer without weights."""
        return self.instructions / self.macs if self.macs else None


@dataclass(frozen=True)
class Profile:
    """Instructions of one inference of a network on a core, by layer.

    Args:
        core: name of the core. compiler: its version. kernels: the version of our kernels that it chose.
        layers: in the order in which they run.
        instructions: of one inference, counted without the hooks; None for more than the core's counter counts at once.
    """

    core: str
    compiler: str
    kernels: str
    layers: tuple[Layer, ...]
    instructions: int | None

    @property
    def between(self) -> int | None:
        """What the inference takes beside its layers: the calls' frame, less what the hooks and whole ticks add."""
        return None if self.instructions is None else self.instructions - sum(layer.instructions for layer in self.layers)

    @property
    def total(self) -> int:
        """Of one inference; where that was not counted at once, of all layers."""
        return sum(layer.instructions for layer in self.layers) if self.instructions is None else self.instructions

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        rows = [dataclasses.asdict(layer) | {"per_mac": layer.per_mac} for layer in self.layers]
        return dataclasses.asdict(self) | {"layers": rows, "between": self.between, "total": self.total}


def profile(
    model, representative_data, *, cores=("m4",), requantization="q31", input_range=None, observation=None
) -> tuple[Profile, ...]:
    """Instructions of every layer of a Keras model, exported as plain C and run in the emulator.

    Repeatable for one compiler: instructions, not cycles. The hooks put less than 16 into a layer; on a Cortex-M that
    includes the clock's tick, of 4 to 8. The network's output must be the reference interpreter's, byte for byte.

    Args:
        model, representative_data, requantization, input_range, observation: as `export`.
        cores: names, of "m0", "m3", "m4", "m7", "m55", "rv32" and "rv32-no-m".
    Returns:
        A `Profile` per core.
    Raises:
        TypeError, ValueError: an argument, or a layer that export does not know; names it.
        FileNotFoundError: a core's compiler or emulator is not there; names its packages.
        RuntimeError: a program that did not build, or that gave another output.
    """
    chosen = emulator.cores_of(_OWNER, cores)
    images, _ = exporting.as_array(representative_data)
    network = exporting.compile_network(
        model, images, flavour="custom", requantization=requantization, input_range=input_range, observation=observation
    )
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        firmware.write_c(network, "net", firmware.Samples.of(network, images[:1]), folder)
        return tuple(_profile_on(core, network, folder) for core in chosen)


def count(core: emulator.Core, folder) -> int | None:
    """Instructions of one inference of a project of plain C named "net"; None for more than the core counts at once.

    Raises:
        RuntimeError: it did not build, or gave another output than the exporter's.
    """
    _, (instructions,) = _run(core, pathlib.Path(folder), "whole")
    return instructions


def _profile_on(core, network, folder):
    kernels, counted = _run(core, folder, "layers", "-DSAAUG_PROFILE")
    if len(counted) != len(network.steps):
        raise RuntimeError(f"{_OWNER}: {core.name}: {len(counted)} layers ran; the network has {len(network.steps)}.")
    layers = []
    for step, instructions in zip(network.steps, counted, strict=True):
        name = step.op.name
        if instructions is None:
            raise RuntimeError(f"{_OWNER}: {core.name}: layer '{name}' takes more instructions than the core's counter counts.")
        layers.append(Layer(name, flatbuffer.operator_name(step, network.flavour), report.count_macs(step), instructions))
    return Profile(core.name, _version(core), kernels, tuple(layers), count(core, folder))


def _version(core):
    """Name and version of a core's compiler."""
    done = subprocess.run([core.compiler, "-dumpversion"], capture_output=True, text=True, check=True)
    return f"{core.compiler} {done.stdout.strip()}"


def _run(core, folder, name, *flags):
    """(version of the kernels, [instructions]) that emulated/inference.c prints of a project."""
    include = (native.KERNELS / "include", native.KERNELS / "src")
    objects = emulator.compile_once(core, tuple(native.kernel_sources()), include, warnings=())
    sources = [path for path in sorted(folder.glob("*.c")) if path.name != "main.c"]
    image = emulator.build(
        core, [emulator.HERE / "inference.c", *sources, *objects], folder, include=(folder, *include), flags=flags, name=name
    )
    try:
        result = emulator.run(core, image)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{_OWNER}: {core.name}: one inference must end within {error.timeout:.0f} s in QEMU.") from error
    words = result.output.split()
    if result.status or words[-1:] != ["1"]:
        raise RuntimeError(
            f"{_OWNER}: {core.name}: the network must give the reference's output. Received: status {result.status}, "
            f"{result.output[-200:]!r}."
        )
    *ticks, version, _ = words
    return version, [core.instructions(int(each)) for each in ticks]
