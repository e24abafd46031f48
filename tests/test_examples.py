"""Short examples run as a user runs them, with few steps."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.usefixtures("quick_defaults")
@pytest.mark.filterwarnings("ignore:.*already in registry")
@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("custom_env.py", r"return before training: -?\d+\.\d\d .*\nreturn after training: -?\d+\.\d\d "),
        ("vec_envs.py", r"Eval num_timesteps=300, (.*\n)*300 environment steps in 4 environments"),
        ("dict_and_images.py", r"return -\d+\.\d\d \(standard deviation \d+\.\d\d\)"),
        ("pixel_pendulum.py", r"return -\d+\.\d\d \(standard deviation \d+\.\d\d\)"),
    ],
)
def test_example_runs(
    script: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--steps", "300"])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert re.search(output, capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*already in registry")
def test_pictures_of_the_pendulum() -> None:
    module = runpy.run_path(str(EXAMPLES / "pixel_pendulum.py"))
    picture = module["draw"](0.0, 1.0)  # to the right
    assert (picture == picture[::-1]).all()
    assert (picture[17:19, 18:32] == 255).all()
    assert picture[:, :16].max() == picture[:15].max() == picture[:, 35].max() == 0
    assert (module["draw"](1.0, 0.0) == picture.T[::-1]).all()

    env = module["make"]()
    first, _ = env.reset(seed=0)
    assert first.shape == (36, 36, 3)
    assert (first == first[..., :1]).all()
    second = env.step(np.array([2.0]))[0]
    third = env.step(np.array([2.0]))[0]
    assert (second[..., :2] == first[..., 1:]).all()
    assert (third[..., :2] == second[..., 1:]).all()
    assert (third[..., 2] != third[..., 0]).any()
    assert (env.reset(seed=0)[0] == first).all()


@pytest.mark.filterwarnings("ignore:.*already in registry")
def test_the_ball_falls_off_the_beam_and_the_time_is_up() -> None:
    runpy.run_path(str(EXAMPLES / "custom_env.py"))
    env: Any = gym.make("BallOnBeam-v0", max_episode_steps=3)
    env.reset(seed=0)
    env.unwrapped.position, env.unwrapped.velocity = 0.9, 0.0
    # v = 0.25 and x = 0.9125, v = 0.5 and x = 0.9375, ...: two steps on the beam, then the time is up
    rewards = [env.step(np.ones(1))[1:4] for _ in range(3)]
    assert rewards[0] == (pytest.approx(1 - 0.9125**2), False, False)
    assert rewards[1] == (pytest.approx(1 - 0.9375**2), False, False)
    assert rewards[2] == (pytest.approx(1 - 0.975**2), False, True)
    assert env.unwrapped.step([1.0])[1:4] == (0.0, True, False)


@pytest.mark.filterwarnings("ignore:.*already in registry")
def test_the_ball_lies_on_the_beam_in_the_picture() -> None:
    env = runpy.run_path(str(EXAMPLES / "custom_env.py"))["BallOnBeam"](render_mode="rgb_array")
    for position, column in ((0.0, 99), (-0.5, 50), (0.5, 149)):
        env.position = position
        picture = env.render()
        blue = (picture == (0, 114, 178)).all(-1)
        rows, columns = blue.nonzero()
        assert abs(columns.mean() - column) < 1
        assert rows.max() == 47
    assert (picture[48:52] == 128).all()
