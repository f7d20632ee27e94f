"""The documentation's code runs: Python blocks of a file one after another, shell blocks line by line."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from saaug_keras import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path, *languages):
    return [body for language, body in BLOCK.findall(path.read_text()) if language in languages]


def commands(path):
    """(line, words) of every `saaug` command in a shell block, continuation lines joined."""
    for body in blocks(path, "", "sh", "bash", "shell"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["saaug"]:
                yield line, words[1:]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path, "python")], ids=lambda path: path.name)
def test_python_blocks_run_in_order(path, tmp_path):
    code = "\n\n".join(blocks(path, "python"))
    (tmp_path / "blocks.py").write_text(code)
    done = subprocess.run([sys.executable, "blocks.py"], cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_shell_commands_are_accepted_and_those_on_digits_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parser = cli.make_parser()
    for line, words in commands(path):
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"{path.name}: `{line}`: {capsys.readouterr().err}")
        if "digits" in words:
            assert cli.main(words) == 0, f"{path.name}: `{line}`: {capsys.readouterr().err}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_and_make_targets_exist(path):
    text = path.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^(?:\$ )?make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, f"{path.name} names `make {target}`"
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"
