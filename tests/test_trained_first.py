"""Networks that are trained first: what a network starts from and what it learns from."""

import json
import os
import shutil

import keras
import numpy as np
import pytest

from saaug_keras import augment, backbones, cli, datasets, recipes, zoo
from saaug_keras.recipes import Recipe
from saaug_keras.study import Study, runner
from saaug_keras.zoo import making

BLOCKS = (backbones.BlockSpec(8, 16, 3, 2), backbones.BlockSpec(8, 16, 3, 1, residual=True, squeeze_excite=4))
PRODUCTS = ("conv", "shift", "shift-ps", "binary", "conv/channelshift/shift")
SMALL = {
    "backbone": "mobilenetv2-tiny",
    "blocks": 2,
    "strides": (1, 2, 2, 1, 1),
    "epochs": 1,
    "batch_size": 64,
    "recalibrate_batches": 0,
    "aug_loss_weight": 0,
    "remap": False,
}


def spec(operator):
    stem, head = backbones.StemSpec(8), (backbones.HeadSpec(24),)
    return backbones.NetSpec("small", (12, 10, 3), 5, stem, BLOCKS, head).with_operator(operator)


def model_of(operator, **options):
    keras.utils.set_random_seed(4)
    return augment(spec(operator), **{"width": (1.0, 1.5), "expand": (1.0, 2.0), "remap": False, **options})


def trained(operator):
    """A plain network whose weights are all random."""
    model = backbones.build(spec(operator))
    generator = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape) * np.where(generator.random(weight.shape) < 0.5, -1, 1))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.abs(layer.moving_variance))
        if hasattr(layer, "input_range"):
            layer.input_range.assign([-2.0, 3.0])
    return model


def small_digits():
    whole = datasets.load("digits")
    images, labels = (whole.x_train[:320], whole.x_test[:100]), (whole.y_train[:320], whole.y_test[:100])
    return datasets.Dataset("digits", images[0], labels[0], images[1], labels[1], whole.class_names, mirror=False)


@pytest.fixture(scope="module")
def digits():
    return small_digits()


@pytest.mark.parametrize("operator", [*PRODUCTS, "adder", "adder/shift/adder"])
@pytest.mark.parametrize("source", [*PRODUCTS, "adder", "adder/shift/adder"])
def test_layers_start_from_those_of_their_kind(source, operator):
    """Products from products, whatever the operator; distances from distances; what moves channels from nothing."""
    model, start = model_of(operator), trained(source)
    before = {name: np.array(keras.ops.convert_to_numpy(layer.kernel)) for name, layer in model.network.weighted.items()}
    taken = model.network.start_from(start)
    for name, layer in model.network.weighted.items():
        theirs = start.get_layer(name)
        its = getattr(theirs, "operator", None)
        fits = not layer.operator.moves and not (its and its.moves)
        fits = fits and layer.operator.distance == bool(its and its.distance)
        assert (name in taken) == fits, name
        latent, block = keras.ops.convert_to_numpy(layer.kernel), layer._view.slices()
        if not fits:
            np.testing.assert_array_equal(latent, before[name])
            continue
        wanted = theirs.quantized_kernel() if getattr(theirs, "variant", "q") == "ps" else theirs.kernel
        np.testing.assert_array_equal(latent[block], keras.ops.convert_to_numpy(wanted))
        rest = np.ones(latent.shape, bool)
        rest[block] = False
        np.testing.assert_array_equal(latent[rest], before[name][rest])
        if name in model.network.norms:
            norm, its_norm = model.network.norms[name], start.get_layer(name + "_bn")
            channels = norm.target_channels
            for mine, theirs_ in (
                (norm.gamma, its_norm.gamma),
                (norm.beta, its_norm.beta),
                (norm.moving_mean, its_norm.moving_mean),
                (norm.augmented_moving_variance, its_norm.moving_variance),
            ):
                np.testing.assert_array_equal(keras.ops.convert_to_numpy(mine)[:channels], keras.ops.convert_to_numpy(theirs_))


@pytest.mark.parametrize("operator", ["conv", "shift", "shift-ps", "adder/shift/adder"])
def test_a_start_from_its_own_export_computes_the_same(operator):
    start, images = trained(operator), np.random.default_rng(2).random((6, 12, 10, 3), "float32")
    model = model_of(operator)
    model.network.start_from(start)
    np.testing.assert_allclose(
        model.predict(images, verbose=0), start.predict(images, verbose=0), rtol=1e-4, atol=1e-3 * np.abs(start(images)).max()
    )


def test_a_network_with_nothing_in_common_is_no_start():
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="here")], name="other")
    with pytest.raises(ValueError, match=r"start_from: `model` must have a layer.*Received: other, with here"):
        model_of("shift").network.start_from(other)


