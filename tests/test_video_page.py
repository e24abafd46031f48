"""The page on which one moves through an open-loop prediction."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import PictureEnv, make

from sb3_pwm import PWM
from sb3_pwm.video import imagination_page
from sb3_pwm.video.imagined import fit_latent_decoder

SMALL: dict[str, Any] = {"horizon": 6, "decoder_updates": 10, "seed": 0}


class EndingEnv(PictureEnv):
    """Terminates after four steps."""

    def step(self, action: np.ndarray) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.steps >= 4, truncated, info


@pytest.fixture(autouse=True)
def few_recorded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pwm.video.imagined.POLICY_STEPS", 100)


def data_of(page: Path) -> dict[str, Any]:
    [text] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.S)
    data: dict[str, Any] = json.loads(text)
    return data


def test_the_page_holds_what_happened_and_what_was_imagined(tmp_path: Path) -> None:
    model, path = make(PictureEnv()).learn(40), tmp_path / "new" / "page.html"
    rollout = imagination_page(model, PictureEnv, path, **SMALL)
    data = data_of(path)
    assert data["frames"].keys() == {"real"}  # what is imagined of a Pendulum cannot be drawn
    assert len(data["frames"]["real"]) == 7
    assert len(set(data["frames"]["real"])) == 7
    assert rollout.observations.shape == rollout.imagined_observations.shape == (7, 3)
    for name, values in (("observations", rollout.observations), ("imagined", rollout.imagined_observations)):
        np.testing.assert_allclose(data[name], values, rtol=1e-4)
    for name, values in (("rewards", rollout.rewards), ("imaginedRewards", rollout.imagined_rewards)):
        assert values.shape == (6,)
        np.testing.assert_allclose(data[name], values, rtol=1e-4)
    assert not rollout.terminated
    assert not data["terminated"]


def test_the_prediction_sees_the_first_observation_and_the_actions(tmp_path: Path) -> None:
    model = make(PictureEnv()).learn(40)
    rollout = imagination_page(model, PictureEnv, tmp_path / "page.html", **SMALL)
    env, policy = PictureEnv(), model.policy
    policy.set_training_mode(False)
    observation, _ = env.reset(seed=0)
    decoder = fit_latent_decoder(model, PictureEnv, updates=10).decoder
    with torch.no_grad():
        latents = policy.world_model.encode(torch.as_tensor(observation[None]))
        for step in range(6):
            np.testing.assert_allclose(rollout.observations[step], observation, rtol=1e-6)
            np.testing.assert_allclose(rollout.imagined_observations[step], decoder(latents)[0], rtol=1e-5)
            action, _ = model.predict(observation, deterministic=True)
            scaled = torch.as_tensor(policy.scale_action(action)[None])
            reward = float(policy.world_model.rewards(latents, scaled)) * float(policy.reward_scale.scale)
            latents = policy.world_model.next_latents(latents, scaled, step)
            observation, real, *_ = env.step(action)
            assert rollout.rewards[step] == pytest.approx(float(real))
            assert rollout.imagined_rewards[step] == pytest.approx(reward, rel=1e-4)
            assert rollout.ending is not None
            assert rollout.ending[step] == pytest.approx(1 - float(policy.world_model.continuations(latents)), abs=1e-5)


def test_an_episode_may_end(tmp_path: Path) -> None:
    rollout = imagination_page(make(EndingEnv()).learn(40), EndingEnv, tmp_path / "page.html", **SMALL)
    assert rollout.terminated
    assert len(rollout.rewards) == 4
    assert data_of(tmp_path / "page.html")["terminated"]


def test_without_a_termination_head(tmp_path: Path) -> None:
    rollout = imagination_page(
        make(PictureEnv(), termination_coef=0).learn(40), PictureEnv, tmp_path / "page.html", **SMALL
    )
    assert rollout.ending is None
    assert data_of(tmp_path / "page.html")["ending"] is None


@pytest.mark.usefixtures("mujoco_renderer")
def test_what_is_imagined_is_drawn_in_mujoco(tmp_path: Path) -> None:
    def small() -> gym.Env[Any, Any]:
        return gym.make("InvertedPendulum-v5", render_mode="rgb_array", width=64, height=48)

    model = make("InvertedPendulum-v5").learn(40)
    rollout = imagination_page(model, small, tmp_path / "page.html", **(SMALL | {"horizon": 3}))
    frames = data_of(tmp_path / "page.html")["frames"]
    steps = len(rollout.rewards) + 1
    assert {name: len(pictures) for name, pictures in frames.items()} == {"real": steps, "imagined": steps}
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in [*frames["real"], *frames["imagined"]])


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    imagination_page(make(PictureEnv()).learn(40), PictureEnv, tmp_path / "page.html", **SMALL)
    text = (tmp_path / "page.html").read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|src=\"(?!data:)", text)
    assert "{{" not in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_runs_in_a_browser(tmp_path: Path) -> None:
    imagination_page(make(PictureEnv()).learn(40), PictureEnv, tmp_path / "page.html", **SMALL)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = ["chromium", *options, "--enable-logging=stderr", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert re.search(r"step 6 of 6: return -?\d+\.\d, imagined -?\d+\.\d", done.stdout)
    assert "Imagined beside real: PictureEnv" in done.stdout or "Imagined beside real: &lt;PictureEnv" in done.stdout
    assert "CONSOLE" not in done.stderr


class ImageEnv(PictureEnv):
    """Observations are pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> Any:
        return self.observation_space.sample(), *super().step(action)[1:]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "page.mp4"}, ValueError, r"path='page.mp4' must end in \.html"),
        ({"horizon": 0}, ValueError, "horizon=0 is out of range"),
        ({"decoder_updates": 0}, ValueError, "decoder_updates=0 is out of range"),
        ({"env": PictureEnv()}, TypeError, "two of them are needed"),
        ({"env": "Nonsense-v0"}, ValueError, "unknown to Gymnasium"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    defaults: dict[str, Any] = {"env": PictureEnv, "path": "page.html"}
    with pytest.raises(error, match=message):
        imagination_page(make(PictureEnv()), **(defaults | arguments))
    assert not list(tmp_path.iterdir())


def test_observations_must_be_vectors(tmp_path: Path) -> None:
    model = PWM("CnnPolicy", ImageEnv(), buffer_size=100, device="cpu")
    with pytest.raises(ValueError, match=r"the observations of .* are Box.*; allowed: vectors"):
        imagination_page(model, ImageEnv, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
