"""Observations, which are tensors (or an environment's arrays) or dictionaries of them, and windows of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sb3_pwm.type_aliases import Observations, SequenceSamples


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


def ends_of_windows(samples: SequenceSamples) -> tuple[Observations, Observations]:
    """Return the (B, *obs_shape) first observations of windows, and those behind their last steps that count."""
    counts = samples.mask.sum(0).long()

    def behind(values: torch.Tensor) -> torch.Tensor:
        return values[counts, torch.arange(len(counts), device=counts.device)]

    observations = samples.observations
    if isinstance(observations, dict):
        last: Observations = {key: behind(values) for key, values in observations.items()}
    else:
        last = behind(observations)
    return at_steps(observations, 0), last


def cut_windows(samples: SequenceSamples, lengths: Sequence[int]) -> SequenceSamples:
    """Return windows of which number i counts at most ``lengths[i % len(lengths)]`` steps."""
    mask = samples.mask.clone()
    for i, length in enumerate(lengths):
        mask[length:, i :: len(lengths)] = 0
    return samples._replace(mask=mask)


def are_tensors(observations: Any) -> bool:
    """Return whether observations of an environment are tensors, or any entry of a dictionary is one."""
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return any(isinstance(part, torch.Tensor) for part in parts)


def on_host(values: Any) -> Any:
    """Return tensors as arrays, also those in dictionaries; what is not a tensor stays as it is.

    NumPy has no bfloat16: it becomes float32.
    """
    if isinstance(values, dict):
        return {key: on_host(value) for key, value in values.items()}
    if not isinstance(values, torch.Tensor):
        return values
    return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()[()]


def own_copy(observations: Any) -> Any:
    """Return observations in arrays that nobody else has; tensors stay tensors, on their device."""
    if isinstance(observations, dict):
        return {key: own_copy(values) for key, values in observations.items()}
    return observations.detach().clone() if isinstance(observations, torch.Tensor) else np.array(observations)


def in_turn(first: Observations, following: Observations) -> Observations:
    """Put observations behind each other along the time axis."""
    if isinstance(first, dict) and isinstance(following, dict):
        return {key: torch.cat([first[key], following[key]]) for key in first}
    return torch.cat([first, following])  # type: ignore[list-item]


def named(name: str, values: Any) -> dict[str, Any]:
    """Return ``values``, or each of its values if it is a dictionary, by name."""
    return {f"{name}/{key}": value for key, value in values.items()} if isinstance(values, dict) else {name: values}


def unnamed(name: str, named: dict[str, Any]) -> Any:
    """Return what :func:`named` was given."""
    if name in named:
        return named[name]
    return {key.removeprefix(f"{name}/"): value for key, value in named.items() if key.startswith(f"{name}/")}
