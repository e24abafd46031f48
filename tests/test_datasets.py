import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from dataset_toys import ACTIONS, OBSERVATIONS, THREE, check_holds, damage_file, episode, flat
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_pwm import PWM, SequenceReplayBuffer
from sb3_pwm.datasets import from_arrays, from_minari, from_npz, from_replay_buffer, from_tdmpc2
from sb3_pwm.datasets.episodes import Episode, build_buffer

lengths = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6)


@given(lengths, st.integers(0, 5))
def test_arrays(cases: list[tuple[int, bool]], room: int) -> None:
    episodes = [episode(i, length, terminated=terminated) for i, (length, terminated) in enumerate(cases)]
    n = sum(len(e.rewards) for e in episodes)
    buffer = from_arrays(flat(episodes), OBSERVATIONS, ACTIONS, buffer_size=n + room)
    check_holds(buffer, episodes)
    assert buffer.full == (room == 0)
    assert buffer.pos == n % (n + room)


@given(lengths)
def test_arrays_without_timeouts_end_where_the_next_row_does_not_follow(cases: list[tuple[int, bool]]) -> None:
    episodes = [episode(i, length, terminated=terminated) for i, (length, terminated) in enumerate(cases)]
    data = flat(episodes)
    del data["timeouts"]
    check_holds(from_arrays(data, OBSERVATIONS, ACTIONS), episodes)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda lengths: max(lengths) > 1))
def test_arrays_without_next_observations_lose_the_last_step_of_each_episode(cases: list[int]) -> None:
    data = flat([episode(i, length) for i, length in enumerate(cases)])
    del data["next_observations"]
    recorded: list[Any] = [episode(i, length) for i, length in enumerate(cases)]
    kept = [
        Episode(e.observations[:-1], e.actions[:-1], e.rewards[:-1], terminated=False)
        for e in recorded
        if len(e.rewards) > 1
    ]
    check_holds(from_arrays(data, OBSERVATIONS, ACTIONS), kept)


def test_npz_with_the_spaces_that_its_arrays_suggest(tmp_path: Path) -> None:
    data = flat(THREE)
    data["actions"] = data["actions"] / 2
    data["rewards"] = data["rewards"][:, None]
    np.savez(tmp_path / "data.npz", **data)
    buffer = from_npz(tmp_path / "data.npz")
    assert buffer.observation_space == OBSERVATIONS
    assert buffer.action_space == spaces.Box(-1, 1, (2,), np.float32)
    np.testing.assert_allclose(buffer.actions[:, 0], data["actions"], atol=1e-6)


@pytest.mark.parametrize(("start", "dtype"), [(0.0, np.float32), (1.7e9, np.float64)])
def test_arrays_whose_values_float32_does_not_tell_apart(start: float, dtype: Any) -> None:
    steps = np.arange(201)
    observations = np.stack([start + steps, steps % 50, np.full(201, 0.1)], 1)
    data = {"observations": observations[:-1], "next_observations": observations[1:], "actions": np.zeros((200, 1))}
    data |= {"rewards": np.ones(200), "terminals": np.zeros(200), "timeouts": (steps[1:] % 50 == 0).astype(float)}
    buffer = from_arrays(data)
    assert buffer.observations.dtype == dtype
    assert len(np.unique(buffer.observations[..., 0])) == 200


def test_arrays_in_files(tmp_path: Path) -> None:
    buffer = from_arrays(flat(THREE), OBSERVATIONS, ACTIONS, buffer_size=20, directory=tmp_path / "new")
    check_holds(buffer, THREE)
    assert isinstance(buffer.next_observations, np.memmap)
    assert len(buffer.observations) == 20
    buffer.add(np.zeros((1, 3)), np.ones((1, 3)), np.zeros((1, 2)), np.ones(1), np.zeros(1), [{}])
    assert buffer.size() == 9
    samples = buffer.sample_sequences(5, 3)
    assert samples.rewards.shape == (3, 5)


def change(name: str, row: int, value: Any) -> Callable[..., Any]:
    def apply(data: dict[str, Any]) -> None:
        data[name] = data[name].astype(np.float64)
        data[name][row] = value

    return apply


