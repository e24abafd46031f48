import math

import numpy as np
import pytest
import torch
from helpers import BOX, MIXED, make, same, space_envs, truth_envs
from stable_baselines3.common.vec_env import VecNormalize
from torch.testing import assert_close

from sb3_pwm import PWM, scales
from sb3_pwm.pessimism import moved_pessimism, promised_too_much

OFF = {"pretrain_steps": 0, "gradient_steps": 0}  # collects and does not learn


@pytest.fixture
def often(monkeypatch):
    """Learn pessimism after every 20 steps, from the newest 50."""
    monkeypatch.setattr(scales, "STATISTICS_INTERVAL", 20)
    monkeypatch.setattr("sb3_pwm.pwm.NEWEST_STEPS", 50)


@pytest.mark.parametrize(
    ("before", "gap", "after"),
    [(0.8, -0.5, 0.7), (0.8, 0.5, 0.9), (0.55, -1, 0.5), (0.95, 1, 1), (0.8, 0, 0.8), (0.8, math.nan, 0.8)],
)
def test_moved_pessimism_by_hand(before, gap, after):
    assert moved_pessimism(before, gap) == pytest.approx(after)


@pytest.mark.parametrize("count", [7, 30, 1_000])
@pytest.mark.parametrize(("buffer_size", "n_envs"), [(500, 1), (30, 1), (60, 2)])
def test_newest_steps_are_those_that_happened_last_in_their_order(count, buffer_size, n_envs):
    model = make(truth_envs(n_envs), buffer_size=buffer_size, **OFF).learn(100)
    steps, ends = model.sequences.newest_steps(count)
    taken = model.num_timesteps // n_envs
    expected = min(count, taken, buffer_size // n_envs)
    assert ends.shape == (expected, n_envs)
    before, after = (rows.reshape(expected, n_envs, 5) for rows in steps.observations)
    numbers = torch.arange(taken - expected, taken).float()[:, None] + 100 * torch.arange(n_envs)
    assert torch.equal(before[..., 1], numbers)
    assert torch.equal(after[..., 1], numbers + 1)
    assert torch.equal(after[..., 0], torch.arange(n_envs).float().expand(expected, -1))
    assert torch.equal(steps.rewards.reshape(expected, n_envs), numbers + 1)
    assert torch.equal(steps.actions.reshape(expected, n_envs), after[..., 4])
    assert torch.equal(steps.terminations.reshape(expected, n_envs), (after[..., 3] == 1).float())
    assert torch.equal(ends, (after[..., 3] > 0).float())
    assert ends.sum() > steps.terminations.sum() > 0 or count == 7


def test_newest_steps_are_normalised():
    env = VecNormalize(truth_envs(2))
    model = make(env, **OFF).learn(60)
    steps, _ = model.sequences.newest_steps(5, env)
    raw, _ = model.sequences.newest_steps(5)
    assert_close(steps.observations[0].numpy(), env.normalize_obs(raw.observations[0].numpy()))
    assert_close(steps.rewards.numpy(), env.normalize_reward(raw.rewards.numpy()))


@pytest.mark.parametrize("critic", ["q", "v"])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_what_is_promised_too_much_is_that_of_a_plain_loop(critic, n_envs):
    model = make(space_envs(n_envs), critic=critic, pretrain_steps=0).learn(60)
    policy, gamma = model.policy, 0.9
    steps, ends = model.sequences.newest_steps(20)
    torch.manual_seed(3)
    gap = promised_too_much(policy, steps, ends, gamma)
    torch.manual_seed(3)
    with torch.no_grad():
        before, after = (policy.world_model.encode(rows) for rows in steps.observations)
        values = policy.critics(before, steps.actions[0]) if critic == "q" else policy.critics(before)
        following = policy.critics(after, policy.actor.sample(after)) if critic == "q" else policy.critics(after)
    value, following = values.mean(0), following.mean(0)
    rewards = steps.rewards[0] / policy.reward_scale.scale
    total = 0.0
    for column in range(n_envs):
        for start in range(len(ends)):
            factor = 1.0
            for t in range(start, len(ends)):
                place = t * n_envs + column
                total += factor * float(rewards[place])
                factor *= gamma * (1 - float(steps.terminations[0, place]))
                if ends[t, column]:
                    break
            total += factor * float(following[place])
    mean_return, mean_value = total / ends.numel(), float(value.mean())
    expected = (mean_value - mean_return) / (abs(mean_value) + abs(mean_return))
    assert gap == pytest.approx(expected, abs=1e-5)
    assert ends.any()


@pytest.mark.parametrize("observation_space", [BOX, MIXED])
def test_parts_make_no_difference(monkeypatch, observation_space):
    policy = "MlpPolicy" if observation_space is BOX else "MultiInputPolicy"
    model = make(space_envs(2, observation_space), policy, critic="v", **OFF).learn(60)
    steps, ends = model.sequences.newest_steps(20)
    whole = promised_too_much(model.policy, steps, ends, 0.9)
    sizes = []
    encode = model.policy.world_model.encode
    monkeypatch.setattr(model.policy.world_model, "encode", lambda x: sizes.append(1) or encode(x))
    monkeypatch.setattr("sb3_pwm.pessimism.BYTES_AT_ONCE", 200 if observation_space is BOX else 10_000)
    assert promised_too_much(model.policy, steps, ends, 0.9) == pytest.approx(whole, abs=1e-5)
    assert len(sizes) > 4


def fix_critics(policy, value):
    """Let all critics say ``value`` for everything."""
    policy.critics.forward = lambda *inputs: torch.full((2, *inputs[0].shape[:-1]), value)


@pytest.mark.parametrize(("value", "expected"), [(1e3, 1.0), (-1e3, 0.5)])
def test_pessimism_falls_where_values_promise_too_little(often, value, expected):
    model = make(truth_envs(2), pessimism="auto").learn(80)
    fix_critics(model.policy, value)
    model.policy.pessimism.fill_(0.75)
    for _ in range(5):
        model._move_pessimism()
    # half of the episodes terminate, and all rewards are positive: what follows lies between 0 and the value
    assert model.policy.pessimism == expected


@pytest.mark.parametrize("n_envs", [1, 2])
def test_pessimism_is_learnt_from_own_steps_alone(often, monkeypatch, n_envs):
    seen = []
    monkeypatch.setattr("sb3_pwm.pwm.promised_too_much", lambda *inputs: seen.append(len(inputs[2])) or -1.0)
    model = make(space_envs(n_envs), pessimism="auto")
    model.learn(64)  # 20 of them at random
    assert not seen
    assert model.policy.pessimism == 1
    model.learn(120, reset_num_timesteps=False)
    assert set(seen) == {50 // n_envs}
    assert float(model.policy.pessimism) == pytest.approx(max(0.5, 1 - 0.2 * len(seen)))
    offline, before = len(seen), float(model.policy.pessimism)
    model.learn_offline(20)
    assert len(seen) == offline
    assert model.policy.pessimism == before


def test_a_number_is_kept(often):
    model = make(pessimism=0.7).learn(200)
    assert model.policy.pessimism == 1
    assert model._learner._pessimism == 0.7


def test_the_learnt_pessimism_is_that_of_the_targets():
    model = make(pessimism="auto")
    model.policy.pessimism.fill_(0.6)
    assert model._learner._pessimism is model.policy.pessimism
    states = []
    for value in ("auto", 0.6, 0.9):
        other = make(pessimism=value)
        other.policy.load_state_dict(model.policy.state_dict())
        other.learn(24)
        states.append(other.policy.critics.state_dict())
    numbers = [np.concatenate([x.numpy().ravel() for x in state.values()]) for state in states]
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-5, atol=1e-6)
    assert np.abs(numbers[0] - numbers[2]).max() > 1e-4


def test_a_saved_model_keeps_what_it_has_learnt(often, tmp_path):
    model = make(pessimism="auto").learn(60)
    model.policy.pessimism.fill_(0.625)
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model")
    assert loaded.policy.pessimism == 0.625
    assert same(loaded.policy.state_dict(), model.policy.state_dict())
