"""Whose arrays a replay buffer writes into."""

import sys
import weakref
from typing import Any

import numpy as np

ARRAYS = ("observations", "next_observations", "actions", "dones", "timeouts", "rewards")
OWN_REFERENCES = 3  # to an array that one buffer alone holds: the buffer's, a local name, and sys.getrefcount's


def own_arrays(buffer: Any) -> None:
    """Copy a buffer's arrays, before it writes into them, if somebody else holds them too.

    Arrays in files stay where they are, because they may be larger than memory.

    :param buffer: replay buffer that has taken over the arrays of another one.
    :raises ValueError: if a second buffer is about to write into the same files.
    """
    held = vars(buffer)
    rewards = held["rewards"]
    if isinstance(rewards, np.memmap):
        writer = getattr(rewards, "writer", None)
        if writer is not None and writer() not in (None, buffer):
            raise ValueError(
                f"another replay buffer stores steps in {rewards.filename}: import the data once more, into another "
                "directory, for a second model that goes on in an environment"
            )
        rewards.writer = weakref.ref(buffer)  # type: ignore[attr-defined]
    elif sys.getrefcount(rewards) > OWN_REFERENCES:
        for name in ARRAYS:  # rewards at last: if this is interrupted, they still tell
            values = held[name]
            parts = isinstance(values, dict)
            held[name] = {key: part.copy() for key, part in values.items()} if parts else values.copy()
