"""Learning from data alone: defaults, an environment that only has spaces, and files of world models."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pwm.buffers import check_replay_buffer
from sb3_pwm.checks import check_integer
from sb3_pwm.files.tensors import check_tensors, checksum
from sb3_pwm.policies import PWMPolicy

PRETRAIN_STEPS = 10_000  # for each task: nothing improves the world model afterwards
# No environment corrects a policy that exploits the errors of one network, or values that promise too much.
POLICY_ARGUMENTS = {"n_dynamics": 3, "n_critics": 3}
# What learning from data was measured with: observations were not read from latents.
ARGUMENTS = {"batch_size": 128, "observation_coef": 0.0, "gamma": 0.995, "pessimism": 1.0}


class SpacesOnlyEnv(gym.Env[Any, Any]):
    """Stands where SB3 wants an environment while a model learns from data; it cannot be acted in.

    :param observation_space: space of the observations.
    :param action_space: space of the actions.
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Refuse.

        :raises RuntimeError: always.
        """
        raise RuntimeError("this model was made from data and has no environment to act in; call set_env(env) first")

    def step(self, action: Any) -> Any:
        """Refuse.

        :raises RuntimeError: always.
        """
        return self.reset()


def spaces_only(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int) -> DummyVecEnv:
    """Return ``n_envs`` environments that have spaces and nothing else."""
    return DummyVecEnv([lambda: SpacesOnlyEnv(observation_space, action_space)] * n_envs)


def arguments_for(dataset: ReplayBuffer, wrap: Callable[[GymEnv], VecEnv], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of a model that learns from a data set.

    :param dataset: replay buffer.
    :param wrap: wraps an environment as SB3's algorithms do.
    :param given: what differs from the defaults of :meth:`sb3_pwm.PWM.from_dataset`.
    :raises TypeError: if ``dataset`` is no replay buffer, or ``given`` holds what the data set decides.
    :raises ValueError: if windows cannot be drawn from it, or its images have their channels last.
    """
    check_replay_buffer(dataset)
    decided = sorted({"env", "buffer_size"} & set(given))
    if decided:
        raise TypeError(f"from_dataset() takes {' and '.join(decided)} from the data set; leave out the argument")
    env = wrap(spaces_only(dataset.observation_space, dataset.action_space, dataset.n_envs))
    if env.observation_space != dataset.observation_space:  # SB3 has put VecTransposeImage around it
        raise ValueError(
            f"the data set's images have their channels last, {dataset.observation_space}; SB3's networks want "
            f"them first: give the importer np.moveaxis(images, -1, -3) and the space {env.observation_space}"
        )
    policy_kwargs = POLICY_ARGUMENTS | (given.get("policy_kwargs") or {})
    size = dataset.buffer_size * dataset.n_envs
    return {**ARGUMENTS, **given, "policy_kwargs": policy_kwargs, "env": env, "buffer_size": size}


def world_model_content(policy: PWMPolicy, termination_coef: float, n_model_updates: int) -> dict[str, Any]:
    """Return what a file of a world model holds: its tensors, its scales, and what they need to be understood."""
    settings = policy.model_settings
    return {
        "world_model": dict(policy.world_model.state_dict()),
        "reward_scale": dict(policy.reward_scale.state_dict()),
        "statistics_size": int(policy.statistics_size),
        "settings": {name: str(getattr(value, "__qualname__", value)) for name, value in settings.items()},
        "termination_coef": float(termination_coef),
        "n_model_updates": n_model_updates,
    }


def take_over_world_model(policy: PWMPolicy, content: Any, path: str | pathlib.Path, termination_coef: float) -> int:
    """Give a policy the world model of a file that :meth:`sb3_pwm.PWM.save_world_model` wrote.

    :param policy: the policy to change.
    :param content: what the file holds.
    :param path: the file, for messages.
    :param termination_coef: the model's.
    :return: the number of updates that the world model has had.
    :raises ValueError: if it does not fit; nothing is changed then.
    """
    own = world_model_content(policy, termination_coef, 0)
    content = dict(content) if isinstance(content, dict) else {}
    known = content.pop("sha256", None)  # earlier revisions wrote none
    if known is not None and known != checksum(content):
        raise ValueError(f"the world model in {path} is damaged: its checksum is wrong")
    if kinds(content) != kinds(own):
        raise ValueError(f"{path} holds no world model of this version of the package")
    for part in ("settings", "world_model", "reward_scale"):
        expected, found = ({name: described(value) for name, value in c[part].items()} for c in (own, content))
        differing = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"the world model in {path} does not fit: its {name} is {found.get(name)}, this model's is "
                f"{expected.get(name)} ({len(differing)} of {part} differ; see policy_kwargs and spaces)"
            )
    check_tensors(f"the world model in {path}", content, own)
    for name in ("n_model_updates", "statistics_size"):
        check_integer(f"{name} in {path}", content[name], 0)
    if termination_coef and not content["termination_coef"]:
        raise ValueError(
            f"the world model in {path} was trained with termination_coef=0: its termination head knows nothing; "
            f"this model needs termination_coef=0 too, not {termination_coef}"
        )
    policy.world_model.load_state_dict(content["world_model"])
    policy.reward_scale.load_state_dict(content["reward_scale"])
    policy.statistics_size.fill_(content["statistics_size"])
    updates: int = content["n_model_updates"]
    return updates


def kinds(content: dict[str, Any]) -> dict[str, type]:
    """Return the class of each value."""
    return {name: type(value) for name, value in content.items()}


def described(value: Any) -> Any:
    """Return what two values must agree in: tensors in their shape."""
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else value
