"""Data sets from every layout they come in, and the pipelines."""

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from saaug_keras import _images, datasets

RANDOM = np.random.default_rng(11)


def test_digits_are_those_of_scikit_learn_on_a_scale_to_255():
    dataset = datasets.load("digits")
    source = load_digits()
    assert dataset.x_train.shape[1:] == (8, 8, 1) and dataset.x_train.dtype == np.uint8
    expected = {
        (image.tobytes(), label)
        for image, label in zip(np.rint(source.images * 255 / 16).astype(np.uint8), source.target, strict=True)
    }
    images = np.concatenate([dataset.x_train, dataset.x_test])
    labels = np.concatenate([dataset.y_train, dataset.y_test])
    assert len(images) == len(source.images)
    assert {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)} == expected
    assert images.max() == 255


def test_digits_split_is_fixed_stratified_and_disjoint():
    first, second = datasets.load("digits"), datasets.load("digits")
    np.testing.assert_array_equal(first.x_test, second.x_test)
    everything = np.bincount(np.concatenate([first.y_train, first.y_test]))
    np.testing.assert_array_equal(np.bincount(first.y_test), np.round(everything * 0.2))
    train = {image.tobytes() for image in first.x_train}
    assert sum(image.tobytes() in train for image in first.x_test) == 0


def test_validation_split_is_seeded_and_takes_a_share_of_every_class():
    dataset = datasets.load("digits")
    fit, held = dataset.split(0.25, seed=3)
    assert len(fit[0]) + len(held[0]) == len(dataset.x_train)
    np.testing.assert_array_equal(np.bincount(held[1]), np.round(np.bincount(dataset.y_train) * 0.25))
    np.testing.assert_array_equal(held[0], dataset.split(0.25, seed=3)[1][0])
    assert held[0].tobytes() != dataset.split(0.25, seed=4)[1][0].tobytes()


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5, -0.1])
def test_validation_split_wants_images_on_both_sides(fraction):
    with pytest.raises(ValueError, match="Dataset 'digits': `validation_fraction` must"):
        datasets.load("digits").split(fraction)


# Small folders in the official layouts: 20 training and 10 test images.
def cifar_arrays(classes):
    planes = RANDOM.integers(0, 256, (30, 3072), dtype=np.uint8)
    labels = RANDOM.integers(0, classes, 30, dtype=np.uint8)
    labels[0], labels[29] = classes - 1, 0
    return planes, labels


