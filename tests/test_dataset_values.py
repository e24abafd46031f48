"""Values that a data set may not hold, and those that it may."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_toys import ACTIONS, OBSERVATIONS, THREE, episode, flat
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_pwm.datasets import from_arrays, from_npz, from_replay_buffer
from sb3_pwm.datasets.episodes import Episode, build_buffer
from sb3_pwm.replay import checks as buffer_checks


@pytest.mark.parametrize("timeouts", [False, True])
@pytest.mark.parametrize("space", [np.float32, np.float64])
@pytest.mark.parametrize(("first", "following"), [(np.float64, np.float32), (np.float32, np.float64)])
def test_observations_of_two_precisions_follow_each_other(
    first: Any, following: Any, space: Any, timeouts: bool
) -> None:
    """One episode of five steps, then one of three, whose observations are rounded in one of the two fields."""
    data = flat([episode(0, 5), episode(1, 3)])
    exact = {name: data[name].astype(np.float64) + 0.1 for name in ("observations", "next_observations")}
    data["observations"] = exact["observations"].astype(first)
    data["next_observations"] = exact["next_observations"].astype(following)
    if not timeouts:
        del data["timeouts"]
    buffer = from_arrays(data, spaces.Box(-np.inf, np.inf, (3,), space), ACTIONS)
    assert np.flatnonzero(buffer.dones).tolist() == [4, 7]


def test_whole_numbers_are_compared_as_they_are() -> None:
    """Where nothing is a float nothing is rounded: 2**24 and 2**24 + 1 are one float32."""
    steps = np.array([[0], [2**24], [2**24 + 2]])
    data: dict[str, Any] = {
        "observations": steps,
        "next_observations": np.array([[2**24 + 1], [2**24 + 2], [7]]),
        "actions": np.zeros((3, 1)),
        "rewards": np.zeros(3),
        "terminals": np.zeros(3),
    }
    buffer = from_arrays(data, spaces.Box(0, 2**30, (1,), np.int64))
    assert np.flatnonzero(buffer.dones).tolist() == [0, 2]


IMAGES = spaces.Box(0, 255, (1, 2, 2), np.uint8)


def steps_of(observations: Any, length: int = 2) -> Episode:
    """The fields beside some observations."""
    return Episode(observations, np.zeros((length, 2), np.float32), np.zeros(length, np.float32), terminated=False)


@pytest.mark.parametrize(
    ("space", "values", "message"),
    [
        (IMAGES, [0, 0.5, 1], r"hold 0\.5 in row 1; allowed: whole numbers from 0 to 255"),
        (IMAGES, [0, 255, 256], r"hold 256 in row 2; .*from 0 to 255"),
        (IMAGES, [-1.0, 0, 1], r"hold -1\.0 in row 0"),
        (spaces.Discrete(3), [0, 1, 3], r"hold 3 in row 2; allowed: whole numbers from 0 to 2"),
        (spaces.Discrete(3), [0, -1, 2], r"hold -1 in row 1"),
        (spaces.Discrete(3), [0.5, 1, 2], r"hold 0\.5 in row 0"),
        (spaces.Discrete(3, start=1), [1, 3, 0], r"hold 0 in row 2; .*from 1 to 3"),
        (spaces.MultiDiscrete([2, 2]), [0, 1, 2], r"hold 2 in row 2; .*from \[0 0\] to \[1 1\]"),
        (spaces.MultiBinary(2), [0, 2, 1], r"hold 2 in row 1; .*from 0 to 1"),
        (spaces.Dict(a=IMAGES), [0, 1, 1.5], r"\['a'\] hold 1\.5 in row 2"),
    ],
)
def test_observations_that_storing_would_change(space: spaces.Space[Any], values: list[Any], message: str) -> None:
    part: Any = space["a"] if isinstance(space, spaces.Dict) else space
    observations = np.stack([np.full(part.shape, value, np.array(values).dtype) for value in values])
    keyed = {"a": observations} if isinstance(space, spaces.Dict) else observations
    with pytest.raises(ValueError, match="it, episode 0: observations.*" + message):
        build_buffer([steps_of(keyed)], 2, space, ACTIONS, source="it")


def test_rows_count_from_the_start_also_in_later_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_checks, "BLOCK_VALUES", 4)
    values = np.zeros((9, 2))
    values[7, 1] = np.nan
    with pytest.raises(ValueError, match="x are not finite in row 7"):
        buffer_checks.check_finite("x", values)
    values[7, 1] = 0.5
    with pytest.raises(ValueError, match=r"x hold 0\.5 in row 7"):
        buffer_checks.check_whole_numbers("x", values, spaces.MultiBinary(2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize(
    ("space", "top"),
    [(IMAGES, 255), (spaces.Discrete(3), 2), (spaces.MultiDiscrete([2, 2]), 1), (spaces.MultiBinary(2), 1)],
)
def test_whole_numbers_of_any_type_are_stored(space: spaces.Space[Any], top: int, dtype: Any) -> None:
    observations = np.full((3, *(space.shape or ())), top).astype(dtype)
    observations[0] = 0
    buffer = build_buffer([steps_of(observations)], 2, space, ACTIONS, source="it")
    assert buffer.observations[:, 0].reshape(2, -1).tolist() == observations[:2].reshape(2, -1).tolist()
    assert buffer.next_observations[1].max() == buffer.next_observations[1].min() == top


def test_a_file_with_scaled_images_is_named(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 1, 2, 2))
    zeros = np.zeros(3)
    data: dict[str, Any] = {"rewards": zeros, "terminals": zeros, "timeouts": zeros, "actions": np.zeros((3, 2))}
    np.savez(tmp_path / "images.npz", observations=images, **data)
    with pytest.raises(ValueError, match=r"images\.npz, episode 0: observations hold 0\.\d+ in row 0"):
        from_npz(tmp_path / "images.npz", IMAGES)


def test_action_bounds_without_room_between_them() -> None:
    data = flat(THREE)
    data["actions"][:, 1] = 0
    bounds = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 0], np.float32))
    with pytest.raises(ValueError, match=r"action_space: dimension 1 goes from 0.0 to 0.0: .*low < high"):
        from_arrays(data, OBSERVATIONS, bounds)


def test_action_bounds_whose_difference_is_no_number() -> None:
    most = float(np.finfo(np.float32).max)
    with pytest.raises(ValueError, match="float32 cannot hold the difference"):
        from_arrays(flat(THREE), OBSERVATIONS, spaces.Box(-most, most, (2,), np.float32))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([OBSERVATIONS]), r"the data: the observation space is Tuple\(.*; allowed: Box, Discrete"),
        (
            spaces.Dict({"a": spaces.Dict({"b": OBSERVATIONS})}),
            r"the observation space's entry 'a' is Dict\(.*; allowed:",
        ),
        (spaces.Text(3), r"the observation space is Text\("),
    ],
)
def test_observation_spaces_that_no_policy_has(space: spaces.Space[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrays(flat(THREE), space, ACTIONS, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_that_follow_are_found_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = flat(THREE)
    del data["timeouts"]
    whole = from_arrays(data, OBSERVATIONS, ACTIONS)
    monkeypatch.setattr("sb3_pwm.replay.checks.BLOCK_VALUES", 6)  # two rows
    np.testing.assert_array_equal(from_arrays(data, OBSERVATIONS, ACTIONS).timeouts, whole.timeouts)


def test_what_is_no_array_is_named() -> None:
    data: dict[str, Any] = flat(THREE) | {"infos": [[1], [1, 2]]}
    assert from_arrays(data, OBSERVATIONS, ACTIONS).size() == 8  # not asked for
    with pytest.raises(ValueError, match="the data: rewards are not an array"):
        from_arrays(data | {"rewards": [[1], [1, 2]]}, OBSERVATIONS, ACTIONS)


def test_masked_values_are_not_taken_for_what_lies_beneath() -> None:
    data: dict[str, Any] = flat(THREE)
    for mask, fails in (([False] * 8, False), ([False] * 3 + [True] * 5, True)):
        masked = data | {"rewards": np.ma.MaskedArray(data["rewards"], mask)}
        if fails:
            with pytest.raises(ValueError, match="the data: rewards are masked in row 3"):
                from_arrays(masked, OBSERVATIONS, ACTIONS)
        else:
            assert from_arrays(masked, OBSERVATIONS, ACTIONS).size() == 8


def sb3_buffer(space: spaces.Space[Any] = OBSERVATIONS) -> Any:
    """Four steps in a ring of six rows and two environments; no number in the empty rows counts."""
    kind: Any = DictReplayBuffer if isinstance(space, spaces.Dict) else ReplayBuffer
    buffer = kind(12, space, ACTIONS, device="cpu", n_envs=2)
    for _ in range(4):
        first = {"a": np.zeros((2, 3))} if kind is DictReplayBuffer else np.zeros((2, *(space.shape or ())))
        buffer.add(first, first, np.zeros((2, 2)), np.ones(2), np.zeros(2), [{}, {}])
    buffer.rewards[4:] = np.nan
    return buffer


@pytest.mark.parametrize("field", ["observations", "next_observations", "actions", "rewards"])
def test_an_sb3_buffer_with_numbers_that_are_not_finite(tmp_path: Path, field: str) -> None:
    buffer = sb3_buffer()
    assert np.isfinite(from_replay_buffer(buffer).rewards).all()
    getattr(buffer, field)[2, 1] = np.nan
    with pytest.raises(ValueError, match=rf"the replay buffer: {field} are not finite in row 2: "):
        from_replay_buffer(buffer, directory=tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(buffer))
    with pytest.raises(ValueError, match=rf"bad\.pkl: {field} are not finite in row 2"):
        from_replay_buffer(tmp_path / "bad.pkl")


def test_an_sb3_buffer_with_observations_outside_its_space() -> None:
    buffer = sb3_buffer(spaces.Dict(a=OBSERVATIONS))
    buffer.next_observations["a"][3, 0, 1] = np.inf
    with pytest.raises(ValueError, match=r"next_observations\['a'\] are not finite in row 3"):
        from_replay_buffer(buffer)
    buffer = sb3_buffer(spaces.Discrete(3))
    buffer.observations[1, 1] = 3
    with pytest.raises(ValueError, match="observations hold 3 in row 1; allowed: whole numbers from 0 to 2"):
        from_replay_buffer(buffer)


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", b"cno_such_module\nThing\n.", pickle.dumps(sb3_buffer())[:99]],
    ids=["empty", "no pickle", "unknown class", "cut"],
)
def test_a_bad_pickle_is_named(tmp_path: Path, content: Any) -> None:
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*bad\.pkl as a replay buffer: ") as info:
        from_replay_buffer(tmp_path / "bad.pkl")
    assert info.value.__cause__ is not None
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        from_replay_buffer(tmp_path / "none.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(TypeError, match=r"list\.pkl .*not list"):
        from_replay_buffer(tmp_path / "list.pkl")
