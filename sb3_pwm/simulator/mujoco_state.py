"""Gymnasium's MuJoCo environments: from an observation back to the state that it shows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_pwm.checks import name_of


class StateLayout(NamedTuple):
    """Where an observation holds the state: positions without the first few, then velocities, then whatever else."""

    skipped: int
    """Number of positions that the observation leaves out: the root's x, or x and y."""
    positions: int
    velocities: int

    @property
    def size(self) -> int:
        """Number of entries of the observation that hold positions and velocities."""
        return self.positions + self.velocities


def state_layout(env: gym.Env[Any, Any]) -> StateLayout:
    """Return where an environment's observation holds its state.

    :param env: environment; it is reset.
    :raises ValueError: if it does not say so (``observation_structure``, which most of Gymnasium's MuJoCo environments
        of version 5 have), or a wrapper changes the observation.
    """
    name = name_of(env)
    structure = getattr(env.unwrapped, "observation_structure", None)
    setter: Callable[..., None] | None = getattr(env.unwrapped, "set_state", None)
    model: Any = getattr(env.unwrapped, "model", None)
    if setter is None or not isinstance(structure, dict) or not {"qpos", "qvel"} <= set(structure):
        raise ValueError(
            f"the observation of {name} does not say where it holds positions and velocities, so that no state can be "
            "set from it; allowed: MuJoCo environments with observation_structure (Gymnasium's version 5 of "
            "HalfCheetah, Hopper, Walker2d, Ant, Humanoid, HumanoidStandup, Swimmer, InvertedPendulum)"
        )
    layout = StateLayout(structure.get("skipped_qpos", 0), structure["qpos"], structure["qvel"])
    if (layout.skipped + layout.positions, layout.velocities) != (model.nq, model.nv):
        raise ValueError(f"the observation of {name} holds a part of the state only: {structure}")
    observation, _ = env.reset()
    data: Any = env.unwrapped.data  # type: ignore[attr-defined]
    state = np.concatenate([data.qpos[layout.skipped :], data.qvel])
    plain = isinstance(observation, np.ndarray) and observation.ndim == 1
    if not plain or not np.allclose(observation[: layout.size], state, atol=1e-5):
        raise ValueError(f"the observation of {name} is not its state; a wrapper changes it")
    return layout


def skipped_positions(env: gym.Env[Any, Any], layout: StateLayout) -> np.ndarray:
    """Return the (skipped,) positions that the observation leaves out."""
    positions: np.ndarray = env.unwrapped.data.qpos[: layout.skipped].copy()  # type: ignore[attr-defined]
    return positions


def set_observed_state(
    env: gym.Env[Any, Any], layout: StateLayout, observation: np.ndarray, skipped: np.ndarray
) -> None:
    """Put an environment into the state that an observation shows.

    :param env: environment.
    :param layout: of its observations.
    :param observation: (D,) observation in the environment's units; only the entries of the layout are read.
    :param skipped: (skipped,) positions that it leaves out.
    """
    state = np.asarray(observation[: layout.size], np.float64)
    positions = np.concatenate([skipped, state[: layout.positions]])
    env.unwrapped.set_state(positions, state[layout.positions :])  # type: ignore[attr-defined]
