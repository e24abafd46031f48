"""Videos while a model learns do not change what it learns."""

import contextlib
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import PictureEnv, make, make_by_fours, same
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder

from sb3_pwm.compute.random_state import untouched_generators
from sb3_pwm.video import RecordVideoCallback
from sb3_pwm.video.frames import read_video


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_records_every_so_many_steps(tmp_path: Path) -> None:
    callback = RecordVideoCallback(PictureEnv, tmp_path / "videos", 20, max_steps=3, suffix=".gif")
    model = make(PictureEnv(length=50)).learn(45, callback=callback)
    assert names(tmp_path / "videos") == ["video_20_steps.gif", "video_40_steps.gif"]
    model.learn(20, callback=callback, reset_num_timesteps=False)
    assert names(tmp_path / "videos") == [f"video_{steps}_steps.gif" for steps in (20, 40, 60)]


def test_records_at_given_steps_and_shows_them_in_one_video(tmp_path: Path) -> None:
    callback = RecordVideoCallback(PictureEnv, tmp_path, [30, 10], max_steps=3, timeline=True)
    make(PictureEnv(length=50)).learn(45, callback=callback)
    assert names(tmp_path) == ["video_10_steps.mp4", "video_30_steps.mp4", "video_timeline.mp4"]
    fps, frames = read_video(tmp_path / "video_timeline.mp4")
    shown = list(frames)
    assert fps == 10
    assert len(shown) == 2 * 4
    for steps, first in ((10, 0), (30, 4)):  # under its title each video is as it was
        for own, frame in zip(read_video(tmp_path / f"video_{steps}_steps.mp4")[1], shown[first:], strict=False):
            np.testing.assert_allclose(frame[-20:].astype(int), own[-20:].astype(int), atol=9)  # greys are 20 apart
    assert not np.array_equal(shown[0][:20], shown[4][:20])  # another title


def test_several_environments_may_step_over_a_multiple(tmp_path: Path) -> None:
    callback = RecordVideoCallback(PictureEnv, tmp_path, 10, max_steps=1)
    model = PPO("MlpPolicy", make_vec_env(PictureEnv, 3), n_steps=10, batch_size=30, device="cpu")
    model.learn(30, callback=callback)
    assert names(tmp_path) == [f"video_{steps}_steps.mp4" for steps in (12, 21, 30)]


def test_records_the_best_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = RecordVideoCallback(PictureEnv, tmp_path, name_prefix="best", max_steps=2, verbose=1)
    evaluation = EvalCallback(
        make_vec_env(lambda: PictureEnv(length=5)),
        callback_on_new_best=best,
        eval_freq=10,
        n_eval_episodes=1,
        verbose=0,
    )
    evaluation.best_mean_reward = -np.inf
    make(PictureEnv(), gradient_steps=0, pretrain_steps=0).learn(10, callback=evaluation)
    assert names(tmp_path) == ["best_10_steps.mp4"]
    assert "best_10_steps.mp4: return -" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["PWM", "SAC", "PPO"])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, algorithm: str) -> None:
    def trained(callback: RecordVideoCallback | None) -> dict[str, Any]:
        env = PictureEnv(length=9)
        if algorithm == "PWM":
            model: BaseAlgorithm = make_by_fours(env)
        elif algorithm == "SAC":
            model = SAC("MlpPolicy", env, learning_starts=10, batch_size=8, seed=0, device="cpu")
        else:
            model = PPO("MlpPolicy", env, n_steps=20, batch_size=10, seed=0, device="cpu")
        return model.learn(60, callback=callback).policy.state_dict()

    # Stochastic actions, so that the recording itself draws random numbers
    callback = RecordVideoCallback(PictureEnv, tmp_path, 7, max_steps=5, deterministic=False)
    assert same(trained(None), trained(callback))
    assert len(names(tmp_path)) == 8


def test_generators_go_on_as_if_nothing_had_been_drawn() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    random.seed(1)
    first = draw()
    random.seed(1)
    np.random.seed(0)
    torch.manual_seed(0)
    with contextlib.suppress(KeyError), untouched_generators():
        draw()
        raise KeyError  # also after an error
    assert draw() == first


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_steps": 0}, ValueError, "every_steps=0 is out of range"),
        ({"every_steps": [5, 0]}, ValueError, "every_steps=0 is out of range"),
        ({"every_steps": "5"}, TypeError, "every_steps must be an integer"),
        ({"n_episodes": 0}, ValueError, "n_episodes=0 is out of range"),
        ({"max_steps": "3"}, TypeError, "max_steps must be an integer"),
        ({"suffix": ".avi"}, ValueError, "must end in .mp4 or .gif"),
        ({"env": PictureEnv()}, TypeError, "env must be an id or a function .* not PictureEnv"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"env": PictureEnv, "folder": tmp_path} | arguments
    with pytest.raises(error, match=message):
        RecordVideoCallback(**given)


def test_what_cannot_be_recorded_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(PictureEnv())
    with pytest.raises(ValueError, match="the observations of MountainCarContinuous-v0"):
        model.learn(30, callback=RecordVideoCallback("MountainCarContinuous-v0", tmp_path, 20))
    monkeypatch.setattr(PictureEnv, "render", lambda self: None)
    with pytest.raises(RuntimeError, match="cannot render"):
        model.learn(30, callback=RecordVideoCallback(PictureEnv, tmp_path, 20))
    monkeypatch.undo()
    assert not names(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileExistsError):
        model.learn(30, callback=RecordVideoCallback(PictureEnv, tmp_path / "file", 20))
    assert model.num_timesteps == 0


@pytest.mark.skipif(find_spec("moviepy") is None, reason="Gymnasium's and SB3's recorders need moviepy")
@pytest.mark.filterwarnings("ignore")
def test_works_beside_the_recorders_of_gymnasium_and_sb3(tmp_path: Path) -> None:
    def recorded() -> gym.Env:
        return gym.wrappers.RecordVideo(
            PictureEnv(length=8), str(tmp_path / "gymnasium"), lambda episode: episode == 0, disable_logger=True
        )

    env = VecVideoRecorder(
        DummyVecEnv([recorded]), str(tmp_path / "sb3"), record_video_trigger=lambda step: step == 0, video_length=6
    )
    model = make(env)
    model.learn(25, callback=RecordVideoCallback(PictureEnv, tmp_path / "own", 20, max_steps=4))
    env.close()
    for folder, n_frames in (("gymnasium", 9), ("sb3", 6), ("own", 5)):
        [video] = (tmp_path / folder).glob("*.mp4")
        assert abs(len(list(read_video(video)[1])) - n_frames) <= 1, folder
    assert "moviepy" in sys.modules
