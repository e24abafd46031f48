"""SB3 callbacks for what a world model needs."""

import warnings
from collections import defaultdict, deque
from statistics import fmean
from typing import cast

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_pwm.checks import check_integer
from sb3_pwm.compute.random_state import untouched_generators
from sb3_pwm.diagnostics.evaluation import check_normalizer
from sb3_pwm.pwm import PWM

LARGE_GAP = 1 / 3  # twice the real return
TABLE_WIDTH = 33  # what SB3's printed table shows of a name; it refuses two names that are equal up to there


class ModelGapCallback(BaseCallback):
    """Log ``eval/model_gap``, see :meth:`PWM.model_gap`, and warn when model and environment drift apart.

    It needs an environment to evaluate in, and is most useful beside :meth:`PWM.learn_offline`: there nothing corrects
    a policy that exploits its model. It changes nothing in training, not even its random numbers.

    :param eval_env: environment to evaluate in, not the one that the model trains in; it needs a ``VecNormalize`` if
        that one has it, see :meth:`PWM.value_calibration`.
    :param eval_freq: evaluate after every so many calls: policy updates offline, environment steps online (steps of
        each environment).
    :param n_eval_episodes: episodes per evaluation.
    :param verbose: 1 prints every gap.
    :raises ValueError: if a number is not positive; when learning starts, if the shapes of the environment's spaces
        are not the model's, or only one of the two environments has a ``VecNormalize``.
    :raises TypeError: when learning starts, if ``eval_env`` is not an environment.
    """

    def __init__(
        self, eval_env: GymEnv | VecEnv, eval_freq: int = 10_000, n_eval_episodes: int = 5, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_integer("eval_freq", eval_freq, 1)
        check_integer("n_eval_episodes", n_eval_episodes, 1)
        self.eval_env = eval_env
        self.eval_freq = eval_freq
        self.n_eval_episodes = n_eval_episodes

    def _init_callback(self) -> None:
        if not isinstance(self.model, PWM):
            raise TypeError(f"ModelGapCallback is for PWM, not {type(self.model).__name__}")
        if not isinstance(self.eval_env, gym.Env | VecEnv):
            raise TypeError(f"eval_env must be an environment, not {type(self.eval_env).__name__}")
        check_normalizer(self.eval_env, self.model.get_vec_normalize_env())
        vec_env = self.model._wrap_env(self.eval_env, monitor_wrapper=False)
        for name in ("observation_space", "action_space"):
            given, allowed = getattr(vec_env, name), getattr(self.model, name)
            if given.shape != allowed.shape:
                raise ValueError(f"eval_env has {name}={given}; the model's is {allowed}")

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq:
            return True
        model = cast(PWM, self.model)
        with untouched_generators():
            gap = model.model_gap(self.eval_env, self.n_eval_episodes)
        self.logger.record("eval/model_gap", gap)
        if self.verbose:
            print(f"num_timesteps={self.num_timesteps}, model_gap={gap:.2f}")
        if gap > LARGE_GAP:
            warnings.warn(
                f"eval/model_gap is {gap:.2f} at num_timesteps={self.num_timesteps}: the model promises the policy far "
                "more than it gets; it may be exploiting errors of the model",
                UserWarning,
                stacklevel=2,
            )
        return True


class TaskLogCallback(BaseCallback):
    """Log each task's episodes: ``rollout/<task>/ep_rew_mean``, ``ep_len_mean`` and, where known, success rates.

    For the environments of :func:`sb3_pwm.multitask.envs.task_vec_env`, whose infos may say ``is_success``.
    ``success_rate`` is the share of episodes that were a success at their last step, ``success_once_rate`` at any.
    Names that are too long for SB3's printed table appear in the other logs only.

    :param stats_window_size: number of each task's last episodes to average over.
    :param verbose: 0 keeps the values out of the printed table: with many tasks it is long.
    :raises ValueError: if ``stats_window_size`` is below 1.
    """

    def __init__(self, stats_window_size: int = 100, verbose: int = 0) -> None:
        super().__init__(verbose)
        check_integer("stats_window_size", stats_window_size, 1)
        self._windows: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=stats_window_size))
        self._once: set[int] = set()  # environments whose present episodes have been a success

    def _on_step(self) -> bool:
        infos = self.locals.get("infos", [])  # learn_offline has none
        self._once.update(index for index, info in enumerate(infos) if info.get("is_success"))
        ended = [(index, info) for index, info in enumerate(infos) if "task" in info.get("episode", {})]
        for index, info in ended:
            episode = info["episode"]
            name = f"rollout/{episode['task']}"
            self._windows[f"{name}/ep_rew_mean"].append(episode["r"])
            self._windows[f"{name}/ep_len_mean"].append(episode["l"])
            if "is_success" in info:
                self._windows[f"{name}/success_rate"].append(info["is_success"])
                self._windows[f"{name}/success_once_rate"].append(index in self._once)
            self._once.discard(index)
        if ended:  # SB3 writes the log when an episode has ended, and then forgets all values
            for key, values in self._windows.items():
                shown = self.verbose and len(key.removeprefix("rollout/")) <= TABLE_WIDTH
                self.logger.record(key, fmean(values), exclude=None if shown else ("stdout", "log"))
        return True
