"""DMControl: 19 tasks of the DeepMind Control Suite and 11 variants, together MT30 (arXiv 2310.16828).

Each action is taken twice and an episode has 500 steps. The suite's rewards lie in [0, 1], so a step's lie in [0, 2],
and an episode's return in [0, 1000].
"""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.suites.simulators import ActionRepeat, check_render_mode, require

ACTION_REPEAT = 2
EPISODE_LENGTH = 500

# name -> (observations, actions). The order is that of TD-MPC2's task set (nicklashansen/tdmpc2, common/__init__.py):
# the task numbers in its data and checkpoints, and in PWM's, are places in this list. New tasks go elsewhere.
SUITE_TASKS = {
    "walker-stand": (24, 6),
    "walker-walk": (24, 6),
    "walker-run": (24, 6),
    "cheetah-run": (17, 6),
    "reacher-easy": (6, 2),
    "reacher-hard": (6, 2),
    "acrobot-swingup": (6, 1),
    "pendulum-swingup": (3, 1),
    "cartpole-balance": (5, 1),
    "cartpole-balance-sparse": (5, 1),
    "cartpole-swingup": (5, 1),
    "cartpole-swingup-sparse": (5, 1),
    "cup-catch": (8, 2),
    "finger-spin": (9, 2),
    "finger-turn-easy": (12, 2),
    "finger-turn-hard": (12, 2),
    "fish-swim": (24, 5),
    "hopper-stand": (15, 4),
    "hopper-hop": (15, 4),
}
VARIANT_TASKS = {
    "walker-walk-backwards": (24, 6),
    "walker-run-backwards": (24, 6),
    "cheetah-run-backwards": (17, 6),
    "cheetah-run-front": (17, 6),
    "cheetah-run-back": (17, 6),
    "cheetah-jump": (17, 6),
    "hopper-hop-backwards": (15, 4),
    "reacher-three-easy": (8, 3),
    "reacher-three-hard": (8, 3),
    "cup-spin": (8, 2),
    "pendulum-spin": (3, 1),
}


def mt30() -> TaskSet:
    """Return MT30, 24 observations and 6 actions at most, in the order of TD-MPC2."""
    return TaskSet(
        [
            Task(name, partial(make_dmcontrol, name), *sizes, EPISODE_LENGTH)
            for name, sizes in {**SUITE_TASKS, **VARIANT_TASKS}.items()
        ]
    )


def make_dmcontrol(name: str, render_mode: str | None = None) -> gym.Env[np.ndarray, np.ndarray]:
    """Make a DMControl environment that takes each action twice and never ends by time.

    :param name: one of the 30 tasks, or any other of the suite as ``"domain-task"``, such as ``"dog-run"``.
    :param render_mode: None or ``"rgb_array"``.
    :return: the environment.
    :raises ImportError: if dm_control is missing or MuJoCo is too new for it.
    :raises ValueError: if the suite has no such task.
    """
    suite = require("dm_control.suite")
    if name in VARIANT_TASKS:
        from sb3_pwm.suites.dmcontrol_variants import load_variant

        environment = load_variant(name)
    else:
        originals = {f"{domain}-{task}".replace("_", "-"): (domain, task) for domain, task in suite.ALL_TASKS}
        full_name = f"ball-in-{name}" if name.startswith("cup-") else name
        if full_name not in originals:
            raise ValueError(f"the DeepMind Control Suite has no task {name!r}; tasks: {', '.join(sorted(originals))}")
        environment = suite.load(
            *originals[full_name],
            task_kwargs={"time_limit": float("inf")},
            environment_kwargs={"flat_observation": True},
        )
    return ActionRepeat(DMControlEnv(environment, render_mode), ACTION_REPEAT)


class DMControlEnv(gym.Env[np.ndarray, np.ndarray]):
    """A ``dm_control.rl.control.Environment`` as a Gymnasium environment.

    Own code, because shimmy's adaptor gives observations as a Dict sorted by key, while data sets and checkpoints keep
    dm_control's order.

    :param environment: made with ``flat_observation=True``.
    :param render_mode: None or ``"rgb_array"``.
    """

    def __init__(self, environment: Any, render_mode: str | None = None) -> None:
        check_render_mode(render_mode)
        self.environment = environment
        self.render_mode = render_mode
        fps = round(1 / (ACTION_REPEAT * environment.control_timestep()))
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        (observation_spec,) = environment.observation_spec().values()
        action_spec = environment.action_spec()
        self.observation_space = spaces.Box(-np.inf, np.inf, observation_spec.shape, np.float32)
        low, high = (np.broadcast_to(b, action_spec.shape) for b in (action_spec.minimum, action_spec.maximum))
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; a seed makes all that follow reproducible."""
        super().reset(seed=seed)
        if seed is not None:
            self.environment.task.random.seed(seed)
        return self._observation(self.environment.reset()), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step; a discount of 0 is a termination, any other last step a truncation."""
        step = self.environment.step(np.asarray(action, np.float64))
        terminated = bool(step.last() and step.discount == 0)
        return self._observation(step), float(step.reward), terminated, bool(step.last()) and not terminated, {}

    @staticmethod
    def _observation(step: Any) -> np.ndarray:
        (observation,) = step.observation.values()
        return np.asarray(observation, np.float32)

    def render(self) -> np.ndarray | None:
        """Return a (384, 384, 3) picture, or None without a render mode."""
        if self.render_mode is None:
            return None
        return np.asarray(self.environment.physics.render(height=384, width=384, camera_id=0))

    def close(self) -> None:
        """Close the environment."""
        self.environment.close()
