"""Environments of a task set: padded to common spaces, one by one or as an SB3 vector."""

from functools import partial
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_pwm.multitask.tasks import TaskSet, check_fits, padded_observation_space, space_sizes


class PaddedTaskEnv(gym.Wrapper[dict[str, Any], np.ndarray, Any, np.ndarray]):
    """An environment of one task in the spaces of its task set.

    Observations are ``{"observation": (observation_size,) float32, "task": task_id}``, flattened in the order of the
    environment's own space and followed by zeros. Actions are (action_size,) in [-1, 1]; the first ones are rescaled to
    the environment's own bounds, the others have no effect. Infos carry the task's name as ``task``, and ``success``,
    where an environment reports it, also as ``is_success``, SB3's word.

    :param env: environment with a Box (or a Dict of Boxes) of observations and a bounded Box of actions, one axis each.
    :param name: name of the task.
    :param task_id: its place in the set.
    :param n_tasks: number of tasks of the set.
    :param observation_size: number of observations of the set.
    :param action_size: number of action dimensions of the set.
    :raises TypeError: if a space is of another kind.
    :raises ValueError: if the environment has more dimensions than the set, or actions that cannot be rescaled from
        their bounds.
    """

    def __init__(
        self,
        env: gym.Env[Any, np.ndarray],
        name: str,
        task_id: int,
        n_tasks: int,
        observation_size: int,
        action_size: int,
    ) -> None:
        super().__init__(env)
        self.n_observations, self.n_actions = space_sizes(name, env)
        check_fits(name, self.n_observations, self.n_actions, observation_size, action_size)
        if not 0 <= task_id < n_tasks:
            raise ValueError(f"task_id={task_id} is out of range; allowed: 0 to {n_tasks - 1}")
        self.name, self.task_id = name, task_id
        self.observation_space = padded_observation_space(n_tasks, observation_size)
        self.action_space = spaces.Box(-1, 1, (action_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset the environment; see :class:`gymnasium.Env`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._padded(observation), self._named(info)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a step with a padded action; see :class:`gymnasium.Env`."""
        observation, reward, terminated, truncated, info = self.env.step(self._own_action(action))
        return self._padded(observation), float(reward), terminated, truncated, self._named(info)

    def _padded(self, observation: Any) -> dict[str, Any]:
        flat = spaces.flatten(self.env.observation_space, observation)
        size = self.observation_space["observation"].shape[0]  # type: ignore[index]
        return {"observation": pad(np.asarray(flat), size), "task": self.task_id}

    def _own_action(self, action: np.ndarray) -> np.ndarray:
        """Cut a padded action and rescale it; rounding must not leave the bounds."""
        space: Any = self.env.action_space
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        scaled = low + (np.asarray(action, np.float64)[: self.n_actions] + 1) / 2 * (high - low)
        return np.asarray(np.clip(scaled, low, high), space.dtype)

    def _named(self, info: dict[str, Any]) -> dict[str, Any]:
        named = {**info, "task": self.name}
        if "success" in info:
            named.setdefault("is_success", bool(info["success"]))
        return named


def pad(values: np.ndarray, size: int) -> np.ndarray:
    """Return (size,) float32: the (n,) values, followed by zeros.

    :param values: (n,) array, n <= size.
    :param size: length of the result.
    :return: new array.
    """
    return np.pad(values.astype(np.float32), (0, size - len(values)))


def single_task_env(task_set: TaskSet, name: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make one task's environment, padded as :class:`PaddedTaskEnv` and monitored.

    :param task_set: the set.
    :param name: name of the task.
    :param render_mode: of the environment.
    :return: the environment; ``info["episode"]`` at the end of an episode carries the task's name as ``task``.
    :raises ValueError: if there is no such task, or its environment has other sizes than the set says.
    """
    task_id = task_set.task_id(name)
    env = task_set[task_id].make_env(render_mode)
    padded = PaddedTaskEnv(env, name, task_id, len(task_set), task_set.observation_size, task_set.action_size)
    return Monitor(padded, info_keywords=("task",))


def task_vec_env(
    task_set: TaskSet,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] = DummyVecEnv,
    vec_env_kwargs: dict[str, Any] | None = None,
    *,
    seed: int | None = None,
    render_mode: str | None = None,
) -> VecEnv:
    """Make a vector with one environment per task, in the order of the set.

    Each step of the vector is one step of every task, so data of all tasks are collected in turn.

    :param task_set: the set.
    :param vec_env_cls: ``DummyVecEnv``, or ``SubprocVecEnv`` for one process per task.
    :param vec_env_kwargs: its arguments.
    :param seed: of the first environment; the next one gets the next number, and so on.
    :param render_mode: of the environments.
    :return: the vector.
    :raises ValueError: if an environment has other sizes than the set says.
    """
    makers: list[Any] = [partial(single_task_env, task_set, name, render_mode) for name in task_set.names]
    vec_env = vec_env_cls(makers, **(vec_env_kwargs or {}))
    vec_env.seed(seed)
    return vec_env
