"""The zoo: entries that load, hold what they say, and refuse what is damaged."""

import csv
import dataclasses
import io
import json
import pathlib
import re
import shutil
import struct
import tracemalloc
import types
import zipfile

import keras
import numpy as np
import pytest
from export_models import small_backbone

import tflm_export
from saaug_keras import cli, datasets, demo, layers, ops, zoo
from saaug_keras.operators.adder_layers import AdderWeights
from saaug_keras.zoo import cards, drawings, making, weights

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = zoo.list()
TRAINED = [name for name in NAMES if zoo.Entry.read(name).measured]


def test_entries_are_listed_by_pattern():
    assert "digits-shift" in NAMES and zoo.list("*shift*") == tuple(name for name in NAMES if "shift" in name)
    assert zoo.list("nothing*") == ()


def test_entries_are_listed_by_their_figures():
    rows = {row["name"]: row for row in zoo.results()}
    assert tuple(rows) == zoo.list() and set(rows["digits-shift"]) == set(cards.COLUMNS)
    best = zoo.list("*cifar100*", sort_by="int8")
    known = [rows[name]["int8"] for name in best if rows[name]["int8"] is not None]
    assert known == sorted(known, reverse=True) and len(known) > 5
    for key in ("flash_bytes", "parameters", "macs", "instructions_m4"):
        figures = [rows[name][key] for name in zoo.list(sort_by=key) if rows[name][key] is not None]
        assert figures == sorted(figures) and figures
    small = zoo.list(max_flash=70_000, sort_by="ram_bytes")
    assert set(small) == {name for name, row in rows.items() if row["flash_bytes"] and row["flash_bytes"] <= 70_000}
    assert "digits-shift" in small and set(zoo.list(max_flash=70_000, max_ram=12_000)) < set(small)
    table = zoo.list("digits*", as_table=True).splitlines()
    assert table[0].startswith("| entry | data set |") and table[2].startswith("| digits-shift | digits |")
    with pytest.raises(ValueError, match="zoo.list: `sort_by` must be one of .*'int8'.*Received: sort_by='size'"):
        zoo.list(sort_by="size")
    with pytest.raises(ValueError, match="zoo.list: `max_flash` must be an int in"):
        zoo.list(max_flash=-1)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"`name` must be an entry, perhaps .*digits-shift.*name='digit-shift'"):
        zoo.load("digit-shift")


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_for_people(name):
    text = zoo.card(name)
    assert text.startswith(f"# {name}\n") and "Training: " in text and "Limits: " in text
    if name in TRAINED:
        figure = "mean IoU" if zoo.Entry.read(name).dataset == "camvid" else "accuracy"
        assert f"{figure}, int8 on TFLite Micro" in text


@pytest.mark.parametrize("name", TRAINED)
def test_files_are_the_recorded_ones_and_small(name):
    entry = zoo.Entry.read(name)
    assert {"weights.npz", "history.json"} < set(entry.files)
    for file, digest in entry.files.items():
        stored = ROOT / "zoo" / name / file
        assert zoo.sha256(stored) == digest and stored.stat().st_size < 1 << 20
        if not (entry.folder / file).is_file():
            assert file.endswith(".tflite")  # which the package makes anew
        else:
            assert zoo.sha256(entry.folder / file) == digest
    assert len(json.loads(entry.file("history.json").read_text())) == entry.recipe.epochs


def test_digits_are_what_was_measured_on_this_machine():
    rows = making.verify("digits-shift")
    assert all(agrees is not False for *_, agrees in rows), [row for row in rows if row[-1] is False]
    checked = {figure for figure, *_, agrees in rows if agrees}
    assert {"sha256 of weights.npz", "custom.tflite, exported anew", "float_accuracy", "tflm_accuracy"} <= checked


