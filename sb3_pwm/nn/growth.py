"""Tensors that grow: every entry keeps its value, and its place within its part of an axis.

An axis along which different things lie behind each other, such as latents and actions, is a tuple of their names.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

Parts = tuple[str, ...]
"""What lies behind each other along an axis."""
Axes = tuple[Parts | None, ...]
"""The parts of each axis; None for one that keeps its size."""
Sizes = Mapping[str, int]
"""How many entries each part has."""


def places(parts: Parts, before: Sizes, after: Sizes) -> torch.Tensor:
    """Return where an axis's entries lie after its parts have grown.

    :param parts: the parts, in order.
    :param before: their N entries.
    :param after: at least as many.
    :return: (N,) indices.
    """
    starts = itertools.accumulate((after[part] for part in parts), initial=0)
    return torch.cat([start + torch.arange(before[part]) for part, start in zip(parts, starts, strict=False)])


def grown(tensor: torch.Tensor, start: torch.Tensor, axes: Axes, before: Sizes, after: Sizes) -> torch.Tensor:
    """Return a larger tensor with the entries of a smaller one.

    :param tensor: the smaller tensor.
    :param start: what the larger one holds at all other places.
    :param axes: the parts of each axis; those that are left out keep their sizes.
    :param before: entries of each part in ``tensor``.
    :param after: entries of each part in ``start``.
    :return: a new tensor of the shape of ``start``.
    """
    result = start.clone()
    known = [*axes, *[None] * (tensor.ndim - len(axes))]
    indices = [
        torch.arange(size) if parts is None else places(parts, before, after)
        for parts, size in zip(known, tensor.shape, strict=True)
    ]
    where = torch.meshgrid(*indices, indexing="ij") if indices else ()
    result[where] = tensor.to(result)
    return result


def grow_state(
    former: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor], axes: Mapping[str, Axes], *sizes: Sizes
) -> dict[str, torch.Tensor]:
    """Return a larger module's state with the entries of a smaller one's.

    Weights (matrices) of what is new are 0, so that inputs which are 0 as well change nothing; all else that is new is
    what a fresh module has.

    :param former: state of the smaller module.
    :param fresh: state of a new module of the larger sizes.
    :param axes: the axes of tensors that grow, by name.
    :param sizes: entries of each part, before and after.
    :return: state for the larger module.
    """
    state = {}
    for name, tensor in fresh.items():
        start = torch.zeros_like(tensor) if name.endswith(".weight") else tensor
        state[name] = grown(former[name], start, axes.get(name, ()), *sizes)
    return state


def grow_optimizer(
    former: torch.optim.Optimizer,
    fresh: torch.optim.Optimizer,
    parameters: Iterable[tuple[nn.Parameter, nn.Parameter, Axes]],
    *sizes: Sizes,
) -> None:
    """Give an optimizer of grown parameters the state of the one before; averages of what is new are 0.

    :param former: optimizer of the smaller parameters.
    :param fresh: new optimizer of the larger ones; it is changed.
    :param parameters: each smaller parameter, the larger one in its place, and its axes.
    :param sizes: entries of each part, before and after.
    """
    for small, large, axes in parameters:
        if small in former.state:
            fresh.state[large] = {
                name: grown(value, torch.zeros_like(large), axes, *sizes) if is_like(value, small) else value
                for name, value in former.state[small].items()
            }


def is_like(value: object, parameter: torch.Tensor) -> bool:
    """Return whether an entry of an optimizer's state is one number for each of a parameter's."""
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim > 0


def named_pairs(
    former: nn.Module, fresh: nn.Module, axes: Mapping[str, Axes]
) -> Sequence[tuple[nn.Parameter, nn.Parameter, Axes]]:
    """Return the parameters of two modules of the same kind in pairs, with the axes of each."""
    pairs = zip(former.named_parameters(), fresh.named_parameters(), strict=True)
    return [(small, large, axes.get(name, ())) for (name, small), (_, large) in pairs]
