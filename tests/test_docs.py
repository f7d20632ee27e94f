"""docs/api.md is what docs/build_api.py prints, and holds every public name. The code of the guides: test_readme.py."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()


def test_the_api_page_is_what_its_generator_prints():
    done = subprocess.run([sys.executable, ROOT / "docs" / "build_api.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PAGE, "run: python docs/build_api.py > docs/api.md"


@pytest.mark.parametrize("package", ["saaug_keras.layers", "saaug_keras.search", "saaug_keras.study", "tflm_export"])
def test_the_api_page_has_every_name_of_a_package(package):
    section = re.search(rf"^## {package}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    names = re.findall(r'^__all__ = (.*?)$|"(\w+)"', (ROOT / package.replace(".", "/") / "__init__.py").read_text())
    assert names and set(re.findall(r"^### (\w+)$", section, re.MULTILINE))


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_lines_have_at_most_120_characters(path):
    assert [line for line in path.read_text().splitlines() if len(line) > 120] == []
