import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import MIXED, NO_UPDATES, SMALL, make, make_by_fours, space_envs, truth_envs
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_pwm import PWM, DictSequenceReplayBuffer, SequenceReplayBuffer
from sb3_pwm.datasets import from_replay_buffer

DATA = {name: value for name, value in SMALL.items() if name not in ("buffer_size", "seed")}  # for from_dataset

OFF: dict[str, Any] = {"pretrain_steps": 0, "gradient_steps": 0}  # these tests collect and do not learn


def rows_of(observations: Any) -> torch.Tensor:
    return torch.cat(list(observations.values()), -1) if isinstance(observations, dict) else observations


def check_windows(buffer: Any, length: int = 6, draws: int = 30, cut: Any = ()) -> None:
    """Check that windows hold what happened, and end where the episode or the data did, or at the steps ``cut``."""
    size = buffer.size()
    stored = buffer.next_observations
    stored = np.concatenate(list(stored.values()), -1) if isinstance(stored, dict) else stored
    known = {tuple(row[:3]) for row in stored[:size].reshape(-1, 5).tolist()}
    lengths = set()
    for _ in range(draws):
        samples = buffer.sample_sequences(min(64, buffer.n_transitions), length)
        rows, valid = rows_of(samples.observations), samples.mask.bool()
        before, after = rows[:-1][valid], rows[1:][valid]
        assert torch.equal(after[:, 1], before[:, 1] + 1)  # the next step
        assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])  # of the same environment and episode
        assert not before[:, 3].any()
        assert torch.equal(samples.terminations[valid], (after[:, 3] == 1).float())
        assert torch.equal(samples.rewards[valid], after[:, 1])
        assert torch.equal(samples.actions[valid][:, 0], after[:, 4])
        assert valid[0].all()
        assert not (valid[1:] & ~valid[:-1]).any()
        for env, step, episode, end, _ in rows[1:-1][valid[:-1] & ~valid[1:]].tolist():
            assert end or (env, step + 1, episode) not in known or step in cut
        lengths |= set(valid.sum(0).tolist())
    assert {1, length - 1} <= lengths  # masked and (nearly) whole windows


def learn_twice(model: PWM, reset: bool) -> PWM:
    return model.learn(43).learn(41, reset_num_timesteps=reset)


def stop_and_continue(model: PWM) -> PWM:
    steps = iter(range(1000))
    model.learn(60, callback=lambda *_: next(steps) < 17)
    assert model.num_timesteps == 18 * model.n_envs
    return model.learn(60, reset_num_timesteps=False)


def interrupt_and_continue(model: PWM, callback: Any = None) -> PWM:
    with pytest.raises(KeyboardInterrupt):
        model.learn(90, callback=callback)
    return model.learn(60, reset_num_timesteps=False)


def interrupt_env_and_continue(model: PWM) -> PWM:
    model.env.envs[-1].unwrapped.interrupt_at = model.env.envs[-1].unwrapped.steps + 17
    return interrupt_and_continue(model)


def fail_in_reset_and_continue(model: PWM) -> PWM:
    env = model.learn(43).env.envs[-1].unwrapped
    reset = env.reset

    def failing(**kwargs: Any) -> None:
        env.reset = reset
        raise ConnectionError

    env.reset = failing
    with pytest.raises(ConnectionError):
        model.learn(40)
    return model.learn(41, reset_num_timesteps=False)


def interrupt_callback_and_continue(model: PWM) -> PWM:
    steps = iter(range(1000))

    def callback(*_: object) -> bool:
        if next(steps) == 17:
            raise KeyboardInterrupt
        return True

    return interrupt_and_continue(model, callback)


def change_env(model: PWM) -> PWM:
    model.learn(43)
    as_dict = isinstance(model.replay_buffer, DictSequenceReplayBuffer)
    other = truth_envs(model.n_envs, as_dict)
    env: Any
    for env in other.envs:
        env.unwrapped.episode += 1000
    model.set_env(other)
    return model.learn(41, reset_num_timesteps=False)


def evaluate_between(model: PWM) -> PWM:
    model.learn(43)
    model.value_calibration(truth_envs(model.n_envs, isinstance(model.replay_buffer, DictSequenceReplayBuffer)), 2)
    return model.learn(41, reset_num_timesteps=False)


