"""Discrete actions as networks take them: a one-hot code for each component, one behind the other."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch


class ActionCodes(NamedTuple):
    """The C components of an action, each a choice among some categories; a code has A numbers, one per category."""

    sizes: tuple[int, ...]
    """Number of categories of each component."""
    starts: tuple[int, ...]
    """Integer of each component's first category."""

    @property
    def size(self) -> int:
        """Size A of a code."""
        return sum(self.sizes)

    @property
    def n_joint(self) -> int:
        """Number of actions: of ways to choose a category for every component."""
        return math.prod(self.sizes)

    @property
    def max_entropy(self) -> float:
        """Entropy, in nats, of choosing among all actions with the same probability."""
        return sum(map(math.log, self.sizes))

    @property
    def are_alike(self) -> bool:
        """Whether all components have the same categories."""
        return len(set(zip(self.sizes, self.starts, strict=True))) == 1

    def groups(self, per_category: torch.Tensor) -> Iterator[torch.Tensor]:
        """Divide (..., A) numbers, one per category, into (..., c, n) of c components with n categories each.

        Components that are alike are one group, which is faster than one after the other.
        """
        if self.are_alike:
            yield per_category.reshape(*per_category.shape[:-1], len(self.sizes), self.sizes[0])
        else:
            yield from (part.unsqueeze(-2) for part in torch.split(per_category, list(self.sizes), -1))

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the (..., A) codes of (..., C) integers, in float32; zeros for a value that is no category."""
        actions = actions.long()  # PyTorch cannot compare unsigned integers of more than a byte with others
        groups = [actions] if self.are_alike else torch.split(actions, 1, -1)
        codes = []
        for group, size, start in zip(groups, self.sizes, self.starts, strict=False):
            categories = torch.arange(start, start + size, device=actions.device)
            codes.append((group.unsqueeze(-1) == categories).flatten(-2))
        return torch.cat(codes, -1).float()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the (..., C) integers of (..., A) codes, in int64."""
        groups = zip(self.groups(codes), self.starts, strict=False)
        return torch.cat([group.argmax(-1) + start for group, start in groups], -1)

    def all_codes(self) -> torch.Tensor:
        """Return the (n_joint, A) codes of all actions."""
        categories = [torch.arange(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True)]
        return self.encode(torch.cartesian_prod(*categories).view(self.n_joint, len(self.sizes)))
