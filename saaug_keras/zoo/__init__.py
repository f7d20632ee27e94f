"""Pretrained multiplication-free networks: `zoo.load("digits-shift")`.

An entry is a folder of data: `entry.toml` says what the network is for and how it is trained, `measured.toml` what came
out and the SHA-256 of every other file: `weights.npz`, `calibration.npz` (the ranges of the export), `custom.tflite`,
`builtin.tflite`, `history.json`.
Nothing here uses the network, and nothing that is read is run.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import hashlib
import pathlib
import tomllib
from dataclasses import dataclass

from saaug_keras import _validate
from saaug_keras.recipes import Recipe

FORMAT = 1  # of entry.toml and measured.toml
_TEXTS = ("title", "purpose", "limits", "licence")


def list(
    filter: str = "*",
    *,
    sort_by: str = "name",
    max_flash: int | None = None,
    max_ram: int | None = None,
    as_table: bool = False,
):
    """The entries' names, or a table of them.

    Args:
        filter: shell pattern of the names; `"*shift*"`, say.
        sort_by: "name", or a column of `results`: sizes and counts with the smallest first, accuracies with the largest.
            Entries without that figure come last.
        max_flash, max_ram: bytes that an entry may take as plain C on a Cortex-M4, everything counted (see
            `saaug_keras.memory`). With a limit, entries whose size is not known are left out: those that are not trained
            and those of products alone.
        as_table: the table as Markdown in the place of the names.
    Returns:
        tuple of names, or str.
    Raises:
        ValueError: an unknown column, or a limit that is no size.
    """
    from saaug_keras.zoo import cards

    return cards.listed(_names(), filter, sort_by, {"flash_bytes": max_flash, "ram_bytes": max_ram}, as_table)


def results(filter: str = "*") -> tuple[dict, ...]:
    """The figures of the entries whose names match, one dictionary each of `cards.COLUMNS`; None for what is not known.

    "float" and "int8" are fractions on the whole test set, accuracies or, of scenes, mean IoU.
    """
    from saaug_keras.zoo import cards

    return tuple(cards.row(name) for name in _names() if fnmatch.fnmatchcase(name, filter))


def _names():
    return sorted(path.parent.name for path in _root().glob("*/entry.toml"))


def path(name: str) -> pathlib.Path:
    """The folder of an entry.

    Raises:
        ValueError: no such entry; names the nearest.
    """
    if name not in _names():
        near = difflib.get_close_matches(str(name), _names(), n=3, cutoff=0.4) or _names()
        raise ValueError(f"zoo: `name` must be an entry, perhaps {', '.join(near)}. Received: name={name!r}.")
    return _root() / name


def load(
    name: str,
    *,
    weights="default",
    verify: bool = True,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    include_top: bool = True,
    pretrained: bool = True,
):
    """A network of the zoo as a Keras model: images in [0, 1] (N, H, W, C) -> logits (N, classes).

    Args:
        name: one of `list()`.
        weights: "default" for the trained ones, None for fresh ones, or the path of a file like `weights.npz`.
        verify: compare the file's SHA-256 with the entry's, for the default weights.
        num_classes: outputs, the entry's own by default. With another number the classifier is fresh, for fine-tuning;
            all else keeps its weights.
        input_shape: (H, W, C) of the images, the entry's own by default. With trained weights C must be the entry's.
        include_top: False for the features that the classifier's global pooling would take, (N, h, w, channels).
        pretrained: False for fresh weights, as weights=None.
    Raises:
        ValueError: an unknown name, a shape that the trained weights do not fit, or a weight file that is damaged or of
            another network.
        FileNotFoundError: no such weight file, or an entry that is not trained yet.
    """
    import keras

    from saaug_keras import backbones
    from saaug_keras.zoo import weights as files

    entry = Entry.read(name)
    own, options = entry.spec(), {"layer_options": entry.recipe.layer_options}
    spec = _changed(entry, own, num_classes, input_shape, include_top)
    model = backbones.build(own, **options)
    if pretrained and weights is not None:
        files.read_into(model, _weight_file(entry, weights, verify))
    if spec != own:
        trained, model = model, backbones.build(spec, **options)
        if pretrained and weights is not None:
            _hand_over(entry, trained, model)
    return model if include_top else keras.Model(model.input, model.get_layer("pool").input, name=model.name)


def _weight_file(entry, weights, verify):
    if isinstance(weights, str) and weights == "default":
        return entry.file("weights.npz", verify=verify)
    file = pathlib.Path(weights)
    if not file.is_file():
        raise FileNotFoundError(
            f"zoo.load: `weights` must be 'default', None or a file like weights.npz. Received: weights={weights!r}."
        )
    return file


def _changed(entry, spec, num_classes, input_shape, include_top):
    """The spec with other ends."""
    if num_classes is not None:
        _validate.int_in("zoo.load", "num_classes", num_classes, 1, 100_000)
        spec = dataclasses.replace(spec, num_classes=num_classes)
    if input_shape is not None:
        spec = dataclasses.replace(spec, input_shape=tuple(input_shape))
    if not include_top and spec.segmentation is not None:
        raise ValueError(
            f"zoo.load: `include_top` must be True for {entry.name}, which labels every pixel. Received: include_top=False."
        )
    return spec


def _hand_over(entry, trained, model):
    """Gives a model the weights of another that differs in its ends alone; a classifier of other classes stays fresh."""
    for layer in model.layers:
        values = trained.get_layer(layer.name).get_weights()
        if [value.shape for value in values] == [tuple(weight.shape) for weight in layer.weights]:
            layer.set_weights(values)
        elif layer.name != "classifier":
            raise ValueError(
                f"zoo.load: `input_shape` must have {entry.input_shape[2]} channels, as {entry.name} was trained with. "
                f"Received: input_shape={model.input_shape[1:]}. pretrained=False takes any."
            )


def card(name: str) -> str:
    """What a person wants to know of an entry, as Markdown."""
    from saaug_keras.zoo import cards

    return cards.card(Entry.read(name))


def multiplicative() -> dict:
    """What multiplicative twins take on the best public int8 kernels, as zoo/multiplicative.toml records it.

    Returns:
        {"kernels": {core: library and compiler}, "instructions": {entry: {core: {kind of layer: instructions}}}}.
    """
    return _read(_root() / "multiplicative.toml")


def samples(name: str):
    """A few bundled images for an entry to classify: the digits' test images, or drawings of what others know.

    Returns:
        `datasets.Dataset` without training images; its test images are the samples. Drawings are no photographs: they
        show that an entry runs, not how well.
    """
    from saaug_keras import datasets
    from saaug_keras.zoo import drawings

    entry = Entry.read(name)
    return datasets.load("digits") if entry.dataset == "digits" else drawings.dataset(entry.dataset)


@dataclass(frozen=True)
class Entry:
    """An entry's two files as data.

    Args:
        name, folder: of the entry.
        title, purpose, limits, licence: for the card.
        dataset: as `datasets.load`; input_shape, classes: of its images.
        recipe: the `Recipe` that trains it.
        direct, twin: names of the entries of the same network trained alone, and of its multiplicative twin; None.
        start, teacher: names of the entries whose recipes stand in the recipe's fields of these names; None.
        files: {file: SHA-256}; measured: {figure: value}; both empty until the entry is trained.
    """

    name: str
    folder: pathlib.Path
    title: str
    purpose: str
    limits: str
    licence: str
    dataset: str
    input_shape: tuple[int, ...]
    classes: int
    recipe: Recipe
    direct: str | None = None
    twin: str | None = None
    start: str | None = None
    teacher: str | None = None
    files: dict = dataclasses.field(default_factory=dict)
    measured: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, name: str, *, before=()) -> Entry:
        """Reads an entry of the zoo; `before` are the entries that it is read for.

        Raises:
            ValueError: an unknown name or key, a value out of range, or a version from the future; names the file.
        """
        return cls.read_folder(path(name), before=before)

    @classmethod
    def read_folder(cls, folder, *, before=()) -> Entry:
        """Reads the entry in a folder."""
        folder = pathlib.Path(folder)
        data = _read(folder / "entry.toml")
        file = folder / "entry.toml"
        known = {field.name for field in dataclasses.fields(cls)} - {"name", "folder", "files", "measured"}
        for key in data:
            _validate.one_of(str(file), "key", key, sorted(known))
        for key in (*_TEXTS, "dataset", "input_shape", "classes", "recipe"):
            if key not in data:
                raise ValueError(f"{file}: `{key}` must be given.")
        first = {}
        for key in ("start", "teacher"):
            if key in data:
                _validate.one_of(str(file), key, data[key], [name for name in _names() if name != folder.name])
                if data[key] in before:
                    raise ValueError(f"{file}: `{key}` must not lead back to the entry. Received: {key}={data[key]!r}.")
                first[key] = cls.read(data[key], before=(*before, folder.name)).recipe.as_dict()
        try:
            recipe = Recipe.from_dict({**data.pop("recipe"), **first})
        except (TypeError, ValueError) as error:
            raise type(error)(f"{file}: [recipe] {error}") from error
        shape = tuple(_validate.int_in(str(file), "input_shape", size, 1, 4096) for size in data.pop("input_shape"))
        classes = _validate.int_in(str(file), "classes", data.pop("classes"), 2, 100_000)
        results = _read(folder / "measured.toml") if (folder / "measured.toml").exists() else {}
        return cls(
            name=folder.name,
            folder=folder,
            input_shape=shape,
            classes=classes,
            recipe=recipe,
            files=results.get("files", {}),
            measured=results.get("measured", {}),
            **data,
        )

    def spec(self):
        """The `NetSpec` of the network that is deployed."""
        spec = self.recipe.spec(self.input_shape, self.classes, per_pixel=self.dataset == "camvid")
        return dataclasses.replace(spec, blocks=tuple(block for block in spec.blocks if block.kept))

    def observation(self):
        """The ranges that the entry's export is calibrated with; see `tflm_export.observe`."""
        from saaug_keras.zoo import weights

        return weights.read_observation(self.file("calibration.npz"))

    def file(self, file: str, *, verify: bool = True) -> pathlib.Path:
        """The path of one of the entry's files.

        Raises:
            FileNotFoundError: the entry is not trained yet, or the file is missing.
            ValueError: its SHA-256 is not the recorded one.
        """
        found = self.folder / file
        if file not in self.files or not found.is_file():
            raise FileNotFoundError(
                f"zoo: {self.name} has no {file}. Train it: saaug zoo train {self.name}; or install the package again."
            )
        if verify and (digest := sha256(found)) != self.files[file]:
            raise ValueError(
                f"zoo: {found} is damaged: its SHA-256 must be {self.files[file]}. Received: {digest}. Install the "
                "package again, or pass verify=False to use it all the same."
            )
        return found


def sha256(file) -> str:
    """The SHA-256 of a file, in hex."""
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()


def _read(file) -> dict:
    """A TOML file of a known version."""
    try:
        data = tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a TOML file: {error}.") from error
    version = data.pop("version", None)
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise ValueError(
            f"{file}: `version` must be {FORMAT}. Received: version={version!r}."
            + (" It was written by a later saaug_keras: update the package." if newer else "")
        )
    return data


def _root() -> pathlib.Path:
    """The folder of all entries: beside this file in an installation, at the top of a checkout."""
    installed = pathlib.Path(__file__).parent / "_data"
    return installed if installed.is_dir() else pathlib.Path(__file__).parents[2] / "zoo"
