"""Steps that every update shares: encoding windows, drawing minibatches, applying gradients."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sb3_pwm.type_aliases import Observations
from sb3_pwm.world_model import WorldModel


def encode_windows(world_model: WorldModel, observations: Observations) -> torch.Tensor:
    """Encode (T, B, *obs_shape) observations to (T, B, Z) latents."""
    leading = next(iter(observations.values())) if isinstance(observations, dict) else observations
    # (T, B, ...) -> (T * B, ...): features extractors know one batch dimension
    if isinstance(observations, dict):
        flat: Observations = {key: values.flatten(0, 1) for key, values in observations.items()}
    else:
        flat = observations.flatten(0, 1)
    latents = world_model.encode(flat)
    return latents.view(*leading.shape[:2], -1)


def steps_of(observations: Observations, start: int, stop: int | None) -> Observations:
    """Return the steps from ``start`` to before ``stop`` of (T, B, *obs_shape) observations."""
    if isinstance(observations, dict):
        return {key: values[start:stop] for key, values in observations.items()}
    return observations[start:stop]


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


def apply_gradients(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: Iterable[nn.Parameter], max_grad_norm: float
) -> bool:
    """Take one optimizer step on ``parameters``, and on nothing else that the loss depends on.

    Gradients are computed for these parameters only, so that networks which a loss passes through stay frozen and
    cost no weight gradients.

    :param optimizer: holds the parameters.
    :param loss: () loss.
    :param parameters: parameters to change; frozen ones among them stay as they are.
    :param max_grad_norm: clip the gradients' total norm to this.
    :return: whether loss and gradients were finite; if not, nothing was changed.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not torch.isfinite(norm + loss.detach()):
        optimizer.zero_grad(set_to_none=True)
        return False
    optimizer.step()
    return True


def move_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the parameters of ``average`` by ``1 - decay`` towards those of ``network`` (Polyak averaging).

    :param average: module of the same shape, without gradients.
    :param network: module that learns.
    :param decay: weight of the past, in [0, 1].
    """
    move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    move(list(average.parameters()), list(network.parameters()), 0)
