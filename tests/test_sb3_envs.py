from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import BOX, MIXED, SpaceEnv, count_updates, space_envs, truth_envs
from helpers import make_by_fours as make
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize, VecTransposeImage

from sb3_pwm import PWM, CnnPolicy

TINY_EXTRACTOR = {
    "CnnPolicy": {"features_extractor_kwargs": {"features_dim": 8}},
    "MultiInputPolicy": {"features_extractor_kwargs": {"cnn_output_dim": 8}},
}


def finite(model: PWM) -> bool:
    return all(torch.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize(
    "env",
    [
        "Pendulum-v1",
        gym.make("Pendulum-v1"),
        Monitor(gym.make("Pendulum-v1")),
        DummyVecEnv([lambda: gym.make("Pendulum-v1")]),
    ],
    ids=["id", "object", "monitor", "vector"],
)
def test_kinds_of_environments(env: Any) -> None:
    model = make(env).learn(48)
    assert model.num_timesteps == 48
    assert model._n_updates == 8
    mean: Any = evaluate_policy(model, Monitor(gym.make("Pendulum-v1")), n_eval_episodes=1)[0]
    assert mean < 0


@pytest.mark.parametrize(("kind", "kwargs"), [(DummyVecEnv, {}), (SubprocVecEnv, {"start_method": "fork"})])
def test_several_environments(kind: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    env = kind([lambda: Monitor(SpaceEnv()) for _ in range(3)], **kwargs)
    model: Any = make(env, gradient_steps=-1).learn(60)
    assert model.num_timesteps == 60
    assert model.replay_buffer.dones.shape == (500 // 3, 3)
    assert model._n_updates == 60 - 12  # 12 steps per collection; as many updates from the second on
    assert len(model.ep_info_buffer) == 6
    env.close()


# --- spaces ---


@pytest.mark.parametrize(
    ("space", "policy"),
    [
        (spaces.Box(-5, 5, (3, 4), np.float32), "MlpPolicy"),
        (spaces.Box(-1e3, 1e3, (3,), np.float64), "MlpPolicy"),
        (spaces.Box(-5, 5, (3,), np.int32), "MlpPolicy"),
        (spaces.Discrete(4), "MlpPolicy"),
        (spaces.MultiDiscrete([2, 3]), "MlpPolicy"),
        (spaces.MultiBinary(4), "MlpPolicy"),
        (spaces.Box(0, 255, (36, 40, 3), np.uint8), "CnnPolicy"),
        (spaces.Box(0, 255, (1, 36, 36), np.uint8), "CnnPolicy"),
        (MIXED, "MultiInputPolicy"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "MultiInputPolicy"),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_observation_spaces(space: spaces.Space[Any], policy: str, n_envs: int) -> None:
    model = make(space_envs(n_envs, space), policy, policy_kwargs=TINY_EXTRACTOR.get(policy)).learn(40)
    assert model._n_updates > 0
    assert finite(model)
    vec_env = model.get_env()
    batch: Any = vec_env.reset()
    one = {key: value[0] for key, value in batch.items()} if isinstance(batch, dict) else batch[0]
    for deterministic in (True, False):
        actions, state = model.predict(batch, deterministic=deterministic)
        assert actions.shape == (n_envs, 2)
        assert state is None
        assert model.predict(one, deterministic=deterministic)[0].shape == (2,)
    actions = model.predict(batch, deterministic=True)[0]
    np.testing.assert_array_equal(model.predict(batch, deterministic=True)[0], actions)
    np.testing.assert_allclose(model.predict(one, deterministic=True)[0], actions[0], atol=1e-5)
    assert not np.array_equal(model.predict(batch)[0], model.predict(batch)[0])


def test_images_are_neither_standardized_nor_copied_as_floats() -> None:
    space = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    model = make(space_envs(1, space), "CnnPolicy", policy_kwargs=TINY_EXTRACTOR["CnnPolicy"]).learn(24)
    assert isinstance(model.policy, CnnPolicy)
    assert isinstance(model.get_env(), VecTransposeImage)
    assert model.replay_buffer.observations.dtype == np.uint8
    assert model._sample(8).observations.shape == (4, 8, 3, 36, 40)
    assert not model.policy.features.keys
    seen = []
    model.policy.features.extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.predict(np.full((3, 36, 40), 255, np.uint8))
    assert torch.equal(seen[0], torch.ones(1, 3, 36, 40))


@pytest.mark.parametrize(
    ("policy", "space"), [("CnnPolicy", spaces.Box(0, 255, (36, 40, 3), np.uint8)), ("MultiInputPolicy", MIXED)]
)
def test_encoders_that_see_images_have_a_lower_learning_rate(
    policy: str, space: spaces.Space[Any], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"policy_kwargs": TINY_EXTRACTOR[policy], "model_learning_rate": 1e-2}
    model = make(space_envs(1, space), policy, **settings).learn(24)
    model.save(tmp_path / "model")
    for each in (model, PWM.load(tmp_path / "model", device="cpu")):
        rest, slow = each.policy.model_optimizer.param_groups
        assert (rest["lr"], slow["lr"]) == (1e-2, pytest.approx(3e-3))
        world_model = each.policy.world_model
        of_encoder = {*world_model.features.parameters(), *world_model.encoder.parameters()}
        assert set(slow["params"]) == of_encoder
        assert set(rest["params"]) == set(world_model.parameters()) - of_encoder


def test_encoders_of_vectors_have_the_models_learning_rate() -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})
    model = make(space_envs(1, space), "MultiInputPolicy")
    [group] = model.policy.model_optimizer.param_groups
    assert [*group["params"]] == [*model.policy.world_model.parameters()]


def test_only_vectors_of_dict_observations_are_standardized() -> None:
    model = make(space_envs(1, MIXED), "MultiInputPolicy", policy_kwargs=TINY_EXTRACTOR["MultiInputPolicy"]).learn(40)
    features = model.policy.features
    assert features.keys == ["vector"]
    stored = model.replay_buffer.observations["vector"][:40, 0]  # twice what there was when updates began
    np.testing.assert_allclose(features.standardizers[0].mean, stored.mean(0), rtol=1e-5)
    np.testing.assert_allclose(features.standardizers[0].std, stored.std(0), rtol=1e-5)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(np.array([-3, 0], np.float32), np.array([1, 10], np.float32)),
        spaces.Box(-2, 5, (2, 3), np.float32),
        spaces.Box(-2, 5, (1,), np.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_action_spaces(space: Any, n_envs: int) -> None:
    size = int(np.prod(space.shape))
    noise = NormalActionNoise(np.zeros(space.shape), np.full(space.shape, 0.5))
    model = make(space_envs(n_envs, action_space=space), action_noise=noise).learn(40)
    stored = model.replay_buffer.actions[: 40 // n_envs]
    assert stored.shape == (40 // n_envs, n_envs, size)
    assert -1 <= stored.min() < -0.5 < 0.5 < stored.max() <= 1
    mode = torch.linspace(-0.9, 0.9, size)
    last: Any = model.policy.actor.net[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias[:size] = torch.atanh(mode)
    expected = space.low + (mode.numpy().reshape(space.shape) + 1) / 2 * (space.high - space.low)
    actions, _ = model.predict(np.random.randn(4, 3), deterministic=True)
    np.testing.assert_allclose(actions, np.broadcast_to(expected, (4, *space.shape)), rtol=1e-4, atol=1e-5)


def test_observations_are_not_mixed_up_with_the_gym_api() -> None:
    model = make()
    env: Any = SpaceEnv()
    with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
        model.predict(env.reset())
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        model.predict(np.zeros(7))


# --- wrappers and noise ---


def test_statistics_of_observations_and_rewards() -> None:
    model = make(truth_envs(2)).learn(40)
    buffer = model.replay_buffer
    rows = slice(0, 12)  # 24 steps had been collected when updates began, and too few since to look again
    values = buffer.observations[rows].reshape(-1, 5)
    np.testing.assert_allclose(model.policy.features.standardizers[0].mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.policy.features.standardizers[0].std, values.std(0), rtol=1e-5)
    np.testing.assert_allclose(model.policy.reward_scale.scale, buffer.rewards[rows].std(), rtol=1e-5)
    model.train_freq = model.train_freq._replace(frequency=25)
    model.learn(400, reset_num_timesteps=False)
    values = buffer.observations[: int(model.policy.statistics_size) // 2].reshape(-1, 5)
    assert len(values) == 390  # what there was when the buffer had last doubled
    np.testing.assert_allclose(model.policy.features.standardizers[0].mean, values.mean(0), rtol=1e-5)


def test_vec_normalize_normalizes_what_is_learnt_and_not_what_is_stored() -> None:
    env: Any = VecNormalize(truth_envs(2), norm_obs=True, norm_reward=True, clip_obs=1e9, clip_reward=1e9)
    model = make(env).learn(40)
    buffer = model.replay_buffer
    assert buffer.observations[:20, 0, 1].tolist() == list(range(20))  # as the environment gives them
    assert buffer.rewards[:20, 0].tolist() == list(range(1, 21))
    ends = buffer.next_observations[:20][buffer.dones[:20] == 1]
    np.testing.assert_allclose(ends[:, 3], 1 + ends[:, 2] % 2, rtol=1e-3)  # the observation before the reset
    np.random.seed(0)
    samples: Any = model._sample(8)
    np.random.seed(0)
    raw: Any = buffer.sample_sequences(8, 3)
    np.testing.assert_allclose(samples.observations, env.normalize_obs(raw.observations.numpy()), rtol=1e-5)
    np.testing.assert_allclose(samples.rewards, env.normalize_reward(raw.rewards.numpy()), rtol=1e-5)
    assert not torch.equal(samples.rewards, raw.rewards)
    observations, rewards = buffer.statistics_sample(env), buffer.all_rewards(env)
    np.testing.assert_allclose(observations, env.normalize_obs(buffer.observations[:20].reshape(-1, 5)), rtol=1e-5)
    np.testing.assert_allclose(rewards, env.normalize_reward(buffer.rewards[:20].flatten()), rtol=1e-5)


def test_vec_normalize_keeps_policy_statistics_near_one() -> None:
    model = make(VecNormalize(truth_envs()), learning_starts=100).learn(104)
    standardizer, scale = model.policy.features.standardizers[0], model.policy.reward_scale.scale
    assert standardizer.mean[1].abs() < 0.3
    assert 0.5 < standardizer.std[1] < 2
    assert scale < 5 < make(truth_envs(), learning_starts=100).learn(104).policy.reward_scale.scale


@pytest.mark.parametrize(
    ("n_envs", "noise"),
    [
        (1, NormalActionNoise(np.zeros(2), np.full(2, 0.3))),
        (2, OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3))),
        (2, VectorizedActionNoise(NormalActionNoise(np.zeros(2), np.full(2, 0.3)), 2)),
    ],
)
@pytest.mark.filterwarnings("ignore:nothing was learnt")
def test_action_noise(n_envs: int, noise: ActionNoise) -> None:
    actions = {}
    for given in (None, noise):
        model = make(space_envs(n_envs), action_noise=given).learn(16)
        actions[given] = model.replay_buffer.actions[: 16 // n_envs].copy()
    # The random actions of the start are the same; the noise comes on top of them.
    assert not np.array_equal(actions[None], actions[noise])
    assert np.abs(actions[None] - actions[noise]).mean() < 0.5


def test_new_environment() -> None:
    model: Any = make(space_envs(2)).learn(40)
    other = space_envs(2, length=3)
    model.set_env(other)
    assert model.get_env() is other
    model.learn(20, reset_num_timesteps=False)
    assert model.ep_info_buffer[-1]["l"] == 3
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(space_envs(2, spaces.Box(-1, 1, (4,))))
    model.learn(20, reset_num_timesteps=False)


def test_evaluation_does_not_disturb_training() -> None:
    model = make(space_envs(1, BOX, length=5)).learn(40)
    counts = count_updates(model)
    returns, lengths = evaluate_policy(model, space_envs(2), n_eval_episodes=4, return_episode_rewards=True)
    assert lengths == [7] * 4
    assert np.isfinite(returns).all()
    assert counts == {"model": 0, "policy": 0}
    model.learn(8, reset_num_timesteps=False)
    assert counts["model"] == 2
