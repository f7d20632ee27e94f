"""Nothing half-written is ever left."""

import os
import signal
import subprocess
import sys
from concurrent import futures

import pytest

from saaug_keras import _files


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_write_atomic_makes_folders_and_replaces(tmp_path):
    path = _files.write_atomic(tmp_path / "new" / "file.txt", "old")
    assert _files.write_atomic(path, b"new") == path
    assert path.read_text() == "new" and listing(tmp_path) == ["new", "new/file.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("writer", ["write_atomic", "atomic_file"])
def test_a_failure_leaves_the_old_file_and_nothing_else(writer, tmp_path, monkeypatch):
    path = _files.write_atomic(tmp_path / "file.txt", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        if writer == "write_atomic":
            _files.write_atomic(path, "new")
        else:
            with _files.atomic_file(path) as aside:
                assert aside.suffix == ".txt"
                aside.write_text("new")
    assert path.read_text() == "old" and listing(tmp_path) == ["file.txt"]


def test_atomic_folder_appears_as_a_whole(tmp_path):
    with _files.atomic_folder(tmp_path / "a" / "out") as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "file").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert listing(tmp_path) == ["a", "a/out", "a/out/inner", "a/out/inner/file"]


def test_atomic_folder_keeps_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    (out / "file").write_text("old")
    with pytest.raises(KeyError), _files.atomic_folder(out) as aside:
        (aside / "file").write_text("new")
        raise KeyError
    assert (out / "file").read_text() == "old" and listing(tmp_path) == ["out", "out/file", "out/mine"]
    with _files.atomic_folder(out) as aside:
        (aside / "file").write_text("new")
    assert (out / "file").read_text() == "new" and (out / "mine").read_text() == "mine"
    assert listing(tmp_path) == ["out", "out/file", "out/mine"]


def test_atomic_folder_refuses_a_file(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(NotADirectoryError, match="a folder was expected"), _files.atomic_folder(tmp_path / "out"):
        pass


def test_a_folder_is_held_until_its_holder_ends_however(tmp_path):
    program = (
        "import sys, time\nfrom saaug_keras import _files\n"
        "with _files.only_process(sys.argv[1], ''):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="taken"), _files.only_process(tmp_path / "run", "taken"):
            pass
        holder.send_signal(signal.SIGKILL)
    with _files.only_process(tmp_path / "run", "taken"):
        assert listing(tmp_path / "run") == [".lock"]
    assert listing(tmp_path / "run") == []


def test_of_many_that_want_a_folder_one_at_a_time_has_it(tmp_path):
    """Also while its holders come and go, and the file of the lock with them."""
    inside, entered = [], 0

    def work():
        nonlocal entered
        for _ in range(300):
            try:
                with _files.only_process(tmp_path, "taken"):
                    inside.append(1)
                    assert len(inside) == 1
                    entered += 1
                    inside.pop()
            except BlockingIOError:
                pass

    with futures.ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(8)]:
            done.result()
    assert entered > 0


def test_what_killed_writers_left_aside_is_swept_and_nothing_else(tmp_path):
    ours = (".history.json.abcd_123", ".checkpoint-12.weights.h5.zzzzzzzz")
    others = (".history.json", ".history.json.abc", ".notes.txt.abcd_123", "history.json", ".lock", ".history.json.ABCD1234")
    for name in (*ours, *others):
        (tmp_path / name).write_text("")
    (tmp_path / ".target.keras.abcdefgh").mkdir()
    (tmp_path / ".target.keras.abcdefgh" / "target.keras").write_text("half")
    _files.sweep(tmp_path, "history.json", "checkpoint-*.weights.h5", "target.keras")
    assert listing(tmp_path) == sorted(others)
    _files.sweep(tmp_path / "none", "*")
