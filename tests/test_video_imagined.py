"""What the model imagines beside what happened."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SMALL_POLICY, PictureEnv, make
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pwm import PWM
from sb3_pwm.simulator.mujoco_state import set_observed_state, skipped_positions, state_layout
from sb3_pwm.video import record_imagination
from sb3_pwm.video.decoder import LatentDecoder, fit_decoder
from sb3_pwm.video.frames import read_video
from sb3_pwm.video.imagined import DrawnOpenLoop, encode, fit_latent_decoder

STATEFUL = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "Swimmer-v5",
    "InvertedPendulum-v5",
)
SMALL: dict[str, Any] = {"horizon": 3, "max_steps": 7, "decoder_updates": 20, "seed": 0}


def hopper() -> gym.Env:
    return gym.make("Hopper-v5", render_mode="rgb_array", width=96, height=64)


@pytest.fixture(scope="module")
def model() -> PWM:
    return PWM("MlpPolicy", "Hopper-v5", learning_starts=1_000, pretrain_steps=50, seed=0, device="cpu").learn(1_000)


@pytest.mark.parametrize("env_id", STATEFUL)
def test_the_state_of_an_observation(env_id: str) -> None:
    real, other = gym.make(env_id), gym.make(env_id)
    layout = state_layout(real)
    real.reset(seed=1)
    other.reset(seed=2)
    real.action_space.seed(0)
    for _ in range(5):
        observation, *_ = real.step(real.action_space.sample())
        set_observed_state(other, layout, observation, skipped_positions(real, layout))
        shown = other.unwrapped._get_obs()  # type: ignore[attr-defined]
        np.testing.assert_allclose(shown[: layout.size], observation[: layout.size], atol=1e-12)
        np.testing.assert_allclose(other.unwrapped.data.qpos, real.unwrapped.data.qpos, atol=1e-12)  # type: ignore[attr-defined]
    assert layout.size <= len(observation)
    real.close()
    other.close()


def test_environments_whose_observation_is_not_their_state() -> None:
    class Shifted(gym.ObservationWrapper[Any, Any, Any]):
        def observation(self, observation: np.ndarray) -> np.ndarray:
            return observation + 1

    for env, message in (
        (gym.make("Pendulum-v1"), "the observation of Pendulum-v1 does not say where it holds"),
        (gym.make("Reacher-v5"), "the observation of Reacher-v5 does not say where it holds"),
        (Shifted(gym.make("Hopper-v5")), "not its state; a wrapper changes it"),
        (gym.wrappers.FrameStackObservation(gym.make("Hopper-v5"), 2), "not its state; a wrapper changes it"),
    ):
        with pytest.raises(ValueError, match=message):
            state_layout(env)


@pytest.mark.usefixtures("mujoco_renderer")
def test_every_step_is_a_pair_of_frames(model: PWM, tmp_path: Path) -> None:
    path = tmp_path / "new" / "imagined.mp4"
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    episodes = record_imagination(model, hopper, path, n_episodes=2, **SMALL)
    fps, read = read_video(path)
    frames = list(read)
    assert fps == 125
    assert len(frames) == 2 * 8
    assert frames[0].shape == (64, 96 + 2 + 96, 3)
    for episode in episodes:
        assert episode.errors.shape == (7,)
        assert (episode.errors > 0).all()
        assert episode.imagined_return != episode.episode_return
        assert episode.decoder_r2.shape == (11,)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.usefixtures("mujoco_renderer")
def test_the_horizon_says_when_the_truth_is_shown_again(model: PWM, tmp_path: Path) -> None:
    errors = {
        horizon: record_imagination(model, hopper, tmp_path / "v.mp4", **(SMALL | {"horizon": horizon}))[0].errors
        for horizon in (1, 3, 7)
    }
    np.testing.assert_allclose(errors[1][[0, 3, 6]], errors[3][[0, 3, 6]], rtol=1e-4)  # one step ahead in both
    np.testing.assert_allclose(errors[3][:3], errors[7][:3], rtol=1e-4)
    assert (np.abs(errors[1] - errors[7])[1:] > 1e-4).all()


class PerfectDecoder(LatentDecoder):
    """Remembers which observation each latent came from."""

    def __init__(self, observation: np.ndarray) -> None:
        super().__init__(1, torch.zeros(11), torch.ones(11), [])
        self.observation = torch.as_tensor(observation, dtype=torch.float32)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.observation[None]


def test_the_root_starts_from_the_truth_and_follows_the_velocity(model: PWM) -> None:
    real, imagined = gym.make("Hopper-v5"), gym.make("Hopper-v5")
    layout = state_layout(real)
    fitted = fit_latent_decoder(model, "Hopper-v5", updates=2)
    prediction = DrawnOpenLoop(model, fitted, layout, real, imagined)
    observation, _ = real.reset(seed=0)
    imagined.reset(seed=1)
    real.unwrapped.data.qpos[0] = 4.0  # type: ignore[attr-defined]
    observation[5] = 2.0  # velocity of x
    prediction.fitted = fitted._replace(decoder=PerfectDecoder(observation))
    prediction.synchronize(observation)
    data = imagined.unwrapped.data  # type: ignore[attr-defined]
    np.testing.assert_allclose(data.qpos, [4.0, *observation[:5]], rtol=1e-6)
    np.testing.assert_allclose(data.qvel, observation[5:], rtol=1e-6)
    for _ in range(3):
        prediction.step(np.zeros(3, np.float32))
    assert data.qpos[0] == pytest.approx(4.0 + 3 * 2.0 * 0.008)


def test_predicted_rewards_are_in_the_units_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pwm.video.imagined.POLICY_STEPS", 100)
    normalizer = VecNormalize(DummyVecEnv([lambda: gym.make("Hopper-v5")]))
    model = make(normalizer).learn(40)
    real = gym.make("Hopper-v5")
    layout = state_layout(real)
    observation, _ = real.reset(seed=0)
    imagined = gym.make("Hopper-v5")
    imagined.reset(seed=0)
    fitted = fit_latent_decoder(model, "Hopper-v5", updates=1)
    prediction = DrawnOpenLoop(model, fitted, layout, real, imagined)
    prediction.synchronize(observation)
    action = np.array([0.5, -0.5, 1.0], np.float32)
    normalized: Any = normalizer.normalize_obs(observation)
    with torch.no_grad():
        seen = torch.as_tensor(normalized[None], dtype=torch.float32)
        latents = model.policy.world_model.encode(seen)
        reward = (
            model.policy.world_model.rewards(latents, torch.as_tensor(action[None])) * model.policy.reward_scale.scale
        )
    expected = float(reward) * np.sqrt(normalizer.ret_rms.var + normalizer.epsilon)
    assert prediction.step(action) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(encode(model, observation[None]), latents)


def test_dynamics_networks_take_turns_as_in_imagination() -> None:
    model = make("Hopper-v5", policy_kwargs={**SMALL_POLICY, "n_dynamics": 3})
    real, imagined = gym.make("Hopper-v5"), gym.make("Hopper-v5")
    observation, _ = real.reset(seed=0)
    imagined.reset(seed=0)
    fitted = fit_decoder(torch.rand(100, 16), torch.randn(100, 11), updates=1)
    prediction = DrawnOpenLoop(model, fitted, state_layout(real), real, imagined)
    action = np.array([0.5, -0.5, 1.0], np.float32)
    for _ in range(2):
        prediction.synchronize(observation)
        expected = prediction.latents
        for step in range(4):
            prediction.step(action)
            with torch.no_grad():
                expected = model.policy.world_model._next_latents(step % 3, expected, torch.as_tensor(action[None]))
            torch.testing.assert_close(prediction.latents, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "v.avi"}, ValueError, r"must end in \.mp4 or \.gif"),
        ({"horizon": 0}, ValueError, "horizon=0 is out of range"),
        ({"n_episodes": 0}, ValueError, "n_episodes=0 is out of range"),
        ({"decoder_updates": 0}, ValueError, "decoder_updates=0 is out of range"),
        ({"env": PictureEnv()}, TypeError, "two of them are needed"),
        ({"env": PictureEnv}, ValueError, r"the observations of .* are"),
        ({"env": "Nonsense-v0"}, ValueError, "unknown to Gymnasium"),
    ],
)
def test_bad_arguments(
    model: PWM,
    tmp_path: Path,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"env": hopper, "path": "v.mp4"} | arguments
    with pytest.raises(error, match=message):
        record_imagination(model, **given)
    assert not list(tmp_path.iterdir())


def test_the_environment_of_the_decoders_steps_is_closed() -> None:
    class Failing(PictureEnv):
        def step(self, action: np.ndarray) -> Any:
            raise RuntimeError("the environment broke")

    env = Failing()
    with pytest.raises(RuntimeError, match="the environment broke"):
        fit_latent_decoder(make(PictureEnv()), lambda: env, updates=1)
    assert env.closed


def test_models_and_environments_without_what_it_takes(tmp_path: Path) -> None:
    sac = SAC("MlpPolicy", PictureEnv(), buffer_size=10, device="cpu")
    with pytest.raises(TypeError, match="model must be a PWM, which has a world model, not SAC"):
        record_imagination(sac, PictureEnv, tmp_path / "v.mp4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not say where it holds positions and velocities"):
        record_imagination(make(PictureEnv()), PictureEnv, tmp_path / "v.mp4")
    assert not list(tmp_path.iterdir())