SCENARIOS = {
    "once": lambda model: model.learn(90),
    "anew": lambda model: learn_twice(model, True),
    "continued": lambda model: learn_twice(model, False),
    "stopped": stop_and_continue,
    "interrupted in env": interrupt_env_and_continue,
    "interrupted in callback": interrupt_callback_and_continue,
    "failed in reset": fail_in_reset_and_continue,
    "changed env": change_env,
    "evaluated between": evaluate_between,
}


@pytest.mark.parametrize(("n_envs", "as_dict"), [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize("buffer_size", [500, 64])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_windows_hold_what_happened(scenario: str, buffer_size: int, n_envs: int, as_dict: bool) -> None:
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    model = make(truth_envs(n_envs, as_dict), policy, buffer_size=buffer_size, **OFF)
    SCENARIOS[scenario](model)
    assert model.replay_buffer.full == (buffer_size == 64)
    check_windows(model.replay_buffer)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_windows_of_loaded_buffer_hold_what_happened(tmp_path: Path, n_envs: int, reset: bool) -> None:
    first = make(truth_envs(n_envs), **OFF).learn(43)
    first.save_replay_buffer(tmp_path / "buffer")
    for model in (make(truth_envs(n_envs), **OFF), first):  # a new model, and one that is in the middle of an episode
        model.load_replay_buffer(tmp_path / "buffer")
        size = model.replay_buffer.size()
        model.learn(41, reset_num_timesteps=reset)
        assert model.replay_buffer.size() > size
        # Loading ends the running episodes, even if the model could have continued them.
        check_windows(model.replay_buffer, cut=model.replay_buffer.next_observations[size - 1, :, 1])


def test_continuing_does_not_cut_the_episode() -> None:
    model = make(truth_envs(), **OFF).learn(7)  # episodes of 5, 6, ... steps; the train_freq of 4 makes this 8
    model.learn(4, reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert np.flatnonzero(buffer.dones[:12]).tolist() == [4, 10]
    assert (buffer.next_observations[:12, 0, 1] == np.arange(1, 13)).all()


def test_time_outs_are_no_terminations() -> None:
    buffer = make(truth_envs(2), **OFF).learn(200).replay_buffer
    ends = buffer.next_observations[..., 3]
    assert set(np.unique(ends)) == {0, 1, 2}
    np.testing.assert_array_equal(buffer.dones, ends != 0)
    np.testing.assert_array_equal(buffer.timeouts, ends == 2)
    samples = buffer.sample_sequences(200, 1)
    assert torch.equal(samples.terminations[0], (samples.observations[1, :, 3] == 1).float())
    assert samples.terminations.sum() > 5


def arrays_of(buffer: Any) -> dict[str, np.ndarray]:
    parts = {key: value for key, value in vars(buffer).items() if isinstance(value, np.ndarray | dict)}
    parts.pop("obs_shape", None)
    return {
        f"{name}/{key}": array
        for name, part in parts.items()
        for key, array in (part.items() if isinstance(part, dict) else [("", part)])
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "env"),
    [
        (SequenceReplayBuffer, ReplayBuffer, truth_envs()),
        (DictSequenceReplayBuffer, DictReplayBuffer, space_envs(2, MIXED)),
    ],
)
def test_memory_is_that_of_sb3(ours: type[ReplayBuffer], theirs: type[ReplayBuffer], env: VecEnv) -> None:
    spaces = (env.observation_space, env.action_space)
    mine, sb3 = (arrays_of(kind(99, *spaces, n_envs=env.num_envs)) for kind in (ours, theirs))
    assert {k: (v.nbytes, v.dtype) for k, v in mine.items()} == {k: (v.nbytes, v.dtype) for k, v in sb3.items()}
    assert len(mine) >= 6


def filled(algorithm: Any, env: VecEnv, policy: str = "MlpPolicy", steps: int = 60) -> Any:
    """Return an SB3 model that has collected, but not learnt."""
    kwargs: dict[str, Any] = {
        "learning_starts": 10_000,
        "buffer_size": 80,
        "policy_kwargs": {"net_arch": [4]},
        "device": "cpu",
    }
    return algorithm(policy, env, **kwargs).learn(steps)


def check_seams(buffer: Any) -> None:
    """Check that what follows a step in its episode begins where that ended."""
    order = (buffer.oldest + np.arange(buffer.size())) % buffer.buffer_size
    running = buffer.dones[order][:-1] == 0
    arrays = arrays_of(buffer)
    for name in [name for name in arrays if name.startswith("observations")]:
        first, following = arrays[name][order], arrays[f"next_{name}"][order]
        np.testing.assert_array_equal(first[1:][running], following[:-1][running])


def copies(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}


def unchanged(arrays: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(arrays[name], array) for name, array in before.items())


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("capacity", [None, 100])
def test_models_from_the_same_data_do_not_write_into_each_others_steps(as_dict: bool, capacity: int | None) -> None:
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    data = from_replay_buffer(filled(SAC, truth_envs(1, as_dict), policy).replay_buffer, buffer_size=capacity)
    given, size = copies(arrays_of(data)), data.size()
    models: list[PWM] = [
        PWM.from_dataset(data, policy, seed=seed, **DATA).learn_offline(1, pretrain_steps=1) for seed in (0, 1)
    ]
    kept: list[Any] = []
    for model in models:
        model.set_env(truth_envs(1, as_dict))
        model.learn(8)
        kept.append(copies(arrays_of(model.replay_buffer)))
        check_seams(model.replay_buffer)
    assert unchanged(arrays_of(models[0].replay_buffer), kept[0])
    assert unchanged(arrays_of(data), given)
    assert data.size() == size


def test_the_steps_of_another_algorithm_stay_its_own() -> None:
    sac = filled(SAC, truth_envs(2))
    given = copies(arrays_of(sac.replay_buffer))
    model = make(truth_envs(2))
    model.replay_buffer = sac.replay_buffer
    model.learn(20)
    check_seams(model.replay_buffer)
    assert unchanged(arrays_of(sac.replay_buffer), given)


def test_arrays_that_nobody_else_has_are_not_copied() -> None:
    sac = filled(SAC, truth_envs(2))
    model = make(truth_envs(2))
    model.replay_buffer = sac.replay_buffer
    del sac
    gc.collect()
    rewards = weakref.ref(model.sequences.rewards)
    model.learn(20)
    assert rewards() is model.replay_buffer.rewards


def test_two_models_do_not_write_into_the_same_files(tmp_path: Path) -> None:
    data = from_replay_buffer(filled(SAC, truth_envs()).replay_buffer, buffer_size=100, directory=tmp_path)
    first, second = (PWM.from_dataset(data, seed=seed, **DATA) for seed in (0, 1))
    first.set_env(truth_envs())
    first.learn(8)
    second.set_env(truth_envs())
    message = r"another replay buffer has stored steps in .*rewards\.npy: import the data once"
    with pytest.raises(ValueError, match=message):
        second.learn(8)
    with pytest.raises(ValueError, match=message):
        PWM.from_dataset(data, **DATA)
    first.learn(8, reset_num_timesteps=False)
    check_seams(first.replay_buffer)
    del first
    gc.collect()
    with pytest.raises(ValueError, match=message):  # the files hold other steps than were imported
        second.learn(8)


@pytest.mark.parametrize("held", ["the data", "one array", "a copy"])
def test_whoever_holds_an_array_keeps_it_as_it_is(held: str) -> None:
    data: Any = from_replay_buffer(filled(SAC, truth_envs()).replay_buffer)
    model = PWM.from_dataset(data, **DATA)
    if held == "a copy":
        model, data = copy.deepcopy((model, data))
    kept = data.observations if held == "one array" else data
    given = copy.deepcopy(arrays_of(data))
    del data
    model.set_env(truth_envs())
    model.learn(16)
    arrays = {"observations/": kept} if held == "one array" else arrays_of(kept)
    assert unchanged(arrays, {name: given[name] for name in arrays})


def test_a_lender_that_goes_on_does_not_change_what_it_lent() -> None:
    lender = make(truth_envs(), buffer_size=40, **NO_UPDATES).learn(60)
    borrower = PWM.from_dataset(lender.sequences, **DATA)
    given = copies(arrays_of(borrower.replay_buffer))
    lender.learn(13, reset_num_timesteps=False)
    assert unchanged(arrays_of(borrower.replay_buffer), given)
    check_seams(lender.replay_buffer)


def test_what_hindsight_replay_keeps_beside_the_steps_is_copied_too() -> None:
    def filled_her(algorithm: Any, **kwargs: Any) -> Any:
        own = {"buffer_size": 80, "learning_starts": 10_000, "replay_buffer_class": HerReplayBuffer, "device": "cpu"}
        env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)
        return algorithm("MultiInputPolicy", env, **own, replay_buffer_kwargs={"copy_info_dict": True}, **kwargs)

    sac, model = filled_her(SAC).learn(60), filled_her(PWM, **NO_UPDATES)
    names = ("infos", "ep_start", "ep_length", "rewards")
    before = {name: getattr(sac.replay_buffer, name).copy() for name in names}
    model.replay_buffer = sac.replay_buffer
    model.learn(30)
    assert unchanged({name: getattr(sac.replay_buffer, name) for name in names}, before)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_buffer_saved_in_the_model_is_divided_among_other_environments(tmp_path: Path, n_envs: int) -> None:
    make(truth_envs(2), **NO_UPDATES).learn(40).save(tmp_path / "model", include=["replay_buffer"])
    model = PWM.load(tmp_path / "model", env=truth_envs(n_envs))
    model.learn(20, reset_num_timesteps=False)
    check_seams(model.replay_buffer)
    assert model.replay_buffer.n_envs == n_envs
    other = make(truth_envs(2), **NO_UPDATES).learn(20)
    model.replay_buffer = other.replay_buffer
    model.learn(20, reset_num_timesteps=False)
    check_seams(model.replay_buffer)
    model.replay_buffer = make(space_envs(n_envs)).replay_buffer
    with pytest.raises(ValueError, match="the replay buffer's observation_space is"):
        model.learn(20, reset_num_timesteps=False)


def test_time_outs_that_a_buffer_does_not_tell_are_not_taken_over(tmp_path: Path) -> None:
    untold = {"handle_timeout_termination": False}
    make(replay_buffer_kwargs=untold, **NO_UPDATES).learn(40).save_replay_buffer(tmp_path / "buffer")
    model = make(**NO_UPDATES)
    with pytest.raises(ValueError, match="handle_timeout_termination=False"):
        model.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"buffer.*handle_timeout_termination=False"):
        from_replay_buffer(tmp_path / "buffer")
    own = make(replay_buffer_kwargs=untold, **NO_UPDATES)
    own.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="handle_timeout_termination=False"):
        PWM.from_dataset(own.sequences, **DATA)


