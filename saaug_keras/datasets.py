"""Image data sets as arrays, and the pipelines that feed them to training.

Images are uint8 (N, H, W, C); `pipeline` turns them into float32 in [0, 1], pixel / 255.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import pickle
import sys
import tarfile
import urllib.request
from dataclasses import dataclass

import keras
import numpy as np

from saaug_keras import _images, _validate
from saaug_keras._backend import portable
from saaug_keras._errors import DAMAGED
from saaug_keras._files import atomic_file

# The names of classes, in the order of their numbers.
CAMVID_CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple motorcycle mountain mouse mushroom oak orange orchid otter palm pear pickup_truck pine
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow wolf woman worm
""".split()
)
_DIGITS = pathlib.Path(__file__).resolve().parent / "_data" / "digits.npz"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, split into training and test.

    Args:
        name: as `load` takes it.
        x_train, x_test: uint8 (N, H, W, C).
        y_train, y_test: classes, whole numbers below their count: (N,) or (N, 1), kept as int32 (N,); or per pixel,
            (N, H, W) or (N, H, W, 1), kept as (N, H, W), uint8 where they fit.
        class_names: one name per class, in order.
        mirror: whether a mirrored image still shows its class; digits do not.
        ignore_class: label of pixels that belong to no class, or None.
        x_validation, y_validation: the validation part where a data set comes with its own, else None.
    Raises:
        ValueError: images or labels, of whichever part, that are not of this form, or images of different sizes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    mirror: bool = True
    ignore_class: int | None = None
    x_validation: np.ndarray | None = None
    y_validation: np.ndarray | None = None

    def __post_init__(self):
        owner = f"Dataset '{self.name}'"
        if (self.x_validation is None) != (self.y_validation is None):
            raise ValueError(f"{owner}: `x_validation` and `y_validation` must come together.")
        ranks = set()
        for part in ("train", "test") + ("validation",) * (self.x_validation is not None):
            x, y = np.asarray(getattr(self, f"x_{part}")), getattr(self, f"y_{part}")
            if x.ndim != 4 or x.dtype != np.uint8:
                raise ValueError(
                    f"{owner}: `x_{part}` must be uint8 (N, H, W, C), grey values from 0 to 255. Received: {x.dtype} {x.shape}."
                )
            if x.shape[1:] != np.shape(self.x_train)[1:]:
                raise ValueError(
                    f"{owner}: `x_{part}` must have images of {np.shape(self.x_train)[1:]}, as `x_train`. Received: "
                    f"{x.shape[1:]}."
                )
            y = _whole(owner, f"y_{part}", y, self.num_classes, self.ignore_class)
            if y.shape not in ((len(x),), x.shape[:3]):
                raise ValueError(
                    f"{owner}: `y_{part}` must be classes (N,) or, per pixel, (N, H, W), of images {x.shape}. Received: "
                    f"{y.shape}."
                )
            ranks.add(y.ndim)
            object.__setattr__(self, f"x_{part}", x)
            object.__setattr__(self, f"y_{part}", y)
        if len(ranks) > 1:
            raise ValueError(f"{owner}: all parts must have labels per image, or all of them labels per pixel.")

    @property
    def num_classes(self) -> int:
        """How many classes there are, without the ignored one."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.x_train.shape[1:]

    def split(self, validation_fraction: float = 0.1, seed: int = 0):
        """Holds out a part of the training images for choosing models; the test images are not touched.

        Args:
            validation_fraction: share of the training images, in (0, 1). Every class gives its share, rounded. A data
                set that comes with its own validation images gives those.
            seed: which images; the same seed gives the same split.
        Returns:
            ((x, y) for fitting, (x, y) for validation), each in the original order.
        """
        if self.x_validation is not None:
            return (self.x_train, self.y_train), (self.x_validation, self.y_validation)
        owner = f"Dataset '{self.name}'"
        count = len(self.x_train)
        _validate.number_in(owner, "validation_fraction", validation_fraction, 0, 1, " of the training images")
        groups = self.y_train if self.y_train.ndim == 1 else np.zeros(count, np.int32)
        held = _stratified(groups, validation_fraction, np.random.default_rng(seed))
        if not 0 < held.sum() < count:
            raise ValueError(
                f"{owner}: `validation_fraction` must leave images on both sides of {count} training images. "
                f"Received: validation_fraction={validation_fraction}."
            )
        return (self.x_train[~held], self.y_train[~held]), (self.x_train[held], self.y_train[held])

    def score(self, classes, labels) -> dict[str, float]:
        """How right predicted classes are: "accuracy"; of labels per pixel, "pixel_accuracy" over the pixels that have
        a class and "mean_iou" over the classes that are there."""
        if np.ndim(labels) == 1:
            return {"accuracy": float((classes == labels).mean())}
        known = labels != self.ignore_class
        accuracy = float((classes[known] == labels[known]).mean())
        return {"pixel_accuracy": accuracy, "mean_iou": float(np.mean(list(self.class_ious(classes, labels).values())))}

    def class_ious(self, classes, labels) -> dict[str, float]:
        """Intersection over union of every class, by its name, that predictions or labels per pixel hold."""
        known = labels != self.ignore_class
        found, wanted = classes[known], labels[known]
        result = {}
        for k, name in enumerate(self.class_names):
            if union := np.sum((found == k) | (wanted == k)):
                result[name] = float(np.sum((found == k) & (wanted == k)) / union)
        return result


def _whole(owner, name, labels, classes=None, ignore_class=None):
    """Labels as whole numbers, int32 or, per pixel, uint8 where they fit, without a last axis of one.

    Args:
        classes: how many there are, or None for any number.
        ignore_class: a label beside those, or None.
    """
    labels = np.asarray(labels)
    labels = labels[..., 0] if labels.ndim in (2, 4) and labels.shape[-1] == 1 else labels
    must = f"{owner}: `{name}` must be whole numbers from 0" + ("" if classes is None else f" to {classes - 1}")
    must += "" if ignore_class is None else f", or {ignore_class} for no class"
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"{must}. Received: {labels.dtype}.")
    highest = np.iinfo("int32").max if classes is None else classes - 1
    right = (labels >= 0) & (labels <= highest) & (labels == np.floor(labels))  # never true of NaN
    if ignore_class is not None:
        right |= labels == ignore_class
    if not right.all():
        raise ValueError(f"{must}. Received: {labels[~right][0]} among them.")
    small = labels.ndim == 3 and labels.max(initial=0) < 256 and labels.min(initial=0) >= 0
    return labels.astype("uint8" if small else "int32", copy=False)


def _stratified(groups, fraction, generator):
    """A bool mask that is True for `fraction` of every group."""
    held = np.zeros(len(groups), bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        held[generator.permutation(members)[: round(fraction * len(members))]] = True
    return held


def load(name: str, *, data_dir=None, resolution=None) -> Dataset:
    """Loads a data set.

    Args:
        name: "digits" (8x8 grey, bundled: no network), "cifar10", "cifar100" (32x32 colour), "camvid" (road scenes
            with a class for every pixel) or "folder" (image files of your own, see below).
        data_dir: for the CIFARs, a folder with the official binary or python layout (`cifar-100-binary/train.bin`,
            `cifar-100-python/train`, ...), or that layout's own folder. Without one, or if it holds neither, Keras's
            cache is searched, then the archive is downloaded into that cache. For camvid, the .npz file or its folder.
        resolution: int or (H, W) that the images of "folder" are resized to; needed when they differ in size. Other
            data sets keep their size: `pipeline` resizes.

    A "folder" for classification holds `train/<class>/*.png` and `test/<class>/*.png`; one for segmentation holds
    `train/images/*.png`, `train/labels/*.png` of the same names (the class of every pixel, 255 for none, as grey values or
    as indices into a palette), the same under `test`, and `classes.txt` with one name per line. `validation` beside them
    is used if it is there. Images may be PNG, JPEG, GIF and BMP, and are turned as their Exif says; hidden files and what
    else tools leave in folders are passed over.

    Raises:
        ValueError: an unknown name, or damaged files.
        FileNotFoundError: the data is in none of the places.
    """
    _validate.one_of("datasets.load", "name", name, tuple(sorted(_LOADERS)))
    if data_dir is not None and not pathlib.Path(data_dir).exists():
        raise FileNotFoundError(f"datasets.load: `data_dir` must be an existing folder. Received: data_dir={data_dir}.")
    data_dir = None if data_dir is None else pathlib.Path(data_dir)
    return _load_own(data_dir, resolution) if name == "folder" else _LOADERS[name](data_dir)


def _load_digits(_):
    with np.load(_DIGITS) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int32)
    test = _stratified(labels, 0.2, np.random.default_rng(20240702))
    names = tuple(str(digit) for digit in range(10))
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test], names, mirror=False)


@dataclass(frozen=True)
class _Cifar:
    """Where the files of a CIFAR are. `binary_labels` counts the label bytes of a record; the last one is the class."""

    name: str
    binary_folder: str
    binary_train: tuple[str, ...]
    binary_test: str
    binary_names: str
    binary_labels: int
    python_folder: str
    python_train: tuple[str, ...]
    python_test: str
    python_meta: str
    labels_key: bytes
    names_key: bytes
    classes: int
    sha256: str

    @property
    def url(self):
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"

    @property
    def archive(self):
        return f"cifar-{self.classes}-python.tar.gz"

    @property
    def cache(self):
        """Folder and archive as Keras's own loader names them."""
        folder = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"
        return folder / f"cifar-{self.classes}-{'batches-py' if self.classes == 10 else 'python'}-target"


