"""`saaug search` on digits at its smallest: from the SuperNet to the exported project."""

import json
import re

import pytest

from saaug_keras import cost, datasets, memory
from saaug_keras.backbones import NetSpec
from saaug_keras.cli import main, make_parser, search
from saaug_keras.search.pipeline import Search

SMALLEST = [
    "search",
    "--dataset",
    "digits",
    "--device",
    "rp2040",
    "--sram",
    "4k",
    "--flash",
    "28k",
    "--widths",
    "0.5",
    "--resolutions",
    "8",
    "--subnet-trials",
    "6",
    "--target-trials",
    "4",
    "--population-size",
    "3",
    "--top",
    "2",
    "--supernet-epochs",
    "2",
    "--supernet-rate",
    "0.05",
    "--adapt-epochs",
    "1",
    "--epochs",
    "2",
    "--batch-size",
    "64",
    "--width",
    "1,1.6",
    "--expand",
    "1",
    "--no-data-augmentation",
    "--validation-fraction",
    "0.3",
    "--target",
    "c",
    "--exported-images",
    "100",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "out"
    assert main([*SMALLEST, "--out", str(out)]) == 0
    return out


def test_a_search_ends_with_a_network_within_the_limits(folder):
    report = json.loads((folder / "report.json").read_text())
    spec = NetSpec.from_dict(json.loads((folder / "target.json").read_text()))
    found = cost.estimate(spec, target="c", core="m0")
    assert found.ram_bytes <= 4 * 1024 and found.flash_bytes <= 28 * 1024
    assert {layer.operator for layer in found.layers} <= {"shift", "none"}
    assert len(report["history"]) <= 10 and {row["stage"] for row in report["history"]} == {1, 2}
    for key in ("inherited_accuracy", "validation_accuracy", "test_accuracy"):
        assert 0.1 < report[key] <= 1
    assert report["costs"]["ram_bytes"] == found.ram_bytes
    assert (folder / "training" / "target.keras").exists()
    assert (folder / "firmware" / "network.c").exists()
    assert report["deployment"]["tflm_accuracy"] > 0.1


def test_the_page_needs_nothing_else_and_tells_the_whole(folder):
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=|url\(|<script|@import", page)
    assert len(page) < 1_000_000
    for text in (
        "Choice of width and resolution",
        "History",
        "Accuracy against cost",
        "RAM, bytes",
        "rejected before they cost a trial",
        "The chosen network",
        "Costs, operator and bit width apart",
        "As deployed, on TFLite Micro",
        "inherited weights",
    ):
        assert text in page, text
    assert page.count("<svg") >= 6
    # Every drawn number is a number.
    assert "nan" not in page.lower().replace("explanation", "") and "inf " not in page


def test_a_finished_search_resumes_to_the_same_result_at_once(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    report = json.loads((folder / "report.json").read_text())
    capsys.readouterr()
    assert main([*SMALLEST, "--out", str(folder), "--resume", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["test_accuracy"] == report["test_accuracy"]
    assert printed["ram_bytes"] == report["costs"]["ram_bytes"]
    again = json.loads((folder / "report.json").read_text())
    assert again["history"] == report["history"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")} == before


def test_the_export_takes_what_the_search_said_and_the_limits_allow(folder):
    """The export was given the same limits: it would have been refused. RAM is planned alike, flash within the tolerance."""
    report = json.loads((folder / "report.json").read_text())
    deployed, costs = report["deployment"], report["costs"]
    assert deployed["ram_bytes"] == costs["ram_bytes"] <= 4 * 1024
    assert deployed["flash_bytes"] == pytest.approx(costs["flash_bytes"], rel=memory.TOLERANCE["c"])
    assert deployed["flash_bytes"] <= 28 * 1024 and report["limits"]["flash_bytes"] == int(28 * 1024 * 0.99)
    assert "target c on core m0" in (folder / "report.html").read_text()


def test_a_search_of_an_earlier_version_of_the_recipe_goes_on(folder, tmp_path):
    """Its plan lacks the fields that came later, and means their defaults."""
    args = make_parser().parse_args([*SMALLEST, "--out", str(tmp_path)])
    data = datasets.load("digits")
    written = json.loads((folder / "plan.json").read_text())
    for name in ("start", "teacher", "teacher_weight", "decay"):
        del written["plan"]["recipe"][name]
    (tmp_path / "plan.json").write_text(json.dumps(written))
    Search(search.make_plan(args), data, tmp_path).claim(resume=True)
    del written["plan"]["recipe"]["epochs"]  # at its default, which is not what was asked for
    (tmp_path / "plan.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="holds another search .epochs: 30 there"):
        Search(search.make_plan(args), data, tmp_path).claim(resume=True)


def test_a_folder_of_another_search_is_refused(folder, capsys):
    assert main([*SMALLEST, "--out", str(folder)]) == 2
    assert "saaug: Search: `out` must be a new folder; pass --resume" in capsys.readouterr().err
    assert main([*SMALLEST, "--out", str(folder), "--resume", "--seed", "1"]) == 2
    assert "holds another search (seed: 0 there, 1 here)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param(["--sram", "500"], "RAM, bytes: the limit is 500, the smallest network needs", id="limit"),
        pytest.param(["--device", "stm32f999"], "`name` must be one of 'ch32v003'", id="device"),
        pytest.param(["--operators", "shiftadd"], "`operators` must be one of 'adder', 'binary', 'conv'", id="operator"),
        pytest.param(["--supernet-rate", "nan"], "Plan: `supernet_rate` must be a number in", id="rate"),
        pytest.param(["--minimize", "watts"], "must be one of 'energy_mj'", id="cost"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(options, message, tmp_path, capsys):
    arguments = [a for a in SMALLEST if a != "rp2040" and a != "--device"] if "--device" in options else SMALLEST
    assert main([*arguments, *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("saaug: ") and message in error
    assert not (tmp_path / "out" / "supernet").exists()


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_be_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALLEST, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Stages of 1-2, 1-3 and 1-2 blocks of 2 kernels and 3 expansions each.
    assert found["networks"] == (6 + 6**2) * (6 + 6**2 + 6**3) * (6 + 6**2)
    assert 0 < found["feasible_share"] <= 1
    assert found["seconds"] > found["supernet_seconds"] > 0
    assert not list(tmp_path.iterdir())
