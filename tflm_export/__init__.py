"""Export of Keras models to TensorFlow Lite for Microcontrollers.

report = tflm_export.export(model, images, "out", flavour="custom")
"""

from __future__ import annotations

import importlib
import pathlib

KERNELS = pathlib.Path(__file__).resolve().parent / "kernels"
"""The folder of the C kernels."""

_HOMES = {
    "compile_network": "exporting",
    "export": "exporting",
    "observe": "exporting",
    "profile": "profiling",
    "Interpreter": "runner",
    "Profile": "profiling",
    "Report": "report",
}

__all__ = ["KERNELS", "Interpreter", "Profile", "Report", "compile_network", "export", "observe", "profile"]


def __getattr__(name):
    if name in _HOMES:
        value = getattr(importlib.import_module(f"tflm_export.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tflm_export' has no attribute {name!r}")


def __dir__():
    return __all__
