"""A suite of small tasks, found by import path: ``suite_toys:toys``."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_pwm import Task, TaskSet

KILL_FOLDER = "SUITE_TOYS_KILL"  # variable: folder with a file ``armed`` if the process is to die


class Point(gym.Env):
    """Moves along a line; a step on the right half is a success. The process may be killed after some steps."""

    def __init__(self, size: Any, gain: Any, kills: Any = False) -> None:
        self.size, self.gain, self.kills, self.taken = size, gain, kills, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def observe(self) -> Any:
        return np.full(self.size, self.place, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.taken += 1
        armed = Path(os.environ.get(KILL_FOLDER, "/none")) / "armed"
        if self.kills and self.taken == 30 and armed.exists():
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        self.place += self.gain * float(action[0])
        return self.observe(), -abs(self.place), False, False, {"success": self.place > 0}


def toys() -> Any:
    """Return the suite."""
    tasks: dict[str, Any] = {"right": (1, 0.5), "left": (2, -0.5), "deadly": (2, 0.3, True)}
    return TaskSet([Task(name, partial(Point, *sizes), sizes[0], 1, 10) for name, sizes in tasks.items()])
