"""Minari data sets (https://minari.farama.org)."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.datasets.episodes import Arrays, Episode, build_buffer, check_field
from sb3_pwm.extras import missing_extra
from sb3_pwm.nn.observation_features import channels_first
from sb3_pwm.replay.checks import check_flags

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
    :raises TypeError: if the action space is not a Box.
    :raises FileNotFoundError: if there is no such data set.
    :raises ValueError: if the data do not fit their spaces or are not finite, or a file is damaged, as far as that can
        be seen: Minari writes no checksums.
    :raises FileExistsError: if ``directory`` holds the files of an earlier import; nothing is written then.
    """
    try:
        import minari
    except ImportError as error:
        raise missing_extra("from_minari", "minari", "minari") from error
    if isinstance(dataset, str):
        name = f"Minari data set {dataset}"
        with clear_errors(name):
            dataset = minari.load_dataset(dataset, download=download)
    else:
        name = f"Minari data set {dataset.spec.dataset_id}"
    with clear_errors(name):
        n_steps = int(dataset.total_steps)
        lengths = [int(each["total_steps"]) for each in dataset.storage.get_episode_metadata(dataset.episode_indices)]
        if n_steps != sum(lengths) or min(lengths, default=0) < 0:  # before room is made for them
            raise ValueError(f"it says it has {n_steps} steps, and its episodes that they have {sum(lengths)}")
        observation_space = channels_first(dataset.observation_space)
    return build_buffer(
        episodes_of(dataset, name),
        n_steps,
        observation_space,
        dataset.action_space,
        source=name,
        buffer_size=buffer_size,
        directory=directory,
    )


@contextlib.contextmanager
def clear_errors(name: str) -> Iterator[None]:
    """Turn what Minari and HDF5 raise for damaged files into one kind of error.

    :raises ValueError: names the data set.
    """
    try:
        yield
    except (FileNotFoundError, ImportError):  # there is none, or no HDF5
        raise
    except Exception as error:
        raise ValueError(f"cannot read {name}: {error or type(error).__name__}") from error


def episodes_of(dataset: "MinariDataset", name: str) -> Iterator[Episode]:
    """Give the episodes of a data set; an episode that neither ended nor timed out was cut off.

    :raises ValueError: if one cannot be read.
    """
    episodes = iter(dataset.iterate_episodes())
    for index in dataset.episode_indices:
        where = f"{name}, episode {index}"
        with clear_errors(where):
            episode = next(episodes)
            found = Episode(
                moved_channels(episode.observations, dataset.observation_space),
                np.asarray(episode.actions),
                np.asarray(episode.rewards),
                bool(len(episode.terminations) and episode.terminations[-1]),
                where,
            )
            for flags in ("terminations", "truncations"):
                values = np.asarray(getattr(episode, flags))
                check_field(f"{where}: {flags}", values, found.rewards.shape)
                check_flags(f"{where}: {flags}", values)
        yield found


def moved_channels(observations: Any, space: spaces.Space[Any]) -> Arrays:
    """Return observations of a space as :func:`sb3_pwm.nn.observation_features.channels_first` has it."""
    if isinstance(space, spaces.Dict):
        return {key: np.asarray(moved_channels(observations[key], part)) for key, part in space.spaces.items()}
    return np.asarray(observations) if channels_first(space) == space else np.moveaxis(observations, -1, -3)
