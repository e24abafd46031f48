import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import make, make_by_fours, same, space_envs
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pwm import PWM, ModelGapCallback
from sb3_pwm.diagnostics.start_values import StartValues, follow_episodes, observation_of


def follow(
    tracker: Any,
    steps: list[tuple[float, float, str]],
    value: Callable[..., Any] = lambda observation: float(observation),
) -> None:
    """Give a tracker steps of one environment: (observation, reward, end), end being "", "true" or "time-out"."""
    for observation, reward, end in steps:
        infos = [{"TimeLimit.truncated": end == "time-out", "terminal_observation": np.array(100.0)} if end else {}]
        follow_episodes(tracker, value, np.array([observation]), np.array([reward]), np.array([bool(end)]), infos)


@pytest.mark.parametrize(
    ("end", "expected"),
    [("true", 1 + 0.5 * 2 + 0.25 * 4), ("time-out", 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 100)],
)
def test_return_of_one_episode(end: str, expected: float) -> None:
    tracker = StartValues(0.5, 1, 10)
    follow(tracker, [(6.0, 1, ""), (7.0, 2, ""), (8.0, 4, end)])
    assert list(tracker.finished) == [(6.0, expected)]
    assert tracker.ratio == pytest.approx(6 / expected)


def test_episodes_do_not_leak_into_each_other() -> None:
    tracker = StartValues(0.5, 1, 10)
    follow(tracker, [(6.0, 1, "true"), (7.0, 2, ""), (8.0, 4, "true"), (9.0, 8, "")])
    assert list(tracker.finished) == [(6.0, 1.0), (7.0, 4.0)]
    assert tracker.ratio == pytest.approx(13 / 5)  # of the means, not the mean of the ratios


def test_environments_are_followed_apart() -> None:
    tracker = StartValues(0.5, 3, 10)
    rewards = np.array([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [4.0, 40.0, 400.0]])
    dones = np.array([[False, True, False], [False, False, True], [True, False, False]])
    for t in range(3):
        observations = np.array([[0.0, t], [1.0, t], [2.0, t]])
        infos = [{"terminal_observation": np.zeros(2)} if done else {} for done in dones[t]]
        follow_episodes(tracker, lambda o: 10 * o[0] + o[1], observations, rewards[t], dones[t], infos)
    assert list(tracker.finished) == [(10.0, 10.0), (20.0, 200.0), (0.0, 3.0)]
    assert tracker.starts[1].tolist() == [1.0, 1.0]
    assert tracker.returns[1] == 20 + 0.5 * 40


@pytest.mark.parametrize("last", [{}, {"terminal_observation": None}])
def test_a_time_out_without_its_last_observation_does_not_count(last: dict[str, Any]) -> None:
    tracker = StartValues(0.5, 1, 10)
    infos = [{"TimeLimit.truncated": True} | last]
    follow_episodes(tracker, float, np.array([6.0]), np.array([1.0]), np.array([True]), infos)
    assert not tracker.finished
    follow(tracker, [(7.0, 2, ""), (8.0, 4, "true")])
    assert list(tracker.finished) == [(7.0, 4.0)]


def test_only_the_last_episodes_count() -> None:
    tracker = StartValues(1.0, 1, 2)
    follow(tracker, [(5.0, 1, "true"), (6.0, 2, "true"), (7.0, 3, "true")])
    assert tracker.ratio == pytest.approx(13 / 5)


@pytest.mark.parametrize("steps", [[], [(1.0, 1, "")], [(1.0, 0, "true")], [(1.0, 1, "true"), (1.0, -1, "true")]])
def test_nothing_to_compare(steps: list[tuple[float, float, str]]) -> None:
    tracker = StartValues(0.9, 1, 5)
    follow(tracker, steps)
    assert math.isnan(tracker.ratio)


@pytest.mark.parametrize("as_dict", [False, True])
def test_start_observations_are_copies(as_dict: bool) -> None:
    values = np.arange(6.0).reshape(3, 2)
    observation = observation_of({"a": values} if as_dict else values, 1)
    values[:] = 0
    np.testing.assert_array_equal(observation["a"] if as_dict else observation, [2, 3])


class Clock(gym.Env[Any, Any]):
    """Reward 1 per step; the observation is the time, plus the number of the environment times 10."""

    observation_space = spaces.Box(0, 100, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, end: str, index: int = 0, length: int = 3) -> None:
        self.end, self.index, self.length = end, index, length

    def observe(self) -> np.ndarray:
        return np.array([self.time + 10 * self.index], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over = self.time == self.length
        return self.observe(), 1.0, over and self.end == "true", over and self.end == "time-out", {}


def clocks(end: str, n_envs: int) -> DummyVecEnv:
    return DummyVecEnv([partial(Clock, end, i) for i in range(n_envs)])


@pytest.fixture
def clock_model(monkeypatch: pytest.MonkeyPatch) -> PWM:
    """A model whose critics promise 8 plus the observation."""
    model = make(Clock("true"), gamma=0.5)
    monkeypatch.setattr(model.policy, "predict_values", lambda observations: 8 + observations[:, 0])
    return model


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("end", "n_envs", "expected"),
    [
        ("true", 1, 8 / 1.75),
        ("time-out", 1, 8 / (1.75 + 0.125 * 11)),
        ("true", 2, (8 + 18) / (2 * 1.75)),
        ("time-out", 2, (8 + 18) / (2 * 1.75 + 0.125 * (11 + 21))),
    ],
)
def test_value_calibration(clock_model: PWM, end: str, n_envs: int, expected: float, deterministic: bool) -> None:
    env = clocks(end, n_envs)
    assert clock_model.value_calibration(env, 4, deterministic) == pytest.approx(expected)
    assert clock_model.value_calibration(clocks(end, n_envs).envs[0], 1) == pytest.approx(
        8 / (1.75 + (0.125 * 11 if end == "time-out" else 0))
    )


