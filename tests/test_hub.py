"""Sharing a model on the Hugging Face Hub, with a folder in the Hub's place."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import huggingface_sb3
import numpy as np
import pytest
from helpers import SMALL
from stable_baselines3.common.monitor import Monitor

from sb3_pwm import PWM


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the Hub's repository lies."""
    folder = tmp_path / "hub"

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, exist_ok: bool) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str | None) -> None:
            shutil.copytree(folder_path, folder / repo_id)

    module: Any = sys.modules["huggingface_sb3.push_to_hub"]  # a function hides it as an attribute
    monkeypatch.setattr(module, "HfApi", Api)
    monkeypatch.setattr(module, "_generate_replay", lambda *arguments: None)  # wants ffmpeg on the path
    return folder


def test_a_model_goes_to_the_hub_and_comes_back(hub: Path) -> None:
    model = PWM("MlpPolicy", "Pendulum-v1", **SMALL)
    huggingface_sb3.package_to_hub(
        model,
        "pwm-Pendulum-v1",
        "PWM",
        "Pendulum-v1",
        Monitor(gym.make("Pendulum-v1")),
        "someone/pwm-Pendulum-v1",
        n_eval_episodes=1,
    )
    repository = hub / "someone" / "pwm-Pendulum-v1"
    card = (repository / "README.md").read_text()
    assert "**PWM** Agent playing **Pendulum-v1**" in card
    assert "mean_reward" in card
    loaded = PWM.load(repository / "pwm-Pendulum-v1.zip")
    observation = np.array([0.6, 0.8, -1.0], dtype=np.float32)
    expected, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