def binary_layout(name, root, planes, labels):
    if name == "cifar100":
        folder, labels_bytes = root / "cifar-100-binary", [labels // 5, labels]
        parts = {"train.bin": slice(0, 20), "test.bin": slice(20, 30)}
    else:
        folder, labels_bytes = root / "cifar-10-batches-bin", [labels]
        parts = {f"data_batch_{i + 1}.bin": slice(4 * i, 4 * i + 4) for i in range(5)}
        parts["test_batch.bin"] = slice(20, 30)
    folder.mkdir()
    records = np.concatenate([np.stack(labels_bytes, 1).astype(np.uint8), planes], axis=1)
    for file, rows in parts.items():
        (folder / file).write_bytes(records[rows].tobytes())
    return folder


def python_layout(name, root, planes, labels):
    if name == "cifar100":
        folder, keys = root / "cifar-100-python", (b"fine_labels", b"fine_label_names")
        parts, meta = {"train": slice(0, 20), "test": slice(20, 30)}, "meta"
    else:
        folder, keys = root / "cifar-10-batches-py", (b"labels", b"label_names")
        parts = {f"data_batch_{i + 1}": slice(4 * i, 4 * i + 4) for i in range(5)} | {"test_batch": slice(20, 30)}
        meta = "batches.meta"
    folder.mkdir()
    for file, rows in parts.items():
        batch = {b"data": planes[rows], keys[0]: labels[rows].tolist()}
        (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"name{i}".encode() for i in range(100 if name == "cifar100" else 10)]
    (folder / meta).write_bytes(pickle.dumps({keys[1]: names}, protocol=2))
    return folder


def assert_same_images(dataset, planes, labels):
    assert dataset.x_train.shape == (20, 32, 32, 3) and dataset.x_test.shape == (10, 32, 32, 3)
    images = np.concatenate([dataset.x_train, dataset.x_test])
    for index, row, column, channel in ((0, 0, 0, 0), (7, 3, 30, 1), (29, 31, 1, 2)):
        assert images[index, row, column, channel] == planes[index, channel * 1024 + row * 32 + column]
    np.testing.assert_array_equal(np.concatenate([dataset.y_train, dataset.y_test]), labels)


@pytest.fixture(autouse=True)
def own_keras_home(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    home = tmp_path / "keras_home"
    monkeypatch.setenv("KERAS_HOME", str(home))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.urllib.request, "urlopen", offline)
    return home


@pytest.mark.parametrize("inner", [False, True], ids=["parent-folder", "layout-folder"])
@pytest.mark.parametrize("layout", [binary_layout, python_layout])
@pytest.mark.parametrize("name, classes", [("cifar10", 10), ("cifar100", 100)])
def test_cifar_from_a_local_folder(name, classes, layout, inner, tmp_path):
    planes, labels = cifar_arrays(classes)
    folder = layout(name, tmp_path, planes, labels)
    dataset = datasets.load(name, data_dir=folder if inner else tmp_path)
    assert_same_images(dataset, planes, labels)
    assert dataset.num_classes == classes and dataset.image_shape == (32, 32, 3)
    if layout is python_layout:
        assert dataset.class_names[3] == "name3"


def test_cifar_from_the_extracted_folder_in_kerass_cache(own_keras_home):
    planes, labels = cifar_arrays(100)
    cache = own_keras_home / "datasets" / "cifar-100-python-target"
    cache.mkdir(parents=True)
    python_layout("cifar100", cache, planes, labels)
    assert_same_images(datasets.load("cifar100"), planes, labels)


def test_cifar_download_goes_into_kerass_cache_and_is_checked(own_keras_home, tmp_path, monkeypatch):
    planes, labels = cifar_arrays(10)
    python_layout("cifar10", tmp_path, planes, labels)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(packed.getvalue()))
    cached = own_keras_home / "datasets" / "cifar-10-batches-py-target_archive"
    with pytest.raises(FileNotFoundError, match="wrong SHA-256"):
        datasets.load("cifar10")
    assert not cached.exists() and not list(cached.parent.iterdir())

    known = dataclasses.replace(datasets._CIFAR10, sha256=hashlib.sha256(packed.getvalue()).hexdigest())
    monkeypatch.setattr(datasets, "_CIFAR10", known)
    assert_same_images(datasets.load("cifar10"), planes, labels)
    assert cached.is_file()
    monkeypatch.setattr(datasets.urllib.request, "urlopen", None)
    assert_same_images(datasets.load("cifar10"), planes, labels)


def test_offline_message_names_all_three_places(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load("cifar100", data_dir=tmp_path)
    message = str(caught.value)
    for part in ("cifar-100-binary/test.bin", str(tmp_path), "Keras's cache", "Download of https://", "no route"):
        assert part in message


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`data_dir` must be an existing folder. Received: data_dir=.*nowhere"):
        datasets.load("cifar10", data_dir=tmp_path / "nowhere")


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="`name` must be one of 'camvid', 'cifar10', 'cifar100', 'digits', 'folder'"):
        datasets.load("mnist")


