"""The folder of results: one folder per run with ``run.json``, ``curve.csv`` and, until it has finished, a checkpoint.

Every file is put in place whole, so that a kill leaves the old or the new one.
"""

import contextlib
import csv
import io
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sb3_pwm.benchmark.specs import RunSpec
from sb3_pwm.files.atomic import write_text

FORMAT = 1
FINISHED, FAILED, RUNNING = "finished", "failed", "running"
RECORDED = ("state", "specification", "command", "versions", "git_revision", "processor", "random_return", "traceback")
UPDATES = "train/n_updates"  # every evaluation has it among its logged values
IN_USE = "in use by another command"
IN_USE_CODE = 3  # exit code of the process that did not get the run
LOCK_POLL_SECONDS = 0.1


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
    :param logged: what the algorithm's logger said last, by name, and the evaluation's success rates, if the
        environment knows success; in the file these columns stand behind the others.
    """

    env_steps: int
    wall_seconds: float
    cpu_seconds: float
    return_mean: float
    return_std: float
    episode_length_mean: float
    episodes: int
    train_return: float
    logged: dict[str, float] = field(default_factory=dict)


COLUMNS = [each for each in fields(CurveRow) if each.name != "logged"]
MEASURED = {each.name: int if each.type in (int, "int") else float for each in COLUMNS}


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


class InUseError(RuntimeError):
    """Another process is at work in the folder."""


@contextlib.contextmanager
def locked(folder: Path, seconds: float) -> Iterator[None]:
    """Keep other processes out of a folder. The system gives it free when this process ends, however it ends.

    The file ``lock`` stays: to delete it would let two processes hold locks on two files of that name.

    :param folder: existing folder.
    :param seconds: how long to wait for another process.
    :raises InUseError: if another process still has it then.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    end = time.monotonic() + seconds
    with (folder / "lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise InUseError(f"another process is at work in {folder}") from None
                time.sleep(LOCK_POLL_SECONDS)
            except OSError as error:
                warnings.warn(f"{folder} cannot be locked ({error}); run one command at a time", stacklevel=3)
                break
        yield


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, see :func:`sb3_pwm.files.atomic.whole_file`."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_curve(folder: Path, rows: Sequence[CurveRow]) -> None:
    """Write a run's evaluations."""
    logged = sorted({name for row in rows for name in row.logged})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*MEASURED, *logged])
    for row in rows:
        writer.writerow([getattr(row, name) for name in MEASURED] + [row.logged.get(name, "") for name in logged])
    write_text(folder / "curve.csv", text.getvalue())


def read_curve(folder: Path) -> list[CurveRow]:
    """Read a run's evaluations; none if there are none yet."""
    path = folder / "curve.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [_read_row(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no evaluations of a run: {error!r}") from error


def _read_row(row: dict[str, str]) -> CurveRow:
    values: dict[str, Any] = {name: kind(row.pop(name)) for name, kind in MEASURED.items()}
    return CurveRow(**values, logged={name: float(value) for name, value in row.items() if value})


def read_run(folder: Path) -> Run:
    """Read one run.

    :raises ValueError: if it is of another format version, or damaged.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] == FORMAT:
            missing = [name for name in RECORDED if name not in record]
            if missing:
                raise KeyError(*missing)
            return Run(RunSpec(**record["specification"]), record["state"], read_curve(folder), record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a run: {error!r}") from error
    raise ValueError(f"{path} is of results format {record['format']!r}, this version reads and writes format {FORMAT}")


def read_runs(results: Path) -> list[Run]:
    """Read all runs in a results folder, in the order of their folders.

    :raises ValueError: if one is of another format version, damaged, or not in its own folder.
    """
    runs = []
    for path in sorted(results.glob("*/*/*/run.json")):
        run = read_run(path.parent)
        if (own := run.spec.folder(results)) != path.parent:
            raise ValueError(f"{path.parent} holds the run that belongs into {own}; move it out of {results}")
        runs.append(run)
    return runs


def read_untrained(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Read the returns of untrained policies, for runs that did not evaluate theirs before the first step.

    :param folder: folder with ``untrained.csv``: a row per environment and seed, with the columns ``environment``,
        ``algorithm`` (a name for the policy) and ``return_mean``.
    :return: returns by environment and name; nothing if there is no such file.
    :raises ValueError: if the file is something else.
    """
    path = folder / "untrained.csv"
    found: dict[str, dict[str, list[float]]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    env, name, value = row["environment"], row["algorithm"], float(row["return_mean"])
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{path} holds no returns of untrained policies: {error!r}") from error
                found.setdefault(env, {}).setdefault(name, []).append(value)
    return found


def is_finished(spec: RunSpec, run: Run | None, folder: Path) -> bool:
    """Return whether a run has finished.

    :param spec: the run that is asked for.
    :param run: what its folder holds; None for nothing.
    :param folder: its folder.
    :raises ValueError: if that is a run of another specification.
    """
    if run is not None and run.spec != spec:
        differences = "; ".join(spec.differences(run.spec))
        raise ValueError(f"{folder} holds another run: {differences}; choose another results folder")
    return run is not None and run.state == FINISHED


def unfinished(plan: Iterable[RunSpec], results: Path) -> list[RunSpec]:
    """Return the runs that have not finished.

    :param plan: runs that are asked for.
    :param results: results folder; need not exist.
    :raises ValueError: if it holds a run of another format version, or a run of another specification where one that
        is asked for belongs.
    """
    found = {run.spec.folder(results): run for run in read_runs(results)}
    return [spec for spec in plan if not is_finished(spec, found.get(folder := spec.folder(results)), folder)]
