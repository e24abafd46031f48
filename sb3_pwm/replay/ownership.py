"""Whose arrays a replay buffer writes into."""

import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

OF_STEPS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
OF_EPISODES = ("infos", "ep_start", "ep_length", "_current_ep_start")  # which hindsight replay has


def references(holder: dict[str, Any], name: str) -> int:
    """Return how many references there are to what a dictionary holds."""
    return sys.getrefcount(holder[name])


ALONE = references({"array": np.zeros(1)}, "array")


def own_arrays(buffer: Any) -> None:
    """Copy a buffer's arrays, before it writes into them, if somebody else holds one of them too.

    Arrays in files stay where they are, because they may be larger than memory.

    :param buffer: replay buffer that has taken over the arrays of another one, or has given them to one.
    :raises ValueError: if another buffer has written into the same files.
    """
    check_files_unchanged(buffer)
    held = vars(buffer)
    if isinstance(held["rewards"], np.memmap):
        held["rewards"].writer = weakref.ref(buffer)  # type: ignore[attr-defined]
    elif any(references(holder, name) > ALONE for holder, name in places(held)):
        for holder, name in list(places(held)):
            holder[name] = holder[name].copy()


def check_files_unchanged(buffer: Any) -> None:
    """Check that no other buffer has written into the files that this one's arrays lie in.

    :raises ValueError: if one has, even if it is gone.
    """
    rewards = vars(buffer)["rewards"]
    writer = getattr(rewards, "writer", None)
    if writer is not None and writer() is not buffer:
        raise ValueError(
            f"another replay buffer has stored steps in {rewards.filename}: import the data once more, into another "
            "directory, for a second model"
        )


def places(held: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the dictionary and the name of every array of a buffer with these attributes."""
    for name in (*OF_STEPS, *OF_EPISODES):
        if isinstance(held.get(name), dict):
            held[name] = dict(held[name])  # its own, whoever has the arrays
            yield from ((held[name], key) for key in held[name])
        elif name in held:
            yield held, name
