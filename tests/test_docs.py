"""docs/api.md is what docs/build_api.py prints, and holds every public name. The code of the guides: test_readme.py."""

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
PAGE = (ROOT / "docs" / "api.md").read_text()
SECTIONS = dict(re.findall(r"^## ([\w.]+)$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def names_of(module):
    return set(re.findall(r"^### (\w+)$", SECTIONS[module], re.MULTILINE))


def test_the_api_page_is_what_its_generator_prints():
    done = subprocess.run([sys.executable, ROOT / "docs" / "build_api.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PAGE, "run: python docs/build_api.py > docs/api.md"


def test_the_api_page_has_the_exported_names():
    for name, home in saaug_keras._HOME.items():
        assert not home or name in names_of(f"saaug_keras.{home}"), name
    assert set(saaug_keras.search.__all__) == names_of("saaug_keras.search")
    assert set(tflm_export.__all__) == names_of("tflm_export")


def test_the_api_page_says_what_each_name_is():
    for module, section in SECTIONS.items():
        for name, text in re.findall(r"^### (\w+)\n\n(.*?)(?=\n\n|\Z)", section, re.MULTILINE | re.DOTALL):
            assert len(text) > len(name) + 12, f"{module}.{name} has no docstring"


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
