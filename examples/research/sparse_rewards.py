"""A sparse reacher, for comparisons: Reacher-v5 that gives 1 while the fingertip is within 5 cm of its target, else 0.

Importing this file registers it, so that the command finds it:

    PYTHONPATH=examples/research sb3-pwm benchmark --env sparse_rewards:SparseReacher-v0 --algo pwm sac ...
"""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

NEAR = 0.05  # metres; the arm reaches 0.2


class SparseReward(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Replace Reacher's reward; its observations end with the vector from target to fingertip."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a step; see :class:`gymnasium.Env`."""
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, float(np.linalg.norm(observation[-2:]) < NEAR), terminated, truncated, info


def make(**kwargs: Any) -> gym.Env[np.ndarray, np.ndarray]:
    """Make the environment; its episodes have 50 steps."""
    return SparseReward(gym.make("Reacher-v5", **kwargs))


gym.register("SparseReacher-v0", entry_point=make)