@pytest.mark.parametrize(
    ("n_episodes", "expected"),
    [
        (4, (8 + 18) / (1 + 1.9375)),  # two of each, although four of the first end before one of the second
        (5, (2 * 8 + 3 * 18) / (2 * 1 + 3 * 1.9375)),  # SB3's evaluate_policy gives the odd one to the last
        (1, 18 / 1.9375),
    ],
)
def test_short_episodes_do_not_count_more(clock_model: PWM, n_episodes: int, expected: float) -> None:
    env = DummyVecEnv([lambda: Clock("true", 0, length=1), lambda: Clock("true", 1, length=5)])
    assert clock_model.value_calibration(env, n_episodes) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "returns", "gap"), [(8, 2, 0.6), (2, 8, -0.6), (3, -1, 1.0), (-1, -2, 1 / 3)])
def test_gap(values: int, returns: int, gap: float) -> None:
    tracker = StartValues(0.5, 1, 10)
    follow(tracker, [(2 * values, returns, "true"), (0.0, returns, "true")])
    assert tracker.gap == pytest.approx(gap)


def test_no_gap_without_episodes() -> None:
    assert math.isnan(StartValues(0.5, 1, 10).gap)


@pytest.mark.parametrize(("promised", "warns"), [(1, False), (3, False), (4, True)])
def test_model_gap_is_logged_and_warned_of(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, promised: int, warns: bool
) -> None:
    model = make(Clock("true"), gamma=0.5, gradient_steps=0, pretrain_steps=0)
    monkeypatch.setattr(model.policy, "predict_values", lambda observations: observations[:, 0] + promised)
    model.learn(7, callback=ModelGapCallback(clocks("true", 1), eval_freq=5, n_eval_episodes=2))
    gap = (promised - 1.75) / (promised + 1.75)
    assert model.logger.name_to_value["eval/model_gap"] == pytest.approx(gap)
    assert model.model_gap(Clock("true"), 1) == pytest.approx(gap)
    assert [str(warning.message)[:22] for warning in recwarn] == (["eval/model_gap is 0.39"] if warns else [])


def test_model_gap_sees_what_the_model_sees() -> None:
    env: Any = VecNormalize(clocks("true", 1))
    callback: Any = ModelGapCallback(VecNormalize(clocks("true", 1), training=False), eval_freq=8, n_eval_episodes=1)
    model = make(env, gamma=0.5, gradient_steps=0, pretrain_steps=0).learn(8, callback=callback)
    assert callback.eval_env.obs_rms.mean == pytest.approx(env.obs_rms.mean)
    assert model.num_timesteps == 8


@pytest.mark.parametrize("learn", ["learn", "learn_offline"])
def test_watching_the_gap_changes_no_training(learn: str) -> None:
    parameters = []
    for callback in (None, ModelGapCallback(Clock("time-out"), eval_freq=3, n_eval_episodes=2)):
        model = make(space_envs(observation_space=spaces.Box(-1, 1, (1,)), action_space=spaces.Box(-1, 1, (1,))))
        model.learn(24)
        getattr(model, learn)(24, callback=callback)
        parameters.append(model.get_parameters())
    assert math.isfinite(model.logger.name_to_value["eval/model_gap"])  # it did evaluate
    assert same(*parameters)


