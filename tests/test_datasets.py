"""Data sets from every layout they come in, and the pipelines."""

import dataclasses
import hashlib
import io
import pickle
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from saaug_keras import datasets

RANDOM = np.random.default_rng(11)


def test_digits_are_those_of_scikit_learn_on_a_scale_to_255():
    dataset = datasets.load("digits")
    source = load_digits()
    assert dataset.x_train.shape[1:] == (8, 8, 1) and dataset.x_train.dtype == np.uint8
    expected = {(image.tobytes(), label) for image, label in zip(
        np.rint(source.images * 255 / 16).astype(np.uint8), source.target, strict=True
    )}
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


@pytest.mark.parametrize("damage", ["short", "label", "pickle", "code"])
def test_damaged_files_are_refused(damage, tmp_path):
    planes, labels = cifar_arrays(100)
    if damage in ("short", "label"):
        file = binary_layout("cifar100", tmp_path, planes, labels) / "test.bin"
        raw = bytearray(file.read_bytes())
        raw[1] = 100
        file.write_bytes(raw if damage == "label" else raw[:-1])
    else:
        file = python_layout("cifar100", tmp_path, planes, labels) / "test"
        file.write_bytes(file.read_bytes()[:-9] if damage == "pickle" else pickle.dumps({b"data": print}))
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
    with pytest.raises(ValueError, match="part val: label 12 is above 11"):
        datasets.load("camvid", data_dir=tmp_path)
    camvid_file(tmp_path / "camvid.npz", y_val=np.zeros((3, 6, 9), np.uint8))
    with pytest.raises(ValueError, match="part val, is not an .npz"):
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
            if np.array_equal(
                image, padded[index, top : top + 6, left : left + 10][:, :: -1 if mirrored else 1]
            )
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
    pipeline = datasets.pipeline(x, np.eye(20, dtype="float32")[y], batch_size=8, shuffle=True, augment=True, pad=0,
                                 flip=False)  # fmt: skip
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


@pytest.mark.parametrize("arguments, message", [
    (dict(x=np.zeros((2, 4, 4, 1), np.float32)), "`x` must be uint8"),
    (dict(x=np.zeros((2, 4, 4), np.uint8)), "`x` must be uint8"),
    (dict(y=np.zeros(3)), r"`y` must be \(N,\)"),
    (dict(batch_size=0), "`batch_size` must"),
    (dict(seed=-1), "`seed` must"),
    (dict(pad=-1, augment=True), "`pad` must"),
])  # fmt: skip
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
    data = datasets.Dataset("toy", *(np.zeros((1, 2, 3, 3), np.uint8),) * 4, ("a", "b", "c"), ignore_class=9)
    wanted = np.array([[[0, 0, 1], [1, 9, 9]]])
    found = np.array([[[0, 1, 1], [1, 2, 0]]])
    # Four pixels count, three are right; IoU of a is 1 / 2, of b 2 / 3, and c is nowhere.
    assert data.score(found, wanted) == {"pixel_accuracy": 3 / 4, "mean_iou": (1 / 2 + 2 / 3) / 2}
    first, second = data.class_names[:2]
    assert data.class_ious(found, wanted) == {first: 1 / 2, second: 2 / 3}
