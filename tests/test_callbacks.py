"""Channel reorder and batch-norm recalibration."""

import keras
import numpy as np
import pytest
from test_training import BLOCKS, compiled, small_spec, some_data

from saaug_keras import augment, callbacks


def test_a_reorder_leaves_a_multiplicative_network_as_it_was():
    images, labels = some_data()
    model = augment(small_spec("conv"), width=(1.0, 1.5), expand=(1.0, 2.0), remap=False)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    model.fit(images, labels, batch_size=16, epochs=2, verbose=0)
    before = np.asarray(model.call_augmented(images))
    permutations = callbacks.reorder_channels(model.network, model.optimizer)
    assert any((p != np.arange(len(p))).any() for p in permutations.values())
    np.testing.assert_allclose(np.asarray(model.call_augmented(images)), before, atol=1e-5)


def test_a_reorder_puts_the_important_channels_first():
    model = compiled("shift")
    callbacks.reorder_channels(model.network)
    for name in ("block1_project", "block2_project"):
        norms = np.abs(np.array(model.network.weighted[name].kernel)).sum(axis=(0, 1, 3))
        assert (np.diff(norms) <= 1e-6).all()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_slots_of_the_optimizer_move_with_their_channels(name):
    images, labels = some_data(16)
    model = augment(small_spec("conv"), width=1.0, expand=2.0, remap=False)
    make = {"sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9), "adamw": lambda: keras.optimizers.AdamW(0.01)}
    model.compile(make[name]())
    model.train_on_batch(images, labels)
    slots = callbacks.optimizer_slots(model.optimizer, model.network.weighted["block1_project"].kernel)
    assert len(slots) == {"sgd": 1, "adamw": 2}[name]
    before = [np.array(slot) for slot in slots]
    permutation = callbacks.reorder_channels(model.network, model.optimizer)[1]
    for old, slot in zip(before, slots, strict=True):
        np.testing.assert_array_equal(np.array(slot), old[:, :, permutation])


def test_recalibration_sets_the_statistics_of_all_its_images():
    images, labels = some_data()
    model = compiled("conv")
    model.fit(images, labels, batch_size=16, epochs=1, verbose=0)
    callbacks.recalibrate(model, images, batches=3, batch_size=20)
    stem = model.network.weighted["stem"]
    out = np.asarray(stem(images))
    norm = model.network.norms["stem"]
    np.testing.assert_allclose(np.array(norm.moving_mean), out.mean(axis=(0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(np.array(norm.moving_variance), out.var(axis=(0, 1, 2)), rtol=2e-2, atol=1e-5)
    assert norm.momentum == 0.9


def test_recalibration_happens_before_evaluation_and_at_the_end():
    images, labels = some_data()
    model = compiled("shift", BLOCKS[:1])
    recalibration = callbacks.BatchNormRecalibration(images, batches=3, batch_size=16)
    model.fit(images, labels, batch_size=16, epochs=2, verbose=0, callbacks=[recalibration])
    after = [np.array(norm.moving_mean) for norm in model.network.norms.values()]
    callbacks.recalibrate(model, images, batches=3, batch_size=16)
    for old, norm in zip(after, model.network.norms.values(), strict=True):
        np.testing.assert_allclose(np.array(norm.moving_mean), old, atol=1e-6)


def test_what_is_not_finite_ends_training_with_its_place():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    guard = callbacks.StopAtNonFinite("Owner", "Try less.")
    guard.set_model(model)
    guard.on_epoch_begin(4)
    guard.on_train_batch_end(2, {"loss": 1.0})
    guard.on_epoch_end(4, {"loss": 1.0, "val_loss": 2.0})
    with pytest.raises(ValueError, match=r"Owner: the loss must be finite. Received: loss=nan in epoch 5, step 3; .*none"):
        guard.on_train_batch_end(2, {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"Owner: val_loss must be finite. Received: val_loss=inf in epoch 5; .*Try less."):
        guard.on_epoch_end(4, {"loss": 1.0, "val_loss": float("inf")})
    for variable in (model.layers[-1].bias, model.optimizer.variables[-1]):
        variable.assign(np.full(variable.shape, np.nan))
        with pytest.raises(ValueError, match=f"Owner: all weights must be finite in epoch 5; .*finite: {variable.path}"):
            guard.on_epoch_end(4, {"loss": 1.0})
        variable.assign(np.zeros(variable.shape))


def test_recalibration_needs_images():
    with pytest.raises(ValueError, match="recalibrate: `dataset` must give at least one batch"):
        callbacks.recalibrate(compiled(), [])


@pytest.mark.parametrize("make", [callbacks.DepthDecay, callbacks.BlockMutation])
def test_a_schedule_that_ends_before_it_begins_is_refused(make):
    with pytest.raises(ValueError, match=f"{make.__name__}: `end` must be greater than `start`"):
        make(start=0.6, end=0.2)


def test_a_callback_of_the_method_refuses_another_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="ChannelReorder: the model must be an AugmentedModel"):
        model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0, callbacks=[callbacks.ChannelReorder()])


def test_where_all_augmentation_has_ended_the_target_trains_alone_and_with_a_later_schedule_again():
    images, labels = some_data()
    model = compiled(blocks=BLOCKS[:1])
    until_half = callbacks.AugmentationSchedule(width_until=0.25, expand_until=0.5)
    options = {"batch_size": 16, "shuffle": False, "verbose": 0}
    logs = model.fit(images, labels, epochs=4, callbacks=[until_half], **options).history
    assert len(logs["loss"]) == 4 and len(logs["augmented_loss"]) == 2  # Keras keeps what an epoch has
    assert int(model.step) == 2 * int(np.ceil(len(images) / 16))
    assert (np.divide(logs["loss"], logs["target_loss"]) > 1.5).tolist() == [True, True, False, False]
    assert logs["loss"][2:] == pytest.approx(logs["target_loss"][2:], rel=1e-6)

    # From the same weights a step alone is a direct one.
    direct = augment(small_spec(blocks=BLOCKS[:1]), width=(1.0, 1.5), expand=(1.0, 2.0), aug_loss_weight=0.0)
    direct.compile(keras.optimizers.SGD(0.05))
    model.compile(keras.optimizers.SGD(0.05))
    model.train_alone()
    direct.set_weights(model.get_weights())
    for each in (model, direct):
        each.fit(images, labels, epochs=1, **options)
    for ours, theirs in zip(model.trainable_variables, direct.trainable_variables, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))

    again = model.fit(images, labels, epochs=1, callbacks=[callbacks.AugmentationSchedule()], **options).history
    assert again["augmented_loss"][0] > 0


def test_width_augmentation_ends_when_the_schedule_says():
    images, labels = some_data()
    model = compiled(blocks=BLOCKS[:1])
    model.fit(images, labels, batch_size=16, epochs=2, verbose=0, callbacks=[callbacks.AugmentationSchedule()])
    width, expand = model.draw()
    assert int(width) == 0
    assert int(model.width_enabled) == 0 and int(model.expand_enabled) == 1
