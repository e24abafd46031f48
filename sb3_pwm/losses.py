"""The three objectives, each a pure function that returns (loss, metrics)."""

import functools

import torch

from sb3_pwm.compute.streams import side_by_side
from sb3_pwm.networks import CriticEnsemble, LatentActor
from sb3_pwm.returns import continuation_weights, lambda_returns, n_step_returns
from sb3_pwm.type_aliases import ImaginedRollout, Metrics, SequenceSamples
from sb3_pwm.world_model import WorldModel


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the () mean of ``x`` over the entries where ``mask``, of the same shape, is 1."""
    return (x * mask).sum() / mask.sum()


def world_model_loss(
    world_model: WorldModel,
    samples: SequenceSamples,
    rewards: torch.Tensor,
    latents: torch.Tensor,
    targets: torch.Tensor,
    features: torch.Tensor | None,
    *,
    consistency_coef: float,
    reward_coef: float,
    termination_coef: float,
    observation_coef: float,
) -> tuple[torch.Tensor, Metrics]:
    r"""Return the error of the model's open-loop prediction over windows.

    .. math:: L = \frac{1}{\sum m_t} \Big(\sum_t m_t [k_c \|\hat z_{t+1} - sg(e(o_{t+1}))\|^2 / Z
        + k_r\, \ell(\hat r_t, r_t) + k_d\, BCE(\hat d_t, d_t) + k_o\, w \cdot (W \hat z_{t+1} - x_{t+1})^2]
        + \sum k_o\, w \cdot (W \hat z_0 - x_0)^2\Big),\quad \hat z_0 = e(o_0)

    (PWM, arXiv 2407.02466, eq. 5, with masks and heads for terminations and observations; w are the weights of
    :meth:`sb3_pwm.world_model.WorldModel.weigh_observations`.) With K dynamics networks the latent error is the sum of
    theirs, as if each learnt alone, and the heads' errors are means over what they read.

    :param world_model: the model.
    :param samples: windows of T steps; their observations are not used.
    :param rewards: (T, B) the samples' rewards in reward scales.
    :param latents: (B, Z) encodings of the first observations, with gradient.
    :param targets: (T, B, Z) encodings of the next observations, without gradient.
    :param features: (T + 1, B, D) features x of the observations, if they are to be read from the latents.
    :param consistency_coef: weight k_c of the latent error.
    :param reward_coef: weight k_r of the reward error.
    :param termination_coef: weight k_d of the termination error.
    :param observation_coef: weight k_o of the observations' error.
    :return: () loss, and its parts.
    """
    count = len(world_model.dynamics)
    states = [latents.expand(count, *latents.shape)]
    for step_actions in samples.actions:
        states.append(world_model.all_next_latents(states[-1], step_actions))
    predicted = torch.stack(states)  # (T + 1, K, B, Z)
    actions, terminations, mask, rewards, targets = (
        x.unsqueeze(1).expand(-1, count, *x.shape[1:])
        for x in (samples.actions, samples.terminations, samples.mask, rewards, targets)
    )
    errors = [
        functools.partial(world_model.latent_error, predicted[1:], targets),
        functools.partial(world_model.reward_error, predicted[:-1], actions, rewards),
        functools.partial(world_model.termination_error, predicted[1:], terminations),
    ]
    consistency, reward, termination = (masked_mean(error, mask) for error in side_by_side(errors, latents.device))
    consistency = count * consistency
    loss = consistency_coef * consistency + reward_coef * reward + termination_coef * termination
    metrics = {"consistency_loss": consistency, "reward_loss": reward, "termination_loss": termination}
    if features is not None:
        observation_errors = world_model.observation_error(predicted, features.unsqueeze(1))  # (T + 1, K, B)
        observation = (observation_errors * torch.cat([mask[:1], mask])).sum() / mask.sum()
        loss = loss + observation_coef * observation
        metrics["observation_loss"] = observation
    metrics["world_model_loss"] = loss
    return loss, {name: metric.detach() for name, metric in metrics.items()}


def state_values(
    critics: CriticEnsemble, actor: LatentActor, latents: torch.Tensor, *, q_critic: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the (...) value of (..., Z) latents: the mean over the critics.

    Its gradient is what the actor follows, and a mean has less noise than the one critic that happens to be lowest;
    the pessimism is in the critics' targets.

    :param critics: V(latents), or Q(latents, actions).
    :param actor: draws the action at which a Q is evaluated, from detached latents; of few discrete actions the values
        of all are averaged instead, with their probabilities.
    :param latents: (..., Z) latents.
    :param q_critic: whether the critics are Q functions.
    :return: (...) values in reward scales, and the (...) log-density of the action at which a Q was evaluated, or its
        mean over all.
    """
    if not q_critic:
        return critics(latents).mean(0), None
    choices = actor.all_actions(latents.detach())
    if choices is None:
        actions, log_probs = actor.sample_with_log_prob(latents.detach())
        return critics(latents, actions).mean(0), log_probs
    actions, log_probs = choices
    probs = log_probs.exp()
    values = values_of_all(critics, latents, actions).mean(0)
    return (probs * values).sum(-1), (probs * log_probs).sum(-1)


