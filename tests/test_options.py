"""Every option of every layer: what was trained, cut out, exported and run computes the same, and is priced as stored."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
from export_models import assert_every_tensor_equal, images_like, layer_by_layer

import saaug_keras
import tflm_export
from saaug_keras import backbones, cost, operators
from saaug_keras.backbones import BlockSpec, NetSpec, StemSpec
from saaug_keras.layers import hybrid
from tflm_export import flatbuffer, runner
from tflm_export import operators as deployed

SPEC = NetSpec("options", (8, 8, 3), 4, StemSpec(8, strides=1), (BlockSpec(8, 16, strides=1, residual=True),))
# Options together, and whether they go through `fit`, which is dear; the others take their ranges from one pass.
GRID = [
    ("shift", {"weight_bits": 3, "exponent_scope": "layer"}, True),
    ("shift", {"weight_bits": 5, "zero_code": False, "variant": "ps"}, True),
    ("shift", {"activation_bits": None, "remap": "learned", "kl_weight": 0.5}, True),
    ("shift", {"weight_bits": 6, "activation_bits": None, "extra": "same"}, False),
    ("shift", {"weight_bits": 7, "laplace_scale": 1.0, "gradient_scale": 0.7, "kl_weight": 0.5}, False),
    ("shift", {"weight_bits": 8, "remap": False}, False),
    ("shift", {"zero_code": False, "exponent_scope": "layer"}, False),
    ("shift", {"exponent_scope": "layer", "variant": "ps", "mutable": True}, False),
    ("adder", {"activation_bits": None, "gradient_scale": 0.7}, True),
    ("adder", {"remap": "learned", "laplace_scale": 1.0, "mutable": True, "kl_weight": 0.5}, False),
    ("adder", {"remap": False, "extra": "same"}, False),
    ("conv", {"activation_bits": None, "remap": "learned"}, False),
    *(("shift", {"activation_bits": bits, "remap": False}, False) for bits in (2, 3, 4, 5, 6, 7)),
    ("adder", {"activation_bits": 4}, False),
    *((mixed, {}, False) for mixed in ("adder/shift/adder", "shift/adder/shift5", "conv/shift/conv")),
]


def test_the_grid_has_every_option():
    of_operators = {*operators.Shift().options(), *operators.Adder().options()}
    assert of_operators <= set(operators.option_names())  # and those that a user has registered
    assert {option for _, options, _ in GRID for option in options} == {*backbones.LAYER_OPTIONS, *of_operators}
    assert set(backbones.LAYER_OPTIONS) == set(hybrid.OPTIONS) - {"operator", "use_bias", "input_activation"}
    of_keras = {"kwargs", "filters", "units", "kernel_size", "kernel_initializer", "depthwise_initializer"}
    for kind, names in {
        "shift": ("ShiftConv2D", "ShiftDepthwiseConv2D", "ShiftDense"),
        "adder": ("AdderConv2D", "AdderDepthwiseConv2D"),
    }.items():
        for name in names:
            parameters = set(inspect.signature(getattr(saaug_keras, name)).parameters) - of_keras
            assert parameters == set(operators.parse(kind).options()), name


def trained(kind, options, fit, images):
    """An augmented model with weights and statistics that are lopsided."""
    keras.utils.set_random_seed(1)
    layer_options = {kind: options} if options else {}
    if kind == "adder":  # its classifier is a shift layer
        layer_options["shift"] = {key: options[key] for key in options if key == "activation_bits"}
    model = saaug_keras.augment(SPEC.with_operator(kind), width=(1.0, 2.0), expand=(1.0,), layer_options=layer_options)
    rng = np.random.default_rng(3)
    for norm in model.network.norms.values():
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape) * rng.choice([1, 1, -1], norm.gamma.shape))
        norm.beta.assign(rng.normal(size=norm.beta.shape) * 0.5)
        norm.momentum = 0.0
    if fit:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=True)
        model.fit(images, np.arange(len(images)) % 4, batch_size=len(images), verbose=0)
    else:
        model(images, training=True)
    return model


def allowed(step, layer):
    """Steps of the output by which an exported layer may differ from Keras's on its very int8 inputs."""
    if step.constants is not None and step.constants.operator is deployed.CONV:
        return 6.0  # weights rounded to int8
    if step.constants is not None and step.constants.operator is deployed.ADDER and layer.activation_bits is None:
        # Weights that no grid was trained for are rounded to that of the inputs, by half a step at most.
        gain = 256 * np.abs(step.constants.multiplier * 2.0 ** (-31 - step.constants.shift)).max()
        return 1.0 + gain * step.constants.weights[0].size / 2
    return 1.0 + 1e-3


@pytest.mark.parametrize("kind, options, fit", GRID)
def test_what_was_trained_is_what_is_run(kind, options, fit):
    images = images_like((8, 8, 3), 8)
    model = trained(kind, options, fit, images)
    inside = np.asarray(model(images, training=False))
    target = model.export_target()
    np.testing.assert_allclose(np.asarray(target(images)), inside, atol=1e-5 * np.ptp(inside))
    network = tflm_export.compile_network(target, images, flavour="custom")
    tensors = assert_every_tensor_equal(network, images)
    for step, difference in layer_by_layer(target, network, tensors):
        layer = target.get_layer(step.op.layers[0]) if step.op.layers else None
        assert difference.max() <= allowed(step, layer), (step.op.name, difference.max())
    found = np.asarray(network.output.dequantize(tensors[network.output.name]))
    assert np.abs(found - inside[: len(found)]).max() < 0.25 * np.ptp(inside)


