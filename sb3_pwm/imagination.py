"""Imagined rollouts: a policy acting in the world model."""

import torch

from sb3_pwm.networks import LatentActor
from sb3_pwm.type_aliases import ImaginedRollout
from sb3_pwm.world_model import WorldModel


def imagine(
    world_model: WorldModel,
    actor: LatentActor,
    latents: torch.Tensor,
    horizon: int,
    *,
    noise: torch.Tensor | None = None,
    terminations: bool = True,
    through_observations: bool = False,
) -> ImaginedRollout:
    """Let the actor act for ``horizon`` steps in the world model.

    By default the actor sees detached latents, as in the paper: its gradient flows through actions, dynamics and
    predictions, and not through what it saw.

    :param world_model: the model.
    :param actor: the policy.
    :param latents: (B, Z) start states.
    :param horizon: number of steps H; with 0 the rollout is its start states.
    :param noise: (B, Z) numbers that are added to the first predicted latents, see :func:`inferred_noise`.
    :param terminations: let the termination head end imagined episodes; False: they never end.
    :param through_observations: let the gradient flow through what the actor sees, too.
    :return: the rollout, differentiable in the actor's parameters.
    """
    states, actions, log_probs = [latents], [], []
    for step in range(horizon):
        seen = states[-1] if through_observations else states[-1].detach()
        action, log_prob = actor.sample_with_log_prob(seen)
        following = world_model.next_latents(states[-1], action, step)
        states.append(following if noise is None or step > 0 else following + noise)
        actions.append(action)
        log_probs.append(log_prob)
    all_latents = torch.stack(states)
    if not horizon:
        empty = latents.new_empty(0, len(latents))
        return ImaginedRollout(all_latents, latents.new_empty(*empty.shape, actor.action_dim), empty, empty, empty)
    all_actions = torch.stack(actions)
    # The heads see the whole rollout at once, not one step at a time.
    rewards, continuations = world_model.outcomes(all_latents, all_actions, terminations=terminations)
    return ImaginedRollout(
        latents=all_latents,
        actions=all_actions,
        log_probs=torch.stack(log_probs),
        rewards=rewards,
        continuations=continuations,
    )


@torch.no_grad()
def inferred_noise(
    world_model: WorldModel, latents: torch.Tensor, actions: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    """Return what the model misses in recorded steps.

    A model that predicts means shows no rare outcomes, and a policy that learns from it alone does not avoid them.
    Added to the prediction for another action, the noise brings the recorded outcome back (SVG(1) with experience
    replay, arXiv 1510.09142, algorithm 2).

    :param latents: (B, Z) latents of recorded steps.
    :param actions: (B, A) recorded actions.
    :param following: (B, Z) latents of the recorded next steps.
    :return: (B, Z) recorded minus predicted latents.
    """
    return following - world_model.next_latents(latents, actions)


def rollout_starts(values: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """Return what replayed windows hold of the steps at which imagined rollouts start: first steps come first.

    :param values: (T, B, ...) latents or actions, say, of the windows' steps.
    :param mask: (T, B) 1 for steps before the end of the episode. A step behind it is replaced by the window's first.
    :param count: number of steps; fewer, T * B, if there are no more.
    :return: (N, ...) values.
    """
    steps = -(-count // values.shape[1])
    recorded = torch.where(mask[:steps, :, None] > 0, values[:steps], values[:1])
    return recorded.flatten(0, 1)[:count]
