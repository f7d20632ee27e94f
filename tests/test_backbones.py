"""Backbones: published sizes, policies, serialization and the builder."""

import dataclasses

import keras
import numpy as np
import pytest

from saaug_keras import backbones, operators

# Parameters and MACs with 1000 classes at the published resolution, batch norm folded.
PUBLISHED = {
    "mobilenetv2-tiny": (0.744e6, 23.50e6),
    "mobilenetv2-w0.35": (1.670e6, 30.87e6),
    "proxylessnas-w0.35": (1.774e6, 35.72e6),
    "mobilenetv3-w0.35": (2.106e6, 19.50e6),
    "mcunet-in0": (0.743e6, 6.36e6),
    "mcunet-in1": (0.630e6, 12.79e6),
    "mcunet-in2": (0.722e6, 67.29e6),
    "mcunet-in3": (0.730e6, 81.79e6),
    "mcunet-in4": (1.722e6, 125.87e6),
    # Ours, summed by hand: stem, blocks, head, classifier.
    "tiny32-44k": (
        448 + 2080 + 2472 + 4272 + 5440 + 10960 + 5248 + 129000,
        110592 + 503808 + 297984 + 262656 + 167040 + 170880 + 81920 + 128000,
    ),
    "tiny32-93k": (
        448 + 2472 + 4272 + 5440 + 2 * 10960 + 12896 + 20720 + 9120 + 161000,
        442368 + 1191936 + 1050624 + 668160 + 2 * 683520 + 432000 + 325248 + 143360 + 160000,
    ),
}


@pytest.mark.parametrize("name", backbones.NAMES)
def test_parameters_and_macs_are_the_published_ones(name):
    spec = backbones.spec(name)
    parameters, macs = PUBLISHED[name]
    assert round(backbones.count_parameters(spec) / 1e6, 3) == round(parameters / 1e6, 3)
    assert round(backbones.count_macs(spec) / 1e6, 2) == round(macs / 1e6, 2)


@pytest.mark.parametrize("operator", [f"shift/{name}/shift" for name in operators.names()])
def test_a_spec_survives_plain_data(operator):
    spec = backbones.spec("mobilenetv3-w0.35", operator=operator, num_classes=7, squeeze_excite="shift")
    assert backbones.NetSpec.from_dict(spec.as_dict()) == spec


def test_the_stem_of_an_add_network_stays_multiplicative_and_its_classifier_shifts():
    layers = {layer.name: layer for layer in backbones.lower(backbones.spec("mcunet-in0", operator="adder"))}
    assert str(layers["stem"].operator) == "conv"
    assert str(layers["block1_expand"].operator) == "adder"
    assert str(layers["classifier"].operator) == "shift"


def test_the_layers_of_a_block_may_have_operators_of_their_own():
    spec = backbones.spec("tiny32-44k", operator="adder/shift5/conv")
    layers = {layer.name: layer.operator for layer in backbones.lower(spec)}
    found = [layers[f"block1_{part}"] for part in ("expand", "depthwise", "project")]
    assert list(map(str, found)) == ["adder", "shift5", "conv"]
    mixed = backbones.spec("tiny32-44k", operator="adder/shift/adder", squeeze_excite="shift")
    layers = {layer.name: layer.operator for layer in backbones.lower(mixed)}
    assert [str(layers[name]) for name in ("stem", "head0", "classifier")] == ["conv", "adder", "shift"]
    assert backbones.NetSpec.from_dict(mixed.as_dict()) == mixed
    whole = backbones.spec("tiny32-44k", operator="shift")
    assert backbones.lower(backbones.spec("tiny32-44k", operator="shift/shift/shift")) == backbones.lower(whole)
    for wrong, message in (
        ("adder/shift", "or three as 'adder/shift/adder'"),
        ("adder/shfit/adder", "Received: operator='shfit'"),
    ):
        with pytest.raises(ValueError, match=message):
            backbones.spec("tiny32-44k", operator=wrong)


def test_a_shift_network_has_no_multiplicative_layer():
    found = {layer.operator for layer in backbones.lower(backbones.spec("mobilenetv2-tiny", operator="shift"))}
    assert found == {operators.Shift(), None}


