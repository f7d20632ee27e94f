"""What a project of plain C takes of a core's memory, by linking it: code, constants and static data, nothing else.

The linker begins at the network's own functions, NAME_run and NAME_check, with no start-up code and no C library, and
leaves out what they do not reach. Functions of the C library stay undefined; those of libgcc are linked.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

from saaug_keras.memory import CORES, Core
from tflm_export import native

_COMPILE = ("-std=c99", "-ffunction-sections", "-fdata-sections")
# Without a start-up file nothing says where to begin, and what memcpy is does not matter here.
_LINK = ("-nostdlib", "-nostartfiles", "-Wl,--gc-sections", "-Wl,--unresolved-symbols=ignore-all", "-Wl,--no-warn-rwx-segments")


class CannotLink(Exception):
    """There is no compiler for a core on this machine."""


def can_link(core: str) -> bool:
    """Whether the core's compiler is on this machine."""
    return shutil.which(CORES[core].compiler) is not None


def sizes(sources: dict[str, str], word, core: str, optimize, roots) -> list[tuple[int, int]]:
    """[(bytes of flash, bytes of static RAM), ...] of a network's C files with the kernels that they call.

    Args:
        sources: the generated files, texts by name. word: the network's name in C.
        core: of `saaug_keras.memory.CORES`. optimize: of `saaug_keras.memory.OPTIMIZATIONS`.
        roots: for each figure, which of the network's functions a program calls: ("run", "check"), say.
    Raises:
        CannotLink: no compiler for the core. RuntimeError: it failed; the message holds its output.
    """
    with tempfile.TemporaryDirectory() as directory:
        objects = compile_network(sources, core, optimize, pathlib.Path(directory))
        return [link(objects, [f"{word}_{root}" for root in each], core, optimize) for each in roots]


def compile_network(sources, core, optimize, folder) -> list[pathlib.Path]:
    """Object files of a network's own C files in a folder."""
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = [name for name in sources if name.endswith(".c")]
    _call(CORES[core], [optimize, *_COMPILE, f"-I{folder}", *_includes(), "-c", *files], folder)
    return [folder / f"{name.removesuffix('.c')}.o" for name in files]


def link(objects, roots, core, optimize, *, more=()) -> tuple[int, int]:
    """(bytes of flash, bytes of static RAM) of what `roots` reach in object files and the kernels.

    Args:
        more: options of the linker.
    """
    with tempfile.TemporaryDirectory() as directory:
        image = pathlib.Path(directory) / "image.elf"
        flags = [*_LINK, f"-Wl,--entry={roots[0]}", *(f"-Wl,--undefined={root}" for root in roots), *more]
        files = [*map(str, objects), str(runtime(core, optimize)), "-lgcc"]
        _call(CORES[core], [*flags, *files, "-o", str(image)], directory, headers=False)
        return read_sizes(image.read_bytes())


def _includes():
    return [f"-I{path}" for path in (native.KERNELS / "include", native.KERNELS / "src", native.PLAIN)]


def _call(core: Core, words, folder, headers=True):
    if shutil.which(core.compiler) is None:
        raise CannotLink(f"tflm_export: {core.compiler} must be installed to link for core '{core.name}'.")
    # RISC-V's compiler comes without a C library; picolibc's headers are enough.
    specs = ["--specs=picolibc.specs"] if headers and not core.compiler.startswith("arm") else []
    done = subprocess.run([core.compiler, *core.flags, *specs, *words], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"tflm_export: {core.compiler} failed for core '{core.name}':\n{done.stderr.strip()[-2000:]}")


@functools.lru_cache(maxsize=32)
def runtime(core: str, optimize: str) -> pathlib.Path:
    """The kernels and plain operators as an archive for a core, from the cache if it was built before."""
    sources = [*native.kernel_sources(), *sorted(native.PLAIN.glob("*.c"))]
    made = CORES[core]
    version = subprocess.run([made.compiler, "--version"], capture_output=True, text=True).stdout if can_link(core) else ""
    digest = hashlib.sha256(" ".join((version, *made.flags, optimize, *_COMPILE)).encode())
    for file in (*sources, *sorted(native.KERNELS.glob("**/*.h")), *sorted(native.PLAIN.glob("*.h"))):
        digest.update(file.read_bytes())
    name = f"runtime-{core}-{digest.hexdigest()[:24]}.a"
    cache = native.cache_folder() or pathlib.Path(tempfile.mkdtemp(prefix="saaug_keras-"))
    if (cache / name).exists():
        return cache / name
    with tempfile.TemporaryDirectory() as directory:
        _call(made, [optimize, *_COMPILE, *_includes(), "-c", *map(str, sources)], directory)
        objects = [path.name for path in sorted(pathlib.Path(directory).glob("*.o"))]
        archiver = made.compiler.removesuffix("gcc") + "ar"
        subprocess.run([archiver, "rc", name, *objects], cwd=directory, check=True, capture_output=True)
        aside = cache / f".{name}.{os.getpid()}"
        shutil.copy(pathlib.Path(directory) / name, aside)
        os.replace(aside, cache / name)
    return cache / name


def read_sizes(image: bytes) -> tuple[int, int]:
    """(bytes of flash, bytes of RAM) of a 32-bit little-endian ELF file, by its sections.

    What is loaded and not written is flash; what is written is RAM, and where it has first values, flash too.
    """
    found = [(kind, flags, size) for _, kind, flags, size in sections(image) if flags & 2]  # SHF_ALLOC
    flash = sum(size for kind, _, size in found if kind != 8)  # SHT_NOBITS
    return flash, sum(size for _, flags, size in found if flags & 1)  # SHF_WRITE


def sections(image: bytes) -> list[tuple[str, int, int, int]]:
    """(name, type, flags, bytes) of every section of a 32-bit little-endian ELF file."""
    table, entry, count, names = struct.unpack_from("<I", image, 32)[0], *struct.unpack_from("<3H", image, 46)
    headers = [struct.unpack_from("<6I", image, table + index * entry) for index in range(count)]
    start = headers[names][4]

    def name(offset):
        return image[start + offset : image.index(0, start + offset)].decode()

    return [(name(offset), kind, flags, size) for offset, kind, flags, _, _, size in headers]
