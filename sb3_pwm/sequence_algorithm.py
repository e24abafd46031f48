"""SB3's off-policy loop, made safe for replaying sequences."""

import io
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import configure_logger
from tqdm.auto import tqdm

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_finite, constructor_parameters
from sb3_pwm.files.models import opened_model, save_model, without_pickles
from sb3_pwm.files.replay_buffers import as_sequences, read_replay_buffer, save_replay_buffer
from sb3_pwm.files.tensors import check_tensors

SelfSequence = TypeVar("SelfSequence", bound="SequenceOffPolicyAlgorithm")


class SequenceOffPolicyAlgorithm(OffPolicyAlgorithm):
    """Off-policy algorithm whose stored steps follow each other wherever the replay buffer says so.

    SB3 may reset an environment without a stored ``done``, takes over any buffer, and stores whatever an environment
    gives; for single transitions this is harmless, for windows it is not.
    """

    @property
    def sequences(self) -> SequenceReplayBuffer:
        """The replay buffer; one of SB3's own that a user assigned is taken over first."""
        if self.replay_buffer is None:
            raise ValueError("the model has no replay buffer; call _setup_model() or load_replay_buffer() first")
        if not isinstance(self.replay_buffer, SequenceReplayBuffer):
            self._take_over_buffer(self.replay_buffer)
        return self.replay_buffer  # type: ignore[return-value]

    def _take_over_buffer(self, buffer: ReplayBuffer) -> None:
        sequences = self._checked_buffer(buffer, "observation_space", "action_space", "n_envs")
        sequences.device = self.device
        sequences.end_trajectories()
        self.replay_buffer = sequences

    def _checked_buffer(self, buffer: ReplayBuffer, *names: str) -> SequenceReplayBuffer:
        """Return a buffer as one that gives windows; what SB3's own holds is checked, and ends where it breaks off.

        :raises TypeError: if it is no replay buffer.
        :raises ValueError: if it cannot give windows, differs from the model in one of the named attributes, or holds
            what :func:`sb3_pwm.replay.checks.check_values` or :func:`sb3_pwm.replay.checks.find_breaks` refuse.
        """
        sequences = SequenceReplayBuffer.from_replay_buffer(buffer)
        for name in names:
            found, expected = getattr(sequences, name), getattr(self, name)
            if found != expected:
                raise ValueError(f"the replay buffer's {name} is {found}, the model's is {expected}")
        return sequences if isinstance(buffer, SequenceReplayBuffer) else as_sequences(buffer, "the replay buffer")

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model in a zip file; an old file stays until the new one is whole.

        :param path: file, ``.zip`` if it has no suffix; missing folders are made.
        :param exclude: further attributes to leave out.
        :param include: attributes to write that are left out otherwise.
        :raises OSError: if it cannot be written.
        """
        save_model(path, lambda file: super(SequenceOffPolicyAlgorithm, self).save(file, exclude, include), vars(self))

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Pickle the replay buffer; an old file stays until the new one is whole.

        :param path: file, ``.pkl`` if it has no suffix; missing folders are made.
        :raises OSError: if it cannot be written.
        :raises ValueError: if there is no replay buffer.
        """
        save_replay_buffer(self.sequences, path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load a pickled replay buffer, also one that SAC, TD3 or another SB3 algorithm saved.

        A pickle runs code: load only files that you trust. Files from others are safe as ``.npz``, see
        :func:`sb3_pwm.datasets.from_npz`, which runs nothing.

        :param path: file.
        :param truncate_last_traj: not used: the newest episode always ends here, since no step can follow it.
        :raises FileNotFoundError: if there is no such file.
        :raises TypeError: if the file holds no SB3 replay buffer.
        :raises ValueError: if the file is damaged, its spaces or number of environments differ, it cannot give windows,
            or holds what cannot be learnt from, such as NaN; names file and field.
        """
        buffer = read_replay_buffer(path)
        try:
            self._take_over_buffer(buffer)
        except ValueError as error:
            raise ValueError(f"cannot use {path}: {error}") from error

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto"
    ) -> None:
        """Set the tensors of networks, scales and optimizers; no pickle is run.

        :param load_path_or_dict: file that :meth:`save` wrote, or what ``get_parameters`` returns.
        :param exact_match: whether all of them must be there.
        :param device: device to load a file to.
        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if the file is damaged, or a tensor is not finite; nothing is changed then.
        """
        if isinstance(load_path_or_dict, dict):
            check_tensors("the parameters", load_path_or_dict, self.get_parameters())
            super().set_parameters(load_path_or_dict, exact_match, device)
            return
        with opened_model(load_path_or_dict) as (file, name):
            _, parameters, _ = load_from_zip_file(file, device=device, load_data=False)  # type: ignore[arg-type]
            check_tensors(name, parameters, self.get_parameters())
            super().set_parameters(parameters, exact_match, device)

    def _on_env_reset(self) -> None:
        """Prepare for a reset of the environments: what comes next does not follow the newest stored steps."""
        self.sequences.end_trajectories()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:
            self._on_env_reset()
            self._last_obs = None  # if a reset fails, the next one is due
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        try:
            self._check_observations(self._last_obs)
        except ValueError:
            self._last_obs = None  # reset again next time
            raise
        return result

    def _setup_learn_offline(self, total_updates: int, callback: MaybeCallback, tb_log_name: str) -> BaseCallback:
        """Do what SB3 does before learning, but for the reset of the environment."""
        self.start_time = time.time_ns()
        self.num_timesteps = self._num_timesteps_at_start = self._episode_num = 0
        self._total_timesteps = total_updates
        self.ep_info_buffer = deque(maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        self._last_obs = None  # what comes next in an environment does not follow what came last
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, True)
        return self._init_callback(callback)

    def _run_offline(
        self,
        total_timesteps: int,  # the name under which callbacks look for it
        callback: MaybeCallback,
        log_interval: int | None,
        tb_log_name: str,
        progress_bar: bool,
        *,
        prepare: Callable[[], object],
        update: Callable[[], None],
    ) -> None:
        """Call ``update`` as SB3's loop calls ``train``: with callbacks, schedules and log, but no environment.

        :param total_timesteps: number of updates.
        :param callback: SB3 callback, list of callbacks or function.
        :param log_interval: updates between logs; None for no logs.
        :param tb_log_name: name of the run in TensorBoard.
        :param progress_bar: show progress.
        :param prepare: called once before the first update.
        :param update: one update.
        """
        callback = self._setup_learn_offline(total_timesteps, callback, tb_log_name)
        self._update_current_progress_remaining(0, max(1, total_timesteps))
        callback.on_training_start(locals(), globals())
        try:
            prepare()
            # SB3's own bar would count a step of every environment at each update.
            for _ in tqdm(range(total_timesteps), "policy", disable=not progress_bar):
                update()
                self.num_timesteps += 1
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                callback.update_locals(locals())
                if not callback.on_step():
                    break
                if log_interval is not None and self.num_timesteps % log_interval == 0:
                    self.dump_logs()
        except BaseException:
            close_progress_bars(callback)
            raise
        callback.on_training_end()

    def _check_observations(self, observations: Any) -> None:
        """Check (n_envs, *obs_shape) observations that the environment has just given."""
        if self._vec_normalize_env is None:
            check_finite("observation", observations, self.num_timesteps)
        else:
            # What is stored; one bad value here spoils the normalised values of all environments.
            check_finite("observation", self._vec_normalize_env.get_original_obs(), self.num_timesteps)
            check_finite("normalized observation", observations, self.num_timesteps)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        actions, buffer_actions = super()._sample_action(learning_starts, action_noise, n_envs)
        check_finite("action", buffer_actions, self.num_timesteps)
        return actions, buffer_actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        self._check_observations(new_obs)
        if self._vec_normalize_env is not None:
            check_finite("reward", self._vec_normalize_env.get_original_reward(), self.num_timesteps)
        check_finite("reward", reward, self.num_timesteps)
        for index, info in enumerate(infos):
            if dones[index] and "terminal_observation" in info:
                terminal = [info["terminal_observation"]]
                check_finite("terminal observation", terminal, self.num_timesteps, first_env=index)
        observations = self._last_obs
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._on_transition(observations, reward, dones, infos)

    def _on_transition(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[Any]) -> None:
        """Learn of a step that has just been stored.

        :param observations: (n_envs, *obs_shape) observations before the step, or one such array per key, as the policy
            saw them.
        :param rewards: (n_envs,) rewards.
        :param dones: (n_envs,) whether episodes ended, for whatever reason.
        :param infos: the step's infos.
        """

    @classmethod
    def load(
        cls: type[SelfSequence],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        weights_only: bool = False,
        **kwargs: Any,
    ) -> SelfSequence:
        """Load a model from a zip file; see :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`.

        SB3's files hold pickles, which run code when they are loaded: load only files that you trust, or with
        ``weights_only=True``.

        :param path: file, with or without ``.zip``; or an open file.
        :param env: environment to go on in; None for predictions alone.
        :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        :param custom_objects: attributes to take from here instead of the file.
        :param print_system_info: print on which system the file was written, and this one.
        :param force_reset: reset the environment before the next step.
        :param weights_only: read arguments and tensors, and run no pickle. Classes that are not this package's, SB3's
            or PyTorch's own, and functions, must then be given in ``kwargs`` or ``custom_objects``.
        :param kwargs: constructor arguments to change.
        :raises FileNotFoundError: if there is no such file.
        :raises TypeError: if a keyword is no constructor argument, or another algorithm has saved the file.
        :raises ValueError: if the file is damaged, holds other parameters than this version of the model has, or
            needs what ``weights_only`` does not read; names it.
        """
        allowed = set(constructor_parameters(cls)) - {"policy", "env", "_init_setup_model"}
        unknown = sorted(set(kwargs) - allowed)
        if unknown:
            raise TypeError(f"load() got unknown keywords {unknown}; allowed: {sorted(allowed)}")
        if "stats_window_size" in kwargs:  # SB3 keeps this one under another name
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        with opened_model(path) as (file, name):
            if weights_only:
                custom_objects = without_pickles(file, name, kwargs | (custom_objects or {}))
            return super().load(file, env, device, custom_objects, print_system_info, force_reset, **kwargs)  # type: ignore[arg-type]


def close_progress_bars(callback: BaseCallback) -> None:
    """Close the bars of training that did not end by itself.

    SB3 leaves them open, and then the thread that draws one can hold up the end of the interpreter for ever.
    """
    if isinstance(callback, CallbackList):
        for own in callback.callbacks:
            close_progress_bars(own)
    elif isinstance(callback, ProgressBarCallback) and hasattr(callback, "pbar"):
        callback.pbar.close()
