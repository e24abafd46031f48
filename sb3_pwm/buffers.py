"""Replay buffers that give windows of consecutive steps."""

import functools
import uuid
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm.checks import check_action_bounds
from sb3_pwm.compute.distributed import Part
from sb3_pwm.observations import are_tensors, in_turn, named, on_host, unnamed
from sb3_pwm.replay.checks import check_timeouts_told
from sb3_pwm.replay.device_copy import DeviceCopy, Fetched, free_memory, record_type, staged
from sb3_pwm.replay.ownership import check_files_unchanged, own_arrays
from sb3_pwm.replay.windows import Windows, draw_windows, windows_at
from sb3_pwm.type_aliases import Observations, SequenceSamples

ALL = Part()
STATISTICS_ROWS = 20_000  # enough for a standard deviation within 1 %, and a bound on the cost of large buffers
STATISTICS_BYTES = 2**26  # fewer rows where observations are large, such as images
COPY_DEVICES = ("cuda",)  # types of devices that get a copy of the buffer
SMALL = ("rewards", "dones", "timeouts")  # one number for each environment: always in the arrays too
COPY_SHARE = 0.5  # of a device's free memory that the copy may take; updates need the rest


class SequenceReplayBuffer(ReplayBuffer):
    """SB3's replay buffer, the same arrays and no more, from which masked windows can be drawn.

    On a GPU there is also a copy of the arrays, from which windows are gathered without the host. It is made at the
    first sampling if half of the GPU's free memory is enough for it; each sampling then sends the steps that are new.
    Windows are the same with and without it. It is left out, and windows are gathered on the host and sent from pinned
    memory, if there is no room (with a warning), for arrays in files, and where ``VecNormalize`` normalises, because
    that works on the host. It is neither saved nor copied with the buffer.

    Steps that come as tensors are written into the copy, and get into the arrays when one of these is read.

    Whoever changes the arrays by other means than :meth:`add` and :meth:`end_trajectories` must call
    :meth:`drop_device_copy`.
    """

    _device_copy: DeviceCopy | None = None
    _stays_on_host = False
    _borrowed = False  # whether somebody else may hold the arrays too
    lost_beginnings: tuple[tuple[int, int], ...] = ()  # (row, column) of steps after a cut within their episode
    observations: Any = Fetched()
    next_observations: Any = Fetched()
    actions: Any = Fetched()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.identity = uuid.uuid4().hex
        """Which buffer it is, also after it was saved and loaded."""

    @classmethod
    def from_replay_buffer(cls, buffer: ReplayBuffer) -> "SequenceReplayBuffer":
        """Take over the arrays of another buffer; they are copied when steps are added, if that buffer is still there.

        :param buffer: a :class:`ReplayBuffer` or :class:`DictReplayBuffer`, for example one that SAC or TD3 filled.
        :return: an object of the buffer's own class if that is a :class:`SequenceReplayBuffer` already; else a
            :class:`SequenceReplayBuffer`, or one for Dict observations or hindsight replay.
        :raises TypeError: if it is no such buffer.
        :raises ValueError: if it cannot give windows: without ``next_observations``, or where time-outs and
            terminations cannot be told apart.
        """
        check_replay_buffer(buffer)
        if isinstance(buffer, SequenceReplayBuffer):
            kind = type(buffer)
        else:
            kind = next(SEQUENCE_CLASSES[each] for each in type(buffer).__mro__ if each in SEQUENCE_CLASSES)
        sequence_buffer = kind.__new__(kind)
        sequence_buffer.__dict__.update({"identity": uuid.uuid4().hex} | buffer.__dict__ | {"_borrowed": True})
        check_files_unchanged(buffer)
        sequence_buffer.drop_device_copy()
        if isinstance(buffer, SequenceReplayBuffer):
            buffer._borrowed = True  # from now on either of them must ask
        return sequence_buffer

    def __getstate__(self) -> dict[str, Any]:
        self.fetch()
        return {name: value for name, value in vars(self).items() if name not in ("_device_copy", "_stays_on_host")}

    def drop_device_copy(self) -> None:
        """Forget what lies on the GPU; the next sampling sends all steps again, if there is room."""
        self.fetch()
        self._device_copy, self._stays_on_host = None, False

    def fetch(self) -> None:
        """Write into the arrays what only the copy on the GPU has; reading one of them does it too."""
        if self._device_copy is not None and self._device_copy.n_ahead:
            arrays = {name: array for name, array in self._arrays().items() if name not in SMALL}
            self._device_copy.fetch(self.pos, arrays)

    def reset(self) -> None:
        """Forget all steps."""
        self.fetch()
        super().reset()
        self.lost_beginnings = ()

    def add(self, obs: Any, next_obs: Any, action: Any, *args: Any, **kwargs: Any) -> None:
        """Store a step of every environment, as SB3's buffers do; as a whole or not at all if interrupted.

        Tensors are written into the copy on the GPU, if there is one or room for one, and else into the arrays.
        """
        if self._borrowed:
            own_arrays(self)
            self._borrowed = False
        self.lost_beginnings = tuple(place for place in self.lost_beginnings if place[0] != self.pos)
        place = self.pos, self.full
        on_device = self._current_copy() if are_tensors(obs) else None
        store: Callable[[], None]
        if on_device is not None:
            fixed = on_device, on_device.n_ahead + 1
            store = functools.partial(self._add_to_copy, *fixed, obs, next_obs, action, *args, **kwargs)
        else:
            self.fetch()
            if self._device_copy is not None:
                self._device_copy.n_stale += 1
            arrays = on_host(obs), on_host(next_obs), on_host(action)
            store = functools.partial(super().add, *arrays, *args, **kwargs)
        try:
            store()
        except BaseException:
            self.pos, self.full = place
            store()  # what half of a step overwrote is gone
            raise

    def _add_to_copy(
        self, copy: DeviceCopy, n_ahead: int, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any
    ) -> None:
        row = self.pos
        self.rewards[row], self.dones[row] = reward, done
        if self.handle_timeout_termination:
            self.timeouts[row] = [info.get("TimeLimit.truncated", False) for info in infos]
        small = np.stack([getattr(self, name)[row] for name in SMALL])
        fields = dict(zip(SMALL, staged(small, copy.device).to(copy.device, non_blocking=True), strict=True))
        seen = named("observations", obs) | named("next_observations", next_obs)
        copy.write(row, fields | seen | {"actions": action})
        self.full = self.full or row + 1 == self.buffer_size
        self.pos = (row + 1) % self.buffer_size
        copy.n_ahead = n_ahead

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
        self.fetch()
        newest = (self.pos - 1) % self.buffer_size
        running = self.dones[newest] == 0
        if self._borrowed and running.any():
            self.dones, self.timeouts = self.dones.copy(), self.timeouts.copy()
        self.timeouts[newest, running] = 1  # alone it means nothing, so that an interrupt between the two does no harm
        self.dones[newest, running] = 1
        if self._device_copy is not None:
            self._device_copy.n_stale = max(1, self._device_copy.n_stale)

    def end_episodes(self, ends: np.ndarray) -> None:
        """Mark steps as the (timed out) ends of their episodes, in arrays of this object's own.

        :param ends: (N, n_envs) booleans for the N oldest steps, oldest first.
        """
        ages, columns = np.nonzero(ends)
        rows = (self.oldest + ages) % self.buffer_size
        self.dones, self.timeouts = self.dones.copy(), self.timeouts.copy()
        self.dones[rows, columns] = self.timeouts[rows, columns] = 1
        self.drop_device_copy()

    def check_not_empty(self) -> None:
        """Check that windows can be drawn: as in SB3, also more of them than there are steps.

        :raises ValueError: if nothing is stored.
        """
        if self.size() == 0:
            raise ValueError("the replay buffer is empty: learn() collects steps, load_replay_buffer() loads some")

    def sample_sequences(
        self, batch_size: int, length: int, env: VecNormalize | None = None, part: Part = ALL
    ) -> SequenceSamples:
        """Draw windows whose first steps are uniform over all stored steps.

        No window crosses the end of an episode, or the newest step: what lies behind is masked.

        :param batch_size: number of windows B.
        :param length: number of steps T in a window.
        :param env: normalise observations and rewards with this wrapper's present statistics.
        :param part: of several processes that draw the same numbers, each gets ``batch_size`` windows of its own.
        :return: the windows on the buffer's device.
        :raises ValueError: if nothing is stored.
        """
        self.check_not_empty()
        windows = draw_windows(self.dones, self.oldest, self.size(), batch_size * part.n_processes, length)
        own = slice(part.rank * batch_size, (part.rank + 1) * batch_size)
        return self._relabelled(Windows(windows.rows[:, own], windows.columns[own], windows.mask[:, own]), env)

    def _relabelled(self, windows: Windows, env: VecNormalize | None) -> SequenceSamples:
        """Return what drawn windows hold; hindsight replay changes goals and rewards here."""
        return self._samples(windows, env)

    def spread_sequences(self, count: int, length: int, env: VecNormalize | None = None) -> SequenceSamples:
        """Return windows whose first steps are spread evenly over all stored steps, the same at every call.

        :param count: number of windows B, if as many steps are stored; else one for every step.
        :param length: number of steps T in a window.
        :param env: normalise observations and rewards with this wrapper's present statistics.
        :return: the windows on the buffer's device.
        :raises ValueError: if nothing is stored.
        """
        self.check_not_empty()
        return self.sequences_at(*self._spread(count), length, env)

    def sequences_at(
        self, ages: np.ndarray, columns: np.ndarray, length: int, env: VecNormalize | None = None
    ) -> SequenceSamples:
        """Return the windows that start at given steps.

        :param ages: (B,) age of each window's first step, 0 for the oldest.
        :param columns: (B,) environment of each window.
        :param length: number of steps T in a window.
        :param env: normalise observations and rewards with this wrapper's present statistics.
        :return: the windows on the buffer's device.
        """
        return self._samples(windows_at(ages, columns, self.dones, self.oldest, self.size(), length), env)

    def _spread(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ages and columns of ``count`` steps, or all, spread evenly over time within every column."""
        places = np.linspace(0, self.n_transitions - 1, min(count, self.n_transitions)).astype(np.int64)
        # Columns take turns; those of evenly spaced places would keep step with the number of columns.
        return places // self.n_envs, np.arange(len(places)) % self.n_envs

    def _samples(self, windows: Windows, env: VecNormalize | None) -> SequenceSamples:
        copy = self._current_copy() if env is None else None
        if copy is not None:
            try:
                return self._samples_from_copy(copy, windows)
            except torch.OutOfMemoryError:
                self._run_out_of_memory()
        rows, columns, mask = windows
        dones, timeouts = self.dones[rows, columns], self.timeouts[rows, columns]
        return SequenceSamples(
            observations=self._window_observations(rows, columns, env),
            actions=self._tensor(self.actions[rows, columns]),
            rewards=self._tensor(self._normalize_reward(self.rewards[rows, columns], env)),
            terminations=self._tensor(dones * (1 - timeouts)),
            mask=self._tensor(mask.astype(np.float32)),
        )

    def _current_copy(self) -> DeviceCopy | None:
        """Return the copy on the device, up to date, or None if there is none and no room for one."""
        if not self._has_room():
            return None
        arrays = self._arrays()
        try:
            if self._device_copy is None:
                record = record_type(arrays)
                self._device_copy = DeviceCopy(record, self.buffer_size, self.n_envs, self.device, n_stale=self.size())
            self._device_copy.bring_up_to_date(
                self.pos, lambda rows: {name: array[rows] for name, array in arrays.items()}
            )
        except torch.OutOfMemoryError:
            self._run_out_of_memory()
        return self._device_copy

    def _samples_from_copy(self, copy: DeviceCopy, windows: Windows) -> SequenceSamples:
        arrays = self._arrays()
        numbers = np.stack([windows.rows * self.n_envs + windows.columns, windows.mask])
        places, mask = staged(numbers, self.device).to(self.device, non_blocking=True)
        first = copy.gather(places[:1], [name for name in arrays if name.startswith("observations")])
        steps = copy.gather(places, [name for name in arrays if not name.startswith("observations")])
        return SequenceSamples(
            observations=in_turn(unnamed("observations", first), unnamed("next_observations", steps)),
            actions=steps["actions"],
            rewards=steps["rewards"],
            terminations=steps["dones"] * (1 - steps["timeouts"]),
            mask=mask.float(),
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays as they are, those of Dict observations one by one; observations come first."""
        names = ("observations", "next_observations", "actions", *SMALL)
        return {key: array for name in names for key, array in named(name, vars(self)[name]).items()}

    @property
    def _copy_bytes(self) -> int:
        return self.n_envs * self.buffer_size * record_type(self._arrays()).itemsize

    def _has_room(self) -> bool:
        """Return whether there is a copy on the device, or one may be made."""
        if self._device_copy is not None:
            if self._device_copy.device == self.device:
                return True
            self.drop_device_copy()  # the buffer has moved
        if self._stays_on_host or self.device.type not in COPY_DEVICES:
            return False
        if any(isinstance(array, np.memmap) for array in self._arrays().values()):
            return False
        needed, free = self._copy_bytes, free_memory(self.device)
        if needed <= COPY_SHARE * free:
            return True
        self._stay_on_host(
            f"a copy on {self.device} needs {needed / 1e6:,.0f} MB, allowed are {COPY_SHARE:.0%} of the "
            f"{free / 1e6:,.0f} MB that are free there (buffer_size={self.n_envs * self.buffer_size})"
        )
        return False

    def _run_out_of_memory(self) -> None:
        self._stay_on_host(f"{self.device} ran out of memory with a copy of {self._copy_bytes / 1e6:,.0f} MB")

    def _stay_on_host(self, reason: str) -> None:
        self.fetch()
        self._device_copy, self._stays_on_host = None, True
        warnings.warn(f"the replay buffer stays in host memory, which is slower: {reason}", stacklevel=2)

    def statistics_sample(self, env: VecNormalize | None = None, n_tasks: int = 1) -> Observations:
        """Return the observations of steps spread evenly over the buffer.

        They are at most ``STATISTICS_ROWS`` for each task, and take at most ``STATISTICS_BYTES``.

        :param env: normalise with this wrapper's present statistics.
        :param n_tasks: number of tasks that the buffer holds.
        :return: (N, *obs_shape) observations.
        :raises ValueError: if the buffer is empty.
        """
        self.check_not_empty()
        arrays = named("observations", vars(self)["observations"])
        bytes_per_row = sum(array.nbytes for array in arrays.values()) // (self.buffer_size * self.n_envs)
        rows, columns = self._spread(min(STATISTICS_ROWS * n_tasks, max(1, STATISTICS_BYTES // bytes_per_row)))
        if env is None and self._device_copy is not None and self._device_copy.n_ahead:
            places = torch.as_tensor(rows * self.n_envs + columns, device=self._device_copy.device)
            gathered = self._device_copy.gather(places[None], list(arrays))
            parts = {name: part[0].contiguous() for name, part in gathered.items()}
            found: Observations = unnamed("observations", parts)
            return found
        return self._gather(self.observations, rows, columns, env)

    def all_rewards(self, env: VecNormalize | None = None) -> torch.Tensor:
        """Return the (N,) rewards of all stored steps, on the host: a sample would miss rare ones.

        :param env: normalise with this wrapper's present statistics.
        """
        return torch.as_tensor(self._normalize_reward(self.rewards[: self.size()].flatten(), env))

    def all_of(self, key: str) -> torch.Tensor:
        """Return the (N,) values of a Dict observation's entry that is one number, in the order of all rewards."""
        return torch.as_tensor(self.observations[key][: self.size()].reshape(-1))

    def _window_observations(self, rows: np.ndarray, columns: np.ndarray, env: VecNormalize | None) -> Observations:
        """Return obs[t], next_obs[t], ..., next_obs[t + T - 1]; obs[t + 1] may be the reset of another episode."""
        first = self._gather(self.observations, rows[:1], columns, env)
        following = self._gather(self.next_observations, rows, columns, env)
        return in_turn(first, following)

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
        return staged(array, self.device).to(self.device, non_blocking=True)


class DictSequenceReplayBuffer(SequenceReplayBuffer, DictReplayBuffer):
    """:class:`SequenceReplayBuffer` for Dict observations."""


# Whose arrays each takes over; sb3_pwm.replay.her adds its own.
SEQUENCE_CLASSES: dict[type[ReplayBuffer], type[SequenceReplayBuffer]] = {
    ReplayBuffer: SequenceReplayBuffer,
    DictReplayBuffer: DictSequenceReplayBuffer,
}


def check_replay_buffer(buffer: Any, name: str = "the replay buffer") -> None:
    """Check that windows can be drawn from a buffer's arrays.

    :param buffer: replay buffer.
    :param name: what it is, for messages.
    :raises TypeError: if it is not an SB3 replay buffer.
    :raises ValueError: if it lacks ``next_observations``, another algorithm made it so that it cannot tell time-outs
        from terminations, or its actions have bounds from which they cannot be rescaled.
    """
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"{name} must be an SB3 ReplayBuffer, not {type(buffer).__name__} (files: sb3_pwm.datasets)")
    if getattr(buffer, "optimize_memory_usage", False):
        raise ValueError(
            f"{name} was made with optimize_memory_usage=True and lacks the observations that end "
            "episodes; allowed: optimize_memory_usage=False"
        )
    if not (isinstance(buffer, SequenceReplayBuffer) and hasattr(buffer, "handle_timeout_termination")):
        check_timeouts_told(buffer, name)
    if isinstance(buffer.action_space, spaces.Box):
        check_action_bounds(buffer.action_space)


def sequence_buffer_class(observation_space: spaces.Space[Any]) -> type[SequenceReplayBuffer]:
    """Return the buffer class for an observation space."""
    return DictSequenceReplayBuffer if isinstance(observation_space, spaces.Dict) else SequenceReplayBuffer