@pytest.mark.parametrize("operator", ["shift", "adder"])
def test_the_channels_of_a_fresh_network_carry_different_signals(operator):
    keras.utils.set_random_seed(1)
    spec = backbones.spec("mobilenetv2-tiny", operator=operator, input_shape=(32, 32, 3), num_classes=10)
    model = backbones.build(spec)
    name = [layer.name for layer in model.layers if layer.name.endswith("expand_bn")][-1]
    images = np.random.default_rng(0).uniform(size=(32, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    features = keras.Model(model.input, model.get_layer(name).output)(images.astype("float32"), training=True)
    channels = np.array(features).reshape(-1, features.shape[-1])
    correlation = np.abs(np.corrcoef(channels.T))
    assert correlation[np.triu_indices(len(correlation), 1)].mean() < 0.5


def test_shiftadd_is_a_shift_layer_and_an_add_layer():
    layers = [x for x in backbones.lower(backbones.spec("mcunet-in0", operator="shiftadd")) if x.block == 2]
    names = [x.name for x in layers if "depthwise" in x.name]
    assert names == ["block2_depthwise_shift", "block2_depthwise_add"]
    assert [x.operator for x in layers if "depthwise" in x.name] == [operators.Shift(), operators.Adder()]


def test_a_mixture_sets_each_block():
    names = ["conv", "shift"] * 7 + ["adder"]
    spec = backbones.spec("mcunet-in0", operator=names)
    assert [str(block.operator) for block in spec.blocks] == names
    with pytest.raises(ValueError, match="NetSpec 'mcunet-in0': `operator` must be one operator or 15 of them"):
        backbones.spec("mcunet-in0", operator=names[1:])


def test_strides_drop_the_early_reductions():
    spec = backbones.spec("mobilenetv2-tiny", input_shape=(32, 32, 3), strides=(1, 1, 2, 2, 2))
    assert [layer.input_shape[:2] for layer in backbones.lower(spec) if layer.kind == "pool"] == [(4, 4)]
    with pytest.raises(ValueError, match="backbones.spec: `strides` must be 5 numbers"):
        backbones.spec("mobilenetv2-tiny", strides=(1, 2))


def test_only_residual_blocks_can_be_depth_augmentation():
    spec = backbones.spec("mcunet-in0")
    blocks = list(spec.blocks)
    residual = next(i for i, b in enumerate(blocks) if b.residual)
    blocks[residual] = dataclasses.replace(blocks[residual], kept=False)
    shorter = dataclasses.replace(spec, blocks=tuple(blocks))
    assert not [x for x in backbones.lower(shorter) if x.block == residual]
    assert backbones.lower(shorter, all_blocks=True) == backbones.lower(spec)
    blocks[1] = dataclasses.replace(blocks[1], kept=False)
    with pytest.raises(ValueError, match="block 1 cannot be depth augmentation"):
        dataclasses.replace(spec, blocks=tuple(blocks))


def test_an_unknown_backbone_names_the_known_ones():
    with pytest.raises(ValueError, match="`name` must be one of 'mcunet-in0'"):
        backbones.spec("mcunet-in9")


@pytest.mark.parametrize("name", ["mcunet-in0", "mobilenetv3-w0.35"])
@pytest.mark.parametrize("operator", ["conv", "shift5", "adder", "shiftadd", "binary", "shift/channelshift/shift"])
def test_the_built_model_has_the_layers_of_the_spec(name, operator):
    spec = backbones.spec(name, input_shape=(40, 33, 3), num_classes=5, operator=operator)
    model = backbones.build(spec)
    for layer in backbones.lower(spec):
        kernel = getattr(model.get_layer(layer.name), "kernel", None)
        if layer.weight_count:
            assert int(np.prod(kernel.shape)) == layer.weight_count
        assert tuple(model.get_layer(layer.name).output.shape[1:])[-1] == layer.output_shape[-1]
    assert model.output_shape == (None, 5)
    if "add" in operator:
        return  # compiling every add layer of a whole network takes long; small ones are trained elsewhere
    logits = model(np.random.default_rng(3).random((2, 40, 33, 3), "float32"))
    assert logits.shape == (2, 5)
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize("output_stride, skip_stride", [(16, 8), (8, 4), (32, None)])
def test_a_segmentation_network_gives_a_class_map(output_stride, skip_stride):
    spec = backbones.spec("mcunet-in0", input_shape=(64, 40, 3), num_classes=4)
    spec = spec.with_segmentation(filters=16, output_stride=output_stride, skip_stride=skip_stride)
    spec = spec.with_operator("shift")
    coarsest = min(layer.output_shape[0] for layer in backbones.lower(spec) if layer.block is not None)
    assert coarsest == 64 // output_stride
    assert {layer.operator for layer in backbones.lower(spec)} == {operators.Shift(), None}
    assert backbones.build(spec).output_shape == (None, 64, 40, 4)
