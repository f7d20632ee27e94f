"""Our C kernels compiled for this machine, once per set of sources and flags."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

_HERE = pathlib.Path(__file__).resolve().parent
KERNELS = _HERE / "kernels"
PLAIN = _HERE / "plain"
WHEEL_GLUE = _HERE / "wheel" / "saaug_wheel.c"
_FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")


def kernel_sources() -> list[pathlib.Path]:
    """Every C file of the kernels; versions for other targets guard themselves."""
    return sorted(KERNELS.glob("src/*.c")) + sorted(KERNELS.glob("src/*/*.c"))


def find_compiler() -> str:
    """Path of a C compiler: $CC, cc, gcc or clang.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name.split()[0]):
            return name
    raise FileNotFoundError(
        "tflm_export: no C compiler was found (looked for $CC, cc, gcc, clang). Our kernels are compiled to run a "
        "custom model on this machine; install gcc, or export with flavour='builtin'."
    )


def cache_folder():
    """Where what is compiled stays; None where that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = pathlib.Path(base) / "saaug_keras"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


@functools.lru_cache(maxsize=8)
def build(extra_sources: tuple[pathlib.Path, ...] = (), defines: tuple[str, ...] = ()) -> pathlib.Path:
    """A shared library of the kernels (and more sources), from the cache if it was built before.

    Args:
        extra_sources: further C files.
        defines: for example ("SAAUG_FORCE_REFERENCE",).
    Raises:
        FileNotFoundError: no compiler. RuntimeError: it failed; the message holds its output.
    """
    compiler = find_compiler()
    sources = [*kernel_sources(), *extra_sources]
    flags = (*_FLAGS, *(f"-D{name}" for name in defines), f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'src'}")
    digest = hashlib.sha256(" ".join((compiler, *flags)).encode())
    for file in (*sources, *sorted(KERNELS.glob("**/*.h"))):
        digest.update(file.read_bytes())
    name = f"kernels-{digest.hexdigest()[:24]}.so"
    cache = cache_folder()
    if cache is not None and (cache / name).exists():
        return cache / name
    folder = pathlib.Path(tempfile.mkdtemp(prefix="saaug_keras-"))
    target = folder / name
    command = [*compiler.split(), *flags, "-o", str(target), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(folder)
        raise RuntimeError(f"tflm_export: {compiler} could not compile the kernels:\n{done.stderr.strip()[-2000:]}")
    if cache is None:
        return target
    aside = cache / f".{name}.{os.getpid()}"
    shutil.move(target, aside)
    os.replace(aside, cache / name)
    shutil.rmtree(folder)
    return cache / name


def load(defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels through ctypes."""
    return ctypes.CDLL(str(build((), defines)))
