"""Recipes: one training run as data, resumed after a kill to the same numbers."""

import json
import os
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from saaug_keras import _budget, _checkpoint, _files, backbones, datasets, recipes
from saaug_keras.cli import make_parser
from saaug_keras.cli.train import make_recipe
from saaug_keras.recipes import Recipe
from saaug_keras.study import runner

SMALL = {
    "backbone": "mobilenetv2-tiny",
    "blocks": 1,
    "strides": (1, 2, 2, 1, 1),
    "epochs": 3,
    "batch_size": 64,
    "width": (1.0, 1.5),
    "expand": (1.0, 1.5),
    "recalibrate_batches": 2,
    "learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def digits():
    whole = datasets.load("digits")
    return datasets.Dataset(
        "digits",
        whole.x_train[:320],
        whole.y_train[:320],
        whole.x_test[:100],
        whole.y_test[:100],
        whole.class_names,
        mirror=False,
    )


def test_a_recipe_survives_json_and_refuses_unknown_keys():
    recipe = Recipe(**SMALL, drop_blocks=(2,), mutation_span=(0.1, 0.6))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    # What is equal is one run, however its numbers were written.
    whole, floats = (Recipe("mobilenetv2-tiny", width=width, strides=[1, 2]) for width in ((1, 2), (1.0, 2.0)))
    assert json.dumps(whole.as_dict()) == json.dumps(floats.as_dict()) and whole.strides == (1, 2)
    with pytest.raises(ValueError, match="Recipe: `key` must be one of 'aug_loss_weight'.*Received: key='epoch'"):
        recipe.replace(epoch=3)


def test_a_recipe_of_an_earlier_version_is_the_same_run(digits, tmp_path):
    """Fields that came later change neither the name of a run nor whose folder it is, while they are at their default."""
    recipe = Recipe(**SMALL, network={"blocks": ({"filters": 8},)})
    later = (
        "decay",
        "clip_adder_kernels",
        "start",
        "teacher",
        "teacher_weight",
        "teacher_temperature",
        "settle",
        "settle_from",
        "expand_until",
    )
    early = {key: value for key, value in recipe.as_dict().items() if key not in later}
    assert recipe.identity() == early
    assert recipe.replace(decay="coupled").identity() == {**early, "decay": "coupled"}
    digest = "e08a83b49f"  # of that recipe, as the version before these fields gave it
    assert runner.digest_of("digits", Recipe(**{**SMALL, "blocks": 3})) == digest
    (tmp_path / "recipe.json").write_text(json.dumps(early))
    assert recipes._is_mine(tmp_path, recipe, resume=True)
    with pytest.raises(ValueError, match="holds another recipe's run"):
        recipes._is_mine(tmp_path, recipe.replace(decay="coupled"), resume=True)
    (tmp_path / "recipe.json").write_text(json.dumps(early)[:-1])
    with pytest.raises(ValueError, match=r"recipe.json is damaged.*resume=False"):
        recipes._is_mine(tmp_path, recipe, resume=True)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_what_is_no_kernel_has_no_weight_decay(decay, dtype):
    recipe = Recipe(
        "mobilenetv2-tiny", operator="adder", weight_decay=0.5, decay=decay, dtype=dtype, blocks=1, aug_loss_weight=0
    )
    model = recipes.make_model(recipe, recipe.spec((16, 16, 3), 4))
    recipes.compile_model(recipe, model, 10)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    assert (optimizer.l2 if decay == "coupled" else optimizer.weight_decay) == 0.5
    decayed = {
        variable.path.split("network/")[-1] for variable in model.trainable_variables if optimizer._use_weight_decay(variable)
    }
    assert decayed == {"stem/kernel", "classifier/kernel"}


def test_the_command_line_asks_for_the_recipe_that_its_words_say():
    words = ["train", "--backbone", "mcunet-in0", "--dataset", "digits", "--out", "x", "--direct"]
    plain = make_recipe(make_parser().parse_args(words))
    assert (plain.decay, plain.clip_adder_kernels, plain.remap) == ("decoupled", False, False)
    changed = make_recipe(make_parser().parse_args([*words, "--decay", "coupled", "--clip-adder-kernels"]))
    assert changed == plain.replace(decay="coupled", clip_adder_kernels=True)


@pytest.mark.parametrize(
    "operator, settles",
    [
        ("conv", False),
        ("adder", True),
        ("shift", True),
        ("binary", True),
        ("adder/shift/adder", True),
        ("conv/adder/conv", False),
    ],
)
def test_a_recipe_that_settles_is_for_every_network_and_settles_where_there_is_a_grid(operator, settles):
    recipe = Recipe("tiny32-44k", operator=operator, blocks=1, settle=3e-3, aug_loss_weight=0.0, remap=False)
    assert recipes.make_model(recipe, recipe.spec((16, 16, 3), 4)).settle == settles


def test_a_network_without_a_grid_trains_with_a_recipe_that_settles(digits, tmp_path):
    recipe = Recipe("tiny32-44k", operator="conv", blocks=1, epochs=1, settle=3e-3, aug_loss_weight=0.0, remap=False)
    recipes.train(recipe, digits, tmp_path)
    assert "pull" not in json.loads((tmp_path / "history.json").read_text())[0]
    assert Recipe.from_dict(json.loads((tmp_path / "recipe.json").read_text())) == recipe


def test_adam_has_no_coupled_decay():
    with pytest.raises(ValueError, match="Recipe: `decay` must be 'decoupled' with optimizer 'adamw'"):
        Recipe("mobilenetv2-tiny", optimizer="adamw", decay="coupled")


def test_a_finished_run_is_not_repeated(digits, tmp_path):
    recipe = Recipe(**{**SMALL, "epochs": 2})
    result = recipes.train(recipe, digits, tmp_path / "run", test=True)
    assert {"val_accuracy", "test_accuracy", "train_seconds", "parameters"} <= set(result)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "augmented.weights.h5",
        "history.json",
        "manifest.json",
        "recipe.json",
        "result.json",
        "target.keras",
    ]
    written = (tmp_path / "run" / "target.keras").stat().st_mtime_ns
    assert recipes.train(recipe, digits, tmp_path / "run", test=True) == result
    assert (tmp_path / "run" / "target.keras").stat().st_mtime_ns == written
    target = keras.saving.load_model(tmp_path / "run" / "target.keras")

    def accuracy(images, labels):
        return (target.predict(images.astype("float32") / 255, verbose=0).argmax(1) == labels).mean()

    assert accuracy(digits.x_test, digits.y_test) == pytest.approx(result["test_accuracy"], abs=1e-6)
    (x, y), held_out = digits.split(recipe.validation_fraction)
    assert accuracy(*held_out) == pytest.approx(result["val_accuracy"], abs=1e-6)
    some = np.random.default_rng(0).permutation(len(x))[: len(held_out[0])]  # of training images, not augmented
    assert accuracy(x[some], y[some]) == pytest.approx(result["train_accuracy"], abs=1e-6)
    with pytest.raises(ValueError, match="holds another recipe's run"):
        recipes.train(recipe.replace(seed=9), digits, tmp_path / "run")
    # What is given back is what was written: one bit, or what is missing, is an error with its remedy.
    for name in ("augmented.weights.h5", "history.json", "manifest.json", "recipe.json", "result.json", "target.keras"):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        path.write_bytes(flipped(whole))
        with pytest.raises(ValueError, match=r"(damaged|another recipe's run).*resume=False"):
            recipes.train(recipe, digits, tmp_path / "run")
        path.write_bytes(whole)
    (tmp_path / "run" / "target.keras").unlink()  # moved away
    assert recipes.train(recipe, digits, tmp_path / "run") == result
    (tmp_path / "run" / "manifest.json").unlink()  # of an earlier version
    assert recipes.train(recipe, digits, tmp_path / "run") == result
    (tmp_path / "run" / "result.json").write_text(json.dumps({**result, "val_loss": float("nan")}))
    with pytest.raises(ValueError, match="holds a run that failed: val_loss must be finite"):
        recipes.train(recipe, digits, tmp_path / "run")


