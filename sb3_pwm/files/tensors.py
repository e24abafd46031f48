"""Files of tensors: written whole, with a checksum, and read without running anything."""

import hashlib
import io
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sb3_pwm.files.archives import check_archive
from sb3_pwm.files.atomic import Path, write_bytes


def save_tensors(path: Path, content: Any) -> None:
    """Write what ``torch.save`` makes of an object; see :func:`sb3_pwm.files.atomic.whole_file`.

    :raises OSError: if it cannot be written; ``torch.save`` has another error where a disk is full.
    """
    file = io.BytesIO()
    torch.save(content, file)
    write_bytes(path, file.getvalue())


def check_tensor_file(path: Path) -> None:
    """Check a file of ``torch.save`` before it is loaded, which reads damaged tensors as if nothing was wrong.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged; files in the format of before 2020 have no checksums and pass.
    """
    with pathlib.Path(path).open("rb") as file:
        try:
            archive = zipfile.is_zipfile(file)
        except zipfile.BadZipFile:  # its end is damaged
            archive = True
        file.seek(0)
        if archive:
            check_archive(file, str(path))


def reason(error: Exception) -> str:
    """Return in a line why ``torch.load`` has refused a file."""
    foreign = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    if foreign:
        return f"it holds objects of the class {foreign[1]}, which could run code"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def leaves(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Give what nested dictionaries, lists and tuples hold, each with its path."""
    if isinstance(state, Mapping | list | tuple):
        for key, part in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from leaves(part, f"{path}/{key}" if path else str(key))
    else:
        yield path, state


def checksum(content: Any) -> str:
    """Return the SHA-256 of all names and values, tensors by type, shape and bytes."""
    digest = hashlib.sha256()
    for path, value in leaves(content):
        if isinstance(value, torch.Tensor):
            digest.update(f"{path} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{path} {value!r}".encode())
    return digest.hexdigest()


def check_tensors(name: str, found: Any, own: Any = None) -> None:
    """Check that tensors are finite, and have the shapes of those that they are to replace.

    :param name: where they come from, for the message.
    :param found: tensors in dictionaries and lists.
    :param own: those that they are to replace; where these are not finite either, such as in a mask, anything goes.
    :raises ValueError: if one is not, or has another shape; names it.
    """
    known = dict(leaves(own))
    for path, value in leaves(found):
        if not isinstance(value, torch.Tensor | float):
            continue
        wrong = ~torch.isfinite(torch.as_tensor(value))
        mine = known.get(path)
        if isinstance(mine, torch.Tensor):
            if mine.shape != wrong.shape:
                raise ValueError(f"{path} in {name} has the shape {tuple(wrong.shape)}, not {tuple(mine.shape)}")
            wrong &= torch.isfinite(mine).to(wrong.device)
        if wrong.any():
            raise ValueError(f"{path} in {name} holds {int(wrong.sum())} numbers that are not finite")
