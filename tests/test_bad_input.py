import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import BOX, SpaceEnv, make, make_by_fours, space_envs
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_pwm import PWM
from sb3_pwm import learner as learner_module
from sb3_pwm.checks import check_finite

DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})


class BadEnv(SpaceEnv):
    """Give ``value`` as ``where`` in step number ``bad_step``, or at the first reset after it."""

    def __init__(
        self, where: str, value: float = math.nan, bad_step: int = 30, observation_space: spaces.Space[Any] = BOX
    ) -> None:
        super().__init__(observation_space)
        self.where, self.value, self.bad_step, self.steps = where, value, bad_step, 0

    def spoil(self, observation: Any, where: str) -> Any:
        if self.where == where and self.steps >= self.bad_step:
            (observation["a"] if isinstance(observation, dict) else observation)[1] = self.value
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        return self.spoil(observation, "reset"), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self.where == "reward" and self.steps >= self.bad_step:
            reward = self.value
        where = "terminal" if terminated or truncated else "observation"
        return self.spoil(observation, where), reward, terminated, truncated, info


SELDOM: dict[str, Any] = {"train_freq": 8}  # updates are not what these tests look at, but there must be some


def bad_envs(*args: Any, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: SpaceEnv(*args[3:]), lambda: BadEnv(*args, **kwargs), lambda: SpaceEnv(*args[3:])])


def is_finite(buffer: Any) -> bool:
    arrays = buffer.next_observations, buffer.observations
    parts = [part for array in arrays for part in (array.values() if isinstance(array, dict) else [array])]
    return all(np.isfinite(part).all() for part in [*parts, buffer.rewards, buffer.actions])


def check_usable(model: PWM, good_env: VecEnv, tmp_path: Path) -> None:
    """Save, load, and continue both with a good environment."""
    model.save(tmp_path / "model")
    for other in (model, PWM.load(tmp_path / "model", device="cpu")):
        other.set_env(good_env)
        n_updates = other._n_updates
        other.learn(24, reset_num_timesteps=False)
        assert other._n_updates > n_updates
        assert is_finite(other.replay_buffer)
        assert all(torch.isfinite(p).all() for p in other.policy.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("where", "message", "steps"),
    [
        ("observation", "the observation", 90),
        ("reward", "the reward", 90),
        ("terminal", "the terminal observation", 105),  # the first episode's end behind it
        ("reset", "the observation", 105),
    ],
)
def test_environment_gives_what_is_not_finite(
    tmp_path: Path, where: str, message: str, value: float, steps: int
) -> None:
    model = make(bad_envs(where, value), **SELDOM)
    with pytest.raises(ValueError, match=rf"{message} of environment 1 at step {steps} is {value}"):
        model.learn(200)
    assert model.replay_buffer.n_transitions == steps - 3
    assert is_finite(model.replay_buffer)
    check_usable(model, space_envs(3), tmp_path)


@pytest.mark.parametrize("where", ["observation", "terminal", "reset"])
def test_environment_gives_what_networks_cannot_hold(tmp_path: Path, where: str) -> None:
    doubles = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    model = make(bad_envs(where, 1e39, 30, doubles), **SELDOM)
    with pytest.raises(ValueError, match=r"observation of environment 1 at step .* is 1e\+39, not a finite float32"):
        model.learn(200)
    assert np.abs(model.replay_buffer.observations).max() < 1e39
    check_usable(model, space_envs(3, doubles), tmp_path)


def test_rewards_that_networks_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"the reward of environment 1 at step 3 is 1e\+39"):
        check_finite("reward", np.array([0.0, 1e39]), 3)


@pytest.mark.parametrize(("where", "message"), [("observation", "observation 'a'"), ("terminal", "terminal .* 'a'")])
def test_dict_observation_is_not_finite(tmp_path: Path, where: str, message: str) -> None:
    model = make(bad_envs(where, math.nan, 30, DICT), "MultiInputPolicy", **SELDOM)
    with pytest.raises(ValueError, match=rf"{message} of environment 1 at step"):
        model.learn(200)
    check_usable(model, space_envs(3, DICT), tmp_path)


