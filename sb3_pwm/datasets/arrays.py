"""NumPy arrays in the D4RL layout: observations, actions, rewards, terminals, timeouts, one row per step."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets.episodes import Episode, build_buffer, check_field
from sb3_pwm.files.archives import check_archive
from sb3_pwm.replay.checks import check_flags, rows_at_once

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
LEAST_STEPS = 1_000  # of rounding, within the range of an entry


def from_npz(
    path: str | pathlib.Path,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    *,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
) -> SequenceReplayBuffer:
    """Read a ``.npz`` file in the D4RL layout; see :func:`from_arrays`.

    :param path: file; it is read without unpickling anything.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or its arrays are not as :func:`from_arrays` wants them.
    """
    with open(path, "rb") as opened:  # np.load leaves a damaged file open
        check_archive(opened, f"cannot read {path} as .npz: it")
        with np.load(opened, allow_pickle=False) as file:
            names = [name for name in (*REQUIRED, *OPTIONAL) if name in file]
            data = {name: read_array(file, name, str(path)) for name in names}
    return from_arrays(
        data, observation_space, action_space, buffer_size=buffer_size, directory=directory, source=str(path)
    )


def read_array(file: Any, name: str, path: str) -> np.ndarray:
    """Read an array of an ``.npz`` file.

    :raises ValueError: if it is none, or one of Python objects.
    """
    try:
        array: np.ndarray = file[name]
    except Exception as error:  # whatever a damaged header asks for
        raise ValueError(f"cannot read {path} as .npz: {name}: {error or type(error).__name__}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"cannot read {path} as .npz: {name} is not an array")
    return array


def from_arrays(
    data: Mapping[str, np.ndarray],
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    *,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
    source: str = "the data",
) -> SequenceReplayBuffer:
    """Make a replay buffer of N steps, one row each, in the order in which they happened.

    :param data: ``observations`` (N, *obs_shape), ``actions`` (N, *act_shape), ``rewards`` (N,), ``terminals`` (N,) 1
        where the episode truly ended; ``timeouts`` (N,) 1 where it was cut off; ``next_observations``
        (N, *obs_shape). One of the last two may be missing: without ``timeouts`` an episode also ends where the next
        row is not the next observation; without ``next_observations`` the last step of each episode is left out, as
        nothing says where it led, which is possible only where nothing terminates.
    :param observation_space: space of the observations; None for an unbounded Box of their shape, in float32 unless
        this would round away what varies, as of time stamps. Give the environment's own spaces if ``learn`` shall go on
        there.
    :param action_space: Box with finite bounds, from which actions are rescaled to [-1, 1]; None for [-1, 1].
    :param buffer_size: capacity of the buffer; None for the number of steps.
    :param directory: keep the arrays in files in this folder, for data larger than memory; each import needs a folder
        of its own.
    :param source: name of the data in error messages.
    :return: the buffer, of one environment.
    :raises ValueError: if a field is missing or has a wrong shape or value; the message names field and row.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    missing = [name for name in REQUIRED if name not in data]
    if missing:
        raise ValueError(f"{source} has no {', '.join(missing)}; found: {', '.join(sorted(data)) or 'nothing'}")
    data = {name: as_array(f"{source}: {name}", data[name]) for name in (*REQUIRED, *OPTIONAL) if name in data}
    n_steps = len(data["rewards"]) if data["rewards"].ndim else 0
    if n_steps == 0:
        raise ValueError(f"{source} holds no steps")
    for name in ("rewards", "terminals", "timeouts"):
        if name in data:
            data[name] = data[name].reshape(-1) if data[name].shape == (n_steps, 1) else data[name]
            check_field(f"{source}: {name}", data[name], (n_steps,))
            if name != "rewards":
                check_flags(f"{source}: {name}", data[name])
    for name in ("observations", "actions", "next_observations"):
        if name in data:
            shape = data["observations" if name != "actions" else "actions"].shape[1:]
            check_field(f"{source}: {name}", data[name], (n_steps, *shape))
    if observation_space is None:
        observation_space = spaces.Box(
            -np.inf, np.inf, data["observations"].shape[1:], float_type(data["observations"])
        )
    if action_space is None:
        action_space = spaces.Box(-1, 1, data["actions"].shape[1:], np.float32)
    bounds = episode_bounds(data, source, observation_space.dtype)
    return build_buffer(
        split(data, bounds),
        sum(stop - start for start, stop in bounds),
        observation_space,
        action_space,
        source=source,
        buffer_size=buffer_size,
        directory=directory,
    )


