"""Building blocks of the networks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sb3_pwm.compute.precision import FullPrecisionLinear


class SimNorm(nn.Module):
    """Softmax within groups of features: each group becomes a point of a simplex (TD-MPC2, arXiv 2310.16828, eq. 5).

    :param group_size: number of features in a group; must divide the number of features.
    """

    def __init__(self, group_size: int = 8) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (..., Z) features; feature i belongs to group i mod (Z / group_size).

        The groups run across the features (stride Z / group_size) because a softmax over the second last dimension
        is several times faster on a CPU; published weights with contiguous groups need the matching permutation.
        """
        groups = x.view(*x.shape[:-1], self.group_size, -1)  # (..., Z) -> (..., group_size, Z / group_size)
        # Never in less than float32, so that a group still sums to 1 where products are rounded.
        return groups.softmax(-2, dtype=torch.promote_types(x.dtype, torch.float32)).flatten(-2)


class _FastMish(torch.autograd.Function):
    r"""With :math:`s` the sigmoid of x and :math:`p = s (2 - s)`: :math:`\tanh(\mathrm{softplus}(x)) = p / (2 - p)`.

    The slope is computed at once, while its parts are in the cache; memory is used again for the same reason.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        sigmoid, one = x.sigmoid(), x.new_ones(())
        tanh = sigmoid.lerp(one, sigmoid)
        slope = 2 - tanh
        tanh.div_(slope)
        if ctx.needs_input_grad[0]:
            torch.addcmul(one, tanh, tanh, value=-1, out=slope).mul_(sigmoid)  # of tanh(softplus(x))
            ctx.save_for_backward(torch.addcmul(tanh, slope, x, out=slope))
        return torch.mul(x, tanh, out=sigmoid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (slope,) = ctx.saved_tensors
        result: torch.Tensor = gradient * slope
        return result


class Mish(nn.Mish):
    """:class:`torch.nn.Mish`, three times as fast on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x tanh(softplus(x)) of a tensor of any shape."""
        if torch.compiler.is_compiling():  # the formula of _FastMish, for the compiler to fuse
            sigmoid = x.sigmoid()
            p = sigmoid * (2 - sigmoid)
            return x * (p / (2 - p))
        if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
            result: torch.Tensor = _FastMish.apply(x)  # type: ignore[no-untyped-call]
            return result
        return F.mish(x)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """Return all linear layers of ``module``, from the first to the last."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def truncated_normal_init(module: nn.Module) -> None:
    """Initialise every linear layer of ``module``: weights truncated normal (std 0.02), biases zero."""
    for layer in linear_layers(module):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)


def orthogonal_init(module: nn.Module, last_gain: float) -> None:
    """Initialise every linear layer orthogonally (gain sqrt(2), ``last_gain`` for the last), biases zero."""
    layers = linear_layers(module)
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)


def mlp(
    in_features: int,
    hidden: Sequence[int],
    out_features: int,
    activation_fn: type[nn.Module] = nn.SiLU,
    *,
    norm_after_activation: bool = False,
    full_precision_output: bool = True,
    norm_output: bool = False,
) -> nn.Sequential:
    """Build a perceptron whose hidden layers are Linear -> LayerNorm -> activation and whose last layer is linear.

    :param in_features: size of the input.
    :param hidden: sizes of the hidden layers; none gives one linear layer.
    :param out_features: size of the output.
    :param activation_fn: class of the activation.
    :param norm_after_activation: Linear -> activation -> LayerNorm instead (the paper's actor and critics).
    :param full_precision_output: never round the factors of the last layer's product, whatever the precision.
    :param norm_output: put LayerNorm behind the last layer too.
    :return: the network, (..., in_features) -> (..., out_features).
    """
    layers: list[nn.Module] = []
    for size in hidden:
        norm, activation = nn.LayerNorm(size), activation_fn()
        layers.append(nn.Linear(in_features, size))
        layers.extend([activation, norm] if norm_after_activation else [norm, activation])
        in_features = size
    layers.append((FullPrecisionLinear if full_precision_output else nn.Linear)(in_features, out_features))
    if norm_output:
        layers.append(nn.LayerNorm(out_features))
    return nn.Sequential(*layers)