def drop(*names: Any) -> Callable[..., Any]:
    return lambda data: [data.pop(name) for name in names]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("terminals"), "the data has no terminals; found: actions, next_observations"),
        (drop("rewards", "actions"), "the data has no actions, rewards"),
        (drop("timeouts", "next_observations"), "neither timeouts nor next_observations"),
        (drop("next_observations"), "terminates in row 3 but has no next_observations"),
        (change("rewards", 5, np.nan), "rewards are not finite in row 5: nan"),
        (change("observations", 2, np.inf), "observations are not finite in row 2"),
        (change("actions", 1, 2.1), r"episode 0: actions are outside the bounds in row 1: .*allowed"),
        (change("next_observations", 1, 7), "next_observations in row 1 are not the observations in row 2"),
        (lambda data: data.update(rewards=data["rewards"][:-1]), r"terminals have the shape \(8,\), expected \(7,\)"),
        (lambda data: data.update(rewards=np.zeros(0)), "holds no steps"),
        (lambda data: data.update(rewards=np.float32(1)), "holds no steps"),
        (
            lambda data: data.update(observations=data["observations"][:, :2]),
            r"next_observations have the shape \(8, 3\), expected \(8, 2\)",
        ),
        (lambda data: data.update(rewards=data["rewards"].astype(str)), "rewards are of type .*expected numbers"),
    ],
)
def test_bad_arrays(damage: Callable[..., Any], message: str) -> None:
    data = flat(THREE)
    damage(data)
    with pytest.raises(ValueError, match=message):
        from_arrays(data, OBSERVATIONS, ACTIONS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"buffer_size": 7}, ValueError, "buffer_size=7 is less than the 8 steps"),
        ({"buffer_size": 1e6}, TypeError, "buffer_size must be an integer"),
        ({"action_space": spaces.Box(0, 9, (2,), np.int64)}, ValueError, "the type int64; allowed: float"),
        ({"action_space": spaces.Discrete(2)}, TypeError, "must be a Box, not Discrete"),
        ({"action_space": spaces.Box(-np.inf, 1, (2,))}, ValueError, "finite bounds"),
        ({"action_space": spaces.Box(-2, 2, (3,))}, ValueError, r"actions have the shape \(4, 2\), expected \(4, 3\)"),
        ({"observation_space": spaces.Box(-1, 1, (4,))}, ValueError, r"observations have the shape \(5, 3\)"),
        ({"observation_space": spaces.Dict(a=OBSERVATIONS)}, ValueError, r"must have the keys \['a'\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_arrays(flat(THREE), **{"observation_space": OBSERVATIONS, "action_space": ACTIONS} | arguments)


def test_episodes_that_are_not_as_many_as_announced() -> None:
    for n_steps, message in ((7, "goes beyond the 7 steps"), (9, "holds 8 steps, not the 9"), (0, "holds no steps")):
        with pytest.raises(ValueError, match=message):
            build_buffer(iter(THREE), n_steps, OBSERVATIONS, ACTIONS, source="it")
    observations: Any = THREE[0].observations
    keyed = THREE[0]._replace(observations={"b": observations})
    with pytest.raises(ValueError, match=r"must have the keys \['a'\]"):
        build_buffer([keyed], 4, spaces.Dict(a=OBSERVATIONS), ACTIONS, source="it")
    empty = Episode(np.zeros((1, 3)), np.zeros((0, 2)), np.zeros(0), terminated=False)
    with pytest.raises(ValueError, match="episode 1 has no steps"):
        build_buffer([THREE[0], empty], 4, OBSERVATIONS, ACTIONS, source="it")


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_npz_file_is_refused_or_read_whole(tmp_path: Path, seed: int) -> None:
    """The file names itself in the error, or the data are those of a whole file."""
    path = tmp_path / "data.npz"
    np.savez(path, **flat(THREE))
    damage_file(path, seed)
    try:
        buffer = from_npz(path, OBSERVATIONS, ACTIONS)
    except ValueError as error:
        assert "data" in str(error)  # noqa: PT017
    else:
        assert buffer.size() > 0
        assert np.isfinite(buffer.rewards).all()


def test_an_npz_file_is_never_unpickled(tmp_path: Path) -> None:
    data: dict[str, Any] = flat(THREE) | {"rewards": np.array([object()], dtype=object)}
    np.savez(tmp_path / "data.npz", **data)
    with pytest.raises(ValueError, match=r"data\.npz as \.npz: rewards: Object arrays cannot be loaded"):
        from_npz(tmp_path / "data.npz")
    with pytest.raises(FileNotFoundError):
        from_npz(tmp_path / "none.npz")


def sb3_buffer(n_envs: int, steps: int, capacity: int, *, keys: bool = False) -> Any:
    """A buffer in which env e's reward at step t is 100 e + t, with episodes of 4 steps that end in either way."""
    space = spaces.Dict(a=OBSERVATIONS) if keys else OBSERVATIONS
    kind: Any = DictReplayBuffer if keys else ReplayBuffer
    buffer = kind(capacity * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs)
    for t in range(steps):
        values = np.stack([np.full(3, 100 * e + t, np.float32) for e in range(n_envs)])
        done = np.full(n_envs, t % 4 == 3)
        infos = [{"TimeLimit.truncated": bool(t % 8 == 3)} for _ in range(n_envs)]
        before, after = ({"a": values}, {"a": values + 1}) if keys else (values, values + 1)
        buffer.add(before, after, np.full((n_envs, 2), 0.25), values[:, 0], done, infos)
    return buffer


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize(("n_envs", "steps", "capacity"), [(1, 6, 10), (3, 10, 10), (2, 25, 10)])
def test_sb3_buffers_of_several_environments(n_envs: int, steps: int, capacity: int, keys: bool) -> None:
    source = sb3_buffer(n_envs, steps, capacity, keys=keys)
    buffer = from_replay_buffer(source, buffer_size=40)
    size = min(steps, capacity)
    times = np.arange(steps - size, steps)
    expected = np.concatenate([100 * e + times for e in range(n_envs)])
    n = size * n_envs
    assert buffer.size() == n
    assert isinstance(buffer, SequenceReplayBuffer)
    np.testing.assert_array_equal(buffer.rewards[:n, 0], expected)
    stored = buffer.next_observations["a"] if keys else buffer.next_observations
    np.testing.assert_array_equal(stored[:n, 0], np.repeat(expected[:, None] + 1, 3, 1))
    last = np.tile(times == times[-1], n_envs)
    ends, cut = np.tile(times % 4 == 3, n_envs), np.tile(times % 8 == 3, n_envs)
    np.testing.assert_array_equal(buffer.dones[:n, 0], ends | last)
    np.testing.assert_array_equal(buffer.timeouts[:n, 0], cut | (last & ~ends))


def test_a_buffer_that_td3_saved(tmp_path: Path) -> None:
    td3 = TD3("MlpPolicy", gym.make("Pendulum-v1"), learning_starts=1000, device="cpu").learn(250)
    td3.save_replay_buffer(tmp_path / "buffer")
    buffer = from_replay_buffer(tmp_path / "buffer.pkl")
    np.testing.assert_array_equal(buffer.observations[:, 0], td3.replay_buffer.observations[:250, 0])
    assert np.flatnonzero(buffer.dones).tolist() == [199, 249]
    model = PWM("MlpPolicy", "Pendulum-v1", device="cpu")
    model.replay_buffer = buffer
    model.pretrain(2)
    assert model.n_model_updates == 2


def test_other_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(TypeError, match="not list"):
        from_replay_buffer(tmp_path / "list.pkl")
    with pytest.raises(ValueError, match="is empty"):
        from_replay_buffer(ReplayBuffer(4, OBSERVATIONS, ACTIONS, device="cpu"))
    with pytest.raises(ValueError, match="buffer_size=3 is less than the 4 steps"):
        from_replay_buffer(sb3_buffer(1, 4, 4), buffer_size=3)


@pytest.fixture
def minari_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def minari_dataset(
    name: str,
    episodes: Sequence[Episode],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any] = ACTIONS,
) -> Any:
    """Let minari write a data set, and read it again."""
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=i,
            observations=e.observations,
            actions=e.actions,
            rewards=e.rewards.tolist(),
            terminations=[False] * (len(e.rewards) - 1) + [e.terminated],
            truncations=[False] * (len(e.rewards) - 1) + [not e.terminated],
        )
        for i, e in enumerate(episodes)
    ]
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=observation_space, action_space=action_space, data_format="hdf5"
    )
    return minari.load_dataset(name)


