"""Optimizer steps that clip, skip what is not finite, and never wait for the device."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sb3_pwm.compute.distributed import average_gradients

RATE_SCALE = "rate_scale"  # entry of an optimizer's group


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of the optimizer can clip and skip by itself, without the host."""
    return all(group.get("fused") for group in optimizer.param_groups)


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    parameters: Iterable[nn.Parameter],
    max_grad_norm: float,
    *,
    average: bool = False,
) -> torch.Tensor:
    """Take one optimizer step on ``parameters``, and on nothing else that the loss depends on.

    Gradients are computed for these parameters only, so that networks which a loss passes through stay frozen and
    cost no weight gradients. With a fused optimizer the host reads no value on the way.

    :param optimizer: holds the parameters.
    :param loss: () loss.
    :param parameters: parameters to change; frozen ones among them stay as they are.
    :param max_grad_norm: clip the gradients' total norm to this.
    :param average: average the gradients over all processes first.
    :return: () whether loss and gradients were finite; if not, nothing was changed.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if not parameters:
        return torch.isfinite(loss.detach())
    for parameter in parameters:
        parameter.grad = None
    loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
    if average:
        average_gradients(parameters)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    finite = torch.isfinite(norm + loss.detach())
    if is_fused(optimizer):
        # As torch.amp.GradScaler does: the step itself divides the gradients, or changes nothing.
        optimizer.grad_scale = ((norm + 1e-6) / max_grad_norm).clamp(min=1).float()  # type: ignore[attr-defined]
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
    elif finite:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    return finite


def move_average(average: list[nn.Parameter], parameters: list[nn.Parameter], decay: float) -> None:
    """Move ``average`` by ``1 - decay`` towards ``parameters`` of the same shapes (Polyak averaging).

    :param average: parameters without gradients.
    :param parameters: parameters that learn.
    :param decay: weight of the past, in [0, 1].
    """
    get_ema_multi_avg_fn(decay)(average, parameters, 0)  # type: ignore[no-untyped-call]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, *, on_device: bool) -> None:
    """Set the learning rate of all parameters.

    :param optimizer: optimizer; a group's entry ``RATE_SCALE`` says how many times the rate it has.
    :param rate: learning rate.
    :param on_device: keep it in a tensor beside the parameters, where the steps of a CUDA graph find it.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = on_device
        own = rate * group.get(RATE_SCALE, 1)
        if on_device and isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = torch.tensor(own, device=group["params"][0].device) if on_device else own
