"""Updates as CUDA graphs, and objectives through a compiler."""

import functools
import math
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
    host, and keep what it changes in the same tensors. One that cannot be captured goes on as it is, with a warning.

    :param update: function of tensors, or of nested tuples and dictionaries of them; their shapes never change.
    """

    def __init__(self, update: Callable[..., Any]) -> None:
        self._update = update
        self._eager_calls_left: float = WARM_UP_UPDATES
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._inputs: Any = None
        self._outputs: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Any) -> Any:
        """Run the update; what it returns is overwritten by the next call."""
        if self._inputs is None:
            self._inputs = pytree.tree_map(torch.clone, inputs)
        for own, given in zip(pytree.tree_leaves(self._inputs), pytree.tree_leaves(inputs), strict=True):
            own.copy_(given)
        if self._graph is None and self._eager_calls_left <= 0:
            self._capture()
        if self._graph is None:
            self._eager_calls_left -= 1
            return self._run_eagerly()
        self._graph.replay()
        return self._outputs

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outputs = self._update(*self._inputs)
        except RuntimeError as error:
            self._eager_calls_left = math.inf
            warnings.warn(f"an update cannot be captured in a CUDA graph and stays slow: {error}", stacklevel=5)
        else:
            self._graph = graph

    def _run_eagerly(self) -> Any:
        """Run on another stream, as a capture will."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self._update(*self._inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs
