"""Imagined rollouts: a policy acting in the world model."""

import functools

import torch

from sb3_pwm.compute.streams import side_by_side
from sb3_pwm.networks import Actor
from sb3_pwm.type_aliases import ImaginedRollout
from sb3_pwm.world_model import WorldModel


def imagine(
    world_model: WorldModel, actor: Actor, latents: torch.Tensor, horizon: int, *, terminations: bool = True
) -> ImaginedRollout:
    """Let the actor act for ``horizon`` steps in the world model.

    The actor sees detached latents, as in the paper: its gradient flows through actions, dynamics and predictions,
    and not through what it saw.

    :param world_model: the model.
    :param actor: the policy.
    :param latents: (B, Z) start states.
    :param horizon: number of steps H; with 0 the rollout is its start states.
    :param terminations: let the termination head end imagined episodes; False: they never end.
    :return: the rollout, differentiable in the actor's parameters.
    """
    states, actions, log_probs = [latents], [], []
    for step in range(horizon):
        action, log_prob = actor.sample_with_log_prob(states[-1].detach())
        states.append(world_model.next_latents(states[-1], action, step))
        actions.append(action)
        log_probs.append(log_prob)
    all_latents = torch.stack(states)
    if not horizon:
        empty = latents.new_empty(0, len(latents))
        return ImaginedRollout(all_latents, latents.new_empty(*empty.shape, actor.action_dim), empty, empty, empty)
    all_actions = torch.stack(actions)
    rewards, continuations = predictions(world_model, all_latents, all_actions, terminations=terminations)
    return ImaginedRollout(
        latents=all_latents,
        actions=all_actions,
        log_probs=torch.stack(log_probs),
        rewards=rewards,
        continuations=continuations,
    )


def predictions(
    world_model: WorldModel, latents: torch.Tensor, actions: torch.Tensor, *, terminations: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the heads predict along a rollout; they see all of it at once, not one step at a time.

    :param world_model: the model.
    :param latents: (H + 1, ..., Z) from the start states to the last ones.
    :param actions: (H, ..., A) actions in [-1, 1].
    :param terminations: ask the termination head; False: episodes never end.
    :return: (H, ...) rewards in reward scales, and (H, ...) probabilities in [0, 1] that a step does not end the
        episode.
    """
    heads = [functools.partial(world_model.rewards, latents[:-1], actions)]
    if terminations:
        heads.append(functools.partial(world_model.continuations, latents[1:]))
    rewards, *continuations = side_by_side(heads, latents.device)
    return rewards, continuations[0] if terminations else torch.ones_like(rewards)