def test_verify_finds_another_figure(monkeypatch):
    measured = {"float_accuracy": 0.5, "parameters": 5}
    monkeypatch.setattr(making, "write_models", lambda *_: measured)
    monkeypatch.setattr(making, "evaluate", lambda *_: {})
    found = {figure: agrees for figure, _, _, agrees in making.verify("digits-shift")}
    assert found["float_accuracy"] is False and found["parameters"] is False and found["sha256 of weights.npz"] is True


def test_default_weights_fresh_ones_and_a_file(tmp_path):
    data = datasets.load("digits")
    images = datasets.pipeline(data.x_test[:64], batch_size=64)
    trained, fresh = zoo.load("digits-shift"), zoo.load("digits-shift", weights=None)
    assert (trained.predict(images, verbose=0).argmax(-1) == data.y_test[:64]).mean() > 0.9
    assert (fresh.predict(images, verbose=0).argmax(-1) == data.y_test[:64]).mean() < 0.5
    weights.write(trained, tmp_path / "mine.npz")
    again = zoo.load("digits-shift", weights=tmp_path / "mine.npz")
    np.testing.assert_array_equal(again.predict(images, verbose=0), trained.predict(images, verbose=0))
    assert (tmp_path / "mine.npz").read_bytes() == zoo.Entry.read("digits-shift").file("weights.npz").read_bytes()
    with pytest.raises(FileNotFoundError, match="`weights` must be"):
        zoo.load("digits-shift", weights=tmp_path / "no.npz")


def computing(layer, kernel):
    """The kernel that a layer computes with."""
    return layer.quantized_kernel() if hasattr(layer, "quantized_kernel") else kernel


@pytest.mark.parametrize(
    "operator", ["conv", "shift", "shift5", "shift-ps", "adder", "shiftadd", "binary", "shift/channelshift/adder"]
)
def test_weight_files_give_back_what_a_network_computes(operator, tmp_path):
    model, images = small_backbone("mobilenetv2-tiny", operator, blocks=2, shape=(12, 9, 3))
    before = {layer.name: np.array(computing(layer, kernel)) for layer, kernel in weights._kernels(model)}
    weights.deploy(model)
    deployed = model.predict(images, verbose=0)
    for layer, kernel in weights._kernels(model):
        # Shift and add layers compute with the same kernel as before, within the range; multiplicative ones lose digits.
        rtol = 1e-6 if hasattr(layer, "quantized_kernel") else 2.0**-8
        expected = before[layer.name]
        if isinstance(layer, AdderWeights):
            expected = np.clip(expected, *ops.nudged_range(*np.array(layer.input_range))[:2])
        np.testing.assert_allclose(computing(layer, kernel), expected, rtol=rtol)
    weights.write(model, tmp_path / "weights.npz")
    other, _ = small_backbone("mobilenetv2-tiny", operator, blocks=2, shape=(12, 9, 3), seed=1)
    weights.read_into(other, tmp_path / "weights.npz")
    np.testing.assert_array_equal(other.predict(images, verbose=0), deployed)


@pytest.mark.parametrize("bits", [4, 8])
def test_add_weights_beyond_the_range_are_moved_to_its_end(bits, tmp_path):
    def network():
        parts = [
            layers.AdderConv2D(5, 3, padding="same", strides=2, use_bias=False, activation_bits=bits, name="conv"),
            keras.layers.BatchNormalization(name="conv_bn"),
            layers.AdderDepthwiseConv2D(3, padding="same", depth_multiplier=2, activation_bits=bits, name="depthwise"),
            keras.layers.BatchNormalization(name="depthwise_bn"),
        ]
        return keras.Sequential([keras.Input((7, 6, 3)), *parts], name="adding")

    model, rng = network(), np.random.default_rng(2)
    for layer in model.layers[::2]:
        layer.kernel.assign(rng.normal(0, 30, layer.kernel.shape))
    images = rng.uniform(-1, 3, (8, 7, 6, 3)).astype("float32")
    for _ in range(60):
        model(images, training=True)
    before = model.predict(images, verbose=0)
    weights.deploy(model)
    np.testing.assert_allclose(model.predict(images, verbose=0), before, atol=1e-3)
    for layer in model.layers[::2]:
        assert len(np.unique(layer.kernel)) <= 2**bits and np.abs(layer.kernel).max() < 8
    weights.write(model, tmp_path / "weights.npz")
    other = network()
    weights.read_into(other, tmp_path / "weights.npz")
    np.testing.assert_array_equal(other.predict(images, verbose=0), model.predict(images, verbose=0))


