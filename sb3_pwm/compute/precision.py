"""Number formats of the matrix products in an update."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]
PrecisionChoice: TypeAlias = Precision | Literal["auto"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")

MIN_GAIN = 1.3  # how much faster bfloat16 must be to be chosen: less would change with whatever else the machine does
MEASURED_RUNS = 5


def supports(device: torch.device, precision: Precision) -> bool:
    """Return whether a device has matrix products of a precision in hardware."""
    if precision == "float32":
        return True
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and precision == "bfloat16" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def usable_precision(device: torch.device, precision: Precision) -> Precision:
    """Return ``precision`` if the device has it; else warn and return ``"float32"``."""
    if supports(device, precision):
        return precision
    warnings.warn(f'the device {device} has no precision="{precision}"; "float32" is used', UserWarning, stacklevel=3)
    return "float32"


def faster_precision(device: torch.device, work: Callable[[], object]) -> Precision:
    """Return ``"bfloat16"`` if the device has it in hardware and it is 1.3 times as fast at least, else ``"float32"``.

    :param device: where the work runs.
    :param work: passes through networks of the sizes that matter; it is run some times in each precision.
    """
    if not supports(device, "bfloat16"):
        return "float32"
    return "bfloat16" if seconds(device, "float32", work) >= MIN_GAIN * seconds(device, "bfloat16", work) else "float32"


def seconds(device: torch.device, precision: Precision, work: Callable[[], object]) -> float:
    """Return the shortest time that some work took in a precision, after one run that does not count."""
    times = []
    for _ in range(1 + MEASURED_RUNS):
        begin = time.perf_counter()
        with arithmetic(device, precision):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute the forward passes inside with matrix products of a precision; parameters and results stay float32.

    Leave it before an optimizer changes parameters, because bfloat16 copies of them are kept inside.

    :param device: where the computation runs.
    :param precision: ``"bfloat16"``: products of rounded factors, summed in float32; ``"tf32"``: the same with ten bits
        behind the point, on GPUs only; ``"float32"``: nothing is rounded.
    """
    if precision == "float32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class FullPrecisionLinear(nn.Linear):
    """Linear layer whose product is never rounded: for values, whose differences are small against their size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (..., out_features) outputs of (..., in_features) inputs."""
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)
