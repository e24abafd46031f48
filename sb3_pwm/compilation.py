"""Updates as CUDA graphs, and objectives through a compiler."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch.utils import _pytree as pytree

TorchCompile: TypeAlias = bool | Literal["auto"]

WARM_UP_UPDATES = 3  # eager ones, in which optimizers and libraries allocate what they keep


@functools.cache
def usable_compiler(device_type: str) -> bool:
    """Return whether ``torch.compile`` works on a device; warn if it does not."""
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(8, device=device_type))
    except Exception as error:  # whatever a compiler, or its absence, may raise
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"torch.compile does not work here, nothing is compiled: {reason}", UserWarning, stacklevel=3)
        return False
    return True


class CapturedUpdate:
    """An update that is captured in a CUDA graph, so that one launch replaces thousands.

    The first calls run as they are; then the update is captured, and replayed from then on. It must read nothing on the
    host, and keep what it changes in the same tensors.

    :param update: function of tensors, or of nested tuples and dictionaries of them; their shapes never change.
    """

    def __init__(self, update: Callable[..., Any]) -> None:
        self._update = update
        self._calls = 0
        self._inputs: Any = None
        self._outputs: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Run the update; what it returns is overwritten by the next call."""
        if self._inputs is None:
            self._inputs = pytree.tree_map(torch.clone, inputs)
        for own, given in zip(pytree.tree_leaves(self._inputs), pytree.tree_leaves(inputs), strict=True):
            own.copy_(given)
        self._calls += 1
        if self._calls <= WARM_UP_UPDATES:
            return self._warm_up()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = self._update(*self._inputs)
        self._graph.replay()
        return self._outputs

    def _warm_up(self) -> Any:
        """Run on another stream, as a capture will."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._update(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs
