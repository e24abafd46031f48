"""Returns of imagined rollouts."""

import torch


def continuation_weights(continuations: torch.Tensor) -> torch.Tensor:
    r"""Return the probability that an episode is still running before each step.

    .. math:: w_0 = 1, \quad w_{t+1} = w_t c_t

    The reward of the step that ends an episode still counts in full: it is weighted with w_t, not w_{t+1}.

    :param continuations: (H, B) probability c_t in [0, 1] that step t does not end the episode.
    :return: (H + 1, B) weights; the last row belongs to the state after the last step.
    """
    # A loop and not cumprod, whose backward pass looks for zeros and would wait for the device.
    weights = [continuations.new_ones(continuations.shape[1:])]
    for continuation in continuations:
        weights.append(weights[-1] * continuation)
    return torch.stack(weights)


def imagined_returns(
    rewards: torch.Tensor, weights: torch.Tensor, terminal_values: torch.Tensor, gamma: float
) -> torch.Tensor:
    r"""Return the discounted sum of a rollout's rewards, ended by the value of its last state.

    .. math:: R = \sum_{t=0}^{H-1} \gamma^t w_t r_t + \gamma^H w_H V(z_H)

    :param rewards: (H, B) rewards r_t.
    :param weights: (H + 1, B) weights w_t in [0, 1], see :func:`continuation_weights`.
    :param terminal_values: (B,) value V(z_H) of the last state.
    :param gamma: discount in (0, 1].
    :return: (B,) returns.
    """
    horizon = len(rewards)
    discounts = gamma ** torch.arange(horizon, device=rewards.device, dtype=rewards.dtype)
    discounted = (discounts[:, None] * weights[:-1] * rewards).sum(0)
    return discounted + gamma**horizon * weights[-1] * terminal_values


def lambda_returns(
    rewards: torch.Tensor, discounts: torch.Tensor, next_values: torch.Tensor, td_lambda: float | torch.Tensor
) -> torch.Tensor:
    r"""Return the TD(lambda) targets of every state of a rollout.

    .. math:: G_t = r_t + d_t [(1 - \lambda_t) V_{t+1} + \lambda_t G_{t+1}], \quad G_H = V_H

    (Sutton and Barto, Reinforcement Learning, 2nd edition, eq. 12.20; in this form lambda = 1 needs no division.)

    :param rewards: (H, B) rewards r_t.
    :param discounts: (H, B) d_t in [0, 1]: the discount, times the probability that step t does not end the episode.
    :param next_values: (H, B) values V_{t+1} of the state after step t.
    :param td_lambda: in [0, 1]; 0 gives one-step targets, 1 the sum of all rewards and the last value; one number, or
        (H, B) numbers.
    :return: (H, B) targets G_t.
    """
    lambdas = td_lambda if isinstance(td_lambda, torch.Tensor) else torch.full_like(rewards, td_lambda)
    target = next_values[-1]
    targets = []
    for t in reversed(range(len(rewards))):
        target = rewards[t] + discounts[t] * ((1 - lambdas[t]) * next_values[t] + lambdas[t] * target)
        targets.append(target)
    return torch.stack(targets[::-1])
