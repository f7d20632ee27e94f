"""Augmented training: the joint step, its logs, resuming, export of the target, on TensorFlow and on JAX."""

import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from saaug_keras import augment, backbones, callbacks
from saaug_keras.training import AugmentedModel, CoupledSGD

BLOCKS = (
    backbones.BlockSpec(8, 8),
    backbones.BlockSpec(16, 24, strides=2),
    backbones.BlockSpec(16, 32, kernel_size=5, residual=True, squeeze_excite=8),
)


def small_spec(operator="shift", **changes):
    spec = backbones.NetSpec(
        "small", (12, 10, 3), 5, backbones.StemSpec(8), BLOCKS, (backbones.HeadSpec(24),), segmentation=None
    )
    return dataclasses.replace(spec, **changes).with_operator(operator)


def some_data(count=48, seed=1):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, count)
    images = generator.random((count, 12, 10, 3), "float32") * 0.3 + labels[:, None, None, None] * 0.14
    return images.astype("float32"), labels.astype("int32")


def assert_same_logits(model, target, images):
    ours, theirs = model.predict(images, verbose=0), target.predict(images, verbose=0)
    # Both compute the same in another order; an activation on the edge between two int8 values may fall to either side,
    # in a few images (5 of 48 were seen, up to 0.0204 of a logit; where depends on the machine's order of summation).
    assert np.isclose(ours, theirs, atol=2e-5, rtol=1e-5).all(axis=1).mean() > 0.75
    np.testing.assert_allclose(ours, theirs, atol=5e-2)


def compiled(operator="shift", blocks=BLOCKS, **options):
    keras.utils.set_random_seed(4)
    options = {"width": (1.0, 1.5), "expand": (1.0, 2.0), "seed": 3, **options}
    model = augment(small_spec(operator, blocks=blocks), **options)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return model


@pytest.mark.parametrize(
    "operator, remap",
    [
        ("conv", False),
        ("shift", True),
        ("shift5-ps", True),
        ("adder", True),
        ("shiftadd", False),
        ("binary", True),
        ("adder/channelshift/shift", True),
    ],
)
def test_fit_lowers_both_losses_and_the_exported_target_computes_what_the_model_computes(operator, remap):
    images, labels = some_data()
    model = compiled(operator, blocks=BLOCKS[1:], remap=remap)
    recalibration = callbacks.BatchNormRecalibration(images, batches=2, batch_size=24)
    watch = [callbacks.ChannelReorder(), recalibration]
    history = model.fit(images, labels, batch_size=16, epochs=6, verbose=0, callbacks=watch).history
    assert {"loss", "target_loss", "augmented_loss", "accuracy"} <= set(history)
    for name in ("target_loss", "augmented_loss"):
        # So few images can throw a last epoch back, in one order of summation and not in another.
        assert min(history[name]) < 0.8 * history[name][0]
    total = np.add(history["target_loss"], history["augmented_loss"])
    np.testing.assert_allclose(history["loss"], total, rtol=1e-3)
    target = model.export_target()
    assert_same_logits(model, target, images)
    assert target.count_params() < model.count_params()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow throws away what makes variables")