@pytest.mark.parametrize("as_dict", [False, True])
def test_adopting_copies_nothing(as_dict: bool) -> None:
    env = truth_envs(2, as_dict)
    theirs = filled(SAC, env, "MultiInputPolicy" if as_dict else "MlpPolicy").replay_buffer
    ours = SequenceReplayBuffer.from_replay_buffer(theirs)
    assert type(ours) is (DictSequenceReplayBuffer if as_dict else SequenceReplayBuffer)
    mine, sb3 = arrays_of(ours), arrays_of(theirs)
    assert mine.keys() == sb3.keys()
    assert all(np.shares_memory(mine[key], sb3[key]) for key in mine)
    check_windows(ours)


class Marked(SequenceReplayBuffer):
    """A user's own buffer."""


class MarkedDict(DictSequenceReplayBuffer):
    """A user's own buffer."""


@pytest.mark.parametrize(("own", "as_dict"), [(Marked, False), (MarkedDict, True)])
def test_a_users_own_buffer_keeps_its_class(tmp_path: Path, own: type[SequenceReplayBuffer], as_dict: bool) -> None:
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    model = make(truth_envs(2, as_dict), policy, replay_buffer_class=own, **OFF).learn(40)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert type(model.replay_buffer) is own
    model.learn(41)
    check_windows(model.replay_buffer)


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_buffers_of_other_algorithms(tmp_path: Path, algorithm: Any) -> None:
    env = truth_envs()
    filled(algorithm, env).save_replay_buffer(tmp_path / "buffer.pkl")
    model = make(env, **OFF)
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert model.replay_buffer.n_transitions == 60
    model.learn(90)  # around the ring of 80
    assert model.replay_buffer.full
    check_windows(model.replay_buffer)


