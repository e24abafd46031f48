"""Videos of episodes, and environments that can be rendered."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from helpers import ImageEnv, PictureEnv, make, make_by_fours
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from sb3_pwm.video import frame_strip, record_video, use_headless_rendering
from sb3_pwm.video.frames import VideoWriter, read_video
from sb3_pwm.video.rendering import _enlarge_floor, _follow_body, fps_of, render, rendered_env


@pytest.fixture
def sac() -> SAC:
    return SAC("MlpPolicy", PictureEnv(), buffer_size=10, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")


def frames_of(path: Path) -> list[np.ndarray]:
    return list(read_video(path)[1])


def greys(path: Path) -> list[int]:
    """Grey of the lower right corner of each frame, where no text is."""
    return [int(frame[-20:, -20:].mean().round()) for frame in frames_of(path)]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_every_step_is_a_frame(sac: SAC, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"video{suffix}"
    returns = record_video(sac, lambda: PictureEnv(length=4), path, n_episodes=2, seed=1, max_steps=6)
    np.testing.assert_allclose(greys(path), [0, 20, 40, 60, 80] * 2, atol=3)
    assert len(returns) == 2
    assert frames_of(path)[0].shape == (60, 80, 3)
    assert read_video(path)[0] == 10
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_returns_are_what_the_policy_gets(sac: SAC, tmp_path: Path) -> None:
    returns = record_video(sac, PictureEnv, tmp_path / "v.mp4", n_episodes=2, seed=3, max_steps=5)
    env, expected = PictureEnv(), []
    for seed in (3, None):
        observation, _ = env.reset(seed=seed)
        rewards = []
        for _ in range(5):
            observation, reward, *_ = env.step(sac.predict(observation, deterministic=True)[0])
            rewards.append(reward)
        expected.append(sum(rewards))
    assert returns == pytest.approx(expected)


@pytest.mark.parametrize("algorithm", [make, lambda env: PPO("MlpPolicy", env, n_steps=4, batch_size=4, device="cpu")])
def test_other_algorithms(algorithm: Callable[..., Any], tmp_path: Path) -> None:
    model = algorithm(PictureEnv())
    model.policy.set_training_mode(True)
    record_video(model, PictureEnv, tmp_path / "v.mp4", max_steps=2, deterministic=False)
    assert len(frames_of(tmp_path / "v.mp4")) == 3
    assert model.policy.training


class CountedEnv(PictureEnv):
    """Actions are numbers, which an array is not."""

    def __init__(self, render_mode: str = "rgb_array") -> None:
        super().__init__(render_mode)
        self.action_space = spaces.Discrete(2)
        self.metadata = self.metadata | {"render_fps": None}  # type: ignore[misc]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(np.full(2, {0: 0.0, 1: 1.0}[action]))


def test_discrete_actions_are_numbers(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", CountedEnv(), n_steps=4, batch_size=4, device="cpu")
    record_video(model, CountedEnv, tmp_path / "v.mp4", max_steps=2)
    assert len(frames_of(tmp_path / "v.mp4")) == 3


def test_text_says_return_and_step(sac: SAC, tmp_path: Path) -> None:
    for name, text in (("plain", False), ("text", True)):
        record_video(sac, PictureEnv, tmp_path / f"{name}.mp4", seed=0, max_steps=3, text=text)
    plain, written = (frames_of(tmp_path / f"{name}.mp4") for name in ("plain", "text"))
    for before, after in zip(plain, written, strict=True):
        assert np.abs(before.astype(int) - after).max() > 100  # white letters
        np.testing.assert_allclose(before[-20:, -20:], after[-20:, -20:], atol=5)
    assert np.abs(written[1][:, :40].astype(int) - written[3][:, :40] + 40).max() > 60  # other letters


def test_an_environment_stays_open(sac: SAC, tmp_path: Path) -> None:
    env = PictureEnv()
    record_video(sac, env, tmp_path / "v.mp4", max_steps=2)
    assert not env.closed
    made = []

    def factory() -> PictureEnv:
        made.append(PictureEnv())
        return made[-1]

    record_video(sac, factory, tmp_path / "v.mp4", max_steps=2)
    assert [env.closed for env in made] == [True]


@pytest.mark.parametrize("wrapped", [lambda env: env, lambda env: VecNormalize(DummyVecEnv([lambda: env]))])
def test_training_does_not_go_on_in_an_episode_that_a_video_has_ended(
    tmp_path: Path, wrapped: Callable[..., Any]
) -> None:
    env = PictureEnv(length=10)
    model = make_by_fours(wrapped(env), gradient_steps=0, pretrain_steps=0).learn(4)
    record_video(model, lambda: PictureEnv(length=10), tmp_path / "v.mp4", max_steps=2)
    assert model._last_obs is not None
    record_video(model, env, tmp_path / "v.mp4", max_steps=2)
    assert env.steps == 2
    model.learn(4, reset_num_timesteps=False)
    assert env.steps == 4
    assert model.num_timesteps == 8


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_tilde_is_the_users_home(sac: SAC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    record_video(sac, PictureEnv, f"~/new/v{suffix}", max_steps=2)
    frame_strip(f"~/new/v{suffix}", "~/strip.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "strip.png"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"v{suffix}"]


def test_statistics_of_vec_normalize_are_applied_and_not_changed(tmp_path: Path) -> None:
    normalizer: Any = VecNormalize(DummyVecEnv([PictureEnv]))
    model = SAC("MlpPolicy", normalizer, learning_starts=100, device="cpu", seed=0).learn(20)
    before = normalizer.obs_rms.mean.copy(), normalizer.obs_rms.count, normalizer.ret_rms.count
    seen = []
    model.predict = lambda observation, **kwargs: (seen.append(observation), (np.zeros(1, np.float32), None))[1]
    record_video(model, PictureEnv, tmp_path / "v.mp4", seed=4, max_steps=1)
    first, _ = PictureEnv().reset(seed=4)
    np.testing.assert_allclose(seen[0], normalizer.normalize_obs(first))
    assert np.abs(seen[0] - first).max() > 0.1
    np.testing.assert_array_equal(normalizer.obs_rms.mean, before[0])
    assert (normalizer.obs_rms.count, normalizer.ret_rms.count) == before[1:]


def test_images_come_to_vec_normalize_as_in_training(tmp_path: Path) -> None:
    normalizer: Any = VecNormalize(VecTransposeImage(DummyVecEnv([ImageEnv])))
    model: Any = make(normalizer, "CnnPolicy", policy_kwargs={"normalize_images": False})
    normalizer.obs_rms.mean[0], normalizer.obs_rms.mean[1] = 40.0, -30.0  # each channel has its own
    seen: list[Any] = []
    model.predict = lambda observation, **kwargs: (seen.append(observation), (np.zeros(1, np.float32), None))[1]
    record_video(model, ImageEnv, tmp_path / "v.mp4", max_steps=1)
    image = ImageEnv().reset()[0].astype(np.float32)
    np.testing.assert_allclose(seen[0][0], np.clip(image[..., 0] - 40, -10, 10), rtol=1e-5)
    np.testing.assert_allclose(seen[0][1], np.clip(image[..., 1] + 30, -10, 10), rtol=1e-5)


def test_images_that_vec_normalize_leaves_alone(tmp_path: Path) -> None:
    venv = VecTransposeImage(DummyVecEnv([lambda: ImageEnv(as_dict=True)]))
    model = make(VecNormalize(venv, norm_obs_keys=["number"]), "MultiInputPolicy")
    assert len(record_video(model, lambda: ImageEnv(as_dict=True), tmp_path / "v.mp4", max_steps=1)) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "v.avi"}, ValueError, r"'v.avi' must end in .mp4 or .gif"),
        ({"max_steps": 0}, ValueError, "max_steps=0 is out of range; allowed: 1 or more"),
        ({"n_episodes": 1.5}, TypeError, "n_episodes must be an integer, not 1.5"),
        ({"env": "Nonsense-v0"}, ValueError, "env='Nonsense-v0' is unknown to Gymnasium"),
        ({"env": 3}, TypeError, "env must be an id, .*, not int"),
        ({"env": lambda: None}, TypeError, "not NoneType"),
        ({"env": DummyVecEnv([PictureEnv])}, TypeError, "not DummyVecEnv"),
        ({"env": lambda: PictureEnv(None)}, ValueError, 'render_mode=None; allowed: render_mode="rgb_array"'),
        ({"env": "MountainCarContinuous-v0"}, ValueError, "the observations of MountainCarContinuous-v0 are"),
    ],
)
def test_bad_arguments(
    sac: SAC,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"env": PictureEnv, "path": "v.mp4"} | arguments
    with pytest.raises(error, match=message):
        record_video(sac, **given)
    assert not list(tmp_path.iterdir())


def test_other_actions_are_refused(tmp_path: Path) -> None:
    class Wide(PictureEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Box(-3, 3, (1,), np.float32)

    with pytest.raises(ValueError, match=r"the actions of .* are Box"):
        record_video(make(PictureEnv()), Wide, tmp_path / "v.mp4")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (OSError("no GL"), "OSError: no GL"),
        (None, "gave NoneType, not uint8"),
        (np.zeros((4, 6), np.uint8), r"gave uint8\(4, 6\), not uint8\(height, width, 3\)"),
        (np.zeros((4, 6, 3)), r"gave float64\(4, 6, 3\), not uint8"),
        (np.zeros((4, 0, 3), np.uint8), r"gave uint8\(4, 0, 3\), not uint8"),
    ],
    ids=["fails", "gives nothing", "gives grey", "gives floats", "gives an empty picture"],
)
def test_says_that_it_cannot_render(
    sac: SAC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: Exception | np.ndarray | None, message: str
) -> None:
    def render(self: gym.Env) -> np.ndarray | None:
        if isinstance(frame, Exception):
            raise frame
        return frame

    monkeypatch.setattr(PictureEnv, "render", render)
    with pytest.raises(RuntimeError, match=f"cannot render .*PictureEnv.*{message}") as error:
        record_video(sac, PictureEnv, tmp_path / "new" / "v.mp4")
    if isinstance(frame, Exception):
        for part in ("MUJOCO_GL=", "libegl1 libgl1-mesa-dri", "pygame"):
            assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_says_so_where_the_renderer_is_missed_at_import(
    sac: SAC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(env_id: str, render_mode: str) -> None:
        raise ImportError("Cannot initialize a EGL device display")

    monkeypatch.setattr(gym, "make", make)
    monkeypatch.setitem(sys.modules, "mujoco", None)  # nor can it be imported
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(RuntimeError, match=r"cannot render Hopper-v5 \(ImportError: .*MUJOCO_GL=egl, .*libegl1"):
        record_video(sac, "Hopper-v5", tmp_path / "v.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_failure_leaves_the_old_file_and_no_half_one(sac: SAC, tmp_path: Path, suffix: str) -> None:
    class Breaks(PictureEnv):
        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self.steps == 3:
                raise KeyboardInterrupt
            return super().step(action)

    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        record_video(sac, Breaks, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_fast_gif_leaves_out_frames(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.gif", 125) as writer:
        for step in range(11):
            writer.append(np.full((10, 10, 3), 20 * step, np.uint8))
    fps, frames = read_video(tmp_path / "v.gif")
    assert fps == 25
    np.testing.assert_allclose([frame.mean() for frame in frames], [0, 100, 200], atol=2)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_have_the_size_of_the_first(tmp_path: Path, suffix: str) -> None:
    def write(*heights: int) -> None:
        with VideoWriter(tmp_path / f"v{suffix}", 10) as writer:
            for height in heights:
                writer.append(np.zeros((height, 10, 3), np.uint8))

    with pytest.raises(ValueError, match=r"frame 1 of .* has the shape \(12, 10, 3\); allowed: \(10, 10, 3\)"):
        write(10, 12)
    assert not list(tmp_path.iterdir())


def test_opacity_is_left_out() -> None:
    grey = np.full((4, 6, 3), 9, np.uint8)
    env: Any = SimpleNamespace(render=lambda: np.dstack([grey, np.zeros((4, 6, 1), np.uint8)]))
    np.testing.assert_array_equal(render(env), grey)


@pytest.mark.parametrize(("named", "fps"), [(50, 50), (None, 30), (0, 30), (-5, 30), (np.nan, 30), (np.inf, 30)])
def test_a_rate_that_is_none_is_the_default(named: Any, fps: Any) -> None:
    env: Any = SimpleNamespace(metadata={"render_fps": named})
    assert fps_of(env) == fps


def test_odd_sizes_get_one_more_row_and_column(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", 10) as writer:
        writer.append(np.zeros((61, 81, 3), np.uint8))
    assert frames_of(tmp_path / "v.mp4")[0].shape == (62, 82, 3)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "egl"),
        ({"MUJOCO_GL": ""}, "egl"),
        ({"MUJOCO_GL": "osmesa"}, "osmesa"),
        ({"SDL_VIDEODRIVER": "kmsdrm"}, "egl"),
        ({"DISPLAY": ":0"}, None),
    ],
)
def test_headless_rendering_respects_what_is_set(
    before: dict[str, str], after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("sb3_pwm.video.rendering.os.environ", environ := dict(before))
    use_headless_rendering()
    assert environ.get("MUJOCO_GL") == after
    assert environ.get("SDL_VIDEODRIVER") == before.get("SDL_VIDEODRIVER", None if "DISPLAY" in before else "dummy")
    assert environ.get("SDL_NO_SIGNAL_HANDLERS") == "1"


def test_the_camera_follows_the_body() -> None:
    env = gym.make("HalfCheetah-v5", render_mode="rgb_array")
    _follow_body(env)
    assert env.unwrapped.model.cam_mode[env.unwrapped.mujoco_renderer.camera_id] > 0  # type: ignore[attr-defined]
    env.close()


def test_a_larger_floor_changes_nothing_but_the_picture() -> None:
    envs: list[Any] = [gym.make("Hopper-v5") for _ in range(2)]
    model = envs[1].unwrapped.model
    size, repeat = model.geom("floor").size.copy(), model.mat_texrepeat[model.geom("floor").matid[0]].copy()
    _enlarge_floor(envs[1])
    assert model.geom("floor").size.tolist() == [25 * size[0], 25 * size[1], size[2]]
    assert model.mat_texrepeat[model.geom("floor").matid[0]].tolist() == (25 * repeat).tolist()
    observations = [env.reset(seed=0)[0] for env in envs]
    for _ in range(50):
        np.testing.assert_array_equal(*observations)
        observations = [env.step(np.ones(3, np.float32))[0] for env in envs]
    _enlarge_floor(gym.make("Pendulum-v1"))  # no MuJoCo


@pytest.mark.usefixtures("mujoco_renderer")
def test_mujoco_is_drawn_with_its_following_camera() -> None:
    with rendered_env(lambda: gym.make("HalfCheetah-v5", render_mode="rgb_array", width=64, height=48)) as env:
        env.reset(seed=0)
        start: Any = env.render()
        runner: Any = env.unwrapped
        runner.set_state(np.array([100.0, *runner.data.qpos[1:]]), runner.data.qvel)
        far: Any = env.render()
    assert start.shape == (48, 64, 3)
    body = slice(15, 40), slice(15, 50)
    assert np.abs(start[body].astype(int) - far[body]).mean() < 20  # the runner is still in the middle, on a floor
    assert far[-5:].std() > 20
