"""From episodes to a replay buffer: what every importer shares."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_pwm.buffers import SequenceReplayBuffer, sequence_buffer_class
from sb3_pwm.checks import check_action_space, check_integer
from sb3_pwm.replay.checks import check_bounds, check_finite, check_whole_numbers

ENTRIES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)  # of which observations consist

Arrays = np.ndarray | dict[str, np.ndarray]


class Episode(NamedTuple):
    """One episode of T steps, as the environment gave it."""

    observations: Arrays
    """(T + 1, *obs_shape), or one such array per key."""
    actions: np.ndarray
    """(T, *act_shape), within the bounds of the action space."""
    rewards: np.ndarray
    """(T,), in the units of the environment."""
    terminated: bool
    """Whether the last step ended the episode truly, and not by a time-out or because the recording stopped."""
    name: str = ""
    """Where the episode comes from, for error messages; "" for its number."""


def build_buffer(
    episodes: Iterable[Episode],
    n_steps: int,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    source: str,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
) -> SequenceReplayBuffer:
    """Store episodes one after the other.

    :param episodes: the episodes; each is read once and need not fit into memory together with the others.
    :param n_steps: number of steps of all episodes together.
    :param observation_space: space of the observations.
    :param action_space: Box with finite bounds; actions are rescaled from them to [-1, 1].
    :param source: where the data come from, for error messages.
    :param buffer_size: capacity, ``n_steps`` or more; None for ``n_steps``. Room beyond the data is for steps that
        ``learn`` adds; without it these replace the oldest ones.
    :param directory: keep the arrays in files in this folder, for data larger than memory; None keeps them in memory.
        Each import needs a folder of its own.
    :return: the buffer, of one environment.
    :raises TypeError: if the action space is not a Box.
    :raises ValueError: if a space is none that policies can have, or data do not fit the spaces, are not finite, or are
        none at all.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    action_space = check_action_space(action_space)
    low, high = action_space.low, action_space.high
    start = 0
    with new_buffer(n_steps, observation_space, action_space, source, buffer_size, directory) as buffer:
        for index, episode in enumerate(episodes):
            where = episode.name or f"{source}, episode {index}"
            length = check_episode(episode, observation_space, action_space, where)
            stop = start + length
            if stop > n_steps:
                raise ValueError(f"{where} goes beyond the {n_steps} steps that {source} should hold")
            rows = slice(start, stop)
            store_observations(buffer.observations, episode.observations, rows, slice(None, -1))
            store_observations(buffer.next_observations, episode.observations, rows, slice(1, None))
            actions = np.clip(2 * (episode.actions - low) / (high - low) - 1, -1, 1)
            buffer.actions[rows, 0] = actions.reshape(length, -1)
            buffer.rewards[rows, 0] = episode.rewards
            buffer.dones[stop - 1, 0] = 1
            buffer.timeouts[stop - 1, 0] = not episode.terminated
            start = stop
        if start != n_steps:
            raise ValueError(f"{source} holds {start} steps, not the {n_steps} that it should")
    return buffer


@contextlib.contextmanager
def new_buffer(
    n_steps: int,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    source: str,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
) -> Iterator[SequenceReplayBuffer]:
    """Give a replay buffer of one environment whose first ``n_steps`` rows count as stored; the caller fills them.

    The arguments are those of :func:`build_buffer`. If the caller fails, the buffer's files are removed.

    :raises TypeError: if ``buffer_size`` is not an integer.
    :raises ValueError: if there are no steps, ``buffer_size`` is less, or no policy can have such observations.
    :raises FileExistsError: if ``directory`` holds one of the files already.
    :raises OSError: if there is no room for the files.
    """
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for key, part in parts.items():
        if not isinstance(part, ENTRIES):
            allowed = ", ".join(kind.__name__ for kind in ENTRIES)
            entry = f"the observation space's entry {key!r}" if key else "the observation space"
            raise ValueError(f"{source}: {entry} is {part}; allowed: {allowed}, or a Dict of these")
    if n_steps < 1:
        raise ValueError(f"{source} holds no steps")
    if buffer_size is not None:
        check_integer("buffer_size", buffer_size, 1)
    capacity = n_steps if buffer_size is None else buffer_size
    if capacity < n_steps:
        raise ValueError(f"buffer_size={capacity} is less than the {n_steps} steps of {source}")
    kind = sequence_buffer_class(observation_space)
    in_memory = capacity if directory is None else 1
    buffer = kind(in_memory, observation_space, action_space, device="cpu", n_envs=1)
    buffer.pos, buffer.full = n_steps % capacity, n_steps == capacity
    if directory is None:
        yield buffer
        return
    files = new_files(buffer, pathlib.Path(directory))
    try:
        move_to_files(buffer, capacity, files)
        yield buffer
    except BaseException:
        for path in files.values():
            path.unlink(missing_ok=True)
        raise


