"""From latents back to observations, for looking at what a world model imagines; nothing learns from it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from sb3_pwm.nn.layers import mlp
from sb3_pwm.nn.scales import mean_and_std

N_BLOCKS = 50  # of neighbouring rows
HELD_OUT = 10  # every tenth block


class LatentDecoder(nn.Module):
    """Latents to observations.

    :param latent_dim: number of latents Z.
    :param mean: (D,) mean of the observations, in float64 as ``std`` is.
    :param std: (D,) their standard deviation; 0 for what never changes.
    :param hidden: sizes of the hidden layers.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, latent_dim: int, mean: torch.Tensor, std: torch.Tensor, hidden: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.network = mlp(latent_dim, hidden, len(mean))

    def standardized(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (..., D) observations of (..., Z) latents in standard deviations from their mean."""
        outputs: torch.Tensor = self.network(latents)
        return outputs

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (..., D) observations of (..., Z) latents, in the units of the environment and in float64."""
        return self.mean + self.std * self.standardized(latents)


class FittedDecoder(NamedTuple):
    """A decoder and how good it is."""

    decoder: LatentDecoder
    r2: torch.Tensor
    """(D,) share of the held-out observations' variance that is decoded: 1 is perfect, 0 no better than the mean; NaN
    for what never changes."""


def fit_decoder(
    latents: torch.Tensor,
    observations: torch.Tensor,
    *,
    updates: int = 2_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    hidden: Sequence[int] = (256, 256),
    seed: int = 0,
) -> FittedDecoder:
    """Learn to decode latents by least squares on standardised observations.

    A tenth of the rows, in blocks of neighbours, is held out. The latents are constants: no gradient reaches what made
    them. The result depends on ``seed`` alone, and the global generators stay as they were.

    :param latents: (N, Z), in the order in which they happened.
    :param observations: (N, D), the same rows in the units of the environment.
    :param updates: number of gradient steps.
    :param batch_size: rows in each.
    :param learning_rate: at the start; it falls to 0 along a half cosine.
    :param hidden: sizes of the hidden layers.
    :param seed: of weights and batches.
    :return: the decoder, in evaluation mode and without gradients, and its held-out R^2.
    :raises ValueError: if the numbers of rows differ or are too small to hold some out.
    """
    if len(latents) != len(observations) or len(latents) < N_BLOCKS:
        raise ValueError(
            f"latents have {len(latents)} rows and observations {len(observations)}; allowed: the same number, at "
            f"least {N_BLOCKS}"
        )
    latents, observations = latents.detach(), observations.detach()
    held_out = (torch.arange(len(latents)) * N_BLOCKS // len(latents)) % HELD_OUT == HELD_OUT - 1
    held_out = held_out.to(latents.device)
    inputs, targets = latents[~held_out], observations[~held_out]
    mean, std = mean_and_std(targets)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        decoder = LatentDecoder(latents.shape[1], mean.cpu(), std.cpu(), hidden).to(latents.device)
    standardized = ((targets - mean) / torch.where(std > 0, std, 1.0)).float()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(decoder.parameters(), learning_rate, fused=True)  # several times faster
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    with torch.enable_grad():
        for _ in range(updates):
            rows = torch.randint(len(inputs), (batch_size,), generator=generator).to(inputs.device)
            loss = F.mse_loss(decoder.standardized(inputs[rows]), standardized[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    decoder.eval().requires_grad_(False)
    return FittedDecoder(decoder, r_squared(decoder(latents[held_out]), observations[held_out]))


def changes(values: torch.Tensor) -> torch.Tensor:
    """Return for each of the D columns of (N, D) values whether it changes; its variance is rounded, and above 0."""
    return (values != values[:1]).any(0)


def r_squared(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`1 - \sum (\hat x - x)^2 / \sum (x - \bar x)^2` of each of D columns, NaN where it never changes.

    :param predicted: (N, D).
    :param truth: (N, D).
    :return: (D,).
    """
    missed = (predicted - truth).square().sum(0)
    varied = (truth - truth.mean(0)).square().sum(0)
    return torch.where(changes(truth), 1 - missed / varied, torch.nan)
