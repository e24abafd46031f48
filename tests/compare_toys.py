"""Environments and algorithms for the tests of benchmarks, found by import path: ``compare_toys:Killed-v0``."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from stable_baselines3 import SAC
from stable_baselines3.common.envs import BitFlippingEnv

KILL_FOLDER = "COMPARE_TOYS_KILL"  # variable: folder of the run whose process is to die


class Killed(PendulumEnv):
    """Pendulum that kills its process without notice, once, after the first checkpoint and an evaluation since."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        folder = Path(os.environ.get(KILL_FOLDER, "/none"))
        marker = folder / "killed"
        if (folder / "checkpoint-1").exists() and not marker.exists():
            evaluations = (folder / "curve.csv").read_text().splitlines()[1:]
            if int(evaluations[-1].split(",")[0]) > 150:
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Succeeding(PendulumEnv):
    """Pendulum whose episodes succeed at their first step and at no other."""

    def reset(self, **kwargs: Any) -> Any:
        self.first = True
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        *outcome, info = super().step(action)
        success, self.first = self.first, False
        return *outcome, info | {"success": success}


class Failing(PendulumEnv):
    """Pendulum that breaks after some steps of training."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken > 90:
            raise RuntimeError("the pendulum broke")
        return super().step(action)


class Exiting(PendulumEnv):
    """Pendulum that ends the program after some steps of training."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken > 90:
            sys.exit(int(os.environ["COMPARE_TOYS_EXIT"]))
        return super().step(action)


class Global(PendulumEnv):
    """Pendulum whose start states come from NumPy's global generator."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.random.uniform(-1, 1, 2)
        return self._get_obs(), {}


class Sized(gym.Env[Any, Any]):
    """An environment that must be told the number of its observations."""

    action_space = gym.spaces.Box(-1, 1)

    def __init__(self, size: int) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (size,))


class MySAC(SAC):
    """An algorithm of one's own."""


kinds: tuple[Any, ...] = (Killed, Succeeding, Failing, Exiting, Global, Sized)
for kind in kinds:
    gym.register(f"{kind.__name__}-v0", kind, max_episode_steps=60)
goal_env: Any = BitFlippingEnv
gym.register("FlipToGoal-v0", goal_env, kwargs={"n_bits": 3, "continuous": True, "max_steps": 5})
for env_id in ("toys/Global-v0", "toys-Global-v0"):
    gym.register(env_id, kinds[kinds.index(Global)], max_episode_steps=60)