@pytest.mark.parametrize(
    "damage",
    [
        "short",
        "label",
        "pickle",
        "code",
        "a list",
        "float pixels",
        "labels below 0",
        "labels of two axes",
        "fractions",
        "empty",
    ],
)
def test_damaged_files_are_refused(damage, tmp_path):
    planes, labels = cifar_arrays(100)
    if damage in ("short", "label"):
        file = binary_layout("cifar100", tmp_path, planes, labels) / "test.bin"
        raw = bytearray(file.read_bytes())
        raw[1] = 100
        file.write_bytes(raw if damage == "label" else raw[:-1])
    else:
        file = python_layout("cifar100", tmp_path, planes, labels) / "test"
        batch = pickle.loads(file.read_bytes(), encoding="bytes")
        pixels, fine = batch[b"data"], np.array(batch[b"fine_labels"])
        file.write_bytes(
            {
                "pickle": lambda: file.read_bytes()[:-9],
                "code": lambda: pickle.dumps({b"data": print}),
                "a list": lambda: pickle.dumps([1, 2]),
                "float pixels": lambda: pickle.dumps(batch | {b"data": pixels / 255}),
                "labels below 0": lambda: pickle.dumps(batch | {b"fine_labels": list(map(int, fine - 50))}),
                "labels of two axes": lambda: pickle.dumps(batch | {b"fine_labels": fine[:, None]}),
                "fractions": lambda: pickle.dumps(batch | {b"fine_labels": fine / 2}),
                "empty": lambda: b"",
            }[damage]()
        )
    with pytest.raises(ValueError, match="cifar100 file .* is damaged"):
        datasets.load("cifar100", data_dir=tmp_path)


def camvid_file(path, **changes):
    arrays = {}
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        arrays[f"x_{part}"] = RANDOM.integers(0, 256, (count, 6, 10, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = RANDOM.integers(0, 12, (count, 6, 10), dtype=np.uint8)
    np.savez(path, **(arrays | changes))
    return arrays | changes


def test_camvid_brings_its_own_validation_part(tmp_path):
    arrays = camvid_file(tmp_path / "camvid.npz")
    dataset = datasets.load("camvid", data_dir=tmp_path)
    assert dataset.ignore_class == 11 and dataset.num_classes == 11
    (x, y), (x_held, y_held) = dataset.split(0.5, seed=1)
    np.testing.assert_array_equal(x, arrays["x_train"])
    np.testing.assert_array_equal(y_held, arrays["y_val"])
    assert len(x_held) == 3 and len(y) == 5


def test_camvid_refuses_what_it_is_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="camvid's `data_dir` must be an .npz"):
        datasets.load("camvid")
    camvid_file(tmp_path / "camvid.npz", y_val=np.full((3, 6, 10), 12, np.uint8))
    with pytest.raises(ValueError, match="camvid.npz: .*`y_validation` must be .* to 10, or 11 for no class. Received: 12"):
        datasets.load("camvid", data_dir=tmp_path)
    camvid_file(tmp_path / "camvid.npz", y_val=np.zeros((3, 6, 9), np.uint8))
    with pytest.raises(ValueError, match="part val, is not an .npz"):
        datasets.load("camvid", data_dir=tmp_path)
    small = np.zeros((3, 6, 9, 3), np.uint8)
    camvid_file(tmp_path / "camvid.npz", x_val=small, y_val=small[..., 0])
    with pytest.raises(ValueError, match=r"camvid.npz: .*`x_validation` must have images of \(6, 10, 3\), as `x_train`"):
        datasets.load("camvid", data_dir=tmp_path)
    camvid_file(tmp_path / "camvid.npz")
    whole = (tmp_path / "camvid.npz").read_bytes()
    for damaged in (b"", whole[:200], whole[:-30], whole[:150] + bytes(9) + whole[159:], b"\x80\4N."):
        (tmp_path / "camvid.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="camvid.npz is damaged or not an .npz"):
            datasets.load("camvid", data_dir=tmp_path)


# Pipelines.
@pytest.fixture(params=["jax", "tensorflow"])
def backend(request, monkeypatch):
    """What `pipeline` makes for either backend, whichever runs the tests."""
    monkeypatch.setattr(keras.backend, "backend", lambda: request.param)
    return request.param


def batches(pipeline):
    return [tuple(np.asarray(part) for part in batch) for batch in pipeline]


def numbered(count, height=6, width=10, channels=2):
    """Every pixel of every image is its own number modulo 251, never 0."""
    values = np.arange(count * height * width * channels) % 250 + 1
    return values.astype(np.uint8).reshape(count, height, width, channels), np.arange(count, dtype=np.int32)


def test_plain_pipeline_is_the_images_over_255_in_order(backend):
    x, y = numbered(7)
    result = batches(datasets.pipeline(x, y, batch_size=3))
    assert [len(images) for images, _ in result] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in result]), x.astype(np.float32) / 255)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in result]), y)
    assert len(datasets.pipeline(x, y, batch_size=3)) == 3
    assert len(batches(datasets.pipeline(x, y, batch_size=3, drop_remainder=True))) == 2
    assert np.asarray(next(iter(datasets.pipeline(x, batch_size=4)))).shape == (4, 6, 10, 2)


