"""The site builds without a warning and has every public name. The code of the guides: test_readme.py."""

import importlib
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import saaug_keras
import saaug_keras.search
import tflm_export
from saaug_keras import devices

ROOT = pathlib.Path(__file__).resolve().parents[1]
API = sorted((ROOT / "docs" / "api").glob("*.md"))
# Page of every module; a directive with options of its own is that of a single name.
DIRECTIVE = re.compile(r"^::: ([\w.]+)$(?!\n    options)", re.MULTILINE)
MODULES = {name: path.stem for path in API for name in DIRECTIVE.findall(path.read_text())}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make site` does it."""
    out = tmp_path_factory.mktemp("site")
    # Not --quiet, with which warnings do not count.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--config-file", str(ROOT / "mkdocs.yml")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr + done.stdout
    return out


def public_names(module):
    """What a module lists as its own, or else the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return module.__all__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isroutine(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("module", MODULES)
def test_the_api_pages_have_every_public_name(site, module):
    page = (site / "api" / f"{MODULES[module]}.html").read_text()
    names = public_names(importlib.import_module(module))
    shown = set(re.findall(rf'id="{re.escape(module)}\.([\w.]+)"', page))
    # A name of the module that defines it is that module for who reads the sources.
    assert names and [name for name in names if not {name, f"{name}.{name}"} & shown] == []


def test_the_api_pages_have_the_exported_names(site):
    pages = "".join((site / "api" / f"{path.stem}.html").read_text() for path in API)
    names = [f"{home}.{name}" if home else name for name, home in saaug_keras._HOME.items()]
    names += [f"search.{name}" for name in saaug_keras.search.__all__]
    names = [f"saaug_keras.{name}" for name in names] + [f"tflm_export.{name}" for name in tflm_export.__all__]
    assert [name for name in names if f'id="{name}"' not in pages] == []


def test_no_page_of_the_site_fetches_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert re.findall(r'<(?:link|script|img)[^>]*(?:href|src)="?(?:https?:)?//[^">]*', page.read_text()) == [], page.name


def test_the_tutorial_runs_and_is_stored_without_outputs(tmp_path):
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    (tmp_path / "tutorial.py").write_text("\n\n".join("".join(cell["source"]) for cell in code))
    done = subprocess.run([sys.executable, "tutorial.py"], cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "tensors are equal byte for byte" in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_lines_are_no_longer_than_those_of_the_code(path):
    assert [line for line in path.read_text().splitlines() if len(line) > 128] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_named_tests_exist(path):
    for name in re.findall(r"`(?:tests/)?((?:test_\w+|contract)\.py)", path.read_text()):
        assert (ROOT / "tests" / name).exists(), name


def test_the_guide_to_searching_names_every_device():
    text = (ROOT / "docs" / "search-for-a-device.md").read_text()
    assert [device.name for device in devices.DEVICES if device.name not in text] == []
