"""Data files of TD-MPC2 and PWM: ``.pt`` files that hold a TensorDict of equally long episodes."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets.episodes import Episode, build_buffer
from sb3_pwm.extras import missing_extra
from sb3_pwm.files.tensors import check_tensor_file, reason
from sb3_pwm.observations import on_host

FIELDS = ("obs", "action", "reward")
OPTIONAL = ("task", "terminated")


class Part(NamedTuple):
    """The episodes of a task in one file."""

    path: pathlib.Path
    table: Any
    """A TensorDict of (episodes, steps + 1, ...)."""
    rows: np.ndarray
    """Numbers of the task's episodes in the table."""


def from_tdmpc2(
    paths: str | pathlib.Path | Sequence[str | pathlib.Path],
    task: int | None = None,
    observation_space: spaces.Box | None = None,
    action_space: spaces.Box | None = None,
    *,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
) -> SequenceReplayBuffer:
    """Read the episodes of one task.

    Row t of an episode holds the t-th observation with the action and reward that *led to* it; row 0 has neither.
    Where there is a field ``terminated``, it says whether that step ended the episode; without it none does.
    Files are mapped into memory, and nothing in them is run. The first time a process opens a file it compares all of
    it with its checksums.

    :param paths: a file, several files, or a folder with ``.pt`` files.
    :param task: number of the task; None for files that hold one task only.
    :param observation_space: vector space of the task; observations are padded at their end to the largest task and
        cut to this size. None for an unbounded Box of the files' size.
    :param action_space: vector space of the task, cut in the same way; None for [-1, 1] of the files' size.
    :param buffer_size: capacity of the buffer; None for the number of steps.
    :param directory: keep the arrays in files in this folder, for data larger than memory; each import needs a folder
        of its own.
    :return: the buffer, of one environment.
    :raises ImportError: if tensordict is not installed.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if a space is not a vector space; if a file is damaged, is no such data file or holds foreign
        classes; if no file holds the task, or there are several tasks and ``task`` is None, or several sizes and no
        space says which part is the task's.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        if space is not None and not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise ValueError(f"{name} must be a Box with one dimension, not {space}")
    files = files_of(paths)
    tables = [load_table(path) for path in files]
    if task is None:
        check_single_task(tables, files)
    parts = [Part(path, table, select(table, task)) for path, table in zip(files, tables, strict=True)]
    parts = [part for part in parts if len(part.rows)]
    if not parts:
        tasks = sorted({int(number) for table in tables for number in torch.unique(task_of(table))})
        raise ValueError(f"{paths} holds no episode of task {task}; tasks found: {tasks}")
    for part in parts:
        check_first_rows(part)
        check_terminated(part)
    if observation_space is None:
        width = width_of("obs", parts, "observation_space")
        observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
    if action_space is None:
        action_space = spaces.Box(-1, 1, (width_of("action", parts, "action_space"),), np.float32)
    sizes = (observation_space.shape[0], action_space.shape[0])
    return build_buffer(
        (episode_of(part, int(row), *sizes) for part in parts for row in part.rows),
        sum(len(part.rows) * (part.table["obs"].shape[1] - 1) for part in parts),
        observation_space,
        action_space,
        source=str(paths),
        buffer_size=buffer_size,
        directory=directory,
    )


def files_of(paths: str | pathlib.Path | Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
    """Return the files, in the order of their names where a folder is given.

    :raises FileNotFoundError: if there are none.
    """
    if not isinstance(paths, str | pathlib.Path):
        return [pathlib.Path(path) for path in paths]
    path = pathlib.Path(paths)
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"no .pt file at {path}")
    return files


def load_table(path: pathlib.Path) -> Any:
    """Map a file into memory.

    :raises ImportError: if tensordict is not installed.
    :raises ValueError: if it is not a data file of TD-MPC2.
    """
    try:
        import tensordict  # noqa: F401  its import tells torch which of its classes are safe to load
    except ImportError as error:
        raise missing_extra("from_tdmpc2", "tensordict", "tdmpc2") from error
    status = path.stat()
    check_once(path, status.st_size, status.st_mtime_ns)
    try:
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        names = set(getattr(table, "keys", tuple)())
    except Exception as error:  # whatever a damaged file asks for
        raise ValueError(f"cannot read {path} as a data file of TD-MPC2: {reason(error)}") from error
    missing = [name for name in FIELDS if name not in names]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is not a data file of TD-MPC2")
    for name in (*FIELDS, *OPTIONAL):
        if name in names and not isinstance(table[name], torch.Tensor):
            raise ValueError(f"{path}: {name} is {type(table[name]).__name__}, expected a tensor")
    shapes = {name: tuple(table[name].shape) for name in (*FIELDS, *OPTIONAL) if name in table.keys()}  # noqa: SIM118
    leading = shapes["reward"]
    if len(leading) != 2 or leading[1] < 2 or any(shape[:2] != leading for shape in shapes.values()):
        raise ValueError(f"{path}: expected (episodes, steps + 1, ...) in every field, found {shapes}")
    for name, dimensions in (("obs", 3), ("action", 3), ("terminated", 2)):
        if name in shapes and len(shapes[name]) != dimensions:
            raise ValueError(f"{path}: {name} has the shape {shapes[name]}, expected {dimensions} dimensions")
    return table


@functools.lru_cache(maxsize=1_000)
def check_once(path: pathlib.Path, size: int, changed: int) -> None:
    """Compare a file with its checksums, once for every state: files may have many GB, and one is read for each task.

    :param path: file.
    :param size: its size.
    :param changed: when it was written.
    :raises ValueError: if it is damaged.
    """
    check_tensor_file(path)


def task_of(table: Any) -> torch.Tensor:
    """Return the (episodes,) task numbers; a file without them holds task 0."""
    if "task" not in table.keys():  # noqa: SIM118  a TensorDict iterates over rows
        return torch.zeros(len(table["reward"]), dtype=torch.int64)
    task: torch.Tensor = table["task"][:, 0].long()
    return task


def check_single_task(tables: Sequence[Any], files: Sequence[pathlib.Path]) -> None:
    """Check that all files together hold one task.

    :raises ValueError: if they hold several.
    """
    found: set[int] = set()
    for table, path in zip(tables, files, strict=True):
        own = set(torch.unique(task_of(table)).tolist())
        if len(found | own) > 1:
            before = f", the files before it {sorted(found)}" if found else ""
            raise ValueError(f"{path} holds the tasks {sorted(own)}{before}: name one of them (task)")
        found |= own


def select(table: Any, task: int | None) -> np.ndarray:
    """Return the rows of the episodes of a task; None for all."""
    numbers = task_of(table).numpy()
    return np.arange(len(numbers)) if task is None else np.flatnonzero(numbers == task)


def check_first_rows(part: Part) -> None:
    """Check that the first row of each episode holds no step: its reward is NaN or 0.

    Its action says nothing: TD-MPC2 left it uninitialised until December 2023, after its data were published.

    :raises ValueError: if one does; its steps would be shifted by one.
    """
    first = part.table["reward"][:, 0][part.rows]
    wrong = np.flatnonzero((torch.nan_to_num(first) != 0).numpy())
    if len(wrong):
        raise ValueError(
            f"{part.path}, episode {part.rows[wrong[0]]}: reward is {first[wrong[0]]} in row 0; allowed: NaN or 0, "
            "because every row holds the action and reward that led to its observation, and nothing led to the first"
        )


def check_terminated(part: Part) -> None:
    """Check that an episode ends with its last row or not at all.

    :raises ValueError: if one terminates before.
    """
    if "terminated" not in part.table.keys():  # noqa: SIM118
        return
    values = part.table["terminated"][part.rows].float()
    allowed = values == 0
    allowed[:, 0] |= values[:, 0].isnan()
    allowed[:, -1] |= values[:, -1] == 1
    wrong = np.argwhere(~allowed.numpy())
    if len(wrong):
        number, row = wrong[0]
        raise ValueError(
            f"{part.path}, episode {part.rows[number]}: terminated is {values[number, row]} in row {row}; allowed: 0, "
            "1 in the last row, with which the episode ends, and NaN in row 0"
        )


def width_of(field: str, parts: Sequence[Part], argument: str) -> int:
    """Return the width that a field has in all files.

    :raises ValueError: if it has several; ``argument`` can then say how much of it is the task's own.
    """
    first, width = parts[0].path, int(parts[0].table[field].shape[-1])
    for part in parts:
        if part.table[field].shape[-1] != width:
            raise ValueError(
                f"{part.path}: {field} has {part.table[field].shape[-1]} columns, that of {first} {width}; give the "
                f"task's {argument}"
            )
    return width


def episode_of(part: Part, row: int, observation_dim: int, action_dim: int) -> Episode:
    """Return one episode, cut to a task's dimensions, with its rows shifted into place."""
    return Episode(
        on_host(part.table["obs"][row, :, :observation_dim]),
        on_host(part.table["action"][row, 1:, :action_dim]),
        on_host(part.table["reward"][row, 1:]),
        terminated="terminated" in part.table.keys() and bool(part.table["terminated"][row, -1]),  # noqa: SIM118
        name=f"{part.path}, episode {row}",
    )
