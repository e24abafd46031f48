"""SB3's off-policy loop, made safe for replaying sequences."""

import io
import pathlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import configure_logger
from tqdm.auto import tqdm

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_finite, constructor_parameters
from sb3_pwm.replay.checks import check_values, find_breaks
from sb3_pwm.sac_names import SAC_ARGUMENTS, without_sac_arguments

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
        if not isinstance(buffer, SequenceReplayBuffer):
            check_values(sequences, "the replay buffer")
            sequences.end_episodes(find_breaks(sequences, "the replay buffer"))
        return sequences

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load a pickled replay buffer, also one that SAC, TD3 or another SB3 algorithm saved.

        A pickle runs code: load only files that you trust.

        :param path: file.
        :param truncate_last_traj: not used: the newest episode always ends here, since no step can follow it.
        :raises TypeError: if the file holds no SB3 replay buffer.
        :raises ValueError: if its spaces or number of environments differ, or it cannot give windows.
        """
        self._take_over_buffer(load_from_pkl(path, self.verbose))

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

    def _warn_that_nothing_was_learnt(self) -> None:
        warnings.warn(
            f"nothing was learnt in {self.num_timesteps} steps: the first update comes when the replay buffer holds "
            f"learning_starts={self.learning_starts}, over all environments; it holds {self.sequences.n_transitions}, "
            "which count if you go on with learn(..., reset_num_timesteps=False)",
            stacklevel=3,
        )

    def _say(self, message: str) -> None:
        """Tell a user with ``verbose=1`` what is happening, at once."""
        if self.verbose > 0:
            print(message, flush=True)

    @contextmanager
    def _timed(self, what: str, shown: bool) -> Iterator[None]:
        """Tell what begins, and how long it took."""
        if shown:
            self._say(f"{what} ...")
        start = time.perf_counter()
        yield
        if shown:
            self._say(f"... took {time.perf_counter() - start:.1f} seconds")

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
        **kwargs: Any,
    ) -> SelfSequence:
        """Load a model from a zip file; see :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`.

        :param kwargs: constructor arguments to change.
        :raises TypeError: if a keyword is no constructor argument.
        :raises ValueError: if the file holds other parameters than this version of the model has.
        """
        kwargs = without_sac_arguments(kwargs, constructor_parameters(cls), SAC_ARGUMENTS)
        allowed = set(constructor_parameters(cls)) - {"policy", "env", "_init_setup_model"}
        unknown = sorted(set(kwargs) - allowed)
        if unknown:
            raise TypeError(f"load() got unknown keywords {unknown}; allowed: {sorted(allowed)}")
        if "stats_window_size" in kwargs:  # SB3 keeps this one under another name
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        try:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except KeyError as error:
            # SB3 answers any mismatch of the parameters' names by looking for DQN's optimizer.
            if error.args == ("policy.optimizer",):
                raise ValueError(f"cannot load {path}: {error.__context__}") from error
            raise
        except RuntimeError as error:
            if "loading state_dict" in str(error):
                raise ValueError(f"cannot load {path}: {error}") from error
            raise


def close_progress_bars(callback: BaseCallback) -> None:
    """Close the bars of training that did not end by itself.

    SB3 leaves them open, and then the thread that draws one can hold up the end of the interpreter for ever.
    """
    if isinstance(callback, CallbackList):
        for own in callback.callbacks:
            close_progress_bars(own)
    elif isinstance(callback, ProgressBarCallback) and hasattr(callback, "pbar"):
        callback.pbar.close()
