"""Zip files, of which models, tensors and arrays are made: every member is checked before it is used."""

import contextlib
import io
import pathlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from stable_baselines3.common.save_util import open_path

from sb3_pwm.files.atomic import Path

NO_FILE_NAME = "the open file"


@contextlib.contextmanager
def opened(path: Path | io.BufferedIOBase, suffix: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open a file as SB3 does, with or without its suffix, and give it with a name for messages.

    :param path: file, or an open file, which stays open.
    :param suffix: to try if there is no file of that name.
    :raises FileNotFoundError: if there is none.
    """
    file = open_path(path, "r", suffix=suffix)
    if not isinstance(path, str | pathlib.Path):
        yield file, NO_FILE_NAME
        return
    with file:
        yield file, str(getattr(file, "name", path))  # with its suffix


def check_archive(file: BinaryIO, name: str) -> None:
    """Compare all members of a zip file with their checksums.

    :param file: the open file; its position stays.
    :param name: of the file, for messages.
    :raises ValueError: if it is not a zip file, or a member is damaged.
    """
    position = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # of a damaged header, which may ask for anything
        raise ValueError(f"{name} is damaged or no zip file: {error or type(error).__name__}") from error
    if damaged is not None:
        raise ValueError(f"{name} is damaged: the checksum of its part {damaged!r} is wrong")
    file.seek(position)
