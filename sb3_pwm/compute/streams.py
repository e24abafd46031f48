"""Work that need not wait for each other, side by side on a GPU."""

import functools
from collections.abc import Callable, Sequence

import torch


@functools.cache
def streams_of(device: torch.device, count: int) -> list[torch.cuda.Stream]:
    """Return the streams on which ``count`` pieces of work run on a GPU, always the same ones."""
    return [torch.cuda.Stream(device) for _ in range(count)]  # type: ignore[no-untyped-call]


def side_by_side(works: Sequence[Callable[[], torch.Tensor]], device: torch.device) -> list[torch.Tensor]:
    """Return what each piece of work returns.

    On a GPU every one has a stream of its own, so that small networks fill it together; in a CUDA graph they become
    branches, and so do their backward passes.

    :param works: functions that do not depend on each other and draw no random numbers.
    :param device: where they compute.
    """
    if device.type != "cuda" or len(works) == 1 or torch.compiler.is_compiling():
        return [work() for work in works]
    present, streams, results = torch.cuda.current_stream(device), streams_of(device, len(works)), []
    for work, stream in zip(works, streams, strict=True):
        stream.wait_stream(present)
        with torch.cuda.stream(stream):
            results.append(work())
    for stream in streams:
        present.wait_stream(stream)
    return results
