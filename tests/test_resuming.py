"""Learning that goes on after it was saved, interrupted, or given other environments, as if nothing had happened."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, SMALL_POLICY, make, make_by_fours, same, truth_envs
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import VecNormalize
from test_watched_env import check_every_window, stored

from sb3_pwm import PWM
from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.replay.columns import with_columns

pytestmark = pytest.mark.filterwarnings("ignore:nothing was learnt")


def from_data(n_envs: int = 1, **kwargs: Any) -> PWM:
    collector = make(truth_envs(n_envs), learning_starts=10_000, buffer_size=80 * n_envs).learn(80 * n_envs)
    data: Any = collector.replay_buffer
    settings: dict[str, Any] = {
        name: value for name, value in SMALL.items() if name not in ("buffer_size", "learning_starts")
    }
    return PWM.from_dataset(data, policy_kwargs=SMALL_POLICY | {"n_dynamics": 1}, **(settings | kwargs))


class Watch(BaseCallback):
    def __init__(self, optimizer: Any, stop_at: int | None = None) -> None:
        super().__init__()
        self.optimizer, self.stop_at = optimizer, stop_at
        self.seen: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        policy: Any = self.model.policy
        rate = policy.optimizers[self.optimizer].param_groups[0]["lr"]
        self.seen.append((self.num_timesteps, round(rate, 9)))
        return self.num_timesteps != self.stop_at


@pytest.mark.parametrize("steps", [30, 60])  # with 60 the scales are taken anew
@pytest.mark.parametrize("env_goes_on", [False, True])
@pytest.mark.parametrize("kind", ["one", "three", "dict", "normalized"])
def test_a_saved_run_goes_on_as_if_it_had_not_been_interrupted(
    kind: str, env_goes_on: bool, steps: int, tmp_path: Path
) -> None:
    n_envs = {"three": 3}.get(kind, 1)
    env: Any = truth_envs(n_envs, as_dict=kind == "dict")
    env = VecNormalize(env) if kind == "normalized" else env
    model = make(env, "MultiInputPolicy" if kind == "dict" else "MlpPolicy", learning_rate=1e-3).learn(50)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    twin_env = copy.deepcopy(env)
    if kind == "normalized":
        twin_env.set_venv(copy.deepcopy(env.venv))
        twin_env.returns = env.returns.copy()  # of the present episodes, which SB3 forgets
    if not env_goes_on:
        model._last_obs = None  # both begin a new episode
    model.set_random_seed(7)
    model.learn(steps, reset_num_timesteps=False)
    loaded = PWM.load(tmp_path / "model", env=twin_env, device="cpu", force_reset=not env_goes_on)
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.set_random_seed(7)
    loaded.learn(steps, reset_num_timesteps=False)
    assert same(loaded.policy.state_dict(), model.policy.state_dict())
    for name in ("rewards", "dones", "timeouts", "actions"):
        np.testing.assert_array_equal(getattr(loaded.replay_buffer, name), getattr(model.replay_buffer, name))
    check_every_window(loaded.replay_buffer) if kind != "normalized" else None


def test_another_buffer_brings_its_scales(tmp_path: Path) -> None:
    model = make_by_fours(truth_envs()).learn(60)
    other = make_by_fours(truth_envs(), seed=5).learn(80)
    other.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    model.learn(4, reset_num_timesteps=False)
    assert int(model.policy.statistics_size) == 84


def test_a_buffer_loaded_after_a_reset_is_not_gone_on_from(tmp_path: Path) -> None:
    model = make(truth_envs(), buffer_size=100).learn(48)
    assert model.replay_buffer.dones[47] == 0  # in the middle of an episode
    model.save_replay_buffer(tmp_path / "buffer")
    model.learn(0)  # resets the environment
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.dones[47] == 1
    model.learn(20, reset_num_timesteps=False)
    check_every_window(model.replay_buffer)


@pytest.mark.parametrize("how", ["assigned", "shared"])
def test_another_models_buffer_is_not_gone_on_from(how: str) -> None:
    """By assignment, which nobody sees: neither model has made the step that the other's newest one led to."""
    model, other = (make(truth_envs(), buffer_size=100).learn(48) for _ in range(2))
    other.learn(4, reset_num_timesteps=False)
    model.replay_buffer = other.replay_buffer if how == "shared" else copy.deepcopy(other.replay_buffer)
    for learner in (model, other):
        buffer: Any = learner.sequences
        newest = buffer.pos - 1
        assert buffer.dones[newest] == 0
        learner.learn(8, reset_num_timesteps=False)
        assert buffer.dones[newest] == (how == "shared" or learner is model)
        check_every_window(buffer)


