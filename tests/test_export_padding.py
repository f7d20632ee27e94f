"""ZeroPadding2D before convolutions: whatever the zeros, the kernel and the strides, both flavours compute the model."""

import keras
import numpy as np
import pytest
from export_models import WINDOWS, compile_and_compare, images_like, padded_model

from saaug_keras import layers as ours
from tflm_export import graph

FAMILIES = {
    "shift": (ours.ShiftConv2D, ours.ShiftDepthwiseConv2D),
    "adder": (ours.AdderConv2D, ours.AdderDepthwiseConv2D),
    "conv": (keras.layers.Conv2D, keras.layers.DepthwiseConv2D),
}


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_zeros_of_any_width_are_exported_bit_for_bit(kind, depthwise):
    chosen = WINDOWS[::3] if kind == "adder" else WINDOWS
    model, images = padded_model([FAMILIES[kind][depthwise]], windows=chosen), images_like((5, 6, 2), 3)
    model(images, training=True)
    lowered = graph.lower(model)
    floats = graph.run_float(lowered, images[:2])
    outputs = {}
    for flavour in ("custom",) if kind == "adder" else ("builtin", "custom"):
        network, tensors = compile_and_compare(model, images, flavour=flavour)
        outputs[flavour] = tensors
        for step in network.steps:
            if step.constants is not None:  # from pixels, which int8 holds exactly: within a step of the float network
                found = step.output.dequantize(tensors[step.output.name])
                error = np.abs(found - floats[step.output.name]).max() / step.output.scale
                assert error <= (3 if kind == "conv" else 1.001), (step.op.name, error)
    if "builtin" in outputs:
        np.testing.assert_array_equal(outputs["custom"][network.output.name], outputs["builtin"][network.output.name])