def test_each_image_gets_its_own_shift_and_mirror(backend):
    x, y = numbered(200)
    images = np.concatenate([part for part, _ in batches(datasets.pipeline(x, y, batch_size=64, augment=True, pad=2))])
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)]).astype(np.float32) / 255
    seen = set()
    for index, image in enumerate(images):
        found = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if np.array_equal(image, padded[index, top : top + 6, left : left + 10][:, :: -1 if mirrored else 1])
        ]
        assert len(found) == 1, f"image {index} is no shifted copy of its source"
        seen.update(found)
    assert len(seen) > 45  # 200 draws from 5 * 5 * 2 outcomes miss each with probability 0.02


def test_no_mirror_where_it_changes_the_meaning(backend):
    x, y = numbered(64)
    images = np.concatenate(
        [part for part, _ in batches(datasets.pipeline(x, y, batch_size=64, augment=True, pad=0, flip=False))]
    )
    np.testing.assert_array_equal(images, x.astype(np.float32) / 255)


def test_order_and_shifts_depend_on_seed_and_epoch_alone(backend):
    x, y = numbered(40)

    def epochs(seed, **rest):
        pipeline = datasets.pipeline(x, y, batch_size=16, shuffle=True, augment=True, seed=seed, **rest)
        return [np.concatenate([images for images, _ in batches(pipeline)]) for _ in range(2)]

    first, again, other = epochs(5), epochs(5), epochs(6)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1]), "a second epoch repeats the first"
    assert not np.array_equal(first[0], other[0])
    np.testing.assert_array_equal(*epochs(5, epoch=3))
    labels = np.concatenate([labels for _, labels in batches(datasets.pipeline(x, y, batch_size=16, shuffle=True))])
    assert sorted(labels) == list(range(40)) and list(labels) != list(range(40))


def test_epoch_counter_gives_a_resumed_fit_the_same_batches(backend):
    x, y = numbered(24)
    model = keras.Sequential([keras.Input((6, 10, 2)), keras.layers.Flatten(), keras.layers.Dense(24)])
    start = model.get_weights()

    def run(*spans):
        model.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for first, last in spans:  # each span is a process of its own: pipeline and counter are built anew
            counter = datasets.EpochCounter()
            pipeline = datasets.pipeline(x, y, batch_size=8, shuffle=True, augment=True, seed=2, epoch=counter)
            model.fit(pipeline, initial_epoch=first, epochs=last, callbacks=[counter], shuffle=False, verbose=0)
        return np.concatenate([weight.ravel() for weight in model.get_weights()])

    np.testing.assert_array_equal(run((0, 4)), run((0, 1), (1, 4)))
    assert not np.array_equal(run((0, 4)), run((0, 1), (0, 3)))


def test_fit_takes_a_new_epoch_of_an_uncounted_pipeline_each_time(backend):
    x, y = numbered(16)
    seen = []

    class Eager(keras.Model):
        def train_step(self, data):
            seen.append(np.asarray(data[1]))
            return {"loss": keras.ops.zeros(())}

    model = Eager()
    model.compile("sgd", run_eagerly=True)
    model.fit(datasets.pipeline(x, y, batch_size=8, shuffle=True), epochs=2, shuffle=False, verbose=0)
    first, second = np.concatenate(seen[:2]), np.concatenate(seen[2:])
    assert sorted(first) == sorted(second) == list(range(16)) and not np.array_equal(first, second)


def test_one_hot_labels_stay_with_their_image(backend):
    x, y = numbered(20)
    pipeline = datasets.pipeline(x, np.eye(20, dtype="float32")[y], batch_size=8, shuffle=True, augment=True, pad=0, flip=False)
    for images, labels in batches(pipeline):
        np.testing.assert_array_equal(images, x[labels.argmax(1)].astype(np.float32) / 255)
        np.testing.assert_array_equal(labels.sum(1), 1)