def test_learning_offline_goes_on(tmp_path: Path) -> None:
    whole, first, second = Watch("actor"), Watch("actor"), Watch("actor")
    uninterrupted = from_data(learning_rate=lambda left: left).learn_offline(20, callback=whole)
    model = from_data(learning_rate=lambda left: left)
    model.learn_offline(20, callback=[first, Stop(12), CheckpointCallback(4, str(tmp_path))])
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "data")
    loaded = PWM.load(tmp_path / "model", device="cpu")
    loaded.load_replay_buffer(tmp_path / "data")
    loaded.learn_offline(8, callback=[second, CheckpointCallback(4, str(tmp_path))], reset_num_timesteps=False)
    assert first.seen + second.seen == whole.seen
    assert whole.seen[-1] == (20, 0.05)
    steps = {path.name for path in tmp_path.glob("rl_model*")}
    assert steps == {f"rl_model_{n}_steps.zip" for n in (4, 8, 12, 16, 20)}
    assert loaded.n_model_updates == uninterrupted.n_model_updates
    assert loaded._n_updates == uninterrupted._n_updates == 20


class Stop(BaseCallback):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.num_timesteps != self.at


def test_pretraining_takes_callbacks_and_goes_on(tmp_path: Path) -> None:
    whole, first, second = Watch("model"), Watch("model", stop_at=6), Watch("model")
    from_data(learning_rate=lambda left: left).pretrain(10, callback=whole)
    callbacks = [first, CheckpointCallback(3, str(tmp_path))]
    model = from_data(learning_rate=lambda left: left).pretrain(10, callback=callbacks)
    assert model.n_model_updates == 6
    model.pretrain(4, callback=[second, CheckpointCallback(3, str(tmp_path))], reset_num_timesteps=False)
    assert model.n_model_updates == 10
    assert first.seen + second.seen == whole.seen == [(n, round(1 - (n - 1) / 10, 9)) for n in range(1, 11)]
    assert {path.name for path in tmp_path.iterdir()} == {f"rl_model_{n}_steps.zip" for n in (3, 6, 9)}


def test_pretraining_leaves_the_count_of_steps() -> None:
    model = make_by_fours(truth_envs()).learn(40)
    model.pretrain(5)
    assert (model.num_timesteps, model._current_progress_remaining) == (40, 0)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 60
    assert stored(model.replay_buffer)[0][:60, 0].tolist() == list(range(60))


