"""Count the matrix multiplications of a piece of work, and measure how fast the machine does nothing but these."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.baddbmm.default: 1,
}
"""Matrix products, and the place of their first factor among the arguments."""


class Product(NamedTuple):
    """One kind of matrix product: ``batch`` times (rows, inner) x (inner, columns)."""

    batch: int
    rows: int
    inner: int
    columns: int
    transposed: tuple[bool, bool]
    """Whether each factor lies transposed in memory, as in the backward pass."""
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Operations: a multiplication and an addition for each triple of indices."""
        return 2 * self.batch * self.rows * self.inner * self.columns


class Counts(TorchDispatchMode):
    """Count the tensor operations that run inside, also those of backward passes.

    ``products`` says how often each kind of matrix product ran, ``operations`` how many operations there were in all:
    each is one call of a kernel, or makes a view.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: Counter[Product] = Counter()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one operation, and let it run."""
        self.operations += 1
        if func in PRODUCTS:
            first, second = args[PRODUCTS[func] :][:2]
            batch = first.shape[0] if first.ndim == 3 else 1
            rows, inner = first.shape[-2:]
            transposed = (first.stride(-1) != 1, second.stride(-1) != 1)
            self.products[Product(batch, rows, inner, second.shape[-1], transposed, first.dtype)] += 1
        return func(*args, **(kwargs or {}))


def counts_of(work: Callable[[], object]) -> Counts:
    """Run ``work`` and return what ran in it."""
    counts = Counts()
    with counts:
        work()
    return counts


def flops_of(counts: Counter[Product]) -> int:
    """Return the operations of all products."""
    return sum(product.flops * count for product, count in counts.items())


def seconds_of(
    work: Callable[[], object], device: torch.device, at_least: float | None = None, rounds: int = 5
) -> float:
    """Return the seconds that ``work`` takes, see :func:`seconds_of_each`."""
    return seconds_of_each([work], device, at_least, rounds)[0]


def seconds_of_each(
    works: Sequence[Callable[[], object]], device: torch.device, at_least: float | None = None, rounds: int = 5
) -> list[float]:
    """Return the seconds that each piece of work takes: the lowest mean of several rounds, after a warm-up.

    The pieces take turns, so that what disturbs one disturbs all. On one CPU thread, the time in which other processes
    have the core does not count.

    :param works: what to time.
    :param device: device on which it runs; a GPU is waited for.
    :param at_least: seconds that each round lasts at least; None: 0.2, and 0.05 on a GPU, which nobody else disturbs.
    :param rounds: number of rounds.
    """
    if at_least is None:
        at_least = 0.05 if device.type == "cuda" else 0.2
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def round_of(work: Callable[[], object], repeats: int) -> float:
        wait()
        start = clock()
        for _ in range(repeats):
            work()
        wait()
        return (clock() - start) / repeats

    repeats = [max(1, round(at_least / max(min(round_of(work, 1), round_of(work, 1)), 1e-7))) for work in works]
    times = [[round_of(work, count) for work, count in zip(works, repeats, strict=True)] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def floor_seconds(counts: Counter[Product], device: torch.device) -> float:
    """Return the seconds of the same matrix products one after the other, with nothing in between."""
    total = 0.0
    for product, count in counts.items():

        def factor(rows: int, columns: int, transposed: bool, product: Product = product) -> torch.Tensor:
            leading = (product.batch,) if product.batch > 1 else ()
            shape = (*leading, columns, rows) if transposed else (*leading, rows, columns)
            values = torch.randn(shape, device=device).to(product.dtype)
            return values.mT if transposed else values

        first = factor(product.rows, product.inner, product.transposed[0])
        second = factor(product.inner, product.columns, product.transposed[1])
        out = first @ second

        def multiply(first: torch.Tensor = first, second: torch.Tensor = second, out: torch.Tensor = out) -> None:
            torch.matmul(first, second, out=out)

        total += count * seconds_of(multiply, device, at_least=0.01, rounds=3)
    return total


def peak_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the operations per second of one large square product."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * size**3 / seconds_of(lambda: torch.matmul(a, a, out=out), device, rounds=3)
