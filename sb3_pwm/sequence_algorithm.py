"""SB3's off-policy loop, made safe for replaying sequences."""

import io
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_pwm.actions import check_actions, for_environment
from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_action_noise, check_finite, check_train_freq, constructor_parameters
from sb3_pwm.compute.hardware import keep_sigterm
from sb3_pwm.compute.live import LiveProgress
from sb3_pwm.files.models import missing_arguments, opened_model, save_model, without_pickles
from sb3_pwm.files.replay_buffers import as_sequences, read_replay_buffer, save_replay_buffer
from sb3_pwm.files.tensors import check_tensors
from sb3_pwm.observations import are_tensors, on_host, own_copy
from sb3_pwm.replay.checks import check_timeouts_told, leads_to, sizes_of
from sb3_pwm.replay.columns import with_columns
from sb3_pwm.replay.watched_env import (
    WatchedEnv,
    check_normalizer_is_outside,
    drop_late_answers,
    innermost,
    lost_processes_explained,
    tensors_refused,
)
from sb3_pwm.sac_names import SAC_ARGUMENTS, without_sac_arguments

SelfSequence = TypeVar("SelfSequence", bound="SequenceOffPolicyAlgorithm")


class SequenceOffPolicyAlgorithm(OffPolicyAlgorithm):
    """Off-policy algorithm whose stored steps follow each other wherever the replay buffer says so.

    SB3 may reset an environment without a stored ``done``, takes over any buffer, and stores whatever an environment
    gives; for single transitions this is harmless, for windows it is not.
    """

    _watched: WatchedEnv | None = None
    _warned_of_others = False
    _acted_on: tuple[Any, Any] | None = None  # within learn(): what the last action was for

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Wrap an environment as SB3 does, after a look at its action space."""
        check_actions(env.action_space)
        venv = OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_normalizer_is_outside(venv)
        return venv

    @property
    def sequences(self) -> SequenceReplayBuffer:
        """The replay buffer; SB3's own, or one for other environments, that a user assigned is taken over first."""
        buffer = self.replay_buffer
        if buffer is None:
            raise ValueError("the model has no replay buffer; call _setup_model() or load_replay_buffer() first")
        if not isinstance(buffer, SequenceReplayBuffer) or sizes_of(buffer) != sizes_of(self):
            self._take_over_buffer(buffer)
        return self.replay_buffer  # type: ignore[return-value]

    def _take_over_buffer(self, buffer: ReplayBuffer) -> None:
        sequences = with_columns(self._checked_buffer(buffer, "observation_space", "action_space"), self.n_envs)
        sequences.device = self.device
        # Within a rollout the step under way goes into the buffer before.
        if self._acted_on is not None or not self._goes_on_from(sequences):
            sequences.end_trajectories()
        self.replay_buffer = sequences

    def _goes_on_from(self, buffer: SequenceReplayBuffer) -> bool:
        return self._last_obs is not None and leads_to(buffer, on_host(self._last_original_obs))

    def _checked_buffer(self, buffer: ReplayBuffer, *names: str) -> SequenceReplayBuffer:
        """Return a buffer as one that gives windows; what SB3's own holds is checked, and ends where it breaks off.

        :raises TypeError: if it is not a replay buffer.
        :raises ValueError: if it cannot give windows, differs from the model in one of the named attributes, or holds
            what :func:`sb3_pwm.replay.checks.check_values` or :func:`sb3_pwm.replay.checks.find_breaks` refuse.
        """
        sequences = SequenceReplayBuffer.from_replay_buffer(buffer)
        if self.replay_buffer_kwargs.get("handle_timeout_termination", True):
            check_timeouts_told(sequences, "the replay buffer")
        for name in names:
            found, expected = getattr(sequences, name), getattr(self, name)
            if found != expected:
                raise ValueError(f"the replay buffer's {name} is {found}, the model's is {expected}")
        return sequences if isinstance(buffer, SequenceReplayBuffer) else as_sequences(buffer, "the replay buffer")

    def _to_evaluate(self, dataset: ReplayBuffer) -> SequenceReplayBuffer:
        """Return a data set, checked, as a buffer that gives tensors on the model's device."""
        buffer = self._checked_buffer(dataset, "observation_space", "action_space")
        buffer.device = self.device  # of another object: the data set stays where it is
        return buffer

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
        :param truncate_last_traj: not used: the newest episode goes on if the model's environments are where it left
            them, and ends otherwise.
        :raises FileNotFoundError: if there is no such file.
        :raises TypeError: if the file holds no SB3 replay buffer.
        :raises ValueError: if the file is damaged, its spaces differ, it cannot give windows, or holds what cannot be
            learnt from, such as NaN; names file and field.
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

    def set_env(self, env: GymEnv | VecEnv, force_reset: bool = True) -> None:
        """Set the environment, see :meth:`stable_baselines3.common.base_class.BaseAlgorithm.set_env`.

        It may be for another number of environments: what the replay buffer holds is then divided among them. If a
        callback sets it, the present rollout ends in the old one.

        :param env: the environment.
        :param force_reset: reset it before the next step.
        :raises ValueError: if its spaces are not the model's, ``train_freq`` does not go with its number of
            environments, or a callback changes this number; nothing is changed then.
        """
        vec_env = self._wrap_env(env, self.verbose)
        if vec_env.num_envs != self.n_envs:
            if self._acted_on is not None:
                found = f"a callback gave the model {vec_env.num_envs} environments instead of {self.n_envs}"
                raise ValueError(f"{found}; call set_env with another number between two calls of learn()")
            check_for_correct_spaces(vec_env, self.observation_space, self.action_space)
            check_train_freq(self.train_freq, vec_env.num_envs)
            self.replay_buffer = with_columns(self.sequences, vec_env.num_envs)
            self.n_envs = vec_env.num_envs
            self._last_obs = None
        super().set_env(vec_env, force_reset)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if progress_bar:
            own = CallbackList(callback) if isinstance(callback, list) else callback
            callback = [own if isinstance(own, BaseCallback) else ConvertCallback(own), LiveProgress()]
        return super()._init_callback(callback)

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
        keep_sigterm()
        if isinstance(self.action_noise, VectorizedActionNoise) and self.action_noise.n_envs != self.n_envs:
            self.action_noise = self.action_noise.base_noise  # of which SB3 makes one for each environment
        env = self._watch(self.env)
        resets = reset_num_timesteps or self._last_obs is None
        if resets:
            self._last_obs = None  # if a reset fails, the next one is due
        if not self._goes_on_from(self.sequences):  # also one that a user assigned, or shares with another model
            self._on_env_reset()
        try:
            with lost_processes_explained(self.env), tensors_refused(self._vec_normalize_env):
                if resets:
                    drop_late_answers(self.env)
                total, _ = super()._setup_learn(total_timesteps, None, reset_num_timesteps, tb_log_name)
            if resets:
                env.note()
                self._last_obs = own_copy(self._last_obs)
                self._last_original_obs = env.original_of(self._last_obs)
            self._check_observations(self._last_obs, self._last_original_obs)
            self._acted_on = self._last_obs, self._last_original_obs
            return total, self._init_callback(callback, progress_bar)  # it may move or set the environment
        except BaseException:
            self._last_obs = self._acted_on = None  # reset again next time
            raise

    def _watch(self, env: VecEnv | None) -> WatchedEnv:
        """Return the environment as one that knows who has moved it."""
        if env is None or innermost(env) is None:
            left_out = "" if env is None else " (SB3 leaves that of a VecNormalize out of copies and pickles)"
            raise ValueError(f"the model has no environment{left_out}; call set_env(env) first")
        if isinstance(env, WatchedEnv):
            return env
        before = self._watched
        if before is None or before.venv is not env:
            self._watched = WatchedEnv(env)
            if before is not None and innermost(before) is not innermost(env):
                self._last_obs = None  # of other environments
            elif before is not None and before.moved_by_others and self._last_obs is not None:
                self._watched.doubt()
        return self._watched  # type: ignore[return-value]

    @property
    def _collected(self) -> WatchedEnv:
        """The environment of the present rollout; a callback may have set another one meanwhile."""
        return self._watch(self.env) if self._acted_on is None or self._watched is None else self._watched

    def _excluded_save_params(self) -> list[str]:
        # A file with tensors of a GPU could not be read without one; without them the next steps begin with a reset.
        last = ["_last_obs", "_last_original_obs"] if are_tensors(self._last_obs) else []
        return [*super()._excluded_save_params(), "_watched", "_warned_of_others", "_acted_on", *last]

    def _begin_episodes_anew(self, env: WatchedEnv) -> None:
        """Reset environments whose next observation would not follow what is stored."""
        if env.moved_by_others and not self._warned_of_others:
            self._warned_of_others = True
            env.warn_of_moves()
        self._on_env_reset()
        self._last_obs = None  # if the reset fails, the next one is due
        self._last_obs = env.reset()
        env.note()
        self._last_original_obs = env.original_of(self._last_obs)
        if self.action_noise is not None:
            self.action_noise.reset()
        self._check_observations(self._last_obs, self._last_original_obs)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Collect steps, see :meth:`stable_baselines3.common.off_policy_algorithm.OffPolicyAlgorithm.collect_rollouts`.

        Unlike there, the step at which a callback stops is stored: an episode's reward may lie in it.

        :raises RuntimeError: if a process of a ``SubprocVecEnv`` has ended.
        """
        self._watched = self._watch(env)
        with lost_processes_explained(env):
            rollout = super().collect_rollouts(self._watched, callback, *args, **kwargs)
        if not rollout.continue_training:
            step = callback.locals
            self._update_info_buffer(step["infos"], step["dones"])
            names = ("replay_buffer", "buffer_actions", "new_obs", "rewards", "dones", "infos")
            self._store_transition(*(step[name] for name in names))
            self._episode_num += int(step["dones"].sum())
        return rollout

    def _check_observations(self, observations: Any, original: Any) -> None:
        """Check (n_envs, *obs_shape) observations of the environment, and what they were before a ``VecNormalize``."""
        # First what is stored: one bad value there spoils the normalised values of all environments.
        check_finite("observation", original, self.num_timesteps)
        if self._collected.normalizer is not None:
            check_finite("normalized observation", observations, self.num_timesteps)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        env = self._collected
        if env.moved_by_others or self._last_obs is None:
            self._begin_episodes_anew(env)
        self._acted_on = self._last_obs, self._last_original_obs
        acts = self._sample_tensors if are_tensors(self._last_obs) else super()._sample_action
        actions, buffer_actions = acts(learning_starts, action_noise, n_envs)
        check_finite("action", buffer_actions, self.num_timesteps)
        env.expect_step()
        return actions, buffer_actions

    def _sample_tensors(self, learning_starts: int, action_noise: ActionNoise | None, n_envs: int) -> tuple[Any, Any]:
        """Return what :meth:`_sample_action` does as tensors, on the device of the environment's observations."""
        seen: Any = self._last_obs
        parts = seen.values() if isinstance(seen, dict) else [seen]
        device = next(part.device for part in parts if are_tensors(part))
        if self.num_timesteps < learning_starts or action_noise is not None:  # random numbers that NumPy draws
            actions: tuple[Any, Any] = super()._sample_action(learning_starts, action_noise, n_envs)
        else:
            with torch.no_grad():
                chosen = self.policy(self.policy.obs_to_tensor(seen)[0])
            actions = for_environment(chosen, self.action_space)
        return torch.as_tensor(actions[0], device=device), torch.as_tensor(actions[1], device=device)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        env = self._collected
        self._check_observations(new_obs, env.original_observations)
        if env.normalizer is not None:
            check_finite("reward", env.original_rewards, self.num_timesteps)
        check_finite("reward", reward, self.num_timesteps)
        following = env.next_observations()
        if env.last_observations and are_tensors(following):  # all at once
            check_finite("terminal observation", following, self.num_timesteps)
        else:
            for index, last in env.last_observations.items():
                check_finite("terminal observation", [last], self.num_timesteps, first_env=index)
        forgotten = self._last_obs is None  # by a callback: what comes next begins with a reset
        if forgotten and self._acted_on is not None:
            self._last_obs, self._last_original_obs = self._acted_on
        observations = self._last_obs
        if env.normalizer is None:
            self._last_original_obs, stored_reward = observations, reward  # callbacks may have changed these
        else:
            stored_reward = env.original_rewards
        before: Any = self._last_original_obs
        replay_buffer.add(before, following, buffer_action, stored_reward, dones, infos)
        self._last_obs, self._last_original_obs = None if forgotten else new_obs, env.original_observations
        self._on_transition(observations, reward, dones, infos)

    def _on_transition(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[Any]) -> None:
        """Learn of a step that has just been stored.

        :param observations: (n_envs, *obs_shape) observations before the step, or one such array per key, as the policy
            saw them.
        :param rewards: (n_envs,) rewards.
        :param dones: (n_envs,) whether episodes ended, for whatever reason; ``infos`` may say.
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
        :raises TypeError: if a keyword is not a constructor argument, or another algorithm has saved the file.
        :raises ValueError: if the file is damaged, holds other parameters than this version of the model has, or
            needs what ``weights_only`` does not read; names it.
        """
        kwargs = without_sac_arguments(kwargs, constructor_parameters(cls), SAC_ARGUMENTS)
        allowed = set(constructor_parameters(cls)) - {"policy", "env", "_init_setup_model"}
        unknown = sorted(set(kwargs) - allowed)
        if unknown:
            raise TypeError(f"load() got unknown keywords {unknown}; allowed: {sorted(allowed)}")
        if "stats_window_size" in kwargs:  # SB3 keeps this one under another name
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        with opened_model(path) as (file, name):
            kwargs = missing_arguments(file) | kwargs
            if weights_only:
                custom_objects = without_pickles(file, name, kwargs | (custom_objects or {}))
            model = super().load(file, env, device, custom_objects, print_system_info, force_reset, **kwargs)  # type: ignore[arg-type]
        check_action_noise(kwargs.get("action_noise"), model.n_envs, model.action_space)
        if model._last_episode_starts is not None and len(model._last_episode_starts) != model.n_envs:
            model._last_obs = None  # of another number of environments
        model._take_changes(kwargs)
        return model

    def _take_changes(self, arguments: dict[str, Any]) -> None:
        """Take over constructor arguments that ``load`` was given, where the file's tensors stand for others."""