def test_interrupted_pretraining_of_offline_learning_keeps_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    model = from_data(learning_rate=lambda left: left, pretrain_steps=10)
    update = model._learner.update_model

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        rates.append(round(model.policy.optimizers["model"].param_groups[0]["lr"], 9))
        if len(rates) == 4:
            raise KeyboardInterrupt
        return update(*args, **kwargs)

    monkeypatch.setattr(model._learner, "update_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn_offline(1)
    model.learn_offline(1)
    expected = [round(1 - n / 10, 9) for n in range(10)]
    assert rates == [*expected[:4], *expected[3:]]


@given(
    n_columns=st.integers(1, 4),
    n_envs=st.integers(1, 5),
    n_steps=st.integers(0, 30),
    capacity=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_columns_hold_the_same_steps_and_no_window_that_never_was(
    n_columns: int, n_envs: int, n_steps: int, capacity: int, seed: int
) -> None:
    space = truth_envs().observation_space
    buffer = SequenceReplayBuffer(capacity * n_columns, space, truth_envs().action_space, "cpu", n_envs=n_columns)
    generator = np.random.default_rng(seed)
    for step in range(n_steps):
        place = np.zeros((n_columns, 5), np.float32)
        place[:, 0], place[:, 1] = np.arange(n_columns), step
        following, done = place + np.eye(5, dtype=np.float32)[1], generator.random(n_columns) < 0.2
        infos = [{"TimeLimit.truncated": bool(generator.random() < 0.5)} for _ in range(n_columns)]
        buffer.add(place, following, np.zeros((n_columns, 1)), np.full(n_columns, step), done, infos)
    before = copy.deepcopy(vars(buffer))
    result = with_columns(buffer, n_envs)
    assert same(vars(buffer)["dones"].tolist(), before["dones"].tolist())
    if n_columns == n_envs:
        assert result is buffer
        return
    assert result.n_transitions == buffer.n_transitions // n_envs * n_envs
    assert result.buffer_size * n_envs > buffer.buffer_size * n_columns - n_envs or result.buffer_size == 1

    def rows(one: Any) -> dict[Any, Any]:
        size = one.size()
        return {
            (*one.observations[row, column, :2], one.rewards[row, column]): one.dones[row, column]
            * (1 - one.timeouts[row, column])
            for row in range(size)
            for column in range(one.n_envs)
        }

    assert rows(result).items() <= rows(buffer).items()  # terminations stay what they were
    assert len(rows(result)) == result.n_transitions
    if result.size():
        windows: Any = result.spread_sequences(10_000, min(3, result.size()))
        valid = windows.mask[1:] > 0
        steps = windows.observations[:-1]
        led = steps[1:, :, :2][valid] - steps[:-1, :, :2][valid]
        torch.testing.assert_close(led, torch.tensor([0.0, 1.0]).expand_as(led))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3)])
@pytest.mark.parametrize("how", ["set_env", "load"])
def test_learning_goes_on_in_another_number_of_environments(before: int, after: int, how: str, tmp_path: Path) -> None:
    model = from_data(before).learn_offline(3)
    if how == "set_env":
        model.set_env(truth_envs(after))
    else:
        model.save(tmp_path / "model")
        model.save_replay_buffer(tmp_path / "buffer")
        model = PWM.load(tmp_path / "model", env=truth_envs(after), device="cpu")
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.n_envs == model.replay_buffer.n_envs == after
    held = model.replay_buffer.n_transitions
    assert 80 * before - after < held <= 80 * before
    updates = model._n_updates
    model.learn(8 * after)
    assert model.num_timesteps >= 8 * after
    assert model._n_updates > updates
    check_every_window(model.replay_buffer)


def test_a_buffer_of_sac_for_another_number_of_environments(tmp_path: Path) -> None:
    data = ReplayBuffer(40, truth_envs().observation_space, truth_envs().action_space, "cpu", n_envs=1)
    source = make(truth_envs(), learning_starts=1_000).learn(40).replay_buffer
    vars(data).update({name: value for name, value in vars(source).items() if name in vars(data)})
    model = make(truth_envs(4))
    model.replay_buffer = data
    model.learn(16)
    assert model.replay_buffer.n_envs == 4
    check_every_window(model.replay_buffer)


def test_a_number_of_environments_that_does_not_go_is_refused_and_nothing_changes() -> None:
    model = make(truth_envs(), train_freq=(1, "episode"))
    env = model.get_env()
    with pytest.raises(ValueError, match="episode"):
        model.set_env(truth_envs(2))
    assert (model.n_envs, model.replay_buffer.n_envs, model.get_env()) == (1, 1, env)
