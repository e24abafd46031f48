"""What a world model imagines beside what happened, as a page with a slider."""

import base64
import html
import importlib.resources
import io
import json
from contextlib import ExitStack
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm.checks import check_integer, name_of
from sb3_pwm.files.atomic import write_text
from sb3_pwm.pwm import PWM
from sb3_pwm.simulator.mujoco_state import StateLayout, state_layout
from sb3_pwm.video.decoder import FittedDecoder
from sb3_pwm.video.episodes import acting, play
from sb3_pwm.video.frames import Path, check_page_path
from sb3_pwm.video.imagined import DrawnOpenLoop, OpenLoop, check_model_and_env, fit_latent_decoder
from sb3_pwm.video.rendering import EnvFactory, check_spaces, render, rendered_env

TEMPLATE = "page.html"
DATA = "{{DATA}}"  # where the template takes it
FRAME_WIDTH = 320  # pixels; larger pictures are made smaller
DIGITS = 5  # of the numbers in the page


class OpenLoopRollout(NamedTuple):
    """T steps of a policy, and what the world model predicted of them from the first observation on."""

    observations: np.ndarray
    """(T + 1, D) as the environment gave them."""
    imagined_observations: np.ndarray
    """(T + 1, D) as they are read from the predicted latents."""
    rewards: np.ndarray
    """(T,)."""
    imagined_rewards: np.ndarray
    """(T,) in the environment's units."""
    ending: np.ndarray | None
    """(T,) predicted probabilities in [0, 1] that a step ends the episode; None without a termination head."""
    terminated: bool
    """Whether the last step did end it."""


def imagination_page(
    model: PWM,
    env: EnvFactory,
    path: Path,
    *,
    horizon: int = 50,
    seed: int | None = None,
    dataset: ReplayBuffer | None = None,
    decoder_updates: int = 2_000,
) -> OpenLoopRollout:
    """Write a page on which one can move through an open-loop prediction, step by step.

    It shows a picture of what happened and, for Gymnasium's MuJoCo environments, one of what was imagined; the
    observation's entries, real and imagined; and the rewards and terminations, predicted and real. The page is one
    file and loads nothing from anywhere.

    :param model: the model; its policy acts deterministically.
    :param env: id, or function that makes a Gymnasium environment with ``render_mode="rgb_array"`` whose observations
        are vectors.
    :param path: file that ends in ``.html``; its folder is created.
    :param horizon: number of steps T; fewer if the episode ends.
    :param seed: of the environment.
    :param dataset: as for :func:`sb3_pwm.video.record_imagination`.
    :param decoder_updates: gradient steps of the decoder that reads observations from latents.
    :return: what the page shows.
    :raises TypeError: if an argument is of the wrong kind.
    :raises ValueError: if a number is out of range, observations are not vectors, or the spaces differ.
    :raises RuntimeError: if the environment cannot be rendered on this machine.
    """
    path = check_page_path(path)
    check_model_and_env(model, env)
    check_integer("horizon", horizon, 1)
    check_integer("decoder_updates", decoder_updates, 1)
    with ExitStack() as stack:
        real, imagined = (stack.enter_context(rendered_env(env)) for _ in range(2))
        stack.enter_context(acting(model))
        check_spaces(model, real)
        if not isinstance(real.observation_space, spaces.Box) or len(real.observation_space.shape) != 1:
            raise ValueError(f"the observations of {name_of(real)} are {real.observation_space}; allowed: vectors")
        for each in (real, imagined):
            each.reset()
            render(each)  # before the decoder learns: is there a renderer?
        fitted = fit_latent_decoder(model, env, dataset, decoder_updates)
        layout = _layout_of(real)
        observation, _ = real.reset(seed=seed)
        rollout, frames = _follow(model, fitted, layout, real, imagined, observation, horizon)
        page = _page(name_of(real), rollout, fitted.decoder.std.cpu().numpy(), frames)
    write_text(path, page)
    return rollout


def _layout_of(env: gym.Env[Any, Any]) -> StateLayout | None:
    """Return where an environment's observation holds its state; None if it cannot be drawn from it."""
    try:
        return state_layout(env)
    except ValueError:
        return None


def _follow(
    model: PWM,
    fitted: FittedDecoder,
    layout: StateLayout | None,
    real: gym.Env[Any, Any],
    imagined: gym.Env[Any, Any],
    observation: np.ndarray,
    horizon: int,
) -> tuple[OpenLoopRollout, dict[str, list[str]]]:
    """Act for ``horizon`` steps and predict them; return also the pictures, by whose they are."""
    prediction = OpenLoop(model, fitted) if layout is None else DrawnOpenLoop(model, fitted, layout, real, imagined)
    frames: dict[str, list[str]] = {name: [] for name in (("real",) if layout is None else ("real", "imagined"))}
    observations, decoded = [], []
    rewards, predicted, ending = [], [], []
    terminated = False

    def note(seen: np.ndarray) -> None:
        observations.append(seen)
        decoded.append(prediction.decoded)
        for name, shown in (("real", real), ("imagined", imagined)):
            if name in frames:
                frames[name].append(_picture(render(shown)))

    prediction.synchronize(observation)
    note(observation)
    for step in play(model, real, observation, horizon, True):
        predicted.append(prediction.step(step.action))
        rewards.append(step.reward)
        ending.append(prediction.ending)
        terminated = step.terminated
        note(step.observation)
    known = None if prediction.ending is None else np.array(ending, np.float64)
    series = np.array(observations, np.float64), np.array(decoded), np.array(rewards), np.array(predicted)
    return OpenLoopRollout(*series, known, terminated), frames


def _picture(frame: np.ndarray) -> str:
    """Return a (height, width, 3) frame as the address of a picture that a page holds."""
    image = Image.fromarray(frame[..., :3])
    if image.width > FRAME_WIDTH:
        image = image.resize((FRAME_WIDTH, max(1, round(image.height * FRAME_WIDTH / image.width))))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _page(title: str, rollout: OpenLoopRollout, std: np.ndarray, frames: dict[str, list[str]]) -> str:
    data = {
        "title": html.escape(title),
        "frames": frames,
        "std": _rounded(std),
        "observations": _rounded(rollout.observations),
        "imagined": _rounded(rollout.imagined_observations),
        "rewards": _rounded(rollout.rewards),
        "imaginedRewards": _rounded(rollout.imagined_rewards),
        "ending": None if rollout.ending is None else _rounded(rollout.ending),
        "terminated": rollout.terminated,
    }
    template = importlib.resources.files("sb3_pwm.video").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return template.replace(DATA, json.dumps(data).replace("</", "<\\/"))


def _rounded(values: np.ndarray) -> Any:
    """Return numbers as lists, with ``DIGITS`` significant digits; None for what is not finite."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values]