def values_of_all(critics: CriticEnsemble, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Return the (n_critics, ..., K) values of each of (K, A) actions in each of (..., Z) latents."""
    shape = *latents.shape[:-1], len(actions)
    return critics(latents.unsqueeze(-2).expand(*shape, -1), actions.expand(*shape, -1))  # type: ignore[no-any-return]


def actor_loss(
    returns: torch.Tensor,
    log_probs: torch.Tensor,
    weights: torch.Tensor,
    return_scale: torch.Tensor,
    *,
    ent_coef: float | torch.Tensor,
) -> tuple[torch.Tensor, Metrics]:
    r"""Return the negative of imagined return and entropy bonus, in return scales.

    .. math:: L = -\frac{1}{\sigma} \left(\frac{1}{B} \sum_b R_b
        - \alpha \frac{1}{NB} \sum_{t,b} w_{t,b} \log \pi(a_{t,b} | z_{t,b})\right)

    (PWM, arXiv 2407.02466, eq. 7, with continuation weights w and an entropy bonus. N actions were drawn: one for each
    of H imagined steps, and with Q critics the one at which the last state was evaluated. With H = 0 and Q critics this
    is the actor's loss of SAC, arXiv 1812.05905, eq. 7.)

    :param returns: (B,) imagined returns R, differentiable in the actor, see
        :func:`sb3_pwm.returns.imagined_returns`.
    :param log_probs: (N, B) log-densities of the actions, differentiable in the actor.
    :param weights: (N, B) probability w in [0, 1] that the episode is still running; its gradient is not used.
    :param return_scale: () standard deviation sigma of imagined returns, or (B,) for returns of several tasks.
    :param ent_coef: weight alpha of the bonus, in reward scales per nat, 0 for none; or (B,) weights.
    :return: () loss, and metrics.
    """
    entropies = -(weights.detach() * log_probs).mean(0)
    loss = -((returns + ent_coef * entropies) / return_scale).mean()
    return loss, {
        "actor_loss": loss.detach(),
        "entropy": entropies.detach().mean(),
        "imagined_return": returns.detach().mean(),
    }


def behaviour_loss(
    actor: LatentActor, latents: torch.Tensor, samples: SequenceSamples, advantages: torch.Tensor | None
) -> torch.Tensor:
    r"""Return the () mean distance of the policy to replayed actions that were good.

    .. math:: L = \frac{1}{\sum m_t} \sum_t m_t\, 1[A(z_t, a_t) > 0]\, \|\mu(z_t) - a_t\|^2 / n

    (TD3+BC, arXiv 2106.06860, eq. 3, with the binary filter of CRR, arXiv 2006.15134, for n action dimensions.) Of
    discrete actions with n components :math:`-\log \pi(a_t | z_t) / n` is in the place of the squared distance.

    :param actor: the policy.
    :param latents: (T, B, Z) encodings of the windows' observations, without gradient.
    :param samples: windows of T steps; their actions and mask are used.
    :param advantages: (T, B) how much better than the data's average action in their state the actions are; None
        counts all of them.
    """
    distances = actor.distance(latents, samples.actions)
    if advantages is not None:
        distances = distances * (advantages > 0)
    return masked_mean(distances, samples.mask)


def relative_size(returns: torch.Tensor, return_scale: torch.Tensor) -> torch.Tensor:
    """Return the () root mean square of returns in return scales, without gradient.

    The actor's loss has imagined returns in units of their spread. Errors of values grow with their size, so what holds
    a policy against them must grow too (TD3+BC, arXiv 2106.06860, eq. 5, divides by the size instead).

    :param returns: (B,) returns.
    :param return_scale: () or (B,) scales.
    """
    return (returns.detach() / return_scale).square().mean().sqrt()


def entropy_coefficient_loss(
    log_ent_coef: torch.Tensor, log_probs: torch.Tensor, weights: torch.Tensor, target_entropy: float | torch.Tensor
) -> tuple[torch.Tensor, Metrics]:
    r"""Return the loss whose gradient raises the coefficient where the policy's entropy is below its target.

    .. math:: L = \log \alpha \; \frac{\sum_{t,b} w_{t,b} (-\log \pi(a_{t,b} | z_{t,b}) - \bar H)}{\sum_{t,b} w_{t,b}}

    (SAC, arXiv 1812.05905, eq. 18, in the logarithm as SB3 does, and weighted.)

    :param log_ent_coef: () logarithm of the coefficient alpha, or (B,) for rollouts of several tasks.
    :param log_probs: (N, B) log-densities of the actions; their gradient is not used.
    :param weights: (N, B) probability w in [0, 1] that the episode is still running; its gradient is not used.
    :param target_entropy: target H, in nats; one number, or (B,) numbers.
    :return: () loss, and metrics.
    """
    weights = weights.detach()
    excess = weights * (-log_probs.detach() - target_entropy)
    loss = (log_ent_coef * excess).sum() / weights.sum()
    return loss, {"ent_coef": log_ent_coef.detach().exp().mean()}


def pessimistic_values(values: torch.Tensor, pessimism: float) -> torch.Tensor:
    r"""Return values between the mean and the minimum of an ensemble.

    .. math:: V = (1 - \beta) \frac{1}{K} \sum_i V_i + \beta \min_i V_i

    The bias accumulates over 1 / (1 - gamma) steps. Terminal states keep their exact value of 0, so too much pessimism
    makes ending the episode look best.

    :param values: (K, ...) values of K critics.
    :param pessimism: :math:`\beta` in [0, 1].
    :return: (...) values.
    """
    return values.mean(0).lerp(values.amin(0), pessimism)


@torch.no_grad()
def replay_targets(
    critics_target: CriticEnsemble,
    actor: LatentActor,
    samples: SequenceSamples,
    rewards: torch.Tensor,
    last_latents: torch.Tensor,
    *,
    gamma: float,
    pessimism: float,
) -> tuple[torch.Tensor, Metrics]:
    r"""Return the targets of the first steps of replayed windows, with their real rewards and terminations.

    .. math:: y = \sum_{t<k} \gamma^t r_t + \gamma^k (1 - d_{k-1}) \bar V(z_k)

    with the :func:`pessimistic_values` of :math:`\bar Q_i(z_k, a'),\ a' \sim \pi(z_k)` as :math:`\bar V`. k is the
    window's number of steps, or less where the episode ends before. All steps are the recorded ones, also those after
    the first, which the present policy might not take. There is no entropy term: values are estimates of the return.
    Of few discrete actions :math:`\bar V` is the mean over all a', with their probabilities.

    :param critics_target: target ensemble of Q functions.
    :param actor: the present policy.
    :param samples: windows of T steps; their terminations and mask are used.
    :param rewards: (T, B) the samples' rewards in reward scales.
    :param last_latents: (B, Z) encodings of the observations that follow the windows' last steps.
    :param gamma: discount in (0, 1].
    :param pessimism: in [0, 1], see :func:`pessimistic_values`.
    :return: (B,) targets, and metrics.
    """
    choices = actor.all_actions(last_latents)
    if choices is None:
        values, probs = critics_target(last_latents, actor.sample(last_latents)), None
        following = pessimistic_values(values, pessimism)
    else:
        actions, log_probs = choices
        values, probs = values_of_all(critics_target, last_latents, actions), log_probs.exp()
        following = (probs * pessimistic_values(values, pessimism)).sum(-1)
    targets = n_step_returns(rewards, gamma * (1 - samples.terminations), following, samples.mask)
    return targets, {"critic_gap": critic_gap(values, gamma, probs)}


def critic_gap(values: torch.Tensor, gamma: float, probs: torch.Tensor | None = None) -> torch.Tensor:
    r"""Return how much the critics' disagreement could lower their values, as a share of these.

    .. math:: \frac{E[\max_i V_i - \min_i V_i]}{(1 - \gamma)\, E|V|}

    What pessimism subtracts from one step's target, it subtracts 1 / (1 - gamma) times from a value. Far above 1 the
    sign of a value may come from it alone.

    :param values: (K, ...) values of K critics.
    :param gamma: discount in (0, 1]; with 1 it is taken off 1,000 times.
    :param probs: (...) probabilities along the last axis, if this holds all actions; the means are over them.
    :return: () share, not below 0.
    """
    spreads, sizes = values.amax(0) - values.amin(0), values.mean(0).abs()
    if probs is not None:
        spreads, sizes = (probs * spreads).sum(-1), (probs * sizes).sum(-1)
    return spreads.mean() / (max(1 - gamma, 1e-3) * sizes.mean().clamp(min=1e-8))


@torch.no_grad()
def imagined_targets(
    critics_target: CriticEnsemble,
    rollout: ImaginedRollout,
    *,
    gamma: float,
    td_lambda: float,
    pessimism: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return TD(lambda) targets of the states of an imagined rollout, and their weights.

    (PWM, arXiv 2407.02466, eq. 8, with continuation probabilities in the discounts.)

    :param critics_target: target ensemble of V functions.
    :param rollout: imagined rollout.
    :param gamma: discount in (0, 1].
    :param td_lambda: lambda in [0, 1].
    :param pessimism: in [0, 1], see :func:`pessimistic_values`.
    :return: (H, B) targets, and (H, B) weights: the probability that the episode is still running.
    """
    values = pessimistic_values(critics_target(rollout.latents[1:]), pessimism)
    targets = lambda_returns(rollout.rewards, gamma * rollout.continuations, values, td_lambda)
    return targets, continuation_weights(rollout.continuations)[:-1]


def critic_loss(values: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
    """Return the weighted mean squared error, summed over the ensemble.

    :param values: (n_critics, N) the critics' values.
    :param targets: (N,) targets, without gradient.
    :param weights: (N,) weights in [0, 1].
    :return: () loss, and metrics.
    """
    # The bound matters only where a small minibatch holds nothing but masked steps: its loss is 0, not 0 / 0.
    loss = ((values - targets).square() * weights).sum() / weights.sum().clamp(min=1e-8)
    return loss, {"critic_loss": loss.detach(), "value": values.detach().mean()}
