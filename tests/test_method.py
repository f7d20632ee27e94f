"""docs/method.md names a test for every section of the method, and each named test exists."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text()


def test_every_section_names_a_test():
    for section in TEXT.split("\n## ")[1:]:
        assert re.search(r"`test_\w+\.py", section), section.splitlines()[0]


def test_every_named_test_exists():
    for file, function in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", TEXT):
        path = ROOT / "tests" / file
        assert path.exists(), file
        names = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert not function or function in names, f"{file}::{function}"