def test_first_reset_is_not_finite(tmp_path: Path) -> None:
    model = make(bad_envs("reset", math.nan, 0))
    with pytest.raises(ValueError, match="the observation of environment 1 at step 0 is nan"):
        model.learn(200)
    for env in model.env.envs:
        env.where = None
    model.learn(40, reset_num_timesteps=False)  # the environment has recovered: it is reset again
    check_usable(model, space_envs(3), tmp_path)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("where", ["observation", "reward", "reset"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in VecNormalize's own arithmetic
def test_vec_normalize_hides_nothing(tmp_path: Path, where: str, value: float, training: bool) -> None:
    model = make(VecNormalize(bad_envs(where, value), training=training), **SELDOM)
    with pytest.raises(ValueError, match=f"environment 1 at step .* is {value}"):
        model.learn(200)
    assert is_finite(model.replay_buffer)
    check_usable(model, VecNormalize(space_envs(3)), tmp_path)


class BadNoise(ActionNoise):
    """Give NaN in call number 10 of environment 1 (the noise of each environment is a copy)."""

    copies = 0
    bad: bool

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __deepcopy__(self, memo: Any) -> Any:
        copied = BadNoise()
        copied.bad = BadNoise.copies == 1
        BadNoise.copies += 1
        return copied

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.full(2, math.nan if self.bad and self.calls == 10 else 0.1)


def test_action_noise_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BadNoise, "copies", 0)
    model = make(space_envs(3), action_noise=BadNoise())
    seen = []
    monkeypatch.setattr(model.env, "step_async", lambda a, step=model.env.step_async: (seen.append(a), step(a)))
    with pytest.raises(ValueError, match="the action of environment 1 at step 27 is nan"):
        model.learn(200)
    assert model.replay_buffer.n_transitions == 27
    assert np.isfinite(seen).all()  # the environment never saw it
    model.action_noise = None
    check_usable(model, space_envs(3), tmp_path)


def test_policy_gives_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(space_envs(2))
    predict = model.predict

    def bad(*args: Any, **kwargs: Any) -> Any:
        actions, state = predict(*args, **kwargs)
        actions[1, 0] = math.inf
        return actions, state

    monkeypatch.setattr(model, "predict", bad)
    with pytest.raises(ValueError, match="the action of environment 1 at step 20 is inf"):
        model.learn(200)
    assert is_finite(model.replay_buffer)


# --- losses ---


def spoil_loss(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a loss NaN from now on."""
    loss = getattr(learner_module, name)

    def spoilt(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, metrics = loss(*args, **kwargs)
        return value * math.nan, metrics

    monkeypatch.setattr(learner_module, name, spoilt)


@pytest.mark.parametrize(
    ("name", "key"), [("world_model_loss", "world_model"), ("actor_loss", "actor"), ("critic_loss", "critics")]
)
def test_updates_that_are_not_finite_are_skipped(monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    model = make_by_fours(critic_updates=1).learn(40)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    spoil_loss(monkeypatch, name)
    model.learn(36, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]  # new scales come at 80
    assert model.n_skipped_updates == 9
    model.dump_logs()
    assert model.ep_info_buffer is not None
    after = model.policy.state_dict()
    scales = (".features.", ".latent_scale.")
    frozen = [k for k in after if k.startswith(f"{key}.") and not any(part in k for part in scales)]
    assert frozen
    assert all(torch.equal(after[k], before[k]) for k in frozen)
    assert all(torch.isfinite(v).all() for v in after.values())
    monkeypatch.undo()
    model.learn(8, reset_num_timesteps=False)
    assert model.n_skipped_updates == 9
    assert not all(torch.equal(model.policy.state_dict()[k], before[k]) for k in frozen)


@pytest.mark.parametrize(("name", "network"), [("world_model_loss", "model"), ("actor_loss", "actor")])
def test_too_many_skipped_updates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, network: str) -> None:
    monkeypatch.setattr("sb3_pwm.learner.MAX_SKIPPED_UPDATES", 20)
    model = make().learn(40)
    model.gradient_steps = 8
    spoil_loss(monkeypatch, name)  # the other networks' updates go on
    with pytest.raises(FloatingPointError, match=rf"20 updates in a row .* {network}"):
        model.learn(2_000)
    assert model.n_skipped_updates == 20
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())
    monkeypatch.undo()
    model.gradient_steps = 1
    check_usable(model, space_envs(), tmp_path)


def test_skipped_updates_are_counted_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pwm.learner.MAX_SKIPPED_UPDATES", 20)
    model = make().learn(60)
    for _ in range(3):
        with monkeypatch.context() as patch:
            spoil_loss(patch, "world_model_loss")
            model.train(12, 8)
        model.train(1, 8)
    assert model.n_skipped_updates == 36


def test_interrupted_model_is_usable(tmp_path: Path) -> None:
    model = make_by_fours()
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=lambda local, _: local["self"].num_timesteps < 50 or interrupt())
    model.save_replay_buffer(tmp_path / "buffer")
    check_usable(model, space_envs(), tmp_path)
    loaded = PWM.load(tmp_path / "model", env=space_envs())
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(20, callback=CheckpointCallback(10, str(tmp_path)), reset_num_timesteps=False)
    assert loaded.num_timesteps == 70


def interrupt() -> None:
    raise KeyboardInterrupt