def test_add_weights_beyond_the_range_need_a_batch_norm():
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.AdderConv2D(3, 1, kernel_initializer="he_normal")])
    model(np.ones((1, 4, 4, 2), "float32"), training=True)
    model.layers[0].kernel.assign(np.full((1, 1, 2, 3), 9.0))
    with pytest.raises(ValueError, match="a batch norm must follow"):
        weights.deploy(model)


def rewritten(source, target, change):
    """A weight file whose arrays {key: array} went through `change`."""
    arrays = {}
    with zipfile.ZipFile(source) as archive:
        for key in archive.namelist():
            arrays[key] = np.lib.format.read_array(io.BytesIO(archive.read(key)))
    change(arrays)
    with zipfile.ZipFile(target, "w") as archive:
        for key, value in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.asarray(value), allow_pickle=True)
            archive.writestr(key, part.getvalue())


def _first(arrays, codec):
    return next(key for key in arrays if key.endswith(f":{codec}.npy"))


def recoded(arrays, old, new):
    key = _first(arrays, old)
    arrays[key.replace(f":{old}", f":{new}")] = arrays.pop(key)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop(_first(a, "bfloat16")), "must hold the weight .* once"),
        (lambda a: a.update({"extra:float32.npy": np.zeros(3)}), "has the weight extra"),
        (lambda a: a.update({_first(a, "float32"): np.zeros(3)}), "must have the shape"),
        (lambda a: a.update({_first(a, "float32"): a[_first(a, "float32")] * np.nan}), "finite numbers"),
        (lambda a: a.update({_first(a, "bfloat16"): np.zeros(3)}), "two planes of bytes"),
        (lambda a: recoded(a, "bfloat16", "grid"), "must be stored as bfloat16. Received: 'grid'"),
        (lambda a: recoded(a, "float32", "bfloat16"), "must be stored as float32. Received: 'bfloat16'"),
        (lambda a: a.update({_first(a, "float32"): np.array([print], dtype=object)}), "damaged: .*allow_pickle"),
    ],
    ids=["missing", "extra", "shape", "nan", "planes", "codec", "codec-of-others", "pickle"],
)
def test_weight_files_from_outside_are_data_and_are_checked(change, message, tmp_path):
    rewritten(zoo.Entry.read("digits-shift").file("weights.npz"), tmp_path / "bad.npz", change)
    with pytest.raises(ValueError, match=message):
        zoo.load("digits-shift", weights=tmp_path / "bad.npz")


def test_flipped_bits_and_cut_files_are_refused(tmp_path):
    data = bytearray(zoo.Entry.read("digits-shift").file("weights.npz").read_bytes())
    rng = np.random.default_rng(5)
    model = zoo.load("digits-shift", weights=None)
    kept = [np.array(w) for w in model.get_weights()]
    refused = 0
    for index in range(40):
        damaged = bytearray(data)
        if index % 2:
            damaged = damaged[: rng.integers(0, len(data))]
        else:
            damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            weights.read_into(model, tmp_path / "bad.npz")
        except ValueError as error:
            assert "bad.npz" in str(error)
            refused += 1
            for now, before in zip(model.get_weights(), kept, strict=True):
                np.testing.assert_array_equal(now, before)
        else:  # a byte that the archive does not check, a time stamp say
            kept = [np.array(w) for w in model.get_weights()]
    assert refused >= 35


