"""Data sets whose arrays are kept in files (``directory=``)."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_toys import ACTIONS, OBSERVATIONS, THREE, check_holds, episode, flat
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm.datasets import from_arrays, from_replay_buffer
from sb3_pwm.datasets.episodes import build_buffer

NAMES = ["actions", "dones", "next_observations", "observations", "rewards", "timeouts"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_earlier_import_is_not_overwritten(tmp_path: Path) -> None:
    first = from_arrays(flat(THREE), OBSERVATIONS, ACTIONS, directory=tmp_path)
    other = flat([episode(9, 2)])
    with pytest.raises(FileExistsError, match=r"observations\.npy exists.*another directory"):
        from_arrays(other, OBSERVATIONS, ACTIONS, directory=tmp_path)
    check_holds(first, THREE)
    for path in tmp_path.iterdir():
        if path.name != "timeouts.npy":
            path.unlink()
    with pytest.raises(FileExistsError, match=r"timeouts\.npy"):  # any of the files counts, not only the first
        from_arrays(other, OBSERVATIONS, ACTIONS, directory=tmp_path)
    assert names_in(tmp_path) == ["timeouts.npy"]


def test_an_import_that_is_refused_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    data = flat(THREE)
    data["actions"][6] = 7  # in the last episode, when the others are written already
    with pytest.raises(ValueError, match="episode 2: actions are outside"):
        from_arrays(data, OBSERVATIONS, ACTIONS, directory=tmp_path)
    assert names_in(tmp_path) == ["notes.txt"]
    check_holds(from_arrays(flat(THREE), OBSERVATIONS, ACTIONS, directory=tmp_path), THREE)
    assert names_in(tmp_path) == sorted(["notes.txt", *(f"{name}.npy" for name in NAMES)])


def test_an_interrupted_import_leaves_no_files(tmp_path: Path) -> None:
    def episodes() -> Iterator[Any]:
        yield THREE[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_buffer(episodes(), 8, OBSERVATIONS, ACTIONS, source="it", directory=tmp_path)
    assert names_in(tmp_path) == []


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        assert length > 8 * 4
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        from_arrays(flat(THREE), OBSERVATIONS, ACTIONS, directory=tmp_path)
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="cannot take room on a disk")
def test_files_have_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_arrays(flat(THREE), OBSERVATIONS, ACTIONS, buffer_size=100_000, directory=tmp_path / "a")
    used = sum(512 * path.stat().st_blocks for path in (tmp_path / "a").iterdir())
    assert used >= sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) > 100_000 * 4 * 8

    def without(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", without)
    check_holds(from_arrays(flat(THREE), OBSERVATIONS, ACTIONS, directory=tmp_path / "b"), THREE)


def test_every_key_of_dict_observations_has_files_that_count(tmp_path: Path) -> None:
    space = spaces.Dict({"a": OBSERVATIONS, "b/c": OBSERVATIONS})
    observations: list[Any] = [e.observations for e in THREE]
    keyed = [e._replace(observations={"a": each, "b/c": each + 1}) for e, each in zip(THREE, observations, strict=True)]
    buffer = build_buffer(keyed, 8, space, ACTIONS, source="it", directory=tmp_path)
    np.testing.assert_array_equal(buffer.observations["b/c"], buffer.observations["a"] + 1)
    assert {"observations_0.npy", "observations_1.npy"} < set(names_in(tmp_path))
    for path in tmp_path.iterdir():
        if path.name != "next_observations_1.npy":
            path.unlink()
    with pytest.raises(FileExistsError, match=r"next_observations_1\.npy exists"):
        build_buffer(keyed, 8, space, ACTIONS, source="it", directory=tmp_path)


def test_a_replay_buffer_in_files(tmp_path: Path) -> None:
    source = ReplayBuffer(4, OBSERVATIONS, ACTIONS, device="cpu")
    source.add(np.zeros(3), np.ones(3), np.zeros(2), np.ones(1), np.zeros(1), [{}])
    buffer = from_replay_buffer(source, directory=tmp_path)
    assert isinstance(buffer.rewards, np.memmap)
    with pytest.raises(FileExistsError, match=r"observations\.npy exists"):
        from_replay_buffer(source, directory=tmp_path)
    assert buffer.rewards.tolist() == [[1]]
