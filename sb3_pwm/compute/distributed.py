"""Data-parallel updates: what several processes of ``torch.distributed`` exchange."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import distributed, nn


class Part(NamedTuple):
    """Which part of every batch is this process's own."""

    rank: int = 0
    n_processes: int = 1


def own_part() -> Part:
    """Return this process's part; without a process group it is everything."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Part()
    return Part(distributed.get_rank(), distributed.get_world_size())


@torch.no_grad()
def share_from_first(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    for tensor in module.state_dict().values():
        distributed.broadcast(tensor, 0)


def share_of_weight(weights: torch.Tensor) -> torch.Tensor:
    """Return the () sum of this process's weights over its mean over all processes.

    The mean over the processes of weighted means, times this, is the weighted mean over all their rows.
    """
    total = weights.sum()
    mean = total.clone()
    distributed.all_reduce(mean)
    return total * own_part().n_processes / mean


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, in one exchange."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= own_part().n_processes
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))
