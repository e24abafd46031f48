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
    # The heads see the whole rollout at once, not one step at a time.
    heads = [functools.partial(world_model.rewards, all_latents[:-1], all_actions)]
    if terminations:
        heads.append(functools.partial(world_model.continuations, all_latents[1:]))
    rewards, *continuations = side_by_side(heads, latents.device)
    return ImaginedRollout(
        latents=all_latents,
        actions=all_actions,
        log_probs=torch.stack(log_probs),
        rewards=rewards,
        continuations=continuations[0] if terminations else torch.ones_like(rewards),
    )
