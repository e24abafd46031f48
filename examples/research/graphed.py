"""sb3-contrib's CrossQ and TQC with their updates and actions as CUDA graphs, for comparisons.

The critics of CrossQ's tuned settings are 2,048 wide: hours of a CPU core for a run. A GPU waits for the kernels that
Python launches one by one; a CUDA graph launches them at once. What is computed is sb3-contrib's own code, but for
CrossQ's BatchRenorm, for which one kernel computes the same numbers to rounding, and Adam, which is fused.

    PYTHONPATH=examples/research sb3-pwm benchmark --env HalfCheetah-v5 --algo crossq_graphs=graphed:GraphedCrossQ \
      --hyperparameters sb3_pwm/benchmark/hyperparameters/crossq.yml --device cuda
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from sb3_contrib import TQC, CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch.distributions import Distribution

from sb3_pwm.compute.compilation import CapturedUpdate

read_number = torch.Tensor.item


class Graphed(OffPolicyAlgorithm):
    """Mixin that captures updates and actions in CUDA graphs if it is on a GPU; losses are not logged.

    Learning rates are constant, and returns have one step.
    """

    critic: Any
    ent_coef_optimizer: Any

    def _setup_model(self) -> None:
        super()._setup_model()
        Distribution.set_default_validate_args(False)  # the checks read the GPU's numbers
        self._captured: dict[Any, CapturedUpdate] = {}
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        optimizers += [self.ent_coef_optimizer] if self.ent_coef_optimizer is not None else []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = group["fused"] = self.device.type == "cuda"

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_captured"]

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update the networks, each time with a batch from the replay buffer."""
        policy_delay = getattr(self, "policy_delay", 1)
        for _ in range(gradient_steps):
            self._n_updates += 1
            *batch, discounts = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            if discounts is not None:
                raise ValueError("n_steps must be 1")
            before = policy_delay - 1 if self._n_updates % policy_delay == 0 else 0
            self._call(("update", before), partial(self._update, before), *batch)

    def _update(self, updates_before: int, *batch: torch.Tensor) -> None:
        """Do sb3-contrib's update with a given batch, without reading numbers from the GPU."""
        with (
            mock.patch.object(self.replay_buffer, "sample", return_value=ReplayBufferSamples(*batch)),
            mock.patch.object(self, "_logger", Logger(None, [])),
            mock.patch.object(self, "_n_updates", updates_before),
            mock.patch.object(torch.Tensor, "item", lambda tensor: 0.0 if tensor.is_cuda else read_number(tensor)),
        ):
            super().train(1, len(batch[0]))

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return the action of one environment's observation; others as SB3 does."""
        if self.device.type != "cuda" or np.shape(observation) != (1, *(self.observation_space.shape or ())):
            return super().predict(observation, state, episode_start, deterministic)
        act = partial(self._act, deterministic)
        actions = self._call(("act", deterministic), act, torch.as_tensor(observation, device=self.device))
        return self.policy.unscale_action(actions.cpu().numpy()), state

    @torch.no_grad()
    def _act(self, deterministic: bool, observations: torch.Tensor) -> torch.Tensor:
        self.policy.set_training_mode(False)
        return self.policy._predict(observations, deterministic)

    def _call(self, name: Any, function: Callable[..., Any], *inputs: torch.Tensor) -> Any:
        if self.device.type != "cuda":
            return function(*inputs)
        if name not in self._captured:
            self._captured[name] = CapturedUpdate(function)
        return self._captured[name](*inputs)


class GraphedTQC(Graphed, TQC):
    """TQC; see `Graphed`."""


class GraphedCrossQ(Graphed, CrossQ):
    """CrossQ; see `Graphed`. The run ends within BatchRenorm's warm-up: 100,000 updates."""

    def _setup_model(self) -> None:
        super()._setup_model()
        layers = [layer for layer in self.policy.modules() if isinstance(layer, BatchRenorm)]
        self._warm_up = min(layer.warmup_steps for layer in layers)
        for layer in layers:
            layer.forward = partial(batch_norm, layer)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update the networks, each time with a batch from the replay buffer."""
        if self._n_updates + gradient_steps > self._warm_up:
            raise RuntimeError(f"BatchRenorm's warm-up is over after {self._warm_up:,} updates")
        super().train(gradient_steps, batch_size)


def batch_norm(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute what a BatchRenorm within its warm-up does; its variance is the unbiased one, batch_norm's is not."""
    if not layer.training:
        return F.batch_norm(x, layer.ra_mean, layer.ra_var, layer.scale, layer.bias, False, 0.0, layer.eps)
    layer.steps += 1
    biased = 1 - 1 / len(x)
    scale = layer.scale * math.sqrt(biased)
    return F.batch_norm(x, layer.ra_mean, layer.ra_var, scale, layer.bias, True, layer.momentum, layer.eps * biased)