@pytest.mark.parametrize("kind", ["one array", "many arrays", "a lie"])
@pytest.mark.parametrize("name", ["weights", "calibration"])
def test_files_that_inflate_are_not_read(name, kind, tmp_path):
    """Neither with an honest header, of one array or of many that are small, nor with one that says less."""
    array = np.zeros((4, 1 << 20) if kind == "many arrays" else (1, 64 << 20), np.uint8)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for index, part in enumerate(array):
            npy = io.BytesIO()
            np.save(npy, part)
            archive.writestr(f"range:{index}.npy", npy.getvalue())
    if kind == "a lie":
        data = (tmp_path / "bomb.npz").read_bytes()
        (tmp_path / "bomb.npz").write_bytes(data.replace(struct.pack("<I", len(npy.getvalue())), struct.pack("<I", 200)))
    model = zoo.load("digits-shift", weights=None)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="must take at most" if kind != "a lie" else "it is damaged"):
            if name == "weights":
                weights.read_into(model, tmp_path / "bomb.npz")
            else:
                weights.read_observation(tmp_path / "bomb.npz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.fixture
def entry(tmp_path):
    """A copy of an entry's folder."""
    return shutil.copytree(zoo.path("digits-shift"), tmp_path / "digits-shift")


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("entry.toml", "version = 1", "version = 9", "entry.toml: `version` must be 1.*later saaug_keras"),
        ("entry.toml", "epochs = 40", "epoks = 40", r"entry.toml: \[recipe\] Recipe: `key` must be one of"),
        ("entry.toml", "classes = 10", "classes = 1", r"entry.toml: `classes` must be an int in \[2"),
        ("entry.toml", "title = ", "titel = ", "entry.toml: `key` must be one of"),
        ("entry.toml", "[recipe]", "[recipe", "entry.toml: not a TOML file"),
        ("measured.toml", "version = 1", "", "measured.toml: `version` must be 1"),
    ],
)
def test_entries_that_cannot_be_are_named(entry, file, old, new, message):
    text = (entry / file).read_text()
    assert old in text
    (entry / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        zoo.Entry.read_folder(entry)


def test_a_flipped_bit_is_found_by_its_hash(entry):
    data = bytearray((entry / "weights.npz").read_bytes())
    data[1000] ^= 4
    (entry / "weights.npz").write_bytes(data)
    read = zoo.Entry.read_folder(entry)
    with pytest.raises(ValueError, match=r"weights.npz is damaged: its SHA-256 must be .* Install the package again"):
        read.file("weights.npz")
    assert read.file("weights.npz", verify=False).is_file()
    (entry / "custom.tflite").unlink()
    with pytest.raises(FileNotFoundError, match="saaug zoo train digits-shift"):
        read.file("custom.tflite")


def test_eval_refuses_a_damaged_model(entry, monkeypatch, capsys):
    data = bytearray((entry / "custom.tflite").read_bytes())
    data[5000] ^= 1
    (entry / "custom.tflite").write_bytes(data)
    monkeypatch.setattr(zoo, "_root", lambda: entry.parent)
    assert cli.main(["zoo", "eval", "digits-shift", "--limit", "5"]) == 2
    assert "custom.tflite is damaged: its SHA-256 must be" in capsys.readouterr().err


def test_an_entry_without_its_models_makes_them_anew(entry, monkeypatch, capsys):
    for flavour in ("custom", "builtin"):
        (entry / f"{flavour}.tflite").unlink()
    monkeypatch.setattr(zoo, "_root", lambda: entry.parent)
    assert cli.main(["zoo", "eval", "digits-shift", "--limit", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_images"] == 5
    figures = {figure: agrees for figure, *_, agrees in making.verify("digits-shift")}
    assert "sha256 of custom.tflite" not in figures and figures["custom.tflite, exported anew"] is True
    text = (entry / "measured.toml").read_text()
    (entry / "measured.toml").write_text(re.sub('(?<=^"builtin.tflite" = ").', "#", text, flags=re.MULTILINE))
    assert cli.main(["zoo", "eval", "digits-shift", "--limit", "5"]) == 2
    assert "digits-shift, exported anew, must be the builtin.tflite of SHA-256 #" in capsys.readouterr().err


def test_training_an_entry_measures_it(entry, monkeypatch, tmp_path):
    text = (entry / "entry.toml").read_text().replace("epochs = 40", "epochs = 1").replace("blocks = 3", "blocks = 1")
    (entry / "entry.toml").write_text(text)
    monkeypatch.setattr(zoo, "_root", lambda: entry.parent)
    measured = making.train("digits-shift", tmp_path / "run")
    again = zoo.Entry.read("digits-shift")
    assert again.measured == measured and set(again.files) == {
        "weights.npz",
        "calibration.npz",
        "curves.png",
        "custom.tflite",
        "builtin.tflite",
        "history.json",
    }
    rows = making.verify("digits-shift")
    assert all(agrees is not False for *_, agrees in rows), rows
    making.record_instructions("digits-shift", {"m4": 12345})
    assert "12,345" in zoo.card("digits-shift") and "12,345" in cards.table()


def test_commands(tmp_path, capsys):
    assert cli.main(["zoo", "list", "digits*", "--json", "--csv", str(tmp_path / "zoo.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["digits-shift"]["int8"] > 0.9
    with open(tmp_path / "zoo.csv", newline="") as file:
        (written,) = csv.DictReader(file)
    assert written["name"] == "digits-shift" and float(written["int8"]) == zoo.results("digits-shift")[0]["int8"]
    assert cli.main(["zoo", "list", "--max-flash", "48k", "--sort-by", "int8"]) == 0
    assert "digits-shift" in (text := capsys.readouterr().out) and "mcunet-conv" not in text
    assert cli.main(["zoo", "card", "digits-shift"]) == 0
    assert "48 KB of flash" in capsys.readouterr().out
    assert cli.main(["zoo", "eval", "digits-shift", "--limit", "50", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["test_images"] == 50 and result["tflm_accuracy"] > 0.9
    assert cli.main(["zoo", "export", "digits-shift", "--flavour", "custom", "--out", str(tmp_path / "out")]) == 0
    bundled = zoo.Entry.read("digits-shift").file("custom.tflite").read_bytes()
    written = (tmp_path / "out" / "digits-shift.tflite").read_bytes()
    assert written == bundled
    capsys.readouterr()
    assert cli.main(["zoo", "card", "digit"]) == 2
    assert "perhaps digits-shift" in capsys.readouterr().err


def test_calibration_comes_back_and_is_checked(tmp_path):
    entry = zoo.Entry.read("digits-shift")
    observation = entry.observation()
    weights.write_observation(observation, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == entry.file("calibration.npz").read_bytes()
    blank = np.zeros((1, *entry.input_shape), np.uint8)
    for part in (observation.ranges, observation.channels):
        changed = dict(part)
        changed.pop(next(iter(part)))
        other = dataclasses.replace(observation, **{"ranges" if part is observation.ranges else "channels": changed})
        with pytest.raises(ValueError, match="`observation` must be what `tflm_export.observe` gave of this model"):
            tflm_export.compile_network(zoo.load("digits-shift"), blank, observation=other)
    weights.write_arrays({"range:input": np.zeros(2, "float32")}, tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="must be a calibration file of the zoo. Received: the array 'range:input'"):
        weights.read_observation(tmp_path / "bad.npz")


@pytest.mark.parametrize("dataset", ["camvid", "cifar100"])
def test_drawings_are_of_classes_and_the_same_everywhere(dataset):
    data = drawings.dataset(dataset)
    again = drawings.dataset(dataset)
    np.testing.assert_array_equal(data.x_test, again.x_test)
    assert data.x_test.dtype == np.uint8 and len(data.x_test) == len(data.y_test) and data.x_test.std() > 20
    assert len(data.x_train) == 0 and data.y_test.max() < data.num_classes == {"camvid": 11, "cifar100": 100}[dataset]
    if dataset == "camvid":
        assert data.y_test.shape == data.x_test.shape[:3]
        sky, road = (data.x_test[data.y_test == label].mean(axis=0) for label in (0, 3))
        assert sky.min() > 150 > road.max()  # the labels lie where the drawing is
    else:
        assert len(set(data.y_test)) == len(data.y_test) and data.class_names[data.y_test[0]] == "apple"


@pytest.fixture
def without_data(monkeypatch):
    """The data set is in no place."""
    load = datasets.load

    def missing(name, data_dir=None):
        if data_dir is None:
            raise FileNotFoundError("datasets.load: digits is in none of three places.")
        return load(name, data_dir=data_dir)

    monkeypatch.setattr(datasets, "load", missing)


def test_export_and_verify_do_without_the_data_set(without_data, monkeypatch, tmp_path, capsys):
    grey = datasets.Dataset("grey", *(np.full((4, 9, 9, 1), 70, np.uint8), np.zeros(4, np.int32)) * 2, ("a", "b"))
    monkeypatch.setattr(zoo, "samples", lambda name: grey)
    assert cli.main(["zoo", "export", "digits-shift", "--target", "c", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "main.c").is_file()
    rows = {figure: agrees for figure, *_, agrees in making.verify("digits-shift")}
    assert rows["float_accuracy"] is None and rows["custom.tflite, exported anew"] is True
    assert cli.main(["zoo", "eval", "digits-shift"]) == 2
    assert "none of three places" in capsys.readouterr().err


def test_the_demo_draws_and_counts(tmp_path, capsys):
    assert demo.main(["--entry", "digits-shift", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 100 and report["right_on_tflm"] > 90 and report["same_class"] > 95
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "model" / "digits-shift.tflite").is_file()


def test_the_demo_shows_the_most_accurate_shift_network():
    entries = [zoo.Entry.read(name) for name in zoo.list("*-shift-cifar100*")]
    assert max(entries, key=lambda entry: entry.measured["tflm_accuracy"]).name == demo.ENTRY
    assert f"most accurate shift network of the [zoo](zoo/README.md), `{demo.ENTRY}`" in (ROOT / "README.md").read_text()


def test_twins_were_counted_on_every_core_and_stand_beside_what_has_no_products():
    recorded = zoo.multiplicative()
    for twin, by_core in recorded["instructions"].items():
        assert twin in NAMES and by_core.keys() == recorded["kernels"].keys() >= set(cards.COUNTED)
        assert all(kinds.keys() == by_core["m0"].keys() for kinds in by_core.values())
        entries = cards.without_products(twin)
        assert entries and all(f"| `{name}` | " in cards.cores_table() for name in (*entries, twin))
    assert cards.beside(2_000_000, 3_000_000) == "2.00 (1.50)" and cards.beside(None, 3_000_000) == "-"


def test_of_a_pair_the_half_trained_alone_stands_beside_products(monkeypatch):
    entries = {
        name: types.SimpleNamespace(name=name, twin=twin, direct=direct)
        for name, twin, direct in [
            ("alone", "conv", None),
            ("conv", None, None),
            ("inside", "conv", "alone"),
            ("other", "c", None),
        ]
    }
    monkeypatch.setattr(cards.zoo, "list", lambda: list(entries))
    monkeypatch.setattr(cards.zoo.Entry, "read", entries.get)
    assert cards.without_products("conv") == ("alone",)


def test_the_table_is_what_the_entries_say():
    assert (ROOT / "zoo" / "README.md").read_text() == cards.readme()
    assert cards.table() in (ROOT / "README.md").read_text()


TINY = "tiny32-44k-shift-cifar100"


@pytest.mark.parametrize("name, shape", [(TINY, (32, 32, 3)), ("digits-shift", (8, 8, 1))])
def test_a_network_loads_with_other_ends(name, shape):
    whole = zoo.load(name)
    images = np.random.default_rng(2).random((3, *shape), "float32")
    logits = whole.predict(images, verbose=0)
    features = zoo.load(name, include_top=False)
    assert features.output_shape[-1] == whole.get_layer("classifier").kernel.shape[0]
    pooled = features.predict(images, verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(whole.get_layer("classifier")(pooled[:, :]), logits, rtol=1e-3, atol=1e-3)
    other = zoo.load(name, num_classes=7)
    assert other.output_shape == (None, 7)
    kept = {
        layer.name
        for layer in other.layers
        if layer.get_weights()
        and all(
            np.array_equal(a, b) for a, b in zip(layer.get_weights(), whole.get_layer(layer.name).get_weights(), strict=True)
        )
    }
    assert kept == {layer.name for layer in other.layers if layer.get_weights()} - {"classifier"}
    assert np.ptp(np.asarray(other.get_layer("classifier").kernel)) > 0
    larger = zoo.load(name, input_shape=(shape[0] + 8, shape[1] + 5, shape[2]))
    assert larger.input_shape[1:3] == (shape[0] + 8, shape[1] + 5)
    for one, two in zip(larger.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    channels = zoo.load(name, input_shape=(*shape[:2], 5), pretrained=False)
    assert channels.input_shape[-1] == 5
    fresh = zoo.load(name, pretrained=False)
    assert not np.array_equal(np.asarray(fresh.layers[1].kernel), np.asarray(whole.layers[1].kernel))
    with pytest.raises(ValueError, match=f"`input_shape` must have {shape[2]} channels, as {name} was trained with"):
        zoo.load(name, input_shape=(*shape[:2], 5))
    with pytest.raises(ValueError, match="zoo.load: `num_classes` must be an int"):
        zoo.load(name, num_classes=0)


def test_ends_that_a_network_cannot_lose_are_named():
    with pytest.raises(ValueError, match="`include_top` must be True for mobilenetv2-tiny-shift-camvid, which labels"):
        zoo.load("mobilenetv2-tiny-shift-camvid", include_top=False)


def test_a_network_is_fine_tuned_on_ten_classes_frozen_and_whole_and_exported(tmp_path):
    data = datasets.load("digits")
    x, x_test = (datasets.resize(part.repeat(3, axis=-1), 32) for part in (data.x_train[:600], data.x_test[:120]))
    y, y_test = data.y_train[:600], data.y_test[:120]
    model = zoo.load(TINY, num_classes=10)
    frozen = [layer for layer in model.layers if layer.name != "classifier"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for layer in frozen:
        layer.trainable = False
    before = [np.array(weight) for layer in frozen for weight in layer.weights]
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    model.fit(datasets.pipeline(x, y, batch_size=32, shuffle=True), epochs=8, verbose=0)
    for weight, old in zip((weight for layer in frozen for weight in layer.weights), before, strict=True):
        np.testing.assert_array_equal(np.array(weight), old)  # neither kernels nor statistics nor ranges move
    batches = datasets.pipeline(x_test, y_test, batch_size=60)
    _, with_frozen = model.evaluate(batches, verbose=0)
    for layer in frozen:
        layer.trainable = True
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(datasets.pipeline(x, y, batch_size=32, shuffle=True), epochs=6, verbose=0)
    _, whole = model.evaluate(batches, verbose=0)
    assert with_frozen > 0.5 and whole > max(0.8, with_frozen)
    report = tflm_export.export(model, x[:100], tmp_path, flavour="custom", evaluation_data=(x_test, y_test))
    assert report.tflm_accuracy > whole - 0.05