def softmax(logits):
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@pytest.mark.parametrize("aug_loss_weight", [0.0, 1.0])
def test_a_teacher_adds_the_divergence_and_learns_nothing(aug_loss_weight, tmp_path):
    images = np.random.default_rng(2).random((16, 12, 10, 3), "float32")
    labels = np.arange(16) % 5
    teacher, weight, temperature = trained("conv"), 0.7, 3.0
    model = model_of("shift", aug_loss_weight=aug_loss_weight)
    model.compile(keras.optimizers.SGD(0.1))
    variables = len(model.variables)
    told = model(images, training=True)
    base = float(model.compute_loss(images, labels, told))
    model.learn_from(teacher, weight=weight, temperature=temperature)
    target = keras.ops.convert_to_numpy(told[0] if aug_loss_weight else told)
    p, q = softmax(keras.ops.convert_to_numpy(teacher(images)) / temperature), softmax(target / temperature)
    extra = temperature**2 * (p * np.log(np.maximum(p, 1e-30) / q)).sum(-1).mean()
    assert extra > 0.05
    np.testing.assert_allclose(float(model.compute_loss(images, labels, told)) - base, weight * extra, rtol=2e-3)
    # Evaluation speaks of the data alone.
    without = model.evaluate(images, labels, verbose=0)
    model.learn_from(None)
    assert model.evaluate(images, labels, verbose=0) == without
    model.learn_from(teacher, weight=weight)
    kept = [np.array(keras.ops.convert_to_numpy(each)) for each in teacher.weights]
    model.fit(images, labels, batch_size=8, epochs=1, verbose=0)
    for before, after in zip(kept, teacher.weights, strict=True):
        np.testing.assert_array_equal(before, keras.ops.convert_to_numpy(after))
    assert len(model.variables) == variables
    model.save(tmp_path / "model.keras")  # without its teacher
    assert keras.models.load_model(tmp_path / "model.keras").count_params() == model.count_params()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"weight": -1}, "learn_from: `weight` must be a number in"),
        ({"temperature": 0}, "learn_from: `temperature` must be a number in"),
        (
            {"teacher": "shape"},
            r"`teacher` must be a network for images \(12, 10, 3\) of 5 classes. Received: one for \(8, 8, 3\)",
        ),
        ({"teacher": "classes"}, r"`teacher` must be a network for .* of 5 classes. Received: one for \(12, 10, 3\) of 4"),
    ],
)
def test_a_teacher_of_something_else_is_named(arguments, message):
    other = {"shape": ((8, 8, 3), 5), "classes": ((12, 10, 3), 4)}
    if name := arguments.get("teacher"):
        shape, classes = other[name]
        layers = [keras.Input(shape), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(classes)]
        arguments = {"teacher": keras.Sequential(layers)}
    with pytest.raises(ValueError, match=message):
        model_of("shift").learn_from(**{"teacher": lambda images, training: images, **arguments})


def test_a_recipe_trains_first_what_it_names(digits, tmp_path):
    twin = Recipe(operator="conv", **SMALL)
    recipe = twin.replace(operator="shift", epochs=2, start=twin.as_dict(), teacher=twin.replace(seed=1).as_dict())
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe and recipe.epochs_in_all == 3
    assert recipe.replace(start=recipe.as_dict()).epochs_in_all == 5
    result = recipes.train(recipe, digits, tmp_path / "run")
    firsts = sorted((tmp_path / "run").glob("first-*"))
    assert {json.loads((each / "recipe.json").read_text())["seed"] for each in firsts} == {0, 1}
    # Alone, from the same weights, and taught by the same network: the same numbers.
    asked = []

    def first(of):
        asked.append(of)
        (folder,) = (each for each in firsts if json.loads((each / "recipe.json").read_text())["seed"] == of.seed)
        return keras.models.load_model(folder / "target.keras", compile=False)

    again = recipes.train(recipe, digits, tmp_path / "again", first=first)
    assert asked == [twin, twin.replace(seed=1)] and not list((tmp_path / "again").glob("first-*"))
    for key in ("val_accuracy", "val_loss"):
        assert again[key] == result[key]
    other = recipes.train(recipe.replace(start=None), digits, tmp_path / "other", first=first)
    assert other["val_loss"] != result["val_loss"]


def test_a_start_is_where_training_starts(digits, tmp_path):
    """At a rate of almost nothing, the network is what it started from."""
    twin = Recipe(operator="conv", **{**SMALL, "epochs": 2})
    start = recipes.network_of(twin, digits, tmp_path)
    still = twin.replace(epochs=1, learning_rate=1e-8, weight_decay=0, start=twin.as_dict())
    recipes.train(still, digits, tmp_path / "run", first=lambda _: start)
    end = keras.models.load_model(tmp_path / "run" / "target.keras", compile=False)
    for mine, theirs in zip(end.trainable_weights, start.trainable_weights, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(theirs), atol=1e-6)


def test_a_run_that_stops_goes_on_from_its_own_weights(digits, tmp_path):
    twin = Recipe(operator="conv", **SMALL)
    recipe = twin.replace(operator="shift", epochs=3, start=twin.as_dict())
    whole = recipes.train(recipe, digits, tmp_path / "whole")

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipes.train(recipe, digits, tmp_path / "halves", callbacks=[Stop()])
    assert recipes.train(recipe, digits, tmp_path / "halves")["val_loss"] == whole["val_loss"]


