"""The command that records saved models."""

import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import ImageEnv, PictureEnv, make
from stable_baselines3 import PPO, SAC, HerReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from sb3_pwm import PWM
from sb3_pwm.benchmark.plan import find_algorithm
from sb3_pwm.benchmark.specs import ALGORITHMS
from sb3_pwm.cli import record as command
from sb3_pwm.cli.record import env_arguments, load_model
from sb3_pwm.cli.subcommands import run_command_line
from sb3_pwm.video import imagination_page, record_imagination
from sb3_pwm.video.frames import read_video


def unimportable(**kwargs: object) -> None:
    raise ImportError("no name 'x'")


PICTURE: Any = PictureEnv
UNIMPORTABLE: Any = unimportable
gym.register("Picture-v0", PICTURE, max_episode_steps=4)
IMAGE: Any = ImageEnv
gym.register("Image-v0", IMAGE, max_episode_steps=4)
gym.register("Unimportable-v0", UNIMPORTABLE)


def record(*arguments: object) -> int:
    return run_command_line({"record": command}, ["record", *(str(argument) for argument in arguments)])


def test_records_a_pwm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(PictureEnv()).save(tmp_path / "model.zip")
    out = tmp_path / "new" / "v.mp4"
    assert record(tmp_path / "model.zip", "--env", "Picture-v0", "--out", out, "--episodes", 2, "--seed", 1) == 0
    assert len(list(read_video(out)[1])) == 2 * 5
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["episode 1", "episode 2", str(out)]


@pytest.mark.parametrize("name", ["sac", "stable_baselines3:SAC"])
def test_records_other_algorithms(tmp_path: Path, name: str) -> None:
    SAC("MlpPolicy", PictureEnv(), buffer_size=10, device="cpu").save(tmp_path / "sac.zip")
    out = tmp_path / "v.gif"
    assert record(tmp_path / "sac.zip", "--algo", name, "--env", "Picture-v0", "--out", out, "--max-steps", 2) == 0
    assert len(list(read_video(out)[1])) == 3


def test_statistics_of_vec_normalize(tmp_path: Path) -> None:
    normalizer: Any = VecNormalize(DummyVecEnv([PictureEnv]))
    model = PPO("MlpPolicy", normalizer, n_steps=16, batch_size=16, device="cpu", seed=0).learn(16)
    model.save(tmp_path / "ppo.zip")
    normalizer.save(str(tmp_path / "stats.pkl"))
    loaded = load_model(tmp_path / "ppo.zip", "ppo", "Picture-v0", tmp_path / "stats.pkl")
    statistics: Any = loaded.get_vec_normalize_env()
    np.testing.assert_array_equal(statistics.obs_rms.mean, normalizer.obs_rms.mean)
    assert not statistics.training
    options = ("--algo", "ppo", "--env", "Picture-v0", "--out", tmp_path / "v.mp4")
    assert record(tmp_path / "ppo.zip", *options, "--vec-normalize", tmp_path / "stats.pkl") == 0


def test_statistics_of_images_whose_channels_were_turned(tmp_path: Path) -> None:
    normalizer: Any = VecNormalize(VecTransposeImage(DummyVecEnv([ImageEnv])))
    make(normalizer, "CnnPolicy", policy_kwargs={"normalize_images": False}).save(tmp_path / "model.zip")
    normalizer.save(str(tmp_path / "stats.pkl"))
    options = ("--env", "Image-v0", "--out", tmp_path / "v.mp4", "--vec-normalize", tmp_path / "stats.pkl")
    assert record(tmp_path / "model.zip", *options) == 0


