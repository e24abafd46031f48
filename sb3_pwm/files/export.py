"""Policies as files that need neither SB3 nor this package: ONNX and TorchScript."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_pwm.extras import missing_extra
from sb3_pwm.files.atomic import whole_file
from sb3_pwm.networks import Actor
from sb3_pwm.pwm import PWM

Format = Literal["onnx", "torchscript"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt"}
OUTPUT = "action"
NOISE = "noise"


class DeployedPolicy(nn.Module):
    """A policy from observations, as the environment gives them, to actions, as it takes them.

    Standardisation, a ``VecNormalize``, and the scaling of actions are inside. Images have their channels first, as
    SB3's policies see them.

    :param model: the model; its policy is copied.
    :param normalizer: statistics of observations; None for none.
    :param deterministic: take the policy's deterministic action; else one more input is the noise.
    """

    def __init__(self, model: PWM, normalizer: VecNormalize | None, deterministic: bool) -> None:
        super().__init__()
        self.policy = copy.deepcopy(model.policy).cpu().requires_grad_(False)
        self.policy.set_training_mode(False)
        self.deterministic = deterministic
        space = self.policy.observation_space
        self.keys = sorted(space.spaces) if isinstance(space, spaces.Dict) else None
        self.normalized: list[str] = []
        if normalizer is not None and normalizer.norm_obs:
            known = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
            self.normalized = sorted(known)
            self.clip = float(normalizer.clip_obs)
            for i, name in enumerate(self.normalized):
                self.register_buffer(f"mean_{i}", torch.as_tensor(known[name].mean))
                std = np.sqrt(known[name].var + normalizer.epsilon)
                self.register_buffer(f"std_{i}", torch.as_tensor(std))

    @property
    def names(self) -> list[str]:
        """Names of the inputs, in their order."""
        return [*(self.keys or ["observation"]), *([] if self.deterministic else [NOISE])]

    def example(self, n: int) -> tuple[torch.Tensor, ...]:
        """Return inputs for n observations."""
        space, inputs = self.policy.observation_space, []
        for name in self.keys or [""]:
            part = space.spaces[name] if isinstance(space, spaces.Dict) else space
            inputs.append(torch.as_tensor(np.stack([part.sample() for _ in range(n)])))
        if not self.deterministic:
            inputs.append(torch.zeros(n, self.policy.actor.action_dim))
        return tuple(inputs)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return (N, *action_shape) actions.

        :param inputs: (N, *obs_shape) observations, for Dict observations one for each key in their order; then, if not
            deterministic, (N, A) standard normal numbers.
        """
        if self.keys is None:
            observation: Any = self._normalize("", inputs[0])
        else:
            observation = {key: self._normalize(key, value) for key, value in zip(self.keys, inputs, strict=False)}
        policy = self.policy
        if self.deterministic:
            actions: torch.Tensor = policy._predict(observation, deterministic=True)
        else:
            actor = cast(Actor, policy.actor)  # of a Box, as the caller has seen
            actions = actor.sample(policy.world_model.encode(observation), inputs[-1])
        space = policy.action_space
        if not isinstance(space, spaces.Box):
            return actions.reshape(-1, *(space.shape or ()))
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        actions = actions.reshape(-1, *space.shape)
        return torch.minimum(torch.maximum(low + 0.5 * (actions + 1) * (high - low), low), high)

    def _normalize(self, name: str, observation: torch.Tensor) -> torch.Tensor:
        if name not in self.normalized:
            return observation
        i = self.normalized.index(name)
        scaled: torch.Tensor = (observation - getattr(self, f"mean_{i}")) / getattr(self, f"std_{i}")
        return scaled.clamp(-self.clip, self.clip).float()


def export_policy(
    model: PWM,
    path: str | Path,
    *,
    format: Format = "onnx",
    deterministic: bool = True,
    normalizer: VecNormalize | None = None,
) -> list[str]:
    """Write a policy for use without SB3 and this package; an old file stays until the new one is whole.

    :param model: the model; it is not changed.
    :param path: file.
    :param format: ``"onnx"`` or ``"torchscript"``.
    :param deterministic: see :class:`DeployedPolicy`.
    :param normalizer: statistics of observations; None for those of the model's environment, if it has any.
    :return: names of the inputs, in their order; the output is ``action``.
    :raises ValueError: if the format is unknown, actions cannot be drawn from given noise, or an observation has the
        name of the output.
    :raises ImportError: if a package for ONNX is not installed.
    :raises OSError: if the file cannot be written.
    """
    if format not in get_args(Format):
        raise ValueError(f'format={format!r}: allowed are "onnx" and "torchscript"')
    if not deterministic and not isinstance(model.action_space, spaces.Box):
        raise ValueError("only actions that are numbers can be drawn from given noise; leave out deterministic=False")
    deployed = DeployedPolicy(model, normalizer or model.get_vec_normalize_env(), deterministic)
    taken = sorted(({OUTPUT} if deployed.deterministic else {OUTPUT, NOISE}) & set(deployed.keys or []))
    if taken and format == "onnx":
        raise ValueError(
            f"the observation {taken[0]!r} has the name of another input or output of the file; give it another name, "
            'or use format="torchscript", which has no names'
        )
    example = deployed.example(2)
    with whole_file(path, SUFFIXES[format]) as part, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters, about code that is traced
        if format == "torchscript":
            torch.jit.trace(deployed, example).save(str(part))  # type: ignore[no-untyped-call]
        else:
            _write_onnx(deployed, example, part)
    return deployed.names


def _write_onnx(deployed: DeployedPolicy, example: tuple[torch.Tensor, ...], path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("an ONNX file", error.name, "onnx") from error
    batch = torch.export.Dim("n")
    logging.disable(logging.WARNING)  # of what else could be installed
    try:
        torch.onnx.export(
            deployed,
            example,
            str(path),
            input_names=deployed.names,
            output_names=[OUTPUT],
            dynamic_shapes=(tuple({0: batch} for _ in example),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    finally:
        logging.disable(logging.NOTSET)