_CIFAR10 = _Cifar(
    "cifar10",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test_batch.bin",
    "batches.meta.txt",
    1,
    "cifar-10-batches-py",
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test_batch",
    "batches.meta",
    b"labels",
    b"label_names",
    10,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
_CIFAR100 = _Cifar(
    "cifar100",
    "cifar-100-binary",
    ("train.bin",),
    "test.bin",
    "fine_label_names.txt",
    2,
    "cifar-100-python",
    ("train",),
    "test",
    "meta",
    b"fine_labels",
    b"fine_label_names",
    100,
    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)


def _load_cifar(files, data_dir):
    roots = [] if data_dir is None else [data_dir]
    for root in (*roots, files.cache, files.cache.parent):
        for folder in (root, root / files.binary_folder):
            if all((folder / name).is_file() for name in (*files.binary_train, files.binary_test)):
                return _cifar_binary(files, folder)
        for folder in (root, root / files.python_folder):
            if all((folder / name).is_file() for name in (*files.python_train, files.python_test)):
                return _cifar_python(files, lambda name, folder=folder: (folder / name).read_bytes(), str(folder))
    archives = [root / files.archive for root in roots]
    archives += [files.cache.with_name(files.cache.name + "_archive"), files.cache.parent / files.archive]
    for archive in archives:
        if archive.is_file() and _sha256(archive) == files.sha256:
            return _cifar_archive(files, archive)
    return _cifar_archive(files, _download(files, data_dir))


def _download(files, data_dir):
    """The archive in Keras's cache, where Keras finds it again."""
    target = files.cache.with_name(files.cache.name + "_archive")
    given = "no `data_dir` was given" if data_dir is None else f"`data_dir` {data_dir} holds neither"
    try:
        print(f"{files.name}: downloading {files.url}", file=sys.stderr)
        with atomic_file(target) as aside, urllib.request.urlopen(files.url, timeout=60) as response:
            with open(aside, "wb") as file:
                while block := response.read(1 << 20):
                    file.write(block)
            if _sha256(aside) != files.sha256:
                raise OSError("the archive that came has the wrong SHA-256")
    except OSError as error:
        raise FileNotFoundError(
            f"datasets.load: {files.name} is in none of three places. 1. A local folder with "
            f"{files.binary_folder}/{files.binary_test} or {files.python_folder}/{files.python_test}: {given}. "
            f"2. Keras's cache: neither {files.cache} nor {target.name} is there. 3. Download of {files.url}: {error}. "
            "Unpack the data set into a folder and name that folder."
        ) from error
    return target


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _damaged(files, where, what):
    return ValueError(f"datasets.load: {files.name} file {where} is damaged: {what}.")


def _cifar_dataset(files, parts, names):
    """From (pixels uint8 (N, 3072) plane by plane, labels) of training and test."""
    arrays = []
    for pixels, labels, where in parts:
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = _whole(f"datasets.load: {files.name} file {where} is damaged", "labels", labels, files.classes)
        arrays += [np.ascontiguousarray(images), labels]
    return Dataset(files.name, *arrays, names)


def _cifar_binary(files, folder):
    length = files.binary_labels + 3072
    parts = []
    for group in (files.binary_train, (files.binary_test,)):
        records = []
        for name in group:
            raw = np.fromfile(folder / name, np.uint8)
            if raw.size == 0 or raw.size % length:
                raise _damaged(files, folder / name, f"{raw.size} bytes are not a multiple of {length}")
            records.append(raw.reshape(-1, length))
        records = np.concatenate(records)
        parts.append((records[:, files.binary_labels :], records[:, files.binary_labels - 1], folder / group[0]))
    names = folder / files.binary_names
    names = names.read_text().split() if names.is_file() else []
    return _cifar_dataset(files, parts, _names(files, names))


def _cifar_python(files, read, where):
    """`read(name)` gives the bytes of a file of the python layout."""
    parts = []
    for group in (files.python_train, (files.python_test,)):
        pixels, labels = [], []
        for name in group:
            batch = _unpickle(files, read(name), f"{where}/{name}")
            try:
                data, classes = np.asarray(batch[b"data"]), np.asarray(batch[files.labels_key])
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(files, f"{where}/{name}", f"it must be a dictionary of arrays, {error}") from error
            if data.dtype != np.uint8 or classes.ndim != 1 or data.shape != (len(classes), 3072):
                raise _damaged(
                    files, f"{where}/{name}", f"{data.dtype} {data.shape} pixels for labels of shape {classes.shape}"
                )
            pixels.append(data)
            labels.append(classes)
        parts.append((np.concatenate(pixels), np.concatenate(labels), f"{where}/{group[0]}"))
    try:
        meta = _unpickle(files, read(files.python_meta), f"{where}/{files.python_meta}")
        names = [name.decode() for name in meta[files.names_key]]
    except (FileNotFoundError, KeyError, TypeError, AttributeError):  # names are a convenience
        names = []
    return _cifar_dataset(files, parts, _names(files, names))


def _cifar_archive(files, path):
    with tarfile.open(path) as archive:
        members = {pathlib.PurePath(member.name).name: member for member in archive.getmembers() if member.isfile()}
        return _cifar_python(files, lambda name: archive.extractfile(members[name]).read(), str(path))


def _names(files, names):
    return tuple(names) if len(names) == files.classes else tuple(f"class {index}" for index in range(files.classes))


class _ArraysOnly(pickle.Unpickler):
    """A pickle can run code; the official files hold NumPy arrays and nothing else that needs a name."""

    def find_class(self, module, name):
        arrays = module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype", "_frombuffer")
        if arrays or (module, name) == ("_codecs", "encode"):  # the latter is how Python 3 writes bytes
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(files, data, where):
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except DAMAGED as error:
        raise _damaged(files, where, error) from error


def _load_camvid(data_dir):
    wanted = ".npz with x_train, y_train, x_val, y_val, x_test, y_test: images (N, H, W, 3), labels (N, H, W), uint8"
    files = []
    if data_dir is not None:
        files = [data_dir] if data_dir.is_file() else sorted(data_dir.glob("*.npz"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"datasets.load: camvid's `data_dir` must be an {wanted}, or a folder with one .npz. Received: "
            f"data_dir={data_dir}{f' with {len(files)} .npz files' if data_dir else ''}."
        )
    keys = ("x_train", "y_train", "x_test", "y_test", "x_val", "y_val")
    try:
        with np.load(files[0]) as stored:
            arrays = {key: stored[key] for key in keys}
    except DAMAGED as error:
        raise ValueError(f"datasets.load: {files[0]} is damaged or not an {wanted}: {error}.") from error
    ignored = len(CAMVID_CLASSES)
    for part in ("train", "val", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.shape != (*labels.shape, 3) or images.dtype != np.uint8 or labels.dtype != np.uint8:
            raise ValueError(f"datasets.load: {files[0]}, part {part}, is not an {wanted}.")
    try:
        return Dataset(
            "camvid",
            *(arrays[key] for key in keys[:4]),
            CAMVID_CLASSES,
            ignore_class=ignored,
            x_validation=arrays["x_val"],
            y_validation=arrays["y_val"],
        )
    except ValueError as error:
        raise ValueError(f"datasets.load: {files[0]}: {error}") from error


def _load_own(path, resolution):
    if path is None or not all((path / part).is_dir() for part in ("train", "test")):
        raise FileNotFoundError(
            f"datasets.load: `data_dir` of 'folder' must hold the folders train and test. Received: data_dir={path}."
        )
    parts = ["train", "test"] + ["validation"] * (path / "validation").is_dir()
    if (path / "train" / "labels").is_dir():
        names = path / "classes.txt"
        if not names.is_file():
            raise FileNotFoundError(f"datasets.load: {names} must hold the names of the classes, one per line.")
        names = tuple(names.read_text().splitlines())
        arrays = [_segmentation_part(path / part, len(names), resolution) for part in parts]
        ignored = _NO_CLASS
    else:
        names = tuple(sorted(_class_folders(path / "train")))
        if not names:
            raise FileNotFoundError(f"datasets.load: {path / 'train'} must hold one folder of images per class.")
        arrays = [_class_part(path / part, names, resolution) for part in parts]
        ignored = None
    shapes = {images.shape[1:] for images, _ in arrays}
    if len(shapes) > 1:
        raise ValueError(f"datasets.load: images in {path} differ in size: {sorted(shapes)}. Give `resolution`.")
    (x, y), (x_test, y_test), (x_held, y_held) = arrays + [(None, None)] * (3 - len(arrays))
    return Dataset("folder", x, y, x_test, y_test, names, ignore_class=ignored, x_validation=x_held, y_validation=y_held)


def _class_folders(path):
    return {folder.name for folder in path.iterdir() if folder.is_dir() and not _images.is_litter(folder)}


def _class_part(path, names, resolution):
    unknown = sorted(_class_folders(path) - set(names))
    if unknown:
        raise ValueError(f"datasets.load: {path} has classes that the training images have not: {', '.join(unknown)}.")
    images, labels = [], []
    for index, name in enumerate(names):
        if (path / name).is_dir():
            found, _ = load_folder(path / name, resolution=resolution)
            images.append(found)
            labels.append(np.full(len(found), index, np.int32))
    if len({group.shape[1:] for group in images}) != 1:
        raise ValueError(f"datasets.load: images in {path} are missing or differ in size. Give `resolution`.")
    return np.concatenate(images), np.concatenate(labels)


def _segmentation_part(path, classes, resolution):
    images, names = load_folder(path / "images", resolution=resolution)
    labels = []
    for image, name in zip(images, names, strict=True):
        file = path / "labels" / f"{pathlib.PurePath(name).stem}.png"
        if not file.is_file():
            raise FileNotFoundError(f"datasets.load: {name} in {path / 'images'} must have its labels in {file}.")
        label = _images.read_labels(file)
        if resolution is not None:
            label = resize_labels(label[None], image.shape[:2])[0]
        if label.shape != image.shape[:2]:
            raise ValueError(f"datasets.load: {file} is {label.shape} pixels, its image {image.shape[:2]}.")
        worst = label[label != _NO_CLASS].max(initial=0)
        if worst >= classes:
            raise ValueError(f"datasets.load: {file} has class {worst}, classes.txt names {classes}.")
        labels.append(label.astype("uint8"))
    return images, np.stack(labels)


_NO_CLASS = 255

_LOADERS = {
    "camvid": _load_camvid,
    "cifar10": lambda data_dir: _load_cifar(_CIFAR10, data_dir),
    "cifar100": lambda data_dir: _load_cifar(_CIFAR100, data_dir),
    "digits": _load_digits,
    "folder": _load_own,
}


class EpochCounter(keras.callbacks.Callback):
    """Tells a `pipeline` which epoch it is, so that a resumed run sees the images that the first run would have seen.

    Pass one object both as `pipeline(..., epoch=counter)` and in `fit(callbacks=[counter])`.
    """

    def __init__(self):
        super().__init__()
        self.epoch = 0
        self.variable = None

    def as_variable(self):
        """The number for a pipeline of TensorFlow, which reads it while it runs."""
        import tensorflow as tf

        if self.variable is None:
            with tf.device("CPU"):
                self.variable = tf.Variable(self.epoch, dtype=tf.int64, trainable=False)
        return self.variable

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if self.variable is not None:
            self.variable.assign(epoch)


def pipeline(
    x,
    y=None,
    *,
    batch_size: int,
    shuffle: bool = False,
    augment: bool = False,
    seed: int = 0,
    epoch=None,
    resolution=None,
    pad: int | None = None,
    flip: bool = True,
    ignore_class: int = 0,
    drop_remainder: bool = False,
):
    """Batches of float32 images in [0, 1], with their labels if there are any.

    On the TensorFlow backend a tf.data.Dataset. On JAX a keras.utils.PyDataset of NumPy arrays, which draws other
    numbers from the same seed and needs TensorFlow only for `resolution`.

    Args:
        x: uint8 (N, H, W, C).
        y: labels (N,) or (N, 1), one-hot (N, classes) or per pixel (N, H, W), or None. Labels per pixel are cropped,
            mirrored and resized as their image is.
        batch_size: images per batch; the last may be smaller unless `drop_remainder`.
        shuffle: a new order every epoch.
        augment: shift each image by up to `pad` pixels in both directions (zeros come in) and, with `flip`, mirror
            half of them; drawn anew per image and epoch.
        seed: of order and augmentation: the same seed gives the same batches.
        epoch: an `EpochCounter`, or an int that fixes one epoch's batches. By default each iteration is a new epoch.
        resolution: int or (H, W): images are resized (bilinear, antialiased, to whole grey values) after augmentation.
        pad: pixels; by default an eighth of the height.
        flip: False where a mirrored image changes its meaning.
        ignore_class: the label of pixels that a shift brings in.
        drop_remainder: leave out the last, smaller batch.
    """
    owner = "datasets.pipeline"
    x = np.asarray(x)
    if x.ndim != 4 or x.dtype != np.uint8 or not len(x):
        raise ValueError(f"{owner}: `x` must be uint8 (N, H, W, C), N >= 1. Received: x={x.dtype} {x.shape}.")
    if y is not None:
        shape = np.shape(y)
        if len(shape) not in (1, 2, 3, 4) or shape[0] != len(x) or shape[3:] not in ((), (1,)):
            raise ValueError(
                f"{owner}: `y` must be (N,), (N, classes) or (N, H, W) with N = {len(x)} as in `x`. "
                f"Received: y of shape {shape}."
            )
        one_hot = len(shape) == 2 and shape[1] > 1
        y = np.asarray(y) if one_hot else _whole(owner, "y", y, ignore_class=ignore_class)
    _validate.int_in(owner, "batch_size", batch_size, 1, 1 << 20, " images")
    _validate.int_in(owner, "seed", seed, 0, 2**31 - 1)
    pad = x.shape[1] // 8 if pad is None else _validate.int_in(owner, "pad", pad, 0, 1 << 12, " pixels")
    size = None if resolution is None else _validate.pair_of(owner, "resolution", resolution)
    size = None if size is None or size == x.shape[1:3] else size
    return _batches(
        x,
        y,
        batch_size=batch_size,
        shuffle=shuffle,
        augment=augment,
        seed=seed,
        epoch=epoch,
        size=size,
        pad=pad,
        flip=flip,
        ignore_class=ignore_class,
        drop_remainder=drop_remainder,
    )


@portable
def _batches(x, y, *, batch_size, shuffle, augment, seed, epoch, size, pad, flip, ignore_class, drop_remainder):
    """`pipeline` on tf.data, of arguments that have been checked."""
    import tensorflow as tf

    with tf.device("CPU"):
        images = tf.constant(x)
        labels = None if y is None else tf.constant(y)
    count = len(x)

    def batches_of(number):
        order = tf.range(count)
        if shuffle:
            order = tf.random.experimental.stateless_shuffle(order, tf.stack([tf.constant(seed, tf.int64), number]))
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=drop_remainder)
        return batches.enumerate().map(lambda step, rows: (number, step, rows))

    def fetch(number, step, rows):
        batch = tf.gather(images, rows)
        truth = None if labels is None else tf.gather(labels, rows)
        if augment:
            key = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), number]), step + 1)
            batch, truth = _shift_and_flip(batch, truth, key, pad, flip, ignore_class)
        if size is not None:
            batch = _resize(batch, size)
            if truth is not None and truth.shape.rank == 3:
                truth = tf.image.resize(truth[..., None], size, method="nearest")[..., 0]
        batch = tf.cast(batch, tf.float32) / 255.0
        return batch if truth is None else (batch, truth)

    if isinstance(epoch, EpochCounter):
        numbers = tf.data.Dataset.range(1).map(lambda _: epoch.as_variable().read_value())
    elif epoch is not None:
        numbers = tf.data.Dataset.from_tensors(tf.constant(epoch, tf.int64))
    else:
        numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    batches = numbers.flat_map(batches_of).map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    steps = count // batch_size if drop_remainder else -(-count // batch_size)
    return batches.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)