def test_assigned_buffer_is_taken_over() -> None:
    env = truth_envs()
    model = make(env, **OFF)
    model.replay_buffer = filled(SAC, env).replay_buffer
    model.learn(30)
    assert model.replay_buffer.full
    check_windows(model.replay_buffer)


def test_same_numpy_seed_draws_the_same_windows() -> None:
    buffer = make(truth_envs(2), **OFF).learn(60).replay_buffer
    draws = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        draws.append(buffer.sample_sequences(16, 4).observations)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_first_steps_are_uniform_over_what_is_stored() -> None:
    buffer = make(truth_envs(2), buffer_size=40, **OFF).learn(70).replay_buffer
    starts = torch.cat([buffer.sample_sequences(40, 4).observations[0, :, :2] for _ in range(200)])
    _, counts = starts.unique(dim=0, return_counts=True)
    assert len(counts) == 40
    assert counts.min() > 140  # 200 expected, standard deviation 14


@pytest.mark.parametrize(("count", "starts"), [(1_000, 40), (40, 40), (7, 7)])
def test_spread_windows_start_at_different_stored_steps_from_the_oldest_to_the_newest(count: int, starts: int) -> None:
    buffer = make(truth_envs(2), buffer_size=40, **OFF).learn(70).replay_buffer
    samples, again = buffer.spread_sequences(count, 4), buffer.spread_sequences(count, 4)
    assert torch.equal(samples.observations, again.observations)
    first = samples.observations[0]
    assert len(first.unique(dim=0)) == first.shape[0] == starts
    oldest, newest = buffer.pos, (buffer.pos - 1) % buffer.buffer_size
    assert torch.equal(first[0], torch.as_tensor(buffer.observations[oldest, 0]))
    assert torch.equal(first[-1], torch.as_tensor(buffer.observations[newest, (starts - 1) % 2]))
    assert samples.mask[:, -1].tolist() == [1, 0, 0, 0]  # nothing follows the newest step