@pytest.mark.parametrize(
    "sizes, traced",
    [pytest.param((), 1, id="sparse"), pytest.param((5,), 1, id="one-hot"), pytest.param((None,), 2, id="of unknown size")],
)
def test_a_step_is_traced_once_and_the_first_images_count(sizes, traced, monkeypatch):
    import tensorflow as tf

    step, traces = AugmentedModel._eager_train_step, []
    monkeypatch.setattr(AugmentedModel, "_eager_train_step", lambda self, data: traces.append(data) or step(self, data))
    images, labels = some_data()
    truths = labels if sizes == () else np.eye(5, dtype="float32")[labels]
    signature = (tf.TensorSpec((None, 12, 10, 3)), tf.TensorSpec((None, *sizes), truths.dtype))
    batches = tf.data.Dataset.from_generator(
        lambda: ((images[i : i + 16], truths[i : i + 16]) for i in (0, 16, 32)), output_signature=signature
    ).apply(tf.data.experimental.assert_cardinality(3))
    keras.utils.set_random_seed(4)
    model = augment(small_spec("conv", blocks=BLOCKS[:1]), width=1.5, expand=1.0)
    kind = "SparseCategorical" if sizes == () else "Categorical"
    top = getattr(keras.metrics, kind.replace("Categorical", "TopKCategorical") + "Accuracy")(5)
    loss = getattr(keras.losses, kind + "Crossentropy")(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0, momentum=0.9), loss=loss, metrics=["accuracy", top])
    history = model.fit(batches, epochs=2, shuffle=False, verbose=0).history
    assert len(traces) == traced
    assert history[top.name] == [1.0, 1.0] and float(top.count) == len(images)  # of five, the right one is among five
    found = np.concatenate([np.asarray(model(images[i : i + 16], training=True)[0]).argmax(1) for i in (0, 16, 32)])
    accuracy = (found == labels).mean()  # before and after, for the weights rest
    assert history["accuracy"] == pytest.approx([accuracy] * 2) and accuracy > 0


def test_evaluate_and_predict_speak_of_the_target():
    images, labels = some_data()
    model = compiled(blocks=BLOCKS[:1])
    model.fit(images, labels, batch_size=16, epochs=1, verbose=0)
    logits = model.predict(images, verbose=0)
    assert logits.shape == (48, 5)
    scores = model.evaluate(images, labels, verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert np.abs(logits - np.asarray(model.call_augmented(images))).max() > 1e-3


def test_the_joint_gradient_is_the_sum_of_both_gradients():
    images, labels = some_data(16)
    weights = {}
    for weight in (0.0, 1.0, 3.0):
        keras.utils.set_random_seed(4)
        model = augment(small_spec("conv"), width=1.5, expand=2.0, aug_loss_weight=weight)
        model.compile(keras.optimizers.SGD(1.0))
        before = [np.array(v) for v in model.trainable_variables]
        model.train_on_batch(images, labels)
        weights[weight] = [b - np.array(v) for b, v in zip(before, model.trainable_variables, strict=True)]
    for direct, one, three in zip(*weights.values(), strict=True):
        np.testing.assert_allclose(three - direct, 3 * (one - direct), atol=2e-4, rtol=2e-3)
    assert max(np.abs(one - direct).max() for direct, one in zip(weights[0.0], weights[1.0], strict=True)) > 1e-3


def test_a_normalised_loss_divides_by_one_plus_the_weight():
    images, labels = some_data(16)
    plain, normalised = (compiled("conv", width=1.5, expand=1.0, aug_loss_weight=3.0, normalize_loss=n) for n in (0, 1))
    assert plain.train_on_batch(images, labels)[0] == pytest.approx(4 * normalised.train_on_batch(images, labels)[0])


def test_direct_training_runs_no_augmented_pass():
    images, labels = some_data()
    model = compiled(width=1.0, expand=1.0, aug_loss_weight=0.0)
    history = model.fit(images, labels, batch_size=16, epochs=1, verbose=0).history
    assert "augmented_loss" not in history and history["target_loss"] == history["loss"]
    assert int(model.step) == 0


def test_the_drawn_widths_depend_on_the_seed_and_the_step_alone():
    first, again, other = (augment(small_spec(), seed=seed) for seed in (5, 5, 6))
    assert (first.draws == again.draws).all()
    assert (first.draws != other.draws).any()
    assert set(first.draws[:, 0]) == {0, 1, 2} and set(first.draws[:, 1]) == {0, 1, 2, 3}


def test_training_goes_on_from_saved_weights_as_if_it_had_not_stopped(tmp_path):
    images, labels = some_data()
    whole, first, second = (compiled("adder", BLOCKS[:1]) for _ in range(3))
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0}
    whole.fit(images, labels, epochs=3, **fit)
    first.fit(images, labels, epochs=1, **fit)
    first.save_weights(tmp_path / "state.weights.h5")
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "state.weights.h5")
    second.fit(images, labels, epochs=3, initial_epoch=1, **fit)
    assert int(second.step) == 9
    for expected, got in zip(whole.variables, second.variables, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(expected), atol=1e-6, err_msg=expected.path)


