"""Writing files so that a reader never sees half of one: aside first, then renamed; and folders of one writer."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pathlib
import re
import shutil
import tempfile


def write_atomic(path, data: bytes | str) -> pathlib.Path:
    """Writes a file whole or not at all: a temporary file beside it, fsync, then a rename.

    Args:
        path: the file; its folder is made if it is missing. An existing file is replaced.
        data: bytes, or str written as UTF-8.
    Returns:
        `path` as a pathlib.Path.
    Raises:
        OSError: the folder cannot be made or written; `path` is as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except BaseException:
        pathlib.Path(aside).unlink(missing_ok=True)
        raise
    return path


@contextlib.contextmanager
def atomic_file(path):
    """Yields a path beside `path`, with its suffix, for a writer that wants a name; renamed to `path` on success.

    On an exception what was written is removed and `path` is as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        aside = folder / path.name
        yield aside
        os.replace(aside, path)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def atomic_folder(path, last=None):
    """Yields an empty folder beside `path` to build in; its files appear under `path` only if the block succeeds.

    A new folder is renamed into place as a whole. In a folder that exists, files of the same name are replaced one by
    one (each atomically) and others are left alone. On an exception nothing of the new is left and nothing of the old
    is lost.

    Args:
        path: the folder.
        last: name of a file that vouches for the others: in a folder that exists the old one is removed before any is
            replaced, and the new one comes after all, so that it never stands beside files of another time.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; a folder was expected. Choose another path or remove the file.")
    aside = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield aside
        os.chmod(aside, 0o777 & ~_umask())
        if not path.exists():
            os.replace(aside, path)
            return
        if last is not None:
            (path / last).unlink(missing_ok=True)
        for source in sorted(aside.rglob("*"), key=lambda found: (found == aside / str(last), found)):
            target = path / source.relative_to(aside)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(source, target)
    finally:
        if aside.exists():
            shutil.rmtree(aside)


@contextlib.contextmanager
def only_process(folder, refusal: str):
    """Holds a folder, made if missing, by a lock on its file `.lock`; the system lets go however the process ends.

    Raises:
        BlockingIOError: another process holds it; `refusal` is the message.
    """
    import fcntl  # not on every system, and needed to write alone

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    while True:
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BlockingIOError(refusal) from error
            try:
                held = os.path.samestat(os.fstat(lock.fileno()), path.stat())
            except FileNotFoundError:
                held = False
            if not held:
                continue  # its holder ended, and removed the file, between the two
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def sweep(folder, *names: str) -> None:
    """Removes what writers that were killed left aside in a folder that this process holds.

    Args:
        folder: looked at itself, not below; it need not exist.
        names: of the files that were to be written, as shell patterns; what else is there stays.
    """
    for path in pathlib.Path(folder).glob(".*"):
        aside = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", path.name)  # as tempfile names them
        if aside and any(fnmatch.fnmatchcase(aside[1], name) for name in names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
