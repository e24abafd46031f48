"""Scales that belong to a policy: module buffers, so that they are saved, loaded and moved with it.

All buffers are floats, because scripts average and compare the ``state_dict`` of SB3's policies as floats.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

LATENT_STD_FLOOR = 0.02  # of latents in [0, 1]: what varies less is not blown up
ROUNDINGS = 2  # rounding errors of an entry's largest value: what varies less is constant
SMALL_ENTRY = 1e-8  # times the median of all entries' standard deviations: what varies less is constant
SMALL_REWARD = 1e-8  # smaller ones count as 0: the next might be 1, and 1e8 scales then
NO_SCALE = 1.0  # of rewards, as long as there was none but 0; no measured scale is exactly this
OLD_FLOOR = 1e-3  # which files from before float64 statistics expect on top of the standard deviation


def move(average: torch.Tensor, new: torch.Tensor, decay: float, *, known: torch.Tensor, finite: torch.Tensor) -> None:
    """Move ``average`` towards ``new`` where ``finite``, all the way where it is not ``known`` yet."""
    moved = torch.where(known, average.lerp(new, 1 - decay), new)
    average.copy_(torch.where(finite, moved, average))


def mean_and_std(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each entry of observations, in float64; 0 for entries that are constant.

    An entry is constant if it varies no more than rounding does, or by less than ``SMALL_ENTRY`` of what the others
    do: simulators compute some constants anew at every step. All of this is relative, so that no unit is too small.

    :param values: (N, *shape) observations, of the type that they are stored in.
    :return: two (*shape) tensors.
    """
    rounding = ROUNDINGS * torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    values = values.double()
    mean, std = values.mean(0), values.std(0, correction=0)
    varies = std > rounding * values.abs().amax(0)
    if varies.any():
        varies &= std > SMALL_ENTRY * std[varies].median()
    return mean, torch.where(varies, std, 0.0)