def test_a_model_that_is_saved_and_loaded_trains_on_as_if_it_had_not_been(tmp_path):
    images, labels = some_data()
    model = compiled(blocks=BLOCKS[:1])
    rate = keras.optimizers.schedules.CosineDecay(0.05, 6)
    model.compile(
        CoupledSGD(rate, l2=0.1, momentum=0.9),
        metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(2)],
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    )
    undecayed = [variable for variable in model.trainable_variables if variable.name in ("gamma", "beta", "bias")]
    model.optimizer.exclude_from_weight_decay(var_list=undecayed)
    one_hot = np.eye(5, dtype="float32")[labels]
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0}
    history = model.fit(images, one_hot, validation_data=(images, one_hot), **fit).history
    # The target's loss is `val_loss`; nothing is logged that is not measured.
    assert {"target_loss", "augmented_loss", "val_loss", "val_accuracy"} <= set(history)
    assert not {"val_target_loss", "val_augmented_loss"} & set(history)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(images, verbose=0), loaded.predict(images, verbose=0))
    assert loaded.get_config() == model.get_config()
    more = [each.fit(images, one_hot, **fit).history for each in (model, loaded)]
    assert more[0].keys() == more[1].keys() and int(loaded.optimizer.iterations) == 6
    for name, values in more[0].items():
        np.testing.assert_allclose(more[1][name], values, rtol=1e-5, err_msg=name)
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), atol=1e-6, err_msg=one.path)


def test_depth_augmentation_leaves_the_target_exactly():
    blocks = (*BLOCKS[:2], dataclasses.replace(BLOCKS[2], kept=False))
    images, labels = some_data()
    model = augment(small_spec("shift", blocks=blocks), width=1.0, expand=1.0)
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"the blocks \[2\] of depth augmentation must have left the target"):
        model.export_target()
    decay = callbacks.DepthDecay(start=0.2, end=0.8)
    history = model.fit(images, labels, batch_size=16, epochs=5, verbose=0, callbacks=[decay]).history
    np.testing.assert_allclose(history["depth_gate"], [1, 1, 2 / 3, 1 / 3, 0], atol=1e-6)
    target = model.export_target()
    assert not [layer.name for layer in target.layers if layer.name.startswith("block2")]
    assert_same_logits(model, target, images)


def test_block_variant_training_turns_blocks_from_shallow_to_deep():
    images, labels = some_data()
    model = compiled("shift", mutable=True)
    with pytest.raises(ValueError, match="every layer must have turned multiplication-free"):
        model.network.weighted["stem"].gate.assign(0.0)
        model.export_target()
    groups = callbacks.mutation_groups(model.network)
    assert [group[0] for group in groups] == ["stem", "block0_depthwise", "block1_expand", "block2_expand", "head0"]
    turned = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            gates = [float(np.array(model.network.weighted[group[0]].gate)) for group in groups]
            turned.append(int(sum(gates)))
            assert gates == sorted(gates, reverse=True)

    mutation = callbacks.BlockMutation(start=0.0, end=1.0)
    model.fit(images, labels, batch_size=16, epochs=6, verbose=0, callbacks=[mutation, Watch()])
    assert turned == [0, 1, 2, 3, 4, 5]
    target = model.export_target()
    assert_same_logits(model, target, images)


