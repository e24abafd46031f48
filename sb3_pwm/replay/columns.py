"""Replay buffers for another number of environments."""

import copy
from typing import Any

import numpy as np
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pwm.buffers import SequenceReplayBuffer


def with_columns(buffer: SequenceReplayBuffer, n_envs: int) -> SequenceReplayBuffer:
    """Return a buffer for another number of environments, with the same steps and room for as many.

    One environment's steps come behind the other's, in parts of equal length; an episode ends where it is cut. Up to
    ``n_envs - 1`` of the oldest steps are left out, so that the parts are equal.

    :param buffer: replay buffer; it is not changed.
    :param n_envs: number of environments.
    :return: a new buffer, or ``buffer`` itself if it is for as many.
    """
    if buffer.n_envs == n_envs:
        return buffer
    if isinstance(buffer, HerReplayBuffer):
        raise ValueError(
            f"a hindsight replay buffer stays with its number of environments, {buffer.n_envs}; this is for {n_envs}"
        )
    order = (buffer.oldest + np.arange(buffer.size())) % buffer.buffer_size
    length = buffer.n_transitions // n_envs
    result = copy.copy(buffer)
    result.drop_device_copy()
    result.n_envs = n_envs
    result.buffer_size = max(buffer.buffer_size * buffer.n_envs // n_envs, length, 1)
    result.full = length == result.buffer_size
    result.pos = 0 if result.full else length

    def in_one_column(array: np.ndarray) -> np.ndarray:
        """Return all steps behind each other, without those that are left out."""
        steps = np.swapaxes(array[order], 0, 1).reshape(-1, *array.shape[2:])
        return steps[len(steps) - length * n_envs :]

    def in_parts(steps: np.ndarray) -> np.ndarray:
        """Return the array of the new buffer that holds the steps."""
        array = np.zeros((result.buffer_size, n_envs, *steps.shape[1:]), steps.dtype)
        array[:length] = np.swapaxes(steps.reshape(n_envs, length, *steps.shape[1:]), 0, 1)
        return array

    for name in ("observations", "next_observations", "actions", "rewards"):
        stored: Any = getattr(buffer, name)
        if isinstance(stored, dict):
            setattr(result, name, {key: in_parts(in_one_column(part)) for key, part in stored.items()})
        else:
            setattr(result, name, in_parts(in_one_column(stored)))
    dones, timeouts = in_one_column(buffer.dones), in_one_column(buffer.timeouts)
    newest = len(dones) - 1 - buffer.size() * np.arange(buffer.n_envs)  # of the columns that were
    newest = newest[newest >= 0]
    newest = newest[dones[newest] == 0]
    dones[newest] = timeouts[newest] = 1
    result.dones, result.timeouts = in_parts(dones), in_parts(timeouts)
    cuts = buffer.n_transitions - length * np.arange(n_envs, 0, -1)
    lost = lost_in_one_column(buffer, cuts) if length else []
    result.lost_beginnings = tuple((step % length, step // length) for step in lost)
    result.end_trajectories()
    return result


def lost_beginnings(buffer: SequenceReplayBuffer) -> set[tuple[int, int]]:
    """Return age and column of the stored steps whose episode began with steps that are not stored.

    Of a full buffer the oldest step of every column may be one.
    """
    oldest = {(0, column) for column in range(buffer.n_envs) if buffer.full}
    return oldest | {((row - buffer.oldest) % buffer.buffer_size, column) for row, column in buffer.lost_beginnings}


def lost_in_one_column(buffer: SequenceReplayBuffer, cuts: np.ndarray) -> list[int]:
    """Return the steps whose episode has lost its beginning, if columns follow each other and are cut before ``cuts``.

    :param buffer: replay buffer.
    :param cuts: steps, counted on from column to column.
    :return: steps, counted from the first of the cuts.
    """
    size = buffer.size()
    goes_on = buffer.dones[(buffer.oldest + np.arange(size) - 1) % buffer.buffer_size].T == 0  # the step before
    goes_on[:, 0] = False
    lost = np.zeros_like(goes_on)
    for age, column in lost_beginnings(buffer):
        lost[column, age] = True
    lost.flat[cuts] |= goes_on.flat[cuts]
    return [step - int(cuts[0]) for step in np.flatnonzero(lost).tolist() if step >= cuts[0]]
