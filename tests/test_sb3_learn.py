import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers import count_updates, space_envs
from helpers import make_by_fours as make
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from sb3_pwm import PWM, offline


def random_steps(model: PWM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the steps that the policy does not choose, from now on, in the returned list."""
    counted = []
    sample = model.action_space.sample
    monkeypatch.setattr(model.action_space, "sample", lambda: counted.append(1) or sample())
    return counted


def filled_buffer(tmp_path: Path, algorithm: Any = SAC, steps: int = 40, n_envs: int = 1) -> Path:
    model = algorithm(
        "MlpPolicy",
        space_envs(n_envs),
        learning_starts=1_000,
        buffer_size=200,
        policy_kwargs={"net_arch": [4]},
        device="cpu",
    )
    model.learn(steps)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    return tmp_path / "buffer.pkl"


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "collected", "updates"),
    [
        (1, 4, 20, 6),  # 20, 24, ..., 40
        (1, 3, 21, 8),  # 21, 24, ..., 39, and 42, since 39 is less than 40
        (2, 4, 24, 3),  # 24, 32, 40
        (1, (1, "episode"), 21, 4),  # 21, 28, 35, 42
        (1, (2, "episode"), 28, 2),
    ],
)
def test_learning_starts(
    monkeypatch: pytest.MonkeyPatch, n_envs: int, train_freq: int | tuple[int, str], collected: int, updates: int
) -> None:
    model = make(space_envs(n_envs), train_freq=train_freq)
    steps = random_steps(model, monkeypatch)
    first, pretrain = [], offline.pretrain_within

    def spy(*args: Any, **kwargs: Any) -> Any:
        first.append((model.num_timesteps, model.replay_buffer.n_transitions))
        return pretrain(*args, **kwargs)

    monkeypatch.setattr(offline, "pretrain_within", spy)
    model.learn(40)
    assert len(steps) == 20
    assert first == [(collected, collected)]
    assert model._n_updates == updates
    assert model.n_model_updates == 3 + updates


@pytest.mark.parametrize(("train_freq", "gradient_steps", "updates"), [(4, -1, 24), (4, 3, 18), (2, 0, 0)])
def test_gradient_steps(train_freq: int, gradient_steps: int, updates: int) -> None:
    model = make(train_freq=train_freq, gradient_steps=gradient_steps).learn(40)
    assert model._n_updates == updates
    assert model.n_model_updates == 3 + updates


def test_minus_one_gradient_steps_with_episodes_and_environments() -> None:
    assert make(train_freq=(1, "episode"), gradient_steps=-1).learn(28)._n_updates == 7 + 7
    assert make(space_envs(2), train_freq=2, gradient_steps=-1).learn(24)._n_updates == 4 + 4


@pytest.mark.parametrize(("policy_updates", "expected"), [(0.125, 3), (0.3, 7), (0.5, 12), (1, 24), (1.5, 36), (2, 48)])
def test_policy_updates(policy_updates: float, expected: int) -> None:
    model = make(gradient_steps=4, policy_updates=policy_updates)
    counts = count_updates(model)
    model.learn(40)
    assert counts == {"model": 3 + 24, "policy": expected}


def test_fractions_of_policy_updates_add_up_over_calls() -> None:
    model = make(policy_updates=0.125, pretrain_steps=0).learn(40)  # 6 updates
    counts = count_updates(model)
    model.train(1, 8)
    assert counts == {"model": 1, "policy": 0}
    model.train(1, 8)
    assert counts == {"model": 2, "policy": 1}


@pytest.mark.parametrize("critic", ["q", "v"])
def test_critic_updates(critic: Literal["q", "v"]) -> None:
    model = make(critic=critic, critic_updates=3).learn(40)
    steps = [float(state["step"]) for state in model.policy.critic_optimizer.state.values()]
    assert set(steps) == {18.0}
    assert {float(state["step"]) for state in model.policy.actor_optimizer.state.values()} == {6.0}
    assert {float(state["step"]) for state in model.policy.model_optimizer.state.values()} == {9.0}


def test_every_update_of_a_q_critic_has_a_batch_of_its_own() -> None:
    model = make(critic_updates=3, critic_batch_size=10, n_steps=2).learn(40)
    batches = model._critic_samples()
    assert [batch.actions.shape[:2] for batch in batches] == [(2, 10)] * 3
    assert not torch.equal(batches[0].actions, batches[1].actions)
    assert make(critic="v").learn(40)._critic_samples() == ()


def test_run_shorter_than_the_warm_up() -> None:
    model = make()
    before = [p.clone() for p in model.policy.parameters()]
    with pytest.warns(UserWarning, match="nothing was learnt in 12 steps.*learning_starts=20.* it holds 12"):
        model.learn(12)
    assert (model.num_timesteps, model.n_model_updates, model._n_updates) == (12, 0, 0)
    assert all(torch.equal(p, q) for p, q in zip(model.policy.parameters(), before, strict=True))
    model.learn(8, reset_num_timesteps=False)  # the 12 steps count: the 20th completes the warm-up
    assert (model.num_timesteps, model.n_model_updates, model._n_updates) == (20, 4, 1)


@pytest.mark.parametrize("reset", [True, False])
def test_pretraining_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset: bool) -> None:
    model = make(gradient_steps=0).learn(24)
    assert model.n_model_updates == 3
    steps = random_steps(model, monkeypatch)
    model.learn(12, reset_num_timesteps=reset)
    assert model.n_model_updates == 3
    assert steps == []
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=space_envs())
    loaded.learn(40, reset_num_timesteps=reset)
    assert loaded.n_model_updates == 3


def test_interrupted_pretraining_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(pretrain_steps=5, gradient_steps=0)
    update = model._learner.update_model
    left = iter(range(2))
    monkeypatch.setattr(
        model._learner,
        "update_model",
        lambda *inputs, **kwargs: update(*inputs, **kwargs) if next(left, -1) >= 0 else 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        model.learn(40)
    assert model.n_model_updates == 2
    monkeypatch.undo()
    counts = count_updates(model)
    model.learn(8, reset_num_timesteps=False)
    assert counts == {"model": 3, "policy": 0}


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_stored_steps_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: type[OffPolicyAlgorithm]
) -> None:
    model = make()
    model.load_replay_buffer(filled_buffer(tmp_path, algorithm))
    steps = random_steps(model, monkeypatch)
    counts = count_updates(model)
    model.learn(8)
    assert steps == []
    assert counts == {"model": 3 + 2, "policy": 2}
    assert model.replay_buffer.n_transitions == 48


def test_some_stored_steps_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(space_envs(2))
    model.load_replay_buffer(filled_buffer(tmp_path, steps=12, n_envs=2))
    steps = random_steps(model, monkeypatch)
    model.learn(16)
    assert len(steps) == 8
    assert model._n_updates == 2


def test_run_of_no_steps_pretrains(tmp_path: Path) -> None:
    model = make()
    model.load_replay_buffer(filled_buffer(tmp_path))
    model.learn(0)
    assert (model.num_timesteps, model.n_model_updates) == (0, 3)


def test_trained_policy_fills_an_empty_buffer_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().learn(40).save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=space_envs())
    steps = random_steps(loaded, monkeypatch)
    updates = loaded._n_updates
    loaded.learn(24)
    assert steps == []
    assert loaded._n_updates == updates + 2  # at 20 and 24 steps


def test_pretraining_before_learning(tmp_path: Path) -> None:
    model = make()
    model.load_replay_buffer(filled_buffer(tmp_path))
    policy = model.policy
    networks = {"model": policy.world_model, "actor": policy.actor, "critic": policy.critics}
    before = {name: [p.clone() for p in network.parameters()] for name, network in networks.items()}
    assert model.pretrain(2) is model
    changed = {
        name: not all(torch.equal(p, q) for p, q in zip(network.parameters(), before[name], strict=True))
        for name, network in networks.items()
    }
    assert changed == {"model": True, "actor": False, "critic": False}
    assert model.n_model_updates == 2
    assert policy.features.standardizers[0].std.ne(1).all()
    model.learn(4)
    assert model.n_model_updates == 3 + 1  # one of pretrain_steps was left


def test_pretraining_lowers_the_loss(tmp_path: Path) -> None:
    model = make(pretrain_steps=0)
    model.load_replay_buffer(filled_buffer(tmp_path))
    losses = []
    for steps in (5, 60, 5):
        model._learner.pop_metrics()
        model.pretrain(steps)
        losses.append(model._learner.pop_metrics()["world_model_loss"])
    assert losses[2] < 0.9 * losses[0]


def test_without_termination_head() -> None:
    model = make(termination_coef=0)
    head = [p.clone() for p in model.policy.world_model.termination.parameters()]
    model.learn(40)
    assert model._n_updates == 6
    assert all(torch.equal(p, q) for p, q in zip(model.policy.world_model.termination.parameters(), head, strict=True))
    assert model.n_skipped_updates == 0


def test_total_timesteps_continue() -> None:
    model = make().learn(21)
    assert model.num_timesteps == 24
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 44
    model.learn(20)
    assert model.num_timesteps == 20


def test_buffers_are_those_of_sb3(tmp_path: Path) -> None:
    """What PWM saves, SAC reads."""
    model = make().learn(24)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    other = SAC("MlpPolicy", space_envs(), learning_starts=0, policy_kwargs={"net_arch": [4]}, device="cpu")
    other.load_replay_buffer(tmp_path / "buffer.pkl")
    other.learn(5)
    assert other._n_updates == 5
    with open(tmp_path / "buffer.pkl", "rb") as file:
        np.testing.assert_array_equal(pickle.load(file).rewards, model.replay_buffer.rewards)


def test_hyperparameters_of_a_live_model_can_be_changed() -> None:
    model = make().learn(30)
    model.tau = 1.0
    model.train(gradient_steps=1, batch_size=8)
    for target, online in zip(model.policy.critics_target.parameters(), model.policy.critics.parameters(), strict=True):
        torch.testing.assert_close(target, online, rtol=0, atol=0)


def test_learning_rate_falls_while_pretraining(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(learning_rate=LinearSchedule(1e-3, 1e-4, 1.0), pretrain_steps=4, gradient_steps=0)
    rates, update = [], model._learner.update_model

    def spy(*inputs: Any, **kwargs: Any) -> Any:
        rates.append(model.policy.model_optimizer.param_groups[0]["lr"])
        return update(*inputs, **kwargs)

    monkeypatch.setattr(model._learner, "update_model", spy)
    model.learn(40)  # where the world model goes on learning, the rate is that of the whole run
    assert rates == pytest.approx([1e-3 - 9e-4 * 20 / 40] * 4)
    rates.clear()
    model.pretrain(3)
    assert rates == pytest.approx([1e-3, 7e-4, 4e-4])
    rates.clear()
    model.learn_offline(2, pretrain_steps=2)
    assert rates == pytest.approx([1e-3, 5.5e-4])
    assert model.policy.actor_optimizer.param_groups[0]["lr"] == pytest.approx(5.5e-4)


@pytest.mark.filterwarnings("ignore:nothing was learnt")
def test_a_buffer_smaller_than_learning_starts() -> None:
    """What it can hold is enough; learning in pieces starts too."""
    model = make(buffer_size=30, learning_starts=60)
    updates = [model.learn(20, reset_num_timesteps=False)._n_updates for _ in range(4)]
    assert updates == [0, 0, 5, 10]  # full after 40 steps; then every fourth of 20
    assert make(buffer_size=30, learning_starts=60).learn(80)._n_updates == 6