def float_type(observations: np.ndarray) -> type[np.floating[Any]]:
    """Return float32 for (N, *obs_shape) observations whose values it tells apart, else float64."""
    values = observations.reshape(len(observations), -1)
    if values.dtype.itemsize <= np.dtype(np.float32).itemsize or not values.size:
        return np.float32
    low, high = values.min(0), values.max(0)
    rounding = np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
    return np.float64 if ((high > low) & (high - low < LEAST_STEPS * rounding)).any() else np.float32


def episode_bounds(data: Mapping[str, np.ndarray], source: str, dtype: np.dtype[Any] | None) -> list[tuple[int, int]]:
    """Return the first row of each episode and the row behind its last usable step.

    :param dtype: type in which observations are stored.
    :raises ValueError: if episodes cannot be told apart, or rows that should follow each other do not.
    """
    terminals = data["terminals"] != 0
    following = data.get("next_observations")
    ends = terminals.copy()
    if "timeouts" in data:
        ends |= data["timeouts"] != 0
    elif following is None:
        raise ValueError(f"{source} has neither timeouts nor next_observations: where episodes end cannot be told")
    if following is not None:
        broken = leads_elsewhere(following, data["observations"], dtype) & ~ends[:-1]
        if broken.any() and "timeouts" in data:
            row = int(np.flatnonzero(broken)[0])
            raise ValueError(
                f"{source}: next_observations in row {row} are not the observations in row {row + 1}, and neither "
                "terminals nor timeouts end the episode there; rows must be in the order in which they happened"
            )
        ends[:-1] |= broken
    elif terminals.any():
        row = int(np.flatnonzero(terminals)[0])
        raise ValueError(f"{source} terminates in row {row} but has no next_observations, to which that step led")
    ends[-1] = True
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate([[0], stops[:-1]])
    cut = following is None
    return [(int(a), int(b) - cut) for a, b in zip(starts, stops, strict=True) if b - cut > a]


def leads_elsewhere(following: np.ndarray, observations: np.ndarray, dtype: np.dtype[Any] | None) -> np.ndarray:
    """Return for each of N steps but the last whether the next row is not what it led to; read in blocks."""
    last = len(following) - 1
    found = np.zeros(last, bool)
    length = rows_at_once(following)
    for start in range(0, last, length):
        stop = min(start + length, last)
        differs = unequal(following[start:stop], observations[start + 1 : stop + 1], dtype)
        found[start:stop] = differs.reshape(stop - start, -1).any(1)
    return found


def as_array(name: str, values: Any) -> np.ndarray:
    """Return an array of values.

    :raises ValueError: if they have no common shape, or some are masked.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{name} are masked in row {np.argwhere(np.ma.getmaskarray(values))[0][0]}")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} are not an array: {error}") from error


def unequal(first: np.ndarray, second: np.ndarray, dtype: np.dtype[Any] | None) -> np.ndarray:
    """Return where two arrays differ at the coarsest precision of their own types and ``dtype``."""
    floats = [kind for kind in (first.dtype, second.dtype, dtype) if kind is not None and kind.kind == "f"]
    coarsest = min(floats, key=lambda kind: kind.itemsize, default=np.result_type(first, second)).char
    differs: np.ndarray = np.not_equal(first, second, signature=f"{coarsest}{coarsest}->?")
    return differs


def split(data: Mapping[str, np.ndarray], bounds: list[tuple[int, int]]) -> Iterator[Episode]:
    """Give the episodes of flat arrays."""
    for start, stop in bounds:
        observations = data["observations"][start : stop + 1]
        if "next_observations" in data:
            observations = np.concatenate(
                [data["observations"][start:stop], data["next_observations"][stop - 1 : stop]]
            )
        yield Episode(
            observations,
            data["actions"][start:stop],
            data["rewards"][start:stop],
            bool(data["terminals"][stop - 1] != 0),
        )