def test_minari(minari_home: None) -> None:
    dataset = minari_dataset("test/three-v0", THREE, OBSERVATIONS)
    check_holds(from_minari(dataset), THREE)
    check_holds(from_minari("test/three-v0", buffer_size=100), THREE)


def test_minari_with_dict_observations(minari_home: None) -> None:
    alone: list[Any] = THREE
    keyed = [Episode({"a b": e.observations, "c": e.observations[:, :1]}, *e[1:]) for e in alone]
    space = spaces.Dict({"a b": OBSERVATIONS, "c": spaces.Box(-np.inf, np.inf, (1,), np.float32)})
    buffer = from_minari(minari_dataset("test/keys-v0", keyed, space))
    assert buffer.observation_space == space
    np.testing.assert_array_equal(buffer.next_observations["a b"][:, 0], flat(THREE)["next_observations"])
    assert PWM("MultiInputPolicy", make_env(space), device="cpu").observation_space == space


@pytest.mark.parametrize("in_dict", [True, False])
@pytest.mark.parametrize("with_axis", [True, False])  # buffers have it, the space's own samples have not
def test_discrete_observations(minari_home: None, in_dict: bool, with_axis: bool) -> None:
    kinds = [np.arange(len(e.rewards) + 1) % 3 for e in THREE]
    space, made = spaces.Discrete(3), [kind[:, None] if with_axis else kind for kind in kinds]
    episodes = [
        e._replace(observations={"kind": kind} if in_dict else kind) for e, kind in zip(THREE, made, strict=True)
    ]
    dataset = minari_dataset("test/kinds-v0", episodes, spaces.Dict(kind=space) if in_dict else space)
    stored: Any = from_minari(dataset).next_observations
    np.testing.assert_array_equal(
        (stored["kind"] if in_dict else stored).ravel(), np.concatenate([k[1:] for k in kinds])
    )


