"""Steps that every update shares: encoding windows, drawing minibatches, applying gradients, adding up metrics."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sb3_pwm.parallel import average_gradients
from sb3_pwm.type_aliases import Metrics, Observations
from sb3_pwm.world_model import WorldModel

RATE_SCALE = "rate_scale"  # entry of an optimizer's group


def encode_windows(world_model: WorldModel, observations: Observations) -> torch.Tensor:
    """Encode (T, B, *obs_shape) observations to (T, B, Z) latents."""
    return to_each_step(world_model.encode, observations)


def to_each_step(function: Callable[[Observations], torch.Tensor], observations: Observations) -> torch.Tensor:
    """Apply a function of (N, *obs_shape) observations to (T, B, *obs_shape) ones; what it returns is (T, B, ...)."""
    leading = next(iter(observations.values())) if isinstance(observations, dict) else observations
    # (T, B, ...) -> (T * B, ...): features extractors know one batch dimension
    if isinstance(observations, dict):
        flat: Observations = {key: values.flatten(0, 1) for key, values in observations.items()}
    else:
        flat = observations.flatten(0, 1)
    results = function(flat)
    return results.view(*leading.shape[:2], *results.shape[1:])


def at_steps(observations: Observations, steps: int | slice) -> Observations:
    """Return one step, (B, *obs_shape), or some steps, (T', B, *obs_shape), of (T, B, *obs_shape) observations."""
    if isinstance(observations, dict):
        return {key: values[steps] for key, values in observations.items()}
    return observations[steps]


def minibatches(n_rows: int, batch_size: int, count: int, device: torch.device) -> torch.Tensor:
    """Draw the rows of ``count`` minibatches: all rows in random order, over and over.

    :param n_rows: number of rows.
    :param batch_size: rows per minibatch.
    :param count: number of minibatches.
    :param device: device of the result.
    :return: (count, batch_size) row indices.
    """
    passes = -(-count * batch_size // n_rows)
    order = torch.cat([torch.randperm(n_rows, device=device) for _ in range(passes)])
    return order[: count * batch_size].view(count, batch_size)


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


class RunningMeans:
    """Means of metrics, kept on their device until somebody reads them."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], torch.Tensor] = {}

    def add(self, metrics: Metrics, counts: torch.Tensor) -> None:
        """Add () metrics, if () ``counts`` is true."""
        names, values = tuple(metrics), torch.stack([*metrics.values()])
        if names not in self._totals:
            self._totals[names] = torch.zeros(len(names) + 1, dtype=values.dtype, device=values.device)
        row = torch.cat([values, torch.ones_like(values[:1])])
        self._totals[names].add_(row.masked_fill(~counts, 0.0))

    def pop(self) -> dict[str, float]:
        """Return the means since the last call, of metrics of which there are any."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for names, totals in self._totals.items():
            *values, count = totals.tolist()
            totals.zero_()
            for name, value in zip(names, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + count
        return {name: total / counts[name] for name, total in sums.items() if counts[name]}