def test_bad_model_gap_callbacks() -> None:
    with pytest.raises(ValueError, match="eval_freq"):
        ModelGapCallback(Clock("true"), eval_freq=0)
    with pytest.raises(ValueError, match="n_eval_episodes"):
        ModelGapCallback(Clock("true"), n_eval_episodes=0)
    with pytest.raises(TypeError, match="SAC"):
        SAC("MlpPolicy", Clock("true"), buffer_size=10).learn(1, callback=ModelGapCallback(Clock("true")))
    model = make(Clock("true"))
    with pytest.raises(TypeError, match="eval_env must be an environment, not str"):
        model.learn(1, callback=ModelGapCallback("Pendulum-v1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eval_env has observation_space=.*; the model's is Box"):
        model.learn(1, callback=ModelGapCallback(gym.make("Pendulum-v1")))
    assert model.num_timesteps == 0


def normalized_clocks(**kwargs: Any) -> VecNormalize:
    """Clocks whose rewards become 1 / 0.5 and whose times t become t / 2, at most 10."""
    env: Any = VecNormalize(clocks("true", 1), **kwargs)
    env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var = np.array([0.0]), np.array([4.0]), np.array(0.25)
    return env


@pytest.fixture
def normalized_clock_model() -> PWM:
    """A model whose critics promise 8 plus the observation, in the units of normalised rewards."""
    model = make(normalized_clocks(), gamma=0.5)
    policy: Any = model.policy
    policy.predict_values = lambda observations: 8 + observations[:, 0]
    return model


@pytest.mark.parametrize("flags", [{}, {"norm_reward": False}, {"norm_obs": False}, {"training": False}])
@pytest.mark.parametrize("end", ["true", "time-out"])
def test_values_and_returns_have_the_units_of_the_training_environment(
    normalized_clock_model: PWM, end: str, flags: dict[str, Any]
) -> None:
    env = VecNormalize(clocks(end, 1), **flags)
    before = {name: getattr(env, name) for name in ("training", "norm_obs", "norm_reward")}
    seen = []
    normalized_clock_model.predict = lambda observations, **_: (seen.append(observations[0, 0]), np.zeros((1, 1)))[::-1]
    ratio = normalized_clock_model.value_calibration(env, 2)
    assert ratio == pytest.approx(8 / (2 * 1.75 + (0.125 * (8 + 1.5) if end == "time-out" else 0)), rel=1e-4)
    assert seen == pytest.approx([0, 0.5, 1, 0, 0.5, 1])
    assert {name: getattr(env, name) for name in before} == before
    assert env.ret_rms.var == 0.25  # the statistics stay, as after SB3's EvalCallback


def test_a_training_environment_with_raw_rewards(clock_model: PWM) -> None:
    env = normalized_clocks(norm_reward=False)
    clock_model.set_env(env)
    assert clock_model.value_calibration(normalized_clocks(), 2) == pytest.approx(8 / 1.75)


def test_evaluation_leaves_the_training_statistics_alone(normalized_clock_model: PWM) -> None:
    env: Any = normalized_clock_model.get_env()
    normalized_clock_model.value_calibration(env, 1)  # as after load(path, env=env)
    assert (env.obs_rms.mean, env.obs_rms.var, env.ret_rms.var) == (0, 4, 0.25)
    assert env.training


@pytest.mark.parametrize("wrapped", [False, True])
def test_other_units_are_refused(clock_model: PWM, normalized_clock_model: PWM, wrapped: bool) -> None:
    model, env = (clock_model, normalized_clocks()) if wrapped else (normalized_clock_model, Clock("true"))
    message = "env has a VecNormalize and the model's" if wrapped else r"wrap it, VecNormalize\(env, training=False\)"
    for measure in (model.value_calibration, model.model_gap):
        with pytest.raises(ValueError, match=message):
            measure(env)
    with pytest.raises(ValueError, match=message):
        model.learn(8, callback=ModelGapCallback(env, eval_freq=8))
    assert model.num_timesteps == 0  # before the first step


def test_value_calibration_leaves_the_model_alone() -> None:
    model = make().learn(40)
    observations, finished = model._last_obs.copy(), list(model._start_values.finished)
    model.value_calibration(space_envs(), 3)
    np.testing.assert_array_equal(model._last_obs, observations)
    assert list(model._start_values.finished) == finished
    assert model.num_timesteps == 40


def test_training_follows_its_own_episodes() -> None:
    model = make_by_fours(clocks("time-out", 2), gamma=0.5, learning_starts=1_000, gradient_steps=0, pretrain_steps=0)
    policy: Any = model.policy
    policy.predict_values = lambda observations: 8 + observations[:, 0]
    model.learn(11 * 2)  # the train_freq makes it 12 steps of each environment: 4 episodes
    assert list(model._start_values.finished) == [(8, 1.75 + 0.125 * 11), (18, 1.75 + 0.125 * 21)] * 4
    model.learn(2, reset_num_timesteps=True)
    assert len(model._start_values.finished) == 2


@pytest.mark.parametrize("critic", ["q", "v"])
def test_values_are_in_units_of_the_environment(critic: Literal["q", "v"]) -> None:
    model = make(critic=critic).learn(40)
    policy = model.policy
    policy.reward_scale.scale.fill_(3.0)
    observations = torch.randn(7, 3)
    torch.manual_seed(0)
    values = policy.predict_values(observations)
    torch.manual_seed(0)
    latents = policy.world_model.encode(observations)
    inputs = (latents, policy.actor.sample(latents)) if critic == "q" else (latents,)
    torch.testing.assert_close(values, 3 * policy.critics(*inputs).mean(0))
    assert values.shape == (7,)
    assert not values.requires_grad


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("3", TypeError)])
def test_numbers_of_episodes(clock_model: PWM, number: Any, error: type[Exception]) -> None:
    for measure in (clock_model.model_gap, clock_model.value_calibration):
        with pytest.raises(error, match="n_episodes"):
            measure(gym.make("Pendulum-v1"), number)
