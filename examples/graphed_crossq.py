"""sb3-contrib's CrossQ with its updates and its actions as CUDA graphs, for comparisons.

The critics of CrossQ's tuned settings are 2,048 wide: hours of a CPU core for a run. A GPU waits for the kernels that
Python launches one by one; a CUDA graph launches them at once. What is computed is sb3-contrib's own code.

    PYTHONPATH=examples sb3-pwm benchmark --env HalfCheetah-v5 --algo crossq_graphs=graphed_crossq:GraphedCrossQ \
      --hyperparameters sb3_pwm/benchmark/hyperparameters/crossq.yml --device cuda
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch.distributions import Distribution

from sb3_pwm.compilation import CapturedUpdate

read_number = torch.Tensor.item


class GraphedCrossQ(CrossQ):
    """CrossQ that captures its updates and actions in CUDA graphs if it is on a GPU; losses are not logged.

    Learning rates are constant, returns have one step, and the run ends within BatchRenorm's warm-up: 100,000 updates.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        Distribution.set_default_validate_args(False)  # the checks read the GPU's numbers
        self._captured: dict[Any, CapturedUpdate] = {}
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        optimizers += [self.ent_coef_optimizer] if self.ent_coef_optimizer is not None else []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = self.device.type == "cuda"
        # Kept, because walking through the modules at every update costs more than the update's small operations.
        self._layers = {
            name: [layer for layer in network.modules() if isinstance(layer, BatchRenorm)]
            for name, network in (("actor", self.actor), ("critic", self.critic))
        }
        for layer in (*self._layers["actor"], *self._layers["critic"]):
            layer.steps = layer.steps.cpu()  # which decides on the host whether the warm-up is over

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_captured", "_layers"]

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update the networks, each time with a batch from the replay buffer."""
        for _ in range(gradient_steps):
            self._n_updates += 1
            if self._n_updates > min(layer.warmup_steps for layer in self._layers["critic"]):
                raise RuntimeError("BatchRenorm's warm-up is over, what was captured holds no longer")
            *batch, discounts = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            if discounts is not None:
                raise ValueError("n_steps must be 1")
            with_actor = self._n_updates % self.policy_delay == 0
            self._call(("update", with_actor), partial(self._update, with_actor), *batch)
            for name, updates in (("critic", self._n_updates), ("actor", self._n_updates // self.policy_delay)):
                for layer in self._layers[name]:
                    layer.steps.fill_(updates)

    def _update(self, with_actor: bool, *batch: torch.Tensor) -> None:
        """Do sb3-contrib's update with a given batch, without reading numbers from the GPU."""
        with (
            mock.patch.object(self.replay_buffer, "sample", return_value=ReplayBufferSamples(*batch)),
            mock.patch.object(self, "_logger", Logger(None, [])),
            mock.patch.object(self, "_n_updates", self.policy_delay - 1 if with_actor else 0),
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
        """Return the action of one environment's observation; others as CrossQ does."""
        if self.device.type != "cuda" or np.shape(observation) != (1, *self.observation_space.shape):
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
