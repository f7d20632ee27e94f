"""The documentation's code runs: all of a page in one process and one folder, Python and shell in their order."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from saaug_keras import cli
from tflm_export import emulator

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "shell")


def joined_lines(body):
    """The lines of a shell block, continuation lines joined."""
    return [line.removeprefix("$ ") for line in body.replace("\\\n", " ").splitlines()]


def commands(path):
    """(line, words) of every `saaug` command in a shell block."""
    for language, body in BLOCK.findall(path.read_text()):
        for line in joined_lines(body) if language in SHELLS else ():
            words = shlex.split(line, comments=True)
            if words[:1] == ["saaug"]:
                yield line, words[1:]


def is_absent(words):
    """Whether a command needs a data set that does not come with the package, or an emulator that is not there."""
    if words[0] == "profile":
        return any(emulator.missing(emulator.CORES[core]) for core in words[words.index("--core") + 1].split(","))
    return any(word.startswith(("camvid", "cifar")) for word in words)


def script_of(path):
    """A document's code in its order: Python as it stands, `saaug` commands, and what begins with cd for the shell."""
    lines = []
    for language, body in BLOCK.findall(path.read_text()):
        if language == "python":
            lines.append(body)
        elif language in SHELLS:
            for line in joined_lines(body):
                words = shlex.split(line, comments=True)
                if words[:1] == ["saaug"] and not is_absent(words[1:]):
                    lines.append(f"from saaug_keras import cli\nassert cli.main({words[1:]!r}) == 0, {line!r}\n")
                elif words[:1] == ["cd"] and shutil.which("cc"):
                    lines.append(f"import subprocess\nsubprocess.run({line!r}, shell=True, check=True)\n")
    return "\n".join(lines)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if script_of(path)], ids=lambda path: path.name)
def test_the_code_of_a_page_runs_in_its_order(path, tmp_path):
    (tmp_path / "page.py").write_text(script_of(path))
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_shell_commands_are_accepted(path, capsys):
    parser = cli.make_parser()
    for line, words in commands(path):
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"{path.name}: `{line}`: {capsys.readouterr().err}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_and_make_targets_exist(path):
    text = path.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^(?:\$ )?make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, f"{path.name} names `make {target}`"
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (path.parent / link).exists(), f"{path.name} links to {link}"
