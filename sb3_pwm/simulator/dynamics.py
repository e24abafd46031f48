"""The true dynamics behind the interface of the world model."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from sb3_pwm.nn.scales import LatentScale, RewardScale
from sb3_pwm.simulator.steps import MujocoSteps
from sb3_pwm.type_aliases import Observations

MARGIN_WIDTH = 0.05  # of the sigmoid whose slope a termination has, in m or rad


class TrueDynamics(nn.Module):
    """A simulator's steps in the place of :class:`sb3_pwm.world_model.WorldModel`: nothing is learnt.

    Latents are the (D) features of an observation, its (nq + nv) state, and the reward and the termination margin of
    the step that led there. Actor and critics see the features only, see :class:`SeenFeatures`.

    :param features: module that turns observations into (N, D) features.
    :param features_dim: number D of features.
    :param steps: the environment's steps.
    :param reward_scale: the policy's.
    """

    def __init__(self, features: nn.Module, features_dim: int, steps: MujocoSteps, reward_scale: RewardScale) -> None:
        super().__init__()
        self.features = features
        self.features_dim = features_dim
        self.steps = steps
        self.action_dim = steps.nu
        self.latent_dim = features_dim + steps.nq + steps.nv + 2
        self._reward_scale = [reward_scale]  # in a list, because it is a part of the policy and not of this module

    def encode(self, observations: Observations) -> torch.Tensor:
        """Encode (N, D) observations, as the environment gives them, to (N, Z) latents.

        Positions that observations leave out are 0.
        """
        if isinstance(observations, dict):
            raise TypeError("observations must be a tensor, not a dictionary")
        layout = self.steps.layout
        state = observations[..., : layout.size].float()
        skipped = state.new_zeros(*state.shape[:-1], layout.skipped)
        ends = state.new_zeros(*state.shape[:-1], 1), state.new_ones(*state.shape[:-1], 1)
        return torch.cat([self.features(observations), skipped, state, *ends], -1)

    def next_latents(self, latents: torch.Tensor, actions: torch.Tensor, step: int = 0) -> torch.Tensor:
        """Return the (B, Z) latents after taking (B, A) actions in (B, Z) latents."""
        states = latents[..., self.features_dim : -2]
        following, observations, rewards, margins = TrueStep.apply(states, actions, self.steps)  # type: ignore[no-untyped-call]
        rewards = rewards / self._reward_scale[0].of(None)
        return torch.cat([self.features(observations), following, rewards[:, None], margins[:, None]], -1)

    def outcomes(
        self, latents: torch.Tensor, actions: torch.Tensor, *, terminations: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (H, B) rewards and continuations of a rollout, see :meth:`WorldModel.outcomes`.

        A continuation is 1 or 0, with the slope of a sigmoid of the margin.
        """
        rewards, margins = latents[1:, :, -2], latents[1:, :, -1]
        if not terminations:
            return rewards, torch.ones_like(rewards)
        soft = torch.sigmoid(margins / MARGIN_WIDTH)
        return rewards, (margins > 0).to(soft.dtype) + (soft - soft.detach())

    def observation_weight(self, coefficient: float | str) -> float:
        """Return 0: no head reads observations."""
        return 0.0


class SeenFeatures(LatentScale):
    """What actor and critics see of the latents of :class:`TrueDynamics`: the features, which have their scale.

    :param features_dim: number D of features.
    :param latent_dim: number of latents Z.
    """

    def __init__(self, features_dim: int, latent_dim: int) -> None:
        super().__init__(features_dim)
        self.all_latents = latent_dim

    def update(self, latents: torch.Tensor) -> None:
        """Do nothing: the features' statistics come from the replay buffer."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the (..., D) features of (..., Z) latents, or (..., D + A) features and actions."""
        features, actions = inputs[..., : self.latent_dim], inputs[..., self.all_latents :]
        return torch.cat([features, actions], -1) if actions.shape[-1] else features


class TrueStep(torch.autograd.Function):
    """One step of the environment, differentiable through finite differences.

    The gradient by positions is one by the directions of MuJoCo's tangent space, filled up with zeros: only another
    step reads it.
    """

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, actions: torch.Tensor, steps: MujocoSteps) -> tuple[torch.Tensor, ...]:
        """Return (B, nq + nv) next states, (B, D) observations, (B,) rewards and (B,) margins."""
        ctx.steps = steps
        ctx.arguments = [x.detach().cpu().double().numpy() for x in (states, actions)]
        ctx.outcome = steps.step(*ctx.arguments)
        return tuple(torch.as_tensor(x, dtype=states.dtype, device=states.device) for x in ctx.outcome)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients by states and actions."""
        nq, nv = ctx.steps.nq, ctx.steps.nv
        of_states, observations, rewards, margins = (x.cpu().double().numpy() for x in gradients)
        incoming = np.concatenate(
            [of_states[:, :nv], of_states[:, nq:], observations, rewards[:, None], margins[:, None]], 1
        )
        outgoing = np.zeros((len(incoming), 2 * nv + ctx.steps.nu))
        rows = np.flatnonzero(incoming.any(1))  # nothing depends on what comes after the end of an episode
        if len(rows):
            at = [x[rows] for x in ctx.arguments]
            outcome = type(ctx.outcome)(*(x[rows] for x in ctx.outcome))
            jacobian = ctx.steps.jacobian(*at, outcome, of_states=ctx.needs_input_grad[0])
            outgoing[rows] = np.einsum("no,noi->ni", incoming[rows], jacobian)
        by_states = np.zeros_like(ctx.arguments[0])
        by_states[:, :nv], by_states[:, nq:] = outgoing[:, :nv], outgoing[:, nv : 2 * nv]
        like = gradients[0]
        return like.new_tensor(by_states), like.new_tensor(outgoing[:, 2 * nv :]), None