def test_mixed_precision_trains():
    images, labels = some_data()
    model = compiled("shift", dtype="mixed_float16")
    history = model.fit(images, labels, batch_size=16, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_distillation_adds_the_divergence_to_the_teacher():
    images, labels = some_data(16)
    plain, distilled = (compiled("conv", width=1.5, expand=1.0, distill_weight=weight) for weight in (0.0, 2.0))
    base = plain.train_on_batch(images, labels)[0]
    assert distilled.train_on_batch(images, labels)[0] > base
    assert compiled("conv", aug_loss_weight=0.0, distill_weight=1.0).is_augmented


def test_coupled_decay_goes_through_the_momentum():
    kept, bare = (keras.Variable(np.array([1.0, -2.0], "float32"), name=name) for name in ("kernel", "bias"))
    optimizer = CoupledSGD(0.1, l2=0.5, momentum=0.9, nesterov=True)
    optimizer.exclude_from_weight_decay(var_list=[bare])
    optimizer.build([kept, bare])
    gradient = np.array([0.3, 0.1], "float32")
    expected = []
    for decay in (0.5, 0.0):
        w, m = np.array([1.0, -2.0]), np.zeros(2)
        for _ in range(3):
            g = gradient + decay * w
            m = 0.9 * m - 0.1 * g
            w = w + 0.9 * m - 0.1 * g
        expected.append(w)
    for _ in range(3):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)] * 2, [kept, bare])
    np.testing.assert_allclose(np.array(kept), expected[0], rtol=1e-5)
    np.testing.assert_allclose(np.array(bare), expected[1], rtol=1e-5)
    assert CoupledSGD.from_config(optimizer.get_config()).l2 == 0.5
    with pytest.raises(ValueError, match="CoupledSGD: `weight_decay` must be None"):
        CoupledSGD(weight_decay=0.1)


def test_add_kernels_are_clipped_to_what_their_inputs_reach():
    """In the step itself; weights that multiply stay as they are, and so do kernels whose range is not known yet."""
    images, labels = some_data(16)
    model = compiled("adder", remap=False, clip_adder_kernels=True, aug_loss_weight=0.0)
    before = {name: np.array(model.network.weighted[name].kernel) for name in ("block1_expand", "block1_depthwise")}
    variables = model.trainable_variables, model.non_trainable_variables
    values = model._adjust_stateless(*([variable.value for variable in each] for each in variables))
    for variable, value in zip(variables[0], values, strict=True):
        np.testing.assert_array_equal(np.array(value), np.array(variable))
    # What the step of the JAX backend does, and the step of the one at hand.
    for name in before:
        model.network.weighted[name].input_range.assign([-0.5, 1.0])
    values = model._adjust_stateless(*([variable.value for variable in each] for each in variables))
    half = 1.5 / 255 / 2
    for name, old in before.items():
        layer = model.network.weighted[name]
        expected, block = old.copy(), layer._view.slices()
        expected[block] = np.clip(old[block], -0.5 - half, 1.0 + half)
        assert np.abs(expected - old).max() > 1
        place = [variable is layer.kernel for variable in variables[0]].index(True)
        np.testing.assert_allclose(np.array(values[place]), expected, atol=1e-6)
    model.train_on_batch(images, labels)
    for layer in model.network.weighted.values():
        if layer.operator.distance:
            low, high = np.array(layer.input_range)
            low, high = min(low, 0), max(high, 0)
            half, kernel = (high - low) / 255 / 2, np.array(layer.kernel)[layer._view.slices()]
            assert low - half - 1e-5 <= kernel.min() and kernel.max() <= high + half + 1e-5
    with pytest.raises(ValueError, match="augment: `clip_adder_kernels` must be False where .*remap=True"):
        augment(small_spec("adder"), clip_adder_kernels=True)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_distillation_counts_a_row_as_often_as_its_weight_says(reduction):
    model = augment(small_spec("conv"), width=1.5, expand=1.0, distill_weight=2.0, distill_temperature=3.0)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction))
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 4, 5)).astype("float32")
    labels, weights = np.array([0, 1, 2, 3]), np.array([0.0, 1.0, 3.0, 0.5], "float32")

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    t, s = log_softmax(teacher / 3), log_softmax(student / 3)
    rows = (np.exp(t) * (t - s)).sum(-1) * 3.0**2 * 2.0
    rows = rows - log_softmax(student)[np.arange(4), labels] - log_softmax(teacher)[np.arange(4), labels]
    for weight in (np.ones(4, "float32"), weights):
        loss = model.compute_loss(None, labels, (student, teacher), weight)
        assert float(loss) == pytest.approx((rows * weight).sum() / (4 if reduction == "sum_over_batch_size" else 1), rel=1e-5)


