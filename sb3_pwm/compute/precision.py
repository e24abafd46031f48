"""Number formats of the matrix products in an update."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")


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
