"""What a replay buffer must hold so that windows can be learnt from; read in blocks, for data larger than memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape

from sb3_pwm.checks import is_finite_float32

ACTION_TOLERANCE = 1e-4  # of the range of an action; rounding in a file may go so far beyond the bounds
BLOCK_VALUES = 2**22  # checked at a time
FLAGS = ("dones", "timeouts")
ARRAYS = ("observations", "next_observations", "actions", "rewards", *FLAGS)
MAX_BREAKS = 0.5  # of the steps; with more the order of the rows is not that in which they happened


def sizes_of(owner: Any) -> tuple[Any, ...]:
    """Return the number of environments of a buffer or model, and the shapes of its spaces."""
    return owner.n_envs, owner.observation_space.shape, owner.action_space.shape


def check_timeouts_told(buffer: ReplayBuffer, name: str) -> None:
    """Check that a buffer tells time-outs from terminations.

    :raises ValueError: if it does not.
    """
    if not getattr(buffer, "handle_timeout_termination", False):
        raise ValueError(
            f"{name} was made with handle_timeout_termination=False and cannot tell time-outs from "
            "terminations; allowed: handle_timeout_termination=True"
        )


def check_values(buffer: ReplayBuffer, name: str) -> None:
    """Check that what is stored is finite and in the observation space, and actions in [-1, 1].

    :raises ValueError: if it is not, or :func:`check_arrays` refuses the arrays; the message names the field and the
        row of the buffer's arrays.
    """
    check_arrays(buffer, name)
    size = buffer.size()
    for field in FLAGS:
        check_flags(f"{name}: {field}", getattr(buffer, field)[:size])
    check_finite(f"{name}: rewards", buffer.rewards[:size])
    check_finite(f"{name}: actions", buffer.actions[:size])
    if isinstance(buffer.action_space, spaces.Box):
        check_bounds(f"{name}: actions, which SB3 stores rescaled to [-1, 1],", buffer.actions[:size], -1, 1)
    else:
        check_whole_numbers(f"{name}: actions", buffer.actions[:size], buffer.action_space)
    for field in ("observations", "next_observations"):
        stored: Any = getattr(buffer, field)
        if isinstance(stored, dict):
            parts = [(f"[{key!r}]", array, buffer.observation_space[key]) for key, array in stored.items()]  # type: ignore[index]
        else:
            parts = [("", stored, buffer.observation_space)]
        for key, array, space in parts:
            check_finite(f"{name}: {field}{key}", array[:size])
            check_whole_numbers(f"{name}: {field}{key}", array[:size], space)


def check_arrays(buffer: ReplayBuffer, name: str) -> None:
    """Check that a buffer has its arrays, in their types and shapes, and that its place is within them.

    :raises ValueError: if not; the message names the field.
    """
    fields = ("buffer_size", "n_envs", "pos", "full", "observation_space", "action_space", *ARRAYS)
    missing = [field for field in fields if not hasattr(buffer, field)]
    if missing:
        raise ValueError(f"{name} has no {', '.join(missing)}")
    for field, low, high in (("buffer_size", 1, None), ("n_envs", 1, None), ("pos", 0, buffer.buffer_size - 1)):
        value = getattr(buffer, field)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low or value > (high or value):
            allowed = f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"
            raise ValueError(f"{name}: {field} is {value!r}; allowed: {allowed}")
    if not isinstance(buffer.full, bool | np.bool_):
        raise ValueError(f"{name}: full is {buffer.full!r}; allowed: True, False")
    rows = (buffer.buffer_size, buffer.n_envs)
    for field in ("rewards", *FLAGS):
        check_array(f"{name}: {field}", getattr(buffer, field), rows, np.dtype(np.float32))
    actions = (*rows, get_action_dim(buffer.action_space))
    check_array(f"{name}: actions", buffer.actions, actions, buffer.action_space.dtype)
    for field in ("observations", "next_observations"):
        stored: Any = getattr(buffer, field)
        if isinstance(buffer.observation_space, spaces.Dict):
            keys = sorted(buffer.observation_space.spaces)
            if not isinstance(stored, dict) or sorted(stored) != keys:
                raise ValueError(f"{name}: {field} must have the keys {keys}")
            parts = [(f"[{key!r}]", stored[key], space) for key, space in buffer.observation_space.spaces.items()]
        else:
            parts = [("", stored, buffer.observation_space)]
        for key, array, space in parts:
            check_array(f"{name}: {field}{key}", array, (*rows, *get_obs_shape(space)), space.dtype)


def check_array(name: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """Check that something is an array of a shape, and of floats or integers as ``dtype`` is.

    :raises ValueError: if it is not.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is {type(array).__name__}, expected an array")
    if array.shape != shape:
        raise ValueError(f"{name} have the shape {array.shape}, expected {shape}")
    kinds = {"f": "f", "i": "iu", "u": "iu", "b": "biu"}[dtype.kind]
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} are of type {array.dtype}, expected such as {dtype}")