def test_the_options_are_kept_by_the_layers_and_priced_as_they_are_stored():
    spec = SPEC.with_operator("shift")
    model = backbones.build(spec, layer_options={"shift": {"zero_code": False}, "classifier": {"weight_bits": 3}})
    assert [model.get_layer("stem").zero_code, model.get_layer("stem").weight_bits] == [False, 4]
    assert [model.get_layer("classifier").zero_code, model.get_layer("classifier").weight_bits] == [False, 3]

    def flash(**options):
        return {layer.name: layer.model_bytes for layer in cost.estimate(spec, **options).layers}

    half = flash()
    whole = {layer.name: layer.model_bytes for layer in cost.estimate(SPEC.with_operator("shift5")).layers}
    for options in ({"weight_bits": 5}, {"zero_code": False}, {"weight_bits": 8}):
        assert flash(layer_options={"shift": options}) == whole != half
        assert flash(layer_options={"stem": options}) == {**half, "stem": whole["stem"]}
    for options in ({"weight_bits": 3}, {"weight_bits": 3, "zero_code": False}, {"variant": "ps"}):
        assert flash(layer_options={"shift": options}) == half
    wide, narrow = (cost.estimate(spec, layer_options={"shift": {"weight_bits": bits}}) for bits in (5, 4))
    assert wide.energy_mj == cost.estimate(SPEC.with_operator("shift5")).energy_mj > narrow.energy_mj
    assert cost.compare(spec, layer_options={"shift": {"weight_bits": 5}})["deployed"] == wide


@pytest.mark.parametrize("options", [{}, {"activation_bits": 4}, {"zero_code": False, "activation_bits": 2}])
def test_the_price_of_options_is_what_the_exporter_makes(options):
    images = images_like((8, 8, 3), 4)
    model = trained("shift", options, False, images)
    data = flatbuffer.write(tflm_export.compile_network(model.export_target(), images, flavour="custom"))
    arena = runner.measure_arena(data)
    found = cost.estimate(model.spec, layer_options={"shift": options})
    assert 0.85 * found.model_bytes < len(data) < 1.05 * found.model_bytes  # the exporter shares equal records
    assert found.activation_bytes == arena.head


@pytest.mark.parametrize(
    "owner, call",
    [
        ("HybridNetwork", lambda options: saaug_keras.augment(SPEC, layer_options=options)),
        ("backbones.build", lambda options: backbones.build(SPEC, layer_options=options)),
        ("cost.estimate", lambda options: cost.estimate(SPEC, layer_options=options)),
    ],
)
def test_options_that_are_the_specs_or_nobodys_are_named(owner, call):
    with pytest.raises(ValueError, match=f"^{owner}: `layer_options` must be one of 'adder'.*Received: .*'block9_expand'"):
        call({"block9_expand": {"weight_bits": 5}})
    for option in ("strides", "operator", "use_bias", "bits"):
        with pytest.raises(ValueError, match=rf"^{owner}: `layer_options\['shift'\]` must be one of 'activation_bits'"):
            call({"shift": {option: 2}})
    with pytest.raises(TypeError, match=f"^{owner}: `layer_options` must hold a dict"):
        call({"shift": 5})


def test_a_layer_that_still_multiplies_by_its_own_option_is_not_cut_out():
    model = saaug_keras.augment(SPEC.with_operator("shift"), layer_options={"block0_expand": {"mutable": True}})
    model.network.weighted["block0_expand"].gate.assign(0.0)
    with pytest.raises(ValueError, match="still multiplicative: block0_expand"):
        model.export_target()


def test_a_plain_layer_of_other_options_does_not_take_a_target():
    layer = saaug_keras.HybridConv2D(4, 1, target_filters=2, target_channels=2, weight_bits=5)
    layer.build((None, 3, 3, 4))
    plain = saaug_keras.ShiftConv2D(2, 1, use_bias=False)
    plain.build((None, 3, 3, 2))
    with pytest.raises(ValueError, match="^HybridConv2D: `layer` must have weight_bits=5, .*Received: ShiftConv2D"):
        layer.copy_target_to(plain)


class Unpriced(operators.Operator):
    tap = "divisions"


@pytest.mark.parametrize(
    "call",
    [
        lambda layer: backbones.make_layer(dataclasses.replace(layer, kind="cosine")),
        lambda layer: dataclasses.replace(layer, kind="cosine").weight_count,
        lambda layer: cost._layer_cost(dataclasses.replace(layer, kind="cosine"), 1, False, 8, False),
        lambda layer: backbones.make_layer(dataclasses.replace(layer, operator=operators.ShiftAdd())),
        lambda layer: backbones.make_layer(dataclasses.replace(layer, kind="dense", operator=operators.Adder())),
        lambda layer: cost._layer_cost(dataclasses.replace(layer, operator=Unpriced()), 1, False, 8, False),
        lambda layer: backbones.BlockSpec(8, 8, operator="xnor"),
        lambda layer: backbones.BlockSpec(8, 8, operator="shift/xnor/shift"),
        lambda layer: backbones.StemSpec(8, operator="shift(bits=3)"),
        lambda layer: backbones.StemSpec(8, operator="shift(weight_bits=print)"),
        lambda layer: operators.parse("xnor"),
        lambda layer: backbones.make_activation("tanh", "a"),
    ],
)
def test_an_unknown_kind_or_operator_of_a_spec_is_refused_with_those_known(call):
    with pytest.raises(ValueError, match="must be one of '.*Received: "):
        call(backbones.lower(SPEC)[0])
