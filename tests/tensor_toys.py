"""A simulator of many environments that keeps everything in tensors, which it uses again at every step."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper


class PointEnv(VecEnv):
    """Points on lines that are pushed: episodes end after ``length`` steps or more, the first point's not by time-out.

    Beyond 5 all end at once.

    :param n_envs: number of points.
    :param as_dict: observations have two parts.
    :param discrete: there are three actions, instead of two numbers of which only one matters.
    :param length: steps of the first point's episodes; those of the next ones are one step longer each.
    """

    def __init__(self, n_envs: int = 3, *, as_dict: bool = False, discrete: bool = False, length: int = 5) -> None:
        box = spaces.Box(-10, 10, (3,), np.float32)
        space = spaces.Dict({"state": box, "time": spaces.Box(0, 99, (1,), np.float32)}) if as_dict else box
        numbers = spaces.Box(np.array([-2, 0], np.float32), np.array([3, 1], np.float32))
        super().__init__(n_envs, space, spaces.Discrete(3) if discrete else numbers)
        self.lengths = length + torch.arange(n_envs)
        self.generator = torch.Generator().manual_seed(0)
        self.state = torch.zeros(n_envs, 3)
        self.times = torch.zeros(n_envs, dtype=torch.int64)
        self.returns = torch.zeros(n_envs)
        self.rewards, self.dones = torch.zeros(n_envs), torch.zeros(n_envs, dtype=torch.bool)
        self.received: list[Any] = []  # actions

    def observe(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {"state": self.state, "time": self.times[:, None].float()}
        return self.state

    def reset(self) -> Any:
        self.begin(torch.ones(self.num_envs, dtype=torch.bool))
        return self.observe()

    def begin(self, which: torch.Tensor) -> None:
        self.state[which] = torch.randn(self.num_envs, 3, generator=self.generator)[which]
        self.times[which], self.returns[which] = 0, 0.0

    def step_async(self, actions: Any) -> None:
        self.received.append(actions)

    def step_wait(self) -> Any:
        push = torch.as_tensor(self.received[-1])
        if isinstance(self.action_space, spaces.Discrete):
            push = torch.stack([push - 1.0, push * 0.5], dim=1)
        self.state[:, 0] += push[:, 0] / 2
        self.state[:, 1:] = push
        self.times += 1
        self.rewards[:] = -(self.state[:, 0] ** 2)
        self.returns += self.rewards
        late = self.times >= self.lengths
        ended = (self.state[:, 0].abs() > 5) | (late & (torch.arange(self.num_envs) == 0))
        self.dones[:] = ended | late
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        last = self.observe()
        for i in torch.nonzero(self.dones).flatten().tolist():
            one = {key: part[i].clone() for key, part in last.items()} if isinstance(last, dict) else last[i].clone()
            infos[i] = {
                "terminal_observation": one,
                "TimeLimit.truncated": late[i] & ~ended[i],
                "episode": {"r": self.returns[i].clone(), "l": self.times[i].clone()},
                "is_success": ended[i],
            }
        self.begin(self.dones)
        return self.observe(), self.rewards, self.dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class AsArrays(VecEnvWrapper):
    """The same as a NumPy environment, as a careful user would write it."""

    def reset(self) -> Any:
        return as_arrays(self.venv.reset())

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return as_arrays(observations), as_arrays(rewards), as_arrays(dones), [as_arrays(info) for info in infos]


def as_arrays(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: as_arrays(value) for key, value in values.items()}
    return values.numpy().copy()
