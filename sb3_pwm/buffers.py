"""Replay buffers that give windows of consecutive steps."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm.parallel import Part
from sb3_pwm.sequences import Windows, draw_windows, windows_at
from sb3_pwm.type_aliases import Observations, SequenceSamples

ALL = Part()
STATISTICS_ROWS = 20_000  # enough for a standard deviation within 1 %, and a bound on the cost of large buffers
STATISTICS_BYTES = 2**26  # fewer rows where observations are large, such as images


class SequenceReplayBuffer(ReplayBuffer):
    """SB3's replay buffer, the same arrays and no more, from which masked windows can be drawn."""

    @classmethod
    def from_replay_buffer(cls, buffer: ReplayBuffer) -> "SequenceReplayBuffer":
        """Take over the arrays of another buffer without copying them.

        :param buffer: a :class:`ReplayBuffer` or :class:`DictReplayBuffer`, for example one that SAC or TD3 filled.
        :return: a :class:`SequenceReplayBuffer`, or a :class:`DictSequenceReplayBuffer` for Dict observations.
        :raises TypeError: if it is no such buffer.
        :raises ValueError: if it cannot give windows: without ``next_observations``, or where time-outs and
            terminations cannot be told apart.
        """
        check_replay_buffer(buffer)
        kind = DictSequenceReplayBuffer if isinstance(buffer, DictReplayBuffer) else SequenceReplayBuffer
        sequence_buffer = kind.__new__(kind)
        sequence_buffer.__dict__.update(buffer.__dict__)
        return sequence_buffer

    @property
    def n_transitions(self) -> int:
        """Number of stored steps, over all environments."""
        return self.size() * self.n_envs

    @property
    def oldest(self) -> int:
        """Row of the oldest step."""
        return self.pos if self.full else 0

    def end_trajectories(self) -> None:
        """Mark the newest step of every environment as the (timed out) end of its episode.

        Call it whenever the next step to be stored will not follow the newest one.
        """
        if self.size() == 0:
            return
        newest = (self.pos - 1) % self.buffer_size
        running = self.dones[newest] == 0
        self.dones[newest, running] = 1
        self.timeouts[newest, running] = 1

    def check_size(self, batch_size: int, length: int, further_steps: int = 0) -> None:
        """Check that windows can be drawn, now or after ``further_steps`` more steps of every environment.

        :raises ValueError: if they cannot.
        """
        size = min(self.size() + further_steps, self.buffer_size)
        when = f" after {further_steps} more steps" if further_steps else ""
        if size < length:
            raise ValueError(
                f"cannot draw windows of {length} steps (sequence_length): the replay buffer holds {size} steps per "
                f"environment{when} (buffer_size allows {self.buffer_size}); collect more first (learning_starts)"
            )
        if size * self.n_envs < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {size * self.n_envs} transitions in the replay "
                f"buffer{when}; collect more first (learning_starts) or use a smaller batch_size"
            )

    def sample_sequences(
        self, batch_size: int, length: int, env: VecNormalize | None = None, part: Part = ALL
    ) -> SequenceSamples:
        """Draw windows whose first steps are uniform over all stored steps.

        No window crosses the end of an episode: what lies behind it is masked.

        :param batch_size: number of windows B.
        :param length: number of steps T in a window.
        :param env: normalise observations and rewards with this wrapper's present statistics.
        :param part: of several processes that draw the same numbers, each gets ``batch_size`` windows of its own.
        :return: the windows on the buffer's device.
        :raises ValueError: if fewer than ``length`` steps or ``batch_size`` transitions are stored.
        """
        self.check_size(batch_size, length)
        windows = draw_windows(self.dones, self.oldest, self.size(), batch_size * part.n_processes, length)
        own = slice(part.rank * batch_size, (part.rank + 1) * batch_size)
        return self._samples(Windows(windows.rows[:, own], windows.columns[own], windows.mask[:, own]), env)

    def spread_sequences(self, count: int, length: int, env: VecNormalize | None = None) -> SequenceSamples:
        """Return windows whose first steps are spread evenly over all stored steps, the same at every call.

        :param count: number of windows B, if as many steps are stored; else one for every step.
        :param length: number of steps T in a window.
        :param env: normalise observations and rewards with this wrapper's present statistics.
        :return: the windows on the buffer's device.
        :raises ValueError: if fewer than ``length`` steps are stored.
        """
        self.check_size(1, length)
        places = np.linspace(0, self.n_transitions - 1, min(count, self.n_transitions)).astype(np.int64)
        ages, columns = np.divmod(places, self.n_envs)
        return self._samples(windows_at(ages, columns, self.dones, self.oldest, self.size(), length), env)

    def _samples(self, windows: Windows, env: VecNormalize | None) -> SequenceSamples:
        rows, columns, mask = windows
        dones, timeouts = self.dones[rows, columns], self.timeouts[rows, columns]
        return SequenceSamples(
            observations=self._window_observations(rows, columns, env),
            actions=self._tensor(self.actions[rows, columns]),
            rewards=self._tensor(self._normalize_reward(self.rewards[rows, columns], env)),
            terminations=self._tensor(dones * (1 - timeouts)),
            mask=self._tensor(mask.astype(np.float32)),
        )

    def statistics_sample(self, env: VecNormalize | None = None) -> tuple[Observations, torch.Tensor]:
        """Return the observations and rewards of steps spread evenly over the buffer.

        They are at most ``STATISTICS_ROWS``, and their observations take at most ``STATISTICS_BYTES``.

        :param env: normalise with this wrapper's present statistics.
        :return: (N, *obs_shape) observations and (N,) rewards.
        :raises ValueError: if the buffer is empty.
        """
        if self.size() == 0:
            raise ValueError("the replay buffer is empty")
        arrays = self.observations.values() if isinstance(self.observations, dict) else [self.observations]
        bytes_per_row = sum(array.nbytes for array in arrays) // (self.buffer_size * self.n_envs)
        count = min(self.n_transitions, STATISTICS_ROWS, max(1, STATISTICS_BYTES // bytes_per_row))
        places = np.linspace(0, self.n_transitions - 1, count).astype(np.int64)
        rows, columns = np.divmod(places, self.n_envs)
        rewards = self._tensor(self._normalize_reward(self.rewards[rows, columns], env))
        return self._gather(self.observations, rows, columns, env), rewards

    def _window_observations(self, rows: np.ndarray, columns: np.ndarray, env: VecNormalize | None) -> Observations:
        """Return obs[t], next_obs[t], ..., next_obs[t + T - 1]; obs[t + 1] may be the reset of another episode."""
        first = self._gather(self.observations, rows[:1], columns, env)
        following = self._gather(self.next_observations, rows, columns, env)
        if isinstance(first, dict) and isinstance(following, dict):
            return {key: torch.cat([first[key], following[key]]) for key in first}
        return torch.cat([first, following])  # type: ignore[list-item]

    def _gather(self, storage: Any, rows: np.ndarray, columns: np.ndarray, env: VecNormalize | None) -> Observations:
        if isinstance(storage, dict):
            gathered: Any = {key: values[rows, columns] for key, values in storage.items()}
        else:
            gathered = storage[rows, columns]
        normalized = self._normalize_obs(gathered, env)
        if isinstance(normalized, dict):
            return {key: self._tensor(values) for key, values in normalized.items()}
        return self._tensor(normalized)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        """Move a freshly gathered array to the device, without the copy of SB3's ``to_torch``."""
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        tensor = torch.as_tensor(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # or the host would wait for the last update before it could copy
        return tensor.to(self.device, non_blocking=True)


class DictSequenceReplayBuffer(SequenceReplayBuffer, DictReplayBuffer):
    """:class:`SequenceReplayBuffer` for Dict observations."""


def check_replay_buffer(buffer: Any) -> None:
    """Check that windows can be drawn from a buffer's arrays.

    :raises TypeError: if it is no SB3 replay buffer.
    :raises ValueError: if it lacks ``next_observations`` or cannot tell time-outs from terminations.
    """
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"buffer must be a stable_baselines3 ReplayBuffer, not {type(buffer).__name__}")
    if buffer.optimize_memory_usage:
        raise ValueError(
            "the replay buffer was made with optimize_memory_usage=True and lacks the observations that end "
            "episodes; allowed: optimize_memory_usage=False"
        )
    if not getattr(buffer, "handle_timeout_termination", False):
        raise ValueError(
            "the replay buffer was made with handle_timeout_termination=False and cannot tell time-outs from "
            "terminations; allowed: handle_timeout_termination=True"
        )


def sequence_buffer_class(observation_space: spaces.Space[Any]) -> type[SequenceReplayBuffer]:
    """Return the buffer class for an observation space."""
    return DictSequenceReplayBuffer if isinstance(observation_space, spaces.Dict) else SequenceReplayBuffer
