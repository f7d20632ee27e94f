"""Imports run one way: every module may import only what stands above it in ORDER, and what its row allows."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# From the bottom of the stack to the top. A package stands for all its modules. A new module must choose its place.
ORDER = [
    "saaug_keras._version",
    "saaug_keras",
    "saaug_keras._validate",
    "saaug_keras._errors",
    "saaug_keras._files",
    "saaug_keras._page",
    "saaug_keras._backend",
    "saaug_keras._budget",
    "saaug_keras._checkpoint",
    "saaug_keras._sums",
    "saaug_keras.ops",
    "saaug_keras.remap",
    "saaug_keras.operators",
    "saaug_keras.layers",
    "saaug_keras.backbones",
    "saaug_keras._arena",
    "saaug_keras._scratch",
    "saaug_keras.memory",
    "saaug_keras.cost",
    "saaug_keras.devices",
    "saaug_keras._images",
    "saaug_keras.datasets",
    "saaug_keras.augmentation",
    "saaug_keras.training",
    "saaug_keras.callbacks",
    "saaug_keras.device_training",
    "saaug_keras.recipes",
    "saaug_keras.baselines",
    "saaug_keras.search",
    "saaug_keras.study",
    "tflm_export",
    "saaug_keras.zoo",
    "saaug_keras.cli",
    "saaug_keras.demo",
    "saaug_keras.demo_train",
]

# Libraries that only these modules import.
ONLY_IN = {
    "keras_tuner": {"saaug_keras.search"},
    "tensorflow_probability": {"saaug_keras.remap"},
    "tensorflow_model_optimization": {"saaug_keras.baselines"},
    "tf_keras": {"saaug_keras.baselines"},
}
# tflm_export stands on saaug_keras; nothing in saaug_keras imports it but those that use both.
MAY_EXPORT = {"saaug_keras.cli", "saaug_keras.demo", "saaug_keras.demo_train", "saaug_keras.zoo", "tflm_export"}


def place(module):
    """The row of ORDER that a dotted module name belongs to, or None."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        row = ".".join(parts[:length])
        if row in ORDER and (row != "saaug_keras" or length == len(parts)):
            return row
    return None


def modules():
    for top in ("saaug_keras", "tflm_export"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imports(module, file):
    """Dotted names that a file imports anywhere; `from package import name` gives the module if there is one."""
    known = {name for name, _ in modules()}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


@pytest.mark.parametrize("module, file", [pytest.param(*pair, id=pair[0]) for pair in modules()])
def test_imports_run_one_way(module, file):
    row = place(module)
    assert row is not None, f"{module} has no place in ORDER; choose one"
    for imported in imports(module, file):
        library = imported.split(".")[0]
        if library in ("saaug_keras", "tflm_export"):
            other = place(imported)
            assert other is not None, f"{module} imports {imported}, which has no place in ORDER"
            assert ORDER.index(other) <= ORDER.index(row), f"{module} imports {imported}, which stands above it"
            assert other != "tflm_export" or row in MAY_EXPORT, f"{module} imports {imported}"
        elif library in ONLY_IN:
            assert row in ONLY_IN[library], f"{module} imports {library}; only {ONLY_IN[library]} may"
        assert not imported.startswith(("keras.src", "tensorflow.keras")), f"{module} imports {imported}"


def test_no_row_is_left_over():
    used = {place(module) for module, _ in modules()}
    assert [row for row in ORDER if row not in used] == []


def test_exceptions_are_caught_by_name():
    for module, file in modules():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                broad = caught == "" or "Exception" in caught.replace("(", " ").replace(",", " ").split()
                reraised = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
                assert not broad or reraised, f"{module}:{node.lineno} catches everything"


def test_one_module_asks_for_the_backend():
    questions = ("backend.backend", "default_backend")
    asking = [module for module, file in modules() if any(question in file.read_text() for question in questions)]
    assert asking == ["saaug_keras._backend"]
