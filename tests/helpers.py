"""Tiny environments and models."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_pwm import PWM, PWMPolicy

BOX = spaces.Box(-1, 1, (3,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
MIXED = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
        "vector": spaces.Box(-5, 5, (4,), np.float64),
        "kind": spaces.Discrete(3),
    }
)
SMALL: dict[str, Any] = {
    "buffer_size": 500,
    "learning_starts": 20,
    "pretrain_steps": 3,
    "train_freq": 8,
    "batch_size": 8,
    "sequence_length": 3,
    "horizon": 2,
    "critic_batch_size": 16,
    "critic_updates": 1,
    "seed": 0,
    "device": "cpu",
}
NO_UPDATES: dict[str, Any] = {"pretrain_steps": 0, "gradient_steps": 0}  # where only what is stored matters
SMALL_POLICY: dict[str, Any] = {"net_arch": [16], "latent_dim": 16}


class SpaceEnv(gym.Env[Any, Any]):
    """Random observations of any space; odd episodes terminate and even ones time out after ``length`` steps."""

    def __init__(
        self, observation_space: spaces.Space[Any] = BOX, action_space: spaces.Space[Any] = ACTIONS, length: int = 7
    ) -> None:
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode += 1
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype)), action
        self.time += 1
        ended = self.time >= self.length
        terminated = ended and self.episode % 2 == 1
        return self.observation_space.sample(), float(np.sum(action)), terminated, ended and not terminated, {}


class TruthEnv(gym.Env[Any, Any]):
    """Observations tell where they come from: environment, steps ever taken, episode, end (1 true, 2 time-out), action.

    The reward is the number of steps ever taken. ``interrupt_at`` raises Ctrl-C in that step.
    """

    def __init__(self, index: int = 0, as_dict: bool = False, interrupt_at: int | None = None) -> None:
        self.index, self.as_dict, self.interrupt_at = index, as_dict, interrupt_at
        parts: dict[str, spaces.Space[Any]] = {
            "place": spaces.Box(0, 1e6, (3,), np.float32),
            "rest": spaces.Box(-1, 2, (2,), np.float32),
        }
        self.observation_space = spaces.Dict(parts) if as_dict else spaces.Box(-1, 1e6, (5,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.steps = 100 * index
        self.episode = -1

    def observe(self, end: float, action: float) -> Any:
        row = np.array([self.index, self.steps, self.episode, end, action], np.float32)
        return {"place": row[:3], "rest": row[3:]} if self.as_dict else row

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode += 1
        self.time = 0
        return self.observe(0, 0), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt
        self.steps += 1
        self.time += 1
        ended = self.time >= 5 + (self.episode + self.index) % 4
        end = (1 + self.episode % 2) if ended else 0
        return self.observe(end, action[0]), float(self.steps), end == 1, end == 2, {}


def truth_envs(n_envs: int = 1, as_dict: bool = False, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([partial(lambda i: Monitor(TruthEnv(i, as_dict, **kwargs)), i) for i in range(n_envs)])


def space_envs(
    n_envs: int = 1,
    observation_space: spaces.Space[Any] = BOX,
    action_space: spaces.Space[Any] = ACTIONS,
    **kwargs: Any,
) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(SpaceEnv(observation_space, action_space, **kwargs)) for _ in range(n_envs)])


def make(
    env: Any = None,
    policy: str | type[PWMPolicy] = "MlpPolicy",
    *,
    policy_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> PWM:
    """Return a small model; ``policy_kwargs`` are added to the small ones."""
    env = space_envs() if env is None else env
    return PWM(policy, env, policy_kwargs=SMALL_POLICY | (policy_kwargs or {}), **(SMALL | kwargs))


def make_by_fours(*args: Any, **kwargs: Any) -> PWM:
    """Return a small model that learns after every four steps, for tests that count its updates."""
    return make(*args, **({"train_freq": 4} | kwargs))


def flat_state(state: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries and lists by path."""
    if not isinstance(state, dict | list | tuple):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {path: leaf for key, part in items for path, leaf in flat_state(part, f"{prefix}/{key}").items()}


def same(first: Any, second: Any) -> bool:
    """Return whether two nested states are equal, bit for bit."""
    first, second = flat_state(first), flat_state(second)
    return first.keys() == second.keys() and all(
        torch.equal(a, second[k]) if isinstance(a, torch.Tensor) else a == second[k] for k, a in first.items()
    )


def count_updates(model: PWM) -> dict[str, int]:
    """Count the learner's updates from now on, in the returned dictionary."""
    counts = {"model": 0, "policy": 0}

    def counting(name: str, update: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return update(*args, **kwargs)

        return counted

    for name in counts:
        setattr(model._learner, f"update_{name}", counting(name, getattr(model._learner, f"update_{name}")))
    return counts


class NoHostReads(TorchDispatchMode):
    """Refuse what makes the host wait for a device, such as ``float(x)``, ``if x:`` and ``x[x > 0]``."""

    REFUSED = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
    )

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not by_mask, f"{func} reads a value from the device"
        assert func not in self.REFUSED, f"{func} reads a value from the device"
        return func(*args, **(kwargs or {}))


class PictureEnv(PendulumEnv):
    """Pendulum whose picture, 60 x 80 pixels, is grey: the number of steps of its episode times 20."""

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(self, render_mode: str | None = "rgb_array", length: int = 1_000) -> None:
        super().__init__()
        self.render_mode, self.length, self.steps, self.closed = render_mode, length, 0, False

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, self.steps >= self.length, info

    def render(self) -> Any:
        return np.full((60, 80, 3), 20 * self.steps, np.uint8)

    def close(self) -> None:
        self.closed = True


class ImageEnv(PictureEnv):
    """Observations are images of 36 x 40 pixels, alone or beside a number; channels come last."""

    def __init__(self, as_dict: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        image, self.as_dict = spaces.Box(0, 255, (36, 40, 3), np.uint8), as_dict
        self.observation_space = spaces.Dict({"image": image, "number": spaces.Box(-1, 1)}) if as_dict else image

    def _get_obs(self) -> Any:
        image = np.arange(36 * 40 * 3).reshape(36, 40, 3).astype(np.uint8)
        return {"image": image, "number": np.ones(1, np.float32)} if self.as_dict else image
