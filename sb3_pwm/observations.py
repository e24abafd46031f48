"""Windows of observations, which are tensors or dictionaries of them."""

from collections.abc import Callable

import torch

from sb3_pwm.type_aliases import Observations


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