def test_minari_with_images_has_their_channels_first(minari_home: None) -> None:
    rng = np.random.default_rng(0)
    image = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    images = [rng.integers(0, 256, (len(e.rewards) + 1, 36, 40, 3), dtype=np.uint8) for e in THREE]
    alone = [e._replace(observations=pictures) for e, pictures in zip(THREE, images, strict=True)]
    dataset = minari_dataset("test/images-v0", alone, image)
    buffer = from_minari(dataset)
    stored = [e.observations for e in dataset.iterate_episodes()]  # minari compresses images
    expected = np.concatenate([pictures[:-1] for pictures in stored]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(buffer.observations[:, 0], expected)
    model = PWM.from_dataset(buffer, "CnnPolicy", batch_size=2, critic_batch_size=2, device="cpu")
    assert model.observation_space == spaces.Box(0, 255, (3, 36, 40), np.uint8)

    vectors: list[Any] = [e.observations for e in THREE]
    pairs = zip(vectors, images, strict=True)
    keyed = [e._replace(observations={"a": v, "b": i}) for e, (v, i) in zip(THREE, pairs, strict=True)]
    buffer = from_minari(minari_dataset("test/both-v0", keyed, spaces.Dict({"a": OBSERVATIONS, "b": image})))
    both: Any = buffer.observation_space
    assert both["b"] == model.observation_space
    np.testing.assert_array_equal(buffer.observations["b"][:, 0], expected)
    np.testing.assert_array_equal(buffer.observations["a"][:, 0], flat(THREE)["observations"])


def make_env(space: spaces.Space[Any]) -> gym.Env[Any, Any]:
    env = gym.Env()
    env.observation_space, env.action_space = space, ACTIONS
    return env


def test_minari_with_discrete_actions_is_refused(minari_home: None) -> None:
    discrete = [e._replace(actions=np.zeros(len(e.rewards), np.int64)) for e in THREE]
    dataset = minari_dataset("test/discrete-v0", discrete, OBSERVATIONS, spaces.Discrete(2))
    with pytest.raises(TypeError, match="must be a Box"):
        from_minari(dataset)


@pytest.mark.parametrize(("module", "read"), [("minari", from_minari), ("tensordict", from_tdmpc2)])
def test_a_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, read: Callable[..., Any]
) -> None:
    (tmp_path / "data.pt").touch()
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"minari": "minari", "tensordict": "tdmpc2"}[module]
    with pytest.raises(ImportError, match=rf"pip install .*'\.\[{extra}\]'"):
        read(tmp_path / "data.pt")
