"""What faults must not leave behind."""

from typing import Any

import torch


def false_steps(buffer: Any, length: int = 4) -> int:
    """Return how many steps in all windows of a buffer of :class:`helpers.TruthEnv` did not happen so."""
    if buffer.size() < length:
        return 0
    samples = buffer.spread_sequences(buffer.n_transitions, length)
    rows = samples.observations
    rows = torch.cat(list(rows.values()), -1) if isinstance(rows, dict) else rows
    before, after = rows[:-1], rows[1:]
    true = (
        (after[..., 1] == before[..., 1] + 1)  # the next step
        & (after[..., 0] == before[..., 0])  # of the same environment
        & (after[..., 2] == before[..., 2])  # and episode
        & (before[..., 3] == 0)
        & (samples.terminations == (after[..., 3] == 1))
        & (samples.rewards == after[..., 1])
        & (samples.actions[..., 0] == after[..., 4])
    )
    return int((samples.mask.bool() & ~true).sum())
