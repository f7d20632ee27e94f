"""The multiplicative twin as INT8, by both ways of quantization."""

import os

import keras
import numpy as np
import pytest

from saaug_keras import backbones, baselines, datasets
from saaug_keras.backbones import BlockSpec, NetSpec, StemSpec


@pytest.fixture(scope="module")
def spec():
    blocks = (
        BlockSpec(8, 24, 3, 2, operator="shift"),
        BlockSpec(8, 24, 3, residual=True, operator="shift"),
        BlockSpec(8, 16, 5, residual=True, operator="adder", kept=False),
    )
    return NetSpec("twin", (8, 8, 1), 10, StemSpec(8, strides=1, operator="shift"), blocks, classifier_operator="shift")


def test_the_twin_multiplies_and_has_no_augmentation_blocks(spec):
    twin = baselines.twin_of(spec)
    assert len(twin.blocks) == 2 and {str(layer.operator) for layer in backbones.lower(twin)} == {"conv", "None"}
    ours, built = baselines.build_twin(twin, keras), backbones.build(twin)
    ours.set_weights(built.get_weights())
    images = np.random.default_rng(0).random((4, 8, 8, 1), "float32")
    np.testing.assert_allclose(ours(images), built(images), atol=1e-5)
    assert [layer.name for layer in ours.layers][1:] == [layer.name for layer in built.layers][1:]


def test_the_twin_is_measured_as_int8_both_ways(spec, tmp_path):
    data = datasets.load("digits")
    arenas = []

    def measure_arena(model):
        arenas.append(len(model))
        return 1234

    def measure():
        return baselines.measure(
            spec, data, tmp_path, epochs=6, qat_epochs=2, batch_size=64, augment_data=False, measure_arena=measure_arena
        )

    result = measure()
    assert result["float_accuracy"] > 0.8
    for method in ("ptq", "qat"):
        # A quarter of the float weights, and the file's structure around them.
        assert result["parameters"] < result[method]["model_bytes"] < result["parameters"] + 15_000
        assert abs(result[method]["accuracy"] - result["float_accuracy"]) < 0.08
        assert result[method]["activation_bytes"] == 1234
    assert len(arenas) == 2
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tflite")}
    assert measure() == result
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tflite")}


def test_what_tfmot_cannot_quantize_is_named(spec):
    swish = backbones.spec("mobilenetv3-w0.35", num_classes=10, operator="conv")
    with pytest.raises(ValueError, match="baselines.build_twin: .* layer 'stem' .conv, activation hard_swish"):
        baselines.build_twin(swish, keras)


def test_images_of_another_size_are_refused_and_a_failing_process_says_why(spec):
    twin = baselines.twin_of(spec)
    model = backbones.build(twin)
    with pytest.raises(ValueError, match="quantize_aware: `images` must be uint8 .N, 8, 8, 1."):
        baselines.quantize_aware(twin, model, np.zeros((4, 9, 9, 1), np.uint8), np.zeros(4))
    with pytest.raises(RuntimeError, match="quantize_aware: the process ended with code 1: "):
        baselines.quantize_aware(twin, backbones.build(spec), np.zeros((4, 8, 8, 1), np.uint8), np.full(3, 1))
