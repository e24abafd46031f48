"""The global random generators."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Put the global generators of Python, NumPy and torch back: who uses them next draws what it would have drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def put_back_if_seeded(seed: int | None) -> AbstractContextManager[None]:
    """Put the global generators back after work that seeds them; without a seed it draws from them, and they go on.

    Without this whoever draws next would get what every such work has got before.
    """
    return nullcontext() if seed is None else untouched_generators()