def _shift_and_flip(batch, truth, key, pad, flip, ignore_class):
    """One shift and one coin per image, by gathering rows, then columns: no loop over images and no interpolation."""
    import tensorflow as tf

    count, (height, width) = tf.shape(batch)[0], batch.shape[1:3]
    draws = tf.random.stateless_uniform((count, 3), key, 0, 1 << 30, tf.int32)
    shift = draws[:, :2] % (2 * pad + 1)
    rows = tf.range(height) + shift[:, :1]
    columns = tf.range(width)
    if flip:
        columns = tf.where(draws[:, 2:] % 2 == 1, width - 1 - columns, columns)
    columns = columns + shift[:, 1:]

    def move(tensor, fill):
        margins = [[0, 0], [pad, pad], [pad, pad]] + [[0, 0]] * (tensor.shape.rank - 3)
        padded = tf.pad(tensor, margins, constant_values=tf.cast(fill, tensor.dtype))
        return tf.gather(tf.gather(padded, rows, batch_dims=1), columns, axis=2, batch_dims=1)

    return move(batch, 0), truth if truth is None or truth.shape.rank < 3 else move(truth, ignore_class)


@_batches.on("jax")
class _NumpyBatches(keras.utils.PyDataset):
    """`pipeline` in NumPy."""

    def __init__(self, x, y, *, batch_size, shuffle, augment, seed, epoch, size, pad, flip, ignore_class, drop_remainder):
        super().__init__()
        self._x, self._y, self._batch_size = x, y if y is None else np.asarray(y), batch_size
        self._shuffle, self._augment, self._seed, self._epoch = shuffle, augment, seed, epoch
        self._size, self._pad, self._flip, self._ignore_class = size, pad, flip, ignore_class
        self._steps = len(x) // batch_size if drop_remainder else -(-len(x) // batch_size)
        self._iterations = 0
        self._order = (None, None)  # epoch, rows

    def __len__(self):
        return self._steps

    def __iter__(self):
        for index in range(len(self)):
            yield self[index]
        self.on_epoch_end()

    def on_epoch_end(self):
        self._iterations += 1

    def _number(self):
        if isinstance(self._epoch, EpochCounter):
            return self._epoch.epoch
        return self._iterations if self._epoch is None else self._epoch

    def _rows(self, index):
        number = self._number()
        if self._order[0] != number:
            rows = np.arange(len(self._x))
            if self._shuffle:
                np.random.default_rng((self._seed, number, 0)).shuffle(rows)
            self._order = (number, rows)
        return self._order[1][index * self._batch_size : (index + 1) * self._batch_size]

    def __getitem__(self, index):
        rows = self._rows(index)
        batch, truth = self._x[rows], None if self._y is None else self._y[rows]
        if self._augment:
            batch, truth = self._moved(batch, truth, np.random.default_rng((self._seed, self._number(), index + 1)))
        if self._size is not None:
            batch = resize(batch, self._size)
            if truth is not None and truth.ndim == 3:
                truth = resize_labels(truth, self._size)
        batch = batch.astype("float32") / np.float32(255)
        return batch if truth is None else (batch, truth)

    def _moved(self, batch, truth, generator):
        """As `_shift_and_flip`."""
        count, (height, width), pad = len(batch), batch.shape[1:3], self._pad
        shift = generator.integers(2 * pad + 1, size=(2, count, 1))
        rows, columns = np.arange(height) + shift[0], np.arange(width)
        if self._flip:
            columns = np.where(generator.integers(2, size=(count, 1)) == 1, width - 1 - columns, columns)
        columns = columns + shift[1]

        def move(array, fill):
            margins = [(0, 0), (pad, pad), (pad, pad)] + [(0, 0)] * (array.ndim - 3)
            padded = np.pad(array, margins, constant_values=fill)
            return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]

        return move(batch, 0), truth if truth is None or truth.ndim < 3 else move(truth, self._ignore_class)


