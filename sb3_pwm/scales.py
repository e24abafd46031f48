"""When a policy takes the scales of observations and rewards from the replay buffer."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_pwm.learning_rates import ScheduledAlgorithm

STATISTICS_INTERVAL = 1_000  # environment steps between refreshes of the observation and reward statistics


class ScalingAlgorithm(ScheduledAlgorithm):
    """Algorithm whose policy has scales of observations and rewards, taken from the replay buffer as it grows.

    Networks know only scaled observations, so that a sudden change of the scales is a change of the environment. A
    buffer with fewer transitions than the scales stand for, such as the new one of a loaded model, leaves them alone
    until it is full.
    """

    _steps_since_statistics: int

    def _setup_model(self) -> None:
        super()._setup_model()
        self._steps_since_statistics = STATISTICS_INTERVAL

    def _take_over_buffer(self, buffer: ReplayBuffer) -> None:
        super()._take_over_buffer(buffer)
        self._steps_since_statistics = STATISTICS_INTERVAL

    def set_env(self, env: GymEnv | VecEnv, force_reset: bool = True) -> None:
        """Set the environment, see :meth:`stable_baselines3.common.base_class.BaseAlgorithm.set_env`.

        Another ``VecNormalize`` is made up for at the next update, if the replay buffer still holds what the present
        scales of observations and rewards were taken from.

        :param env: the environment.
        :param force_reset: reset it before the next step.
        """
        known = self._vec_normalize_env
        super().set_env(env, force_reset)
        if self._vec_normalize_env is not known:
            self._steps_since_statistics = STATISTICS_INTERVAL

    def _on_transition(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[Any]) -> None:
        super()._on_transition(observations, rewards, dones, infos)
        self._steps_since_statistics += self.n_envs

    def _refresh_statistics(self, *, at_once: bool = False) -> bool:
        """Take the scales from the replay buffer, if it holds enough and has grown enough since or ``at_once``.

        :return: whether they were taken.
        """
        if not at_once and self._steps_since_statistics < STATISTICS_INTERVAL:
            return False
        size, capacity = self.sequences.n_transitions, self.sequences.buffer_size * self.sequences.n_envs
        if size < min(int(self.policy.statistics_size), capacity):
            return False
        observations, rewards = self.sequences.statistics_sample(self._vec_normalize_env, self.policy.n_tasks)
        self.policy.set_statistics(observations, rewards)
        self.policy.statistics_size.fill_(size)
        self._steps_since_statistics = 0
        return True

    @property
    def _n_known_transitions(self) -> int:
        """Number of stored transitions; fewer if a ``VecNormalize`` that still learns has seen fewer."""
        env, stored = self._vec_normalize_env, self.sequences.n_transitions
        return stored if env is None or not env.training else min(stored, int(env.ret_rms.count))

    def _check_normalizer_known(self) -> None:
        """Check that a ``VecNormalize`` knows the units of what is stored; :meth:`learn` lets it see more first.

        :raises ValueError: if it does not.
        """
        known, stored = self._n_known_transitions, self.sequences.n_transitions
        if known < min(stored, max(1, self.learning_starts)):
            raise ValueError(
                f"the environment's VecNormalize has seen {known} steps, the replay buffer holds {stored}: it would "
                "clip them in units of its own; leave it out (a model has its own scales), or load its statistics, "
                "VecNormalize.load(path, venv)"
            )
