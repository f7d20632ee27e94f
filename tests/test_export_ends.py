"""The two ends of an exported model: integer images, labels in every form, data without spread or end, whole folders."""

import json

import keras
import numpy as np
import pytest
from export_models import images_like

import tflm_export
from saaug_keras import _files
from saaug_keras.cli import main
from tflm_export import ends, exporting, firmware, flatbuffer, report, runner

L = keras.layers
RANGES = {"unit": None, "pixels": (0.0, 255.0), "signed": (-1.0, 1.0), "lopsided": (-0.5, 2.0)}


def linear(shape=(4, 3, 1), outputs=3, seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input(shape)
    return keras.Model(image, L.Dense(outputs, name="dense")(L.Flatten()(image)), name="linear")


def pixels(shape=(4, 3, 1), count=6, seed=0):
    return np.round(images_like(shape, count, seed) * 255).astype("uint8")


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integer_images_span_the_models_own_input_range_everywhere(kind, dtype, tmp_path):
    images, input_range = pixels().astype(dtype), RANGES[kind]
    low, high = input_range or (0.0, 1.0)
    values = (low + images * ((high - low) / 255)).astype("float32")
    model = linear()
    options = {"input_range": input_range}
    assert flatbuffer.write(tflm_export.compile_network(model, images, **options)) == flatbuffer.write(
        tflm_export.compile_network(model, values, **options)
    )
    # evaluation: Keras sees the values, the exported model the pixels
    labels = model.predict_on_batch(values).argmax(axis=-1)
    options["evaluation_data"] = (images, labels)
    written = tflm_export.export(model, images, tmp_path / "net", **options)
    assert (written.float_accuracy, written.agreement, written.images) == (1.0, 1.0, len(images))
    # the interpreter: a pixel is the stored value plus 128
    interpreter = runner.Interpreter(tmp_path / "net" / written.model_file)
    np.testing.assert_array_equal(interpreter.quantize(images), (images.astype("int32") - 128).astype("int8"))
    assert np.abs(interpreter.quantize(values).astype(int) - interpreter.quantize(images)).max() <= 1
    np.testing.assert_array_equal(interpreter.classify(images), labels)
    # the firmware
    network = tflm_export.compile_network(model, images, input_range=input_range, flavour="custom")
    np.testing.assert_array_equal(firmware.Samples.of(network, images).images, interpreter.quantize(images))


@pytest.mark.parametrize(
    "images, error, message",
    [
        pytest.param(
            np.full((1, 4, 3, 1), 256), ValueError, r"pixels in \[0, 255\]. Received: values in \[256, 256\]", id="above"
        ),
        pytest.param(np.full((1, 4, 3, 1), -1), ValueError, r"pixels in \[0, 255\]", id="below"),
        pytest.param(np.zeros((1, 4, 3, 1), bool), TypeError, "uint8, float or int8. Received: bool", id="bool"),
        pytest.param(np.full((1, 4, 3, 1), "a"), TypeError, "uint8, float or int8", id="text"),
    ],
)
def test_images_that_are_neither_pixels_nor_floats_are_refused_at_both_doors(images, error, message, tmp_path):
    model = linear()
    with pytest.raises(error, match="`representative_data` .*" + message):
        tflm_export.export(model, images, tmp_path / "out")
    with pytest.raises(error, match="`images` .*" + message):
        ends.to_stored(images, 1 / 255, -128, owner="test", name="images")


def test_images_of_stored_values_belong_to_the_exported_model_alone(tmp_path):
    with pytest.raises(TypeError, match="`representative_data` must be uint8 or float. Received: int8"):
        tflm_export.export(linear(), np.zeros((2, 4, 3, 1), "int8"), tmp_path / "out")
    with pytest.raises(ValueError, match="integers must have an `input_range` that holds 0"):
        tflm_export.export(linear(), pixels(), tmp_path / "out", input_range=(0.5, 1.0))
    with pytest.raises(ValueError, match="`images` must be finite"):
        ends.to_stored(np.full((1, 2), np.nan), 1.0, 0, owner="test", name="images")


# ---- labels and heads


def head(kind, seed=1):
    """A model of (4, 3, 1) images with one kind of head."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((4, 3, 1))
    if kind.startswith("map"):
        x = L.Conv2D(1 if kind == "map-binary" else 3, 1)(L.Conv2D(4, 3, padding="same", activation="relu")(image))
    else:
        dense = {"logit": (1, None), "probability": (1, "hard_sigmoid"), "classes": (3, None), "softmax": (3, "softmax")}
        x = L.Dense(dense[kind][0], activation=dense[kind][1])(L.Flatten()(image))
    model = keras.Model(image, x)
    images = images_like((4, 3, 1), 24, seed)
    single = x.shape[-1] == 1
    if single:  # as many of either class
        values = model.predict_on_batch(images)
        middle = np.median(values - (0.5 if kind == "probability" else 0))
        layer = model.layers[-1]
        layer.bias.assign(layer.bias - middle * (6 if kind == "probability" else 1))
    values = model.predict_on_batch(images)
    truth = (values[..., 0] > (0.5 if kind == "probability" else 0)).astype(int) if single else values.argmax(axis=-1)
    assert len(np.unique(truth)) > 1
    return model, images, truth


def label_forms(truth, classes):
    forms = {"plain": truth, "column": truth[..., None], "float": truth.astype("float32")[..., None]}
    return forms | {"one-hot": np.eye(classes, dtype="float32")[truth], "smoothed": np.eye(classes)[truth] * 0.8 + 0.1}


@pytest.mark.parametrize("kind", ["logit", "probability", "classes", "softmax", "map", "map-binary"])
def test_accuracy_is_the_same_for_every_form_of_labels_and_head(kind, tmp_path):
    model, images, truth = head(kind)
    wrong = truth.copy()
    wrong[:6] = 1 - np.minimum(truth[:6], 1)  # a quarter is wrong
    expected = float((wrong == truth).mean())
    classes = max(model.output_shape[-1], 2)
    network = tflm_export.compile_network(model, images)
    for form, labels in label_forms(wrong, classes).items():
        found, _ = exporting._evaluate(model, {"tflm_accuracy": network}, (images, labels), None)
        assert found["float_accuracy"] == expected, form
        assert abs(found["tflm_accuracy"] - expected) <= 0.05 and found["agreement"] >= 0.95, form


def test_accuracy_of_a_single_logit_depends_on_the_weights():
    model, images, truth = head("logit")
    model.layers[-1].bias.assign([-1e3])
    network = tflm_export.compile_network(model, images)
    found, _ = exporting._evaluate(model, {"tflm_accuracy": network}, (images, truth), None)
    assert found["float_accuracy"] == found["tflm_accuracy"] == float((truth == 0).mean())


def test_evaluation_data_is_what_keras_evaluates():
    import tensorflow as tf

    model, images, truth = head("classes")
    network = tflm_export.compile_network(model, images)
    truth = truth.copy()
    truth[0] = (truth[0] + 1) % 3

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return images[8 * index : 8 * index + 8], truth[8 * index : 8 * index + 8]

    parts = [(images[:10], truth[:10]), (images[10:], truth[10:])]
    forms = {
        "pair": (images, truth),
        "list": [images, truth],
        "weighted": (images, truth, np.ones(24)),
        "nested lists": (images.tolist(), truth.tolist()),
        "tensors": (tf.constant(images), tf.constant(truth)),
        "batches": parts,
        "generator": (part for part in parts),
        "names": ({"image": images}, truth),
        "dataset": tf.data.Dataset.from_tensor_slices((images, truth[:, None])).batch(7),
        "PyDataset": Batches(),
        "one-hot dataset": tf.data.Dataset.from_tensor_slices((images, np.eye(3)[truth], np.ones(24))).batch(24),
    }
    for form, data in forms.items():
        found, notes = exporting._evaluate(model, {"tflm_accuracy": network}, data, None)
        assert (found["float_accuracy"], found["images"], notes) == (23 / 24, 24, ()), form


@pytest.mark.parametrize(
    "labels, message",
    [
        pytest.param(np.full(24, 3), r"labels in \[3, 3\]", id="above"),
        pytest.param(np.full(24, -1), r"labels in \[-1, -1\]", id="negative"),
        pytest.param(np.full(24, 0.5), "others, of float64", id="fractional"),
        pytest.param(np.full(24, np.nan), "others, of float64", id="nan"),
        pytest.param(np.zeros((24, 2)), r"labels of shape \(24, 2\)", id="two-columns"),
        pytest.param(np.zeros((24, 4, 3)), r"labels of shape \(24, 4, 3\)", id="per-pixel"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=r"`evaluation_data` must have labels .*in \[0, 2\].*" + message):
        ends.class_labels(labels, (3,), owner="test", name="evaluation_data")


def test_pixels_of_no_class_do_not_count_and_none_at_all_is_refused():
    model, images, truth = head("map")
    network = tflm_export.compile_network(model, images)
    labels = truth.copy()
    labels[:, :2] = 255
    found, _ = exporting._evaluate(model, {"tflm_accuracy": network}, (images, labels), None)
    assert found["float_accuracy"] == 1.0
    with pytest.raises(ValueError, match="must hold a labelled image"):
        exporting._evaluate(model, {"tflm_accuracy": network}, (images, np.full_like(labels, 255)), None)


# ---- data without spread, without end


def test_data_that_show_no_spread_are_noted_in_report_and_text(tmp_path):
    model, images = linear(), images_like((4, 3, 1), 6)
    for name, data, message in (
        ("blank", np.full((3, 4, 3, 1), 0.25, "float32"), "no spread: every value is 0.25"),
        ("same", np.repeat(images[:1], 5, axis=0), "no spread: all 5 images are the same"),
        ("divided twice", images / 255, r"little spread: values lie in [0, 0.00392157], of an input range [0, 1]"),
    ):
        written = tflm_export.export(model, data, tmp_path / name)
        assert any(message in note for note in written.notes), name
        assert message in str(written), name
    assert not tflm_export.export(model, images, tmp_path / "lively").notes
    model.layers[-1].kernel.assign(np.zeros(model.layers[-1].kernel.shape))
    written = tflm_export.export(model, images, tmp_path / "dead")
    assert "no output of layer 'dense'" in str(written)


def test_endless_data_are_cut_and_noted(monkeypatch):
    import itertools

    import tensorflow as tf

    monkeypatch.setattr(exporting, "MOST_REPRESENTATIVE", 10)
    monkeypatch.setattr(exporting, "MOST_EVALUATED", 12)
    model, images = linear(), images_like((4, 3, 1), 6)
    endless = {
        "generator": lambda: itertools.cycle([images]),
        "dataset": lambda: tf.data.Dataset.from_tensor_slices(images).batch(4).repeat(),
        "one large batch": lambda: [np.concatenate([images, images])],
    }
    for name, make in endless.items():
        found, notes = exporting.as_array(make())
        assert len(found) == 10 and "only the first 10 images" in notes[0], name
    assert exporting.as_array([images])[1] == ()
    network = tflm_export.compile_network(model, itertools.cycle([(images, None)]))
    assert "only the first 10 images" in network.notes[0]
    labels = np.zeros(6, int)
    found, notes = exporting._evaluate(model, {"tflm_accuracy": network}, itertools.cycle([(images, labels)]), None)
    assert found["images"] == 12 and "only the first 12 images" in notes[0]
    repeated = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4).repeat()
    with pytest.raises(ValueError, match="`evaluation_data` must end"):
        exporting._evaluate(model, {"tflm_accuracy": network}, repeated, None)


def test_batches_of_several_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"`representative_data` must be images, or batches of images of one shape"):
        tflm_export.compile_network(linear(), (images_like((4, 3, 1), 6), np.zeros(6)))


class Untouchable:
    """Data that nobody may read."""

    def __iter__(self):
        raise AssertionError("read")


def test_model_of_two_ends_is_refused_by_name_before_data_are_read(tmp_path):
    left, right = keras.Input((4, 3, 1), name="left"), keras.Input((4, 3, 1), name="right")
    both = keras.Model([left, right], L.Conv2D(2, 1)(L.Add()([left, right])))
    with pytest.raises(ValueError, match="one input and one output. Received: 2 inputs .*left.*right"):
        tflm_export.export(both, Untouchable(), tmp_path / "out")
    two = keras.Model(left, [L.Conv2D(1, 1)(left), L.Conv2D(1, 1)(left)])
    with pytest.raises(ValueError, match="Received: 1 inputs .*left.*2 outputs"):
        tflm_export.export(two, Untouchable(), tmp_path / "out")


# ---- folders


@pytest.mark.parametrize("name", ["sequential", "zebra", "a"])
@pytest.mark.parametrize("target", ["tflite", "tflm", "c"])
def test_report_names_the_model_file_and_its_hash(name, target, tmp_path):
    import hashlib

    written = tflm_export.export(linear(), pixels(), tmp_path / "out", name=name, target=target)
    data = (tmp_path / "out" / written.model_file).read_bytes()
    assert written.model_file in written.files and written.model_sha256 == hashlib.sha256(data).hexdigest()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["model_file"] == written.model_file
    if target != "c":
        assert runner.Interpreter(data).output_shape == (3,)


class Killed(BaseException):
    pass


def test_export_killed_between_its_files_leaves_no_report(tmp_path, monkeypatch):
    """Whatever file it was at: with a report, all files are of one export."""
    import os

    old, new = tmp_path / "old", tmp_path / "new"
    for folder, seed in ((old, 1), (new, 2)):
        tflm_export.export(linear(seed=seed), pixels(), folder, name="zebra", target="c", samples=1)
    names = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
    replace = os.replace
    for count in range(0, len(names) + 1, 11):
        folder = tmp_path / f"killed-{count}"
        tflm_export.export(linear(seed=1), pixels(), folder, name="zebra", target="c", samples=1)
        done = []

        def stop(source, target, count=count, done=done):
            if len(done) == count:
                raise Killed
            done.append(target)
            replace(source, target)

        monkeypatch.setattr(_files.os, "replace", stop)
        try:
            tflm_export.export(linear(seed=2), pixels(), folder, name="zebra", target="c", samples=1)
        except Killed:
            assert not (folder / "report.json").exists(), count
        monkeypatch.setattr(_files.os, "replace", replace)
        if (folder / "report.json").exists():
            assert all((folder / name).read_bytes() == (new / name).read_bytes() for name in names)
    assert done and len(done) <= len(names)


def test_model_that_is_not_the_reports_is_refused(tmp_path, capsys):
    written = tflm_export.export(linear(), pixels(), tmp_path / "out")
    file = tmp_path / "out" / written.model_file
    report.check_model(file)
    tflm_export.export(linear(seed=2), pixels(), tmp_path / "other")
    file.write_bytes((tmp_path / "other" / written.model_file).read_bytes())
    with pytest.raises(ValueError, match="must be the model that report.json beside it tells of"):
        report.check_model(file)
    assert main(["run", str(file), "--dataset", "digits"]) != 0
    assert "report.json beside it" in capsys.readouterr().err


def test_model_that_begins_with_rescaling_takes_pixels(tmp_path, capsys):
    """From the command line, too: what the pixels mean is the model's own input range."""
    from saaug_keras import datasets

    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, L.Dense(10)(L.Flatten()(L.Rescaling(1 / 127.5, offset=-1.0)(image))))
    data = datasets.load("digits")
    labels = model.predict_on_batch(data.x_test.astype("float32")).argmax(axis=-1)
    model.save(tmp_path / "model.keras")
    words = [
        "export",
        str(tmp_path / "model.keras"),
        "--dataset",
        "digits",
        "--evaluate",
        "--input-range",
        "0",
        "255",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(words) == 0
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["agreement"] > 0.97
    classes = runner.Interpreter(tmp_path / "out" / written["model_file"]).classify(data.x_test)
    assert (classes == labels).mean() > 0.97
