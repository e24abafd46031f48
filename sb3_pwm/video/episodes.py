"""Videos of episodes."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage

from sb3_pwm.checks import check_integer
from sb3_pwm.planning.planner import Planner
from sb3_pwm.video.frames import Path, VideoWriter, check_video_path, overlay
from sb3_pwm.video.rendering import EnvFactory, check_spaces, fps_of, render, rendered_env


def record_video(
    model: BaseAlgorithm | Planner,
    env: EnvFactory | gym.Env[Any, Any],
    path: Path,
    *,
    n_episodes: int = 1,
    seed: int | None = None,
    max_steps: int = 1_000,
    deterministic: bool = True,
    text: bool = True,
) -> list[float]:
    """Write episodes of a policy to a video file, which appears only when it is whole.

    :param model: any SB3 algorithm, or a planner; the statistics of its VecNormalize, if it has one, are applied and
        not changed.
    :param env: id, or function that makes a Gymnasium environment with ``render_mode="rgb_array"``; or such an
        environment, which is then reset, not closed, and drawn as it is (of the others the camera follows the body and
        the floor has no end). If the model trains in it, the next ``learn`` resets it.
    :param path: file that ends in ``.mp4`` or ``.gif``; its folder is created.
    :param n_episodes: number of episodes, one after the other.
    :param seed: of the environment.
    :param max_steps: end an episode after this many steps.
    :param deterministic: act deterministically.
    :param text: write return so far and step onto the frames.
    :return: the sum of the rewards of each episode.
    :raises TypeError: if an argument is of the wrong kind.
    :raises ValueError: if a number is out of range, the path ends in something else, or the model's spaces are not the
        environment's.
    :raises RuntimeError: if the environment cannot be rendered on this machine.
    """
    path = check_video_path(path)
    check_integer("n_episodes", n_episodes, 1)
    check_integer("max_steps", max_steps, 1)
    returns = []
    trained = model_of(model)
    with rendered_env(env) as opened, acting(trained):
        check_spaces(trained, opened)
        _forget_episode(trained, opened)
        with VideoWriter(path, fps_of(opened)) as writer:
            for episode in range(n_episodes):
                observation, _ = opened.reset(seed=seed if episode == 0 else None)
                total = 0.0
                writer.append(_frame(opened, total, 0, text))
                for count, step in enumerate(play(model, opened, observation, max_steps, deterministic), 1):
                    total += step.reward
                    writer.append(_frame(opened, total, count, text))
                returns.append(total)
    return returns


def model_of(actor: BaseAlgorithm | Planner) -> BaseAlgorithm:
    """Return the model behind who acts."""
    return actor.model if isinstance(actor, Planner) else actor


def _forget_episode(model: BaseAlgorithm, env: gym.Env[Any, Any]) -> None:
    """If the model trains in this environment, let the next ``learn`` reset it: its episode there will be another."""
    trained_in = getattr(model.env and model.env.unwrapped, "envs", ())
    if any(one.unwrapped is env.unwrapped for one in trained_in):
        model._last_obs = None


def _frame(env: gym.Env[Any, Any], total: float, step: int, text: bool) -> np.ndarray:
    frame = render(env)
    return overlay(frame, f"return {total:.1f}", f"step {step}") if text else frame


class Step(NamedTuple):
    """What happened in one step."""

    action: Any
    """As the environment got it."""
    reward: float
    observation: Any
    """That followed, as the environment gave it."""
    terminated: bool
    """Whether the episode has ended, other than by a time-out."""


def play(
    model: BaseAlgorithm | Planner, env: gym.Env[Any, Any], observation: Any, max_steps: int, deterministic: bool
) -> Iterator[Step]:
    """Act until the episode ends, or for ``max_steps`` steps.

    :param model: who acts; the statistics of its VecNormalize are applied and not changed.
    :param env: environment that has just been reset.
    :param observation: what it gave.
    """
    normalizer = model_of(model).get_vec_normalize_env()
    state = None  # of recurrent policies, and of planners
    for count in range(max_steps):
        seen = observation if normalizer is None else normalizer.normalize_obs(as_trained(normalizer, observation))
        starts = np.array([count == 0])
        action, state = model.predict(seen, state=state, episode_start=starts, deterministic=deterministic)
        if isinstance(env.action_space, spaces.Discrete):
            action = action[()]  # a number, as SB3 gives it to environments; an array cannot be a key
        observation, reward, terminated, truncated, _ = env.step(action)
        yield Step(action, float(reward), observation, bool(terminated))
        if terminated or truncated:
            return


def as_trained(normalizer: VecNormalize, observation: Any) -> Any:
    """Return an observation with its images as a ``VecNormalize`` has got them, which a ``VecTransposeImage`` turns."""
    space = normalizer.venv.observation_space
    if isinstance(space, spaces.Dict):
        return {key: _turned(values, space[key].shape) for key, values in observation.items()}
    return _turned(observation, space.shape)


def _turned(values: Any, shape: tuple[int, ...] | None) -> Any:
    return values if np.shape(values) == shape else VecTransposeImage.transpose_image(values)


@contextlib.contextmanager
def acting(model: BaseAlgorithm) -> Iterator[None]:
    """Put the policy into evaluation mode, and back into the mode it was in."""
    training = model.policy.training
    model.policy.set_training_mode(False)
    try:
        yield
    finally:
        model.policy.set_training_mode(training)
