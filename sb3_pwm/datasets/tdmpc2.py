"""Data files of TD-MPC2 and PWM: ``.pt`` files that hold a TensorDict of equally long episodes."""

import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets.episodes import Episode, build_buffer

FIELDS = ("obs", "action", "reward")


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
    Files are mapped into memory, not read as a whole, and nothing in them is run.

    :param paths: a file, several files, or a folder with ``.pt`` files.
    :param task: number of the task; None for files that hold one task only.
    :param observation_space: vector space of the task; observations are padded at their end to the largest task and
        cut to this size. None for an unbounded Box of the file's size.
    :param action_space: vector space of the task, cut in the same way; None for [-1, 1] of the file's size.
    :param buffer_size: capacity of the buffer; None for the number of steps.
    :param directory: keep the arrays in files in this folder, for data larger than memory; each import needs a folder
        of its own.
    :return: the buffer, of one environment.
    :raises ImportError: if tensordict is not installed.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if a file is damaged, is no such data file or holds foreign classes, or lacks the task.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    files = files_of(paths)
    tables = [load_table(path) for path in files]
    if task is None:
        check_single_task(tables, files)
    episodes = [select(table, task) for table in tables]
    for table, rows, path in zip(tables, episodes, files, strict=True):
        check_first_rows(table, rows, path)
    n_steps = sum(len(rows) * (table["obs"].shape[1] - 1) for rows, table in zip(episodes, tables, strict=True))
    if n_steps == 0:
        tasks = sorted({int(number) for table in tables for number in torch.unique(task_of(table))})
        raise ValueError(f"{paths} holds no episode of task {task}; tasks found: {tasks}")
    observation_dim, action_dim = tables[0]["obs"].shape[-1], tables[0]["action"].shape[-1]
    if observation_space is None:
        observation_space = spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
    if action_space is None:
        action_space = spaces.Box(-1, 1, (action_dim,), np.float32)
    return build_buffer(
        (
            episode_of(table, int(row), observation_space.shape[0], action_space.shape[0])
            for table, rows in zip(tables, episodes, strict=True)
            for row in rows
        ),
        n_steps,
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
        raise ImportError("from_tdmpc2 needs tensordict: pip install 'sb3-pwm[tdmpc2]'") from error
    try:
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read {path} as a data file of TD-MPC2: {reason}") from error
    missing = [name for name in FIELDS if name not in getattr(table, "keys", tuple)()]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: it is not a data file of TD-MPC2")
    leading = table["reward"].shape
    if len(leading) != 2 or leading[1] < 2 or any(table[name].shape[:2] != leading for name in FIELDS):
        shapes = {name: tuple(table[name].shape) for name in FIELDS}
        raise ValueError(f"{path}: expected (episodes, steps + 1, ...) in every field, found {shapes}")
    for name in ("obs", "action"):
        if table[name].ndim != 3:
            raise ValueError(f"{path}: {name} have the shape {tuple(table[name].shape)}, expected three dimensions")
    return table


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


def check_first_rows(table: Any, rows: np.ndarray, path: pathlib.Path) -> None:
    """Check that the first row of the episodes ``rows`` holds no step: action and reward are NaN or 0.

    :raises ValueError: if one does; its steps would be shifted by one.
    """
    for name in ("action", "reward"):
        first = torch.nan_to_num(table[name][:, :1][rows]).flatten(1)
        wrong = np.flatnonzero((first != 0).any(1).numpy())
        if len(wrong):
            row = int(rows[wrong[0]])
            raise ValueError(
                f"{path}, episode {row}: {name} is {table[name][row, 0].tolist()} in row 0; allowed: NaN or 0, because "
                "every row holds the action and reward that led to its observation, and nothing led to the first"
            )


def episode_of(table: Any, row: int, observation_dim: int, action_dim: int) -> Episode:
    """Return one episode, cut to a task's dimensions, with its rows shifted into place."""
    return Episode(
        table["obs"][row, :, :observation_dim].numpy(),
        table["action"][row, 1:, :action_dim].numpy(),
        table["reward"][row, 1:].numpy(),
        terminated=False,
    )
