"""The command line, as a user meets it."""

import dataclasses
import errno
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest

from saaug_keras import cli, datasets, demo_train
from saaug_keras.cli import make_parser, search, train
from saaug_keras.recipes import Recipe
from saaug_keras.search.plan import Plan

TRAIN = ["train", "--backbone", "mobilenetv2-tiny", "--dataset", "digits"]


def saaug(*words, **options):
    command = [sys.executable, "-m", "saaug_keras.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_needs_no_tensorflow(name):
    code = (
        f"import sys; from saaug_keras.cli import main\ntry: main([{name!r}, '--help'])\n"
        "except SystemExit: pass\nsys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"usage: saaug {name}" in done.stdout and "--json" in done.stdout


def test_version_and_missing_command():
    assert saaug("--version").stdout.startswith("saaug_keras ")
    done = saaug()
    assert done.returncode == 2 and "COMMAND" in done.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (["--backbone", "resnet50"], "Recipe: `backbone` must be one of"),
        (["--dataset", "mnist"], "datasets.load: `name` must be one of"),
        (["--data", "no/such/folder"], "`data_dir` must be an existing folder"),
        (["--epochs", "0"], "Recipe: `epochs` must be an int in"),
        (["--learning-rate", "nan"], "Recipe: `learning_rate` must be a number"),
        (["--operator", "xor"], "`operator` must be one of"),
        (["--strides", "1,2"], "`strides` must be"),
        (["--validation-fraction", "0.99"], "`validation_fraction` must"),
        (["--blocks", "1", "--width", "0.5,1"], "`width` must"),
        (["--blocks", "1", "--mutation-span", "0.5,0.1"], "`end` must be greater than `start`"),
        (["--depth-span", "0.5"], "`depth_span` must be two shares"),
        (["--drop-blocks", "1"], "cannot be depth augmentation"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main([*TRAIN, "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("saaug: ") and message in error and error.count("\n") == 1
    assert not out.exists()


def backend_error(name, text):
    import tensorflow as tf

    return getattr(tf.errors, name)(None, None, text)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: zipfile.BadZipFile("Bad CRC-32 for file 'x'"), "damaged data: Bad CRC-32"),
        (lambda: zlib.error("Error -3 while decompressing data"), "damaged data: Error -3"),
        (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "can't decode byte 0xff"),
        (lambda: EOFError(), "damaged data: EOFError"),
        (lambda: struct.error("unpack requires a buffer of 4 bytes"), "damaged data: unpack requires"),
        (lambda: pickle.UnpicklingError("truncated"), "damaged data: truncated"),
        (lambda: MemoryError(), "out of memory; a smaller batch"),
        (lambda: np.linalg.LinAlgError("Singular matrix"), "Singular matrix"),
        (lambda: RecursionError("maximum recursion depth exceeded"), "nested too deeply: maximum recursion"),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (lambda: ZeroDivisionError("division by zero"), "division by zero"),
        (lambda: RuntimeError("the search cannot go on"), "the search cannot go on"),
        (
            lambda: backend_error("ResourceExhaustedError", "OOM when allocating tensor with shape[9,9]"),
            "out of memory; a smaller",
        ),
        (
            lambda: backend_error(
                "InvalidArgumentError",
                "Graph execution error:\n\nDetected at node x defined at (most recent call "
                'last):\n  File "a.py", line 1, in f\n\nReceived a label value of 200 which is outside [0, 100).\n\t '
                "[[{{node x}}]] "
                "[Op:__inference_1]",
            ),
            "saaug: Received a label value of 200 which is outside [0, 100).\n",
        ),
    ],
)
def test_foreseeable_failures_are_one_line(make, message, monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise make()

    monkeypatch.setattr(datasets, "load", fail)
    assert cli.main([*TRAIN, "--blocks", "1", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("saaug: ") and message in error and error.count("\n") == 1 and len(error) < 700
    with pytest.raises(type(make())):
        cli.main([*TRAIN, "--blocks", "1", "--out", str(tmp_path / "out"), "--traceback"])


def test_a_mistake_in_the_program_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load", lambda *_, **__: {}["none"])
    with pytest.raises(KeyError):
        cli.main([*TRAIN, "--blocks", "1", "--out", str(tmp_path / "out")])


def test_an_unwritable_folder_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main([*TRAIN, "--blocks", "1", "--out", str(tmp_path / "file" / "out")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_strange_words_are_argparse_errors(capsys):
    for words in (["--strides", "1,x"], ["--width", "wide"], ["--direct", "--augment"], ["--epoch", "x"]):
        with pytest.raises(SystemExit) as caught:
            cli.main([*TRAIN, "--out", "out", *words])
        assert caught.value.code == 2
    assert "whole numbers separated by commas, not '1,x'" in capsys.readouterr().err


SMALL = ["--blocks", "1", "--width-multiplier", "0.25", "--batch-size", "256", "--learning-rate", "0.05"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a run of two epochs, and of the same run that stopped after one and went on."""
    folder = tmp_path_factory.mktemp("cli")
    words = [*TRAIN, *SMALL, "--epochs", "2", "--width", "1,1.5", "--expand", "1,1.5", "--json"]
    whole = saaug(*words, "--out", folder / "whole")
    assert whole.returncode == 0, whole.stderr
    return folder, words, whole


def test_train_writes_its_folder_and_reports(trained):
    folder, _, whole = trained
    result = json.loads(whole.stdout)
    names = {path.name for path in (folder / "whole").iterdir()}
    assert {"target.keras", "recipe.json", "history.json", "history.csv", "result.json"} <= names
    assert not [name for name in names if name.startswith(("checkpoint", "."))]
    history = json.loads((folder / "whole" / "history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2]
    assert {"target_loss", "val_accuracy"} <= set(history[0]) and history[0]["augmented_loss"] > 0
    assert 0 <= result["val_accuracy"] <= 1 and result["images_per_second"] > 0
    lines = [line for line in whole.stderr.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and "img/s" in lines[0] and lines[1].endswith("0 s left")
    assert whole.stderr.splitlines() == lines, "start-up noise"


def test_a_killed_run_goes_on_to_the_same_numbers(trained):
    folder, words, whole = trained
    code = (
        "import os, sys\nfrom saaug_keras import recipes\nfrom saaug_keras.cli import main, train\n"
        "make = train.make_reporter\n"
        "def killing(recipe, args):\n"
        "    reporter = make(recipe, args)\n"
        "    reporter.on_train_batch_end = lambda batch, logs=None: "
        "reporter.epoch == 1 and batch == 1 and os.kill(os.getpid(), 9)\n"
        "    reporter.on_epoch_end = lambda epoch, logs=None: None\n"
        "    return reporter\n"
        "train.make_reporter = killing\nmain(sys.argv[1:])"
    )
    out = folder / "killed"
    done = subprocess.run([sys.executable, "-c", code, *words, "--out", str(out)], capture_output=True, timeout=300)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    refused = saaug(*words, "--out", out)
    assert refused.returncode == 2 and "--resume" in refused.stderr and "--overwrite" in refused.stderr
    resumed = saaug(*words, "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 1/2" not in resumed.stderr and "epoch 2/2" in resumed.stderr
    numbers = ("loss", "target_loss", "augmented_loss", "accuracy", "val_loss", "val_accuracy")
    once, twice = (json.loads((folder / name / "history.json").read_text()) for name in ("whole", "killed"))
    for first, second in zip(once, twice, strict=True):
        assert {key: first[key] for key in numbers} == pytest.approx({key: second[key] for key in numbers}, rel=1e-5)


def test_resume_of_another_recipe_is_refused(trained, capsys):
    folder, words, _ = trained
    assert cli.main([*words, "--seed", "9", "--out", str(folder / "whole"), "--resume"]) == 2
    assert "another recipe" in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(trained):
    """The run's network in both flavours."""
    folder, _, _ = trained
    for flavour in ("builtin", "custom"):
        words = ["export", str(folder / "whole"), "--flavour", flavour, "--name", "net", "--dataset", "digits"]
        assert cli.main([*words, "--count", "64", "--out", str(folder / flavour), "--evaluate"]) == 0
    return folder


@pytest.mark.parametrize("flavour", ["builtin", "custom"])
def test_export_and_run_agree_on_the_accuracy(flavour, exported, capsys):
    report = json.loads((exported / flavour / "report.json").read_text())
    assert report["flavour"] == flavour and report["agreement"] >= 0.95  # two epochs leave many near ties
    model = exported / flavour / "net.tflite"
    assert report["model_bytes"] == model.stat().st_size
    assert cli.main(["run", str(model), "--dataset", "digits", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == report["tflm_accuracy"] and result["images"] == 359
    assert cli.main(["run", str(model), "--dataset", "digits", "--part", "validation", "--limit", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20


def test_run_names_the_class_of_image_files(exported, tmp_path, capsys):
    import tensorflow as tf

    import tflm_export

    data = datasets.load("digits")
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(tf.io.encode_png(data.x_test[index]).numpy())
    (tmp_path / "names").write_text("\n".join(f"digit {digit}" for digit in range(10)))
    model = str(exported / "builtin" / "net.tflite")
    words = ["run", model, "--images", str(tmp_path), "--class-names", str(tmp_path / "names"), "--json"]
    assert cli.main(words) == 0
    expected = tflm_export.Interpreter(model).classify(data.x_test[:3])
    found = json.loads(capsys.readouterr().out)["classes"]
    assert found == {f"{index}.png": f"digit {digit}" for index, digit in enumerate(expected)}


def test_export_and_run_refuse_bad_input_and_write_nothing(exported, tmp_path, capsys):
    (tmp_path / "broken.keras").write_bytes(b"PK but no zip")
    (tmp_path / "broken.tflite").write_bytes(b"0123TFLX" * 9)
    whole, out = str(exported / "whole"), str(tmp_path / "out")
    export = ["export", whole, "--out", out, "--dataset", "digits"]
    for words, message in (
        (["export", str(tmp_path), *export[2:]], "MODEL must be a .keras file or the folder of a finished"),
        (["export", str(tmp_path / "broken.keras"), *export[2:]], "which is damaged"),
        ([*export[:4], "--images", str(tmp_path), "--evaluate"], "`--evaluate` must come with --dataset"),
        ([*export, "--count", "0"], "`--count` must be an int"),
        ([*export, "--flash-bytes", "100"], "does not fit"),
        ([*export, "--name", "a/b"], "`name` must be"),
        ([*export[:5], "cifar10", "--data", str(tmp_path / "none")], "`data_dir` must be an existing folder"),
        (["run", str(tmp_path / "none.tflite"), "--dataset", "digits"], "MODEL must be a .tflite file"),
        (["run", str(tmp_path / "broken.tflite"), "--dataset", "digits"], "must be a .tflite flatbuffer"),
        (["run", str(exported / "builtin" / "net.tflite"), "--images", str(tmp_path / "no")], "must hold images"),
    ):
        assert cli.main(words) == 2, words
        error = capsys.readouterr().err
        assert message in error and error.startswith("saaug: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_damaged_keras_files_are_one_line(exported, tmp_path, capsys):
    """Members that are no JSON, no text, nested without end, no weights; flipped bytes and cuts anywhere."""
    whole = (exported / "whole" / "target.keras").read_bytes()
    cases = []
    for name, content in (
        ("config.json", b"{"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"[]"),
        ("config.json", b'{"class_name": "Functional"}'),
        ("config.json", None),
        ("metadata.json", b"{"),
        ("model.weights.h5", b"no HDF5"),
        ("model.weights.h5", b""),
        ("model.weights.h5", None),
    ):
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(changed, "w") as new:
            for info in old.infolist():
                if info.filename != name:
                    new.writestr(info.filename, old.read(info))
                elif content is not None:
                    new.writestr(name, content)
        cases.append(changed.getvalue())
    rng = np.random.default_rng(3)
    for _ in range(12):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        cases += [bytes(flipped), whole[: rng.integers(len(whole))]]
    refused = 0
    for data in cases:
        (tmp_path / "bad.keras").write_bytes(data)
        words = ["export", str(tmp_path / "bad.keras"), "--out", str(tmp_path / "out"), "--dataset", "digits", "--count", "8"]
        if cli.main(words) == 0:  # a byte that nothing checks
            shutil.rmtree(tmp_path / "out")
            capsys.readouterr()
            continue
        refused += 1
        error = capsys.readouterr().err
        assert error.startswith("saaug: ") and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert refused >= 10 + 12


def test_demo_train_writes_its_report(tmp_path, capsys):
    assert demo_train.main(["--out", str(tmp_path / "demo"), "--epochs", "3"]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    keys = {"float_accuracy", "tflm_accuracy", "agreement", "flash_bytes", "ram_bytes"}
    assert set(report) == {"direct", "augmented", "seconds"} and report["seconds"] > 0
    for arm in ("direct", "augmented"):
        assert keys <= set(report[arm]) and report[arm]["flash_bytes"] > report[arm]["parameters"]
        assert report[arm]["float_accuracy"] > 0.5 and report[arm]["agreement"] > 0.97
        history = json.loads((tmp_path / "demo" / arm / "history.json").read_text())
        assert all(("augmented_loss" in row) == (arm == "augmented") for row in history)
    table = capsys.readouterr().out
    assert "direct" in table and f"{report['augmented']['flash_bytes']:,}" in table


WITHOUT_TENSORFLOW = """
import sys

class NotThere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tf_keras", "tensorflow_probability"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotThere())
from saaug_keras import cli

for words in (
    "train --backbone mobilenetv2-tiny --blocks 1 --dataset digits --operator shift --epochs 1 --direct --out run",
    "export run --dataset digits --flavour custom --name net --out exported",
    "run exported/net.tflite --dataset digits --limit 5",
):
    assert cli.main(words.split()) == 0, words
"""


def test_the_command_line_trains_and_exports_on_jax_without_tensorflow(tmp_path):
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "target.keras").is_file() and (tmp_path / "exported" / "report.json").is_file()


def test_options_are_the_fields_of_what_they_make():
    """Their defaults, too: a command without options makes the dataclass without arguments."""
    parser = make_parser()
    args = parser.parse_args(["search", "--dataset", "digits", "--dry-run"])
    assert {"target", "core"} < set(vars(args))
    assert search.make_plan(args) == Plan(target="tflm")
    args = parser.parse_args(["train", "--backbone", "tiny32-44k", "--dataset", "digits", "--out", "x"])
    assert train.make_recipe(args) == Recipe("tiny32-44k")
    no_options = {"network", "operator_policy", "layer_options", "recalibrate_batches", "segmentation", "evaluate_every"}
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert fields - set(vars(args)) == no_options
    plan_fields = {field.name for field in dataclasses.fields(Plan)}
    assert plan_fields - {*search.LIMITS, *search.SEARCH, *search.SUPERNET} == {"recipe", "target", "core"}
    words = "--mutation-span 0.2,0.6 --no-remap --drop-blocks 1,2 --width-until 0.5 --expand-until 0.75"
    words += " --no-data-augmentation --direct"
    args = parser.parse_args(["train", "--backbone", "tiny32-44k", "--dataset", "digits", "--out", "x", *words.split()])
    assert train.make_recipe(args) == Recipe(
        "tiny32-44k",
        mutation_span=(0.2, 0.6),
        remap=False,
        drop_blocks=(1, 2),
        width_until=0.5,
        expand_until=0.75,
        augment_data=False,
        aug_loss_weight=0.0,
    )