def standardize(values: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return observations shifted by their mean and in units of ``std``, clipped to [-10, 10], in float32.

    What was constant changes relative to its size. The difference is taken in float64: in float32 a large mean leaves
    nothing of it.
    """
    return ((values.double() - mean) / units(mean, std)).clamp(-10, 10).float()


def units(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return what differences to the mean are divided by: ``std``, and for constants their size plus 1."""
    return torch.where(std > 0, std, 1 + mean.abs())


class Statistics(nn.Module):
    """Mean and standard deviation of observations, in float64.

    :param shape: shape of both; None for a module without statistics.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        if shape is not None:
            self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
            self.register_buffer("std", torch.ones(shape, dtype=torch.float64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        std = state_dict.get(f"{prefix}std")
        if std is not None and std.dtype == torch.float32:  # from before these were float64
            state_dict[f"{prefix}std"] = std + OLD_FLOOR
        super()._load_from_state_dict(state_dict, prefix, *args)


class Standardizer(Statistics):
    """Shift and scale observations to mean 0 and standard deviation 1, clipped to [-10, 10].

    :param shape: shape of one observation.
    """

    def set_statistics(self, observations: torch.Tensor) -> None:
        """Take the statistics of (N, *shape) observations."""
        mean, std = mean_and_std(observations)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Standardise (..., *shape) observations, to float32."""
        return standardize(observations, self.mean, self.std)


class RewardScale(nn.Module):
    """Divide rewards by their size; no shift, because the value of a terminal state is 0 in the environment's units.

    :param n_tasks: number of tasks with a scale each; None for one scale.
    """

    scale: torch.Tensor

    def __init__(self, n_tasks: int | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full(() if n_tasks is None else (n_tasks,), NO_SCALE))

    @property
    def is_known(self) -> torch.Tensor:
        """Whether there was a reward other than 0: () or, with a scale for each task, (n_tasks,) booleans."""
        return self.scale != NO_SCALE

    def set_statistics(self, rewards: torch.Tensor, tasks: torch.Tensor | None = None) -> None:
        """Set the scale to the rewards' standard deviation, at least a quarter of their root mean square.

        The second part keeps (nearly) constant rewards, such as 1 per step alive, at a size of at most 4. Without a
        reward other than 0 (up to 1e-8) the scale stays as it is.

        :param rewards: (N,) rewards in the environment's units, on the host.
        :param tasks: (N,) task of each, if there is a scale for each.
        """
        groups = torch.zeros(len(rewards), dtype=torch.long) if tasks is None else tasks
        known = self.scale.cpu().reshape(-1)
        count, total, squares = (
            torch.bincount(groups, weights, minlength=len(known))
            for weights in (None, rewards.double(), rewards.double() ** 2)
        )
        mean, square = total / count, squares / count  # not a number for a task without rewards
        scale = torch.maximum((square - mean**2).clamp(min=0).sqrt(), square.sqrt() / 4).to(self.scale.dtype)
        scale = torch.where(scale == NO_SCALE, np.nextafter(np.float32(NO_SCALE), np.float32(2)).item(), scale)
        self.scale.copy_(torch.where(scale > SMALL_REWARD, scale, known).view_as(self.scale))

    def of(self, tasks: torch.Tensor | None) -> torch.Tensor:
        """Return the () scale, or the (...) scales of (...) tasks."""
        return self.scale if tasks is None else self.scale[tasks]

    def forward(self, rewards: torch.Tensor, tasks: torch.Tensor | None = None) -> torch.Tensor:
        """Scale rewards of any shape, of ``tasks`` whose shape fits."""
        return rewards / self.of(tasks)


class LatentScale(nn.Module):
    """What actor and critics see of latents: moving mean and standard deviation made 0 and 1, clipped to [-10, 10].

    Latents lie in [0, 1], and most of them vary by far less than that between the states that a policy meets.

    :param latent_dim: number of latents Z.
    :param action_dim: number of action dimensions A that may follow the latents; they stay as they are.
    :param decay: weight of the past, in [0, 1); 0.99 averages over about 100 updates.
    """

    mean: torch.Tensor
    std: torch.Tensor
    initialized: torch.Tensor

    def __init__(self, latent_dim: int, action_dim: int = 0, decay: float = 0.99) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.decay = decay
        self.register_buffer("mean", torch.zeros(latent_dim + action_dim))
        self.register_buffer("std", torch.ones(latent_dim + action_dim))
        self.register_buffer("initialized", torch.zeros(()))  # 0 or 1

    @torch.no_grad()
    def update(self, latents: torch.Tensor) -> None:
        """Move the statistics towards those of (..., Z) latents; if these are not finite, nothing changes."""
        rows = latents.flatten(0, -2).to(self.mean.dtype)
        mean = rows.mean(0)
        std = (rows - mean).square().mean(0).sqrt().clamp(min=LATENT_STD_FLOOR)
        known, finite = self.initialized > 0, torch.isfinite(mean + std).all()
        for statistics, new in ((self.mean, mean), (self.std, std)):
            move(statistics[: self.latent_dim], new, self.decay, known=known, finite=finite)
        self.initialized.copy_(known | finite)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scale the latents of (..., Z) latents, or of (..., Z + A) latents and actions."""
        size = inputs.shape[-1]
        return ((inputs - self.mean[:size]) / self.std[:size]).clamp(-10, 10)


class ReturnScale(nn.Module):
    """Running standard deviation of imagined returns, by which the actor's objective is divided.

    :param decay: weight of the past, in [0, 1); 0.99 averages over about 100 updates.
    :param n_tasks: number of tasks with a scale each; None for one scale.
    """

    variance: torch.Tensor
    initialized: torch.Tensor

    def __init__(self, decay: float = 0.99, n_tasks: int | None = None) -> None:
        super().__init__()
        self.decay = decay
        shape = () if n_tasks is None else (n_tasks,)
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("initialized", torch.zeros(shape))  # 0 or 1

    @torch.no_grad()
    def update(self, returns: torch.Tensor, tasks: torch.Tensor | None = None) -> None:
        """Move the scale towards the spread of (B,) returns; returns that are not finite change nothing.

        With a scale for each task, the (B,) ``tasks`` of the returns move theirs; one return alone has no spread.
        """
        if tasks is None:
            variance = returns.var(correction=0)
        else:
            members = F.one_hot(tasks, len(self.variance)).to(returns.dtype)
            count = members.sum(0)
            deviations = returns - (returns @ members / count)[tasks]
            variance = torch.where(count > 1, deviations.square() @ members / count, torch.nan)
        known, finite = self.initialized > 0, torch.isfinite(variance)
        move(self.variance, variance, self.decay, known=known, finite=finite)
        self.initialized.copy_(known | finite)

    @property
    def scale(self) -> torch.Tensor:
        """() standard deviation, positive; or (n_tasks,)."""
        return (self.variance + 1e-5).sqrt()

    def of(self, tasks: torch.Tensor | None) -> torch.Tensor:
        """Return the () scale, or the (...) scales of (...) tasks."""
        return self.scale if tasks is None else self.scale[tasks]