def new_files(buffer: SequenceReplayBuffer, folder: pathlib.Path) -> dict[tuple[str, str | None], pathlib.Path]:
    """Return the file of each of a buffer's arrays, by name and key (None for an array without keys).

    :raises FileExistsError: if there is one already, perhaps of a buffer in use.
    """
    files: dict[tuple[str, str | None], pathlib.Path] = {}
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        array = getattr(buffer, name)
        if isinstance(array, dict):
            # Keys are numbered, because a file's name may not hold every character that a key may.
            files |= {(name, key): folder / f"{name}_{i}.npy" for i, key in enumerate(array)}
        else:
            files[name, None] = folder / f"{name}.npy"
    for path in files.values():
        if path.exists():
            raise FileExistsError(f"{path} exists: remove the files of the earlier import, or name another directory")
    return files


def move_to_files(
    buffer: SequenceReplayBuffer, capacity: int, files: dict[tuple[str, str | None], pathlib.Path]
) -> None:
    """Replace a buffer's arrays by empty ones of ``capacity`` rows in these files, see :func:`new_files`."""
    buffer.buffer_size = capacity
    for (name, key), path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        array = getattr(buffer, name) if key is None else getattr(buffer, name)[key]
        in_file = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=(capacity, *array.shape[1:]))
        reserve(path)  # a write into a sparse file on a full disk is a bus error, which ends the process
        if key is None:
            setattr(buffer, name, in_file)
        else:
            getattr(buffer, name)[key] = in_file


def reserve(path: pathlib.Path) -> None:
    """Take a file's room on the disk, where the system can.

    :raises OSError: if there is not so much.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of file systems without it
                raise


def store_observations(storage: Any, observations: Arrays, rows: slice, steps: slice) -> None:
    """Write the ``steps`` of (T + 1, *obs_shape) observations into the ``rows`` of a buffer's array(s)."""
    if isinstance(storage, dict):
        for key, array in storage.items():
            store_observations(array, observations[key], rows, steps)
        return
    part = observations[steps]  # type: ignore[index]
    storage[rows, 0] = np.asarray(part).reshape(storage[rows, 0].shape)


def check_episode(episode: Episode, observation_space: spaces.Space[Any], action_space: spaces.Box, where: str) -> int:
    """Return the number of steps of an episode that fits the spaces.

    :raises ValueError: if it does not; the message names the field and the row.
    """
    length = len(episode.rewards)
    if length < 1:
        raise ValueError(f"{where} has no steps")
    check_field(f"{where}: rewards", episode.rewards, (length,))
    check_field(f"{where}: actions", episode.actions, (length, *action_space.shape))
    check_bounds(f"{where}: actions", episode.actions, action_space.low, action_space.high)
    if isinstance(observation_space, spaces.Dict):
        if not isinstance(episode.observations, dict) or set(observation_space) - set(episode.observations):
            raise ValueError(f"{where}: observations must have the keys {sorted(observation_space)}")
        for key, part in observation_space.items():
            check_observations(f"{where}: observations[{key!r}]", episode.observations[key], part, length + 1)
    elif isinstance(episode.observations, dict):
        raise ValueError(f"{where}: observations have keys, the observation space {observation_space} has none")
    else:
        check_observations(f"{where}: observations", episode.observations, observation_space, length + 1)
    return length


def check_observations(name: str, values: np.ndarray, space: spaces.Space[Any], count: int) -> None:
    """Check ``count`` observations of a space; discrete ones may have an axis of their own, as in replay buffers.

    :raises ValueError: if they are wrong.
    """
    shape: Any = get_obs_shape(space)
    without_axis = isinstance(space, spaces.Discrete) and values.ndim == 1
    check_field(name, values, (count,) if without_axis else (count, *shape))
    check_whole_numbers(name, values, space)


def check_field(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """Check shape and finiteness.

    :raises ValueError: if they are wrong.
    """
    if values.shape != shape:
        raise ValueError(f"{name} have the shape {values.shape}, expected {shape}")
    check_finite(name, values)
