"""Training with everything on a JAX device: against NumPy, against the TensorFlow backend, alone and side by side."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from device_program import RECIPE, RUNS, SPEC, digits

from saaug_keras import device_training, recipes

pytest.importorskip("jax")
import jax  # noqa: E402


def test_images_are_shifted_and_mirrored_as_a_loop_does_it():
    images = np.random.default_rng(1).integers(0, 255, (40, 6, 9, 2)).astype("uint8")
    labels = images[..., 0] // 2
    key, pad = jax.random.key(3), 2
    for flip in (False, True):
        moved = np.asarray(device_training.shift_and_flip(images, key, pad=pad, flip=flip))
        truths = np.asarray(device_training.shift_and_flip(labels, key, pad=pad, flip=flip, fill=200))
        seen = set()
        for image, label, out, truth in zip(images, labels, moved, truths, strict=True):
            found = []
            for mirrored in (False, True)[: 1 + flip]:
                for down in range(-pad, pad + 1):
                    for right in range(-pad, pad + 1):
                        sides = [(pad + 2, pad + 2)] * 2
                        whole = np.pad(image[:, ::-1] if mirrored else image, [*sides, (0, 0)])
                        map_ = np.pad(label[:, ::-1] if mirrored else label, sides, constant_values=200)
                        window = (slice(pad + 2 + down, pad + 8 + down), slice(pad + 2 + right, pad + 11 + right))
                        if (whole[window] == out).all():
                            np.testing.assert_array_equal(map_[window], truth)
                            found.append((mirrored, down, right))
            assert len(found) == 1
            seen.add(found[0])
        # 40 draws of 25 shifts: half of them or more are seen, and the farthest ones as well.
        assert len(seen) > 12 and {abs(down) for _, down, _ in seen} == {abs(right) for *_, right in seen} == {0, 1, 2}
        assert {mirrored for mirrored, *_ in seen} == ({False, True} if flip else {False})


def test_order_and_draws_depend_on_seed_and_epoch_alone():
    orders = {(seed, epoch): device_training.epoch_order(seed, epoch, 50).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert device_training.epoch_order(1, 1, 50).tolist() == orders[1, 1]


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="what another backend says")
def test_it_is_refused_where_it_cannot_be_and_not_chosen_by_itself(tmp_path):
    assert not device_training.chosen(None, (8, 8, 1), (8, 8, 1))
    assert not device_training.chosen(False, (8, 8, 1), (8, 8, 1))
    with pytest.raises(ValueError, match="device_training: the Keras backend must be 'jax'. Received: 'tensorflow'"):
        recipes.train(RECIPE, digits(), tmp_path, device_resident=True)
    with pytest.raises(ValueError, match="must differ in `seed` and `learning_rate` alone"):
        recipes.train_side_by_side([RECIPE, RECIPE.replace(epochs=5)], digits(), [tmp_path / "0", tmp_path / "1"])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def jax_runs(tmp_path_factory):
    """The folder that device_program.py filled, and what it found, on JAX without TensorFlow."""
    out = tmp_path_factory.mktemp("device")
    program = (
        "import runpy, sys\n"
        "sys.modules['tensorflow'], sys.argv = None, sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    script = pathlib.Path(__file__).with_name("device_program.py")
    done = subprocess.run(
        [sys.executable, "-c", program, str(script), str(out)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out, json.loads((out / "found.json").read_text())


def history(folder):
    return json.loads((folder / "history.json").read_text())


@pytest.mark.timeout(900)
def test_runs_side_by_side_are_killed_and_go_on_to_the_numbers_of_one_alone(jax_runs):
    out, found = jax_runs
    assert found["stopped"] == ["checkpoint-1.weights.h5", "history.json", "manifest.json", "recipe.json"]
    assert found["results"][2]["val_loss"] == pytest.approx(found["alone"]["val_loss"], rel=1e-3)
    assert found["results"][2]["test_accuracy"] == pytest.approx(found["alone"]["test_accuracy"], abs=0.05)
    together, alone = history(out / "run2"), history(out / "alone")
    assert [row["epoch"] for row in together] == [1, 2]
    for first, second in zip(together, alone, strict=True):
        assert set(first) == set(second) >= {"loss", "target_loss", "accuracy", "val_accuracy"}
        for name in first.keys() & {"loss", "target_loss", "augmented_loss", "val_loss"}:
            assert first[name] == pytest.approx(second[name], rel=1e-3)
    # Augmentation ends at half of training, and with it the second loss.
    assert [row["loss"] > 1.5 * row["target_loss"] for row in alone] == [True, False]
    assert ["augmented_loss" in row for row in alone] == [True, False] and alone[1]["loss"] == alone[1]["target_loss"]
    # The last evaluation of an epoch and the one after training see the same averaged weights and statistics.
    assert found["alone"]["val_loss"] == pytest.approx(alone[-1]["val_loss"], rel=1e-5)
    # Another seed is another run; its checkpoint was lost, and the others did not wait for it with their weights.
    other = history(out / "run1")
    assert [row["epoch"] for row in other] == [1, 2] and other[0]["loss"] != alone[0]["loss"]


def test_a_run_that_diverges_says_so_and_stops_no_other(jax_runs):
    out, found = jax_runs
    assert re.match(
        r"recipes\.train: (the |val_)loss must be finite\. Received: (val_)?loss=nan in epoch ", found["results"][0]
    )
    assert "(now 1000)" in found["results"][0]
    assert not (out / "run0" / "result.json").exists()
    for index in (1, 2):
        assert np.isfinite(found["results"][index]["val_loss"]) and (out / f"run{index}" / "result.json").exists()


def test_activations_in_bfloat16_keep_weights_statistics_and_logits_in_float32(jax_runs):
    found = jax_runs[1]["bfloat16"]
    assert found["activations"] == "bfloat16" and found["logits"] == "float32"
    assert found["variables"] == ["float32", "int32"]  # weights, statistics, ranges, momenta; the counts of steps
    assert found["loss"][1] < found["loss"][0]
    assert 0 < found["error"] < 0.1  # bfloat16 has 8 bits: the deployed network computes in int8


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the other side is TensorFlow")
def test_an_epoch_gives_the_losses_and_weights_of_tensorflow(jax_runs):
    out, _ = jax_runs
    data = digits()
    (x, y), _ = data.split(RECIPE.validation_fraction)
    recipe, steps = RUNS[2], len(x) // RECIPE.batch_size
    model, after = (recipes.make_model(recipe, SPEC) for _ in range(2))
    for each in (model, after):
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
        each.compile(recipes.make_optimizer(recipe, steps), loss=loss, metrics=["accuracy"])
        each.optimizer.exclude_from_weight_decay([v for v in each.trainable_variables if v.name in ("gamma", "beta", "bias")])
        each.optimizer.build(each.trainable_variables)
    model.load_weights(out / "before.weights.h5")
    after.load_weights(out / "after.weights.h5")
    order = np.asarray(device_training.epoch_order(recipe.seed, 0, len(x)))
    for step in range(steps):
        rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        batch = x[rows].astype("float32") / np.float32(255), np.eye(10, dtype="float32")[y[rows]]
        logs = model.train_step(tuple(map(keras.ops.convert_to_tensor, batch)))
    ours = history(out / "alone")[0]
    for name in ("loss", "target_loss", "augmented_loss"):
        assert ours[name] == pytest.approx(float(logs[name]), rel=1e-4)
    assert int(after.optimizer.iterations) == int(model.step) == steps
    for first, second in zip(model.variables, after.variables, strict=True):
        first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
        # Now and then a number rounds to the other side of a step of its grid.
        assert np.mean(np.isclose(first, second, rtol=1e-3, atol=1e-4)) > 0.95
