"""The folder of results: one folder per run with ``run.json``, ``curve.csv`` and, until it has finished, a checkpoint.

Every file is written whole under another name and then put in place, so that a kill leaves the old or the new one.
"""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sb3_pwm.benchmark.plan import RunSpec

FORMAT = 1
FINISHED, FAILED, RUNNING = "finished", "failed", "running"


@dataclass(frozen=True)
class CurveRow:
    """One evaluation, and what it took to get there.

    :param env_steps: environment steps.
    :param wall_seconds: wall time of training alone, without evaluations and checkpoints.
    :param cpu_seconds: CPU time of training alone.
    :param return_mean: mean return of the evaluation's episodes.
    :param return_std: their standard deviation.
    :param episode_length_mean: their mean number of steps.
    :param episodes: their number.
    :param train_return: mean return of the last training episodes, with exploration; NaN before the first.
    """

    env_steps: int
    wall_seconds: float
    cpu_seconds: float
    return_mean: float
    return_std: float
    episode_length_mean: float
    episodes: int
    train_return: float


@dataclass(frozen=True)
class Run:
    """A run as found in a results folder.

    :param spec: its specification.
    :param state: ``"finished"``, ``"failed"``, or ``"running"`` if it is, or was when it was killed.
    :param rows: its evaluations.
    :param record: all that ``run.json`` holds.
    """

    spec: RunSpec
    state: str
    rows: list[CurveRow]
    record: dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Put a file in place whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, values: Any) -> None:
    """Put a JSON file in place whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_curve(folder: Path, rows: Sequence[CurveRow]) -> None:
    """Write a run's evaluations."""
    names = [field.name for field in fields(CurveRow)]
    lines = [",".join(names), *(",".join(str(getattr(row, name)) for name in names) for row in rows)]
    write_text(folder / "curve.csv", "\n".join(lines) + "\n")


def read_curve(folder: Path) -> list[CurveRow]:
    """Read a run's evaluations; none if there are none yet."""
    path = folder / "curve.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    types = {field.name: int if field.type in (int, "int") else float for field in fields(CurveRow)}
    try:
        return [CurveRow(**{name: kind(row[name]) for name, kind in types.items()}) for row in rows]  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no evaluations of a run: {error!r}") from error


def read_run(folder: Path) -> Run:
    """Read one run.

    :raises ValueError: if it is of another format version, or damaged.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a run: {error!r}") from error
    if found != FORMAT:
        raise ValueError(f"{path} is of results format {found!r}, this version reads and writes format {FORMAT}")
    return Run(RunSpec(**record["specification"]), record["state"], read_curve(folder), record)


def read_runs(results: Path) -> list[Run]:
    """Read all runs in a results folder, in the order of their folders.

    :raises ValueError: if one is of another format version, or damaged.
    """
    return [read_run(path.parent) for path in sorted(results.glob("*/*/*/run.json"))]


def unfinished(plan: Iterable[RunSpec], results: Path) -> list[RunSpec]:
    """Return the runs that have not finished.

    :param plan: runs that are asked for.
    :param results: results folder; need not exist.
    :raises ValueError: if it holds a run of another format version, or a run of another specification where one that
        is asked for belongs.
    """
    found = {run.spec.folder(results): run for run in read_runs(results)}
    waiting = []
    for spec in plan:
        run = found.get(spec.folder(results))
        if run is not None and run.spec != spec:
            differences = "; ".join(spec.differences(run.spec))
            raise ValueError(f"{spec.folder(results)} holds another run: {differences}; choose another results folder")
        if run is None or run.state != FINISHED:
            waiting.append(spec)
    return waiting
