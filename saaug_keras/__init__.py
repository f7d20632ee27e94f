"""Multiplication-free tiny networks for Keras 3: shift and add layers, trained inside larger multiplicative ones.

`import saaug_keras` is cheap: TensorFlow is imported when a name that needs it is first used.
"""

import importlib

from saaug_keras._version import __version__

# Public name -> the module that defines it. A module's own name stands for the module.
_HOME = {
    "AdderConv2D": "layers",
    "AdderDepthwiseConv2D": "layers",
    "ChannelShift2D": "layers",
    "HybridBatchNormalization": "layers",
    "HybridConv2D": "layers",
    "HybridDense": "layers",
    "HybridDepthwise": "layers",
    "RoundedConv2D": "layers",
    "RoundedDense": "layers",
    "RoundedDepthwiseConv2D": "layers",
    "ShiftConv2D": "layers",
    "ShiftDense": "layers",
    "ShiftDepthwiseConv2D": "layers",
    "augment": "training",
    "backbones": "",
    "callbacks": "",
    "cost": "",
    "datasets": "",
    "layers": "",
    "operators": "",
    "ops": "",
    "remap": "",
    "search": "",
    "training": "",
    "zoo": "",
}

__all__ = [
    "AdderConv2D",
    "AdderDepthwiseConv2D",
    "ChannelShift2D",
    "HybridBatchNormalization",
    "HybridConv2D",
    "HybridDense",
    "HybridDepthwise",
    "RoundedConv2D",
    "RoundedDense",
    "RoundedDepthwiseConv2D",
    "ShiftConv2D",
    "ShiftDense",
    "ShiftDepthwiseConv2D",
    "__version__",
    "augment",
    "backbones",
    "callbacks",
    "cost",
    "datasets",
    "layers",
    "operators",
    "ops",
    "remap",
    "search",
    "training",
    "zoo",
]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'saaug_keras' has no attribute '{name}'")
    home = _HOME[name]
    value = (
        getattr(importlib.import_module(f"saaug_keras.{home}"), name)
        if home
        else importlib.import_module(f"saaug_keras.{name}")
    )
    globals()[name] = value
    return value


def __dir__():
    return __all__