@given(size=st.integers(1, 60), n_envs=st.integers(1, 7), count=st.integers(1, 500))
def test_spread_steps_are_as_many_of_every_environment_and_evenly_over_time(size: int, n_envs: int, count: int) -> None:
    box = spaces.Box(-1, 1, (1,), np.float32)
    buffer = SequenceReplayBuffer(size * n_envs, box, box, "cpu", n_envs=n_envs)
    buffer.full = True
    ages, columns = buffer._spread(count)
    found = len(ages)
    assert found == len(set(zip(ages.tolist(), columns.tolist(), strict=True))) == min(count, size * n_envs)
    for column in range(n_envs):
        own = ages[columns == column]
        assert len(own) in (found // n_envs, found // n_envs + 1)
        ends = np.concatenate([[0], own, [size - 1]])
        assert (np.diff(ends) >= 0).all()
        assert np.diff(ends).max() <= (size * n_envs - 1) / max(1, found - 1) + 1 or len(own) == 0


def test_statistics_know_every_task_over_all_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pwm.buffers.STATISTICS_ROWS", 20)  # every sixth step of what follows, or every third
    box = spaces.Box(-1, 1, (1,), np.float32)
    buffer = SequenceReplayBuffer(40 * 3, box, box, "cpu", n_envs=3)
    buffer.full = True
    buffer.observations[..., 0] = np.arange(40)[:, None] + [0, 100, 200]
    for n_tasks, number in ((1, 20), (2, 40)):
        observations: Any = buffer.statistics_sample(n_tasks=n_tasks)
        sample = observations[:, 0].numpy()
        assert len(sample) == number
        for task in range(3):
            own = sample[sample // 100 == task] - 100 * task
            assert number // 3 <= len(own) <= number // 3 + 1
            np.testing.assert_allclose(own.mean(), 19.5, atol=2)


def test_statistics_of_large_observations_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_by_fours(space_envs(1, MIXED), policy="MultiInputPolicy").learn(60)
    image, vector, kind = 3 * 36 * 36, 4 * 8, 8
    monkeypatch.setattr("sb3_pwm.buffers.STATISTICS_BYTES", 10 * (image + vector + kind))
    vectors = model.replay_buffer.observations["vector"]
    observations = model.replay_buffer.statistics_sample()
    assert observations["image"].shape == (10, 3, 36, 36)
    # from the oldest to the newest step
    torch.testing.assert_close(observations["vector"][[0, -1]], torch.tensor(vectors[[0, 59], 0]))


def test_a_gpu_without_room_for_a_copy_gets_its_windows_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make(space_envs()).learn(20).sequences
    expected: Any = buffer.spread_sequences(8, 3)
    pinned, moved = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.data_ptr()) or x)

    def to(x: torch.Tensor, device: Any, *, non_blocking: bool) -> torch.Tensor:
        moved.append((x.data_ptr(), device.type, non_blocking))
        return x

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr("sb3_pwm.buffers.free_memory", lambda device: 0)
    buffer.device = torch.device("cuda")
    with pytest.warns(UserWarning, match="stays in host memory"):
        samples: Any = buffer.spread_sequences(8, 3)
    assert moved == [(place, "cuda", True) for place in pinned]
    assert len(moved) == 6
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(samples, expected, strict=True))