def test_labels_per_pixel_move_with_their_image(backend):
    x = RANDOM.integers(1, 12, (30, 6, 10, 1), dtype=np.uint8)
    pipeline = datasets.pipeline(x, x[..., 0], batch_size=7, shuffle=True, augment=True, pad=3, ignore_class=0, seed=9)
    for images, labels in batches(pipeline):
        np.testing.assert_array_equal(np.rint(images[..., 0] * 255), labels)
    assert labels.dtype == np.uint8


def test_resolution_resizes_images_to_grey_values_and_labels_to_the_nearest(backend):
    x = RANDOM.integers(0, 256, (5, 6, 10, 3), dtype=np.uint8)
    y = RANDOM.integers(0, 3, (5, 6, 10), dtype=np.uint8)
    images, labels = batches(datasets.pipeline(x, y, batch_size=5, resolution=(12, 30)))[0]
    assert images.shape == (5, 12, 30, 3) and labels.shape == (5, 12, 30)
    np.testing.assert_array_equal(np.rint(images * 255), datasets.resize(x, (12, 30)))
    np.testing.assert_allclose(np.rint(images * 255), images * 255, atol=1e-4)
    np.testing.assert_array_equal(labels[:, ::2, ::3], y)
    assert datasets.resize(x, (6, 10)) is x


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(x=np.zeros((2, 4, 4, 1), np.float32)), "`x` must be uint8"),
        (dict(x=np.zeros((2, 4, 4), np.uint8)), "`x` must be uint8"),
        (dict(y=np.zeros(3)), r"`y` must be \(N,\)"),
        (dict(batch_size=0), "`batch_size` must"),
        (dict(seed=-1), "`seed` must"),
        (dict(pad=-1, augment=True), "`pad` must"),
    ],
)
def test_pipeline_names_a_wrong_argument(arguments, message):
    with pytest.raises(ValueError, match=f"datasets.pipeline: {message}"):
        datasets.pipeline(**({"x": np.zeros((2, 4, 4, 1), np.uint8), "batch_size": 2} | arguments))


def test_images_of_a_folder(tmp_path):
    for index, size in enumerate([(4, 6), (4, 6), (8, 3)]):
        image = np.full((*size, 3), 40 * (index + 1), np.uint8)
        (tmp_path / f"{2 - index}.png").write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(ValueError, match="differ in size"):
        datasets.load_folder(tmp_path)
    images, names = datasets.load_folder(tmp_path, resolution=(5, 7))
    assert names == ["0.png", "1.png", "2.png"] and images.shape == (3, 5, 7, 3)
    assert [int(image.mean()) for image in images] == [120, 80, 40]
    (tmp_path / "3.png").write_text("broken")
    with pytest.raises(ValueError, match="3.png is not an image"):
        datasets.load_folder(tmp_path, resolution=4)
    with pytest.raises(FileNotFoundError, match="must hold images"):
        datasets.load_folder(tmp_path / "none")


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(array).numpy())


