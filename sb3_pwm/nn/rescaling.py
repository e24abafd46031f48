"""Networks that go on computing the same when the scales of what they see, or put out, change.

(Pop-Art, arXiv 1602.07714, section 2.2, for inputs too.)
"""

import torch
from torch import nn

LARGEST_CHANGE = 10.0  # of a mean or a unit, in units: beyond, a network has seen the entry clipped at 10 units


def change_of_units(
    old: tuple[torch.Tensor, torch.Tensor], new: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and shift that turn entries in new units into those in old ones.

    :param old: (D,) means and (D,) positive units.
    :param new: the same of later.
    :return: (D,) factors a and (D,) shifts d, with old = a new + d; 1 and 0 for entries that have changed too much, of
        which networks start to learn anew.
    """
    factor, shift = new[1] / old[1], (new[0] - old[0]) / old[1]
    is_kept = (factor < LARGEST_CHANGE) & (factor > 1 / LARGEST_CHANGE) & (shift.abs() < LARGEST_CHANGE)
    return torch.where(is_kept, factor, 1.0), torch.where(is_kept, shift, 0.0)


@torch.no_grad()
def take_inputs(layer: nn.Linear, factor: torch.Tensor, shift: torch.Tensor) -> None:
    """Let a layer compute from inputs x what it computed from factor * x + shift.

    :param layer: the layer.
    :param factor: (D,) factors of its first D inputs.
    :param shift: (D,) shifts of these.
    """
    weight = layer.weight[:, : len(factor)]
    layer.bias.add_((weight.double() @ shift.double()).to(layer.bias.dtype))
    weight.mul_(factor.to(weight.dtype))


@torch.no_grad()
def put_out(layer: nn.Linear, factor: torch.Tensor, shift: torch.Tensor | float = 0.0) -> None:
    """Let a layer put out factor * y + shift instead of y; both are () or have an entry for each output."""
    layer.weight.mul_(factor.to(layer.weight.dtype).reshape(-1, 1))
    layer.bias.copy_(factor * layer.bias + shift)
