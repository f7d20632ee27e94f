"""What is installed, and that importing it is cheap."""

import configparser
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

import saaug_keras

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")


def run_python(code, cwd):
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_is_fast_and_does_not_load_tensorflow(tmp_path):
    code = (
        "import sys, time; start = time.perf_counter(); import saaug_keras; "
        "seconds = time.perf_counter() - start; print(seconds); "
        "print(*sorted({name.split('.')[0] for name in sys.modules} "
        "& {'tensorflow', 'keras', 'jax', 'numpy', 'keras_tuner', 'tensorflow_probability'}))"
    )
    attempts = [run_python(code, tmp_path) for _ in range(3)]  # the best of three: the machine may be busy
    assert min(float(attempt[0]) for attempt in attempts) < 0.1
    assert attempts[0][1:] == []


@pytest.mark.parametrize("name", saaug_keras.__all__)
def test_every_public_name_resolves(name):
    assert getattr(saaug_keras, name) is not None
    assert name in dir(saaug_keras)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ShiftConv4D'"):
        saaug_keras.ShiftConv4D  # noqa: B018


def test_names_are_explicit_sorted_and_each_has_a_home():
    assert saaug_keras.__all__ == sorted(saaug_keras.__all__)
    assert set(saaug_keras.__all__) == set(saaug_keras._HOME) | {"__version__"}


def test_package_list_is_the_folders_on_disk():
    listed = CONFIG["options"]["packages"].split()
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("saaug_keras", "tflm_export")
        for file in (ROOT / top).rglob("__init__.py")
    }
    if (ROOT / "zoo").is_dir():
        found.add("saaug_keras.zoo._data")
    assert sorted(listed) == sorted(found)


def test_zoo_folder_holds_data_only():
    assert not list((ROOT / "zoo").rglob("*.py"))


def test_version_is_one_in_code_and_changelog():
    assert re.fullmatch(r"\d+\.\d+\.\d+", saaug_keras.__version__)
    assert f"## {saaug_keras.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built from a copy so that the checkout stays as it is."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    done = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_installs_two_packages_and_their_data(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"saaug_keras", "tflm_export"}
    tracked = {
        file.relative_to(ROOT).as_posix()
        for top in ("saaug_keras", "tflm_export")
        for file in (ROOT / top).rglob("*")
        if file.is_file() and file.suffix in (".py", ".npz", ".h", ".c", ".cc", ".md", ".txt", ".ld", ".S", ".html")
    }
    assert tracked <= set(names), sorted(tracked - set(names))


def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = (
        f"import sys; sys.path = [entry for entry in sys.path if entry != {str(ROOT)!r}]; "
        f"sys.path.insert(0, {str(target)!r}); import saaug_keras, tflm_export; "
        "print(saaug_keras.__file__, tflm_export.__file__, len(saaug_keras.datasets.load('digits').x_test)); "
        "import importlib.util as u; print(u.find_spec('tests'), u.find_spec('zoo'))"
    )
    package, export, count, *others = run_python(code, tmp_path)
    assert package.startswith(str(target)) and export.startswith(str(target))
    assert int(count) > 300 and others == ["None", "None"]
