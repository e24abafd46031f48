"""Named tensors that travel between the modules; every field says its shape.

T is the number of steps in a window, B the batch size, H the imagination horizon, Z the size of a latent state.
``rewards[t]`` and ``latents[t + 1]`` follow ``actions[t]`` taken in ``latents[t]``.
"""

from typing import NamedTuple, TypeAlias

import torch

Observations: TypeAlias = torch.Tensor | dict[str, torch.Tensor]
Metrics: TypeAlias = dict[str, torch.Tensor]


class SequenceSamples(NamedTuple):
    """Windows of consecutive steps from a replay buffer."""

    observations: Observations
    """(T + 1, B, *obs_shape), or one such tensor per key."""
    actions: torch.Tensor
    """(T, B, act_dim), in [-1, 1]; discrete ones are integers as stored, and codes for the networks."""
    rewards: torch.Tensor
    """(T, B), in the units of the environment."""
    terminations: torch.Tensor
    """(T, B), 1 only at a true terminal step; a time-out is none."""
    mask: torch.Tensor
    """(T, B), 1 while the step exists and belongs to the episode in which the window starts; ``mask[0]`` is all 1."""


class ImaginedRollout(NamedTuple):
    """What a policy does and gets in a world model."""

    latents: torch.Tensor
    """(H + 1, B, Z), from the start states to the last imagined ones."""
    actions: torch.Tensor
    """(H, B, act_dim), in [-1, 1]."""
    log_probs: torch.Tensor
    """(H, B), log-density of each action under the policy; or (H + 1, B), with an action in the last states. Of
    discrete actions its mean over all, minus the policy's entropy."""
    rewards: torch.Tensor
    """(H, B), predicted, divided by the reward scale."""
    continuations: torch.Tensor
    """(H, B), probability in [0, 1] that step t does not end the episode."""
