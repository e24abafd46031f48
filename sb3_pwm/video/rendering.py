"""Environments that can be rendered, also on machines without a display."""

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pwm.checks import name_of
from sb3_pwm.compute.hardware import keep_sigterm
from sb3_pwm.nn.observation_features import channels_first

DEFAULT_FPS = 30  # of environments that name no rate
FLOOR_FACTOR = 25
SHADOW_SIZE = 1_024  # of MuJoCo's shadow map; its default of 4,096 doubles the time per frame without a GPU
# What the import of MuJoCo raises without a renderer, and what Gymnasium makes of it.
IMPORT_ERRORS = (ImportError, AttributeError, OSError, RuntimeError, gym.error.DependencyNotInstalled)

EnvFactory: TypeAlias = str | Callable[[], gym.Env[Any, Any]]


def use_headless_rendering() -> None:
    """Let MuJoCo render through EGL, and pygame without looking for a screen, where there is no display.

    Existing settings, ``MUJOCO_GL`` and ``SDL_VIDEODRIVER``, are respected. Best called before MuJoCo is first
    imported.
    """
    keep_sigterm()
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if sys.platform == "linux" and not has_display:
        for name, value in (("MUJOCO_GL", "egl"), ("SDL_VIDEODRIVER", "dummy")):
            if not os.environ.get(name):
                os.environ[name] = value


@contextlib.contextmanager
def rendered_env(env: EnvFactory | gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    """Give an environment that renders to arrays.

    :param env: id or function, whose environment is prepared (a camera that follows the body, an endless floor, smaller
        shadows) and closed in the end; or an environment, which is taken as it is and left open.
    :raises TypeError: if it is none of these.
    :raises ValueError: if the id is unknown, or the environment cannot be made or was not made with
        ``render_mode="rgb_array"``.
    """
    use_headless_rendering()
    if isinstance(env, gym.Env):
        _check_render_mode(env)
        yield env
        return
    made = make_env(env)
    try:
        _check_render_mode(made)
        _prepare(made)
        yield made
    finally:
        made.close()


def make_env(env: EnvFactory, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make an environment of an id, for ``"rgb_array"``, or with a function.

    :param env: id or function.
    :param kwargs: further arguments of the environment of an id.
    :raises TypeError: if it is neither, or the function makes no Gymnasium environment.
    :raises ValueError: if the id is unknown, or the environment cannot be made.
    :raises RuntimeError: if MuJoCo finds no renderer on this machine; says what was tried and what to install.
    """
    if isinstance(env, str):
        try:
            return gym.make(env, render_mode="rgb_array", **kwargs)
        except gym.error.UnregisteredEnv as error:
            raise ValueError(f"env={env!r} is unknown to Gymnasium: {error}") from error
        except Exception as error:  # whatever a foreign environment answers with
            if isinstance(error, IMPORT_ERRORS) and not _mujoco_finds_renderer():
                raise _renderer_error(env, error) from error
            raise ValueError(f"env={env!r} cannot be made: {type(error).__name__}: {error}") from error
    made = env() if callable(env) else env
    if not isinstance(made, gym.Env):
        wanted = "an id, a function that makes a Gymnasium environment, or (for record_video) such an environment"
        raise TypeError(f"env must be {wanted}, not {type(made).__name__}")
    return made


def _mujoco_finds_renderer() -> bool:
    """Return whether MuJoCo can be imported: it looks for its renderer then, and fails in several ways without one."""
    try:
        importlib.import_module("mujoco")
    except IMPORT_ERRORS:
        return False
    return True


def _check_render_mode(env: gym.Env[Any, Any]) -> None:
    if env.render_mode != "rgb_array":
        raise ValueError(
            f'{name_of(env)} was made with render_mode={env.render_mode!r}; allowed: render_mode="rgb_array"'
        )


def _prepare(env: gym.Env[Any, Any]) -> None:
    quality = getattr(getattr(getattr(env.unwrapped, "model", None), "vis", None), "quality", None)
    if quality is not None:
        quality.shadowsize = min(quality.shadowsize, SHADOW_SIZE)
    _follow_body(env)
    _enlarge_floor(env)


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


def fps_of(env: gym.Env[Any, Any]) -> float:
    """Return the number of frames in a second of the environment's time."""
    fps = float(env.metadata.get("render_fps") or DEFAULT_FPS)
    return fps if 0 < fps < math.inf else DEFAULT_FPS


def render(env: gym.Env[Any, Any]) -> np.ndarray:
    """Return a picture (height, width, 3) of the environment.

    :raises RuntimeError: if there is none; says what was tried and what to install.
    """
    try:
        frame: Any = env.render()
    except Exception as error:  # whatever goes wrong here is a matter of the machine or the environment
        raise _renderer_error(name_of(env), error) from error
    is_array = isinstance(frame, np.ndarray) and frame.dtype == np.uint8
    if not (is_array and frame.ndim == 3 and frame.shape[2] in (3, 4) and frame.size):
        given = f"{frame.dtype}{frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise RuntimeError(f"cannot render {name_of(env)}: render() gave {given}, not uint8(height, width, 3)")
    picture: np.ndarray = frame[..., :3]  # without the opacity, which videos do not have
    return picture


def _renderer_error(name: str, error: Exception) -> RuntimeError:
    settings = ", ".join(f"{key}={os.environ.get(key) or 'not set'}" for key in ("MUJOCO_GL", "DISPLAY"))
    return RuntimeError(
        f"cannot render {name} ({type(error).__name__}: {error}); tried with {settings}. Without a display MuJoCo "
        "needs MUJOCO_GL=egl and EGL (on Debian: apt-get install libegl1 libgl1-mesa-dri), and classic control needs "
        "pygame (pip install pygame-ce)"
    )


def check_spaces(model: BaseAlgorithm, env: gym.Env[Any, Any]) -> None:
    """Check that a model can act in an environment.

    :raises ValueError: if observations or actions differ from what the model was made for.
    """
    normalizer = model.get_vec_normalize_env()
    seen = model.observation_space if normalizer is None else normalizer.venv.observation_space
    if seen not in (env.observation_space, channels_first(env.observation_space)):
        raise ValueError(
            f"the observations of {name_of(env)} are {env.observation_space}, the model's are {seen}; give a function "
            "that makes the environment with the wrappers of the training (see docs/videos.md for VecFrameStack), or "
            "extract() the env of a policy extracted from many tasks"
        )
    if model.action_space != env.action_space:
        raise ValueError(f"the actions of {name_of(env)} are {env.action_space}, the model's are {model.action_space}")
