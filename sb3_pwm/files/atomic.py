"""Files that are put in place whole or not at all."""

import contextlib
import errno
import glob
import io
import os
import pathlib
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

ABANDONED_SECONDS = 3_600.0  # a part that has not grown for so long belongs to a process that was killed
NAME_LENGTH = 200  # of a file's name in that of its part; file systems allow 255 bytes

Path = str | pathlib.Path


@contextlib.contextmanager
def whole_file(path: Path, suffix: str = "") -> Iterator[pathlib.Path]:
    """Give the path of a new file beside ``path``, which replaces ``path`` when the context ends without an error.

    A kill, a full disk or an error leaves at ``path`` what was there before. An error removes the new file; after a
    kill a hidden file ``.NAME.*.part`` may stay, which the next write an hour later removes. The disk needs room for
    the old file and the new one.

    :param path: file to write; missing folders are made, links are followed, permissions of an old file are kept.
    :param suffix: end of the new file's name, for writers that go by it.
    :raises OSError: if it cannot be written.
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target  # such as /dev/stdout
        return
    check_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{target.name[:NAME_LENGTH]}."
    remove_abandoned(target.parent, stem)
    part = target.with_name(f"{stem}{secrets.token_hex(4)}.part{suffix}")
    try:
        yield part
        if target.exists():
            shutil.copymode(target, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error.__context__, KeyboardInterrupt):  # torch ends its file all the same, and fails
            raise error.__context__ from error
        raise
    sync_folder(target.parent)


@contextlib.contextmanager
def opened_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a new binary file, open for writing and reading, that replaces ``path``; see :func:`whole_file`."""
    with whole_file(path) as part, part.open("wb+") as file:
        yield file


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; see :func:`whole_file`."""
    with opened_whole(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, line ends as they are; see :func:`whole_file`."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def opened_saved(path: Path | io.BufferedIOBase, suffix: str) -> Iterator[Any]:
    """Give the file that SB3's ``save`` writes for a path, see :func:`opened_whole`; an open file is left as it is."""
    if isinstance(path, str | pathlib.Path):
        with opened_whole(saved_path(path, suffix)) as file:
            yield file
    else:
        from stable_baselines3.common.save_util import open_path  # here, since it imports torch

        yield open_path(path, "w")


def saved_path(path: Path, suffix: str) -> pathlib.Path:
    """Return the file that SB3 writes for a path: with a suffix if it has none, and beside a folder of that name."""
    path = pathlib.Path(path)
    if path.suffix == "":
        path = pathlib.Path(f"{path}.{suffix}")
    if path.is_dir():
        warnings.warn(f"{path} is a folder; {path}_2 is written instead", stacklevel=3)
        return saved_path(f"{path}_2", suffix)
    return path


def check_writable(target: pathlib.Path) -> None:
    """Refuse what could be replaced but not written: a folder, and a file that is read-only.

    :raises OSError: if it is one.
    """
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(target))
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "is read-only", str(target))


def remove_abandoned(folder: pathlib.Path, stem: str) -> None:
    """Remove the parts that killed processes have left of a file."""
    for part in folder.glob(f"{glob.escape(stem)}*.part*"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()


def sync_folder(folder: pathlib.Path) -> None:
    """Bring a folder's new entries to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