def test_a_folder_of_classes(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for index, name in enumerate(("cat", "dog")):
            for image in range(count):
                write_png(tmp_path / part / name / f"{image}.png", np.full((4, 6, 3), 100 * index + image, np.uint8))
    dataset = datasets.load("folder", data_dir=tmp_path)
    assert dataset.class_names == ("cat", "dog") and dataset.image_shape == (4, 6, 3)
    np.testing.assert_array_equal(dataset.y_train, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.x_test[:, 0, 0, 0], [0, 1, 100, 101])
    assert datasets.load("folder", data_dir=tmp_path, resolution=(8, 9)).image_shape == (8, 9, 3)
    assert dataset.x_validation is None
    write_png(tmp_path / "validation" / "dog" / "1.png", np.zeros((4, 6, 3), np.uint8))
    np.testing.assert_array_equal(datasets.load("folder", data_dir=tmp_path).y_validation, [1])
    write_png(tmp_path / "test" / "bird" / "1.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="classes that the training images have not: bird"):
        datasets.load("folder", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold the folders train and test"):
        datasets.load("folder", data_dir=tmp_path / "train")


def test_litter_of_tools_is_no_data(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            write_png(tmp_path / part / name / "1.png", np.zeros((4, 6, 3), np.uint8))
            (tmp_path / part / name / "._1.png").write_bytes(b"\0\5\x16\7")
            (tmp_path / part / name / "Thumbs.db").write_bytes(b"thumbs")
            write_png(tmp_path / part / name / ".ipynb_checkpoints" / "1-checkpoint.png", np.zeros((4, 6, 3), np.uint8))
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            write_png(tmp_path / part / name / "1.png", np.zeros((4, 6, 3), np.uint8))
    dataset = datasets.load("folder", data_dir=tmp_path)
    assert dataset.class_names == ("cat", "dog") and len(dataset.x_train) == len(dataset.x_test) == 2
    assert datasets.load_folder(tmp_path / "train" / "cat")[1] == ["1.png"]


@pytest.mark.parametrize("what", ["pipe", "folder", "broken link", "link to a device"])
def test_what_is_no_file_is_no_image(what, tmp_path):
    path = tmp_path / "2.png"
    write_png(tmp_path / "1.png", np.zeros((4, 6, 3), np.uint8))
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "broken link": lambda: path.symlink_to(tmp_path / "none"),
        "link to a device": lambda: path.symlink_to("/dev/zero"),
    }[what]()
    with pytest.raises(ValueError, match="2.png must be an image. It is not a regular file"):
        datasets.load_folder(tmp_path)
    if what == "pipe":
        with pytest.raises(FileNotFoundError, match="must hold images"):
            datasets.load_folder(path)


# The same picture as a camera stores it: what it holds for each Exif orientation, by the standard's table of where row 0
# and column 0 of the stored image are seen.
STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: np.rot90(seen, 2).swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}


@pytest.mark.parametrize("order", ["<", ">"], ids=["Intel", "Motorola"])
@pytest.mark.parametrize("code", range(1, 9))
def test_images_are_turned_as_their_exif_says(code, order, tmp_path):
    seen = np.zeros((16, 24, 3), np.uint8)
    seen[:8, :12] = [200, 0, 0]  # upper left
    seen[:8, 12:] = [0, 200, 0]
    seen[8:, :12] = [0, 0, 200]
    entries = [(0x010F, 2, 4, 0x41424344), (0x0112, 3, 1, code)]
    tiff = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        tiff += struct.pack(order + "HHI", tag, kind, count) + struct.pack(
            order + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value])
        )
    tiff += bytes(4)
    stored = np.ascontiguousarray(STORED[code](seen))
    jpeg = tf.io.encode_jpeg(stored, quality=100, chroma_downsampling=False).numpy()
    exif = b"Exif\0\0" + tiff
    (tmp_path / "1.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:])
    png = tf.io.encode_png(stored).numpy()
    (tmp_path / "2.png").write_bytes(png[:33] + png_chunk(b"eXIf", tiff) + png[33:])
    (tmp_path / "3.jpg").write_bytes(jpeg)
    for name in ("1.jpg", "2.png"):
        (image,), _ = datasets.load_folder(tmp_path / name)
        assert image.shape == seen.shape
        assert np.abs(image.astype(int) - seen).max() <= (20 if name == "1.jpg" else 0)
    (image,), _ = datasets.load_folder(tmp_path / "3.jpg")  # without Exif as it is stored
    assert image.shape == stored.shape
    for cut in range(len(tiff)):  # damaged Exif is none
        exif = b"Exif\0\0" + tiff[:cut]
        data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]
        assert _images.orientation(data) in (1, code)


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(values, depth, colour):
    """A PNG of (H, W) values in `depth` bits each, grey (0) or indices into a palette (3) that sorts them otherwise."""
    height, width = values.shape
    rows = b""
    for row in values:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    palette = bytes((255 - 3 * index // 3 if part else 7) & 255 for index in range(min(256, 1 << depth)) for part in range(3))
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + (png_chunk(b"PLTE", palette) + png_chunk(b"tRNS", b"\0\x80") if colour == 3 else b"")
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("depth, colour", [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_label_maps_of_any_depth_and_with_palettes(depth, colour, tmp_path):
    classes = min(20, 1 << depth)
    labels = np.resize(np.arange(classes), (5, 7))
    if depth == 8:
        labels[2, 3] = 255
    for part in ("train", "test"):
        write_png(tmp_path / part / "images" / "a[1].png", np.zeros((5, 7, 3), np.uint8))
        (tmp_path / part / "labels").mkdir()
        (tmp_path / part / "labels" / "a[1].png").write_bytes(png_of(labels, depth, colour))
    (tmp_path / "classes.txt").write_text("\n".join(f"class{index}" for index in range(classes)))
    np.testing.assert_array_equal(datasets.load("folder", data_dir=tmp_path).y_train[0], labels)
    if depth == 16:
        labels[0, 0] = 256 + 3  # whose low byte alone would be a class
        (tmp_path / "test" / "labels" / "a[1].png").write_bytes(png_of(labels, depth, colour))
        with pytest.raises(ValueError, match="has class 259, classes.txt names 20"):
            datasets.load("folder", data_dir=tmp_path)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("jpeg", "It is not a PNG"),
        ("bmp", "It is not a PNG"),
        ("colour", "It has colours"),
        ("alpha", "It has colours"),
        ("cut", "It is damaged"),
        ("flipped", "It is damaged"),
        ("pixels", "It is damaged"),
        ("none", "must have its labels in"),
    ],
)
def test_label_maps_that_lose_classes_are_refused(kind, message, tmp_path):
    labels = np.resize(np.arange(3, dtype=np.uint8), (5, 7, 1))
    for part in ("train", "test"):
        write_png(tmp_path / part / "images" / "1.png", np.zeros((5, 7, 3), np.uint8))
        write_png(tmp_path / part / "labels" / "1.png", labels)
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    datasets.load("folder", data_dir=tmp_path)
    file = tmp_path / "test" / "labels" / "1.png"
    png = file.read_bytes()
    data = {
        "jpeg": tf.io.encode_jpeg(labels).numpy(),
        "bmp": b"BM" + bytes(60),
        "colour": tf.io.encode_png(np.repeat(labels, 3, -1)).numpy(),
        "alpha": tf.io.encode_png(np.repeat(labels, 2, -1)).numpy(),
        "cut": png[:40],
        "flipped": png[:45] + bytes([png[45] ^ 4]) + png[46:],
        "pixels": png[:33] + png_chunk(b"IEND", b""),  # every CRC is right, but there are no pixels
        "none": None,
    }[kind]
    file.unlink()
    if data is None:
        (tmp_path / "test" / "labels" / "1.jpg").write_bytes(png)
    else:
        file.write_bytes(data)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        datasets.load("folder", data_dir=tmp_path)


LABELS = {
    "negative": np.array([0, 1, -1, 2]),
    "too high": np.array([0, 1, 3, 2]),
    "fractional": np.array([0, 1, 1.5, 2]),
    "NaN": np.array([0, 1, np.nan, 2]),
    "infinite": np.array([0, 1, np.inf, 2]),
    "text": np.array(["0", "1", "2", "0"]),
    "one-hot": np.eye(4, 3, dtype=int),
    "too few": np.array([0, 1, 2]),
    "a number": np.int64(1),
}


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_no_classes_are_refused_in_every_part(kind, part):
    x = np.zeros((4, 8, 8, 3), np.uint8)
    arrays = {
        f"{axis}_{name}": x if axis == "x" else np.arange(4) % 3 for axis in "xy" for name in ("train", "validation", "test")
    }
    datasets.Dataset("toy", class_names=("a", "b", "c"), **arrays)
    with pytest.raises(ValueError, match=f"Dataset 'toy': `y_{part}` must be"):
        datasets.Dataset("toy", class_names=("a", "b", "c"), **arrays | {f"y_{part}": LABELS[kind]})


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", ["float", "flat", "size", "int"])
def test_images_of_another_form_are_refused_in_every_part(kind, part):
    x = np.zeros((4, 8, 8, 3), np.uint8)
    arrays = {
        f"{axis}_{name}": x if axis == "x" else np.arange(4) % 3 for axis in "xy" for name in ("train", "validation", "test")
    }
    wrong = {"float": x / 255, "flat": x[..., 0], "size": x[:, :6], "int": x.astype(int)}[kind]
    with pytest.raises(ValueError, match="Dataset 'toy': `x_.*` must"):
        datasets.Dataset("toy", class_names=("a", "b", "c"), **arrays | {f"x_{part}": wrong})


def test_labels_of_other_types_and_a_last_axis_of_one_are_read():
    x = np.zeros((4, 8, 8, 3), np.uint8)
    for labels in (np.arange(4.0) % 3, np.arange(4)[:, None] % 3, list(np.arange(4) % 3), np.arange(4, dtype="uint8") % 3):
        data = datasets.Dataset("toy", x, labels, x, labels, ("a", "b", "c"))
        assert data.y_train.dtype == data.y_test.dtype == np.int32
        np.testing.assert_array_equal(data.y_train, [0, 1, 2, 0])
    maps = np.full((4, 8, 8, 1), 255.0)
    maps[:, 0] = 2
    data = datasets.Dataset("toy", x, maps, x, maps, ("a", "b", "c"), ignore_class=255)
    assert data.y_train.dtype == np.uint8 and data.y_train.shape == (4, 8, 8)
    with pytest.raises(ValueError, match="must be whole numbers from 0 to 2. Received: 255.0"):
        datasets.Dataset("toy", x, maps, x, maps, ("a", "b", "c"))
    with pytest.raises(ValueError, match="labels per image, or all of them labels per pixel"):
        datasets.Dataset("toy", x, maps, x, labels, ("a", "b", "c"), ignore_class=255)


@pytest.mark.parametrize("kind", ["negative", "fractional", "NaN", "infinite", "text", "too few", "a number"])
def test_pipelines_refuse_labels_that_are_no_classes(kind, backend):
    with pytest.raises(ValueError, match="datasets.pipeline: `y` must be"):
        datasets.pipeline(numbered(4)[0], LABELS[kind], batch_size=2)


def test_pipelines_read_labels_with_a_last_axis_of_one(backend):
    ((_, truth),) = batches(datasets.pipeline(numbered(4)[0], np.arange(4.0)[:, None], batch_size=4))
    np.testing.assert_array_equal(truth, np.arange(4))


def test_a_folder_of_labels_per_pixel(tmp_path):
    labels = RANDOM.integers(0, 3, (2, 4, 6, 1), dtype=np.uint8)
    labels[0, 0, 0] = 255
    for part in ("train", "test"):
        for index in range(2):
            write_png(tmp_path / part / "images" / f"{index}.png", np.zeros((4, 6, 3), np.uint8))
            write_png(tmp_path / part / "labels" / f"{index}.png", labels[index])
    with pytest.raises(FileNotFoundError, match="classes.txt must hold the names"):
        datasets.load("folder", data_dir=tmp_path)
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    dataset = datasets.load("folder", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.y_train, labels[..., 0])
    assert dataset.ignore_class == 255 and dataset.class_names == ("road", "sky", "tree")
    np.testing.assert_array_equal(
        datasets.load("folder", data_dir=tmp_path, resolution=(8, 18)).y_test[:, ::2, ::3], labels[..., 0]
    )
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    with pytest.raises(ValueError, match="has class 2, classes.txt names 2"):
        datasets.load("folder", data_dir=tmp_path)


def test_score_of_labels_per_pixel():
    part = np.zeros((1, 2, 3, 3), np.uint8), np.zeros((1, 2, 3), np.uint8)
    data = datasets.Dataset("toy", *part, *part, ("a", "b", "c"), ignore_class=9)
    wanted = np.array([[[0, 0, 1], [1, 9, 9]]])
    found = np.array([[[0, 1, 1], [1, 2, 0]]])
    # Four pixels count, three are right; IoU of a is 1 / 2, of b 2 / 3, and c is nowhere.
    assert data.score(found, wanted) == {"pixel_accuracy": 3 / 4, "mean_iou": (1 / 2 + 2 / 3) / 2}
    first, second = data.class_names[:2]
    assert data.class_ious(found, wanted) == {first: 1 / 2, second: 2 / 3}
