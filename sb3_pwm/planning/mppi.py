"""Planning in the world model by MPPI, as TD-MPC2 does (arXiv 2310.16828): functions of tensors.

Action sequences are (H, E, N, A) in [-1, 1]: H steps, E environments, N sequences for each, A action dimensions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from sb3_pwm.networks import Actor, CriticEnsemble
from sb3_pwm.returns import continuation_weights, imagined_returns
from sb3_pwm.world_model import WorldModel


class MPPISettings(NamedTuple):
    """How sequences are averaged; :class:`sb3_pwm.Planner` documents and checks each."""

    n_elites: int
    temperature: float
    min_std: float
    max_std: float


def mppi(
    score: Callable[[torch.Tensor], torch.Tensor],
    mean: torch.Tensor,
    noise: torch.Tensor,
    policy_actions: torch.Tensor,
    settings: MPPISettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Search for the action sequences with the highest scores.

    Every iteration draws sequences from a Gaussian, adds the policy's, scores them, and fits the Gaussian to the best.

    .. math:: a = \mathrm{clip}(\mu + \sigma \epsilon, -1, 1)

    :param score: returns the (E, N) scores of (H, E, N, A) sequences.
    :param mean: (H, E, A) mean to start from; the standard deviation starts at ``max_std``.
    :param noise: (I, H, E, N - P, A) standard normal numbers of I iterations.
    :param policy_actions: (H, E, P, A) sequences of the policy, which every iteration has.
    :param settings: how to average.
    :return: (H, E, A) mean, and (H, E, A) standard deviation.
    """
    std = torch.full_like(mean, settings.max_std)
    for draws in noise:
        drawn = (mean.unsqueeze(2) + std.unsqueeze(2) * draws).clamp(-1, 1)
        actions = torch.cat([policy_actions, drawn], 2)
        mean, std = fitted_gaussian(actions, score(actions), settings)
    return mean, std


def fitted_gaussian(
    actions: torch.Tensor, scores: torch.Tensor, settings: MPPISettings
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return mean and standard deviation of the elites, the sequences with the highest scores.

    .. math:: w_i = \frac{e^{\tau (\phi_i - \max_j \phi_j)}}{\sum_j e^{\tau (\phi_j - \max_k \phi_k)}}, \quad
        \mu = \sum_i w_i a_i, \quad \sigma^2 = \sum_i w_i (a_i - \mu)^2

    (TD-MPC, arXiv 2203.04955, algorithm 1, which TD-MPC2 plans with; the temperature :math:`\tau` multiplies.) The
    standard deviation is kept between ``min_std`` and ``max_std``.

    :param actions: (H, E, N, A) sequences.
    :param scores: (E, N) their scores :math:`\phi`.
    :param settings: how many elites, temperature and bounds.
    :return: (H, E, A) mean, and (H, E, A) standard deviation.
    """
    best, places = scores.topk(settings.n_elites, -1)
    weights = (settings.temperature * best).softmax(-1).unsqueeze(-1)
    horizon, _, _, action_dim = actions.shape
    elites = actions.gather(2, places[None, :, :, None].expand(horizon, -1, -1, action_dim))
    mean = (weights * elites).sum(2)
    variance = (weights * (elites - mean.unsqueeze(2)).square()).sum(2)
    return mean, variance.sqrt().clamp(settings.min_std, settings.max_std)


def policy_sequences(world_model: WorldModel, actor: Actor, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the (H, E, P, A) actions of the policy along P rollouts from each of (E, Z) latents.

    :param world_model: the model; of several dynamics networks each serves a part of the P rollouts.
    :param actor: the policy.
    :param latents: (E, Z) latents.
    :param noise: (H, E, P, A) standard normal numbers.
    """
    if not noise.shape[2]:
        return noise  # networks need not work on nothing
    states = latents.unsqueeze(1).expand(-1, noise.shape[2], -1)
    actions = [actor.sample(states, noise[0])]
    for step, draws in enumerate(noise[1:]):
        states = world_model.next_latents(states, actions[-1], step)
        actions.append(actor.sample(states, draws))
    return torch.stack(actions)


def sequence_returns(
    world_model: WorldModel,
    actor: Actor,
    critics: CriticEnsemble,
    latents: torch.Tensor,
    actions: torch.Tensor,
    *,
    gamma: float,
    terminations: bool,
    q_critic: bool,
) -> torch.Tensor:
    r"""Return the imagined returns of action sequences.

    .. math:: \phi = \sum_{t=0}^{H-1} \gamma^t w_t r_t + \gamma^H w_H V(z_H)

    (TD-MPC, arXiv 2203.04955, algorithm 1, with the weights w of :func:`sb3_pwm.returns.continuation_weights`.) V is
    the mean over the critics. A Q is evaluated at the policy's deterministic action: among drawn ones the search would
    find the sequences with the luckiest draws. With K dynamics networks every sequence is followed in each, and its
    return is their mean: were each to score a part of the sequences, most elites would come from the most optimistic.

    :param world_model: the model.
    :param actor: the policy.
    :param critics: Q(latents, actions) or V(latents).
    :param latents: (E, Z) start states.
    :param actions: (H, E, N, A) sequences in [-1, 1].
    :param gamma: discount in (0, 1].
    :param terminations: let the termination head end episodes; False: they never end.
    :param q_critic: whether the critics are Q functions.
    :return: (E, N) returns, in reward scales.
    """
    _, n_envs, n_samples, _ = actions.shape
    count = len(world_model.dynamics)
    start = latents.repeat_interleave(n_samples, 0)
    sequences = actions.flatten(1, 2)  # (H, E * N, A)
    states = [start.expand(count, *start.shape)]
    for step_actions in sequences:
        states.append(world_model.all_next_latents(states[-1], step_actions))
    rollout = torch.stack(states)  # (H + 1, K, E * N, Z)
    taken = sequences.unsqueeze(1).expand(-1, count, -1, -1)
    rewards, continuations = world_model.outcomes(rollout, taken, terminations=terminations)
    last = rollout[-1]
    values = (critics(last, actor.mode(last)) if q_critic else critics(last)).mean(0)
    weights = continuation_weights(continuations.flatten(1))
    returns = imagined_returns(rewards.flatten(1), weights, values.flatten(), gamma)
    return returns.view(count, n_envs, n_samples).mean(0)
