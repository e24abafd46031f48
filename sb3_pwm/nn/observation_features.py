"""What the world model's encoder sees of observations."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import (
    get_flattened_obs_dim,
    is_image_space,
    is_image_space_channels_first,
    preprocess_obs,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn

from sb3_pwm.nn.scales import Standardizer, units
from sb3_pwm.type_aliases import Observations

CATEGORIES = (spaces.Discrete, spaces.MultiDiscrete)


class ObservationFeatures(nn.Module):
    """Observations to features: SB3's preprocessing, standardisation of what is neither image nor category, extractor.

    Discrete values count from their space's ``start``, which SB3's preprocessing does not know.

    :param observation_space: space of the observations.
    :param extractor: SB3 features extractor.
    :param normalize_images: divide images by 255.
    :param standardize: False leaves out the standardisation.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        extractor: BaseFeaturesExtractor,
        normalize_images: bool,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.extractor = extractor
        self.normalize_images = normalize_images
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        self.has_images = any(is_image_space(part, normalized_image=not normalize_images) for part in parts.values())
        # Keys are numbered, because a module's name may not hold every character that a key may.
        self.keys = [
            key
            for key, space in parts.items()
            if standardize
            and isinstance(space, spaces.Box)
            and not is_image_space(space, normalized_image=not normalize_images)
        ]
        self.standardizers = nn.ModuleList(Standardizer(parts[key].shape or ()) for key in self.keys)
        starts = {key: np.asarray(part.start) for key, part in parts.items() if isinstance(part, CATEGORIES)}
        self.shifted = {key: start for key, start in starts.items() if start.any()}
        for i, key in enumerate(self.shifted):
            self.register_buffer(f"start_{i}", torch.as_tensor(starts[key].astype(np.int64)), persistent=False)

    def forward(self, observations: Observations) -> torch.Tensor:
        """Return the (N, features_dim) features of (N, *obs_shape) observations."""
        # Before SB3's preprocessing, which casts to float32: there a large mean leaves nothing of the differences.
        observations = self._standardized(self._from_zero(observations))
        processed = preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)
        features: torch.Tensor = self.extractor(flattenable(processed))
        return features

    def _standardized(self, observations: Observations) -> Observations:
        if not isinstance(observations, dict):
            return self.standardizers[0](observations) if self.standardizers else observations
        parts = zip(self.keys, self.standardizers, strict=True)
        return {**observations, **{key: standardizer(observations[key]) for key, standardizer in parts}}

    def _from_zero(self, observations: Observations) -> Observations:
        for i, key in enumerate(self.shifted):
            start: torch.Tensor = getattr(self, f"start_{i}")
            # Masked steps of windows may lie in rows that hold nothing yet, only zeros.
            if not isinstance(observations, dict):
                return (observations.long() - start).clamp(min=0)
            observations = {**observations, key: (observations[key].long() - start).clamp(min=0)}
        return observations

    def check_categories(self, observations: Any) -> None:
        """Check that discrete values, as an environment gives them, are not below their space's ``start``.

        :raises ValueError: if one is; PyTorch refuses those that are too large.
        """
        for key, start in self.shifted.items():
            values = np.asarray(observations[key] if isinstance(observations, dict) else observations)
            if (values < start).any():
                raise ValueError(
                    f"the observation{f' {key!r}' if key else ''} holds {values.min()}, but its space starts at "
                    f"{start.tolist()}"
                )

    def set_statistics(self, observations: Observations) -> None:
        """Take means and standard deviations of (N, *obs_shape) observations."""
        parts = observations if isinstance(observations, dict) else {"": observations}
        for key, standardizer in zip(self.keys, self.standardizers, strict=True):
            standardizer.set_statistics(parts[key])  # type: ignore[operator]

    def means_and_units(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return what each of D features is shifted by and divided by, in float64: 0 and 1 if it is not standardised.

        :return: (D,) means and (D,) units; None if the extractor does more than put the entries into a row.
        """
        is_fixed = next(self.extractor.parameters(), None) is None
        if not is_fixed or type(self.extractor) not in (FlattenExtractor, CombinedExtractor):
            return None
        space = self.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        known: dict[str, Any] = dict(zip(self.keys, self.standardizers, strict=True))
        device = next(self.buffers(), torch.empty(0)).device
        means, divisors = [], []
        for key, part in parts.items():
            if key in known:
                mean = known[key].mean.flatten()
                means.append(mean)
                divisors.append(units(mean, known[key].std.flatten()))
            else:
                means.append(torch.zeros(get_flattened_obs_dim(part), dtype=torch.float64, device=device))
                divisors.append(torch.ones_like(means[-1]))
        return torch.cat(means), torch.cat(divisors)


def flattenable(observations: Observations) -> Observations:
    """Return observations with at least one axis behind the batch's, which SB3's extractors want to flatten."""
    if isinstance(observations, dict):
        return {key: flattenable(values) for key, values in observations.items()}  # type: ignore[misc]
    return observations.unsqueeze(-1) if observations.ndim == 1 else observations


def channels_first(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return an observation space as SB3 shows it to policies: images have their channels first."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: channels_first(part) for key, part in space.spaces.items()})
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    return space
