"""When the scales of observations and rewards follow the replay buffer, and when they must not."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import SMALL, SMALL_POLICY, TruthEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pwm import PWM

pytestmark = pytest.mark.filterwarnings("ignore:nothing was learnt")


def truth_envs(n_envs: int = 1) -> DummyVecEnv:
    return DummyVecEnv([partial(TruthEnv, i) for i in range(n_envs)])


def make(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> PWM:
    return PWM(policy, env or truth_envs(), policy_kwargs=SMALL_POLICY, **(SMALL | {"train_freq": 4} | kwargs))


def scales_of(model: PWM) -> tuple[float, float, float, int]:
    """Mean and standard deviation of the number of steps ever taken, scale of rewards, what they stand for."""
    standardizer = model.policy.features.standardizers[0]
    return (
        float(standardizer.mean[1]),
        float(standardizer.std[1]),
        float(model.policy.reward_scale.scale),
        int(model.policy.statistics_size),
    )


@pytest.fixture(scope="module")
def learnt() -> PWM:
    return make().learn(80)


@pytest.fixture
def model(learnt: PWM) -> PWM:
    return copy.deepcopy(learnt)


def test_scales_follow_the_buffer(model: PWM) -> None:
    assert model._n_updates == 16  # after steps 20, 24, ..., 80
    np.testing.assert_allclose(scales_of(model)[:2], (np.mean(range(80)), np.std(range(80))), rtol=1e-5)
    assert scales_of(model)[3] == 80


@pytest.mark.parametrize(("buffer_size", "expected"), [(200, [20, 20, 40, 40, 80]), (40, [20, 20, 40, 40, 40])])
def test_scales_stay_for_as_many_steps_as_they_stand_for(buffer_size: int, expected: list[int]) -> None:
    """At every refresh observations change for networks that had learnt them as they were."""
    model = make(buffer_size=buffer_size)
    sizes, means = [], []
    for steps in (20, 16, 4, 36, 4):
        model.learn(steps, reset_num_timesteps=False)
        sizes.append(scales_of(model)[3])
        means.append(scales_of(model)[0])
    assert sizes == expected
    assert means == pytest.approx([9.5, 9.5, 19.5, 19.5, 39.5 if buffer_size == 200 else 59.5])


def test_a_loaded_model_keeps_its_scales_until_the_new_buffer_holds_as_much(model: PWM, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=truth_envs(), device="cpu")
    loaded.learn(76, reset_num_timesteps=False)
    assert loaded._n_updates > model._n_updates
    assert scales_of(loaded) == scales_of(model)
    loaded.learn(4, reset_num_timesteps=False)
    np.testing.assert_allclose(scales_of(loaded)[0], loaded.replay_buffer.observations[:80, 0, 1].mean(), rtol=1e-5)


def test_a_loaded_model_with_its_buffer_goes_on(model: PWM, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = PWM.load(tmp_path / "model", env=truth_envs(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(76, reset_num_timesteps=False)
    assert scales_of(loaded)[3] == 80
    loaded.learn(4, reset_num_timesteps=False)
    assert scales_of(loaded)[3] == 160


@pytest.mark.parametrize(("n_envs", "buffer_size", "steps"), [(1, 40, 80), (3, 80, 78 + 6)])
def test_a_buffer_that_cannot_hold_as_much_counts_once_it_is_full(
    model: PWM, tmp_path: Path, n_envs: int, buffer_size: int, steps: int
) -> None:
    """The scales would stay for ever otherwise."""
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=truth_envs(n_envs), device="cpu", buffer_size=buffer_size, train_freq=2)
    full = loaded.replay_buffer.buffer_size * n_envs
    loaded.learn(full - 2 * n_envs, reset_num_timesteps=False)
    assert scales_of(loaded) == scales_of(model)
    loaded.learn(steps - full + 2 * n_envs, reset_num_timesteps=False)
    assert scales_of(loaded)[3] == full


def test_other_data_bring_their_own_scales_if_the_world_model_learns_them(model: PWM, tmp_path: Path) -> None:
    model.save_world_model(tmp_path / "world.pt")
    data: Any = make(buffer_size=60, learning_starts=200).learn(60).replay_buffer
    data.observations += 100
    data.next_observations += 100
    other = PWM.from_dataset(
        data, policy_kwargs=SMALL_POLICY | {"n_dynamics": 1}, batch_size=8, sequence_length=3, device="cpu"
    ).load_world_model(tmp_path / "world.pt")
    other.learn_offline(2, pretrain_steps=2)
    np.testing.assert_allclose(scales_of(other)[0], data.observations[:, 0, 1].mean(), rtol=1e-5)


def test_a_world_model_without_scales_leaves_them_to_the_data(tmp_path: Path) -> None:
    make().save_world_model(tmp_path / "world.pt")
    model = make().load_world_model(tmp_path / "world.pt").learn(24)
    assert scales_of(model)[3] == 20


def test_parameters_bring_their_scales(model: PWM) -> None:
    other = make(seed=9)
    other.set_parameters(model.get_parameters())
    other.learn(76)
    assert scales_of(other) == scales_of(model)


def test_a_world_model_brings_its_scales(model: PWM, tmp_path: Path) -> None:
    model.save_world_model(tmp_path / "world.pt")
    other = make(seed=9).load_world_model(tmp_path / "world.pt")
    assert scales_of(other) == scales_of(model)
    other.learn(76)
    assert scales_of(other) == scales_of(model)


def test_learning_the_policy_alone_does_not_change_scales(model: PWM, tmp_path: Path) -> None:
    model.save_world_model(tmp_path / "world.pt")
    more = make(learning_starts=200).learn(100)
    more.save_replay_buffer(tmp_path / "buffer")
    other = make(seed=9).load_world_model(tmp_path / "world.pt")
    other.load_replay_buffer(tmp_path / "buffer")
    other.learn_offline(3)
    assert scales_of(other) == scales_of(model)
    other.learn_offline(3, pretrain_steps=1)
    assert scales_of(other)[3] == 100


def test_a_model_without_scales_takes_them_offline_without_pretraining(tmp_path: Path) -> None:
    make(learning_starts=200).learn(100).save_replay_buffer(tmp_path / "buffer")
    model = make(seed=9)
    model.load_replay_buffer(tmp_path / "buffer")
    model.learn_offline(1, pretrain_steps=0)
    assert scales_of(model)[3] == 100


def test_a_new_vec_normalize_first_sees_observations(model: PWM) -> None:
    """An empty wrapper would scale what is stored by its first observation alone."""
    env = VecNormalize(truth_envs())
    before = model._n_updates
    model.set_env(env)
    model.learn(16, reset_num_timesteps=False)
    assert model._n_updates == before
    model.learn(8, reset_num_timesteps=False)
    assert model._n_updates == before + 2
    assert int(env.ret_rms.count) == 24
    mean, std = scales_of(model)[:2]
    assert abs(mean) < 9  # nearly all is clipped at -10 or 10 otherwise
    assert std > 0.5


def test_a_vec_normalize_with_statistics_is_made_up_for_at_once(model: PWM) -> None:
    env: Any = VecNormalize(truth_envs(), clip_obs=1e9, clip_reward=1e9)
    env.obs_rms.mean[:], env.obs_rms.var[:] = 5, 100
    env.training = False
    raw = torch.as_tensor(model.replay_buffer.observations[:80, 0])
    before = model.policy.features.standardizers[0](raw)
    model.set_env(env)
    model.learn(4, reset_num_timesteps=False)
    after = model.policy.features.standardizers[0](torch.as_tensor(env.normalize_obs(raw.numpy())))
    np.testing.assert_allclose(before[:, 1], after[:, 1], atol=0.2)  # 4 more steps have come


class InOtherUnits(gym.ObservationWrapper[Any, Any, Any]):
    """The same environment with ``unit * observation + offset``."""

    def __init__(self, env: Any, unit: float, offset: float) -> None:
        super().__init__(env)
        self.unit, self.offset = unit, offset
        self.observation_space = self._as_space(env.observation_space)

    def _as_space(self, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return spaces.Dict({key: self._as_space(part) for key, part in space.items()})
        return spaces.Box(-np.inf, np.inf, space.shape, np.float64)

    def observation(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {key: self.observation(part) for key, part in observation.items()}
        return observation.astype(np.float64) * self.unit + self.offset


@pytest.mark.parametrize(("unit", "offset"), [(1e-5, 0), (1e-3, 0), (1e6, 0), (1, 5e7), (1, 1.7e9)])
@pytest.mark.parametrize("as_dict", [False, True])
def test_units_and_offsets_of_observations_do_not_matter(unit: float, offset: float, as_dict: bool) -> None:
    """They are standardised before they are cast, in learning and in acting."""
    env = InOtherUnits(TruthEnv(as_dict=as_dict), unit, offset)
    model = make(env, policy="MultiInputPolicy" if as_dict else "MlpPolicy").learn(40)
    stored = model.replay_buffer.observations
    stored = np.concatenate([stored["place"], stored["rest"]], -1) if as_dict else stored
    truth = (stored[:40, 0] - offset) / unit
    with torch.no_grad():
        features = model.policy.features(model.replay_buffer.statistics_sample()).numpy()
    varies = np.array([False, True, True, False, True])  # not the number of the environment, nor the end
    expected = (truth - truth.mean(0))[:, varies] / truth.std(0)[varies]
    np.testing.assert_allclose(features[:, varies], expected, atol=1e-4)
    assert np.abs(features[:, ~varies]).max() < 1e-6
    window: Any = model.sequences.spread_sequences(40, 1)
    first = {key: part[0] for key, part in window.observations.items()} if as_dict else window.observations[0]
    np.testing.assert_array_equal(model.policy.features(first).detach(), features)
    with torch.no_grad():
        own, _ = model.policy.obs_to_tensor(
            {key: part[:40, 0] for key, part in model.replay_buffer.observations.items()} if as_dict else stored[:40, 0]
        )
        np.testing.assert_array_equal(model.policy.features(own), features)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_rare_rewards_keep_a_steady_scale(n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of the stored rewards would miss them now and then."""
    monkeypatch.setattr("sb3_pwm.buffers.STATISTICS_ROWS", 10)
    model = make(truth_envs(n_envs), buffer_size=400 * n_envs)
    buffer = model.sequences
    buffer.pos = 300
    buffer.rewards[[7, 150]] = 1
    for size in range(300, 400):
        buffer.pos = size
        model._take_scales()
        share = 2 / size
        np.testing.assert_allclose(float(model.policy.reward_scale.scale), (share * (1 - share)) ** 0.5, rtol=1e-5)
