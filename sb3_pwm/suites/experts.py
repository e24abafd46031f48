"""Meta-World's scripted experts, with and without noise, as data."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_pwm.multitask.tasks import Task
from sb3_pwm.suites.metaworld import MT50_NAMES
from sb3_pwm.suites.simulators import require

PREFIX = "mw-"  # of the tasks' names
NOISES = (0.0, 0.1, 0.3, 0.6, 1.0, None)  # standard deviation; None for random actions instead of the expert's
Row = dict[str, Any]


def has_expert(task: Task) -> bool:
    """Return whether a task is one of Meta-World's, which have scripted experts."""
    return task.name.removeprefix(PREFIX) in MT50_NAMES and task.name.startswith(PREFIX)


def record_episode(
    env: gym.Env[np.ndarray, np.ndarray], policy: Callable[[np.ndarray], np.ndarray], seed: int | None = None
) -> tuple[list[Row], list[bool]]:
    """Return the steps of an episode, one row each, and whether the task was solved after each of them."""
    rows: list[Row] = []
    successes: list[bool] = []
    observation, _ = env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated):
        action = policy(observation)
        following, reward, terminated, truncated, info = env.step(action)
        row = {"observations": observation, "next_observations": following, "actions": action, "rewards": reward}
        rows.append(row | {"terminals": terminated, "timeouts": truncated and not terminated})
        successes.append(bool(info.get("success", False)))
        observation = following
    return rows, successes


def noisy_expert(expert: Any, noise: float | None, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Return a policy with actions in [-1, 1]: the expert's with noise, or random ones."""

    def act(observation: np.ndarray) -> np.ndarray:
        if noise is None:
            return rng.uniform(-1, 1, 4).astype(np.float32)
        action = np.clip(expert.get_action(observation.astype(np.float64)), -1, 1)
        noisy: np.ndarray = np.clip(action + noise * rng.standard_normal(4), -1, 1).astype(np.float32)
        return noisy

    return act


def record_expert(
    task: Task, n_episodes: int, seed: int, on_episode: Callable[[int], None] = lambda _: None
) -> tuple[dict[str, np.ndarray], dict[float | None, tuple[float, float]]]:
    """Record a task's scripted expert, with every size of the noise in turn, an episode each.

    :param task: one of Meta-World's tasks.
    :param n_episodes: number of episodes.
    :param seed: of environment and noise.
    :param on_episode: is told after each episode how many there have been.
    :return: the steps in the D4RL layout, and the success rates of each size of the noise: at the last step, at any.
    :raises ImportError: if Meta-World is missing.
    """
    policies = require("metaworld.policies").ENV_POLICY_MAP
    env = task.make_env()
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    found: dict[float | None, list[tuple[bool, bool]]] = {noise: [] for noise in NOISES}
    for episode in range(n_episodes):
        noise = NOISES[episode % len(NOISES)]
        policy = noisy_expert(policies[f"{task.name.removeprefix(PREFIX)}-v3"](), noise, rng)
        own, successes = record_episode(env, policy, seed if episode == 0 else None)
        rows.extend(own)
        found[noise].append((successes[-1], any(successes)))
        on_episode(episode + 1)
    env.close()
    data = {column: np.array([row[column] for row in rows]) for column in rows[0]}
    rates = {noise: np.mean(pairs, axis=0) for noise, pairs in found.items() if pairs}
    return data, {noise: (float(last), float(once)) for noise, (last, once) in rates.items()}