@pytest.mark.parametrize("operator, aug_loss_weight", [("shift", 0.0), ("adder/shift/adder", 1.0)])
def test_kernels_settle_after_every_step(operator, aug_loss_weight):
    images, labels = some_data(16)
    options = {"remap": False, "aug_loss_weight": aug_loss_weight}
    plain, still, settling = (compiled(operator, settle=settle, **options) for settle in (False, True, True))
    settling.pull.assign(0.25)
    # As a step on JAX asks for it: values in, values out.
    variables = settling.trainable_variables, settling.non_trainable_variables
    values = settling._adjust_stateless(*([variable.value for variable in each] for each in variables))
    for variable, value in zip(settling.trainable_variables, values, strict=True):
        kernels = {id(layer.kernel): layer for layer in settling.network.weighted.values() if layer.operator.settles}
        settled = kernels[id(variable)].settled_kernel(0.25) if id(variable) in kernels else variable
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(value), keras.ops.convert_to_numpy(settled))
    for model in (plain, still, settling):
        model.fit(images, labels, batch_size=16, epochs=1, shuffle=False, verbose=0)
    for name, layer in plain.network.weighted.items():
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(still.network.weighted[name].kernel), kernel)
        if layer.operator.settles:
            kernel = keras.ops.convert_to_numpy(layer.settled_kernel(0.25))
        found = keras.ops.convert_to_numpy(settling.network.weighted[name].kernel)
        np.testing.assert_allclose(found, kernel, rtol=1e-5, atol=1e-6)


def test_settling_rises_with_training_and_needs_a_model_for_it():
    images, labels = some_data(16)
    model = compiled("shift", remap=False, settle=True, aug_loss_weight=0.0)
    schedule = callbacks.Settling(0.5, start=0.4)
    history = model.fit(images, labels, batch_size=16, epochs=5, verbose=0, callbacks=[schedule]).history
    np.testing.assert_allclose(history["pull"], [0, 0, 0, 0.25, 0.5], atol=1e-7)
    kernels = [
        (keras.ops.convert_to_numpy(layer.kernel)[layer._view.slices()], keras.ops.convert_to_numpy(layer.quantized_kernel()))
        for layer in model.network.weighted.values()
    ]
    before = compiled("shift", remap=False, aug_loss_weight=0.0).network.weighted.values()
    apart = [
        np.abs(
            keras.ops.convert_to_numpy(layer.kernel)[layer._view.slices()]
            - keras.ops.convert_to_numpy(layer.quantized_kernel())
        )
        for layer in before
    ]
    assert sum(np.abs(kernel - grid).sum() for kernel, grid in kernels) < 0.7 * sum(each.sum() for each in apart)
    with pytest.raises(ValueError, match=r"Settling: the model must be built with settle=True"):
        compiled("shift").fit(images, labels, epochs=1, verbose=0, callbacks=[schedule])
    with pytest.raises(ValueError, match="augment: `settle` must be False where no kernel"):
        compiled("conv", settle=True, remap=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 0.5}, "HybridNetwork: `width` must be"),
        ({"expand": ()}, "HybridNetwork: `expand` must hold at least one factor"),
        ({"aug_loss_weight": -1}, "augment: `aug_loss_weight` must be"),
        ({"layer_options": {"gradient_scale": 0.1}}, "HybridNetwork: `layer_options` must be one of 'adder'"),
    ],
)
def test_a_bad_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        augment(small_spec(), **options)


def test_a_loss_function_without_a_class_is_refused():
    with pytest.raises(TypeError, match="AugmentedModel.compile: `loss` must be a keras.losses.Loss"):
        augment(small_spec()).compile("sgd", loss=lambda y, p: 0.0)


@pytest.mark.skipif(os.environ.get("KERAS_BACKEND") == "jax", reason="the test that starts this one")
@pytest.mark.timeout(1800)  # JAX compiles for minutes, on a busy machine for more
def test_joint_training_holds_on_jax():
    # Compiling takes most of the time, so it is told to be quick.
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    # Add, channelshift and shift layers in one network; remap and agreement with TensorFlow by steps: test_device_training.
    names = "(exported_target and channelshift) or block_variant"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "2 passed" in done.stdout
