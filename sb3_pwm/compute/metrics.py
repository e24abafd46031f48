"""What updates count, kept on their device until somebody reads it."""

from collections.abc import Sequence

import torch

from sb3_pwm.type_aliases import Metrics


class RunningMeans:
    """Means of metrics, kept on their device until somebody reads them."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], torch.Tensor] = {}

    def add(self, metrics: Metrics, counts: torch.Tensor) -> None:
        """Add () metrics, if () ``counts`` is true."""
        names, values = tuple(metrics), torch.stack([*metrics.values()])
        if names not in self._totals:
            self._totals[names] = torch.zeros(len(names) + 1, dtype=values.dtype, device=values.device)
        row = torch.cat([values, torch.ones_like(values[:1])])
        self._totals[names].add_(row.masked_fill(~counts, 0.0))

    def pop(self) -> dict[str, float]:
        """Return the means since the last call, of metrics of which there are any."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for names, totals in self._totals.items():
            *values, count = totals.tolist()
            totals.zero_()
            for name, value in zip(names, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + count
        return {name: total / counts[name] for name, total in sums.items() if counts[name]}


class SkipCounter:
    """Count updates that were skipped because a loss or gradient was not finite.

    :param names: names of the networks.
    :param limit: number of skipped updates of one network in a row at which :meth:`pop` raises.
    :param device: where the updates run.
    """

    def __init__(self, names: Sequence[str], limit: int, device: torch.device) -> None:
        self._names = list(names)
        self._limit = limit
        # (network, 2): skipped updates that nobody has read yet, and those in a row
        self.counts = torch.zeros(len(self._names), 2, dtype=torch.int64, device=device)

    def add(self, name: str, finite: torch.Tensor) -> None:
        """Count an update of a network, skipped unless () ``finite``."""
        count, in_a_row = self.counts[self._names.index(name)]
        skipped = (~finite).long()
        count.add_(skipped)
        in_a_row.add_(skipped).mul_(skipped)

    def pop(self) -> tuple[int, str | None]:
        """Read what was counted since the last call; this waits for the device.

        :return: the number of skipped updates, and the network that has reached the limit, whose count starts anew.
        """
        skips = self.counts.tolist()
        self.counts[:, 0] = 0
        stuck = next((name for name, (_, row) in zip(self._names, skips, strict=True) if row >= self._limit), None)
        if stuck is not None:
            self.counts.zero_()
        return sum(count for count, _ in skips), stuck