def flipped(data: bytes) -> bytes:
    """One bit of a digit or letter is another one."""
    place = next(index for index in range(len(data) // 2, len(data)) if 0x30 <= data[index] < 0x3A or data[index] > 0x7F)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


class Weights:
    """What a checkpoint asks of a model."""

    def __init__(self, text=""):
        self.text = text

    def save_weights(self, path):
        path.write_text(self.text)

    def load_weights(self, path):
        self.text = path.read_text()


def checkpointed(out, epochs):
    checkpoint = _checkpoint.RunFolder(out, "recipes.train").checkpoint(steps=1)
    checkpoint.set_model(Weights())
    for epoch in range(epochs):
        checkpoint.model.text = f"weights of epoch {epoch + 1}"
        checkpoint.on_epoch_begin(epoch)
        checkpoint.on_train_batch_end(0)
        checkpoint.on_epoch_end(epoch, {"loss": 1 / (epoch + 3)})
    return checkpoint


def restored(out):
    model, checkpoint = Weights(), _checkpoint.RunFolder(out, "recipes.train").checkpoint(steps=1)
    return checkpoint.restore(model), model.text, len(checkpoint.history)


@pytest.mark.parametrize(
    "damage",
    [
        ("history.json", lambda data: b"[]"),
        ("history.json", lambda data: data[: len(data) // 2]),
        ("history.json", lambda data: data.replace(b"0.3333", b"0.3334")),
        ("history.json", None),
        ("checkpoint-2.weights.h5", lambda data: data[:-1] + b"3"),
        ("checkpoint-2.weights.h5", None),
        ("manifest.json", lambda data: data.replace(b'epoch": 2', b'epoch": 3')),
        ("manifest.json", lambda data: data[1:]),
        ("manifest.json", lambda data: data.replace(b"files", b"fires")),
    ],
    ids=range(9),
)
def test_a_checkpoint_that_is_not_what_was_written_is_not_resumed_from(damage, tmp_path):
    checkpointed(tmp_path, 2)
    assert restored(tmp_path) == (2, "weights of epoch 2", 2)
    name, change = damage
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    with pytest.raises(ValueError, match=r"recipes.train: \S+ is (missing or )?damaged.*--overwrite"):
        restored(tmp_path)


def test_a_run_that_is_killed_between_two_files_goes_on_from_the_last_whole_epoch(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def write_until(count):
        def writing(path, data):
            nonlocal count
            if count == 0:
                raise Killed
            count -= 1
            return write(path, data)

        return writing

    write = _checkpoint.write_atomic
    for count in range(5):  # history.json and manifest.json in turn
        out = tmp_path / str(count)
        monkeypatch.setattr(_checkpoint, "write_atomic", write_until(count))
        try:
            checkpointed(out, 2)
        except Killed:
            pass
        epoch = (0, 1, 1, 1, 2)[count]  # a first checkpoint without its manifest is that of an earlier version
        assert restored(out) == (epoch, f"weights of epoch {epoch}" if epoch else "", epoch)


def test_two_processes_do_not_train_in_one_folder(digits, tmp_path):
    recipe = Recipe(**{**SMALL, "blocks": 1, "aug_loss_weight": 0.0})
    with _files.only_process(tmp_path, ""):
        with pytest.raises(BlockingIOError, match="recipes.train: another process is training in"):
            recipes.train(recipe, digits, tmp_path)


def test_weights_that_break_in_the_last_step_make_a_failed_run(digits, tmp_path):
    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == self.params["steps"] - 1:
                kernel = self.model.network.weighted["classifier"].kernel
                kernel.assign(np.array(kernel) * np.inf)

    (tmp_path / ".checkpoint-1.weights.h5.abcdefgh").mkdir()
    recipe = Recipe(**{**SMALL, "blocks": 1, "epochs": 1, "aug_loss_weight": 0.0, "warmup_epochs": 0.0})
    with pytest.raises(ValueError, match=r"recipes.train: .* must be finite.* in epoch 1; first weight .*classifier"):
        recipes.train(recipe, digits, tmp_path, callbacks=[Break()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.json"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="an epoch is checkpointed within on TensorFlow alone")
def test_a_run_that_is_killed_within_an_epoch_goes_on_to_the_same_numbers(digits, tmp_path, monkeypatch):
    stops = [(1, 2)]

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if stops and (self.epoch, batch) == stops[0]:
                stops.pop(0)
                raise KeyboardInterrupt

    monkeypatch.setattr(_checkpoint, "CHECKPOINT_SECONDS", 0)
    spec = backbones.NetSpec(
        "small", (8, 8, 1), 10, backbones.StemSpec(8, strides=2), (backbones.BlockSpec(8, 16, residual=True),)
    ).with_operator("shift")
    recipe = Recipe(**{**SMALL, "epochs": 2}, network=spec.as_dict(), ema=0.9)
    whole = recipes.train(recipe, digits, tmp_path / "whole", test=True)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            recipes.train(recipe, digits, tmp_path / "parts", callbacks=[Stop()])
        assert len(list((tmp_path / "parts").glob("checkpoint-*"))) == 1 and not list(tmp_path.glob("*/.*"))
    parts = recipes.train(recipe, digits, tmp_path / "parts", test=True)
    timed = ("train_seconds", "images_per_second")
    assert {**parts, **dict.fromkeys(timed)} == {**whole, **dict.fromkeys(timed)}
    rows = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "parts")]
    assert [[{**row, "seconds": 0} for row in each] for each in rows][0] == [{**row, "seconds": 0} for row in rows[1]]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="an epoch is checkpointed within on TensorFlow alone")
def test_a_budget_ends_a_long_epoch_within(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "CHECKPOINT_SECONDS", 0)
    now = time.time()
    monkeypatch.setattr(_checkpoint.time, "time", lambda: now)

    class Passes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            nonlocal now
            now += 10 * (batch == 1)

    with pytest.raises(_budget.OutOfTime, match="is within epoch 1; the same call goes on"):
        recipes.train(Recipe(**SMALL, aug_loss_weight=0), digits, tmp_path, callbacks=[Passes()], until=now + 5)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-0-2.weights.h5"]


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="the second half is on TensorFlow")
@pytest.mark.timeout(900)
def test_a_run_begun_on_jax_without_tensorflow_goes_on_with_it(digits, tmp_path):
    pytest.importorskip("jax")
    recipe = Recipe(**SMALL)
    program = (
        "import sys; sys.path[:0] = [sys.argv[3]]; sys.modules['tensorflow'] = None\n"
        "from test_recipes import *\n"
        "class Stop(keras.callbacks.Callback):\n"
        "    def on_epoch_begin(self, epoch, logs=None):\n"
        "        if epoch == 1:\n"
        "            np.save(sys.argv[2] + '/logits.npy', self.model(data.x_test.astype('float32') / 255))\n"
        "            raise SystemExit(7)\n"
        "whole = datasets.load('digits')\n"
        "data = datasets.Dataset('digits', whole.x_train[:320], whole.y_train[:320], whole.x_test[:100],"
        " whole.y_test[:100], whole.class_names, mirror=False)\n"
        "recipes.train(Recipe.from_dict(json.loads(sys.argv[1])), data, sys.argv[2], callbacks=[Stop()])\n"
    )
    tests = os.path.dirname(os.path.abspath(__file__))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-c", program, json.dumps(recipe.as_dict()), str(tmp_path), tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr[-2000:]
    first = json.loads((tmp_path / "history.json").read_text())
    assert [row["epoch"] for row in first] == [1] and (tmp_path / "checkpoint-1.weights.h5").exists()

    class Compare(keras.callbacks.Callback):
        found = []

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.found += [
                    np.asarray(self.model(digits.x_test.astype("float32") / 255)),
                    int(self.model.optimizer.iterations),
                ]

    recipes.train(recipe, digits, tmp_path, callbacks=[Compare()])
    rows = json.loads((tmp_path / "history.json").read_text())
    assert rows[0] == first[0] and [row["epoch"] for row in rows] == [1, 2, 3]
    distance = np.abs(Compare.found[0] - np.load(tmp_path / "logits.npy"))
    assert np.mean(distance < 1e-3) > 0.95 and distance.max() < 0.1  # now and then an input rounds to the other side
    assert Compare.found[1] == 288 // 64


def test_a_loss_that_is_not_a_number_stops_with_what_to_try(digits, tmp_path):
    recipe = Recipe(**{**SMALL, "learning_rate": 1000.0, "warmup_epochs": 0.0, "weight_decay": 1.0})
    with pytest.raises(ValueError, match="the loss must be finite.*step .*Try a smaller learning_rate"):
        recipes.train(recipe, digits, tmp_path)


def test_segmentation_learns_a_map(tmp_path):
    generator = np.random.default_rng(2)
    images = generator.integers(0, 255, (40, 32, 24, 3)).astype("uint8")
    labels = (images[..., 0] // 2 // 64).astype("uint8")
    labels[:, :2] = 2
    data = datasets.Dataset("maps", images, labels, images[:8], labels[:8], ("dark", "light"), ignore_class=2)
    recipe = Recipe(**{**SMALL, "batch_size": 8, "strides": (2, 2, 1, 1, 1)}, segmentation={"filters": 8, "skip_stride": 2})
    result = recipes.train(recipe, data, tmp_path, test=True)
    assert 0 < result["val_mean_iou"] <= 1 and 0 < result["test_mean_iou"] <= 1
    assert keras.saving.load_model(tmp_path / "target.keras").output_shape == (None, 32, 24, 2)