def check_flags(name: str, values: np.ndarray) -> None:
    """Check that all values are 0 or 1.

    :raises ValueError: if one is not.
    """
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        place = tuple(wrong[0])
        raise ValueError(f"{name} are {values[place]} in row {place[0]}; allowed: 0 and 1")


def blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield an array's rows in blocks of bounded size, each with the number of its first row."""
    length = rows_at_once(values)
    for start in range(0, len(values), length):
        yield start, values[start : start + length]


def rows_at_once(values: np.ndarray) -> int:
    """Return how many of an array's rows are a block of bounded size, at least one."""
    return max(1, BLOCK_VALUES // max(1, int(np.prod(values.shape[1:]))))


def check_finite(name: str, values: np.ndarray) -> None:
    """Check that all values are numbers, and finite in float32.

    :raises ValueError: if they are not.
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} are of type {values.dtype}, expected numbers")
    if values.dtype.kind in "iub":
        return
    for start, block in blocks(values):
        finite = is_finite_float32(block)
        if not finite.all():
            row = start + int(np.argwhere(~finite)[0][0])
            raise ValueError(f"{name} are not finite in row {row}: {values[row]}")


def check_whole_numbers(name: str, values: np.ndarray, space: spaces.Space[Any]) -> None:
    """Check what is stored as whole numbers, such as images and discrete actions; (T, ...) in any type.

    :raises ValueError: if storing would change them, or a discrete space does not hold them.
    """
    low: Any
    high: Any
    if isinstance(space, spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n - 1)
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = 0, 1
    elif space.dtype is not None and space.dtype.kind in "iu":
        if np.can_cast(values.dtype, space.dtype):
            return
        low, high = np.iinfo(space.dtype).min, np.iinfo(space.dtype).max
    else:
        return
    for start, block in blocks(values):
        wrong = (block < low) | (block > high) | (np.mod(block, 1) != 0)
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            raise ValueError(
                f"{name} hold {block[place]} in row {start + place[0]}; allowed: whole numbers from {low} to {high} in "
                f"{space}"
            )


def check_bounds(name: str, actions: np.ndarray, low: Any, high: Any) -> None:
    """Check (T, ...) actions against their bounds.

    :raises ValueError: if one is outside by more than rounding.
    """
    margin = ACTION_TOLERANCE * (high - low)
    for start, block in blocks(actions):
        outside = (block < low - margin) | (block > high + margin)
        if outside.any():
            row = start + int(np.argwhere(outside)[0][0])
            raise ValueError(f"{name} are outside the bounds in row {row}: {actions[row]}; allowed: {low} to {high}")


def find_breaks(buffer: ReplayBuffer, name: str) -> np.ndarray:
    """Find where the next step of an environment does not follow a step that ends no episode.

    :param buffer: replay buffer of N stored steps of every environment.
    :param name: what it is, for the message.
    :return: (N - 1, n_envs) booleans for all steps but the newest, oldest first.
    :raises ValueError: if this is so for most of the steps.
    """
    size = buffer.size()
    order = ((buffer.pos if buffer.full else 0) + np.arange(size)) % buffer.buffer_size
    running = buffer.dones[order[:-1]] == 0
    broken = np.zeros(running.shape, dtype=bool)
    first: Any = buffer.observations
    following: Any = buffer.next_observations
    pairs = [(first[key], following[key]) for key in first] if isinstance(first, dict) else [(first, following)]
    for observations, next_observations in pairs:
        length = rows_at_once(observations)
        for start in range(0, size - 1, length):
            block = slice(start, min(start + length, size - 1))
            differs = next_observations[order[block]] != observations[order[block.start + 1 : block.stop + 1]]
            broken[block] |= differs.reshape(*running[block].shape, -1).any(-1)
    broken &= running
    if broken.sum() > MAX_BREAKS * running.sum():
        row, column = np.argwhere(broken)[0]
        raise ValueError(
            f"{name}: next_observations in row {order[row]} are not the observations in row {order[row + 1]} "
            f"(environment {column}), and so for {broken.sum():,} of {running.sum():,} steps; rows must be in the "
            "order in which they happened"
        )
    return broken


def leads_to(buffer: ReplayBuffer, observations: Any) -> bool:
    """Return whether the newest steps that end no episode have led to the given observations.

    :param buffer: replay buffer.
    :param observations: (n_envs, *obs_shape) observations, or one such array per key; None for unknown ones.
    """
    if observations is None or buffer.size() == 0:
        return False
    newest: Any = (buffer.pos - 1) % buffer.buffer_size
    running = buffer.dones[newest] == 0
    stored: Any = buffer.next_observations
    if not isinstance(observations, dict):
        stored, observations = {"": stored}, {"": observations}
    led = {key: values[newest] for key, values in stored.items()}
    seen = {key: np.asarray(observations[key], array.dtype).reshape(array.shape) for key, array in led.items()}
    return all(np.array_equal(array[running], seen[key][running]) for key, array in led.items())
