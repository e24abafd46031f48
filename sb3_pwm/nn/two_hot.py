"""Symlog two-hot coding of scalars: regression as classification over fixed bins (Hafner et al., arXiv 2301.04104)."""

import torch


def symlog(x: torch.Tensor) -> torch.Tensor:
    """Return sign(x) log(1 + |x|), the same shape as ``x``."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: torch.Tensor) -> torch.Tensor:
    """Return sign(x) (exp(|x|) - 1), the inverse of :func:`symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def two_hot(x: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """Spread symlog(x) over the two nearest bins, so that the bins' weighted mean is symlog(x).

    :param x: (...) scalars; values beyond the outer bins count as the outer bins.
    :param bins: (K,) evenly spaced, rising, K >= 2.
    :return: (..., K) weights, non-negative, summing to 1, at most two of them non-zero.
    """
    position = ((symlog(x) - bins[0]) / (bins[1] - bins[0])).clamp(0, len(bins) - 1)
    places = torch.arange(len(bins), device=bins.device, dtype=bins.dtype)
    return (1 - (position.unsqueeze(-1) - places).abs()).clamp(min=0)


def two_hot_inv(logits: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """Return the scalar that a two-hot head predicts: symexp of the expected bin.

    :param logits: (..., K) unnormalised log-weights.
    :param bins: (K,) the bins of :func:`two_hot`.
    :return: (...) scalars.
    """
    return symexp((logits.softmax(-1) * bins).sum(-1))
