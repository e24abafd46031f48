"""Evaluations that leave no trace in the run that they look at."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, sync_envs_normalization

from sb3_pwm.compute.random_state import untouched_generators

EVALUATION_SEED = 1_000_000  # the same start states for every algorithm, seed and evaluation


def make_evaluation_env(env_id: str, env_kwargs: dict[str, Any], training_env: VecEnv | None = None) -> VecEnv:
    """Return an environment to evaluate in, with the training environment's kind of normalisation."""
    env: VecEnv = DummyVecEnv([lambda: Monitor(gym.make(env_id, **env_kwargs))])
    if isinstance(training_env, VecNormalize):
        env = VecNormalize(
            env,
            training=False,
            norm_obs=training_env.norm_obs,
            norm_reward=False,
            clip_obs=training_env.clip_obs,
            epsilon=training_env.epsilon,
            norm_obs_keys=training_env.norm_obs_keys,
        )
    return env


class Successes:
    """Remember which episodes of one environment were successful, at their last step and at any.

    A callback of SB3's ``evaluate_policy``.

    :param on_episode: is told after each episode how many there have been.
    """

    def __init__(self, on_episode: Callable[[int], None] = lambda _: None) -> None:
        self._on_episode, self._n_episodes = on_episode, 0
        self._now: list[bool] = []  # at the steps of the present episode
        self._last: list[bool] = []  # of each episode
        self._once: list[bool] = []

    def __call__(self, local_variables: dict[str, Any], _: dict[str, Any]) -> None:
        """Look at a step of ``evaluate_policy``."""
        info = local_variables["info"]
        success = info.get("is_success", info.get("success"))
        if success is not None:
            self._now.append(bool(success))
        if local_variables["done"] and self._now:
            self._last.append(self._now[-1])
            self._once.append(any(self._now))
            self._now = []
        if local_variables["done"]:
            self._n_episodes += 1
            self._on_episode(self._n_episodes)

    @property
    def rates(self) -> dict[str, float]:
        """Shares of the episodes, ``success_rate`` at the last step; empty where the environment does not say."""
        pairs = {"success_rate": self._last, "success_once_rate": self._once}
        return {name: round(sum(found) / len(found), 3) for name, found in pairs.items() if found}


def evaluate(
    model: BaseAlgorithm, env: VecEnv, episodes: int, on_episode: Callable[[int], None] = lambda _: None
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Run episodes with deterministic actions, always from the same start states.

    :param model: model, which is only asked for actions.
    :param env: environment of its own, see :func:`make_evaluation_env`.
    :param episodes: number of episodes.
    :param on_episode: is told after each episode how many there have been.
    :return: (episodes,) returns, (episodes,) lengths, and success rates, see :class:`Successes`.
    """
    successes = Successes(on_episode)
    with untouched_generators():
        training_env = model.get_vec_normalize_env()
        if training_env is not None:
            sync_envs_normalization(training_env, env)
        env.seed(EVALUATION_SEED)
        returns, lengths = evaluate_policy(model, env, episodes, callback=successes, return_episode_rewards=True)
    return np.asarray(returns), np.asarray(lengths), successes.rates


def random_return(env_id: str, env_kwargs: dict[str, Any], episodes: int) -> float:
    """Return the mean return of uniformly random actions from the start states of the evaluations."""
    with untouched_generators():
        env = gym.make(env_id, **env_kwargs)
        env.action_space.seed(EVALUATION_SEED)
        returns = []
        for episode in range(episodes):
            env.reset(seed=EVALUATION_SEED if episode == 0 else None)
            total, ended = 0.0, False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, ended = total + float(reward), terminated or truncated
            returns.append(total)
        env.close()
    return float(np.mean(returns))