def _resize(batch, size):
    import tensorflow as tf

    smaller = size[0] < batch.shape[1] or size[1] < batch.shape[2]  # enlarging needs no antialiasing, which is slow
    values = tf.image.resize(tf.cast(batch, tf.float32), size, antialias=smaller)
    return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)


def resize(x, resolution) -> np.ndarray:
    """Images at another size, as `pipeline(resolution=...)` makes them: what a deployed network is fed.

    Args:
        x: uint8 (N, H, W, C).
        resolution: int or (H, W).
    Returns:
        uint8 (N, *resolution, C).
    """
    size = _validate.pair_of("datasets.resize", "resolution", resolution)
    if tuple(size) == tuple(x.shape[1:3]):
        return x
    import tensorflow as tf

    return np.concatenate([_resize(tf.constant(x[start : start + 256]), size) for start in range(0, len(x), 256)])


def resize_labels(y, resolution) -> np.ndarray:
    """Labels per pixel at another size, as `pipeline(resolution=...)` makes them.

    Args:
        y: uint8 (N, H, W).
        resolution: int or (H, W).
    Returns:
        uint8 (N, *resolution).
    """
    import tensorflow as tf

    size = _validate.pair_of("datasets.resize_labels", "resolution", resolution)
    return tf.image.resize(y[..., None], size, method="nearest")[..., 0].numpy()


def load_folder(path, *, resolution=None, channels: int = 3) -> tuple[np.ndarray, list[str]]:
    """Image files of a folder, sorted by name: PNG, JPEG, GIF, BMP.

    Args:
        path: the folder, or one image file.
        resolution: int or (H, W) to resize to; needed when the files differ in size.
        channels: 3 for colour, 1 for grey.
    Returns:
        (uint8 (N, H, W, channels), file names).
    """
    path = pathlib.Path(path)
    files = [path] if path.is_file() else _images.files_of(path)
    if not files:
        raise FileNotFoundError(
            f"datasets.load_folder: `path` must hold images ({', '.join(_images.ENDINGS)}). Received: path={path}."
        )
    images = []
    for file in files:
        image = _images.read(file, channels)
        images.append(image if resolution is None else resize(image[None], resolution)[0])
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise ValueError(f"datasets.load_folder: images in {path} differ in size: {sorted(sizes)[:4]}. Give `resolution`.")
    return np.stack(images), [file.name for file in files]