@pytest.mark.parametrize("name", ["start", "teacher"])
def test_a_recipe_within_a_recipe_is_checked(name):
    with pytest.raises(ValueError, match=f"Recipe: `{name}`: Recipe: `epochs` must be an int"):
        Recipe("tiny32-44k", **{name: {"epochs": 0}})
    with pytest.raises(ValueError, match=f"Recipe: `{name}` must be a recipe as plain data, or None. Received: {name}='conv'"):
        Recipe("tiny32-44k", **{name: "conv"})
    recipe = Recipe("tiny32-44k")
    assert recipe.replace(**{name: {"backbone": "tiny32-44k"}}) == recipe.replace(**{name: recipe.as_dict()})


def test_runs_of_a_study_share_what_is_trained_first(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "_load", lambda *_: small_digits())
    twin = Recipe(operator="conv", **SMALL)
    for seed in (0, 1):
        recipe = twin.replace(operator="shift", seed=seed, start=twin.as_dict())
        result, _ = runner.train("digits", None, recipe, tmp_path / "training" / f"run{seed}", False)
        own = json.loads((tmp_path / "training" / f"run{seed}" / "result.json").read_text())["train_seconds"]
        (first,) = (tmp_path / "training").glob("first-*")  # whose time both runs pay for
        assert result["train_seconds"] == own + json.loads((first / "result.json").read_text())["train_seconds"]
    assert not list((tmp_path / "training").glob("run*/first-*"))


def test_a_start_has_the_seed_of_its_run_and_a_teacher_its_own():
    first = {"backbone": "tiny32-44k", "operator": "conv", "seed": 7}
    arm = {"recipe": {"start": first, "teacher": first}}
    study = Study.from_dict(
        {
            "title": "",
            "dataset": "digits",
            "backbones": ["tiny32-44k"],
            "operators": ["shift"],
            "seeds": [3],
            "arms": {"a": arm},
        }
    )
    recipe = study.make_recipe(study.cells()[0], {}, seed=3, tuning=False)
    assert (recipe.seed, recipe.start["seed"], recipe.teacher["seed"]) == (3, 3, 7)


def test_an_entry_starts_from_an_entry(monkeypatch, tmp_path):
    """By name; its weights are taken where its recipe is that of the name, and a loop of names is refused."""
    first, second = (shutil.copytree(zoo.path("digits-shift"), tmp_path / name) for name in ("first", "second"))
    monkeypatch.setattr(zoo, "_root", lambda: tmp_path)
    text = (second / "entry.toml").read_text()
    short = text.replace("epochs = 40", "epochs = 1").replace("\n[recipe]", 'start = "first"\nteacher = "first"\n\n[recipe]')
    assert short.count("first") == 2
    (second / "entry.toml").write_text(short)
    (second / "measured.toml").unlink()
    entry, source = zoo.Entry.read("second"), zoo.Entry.read("first")
    assert entry.recipe.start == entry.recipe.teacher == source.recipe.identity()
    assert making._trained(source.recipe, "digits") == "first" and making._trained(source.recipe, "cifar10") is None
    measured = making.train("second", tmp_path / "run")
    assert not list((tmp_path / "run").glob("first-*")) and measured["epochs"] == 41
    assert measured["tflm_accuracy"] > 0.9  # one epoch alone reaches about a third
    card = zoo.card("second")
    assert "starts from the weights of `first`" in card and "learns from the outputs of `first`" in card
    (second / "entry.toml").write_text(short.replace('start = "first"', 'start = "second"'))
    with pytest.raises(ValueError, match="entry.toml: `start` must be one of 'first'"):
        zoo.Entry.read("second")
    (second / "entry.toml").write_text(short)
    (first / "entry.toml").write_text(text.replace("\n[recipe]", 'start = "second"\n\n[recipe]'))
    with pytest.raises(ValueError, match="entry.toml: `start` must not lead back to the entry. Received: start='"):
        zoo.Entry.read("second")


def test_the_command_line_goes_on_from_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--backbone mobilenetv2-tiny --blocks 2 --strides 1,2,2,1,1 --dataset digits --epochs 1 --direct".split()
    assert cli.main(["train", *words, "--operator", "conv", "--out", "twin"]) == 0
    further = ["--operator", "shift", "--out", "run", "--start", "twin", "--teacher", "twin", "--teacher-weight", "0.5"]
    assert cli.main(["train", *words, *further]) == 0
    recipe = Recipe.from_dict(json.loads((tmp_path / "run" / "recipe.json").read_text()))
    assert recipe.start == recipe.teacher == Recipe.from_dict(recipe.start).identity() and recipe.teacher_weight == 0.5
    assert Recipe.from_dict(recipe.start).operator == "conv" and not list((tmp_path / "run").glob("first-*"))
    capsys.readouterr()
    assert cli.main(["train", *words, "--operator", "shift", "--out", "third", "--start", os.fspath(tmp_path / "none")]) == 2
    assert "`--start` must be the folder of a run" in capsys.readouterr().err and not (tmp_path / "third").exists()
