"""Replay buffers of Stable-Baselines3."""

import pathlib
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets.episodes import check_finite, check_whole_numbers, new_buffer


def from_replay_buffer(
    source: str | pathlib.Path | ReplayBuffer,
    *,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
) -> SequenceReplayBuffer:
    """Copy a replay buffer of any number of environments into one of a single environment.

    ``PWM.load_replay_buffer`` is for a model with as many environments as the file has; this is for all others.

    :param source: a :class:`ReplayBuffer` or :class:`DictReplayBuffer`, or the path of a file that
        ``save_replay_buffer`` wrote (SAC, TD3, DDPG, TQC, ...). A pickle runs code: load only files that you trust.
    :param buffer_size: capacity of the result; None for the number of stored steps.
    :param directory: keep the arrays in files in this folder, for data larger than memory; each import needs a folder
        of its own.
    :return: the steps in the order in which they happened, one environment after the other.
    :raises TypeError: if the file holds no SB3 replay buffer.
    :raises ValueError: if it cannot be read, is empty, lacks what windows need, or holds what is not finite or not in
        the observation space.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    name = "the replay buffer" if isinstance(source, ReplayBuffer) else str(source)
    buffer = source if isinstance(source, ReplayBuffer) else load(source)
    sequences = SequenceReplayBuffer.from_replay_buffer(buffer)  # the same arrays
    size = sequences.size()
    if size == 0:
        raise ValueError(f"{name} is empty")
    check_values(sequences, name)
    order = (sequences.oldest + np.arange(size)) % sequences.buffer_size
    spaces = (buffer.observation_space, buffer.action_space)
    with new_buffer(sequences.n_transitions, *spaces, name, buffer_size, directory) as result:
        for env in range(buffer.n_envs):
            rows = slice(env * size, (env + 1) * size)
            for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
                copy_rows(getattr(result, name), getattr(buffer, name), rows, order, env)
            last = rows.stop - 1
            if not result.dones[last, 0]:  # the next row belongs to another environment
                result.dones[last, 0] = result.timeouts[last, 0] = 1
    return result


def load(path: str | pathlib.Path) -> ReplayBuffer:
    """Unpickle a replay buffer.

    :raises FileNotFoundError: if there is no such file.
    :raises TypeError: if the file holds something else.
    :raises ValueError: if it cannot be read.
    """
    try:
        buffer = load_from_pkl(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle may raise any
        raise ValueError(f"cannot read {path} as a replay buffer: {error or type(error).__name__}") from error
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"{path} must hold a stable_baselines3 ReplayBuffer, not {type(buffer).__name__}")
    return buffer


def check_values(buffer: ReplayBuffer, name: str) -> None:
    """Check that what is stored is finite and in the observation space.

    :raises ValueError: if it is not; the message names the field and the row of the buffer's arrays.
    """
    size = buffer.size()
    check_finite(f"{name}: rewards", buffer.rewards[:size])
    check_finite(f"{name}: actions", buffer.actions[:size])
    for field in ("observations", "next_observations"):
        stored: Any = getattr(buffer, field)
        if isinstance(stored, dict):
            parts = [(f"[{key!r}]", array, buffer.observation_space[key]) for key, array in stored.items()]  # type: ignore[index]
        else:
            parts = [("", stored, buffer.observation_space)]
        for key, array, space in parts:
            check_finite(f"{name}: {field}{key}", array[:size])
            check_whole_numbers(f"{name}: {field}{key}", array[:size], space)


def copy_rows(target: Any, source: Any, rows: slice, order: np.ndarray, env: int) -> None:
    """Copy the rows ``order`` of one environment from array(s) of (rows, n_envs, ...) to array(s) of (rows, 1, ...)."""
    if isinstance(target, dict):
        for key, array in target.items():
            copy_rows(array, source[key], rows, order, env)
        return
    target[rows, 0] = source[order, env]