@pytest.mark.usefixtures("mujoco_renderer")
def test_imagined(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pwm.video.imagined.POLICY_STEPS", 100)  # a loaded model has no recorded steps
    monkeypatch.setattr("sb3_pwm.cli.record.record_imagination", partial(record_imagination, decoder_updates=5))
    make(gym.make("InvertedPendulum-v5")).save(tmp_path / "model.zip")
    out = tmp_path / "v.mp4"
    options = ("--env", "InvertedPendulum-v5", "--out", out, "--imagined", 2, "--max-steps", 2, "--seed", 0)
    assert record(tmp_path / "model.zip", *options) == 0
    frames = list(read_video(out)[1])
    assert len(frames) == 3
    assert frames[0].shape[1] == 2 * 480 + 2
    assert "episode 1: return 2.0, imagined" in capsys.readouterr().out


def test_imagined_as_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_pwm.video.imagined.POLICY_STEPS", 100)
    monkeypatch.setattr("sb3_pwm.cli.record.imagination_page", partial(imagination_page, decoder_updates=5))
    make(PictureEnv()).save(tmp_path / "model.zip")
    out = tmp_path / "page.html"
    assert record(tmp_path / "model.zip", "--env", "Picture-v0", "--out", out, "--imagined", 2, "--seed", 0) == 0
    assert "</html>" in out.read_text()
    n_pictures = out.read_text().count("data:image")
    assert capsys.readouterr().out.startswith("return -")
    assert record(tmp_path / "model.zip", "--env", "Picture-v0", "--out", out) == 2
    assert "must end in .mp4 or .gif" in capsys.readouterr().err
    page = (tmp_path / "model.zip", "--env", "Picture-v0", "--out", out, "--imagined", 9, "--seed", 0)
    assert record(*page, "--max-steps", 2) == 0
    assert out.read_text().count("data:image") == n_pictures
    assert record(*page, "--episodes", 2) == 2
    assert "--episodes 2: a page shows one rollout" in capsys.readouterr().err


@pytest.mark.usefixtures("mujoco_renderer")
def test_arguments_of_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(gym.make("InvertedPendulum-v5")).save(tmp_path / "model.zip")
    out = tmp_path / "v.mp4"
    options = (tmp_path / "model.zip", "--env", "InvertedPendulum-v5", "--max-steps", 2, "--out", out, "--env-kwargs")
    assert record(*options, "width:64", "height:48", "render_mode:rgb_array") == 2
    assert "multiple values for keyword argument 'render_mode'" in capsys.readouterr().err
    assert record(*options, "width:64", "height:48", "reset_noise_scale:0.5", "--seed", 0) == 0
    assert next(read_video(out)[1]).shape == (48, 64, 3)


def test_values_of_arguments_are_literals_or_text() -> None:
    given = ["width:64", "healthy_z_range:(0.2, 1.0)", "camera_name:side", "name:'7'", "xml_file:/a:b.xml", "none:"]
    expected = {"width": 64, "healthy_z_range": (0.2, 1.0), "camera_name": "side"}
    assert env_arguments(given) == expected | {"name": "7", "xml_file": "/a:b.xml", "none": ""}


def test_modules_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "import gymnasium as gym\nfrom helpers import PictureEnv\n"
    module += "gym.register('Here-v0', PictureEnv, max_episode_steps=4)\n"
    (tmp_path / "module_of_record.py").write_text(module)
    make(PictureEnv()).save(tmp_path / "model.zip")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert record("model.zip", "--env", "module_of_record:Here-v0", "--out", "v.gif") == 0
    assert len(list(read_video(tmp_path / "v.gif")[1])) == 5


class GoalEnv(PictureEnv):
    """Reach the upright state, as hindsight replay wants it."""

    def __init__(self, render_mode: str = "rgb_array", length: int = 4) -> None:
        super().__init__(render_mode, length)
        box = self.observation_space
        self.observation_space = spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), box))

    def goals(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        goal = np.array([1, 0, 0], np.float32)
        return {"observation": observation, "achieved_goal": observation, "desired_goal": goal}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        return self.goals(observation), info

    def step(self, action: np.ndarray) -> Any:
        observation, *rest = super().step(action)
        return self.goals(observation), *rest

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: object) -> np.ndarray:
        return -np.linalg.norm(achieved - desired, axis=-1)


GOAL: Any = GoalEnv
gym.register("Goal-v0", GOAL, max_episode_steps=4)


