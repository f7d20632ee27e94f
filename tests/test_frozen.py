"""Frozen layers and calls that do not train leave every running statistic alone, as Keras's BatchNormalization does."""

import keras
import numpy as np
import pytest
from contract import array, random_inputs

from saaug_keras import augment, backbones, callbacks, layers

IMAGE, ROW = (2, 5, 4, 3), (2, 3)
# Every layer: its arguments, the shape of its inputs, the arguments of its calls.
LAYERS = {
    "AdderConv2D": ((2, 3), IMAGE, [{}]),
    "AdderDepthwiseConv2D": ((3,), IMAGE, [{}]),
    "HybridBatchNormalization": ((2,), IMAGE, [{"augmented": True}, {"augmented": False}]),
    "HybridConv2D": ((4, 3), IMAGE, [{"augmented": True, "filters": 3}, {"augmented": False}]),
    "HybridDense": ((4,), ROW, [{"augmented": True}, {"augmented": False}]),
    "HybridDepthwise": ((3,), IMAGE, [{"augmented": True}, {"augmented": False}]),
    "RoundedConv2D": ((2, 3), IMAGE, [{}]),
    "RoundedDense": ((4,), ROW, [{}]),
    "RoundedDepthwiseConv2D": ((3,), IMAGE, [{}]),
    "ShiftConv2D": ((2, 3), IMAGE, [{}]),
    "ShiftDense": ((4,), ROW, [{}]),
    "ShiftDepthwiseConv2D": ((3,), IMAGE, [{}]),
}
WITHOUT_STATISTICS = ("ChannelShift2D",)
OPTIONS = {
    "HybridConv2D": [{"operator": name, "extra": extra} for name in ("adder", "shift") for extra in ("multiplicative", "same")],
    "HybridDepthwise": [{"operator": name} for name in ("adder", "shift")],
    "HybridDense": [{"operator": "shift", "remap": "learned"}],
    **{name: [{"operator": "shift5"}] for name in ("RoundedConv2D", "RoundedDense", "RoundedDepthwiseConv2D")},
    "ShiftConv2D": [{"variant": variant} for variant in ("ps", "q")],
}
CASES = [
    (name, options)
    for name in LAYERS
    for options in OPTIONS.get(name, [{}])
    if keras.backend.backend() != "jax" or options != {"operator": "adder", "extra": "same"}
]


def made(name, options):
    args, shape, calls = LAYERS[name]
    if name.startswith("Hybrid"):
        options = {**options, "target_channels": 2} if name != "HybridBatchNormalization" else options
        options = {**options, "target_filters": 2} if name == "HybridConv2D" else options
    layer = getattr(layers, name)(*args, **options)
    layer.build((None, *shape[1:]))
    return layer, shape, calls


def statistics(layer, before):
    """The non-trainable weights of the layer as it was."""
    return [array(variable) for variable in before]


def sliced(inputs, call):
    """The target of a hybrid layer takes its own channels alone."""
    return inputs[..., :2] if call and not call["augmented"] else inputs


def test_every_layer_is_in_the_grid():
    assert sorted([*LAYERS, *WITHOUT_STATISTICS]) == sorted(layers.__all__)


@pytest.mark.parametrize("name, options", CASES, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in CASES])
def test_a_frozen_layer_keeps_its_statistics(name, options):
    layer, shape, calls = made(name, options)
    running = [variable for variable in layer.non_trainable_variables if not variable.name.startswith(("fc_", "gate"))]
    assert running
    first, other = random_inputs(shape, 1), 3 * random_inputs(shape, 2)
    for call in calls:
        before = statistics(layer, running)
        layer(sliced(first, call), training=True, **call)
        learned = statistics(layer, running)
        assert any((old != new).any() for old, new in zip(before, learned, strict=True))
        inference = array(layer(sliced(other, call), training=False, **call))
        layer.trainable = False
        frozen = array(layer(sliced(other, call), training=True, **call))
        layer.trainable = True
        np.testing.assert_allclose(frozen, inference, rtol=1e-5, atol=1e-5)
        for old, new in zip(learned, statistics(layer, running), strict=True):
            np.testing.assert_array_equal(old, new)
        layer(sliced(other, call), training=True, **call)  # thawed, it learns again
        assert any((old != new).any() for old, new in zip(learned, statistics(layer, running), strict=True))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_base_under_a_new_head_stays_what_it_was(frozen):
    """Frozen by `trainable` or by the call, inside a model that trains."""
    base = keras.Sequential(
        [
            keras.Input((6, 5, 3)),
            layers.ShiftConv2D(4, 3),
            layers.AdderConv2D(3, 2),
            layers.ShiftDepthwiseConv2D(2),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            layers.ShiftDense(3),
        ]
    )
    base(random_inputs((4, 6, 5, 3), 1), training=True)
    before = base.get_weights()
    base.trainable = not frozen

    class Headed(keras.Model):  # a functional model hands its own `training` to all its layers, whatever they were told
        def __init__(self):
            super().__init__()
            self.base, self.head = base, layers.ShiftDense(2)

        def call(self, inputs, training=None):
            return self.head(self.base(inputs, training=training and frozen), training=training)

    model = Headed()
    model(random_inputs((4, 6, 5, 3), 2) * 0.25, training=True)
    assert array(model.head.input_range).any()
    for old, new in zip(before, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_recalibration_leaves_frozen_norms():
    spec = backbones.NetSpec("small", (6, 5, 3), 3, backbones.StemSpec(8), (backbones.BlockSpec(8, 8),), ())
    model = augment(spec, aug_loss_weight=0)
    norms = model.network.norms
    norms["stem"].trainable = False
    before = {name: array(norm.moving_mean) for name, norm in norms.items()}
    callbacks.recalibrate(model, random_inputs((8, 6, 5, 3)), batches=1, batch_size=8)
    changed = {name for name, norm in norms.items() if (array(norm.moving_mean) != before[name]).any()}
    assert changed == set(norms) - {"stem"} and changed
