"""How far MuJoCo environments are from the end of their episode."""

from collections.abc import Iterator
from typing import Any

import numpy as np

PENDULUM_RANGE = (-0.2, 0.2)  # which InvertedPendulum has in its code


def termination_margin(env: Any, terminated: bool) -> float:
    """Return how far the present state of an environment lies inside the bounds of its episode.

    :param env: Gymnasium MuJoCo environment, without wrappers.
    :param terminated: what its last step said.
    :return: smallest distance to a bound, in m, rad or their units per second; negative behind one. Without bounds, or
        where they disagree with ``terminated``: 1, or -1 where the episode has ended. Such a margin has no slope.
    """
    margin = min((float(np.min(np.minimum(at - low, high - at))) for at, (low, high) in _bounds(env)), default=np.inf)
    if not np.isfinite(margin) or (margin <= 0) != terminated:
        return -1.0 if terminated else 1.0
    return margin


def _bounds(env: Any) -> Iterator[tuple[np.ndarray, tuple[float, float]]]:
    """Give the values that have bounds, with these."""
    positions = env.data.qpos
    if type(env).__name__ == "InvertedPendulumEnv":
        yield positions[1:2], PENDULUM_RANGE
    if not getattr(env, "_terminate_when_unhealthy", False):
        return
    if hasattr(env, "_healthy_z_range"):
        height = 2 if env.model.nq > env.model.nv else 1  # a free root has x, y and z, a planar one x and z
        yield positions[height : height + 1], env._healthy_z_range
    if hasattr(env, "_healthy_angle_range"):
        yield positions[2:3], env._healthy_angle_range
    if hasattr(env, "_healthy_state_range"):
        yield env.state_vector()[2:], env._healthy_state_range
