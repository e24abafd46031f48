"""Minari data sets (https://minari.farama.org)."""

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets.episodes import Arrays, Episode, build_buffer
from sb3_pwm.nn.observation_features import channels_first

if TYPE_CHECKING:
    from minari import MinariDataset


def from_minari(
    dataset: "str | MinariDataset",
    *,
    download: bool = False,
    buffer_size: int | None = None,
    directory: str | pathlib.Path | None = None,
) -> SequenceReplayBuffer:
    """Read a Minari data set, episode by episode.

    :param dataset: a ``MinariDataset``, or its id such as ``"mujoco/hopper/medium-v0"``.
    :param download: fetch the data set of that id if it is not on this machine.
    :param buffer_size: capacity of the buffer; None for the number of steps.
    :param directory: keep the arrays in files in this folder, for data larger than memory; each import needs a folder
        of its own.
    :return: the buffer, of one environment, with the data set's spaces; images get their channels first, as SB3 does it
        with those of environments.
    :raises ImportError: if minari is not installed.
    :raises TypeError: if the action space is no Box.
    :raises ValueError: if the data do not fit their spaces or are not finite.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    try:
        import minari
    except ImportError as error:
        raise ImportError("from_minari needs minari: pip install 'sb3-pwm[minari]'") from error
    if isinstance(dataset, str):
        dataset = minari.load_dataset(dataset, download=download)
    name = f"Minari data set {dataset.spec.dataset_id}"
    return build_buffer(
        episodes_of(dataset),
        int(dataset.total_steps),
        channels_first(dataset.observation_space),
        dataset.action_space,
        source=name,
        buffer_size=buffer_size,
        directory=directory,
    )


def episodes_of(dataset: "MinariDataset") -> Iterator[Episode]:
    """Give the episodes of a data set; an episode that neither ended nor timed out was cut off."""
    for episode in dataset.iterate_episodes():
        yield Episode(
            moved_channels(episode.observations, dataset.observation_space),
            np.asarray(episode.actions),
            np.asarray(episode.rewards),
            bool(len(episode.terminations) and episode.terminations[-1]),
        )


def moved_channels(observations: Any, space: spaces.Space[Any]) -> Arrays:
    """Return observations of a space as :func:`sb3_pwm.nn.observation_features.channels_first` has it."""
    if isinstance(space, spaces.Dict):
        return {key: np.asarray(moved_channels(observations[key], part)) for key, part in space.spaces.items()}
    return np.asarray(observations) if channels_first(space) == space else np.moveaxis(observations, -1, -3)