def test_a_model_that_must_have_an_environment(tmp_path: Path) -> None:
    buffer: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "buffer_size": 10, "device": "cpu"}
    SAC("MultiInputPolicy", gym.make("Goal-v0"), **buffer).save(tmp_path / "her.zip")
    arguments = (tmp_path / "her.zip", "--algo", "sac", "--env", "Goal-v0", "--out", tmp_path / "v.mp4")
    assert record(*arguments) == 0
    assert len(list(read_video(tmp_path / "v.mp4")[1])) == 5


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_by_name(name: str) -> None:
    if ALGORITHMS[name].startswith("sb3_contrib"):
        pytest.importorskip("sb3_contrib")
    assert find_algorithm(name).__name__.lower() == name


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sac, noise = tmp_path / "model.zip", tmp_path / "sac.zip", tmp_path / "noise.zip"
    statistics, list_file = tmp_path / "stats.pkl", tmp_path / "list.pkl"
    make(PictureEnv()).save(model)
    SAC("MlpPolicy", PictureEnv(), buffer_size=10, device="cpu").save(sac)
    noise.write_bytes(b"noise")
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, a=np.zeros(2))
    statistics.write_bytes(b"noise")
    list_file.write_bytes(pickle.dumps([1]))
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        ((tmp_path / "missing.zip",), f"there is no file {tmp_path / 'missing.zip'}"),
        ((model, "--algo", "nonsense"), "unknown algorithm 'nonsense'; known: a2c,"),
        ((model, "--algo", "nonsense:PWM"), "cannot import algorithm 'nonsense:PWM'"),
        (
            (model, "--algo", "sb3_pwm:PWMPolicy"),
            "algorithm 'sb3_pwm:PWMPolicy' must be a class derived",
        ),
        ((model, "--algo", "sac"), f"{model} cannot be loaded as a SAC"),
        ((sac,), "policy must be a PWMPolicy class"),
        ((noise,), f"{noise} is damaged or no zip file"),
        ((arrays,), f"{arrays} is not a model: it has no part 'data'"),
        ((model, "--vec-normalize", statistics), f"{statistics} holds no VecNormalize for Picture-v0"),
        ((model, "--vec-normalize", list_file), f"{list_file} holds no VecNormalize for Picture-v0"),
        ((model, "--vec-normalize", tmp_path / "missing.pkl"), "there is no file"),
        ((model, "--episodes", 0), "--episodes=0 is out of range; allowed: 1 or more"),
        ((model, "--max-steps", 0), "--max-steps=0 is out of range"),
        ((model, "--imagined", 0), "--imagined=0 is out of range"),
        ((model, "--imagined", 5), "does not say where it holds positions and velocities"),
        ((sac, "--algo", "sac", "--imagined", 5), "--imagined needs a PWM, which has a world model"),
        ((model, "--out", tmp_path / "v.png"), "must end in .mp4 or .gif"),
        ((model, "--env", "Nonsense-v0"), "env='Nonsense-v0' is unknown to Gymnasium"),
        ((model, "--env", "Pendulum-v77"), "env='Pendulum-v77' is unknown to Gymnasium"),
        ((model, "--env", "Pendulum-v0"), "env='Pendulum-v0' cannot be made: DeprecatedEnv: "),
        ((model, "--env", "/"), "env='/' cannot be made: Error: Malformed environment ID"),
        ((model, "--env", "nonsense:X-v0"), "env='nonsense:X-v0' cannot be made: ModuleNotFoundError: No module named"),
        (
            (model, "--env", "Unimportable-v0"),
            "env='Unimportable-v0' cannot be made: ImportError: no name 'x'",
        ),
        ((model, "--env-kwargs", "width"), "--env-kwargs width: allowed: NAME:VALUE"),
        ((model, "--env-kwargs", "a b:1"), "--env-kwargs a b:1: allowed: NAME:VALUE"),
        ((model, "--env-kwargs", "nonsense:1"), "unexpected keyword argument 'nonsense'"),
        ((model, "--seed", -1), "--seed=-1 is out of range; allowed: 0 or more"),
        ((model, "--env", "MountainCarContinuous-v0"), "the observations of MountainCarContinuous-v0 are"),
    ):
        assert record("--env", "Picture-v0", "--out", tmp_path / "v.mp4", *arguments) == 2, arguments
        captured = capsys.readouterr()
        assert captured.err.splitlines()[-1].startswith("error: ")
        assert message in captured.err
        assert sorted(tmp_path.iterdir()) == before
    assert issubclass(PWM, find_algorithm("pwm"))
