import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import same
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm import PWM
from sb3_pwm.buffers import sequence_buffer_class
from sb3_pwm.datasets import from_replay_buffer
from sb3_pwm.diagnostics import fitted_q
from sb3_pwm.diagnostics.fitted_q import find_episodes, half_width, hold_out
from sb3_pwm.multitask.tasks import Task, TaskSet
from sb3_pwm.offline import spaces_only
from sb3_pwm.replay.columns import with_columns

GAMMA = 0.5
PLACES = np.eye(4, dtype=np.float32)
BOX, ACTIONS = spaces.Box(-5, 5, (4,), np.float32), spaces.Box(-1, 1, (1,), np.float32)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"N_NETWORKS": 5, "HIDDEN": (32,), "BATCH_SIZE": 64, "RATES": (3e-3, 3e-4)}
    for name, value in values.items():
        monkeypatch.setattr(fitted_q, name, value)


def walk(
    n_episodes: int = 60,
    n_envs: int = 1,
    *,
    noise: float = 0.5,
    timeouts: bool = False,
    kind: Any = None,
    space: spaces.Space[Any] = BOX,
    capacity: int | None = None,
    observe: Callable[..., Any] | None = None,
) -> Any:
    """Three steps from place 0 to place 3, where an episode ends; each earns its random action, and noise."""
    rng = np.random.default_rng(0)
    capacity = 3 * n_episodes + 1 if capacity is None else capacity
    buffer = (kind or sequence_buffer_class(space))(capacity * n_envs, space, ACTIONS, "cpu", n_envs)
    observe = observe or (lambda places: places)
    for _ in range(n_episodes):
        for t in range(3):
            here, there = (observe(np.tile(PLACES[i], (n_envs, 1))) for i in (t, t + 1))
            actions = rng.uniform(-1, 1, (n_envs, 1))
            rewards = actions[:, 0] + noise * rng.normal(size=n_envs)
            infos = [{"TimeLimit.truncated": timeouts and t == 2}] * n_envs
            buffer.add(here, there, actions, rewards, np.full(n_envs, t == 2), infos)
    return buffer


