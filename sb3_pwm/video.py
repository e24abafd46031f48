"""Record what a policy does."""

import os
import pathlib
import sys
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

DEFAULT_FPS = 30  # of environments that name no rate
FLOOR_FACTOR = 25
SHADOW_SIZE = 1_024  # of MuJoCo's shadow map; its default of 4,096 doubles the time per frame without a GPU


def use_headless_rendering() -> None:
    """Let MuJoCo render through EGL where there is no display; an existing ``MUJOCO_GL`` is respected.

    Best called before MuJoCo is first imported.
    """
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if sys.platform == "linux" and not has_display and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"


def record_episode(
    model: BaseAlgorithm,
    env_id: str,
    path: str | pathlib.Path,
    *,
    seed: int | None = None,
    max_steps: int = 1_000,
) -> float:
    """Write one episode of deterministic actions to an mp4 file.

    :param model: a trained model; the statistics of its VecNormalize, if it has one, are applied and not changed.
    :param env_id: id of the Gymnasium environment.
    :param path: file that ends in ``.mp4``; its folder is created.
    :param seed: of the environment.
    :param max_steps: end the video after this many steps.
    :return: sum of the rewards.
    :raises ValueError: if ``path`` does not end in ``.mp4`` or ``max_steps`` is below 1.
    :raises RuntimeError: if the environment cannot be rendered on this machine; no file is written then.
    """
    path = pathlib.Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"path={str(path)!r} must end in .mp4")
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r} must be at least 1")
    use_headless_rendering()
    env = gym.make(env_id, render_mode="rgb_array")
    quality = getattr(getattr(getattr(env.unwrapped, "model", None), "vis", None), "quality", None)
    if quality is not None:
        quality.shadowsize = min(quality.shadowsize, SHADOW_SIZE)
    _follow_body(env)
    _enlarge_floor(env)
    normalizer = model.get_vec_normalize_env()
    try:
        observation: Any
        observation, _ = env.reset(seed=seed)
        frame = _first_frame(env)
        path.parent.mkdir(parents=True, exist_ok=True)
        total = 0.0
        # Blocks of 2 pixels: H.264 needs no more, and most frames then keep their size
        with imageio.get_writer(path, fps=env.metadata.get("render_fps", DEFAULT_FPS), macro_block_size=2) as writer:
            writer.append_data(frame)  # type: ignore[attr-defined]
            for _ in range(max_steps):
                if normalizer is not None:
                    observation = normalizer.normalize_obs(observation)
                action, _ = model.predict(observation, deterministic=True)
                observation, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                writer.append_data(np.asarray(env.render()))  # type: ignore[attr-defined]
                if terminated or truncated:
                    break
        return total
    finally:
        env.close()


def _follow_body(env: gym.Env[Any, Any]) -> None:
    """Let a MuJoCo renderer that has not found its camera use the model's camera that follows the body, if any."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None and renderer.camera_id == -1:
        fixed = 0  # mjCAMLIGHT_FIXED; other modes follow or look at a body
        following = np.flatnonzero(renderer.model.cam_mode != fixed)
        renderer.camera_id = int(following[0]) if len(following) else -1


def _enlarge_floor(env: gym.Env[Any, Any]) -> None:
    """Draw MuJoCo's planes, which never end for what stands on them, so large that no runner leaves them."""
    model: Any = getattr(env.unwrapped, "model", None)
    if hasattr(model, "geom_type"):
        planes = np.flatnonzero(model.geom_type == 0)  # mjGEOM_PLANE
        model.geom_size[planes, :2] *= FLOOR_FACTOR
        materials = np.unique(model.geom_matid[planes])
        model.mat_texrepeat[materials[materials >= 0]] *= FLOOR_FACTOR


def _first_frame(env: gym.Env[Any, Any]) -> np.ndarray:
    """Render once; whatever goes wrong here is a matter of the machine or the environment."""
    try:
        frame: Any = env.render()
    except Exception as error:
        raise RuntimeError(
            f"cannot render {env.spec.id if env.spec else env} ({type(error).__name__}: {error}); on a machine without "
            "a display MuJoCo needs EGL (Debian packages libegl1 and libgl1-mesa-dri) and MUJOCO_GL=egl, and classic "
            "control needs pygame-ce"
        ) from error
    if not isinstance(frame, np.ndarray):
        raise RuntimeError(f"cannot render {env.spec.id if env.spec else env}: render() gave {type(frame).__name__}")
    return frame
