"""Meta-World (version 3): MT10, MT50, and the 50 tasks' part of MT80.

Each action is taken twice and an episode has 100 steps, as in TD-MPC2. Positions of objects and goals are drawn anew at
every reset, and the goal is part of the observation. A reward lies in [0, 10], so a step's lies in [0, 20].
``info["success"]`` is 1 while the task is solved.

TD-MPC2's published data come from version 2 of Meta-World: the same sizes, but not the same simulator.
"""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.suites.simulators import ActionRepeat, check_render_mode, require

ACTION_REPEAT = 2
EPISODE_LENGTH = 100
OBSERVATIONS, ACTIONS = 39, 4

# Meta-World's own order.
MT10_NAMES = [
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
]

# The order of TD-MPC2's task set (nicklashansen/tdmpc2, common/__init__.py), which is not Meta-World's: the numbers of
# tasks in its data and checkpoints, and in PWM's, are places in MT80, where the first of these has number 30.
MT50_NAMES = [
    "assembly",
    "basketball",
    "button-press-topdown",
    "button-press-topdown-wall",
    "button-press",
    "button-press-wall",
    "coffee-button",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-open",
    "door-close",
    "drawer-close",
    "drawer-open",
    "faucet-open",
    "faucet-close",
    "hammer",
    "handle-press-side",
    "handle-press",
    "handle-pull-side",
    "handle-pull",
    "lever-pull",
    "peg-insert-side",
    "peg-unplug-side",
    "pick-out-of-hole",
    "pick-place",
    "pick-place-wall",
    "plate-slide",
    "plate-slide-side",
    "plate-slide-back",
    "plate-slide-back-side",
    "push-back",
    "push",
    "push-wall",
    "reach",
    "reach-wall",
    "shelf-place",
    "soccer",
    "stick-push",
    "stick-pull",
    "sweep-into",
    "sweep",
    "window-open",
    "window-close",
    "bin-picking",
    "box-close",
    "door-lock",
    "door-unlock",
    "hand-insert",
]


def mt10() -> TaskSet:
    """Return MT10, 39 observations and 4 actions, in the order of Meta-World."""
    return _task_set(MT10_NAMES)


def mt50() -> TaskSet:
    """Return MT50, 39 observations and 4 actions, in the order of TD-MPC2."""
    return _task_set(MT50_NAMES)


def _task_set(names: list[str]) -> TaskSet:
    return TaskSet(
        [Task(f"mw-{name}", partial(make_metaworld, name), OBSERVATIONS, ACTIONS, EPISODE_LENGTH) for name in names]
    )


def make_metaworld(name: str, render_mode: str | None = None) -> gym.Env[np.ndarray, np.ndarray]:
    """Make a Meta-World environment that takes each action twice.

    :param name: such as ``"reach"``.
    :param render_mode: None or ``"rgb_array"``.
    :return: the environment.
    :raises ImportError: if Meta-World is missing or MuJoCo is too new for it.
    :raises ValueError: if Meta-World has no such task, or the render mode is another one.
    """
    check_render_mode(render_mode)  # Meta-World would open a window, and end the process where there is no display
    classes = require("metaworld.env_dict").ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    key = f"{name}-v3-goal-observable"
    if key not in classes:
        raise ValueError(f"Meta-World has no task {name!r}")
    return ActionRepeat(MetaWorldEnv(classes[key](render_mode=render_mode), render_mode), ACTION_REPEAT)


class MetaWorldEnv(gym.Env[np.ndarray, np.ndarray]):
    """A Meta-World environment whose resets draw new positions from a seeded generator.

    :param env: environment with an observable goal.
    :param render_mode: of that environment.
    """

    def __init__(self, env: Any, render_mode: str | None = None) -> None:
        self.env, self.render_mode = env, render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / (ACTION_REPEAT * env.dt))}
        # Without these two, the first positions stay for ever, and later ones come from NumPy's global generator.
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
        self.action_space = spaces.Box(-1, 1, (ACTIONS,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; a seed makes all that follow reproducible."""
        super().reset(seed=seed)
        if seed is not None:
            self.env.seed(seed)
        observation, info = self.env.reset()
        return np.asarray(observation, np.float32), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step; see :class:`gymnasium.Env`."""
        observation, reward, terminated, truncated, info = self.env.step(np.asarray(action, np.float64))
        return np.asarray(observation, np.float32), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> np.ndarray | None:
        """Return a picture, or None without a render mode."""
        if self.render_mode is None:
            return None
        self.env.mujoco_renderer.camera_id = self.env.model.camera("corner2").id
        return np.asarray(self.env.render())[::-1, ::-1]  # this camera stands on its head

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
