"""Replay buffers of Stable-Baselines3."""

import pathlib
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets.episodes import new_buffer
from sb3_pwm.files.replay_buffers import as_sequences, read_replay_buffer
from sb3_pwm.replay.checks import check_timeouts_told
from sb3_pwm.replay.columns import lost_in_one_column


def from_replay_buffer(
    source: str | pathlib.Path | ReplayBuffer,
    *,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
) -> SequenceReplayBuffer:
    """Copy a replay buffer of any number of environments into one of a single environment.

    The result is a data set for ``PWM.from_dataset``. ``PWM.load_replay_buffer`` gives a file to an existing model.

    :param source: a :class:`ReplayBuffer` or :class:`DictReplayBuffer`, or the path of a file that
        ``save_replay_buffer`` wrote (SAC, TD3, DDPG, TQC, ...). A pickle runs code: load only files that you trust;
        data from others are safe as ``.npz``, see :func:`sb3_pwm.datasets.from_npz`.
    :param buffer_size: capacity of the result; None for the number of stored steps.
    :param directory: keep the arrays in files in this folder, for data larger than memory; each import needs a folder
        of its own.
    :return: the steps in the order in which they happened, one environment after the other.
    :raises TypeError: if the file holds no SB3 replay buffer.
    :raises ValueError: if it cannot be read, is empty, lacks what windows need, holds what is not finite or not in its
        spaces, or steps that do not follow each other. Where an episode breaks off now and then, as it does where SB3
        resets at a second ``learn``, it ends there.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    if isinstance(source, ReplayBuffer):
        name, sequences = "the replay buffer", as_sequences(source, "the replay buffer")
    else:
        name, sequences = str(source), read_replay_buffer(source)
    check_timeouts_told(sequences, name)
    size = sequences.size()
    if size == 0:
        raise ValueError(f"{name} is empty")
    order = (sequences.oldest + np.arange(size)) % sequences.buffer_size
    spaces = (sequences.observation_space, sequences.action_space)
    with new_buffer(sequences.n_transitions, *spaces, name, buffer_size, directory) as result:
        for env in range(sequences.n_envs):
            rows = slice(env * size, (env + 1) * size)
            for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
                copy_rows(getattr(result, name), getattr(sequences, name), rows, order, env)
            last = rows.stop - 1
            if not result.dones[last, 0]:  # the next row belongs to another environment
                result.dones[last, 0] = result.timeouts[last, 0] = 1
    lost = lost_in_one_column(sequences, size * np.arange(sequences.n_envs))
    result.lost_beginnings = tuple((step, 0) for step in lost)
    return result


def copy_rows(target: Any, source: Any, rows: slice, order: np.ndarray, env: int) -> None:
    """Copy the rows ``order`` of one environment from array(s) of (rows, n_envs, ...) to array(s) of (rows, 1, ...)."""
    if isinstance(target, dict):
        for key, array in target.items():
            copy_rows(array, source[key], rows, order, env)
        return
    target[rows, 0] = source[order, env]
