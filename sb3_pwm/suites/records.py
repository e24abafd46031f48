"""Units of work whose files follow from each other: each has a folder, and a record of what it follows from.

The record, ``record.json``, is written last, with the files' checksums; or before, by what leaves checkpoints.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_pwm.benchmark.results import write_json
from sb3_pwm.benchmark.worker import git_revision, versions

RECORD = "record.json"
Origin = dict[str, Any]


def revision() -> str:
    """Return what tells this state of the package from others: its revision, or its version where it is installed."""
    return git_revision() or f"version {versions(['sb3-pwm']).get('sb3-pwm')}"


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return a unit's record; None if it has not been begun.

    :raises ValueError: if it is not a record.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"origin": dict(record["origin"]), "files": dict(record["files"]), "found": dict(record["found"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of a stage: {error!r}") from error


def begin(folder: Path, origin: Origin) -> None:
    """Record what a unit is going to follow from."""
    write_json(folder / RECORD, {"origin": origin, "files": {}, "found": {}})


def finish(folder: Path, origin: Origin, names: Sequence[str], found: Mapping[str, Any]) -> None:
    """Record that a unit has finished.

    :param folder: its folder.
    :param origin: what its files follow from.
    :param names: names of its files.
    :param found: what else is worth knowing.
    """
    files = {name: sha256(folder / name) for name in names}
    write_json(folder / RECORD, {"origin": origin, "files": files, "found": dict(found)})


def is_finished(folder: Path, origin: Origin) -> bool:
    """Return whether a unit has finished.

    :param folder: its folder.
    :param origin: what its files are to follow from.
    :raises ValueError: if what is there follows from something else, or a file is not what was written.
    """
    record = read_record(folder)
    if record is None:
        return False
    found = record["origin"]
    names = sorted(name for name in {*found, *origin} if found.get(name) != origin.get(name))
    if names:
        differences = "; ".join(f"{name} is {found.get(name)!r} there, {origin.get(name)!r} here" for name in names)
        raise ValueError(f"{folder} follows from something else: {differences}; choose another --out, or remove it")
    check_files(folder, record)
    return bool(record["files"])


def check_files(folder: Path, record: Mapping[str, Any]) -> None:
    """Check that a unit's files are those that were written.

    :raises ValueError: if one is missing or has another checksum.
    """
    for name, known in record["files"].items():
        path = folder / name
        now = sha256(path) if path.is_file() else None
        if now != known:
            state = "is missing" if now is None else f"has the checksum {now[:16]}, not {known[:16]}"
            raise ValueError(f"{path} {state}; remove {folder}, so that it is made again")


def finished_files(out: Path, folder: Path, suite: str, now: str) -> dict[str, str]:
    """Return the checksums of a finished unit's files, by their places in ``out``.

    :param out: folder of all units.
    :param folder: the unit's folder.
    :param suite: the suite that it must belong to.
    :param now: the revision that must have made it.
    :raises ValueError: if it has not finished, is of another suite or revision, follows from files that have been made
        again since, or a file is not what was written.
    """
    record = read_record(folder)
    place = folder.relative_to(out)
    if record is None or not record["files"]:
        raise ValueError(f"{folder} has not finished; carry out the stage {place.parts[0]} first")
    for name, here in (("suite", suite), ("revision", now)):
        there = record["origin"].get(name)
        if there != here:
            raise ValueError(f"{folder} is of {name} {there!r}, this is {here!r}; go on with that one, or start anew")
    for path, known in record["origin"].get("inputs", {}).items():
        source = read_record((out / path).parent)
        if source is None or source["files"].get(Path(path).name) != known:
            raise ValueError(f"{folder} follows from {path} as it was before; remove {folder} and make it again")
    check_files(folder, record)
    return {(place / name).as_posix(): str(known) for name, known in record["files"].items()}
