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


def n_step_returns(
    rewards: torch.Tensor, discounts: torch.Tensor, last_values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    r"""Return the returns of windows from their first step, with the value of what follows their last one.

    .. math:: G_t = r_t + d_t \begin{cases} G_{t+1} & \text{if step } t + 1 \text{ belongs to the window} \\
        V & \text{else} \end{cases}

    With one step this is :math:`r + d V`.

    :param rewards: (T, B) rewards r_t.
    :param discounts: (T, B) d_t in [0, 1]: the discount, and 0 where step t ends the episode.
    :param last_values: (B,) values V of the states after the windows' last steps.
    :param mask: (T, B) 1 for steps that belong to the window, 0 for those behind its end.
    :return: (B,) returns G_0.
    """
    following = last_values
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discounts[t] * following
        if t > 0:
            following = torch.where(mask[t] > 0, following, last_values)
    return following


def lambda_returns(
    rewards: torch.Tensor, discounts: torch.Tensor, next_values: torch.Tensor, td_lambda: float
) -> torch.Tensor:
    r"""Return the TD(lambda) targets of every state of a rollout.

    .. math:: G_t = r_t + d_t [(1 - \lambda_t) V_{t+1} + \lambda_t G_{t+1}], \quad G_H = V_H

    (Sutton and Barto, Reinforcement Learning, 2nd edition, eq. 12.20; in this form lambda = 1 needs no division.)

    :param rewards: (H, B) rewards r_t.
    :param discounts: (H, B) d_t in [0, 1]: the discount, times the probability that step t does not end the episode.
    :param next_values: (H, B) values V_{t+1} of the state after step t.
    :param td_lambda: in [0, 1]; 0 gives one-step targets, 1 the sum of all rewards and the last value.
    :return: (H, B) targets G_t.
    """
    target = next_values[-1]
    targets = []
    for t in reversed(range(len(rewards))):
        target = rewards[t] + discounts[t] * ((1 - td_lambda) * next_values[t] + td_lambda * target)
        targets.append(target)
    return torch.stack(targets[::-1])
