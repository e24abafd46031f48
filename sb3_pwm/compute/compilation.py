"""Updates as CUDA graphs, and objectives through a compiler."""

import functools
import math
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, TypeVar

import torch
from torch.utils import _pytree as pytree

from sb3_pwm.compute.optimizers import is_fused

TorchCompile: TypeAlias = bool | Literal["auto"]

P = ParamSpec("P")
R = TypeVar("R")

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


class Acceleration:
    """How the updates of a learner run: as they are, as CUDA graphs, and with compiled objectives.

    :param device: where the networks are.
    :param torch_compile: see :class:`sb3_pwm.PWM`.
    :param optimizers: the optimizers that updates step; a graph knows their present states.
    """

    def __init__(
        self, device: torch.device, torch_compile: TorchCompile, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> None:
        self.compiles = torch_compile is True and usable_compiler(device.type)
        fused = all(is_fused(optimizer) for optimizer in optimizers.values())
        self.captures = bool(torch_compile) and device.type == "cuda" and fused
        self._optimizers = optimizers
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._graphs: dict[Any, CapturedUpdate] = {}
        self._states: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled or captured: it cannot be copied, and is made anew."""
        return self.__dict__ | {"_compiled": {}, "_graphs": {}}

    def replay(self, name: str, update: Callable[..., R], inputs: tuple[Any, ...], settings: Mapping[str, float]) -> R:
        """Run the update of a name as a CUDA graph, one for each combination of settings and shapes."""
        states = [optimizer.state for optimizer in self._optimizers.values()]
        if any(state is not before for state, before in zip(states, self._states or states, strict=True)):
            self._graphs.clear()  # the optimizers have loaded other states; graphs know the old ones
        self._states = states
        key = (name, *settings.items(), *(tensor.shape for tensor in pytree.tree_leaves(inputs)))
        if key not in self._graphs:
            self._graphs[key] = CapturedUpdate(functools.partial(update, **settings))
        result: R = self._graphs[key](*inputs)
        return result

    def compile(self, objective: Callable[..., R]) -> Callable[..., R]:
        """Return a method, compiled once."""
        name = objective.__name__
        if name not in self._compiled:
            self._compiled[name] = torch.compile(objective, dynamic=False)
        return self._compiled[name]


class Accelerated(Protocol):
    """An object whose methods :func:`captured` and :func:`compiled` may decorate."""

    acceleration: Acceleration

    def after_update(self) -> None:
        """Do what the host does after an update."""
        ...


A = TypeVar("A", bound=Accelerated)


def captured(update: Callable[Concatenate[A, P], R]) -> Callable[Concatenate[A, P], R]:
    """Make a method run as a CUDA graph where its object's acceleration says so, and ``after_update`` after it.

    Positional arguments are what :class:`CapturedUpdate` takes; keywords are numbers that the graph has fixed.
    """

    @functools.wraps(update)
    def run(self: A, /, *inputs: P.args, **settings: P.kwargs) -> R:
        result: R
        if self.acceleration.captures:
            # What a graph has captured must not keep the object alive that keeps the graph.
            own = functools.partial(update, weakref.proxy(self))
            result = self.acceleration.replay(update.__name__, own, inputs, settings)  # type: ignore[arg-type]
        else:
            result = update(self, *inputs, **settings)
        self.after_update()
        return result

    return run


def compiled(objective: Callable[Concatenate[A, P], R]) -> Callable[Concatenate[A, P], R]:
    """Make a method run through ``torch.compile`` where its object's acceleration says so."""

    @functools.wraps(objective)
    def run(self: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self.acceleration.compiles:
            return objective(self, *args, **kwargs)
        result: R = self.acceleration.compile(objective)(self, *args, **kwargs)
        return result

    return run