def model_of(data: Any, action: float = 0.5, policy: str = "MlpPolicy", **kwargs: Any) -> PWM:
    """A model that always takes one action, and whose latents tell the places well apart."""
    sizes = {"latent_dim": 16, "net_arch": [16]} | kwargs.pop("policy_kwargs", {})
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "gamma": GAMMA, "batch_size": 8, "policy_kwargs": sizes}
    model = PWM.from_dataset(data, policy, **settings, **kwargs)
    with torch.no_grad():
        for parameter in model.policy.world_model.encoder.parameters():
            parameter.normal_(std=0.7)
        last: Any = model.policy.actor.net[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias[:1] = math.atanh(action)
    return model


def recorded(data: Any) -> Any:
    """The mean discounted return of walks whose episodes are all held out, or all alike."""
    rewards = data.rewards[: data.size()].T.reshape(-1, 3)
    return rewards @ GAMMA ** np.arange(3)


def test_the_interval_holds_the_truth_and_ranks_policies() -> None:
    data = walk()
    good, bad = (model_of(data, action).estimate_return(data, n_updates=60) for action in (0.5, -0.5))
    truth = 0.5 * (1 + 0.5 + 0.25)
    assert good.low < truth < good.high
    assert bad.low < -truth < bad.high
    assert bad.high < good.low
    assert good.low < good.mean < good.high < good.mean + 0.5
    assert bad.mean < good.data_return == bad.data_return < good.mean  # the data's actions are 0 on average
    assert good.n_episodes == 15


def test_what_a_time_out_cuts_off_is_counted() -> None:
    """One place for ever, where every step earns 0.5, is worth 0.5 / (1 - gamma) = 1; 0.75 if time-outs were ends."""
    data = walk(noise=0, timeouts=True, observe=lambda places: 0 * places)
    data.rewards[:] = 0.5
    estimate = model_of(data).estimate_return(data, n_updates=80)
    assert estimate.mean == pytest.approx(1, abs=0.1)
    # three recorded rewards, and what the policy earns from there: 0.5 + 0.25 + 0.125 + 0.125 * 1
    assert estimate.data_return == pytest.approx(1, abs=0.02)


def test_noise_makes_the_interval_wider() -> None:
    data, noisy = walk(noise=0), walk(noise=3)
    widths = [e.high - e.low for e in (model_of(data).estimate_return(d, n_updates=30) for d in (data, noisy))]
    assert widths[1] > 2 * widths[0]


def test_half_width_by_hand() -> None:
    networks = np.repeat([[0.0], [0], [2], [2]], 4, axis=1)  # standard deviation sqrt(4 / 3)
    assert half_width(networks, 4) == pytest.approx(3.18 * math.sqrt(4 / 3) * math.sqrt(4 / 3))
    assert half_width(networks.T, 4) == pytest.approx(3.18 * math.sqrt(4 / 3) / math.sqrt(4))
    assert half_width(networks + networks.T, 4) == pytest.approx(3.18 * math.hypot(4 / 3, math.sqrt(1 / 3)))
    many = np.tile([0.0, 2.0], (8, 50))  # the 100 start states' deviation is sqrt(100 / 99)
    assert half_width(many, 90) == pytest.approx(2.36 * math.sqrt(100 / 99) / 10)


def test_episodes_by_hand() -> None:
    data = walk(n_episodes=2, n_envs=2)
    data.dones[4, 1] = 1  # column 1: 3, 2 and 1 steps; column 0: 3 and 3
    episodes = find_episodes(data)
    assert episodes.first.tolist() == [0, 3, 6, 9, 11]
    assert episodes.length.tolist() == [3, 3, 3, 2, 1]
    assert episodes.whole.all()
    data.dones[5] = 0  # the newest steps
    assert find_episodes(data).whole.tolist() == [True, False, True, True, False]


def test_what_another_number_of_environments_cuts_is_not_whole() -> None:
    data = walk(n_episodes=3)  # 9 steps; the first of 5 + 4 is left out
    halves = with_columns(data, 2)
    episodes = find_episodes(halves)
    assert episodes.length.tolist() == [2, 2, 1, 3]
    assert episodes.whole.tolist() == [False, True, False, True]  # the second is cut off after two steps, by a time-out
    joined = find_episodes(with_columns(halves, 1))  # the cut stays known, and a beginning that was left out
    assert joined.length.tolist() == [2, 2, 1, 3]
    assert joined.whole.tolist() == [False, True, False, True]
    full = with_columns(walk(n_episodes=3, n_envs=2, capacity=7), 1)  # each column: 1 of an episode, 3 and 3
    assert find_episodes(full).length.tolist() == [1, 3, 3, 1, 3, 3]
    assert find_episodes(full).whole.tolist() == [False, True, True, False, True, True]
    assert with_columns(walk(n_episodes=1), 4).size() == 0
    for t in [0, 1, 2] * 3:  # over the oldest steps: what was cut is gone
        here, there, last = PLACES[None, t].repeat(2, 0), PLACES[None, t + 1].repeat(2, 0), np.full(2, t == 2)
        halves.add(here, there, np.zeros((2, 1)), np.zeros(2), last, [{}, {}])
    assert find_episodes(halves).length.tolist() == [2, 3] * 2
    assert find_episodes(halves).whole.tolist() == [False, True] * 2
    halves = with_columns(data, 2)
    imported = find_episodes(from_replay_buffer(walk(n_episodes=3, n_envs=2, capacity=7)))
    assert imported.length.tolist() == [1, 3, 3, 1, 3, 3]
    assert imported.whole.tolist() == [False, True, True, False, True, True]
    imported = find_episodes(from_replay_buffer(halves))
    assert imported.whole.tolist() == [False, True, False, True]


def test_a_full_buffer_may_have_lost_a_beginning() -> None:
    data = walk(n_episodes=3, capacity=7)  # steps 2 ... 8 are left; the third episode begins in row 6
    episodes = find_episodes(data)
    assert episodes.first.tolist() == [0, 1, 4]
    assert episodes.length.tolist() == [1, 3, 3]
    assert episodes.whole.tolist() == [False, True, True]


def test_only_whole_episodes_are_held_out() -> None:
    whole = np.arange(50) % 5 > 0
    fitted, held_out = hold_out(whole, np.random.default_rng(0))
    assert sorted([*fitted, *held_out]) == list(range(50))
    assert len(held_out) == 10
    assert whole[held_out].all()
    assert len(hold_out(np.ones(8, bool), np.random.default_rng(0))[1]) == 4


def as_dict(places: np.ndarray) -> dict[str, np.ndarray]:
    return {"place": places[:, :2], "rest": places[:, 2:]}


DICT = spaces.Dict({key: spaces.Box(-5, 5, (2,), np.float32) for key in ("place", "rest")})


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        ({}, "MlpPolicy"),
        ({"n_envs": 3}, "MlpPolicy"),
        ({"capacity": 31}, "MlpPolicy"),
        ({"kind": ReplayBuffer}, "MlpPolicy"),
        ({"n_envs": 2, "space": DICT, "observe": as_dict}, "MultiInputPolicy"),
        ({"kind": DictReplayBuffer, "space": DICT, "observe": as_dict}, "MultiInputPolicy"),
    ],
)
def test_any_data_of_the_models_spaces(arguments: dict[str, Any], policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = walk(n_episodes=12, **arguments)
    data.rewards[:] += np.arange(data.n_envs)  # as if environments differed
    model = model_of(walk(space=arguments.get("space", BOX), observe=arguments.get("observe")), policy=policy)
    monkeypatch.setattr(fitted_q, "hold_out", lambda whole, rng: (np.flatnonzero(whole), np.flatnonzero(whole)))
    estimate = model.estimate_return(data, n_updates=1)
    assert np.isfinite(estimate).all()
    if "capacity" not in arguments:
        assert estimate.data_return == pytest.approx(recorded(data).mean(), rel=1e-5)
        assert estimate.n_episodes == 12 * data.n_envs


def test_the_stochastic_policy_and_v_critics() -> None:
    data = walk()
    model = model_of(data, critic="v")
    last: Any = model.policy.actor.net[-1]
    with torch.no_grad():
        last.bias[1] = 9  # standard deviation e^2: nearly as often -1 as 1
    first, second = (model.estimate_return(data, n_updates=30, deterministic=d) for d in (True, False))
    assert second.mean < first.mean - 0.3


def test_observations_are_normalized_and_rewards_are_not() -> None:
    data = walk()
    expected = model_of(data).estimate_return(data, n_updates=5)
    shifted = walk(observe=lambda places: 2 * places + 3)
    model = model_of(shifted)
    normalizer: Any = VecNormalize(spaces_only(BOX, ACTIONS, 1), gamma=GAMMA)
    normalizer.obs_rms.mean, normalizer.obs_rms.var = np.full(4, 3.0), np.full(4, 4.0)
    normalizer.ret_rms.var = np.array(1e8)
    model._vec_normalize_env = normalizer
    assert model.estimate_return(shifted, n_updates=5) == pytest.approx(expected, rel=1e-3)


def test_nothing_is_changed_and_the_seed_decides() -> None:
    data = walk(n_episodes=10)
    model = model_of(data)  # without an environment: stepping or resetting it would raise
    stored = copy.deepcopy({name: value for name, value in vars(data).items() if isinstance(value, np.ndarray)})
    settings: dict[str, Any] = dict(vars(data))
    state = copy.deepcopy((model.policy.state_dict(), [o.state_dict() for o in model.policy.optimizers.values()]))
    numbers, drawn = torch.get_rng_state(), np.random.get_state()
    first = model.estimate_return(data, n_updates=3)
    assert same((model.policy.state_dict(), [o.state_dict() for o in model.policy.optimizers.values()]), state)
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert torch.equal(numbers, torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(drawn, np.random.get_state(), strict=True))
    assert all(np.array_equal(value, getattr(data, name)) for name, value in stored.items())
    assert all(vars(data)[name] is value for name, value in settings.items())
    torch.rand(7), np.random.rand(7)
    assert model.estimate_return(data, n_updates=3) == first
    assert model.estimate_return(data, n_updates=3, seed=1) != first


def test_several_tasks_are_refused_and_one_is_not() -> None:
    tasks = TaskSet([Task("four", None, 4, 1), Task("five", None, 5, 1)])

    def observe(places: np.ndarray, task: int) -> dict[str, Any]:
        return {"observation": np.pad(places, ((0, 0), (0, 1))), "task": np.full((1, 1), task)}

    kwargs: dict[str, Any] = {"space": tasks.observation_space, "n_episodes": 12}
    data = walk(observe=lambda places: observe(places, 0), **kwargs)
    model = model_of(data, policy="MultiTaskPolicy", policy_kwargs={"task_set": tasks})
    assert np.isfinite(model.estimate_return(data, n_updates=1)).all()
    data.observations["task"][3:6] = 1
    with pytest.raises(ValueError, match="several tasks"):
        model.estimate_return(data, n_updates=1)


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        (object(), {}, TypeError, "ReplayBuffer, not object"),
        (walk(space=spaces.Box(-9, 9, (4,), np.float32)), {}, ValueError, "observation_space is Box"),
        (walk(n_episodes=0), {}, ValueError, "empty"),
        (walk(n_episodes=7), {}, ValueError, "7 whole episodes; needed: 8 or more"),
        (walk(n_episodes=20, capacity=24), {}, ValueError, "7 whole episodes; needed: 8"),
        (walk(n_episodes=8), {"n_updates": 0}, ValueError, "n_updates=0"),
        (walk(n_episodes=8), {"n_updates": 1.5}, TypeError, "n_updates must be an integer"),
        (walk(n_episodes=8), {"seed": -1}, ValueError, "seed=-1"),
        (walk(n_episodes=8, noise=np.inf), {"n_updates": 1}, FloatingPointError, "not finite"),
    ],
)
def test_bad_input(data: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model_of(walk()).estimate_return(data, **arguments)


def test_updates_grow_with_the_discounts_horizon() -> None:
    assert [fitted_q.default_updates(gamma) for gamma in (0.9, 0.995, 0.999, 1)] == [5_000, 5_000, 25_000, 25_000]
