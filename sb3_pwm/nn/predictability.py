"""How predictable each dimension of the next observation is."""

import torch

from sb3_pwm.nn.scales import mean_and_std

RIDGE = 1e-3  # penalty of the squared coefficients, per row and unit of the features' variance


@torch.no_grad()
def linear_predictability(features: torch.Tensor, actions: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    r"""Return the share of each feature's variance that a linear model predicts one step ahead.

    .. math:: R^2_d = \max\left(0, 1 - \frac{E[(x'_d - W_d \cdot [x, a, 1])^2]}{Var[x'_d]}\right)

    by ridge regression (Hoerl and Kennard, 1970). Every other row is predicted by coefficients fitted to the rows in
    between, and the other way round, so that overfitting does not count. Features of any unit and offset will do.

    :param features: (N, D) features x.
    :param actions: (N, A) actions a in [-1, 1].
    :param following: (N, D) features x' of the next observations.
    :return: (D,) shares in [0, 1]; 0 for what is constant, and for everything if there are fewer than four rows.
    """
    if len(features) < 4:
        return features.new_zeros(features.shape[-1])
    mean, std = mean_and_std(following)
    unit = torch.where(std > 0, std, 1.0)
    inputs = torch.cat([(features - mean) / unit, actions, torch.ones_like(actions[:, :1])], -1)
    targets = (following - mean) / unit
    squares = torch.zeros_like(targets[0])
    halves = slice(0, None, 2), slice(1, None, 2)
    for known, unknown in (halves, halves[::-1]):
        x, penalty = inputs[known], RIDGE * len(inputs[known])
        matrix = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        coefficients = torch.linalg.solve(matrix, x.T @ targets[known])
        squares += (inputs[unknown] @ coefficients - targets[unknown]).square().sum(0)
    shares = 1 - squares / len(targets)
    return torch.where(std > 0, shares.clamp(min=0), 0.0).to(features.dtype)
