"""Scales that belong to a policy: module buffers, so that they are saved, loaded and moved with it.

All buffers are floats, because scripts average and compare the ``state_dict`` of SB3's policies as floats.
"""

import torch
from torch import nn
from torch.nn import functional as F

LATENT_STD_FLOOR = 0.02  # of latents in [0, 1]: what varies less is not blown up


def move(average: torch.Tensor, new: torch.Tensor, decay: float, *, known: torch.Tensor, finite: torch.Tensor) -> None:
    """Move ``average`` towards ``new`` where ``finite``, all the way where it is not ``known`` yet."""
    moved = torch.where(known, average.lerp(new, 1 - decay), new)
    average.copy_(torch.where(finite, moved, average))


class Standardizer(nn.Module):
    """Shift and scale observations to mean 0 and standard deviation 1, clipped to [-10, 10].

    :param shape: shape of one observation.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Replace the statistics by ``mean`` and ``std``, both of one observation's shape."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Standardise (..., *shape) observations."""
        return ((observations - self.mean) / (self.std + 1e-3)).clamp(-10, 10)


class RewardScale(nn.Module):
    """Divide rewards by their size; no shift, because the value of a terminal state is 0 in the environment's units.

    :param n_tasks: number of tasks with a scale each; None for one scale.
    """

    scale: torch.Tensor

    def __init__(self, n_tasks: int | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(() if n_tasks is None else n_tasks))

    def set_statistics(self, rewards: torch.Tensor, tasks: torch.Tensor | None = None) -> None:
        """Set the scale to the rewards' standard deviation, at least a quarter of their root mean square.

        The second part keeps (nearly) constant rewards, such as 1 per step alive, at a size of at most 4.

        :param rewards: (N,) rewards in the environment's units; all zero make the scale 1.
        :param tasks: (N,) task of each, if there is a scale for each; a task without rewards keeps its scale.
        """
        if tasks is None:
            self.scale.copy_(self._size(rewards))
            return
        for task in set(tasks.tolist()):
            self.scale[task] = self._size(rewards[tasks == task])

    @staticmethod
    def _size(rewards: torch.Tensor) -> torch.Tensor:
        root_mean_square = rewards.square().mean().sqrt()
        scale = torch.maximum(rewards.std(correction=0), 0.25 * root_mean_square)
        return torch.where(scale > 1e-8, scale, torch.ones_like(scale))

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
