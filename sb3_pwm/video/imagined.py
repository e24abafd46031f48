"""What a world model imagines, beside what happened."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_integer
from sb3_pwm.compute.random_state import untouched_generators
from sb3_pwm.pwm import PWM
from sb3_pwm.simulator.mujoco_state import StateLayout, set_observed_state, skipped_positions, state_layout
from sb3_pwm.video.decoder import FittedDecoder, fit_decoder
from sb3_pwm.video.episodes import acting, play
from sb3_pwm.video.frames import Path, VideoWriter, beside, check_video_path, overlay
from sb3_pwm.video.rendering import EnvFactory, check_spaces, fps_of, make_env, render, rendered_env

MIN_STEPS = 1_000  # from which a decoder learns
POLICY_STEPS = 5_000  # where none are recorded
BATCH_ROWS = 4_096


class ImaginedEpisode(NamedTuple):
    """What a video of :func:`record_imagination` shows of one episode."""

    episode_return: float
    """Sum of the rewards."""
    imagined_return: float
    """Sum of the rewards that the model predicted."""
    errors: np.ndarray
    """(steps,) model error after each step: root mean square over positions and velocities of what is decoded from the
    predicted minus what is decoded from the true latents, in standard deviations of the data."""
    decoder_r2: np.ndarray
    """(D,) held-out R^2 of the decoder for each entry of the observation; NaN for what never changes."""


def record_imagination(
    model: PWM,
    env: EnvFactory,
    path: Path,
    *,
    horizon: int = 50,
    n_episodes: int = 1,
    seed: int | None = None,
    max_steps: int = 1_000,
    dataset: ReplayBuffer | None = None,
    decoder_updates: int = 2_000,
) -> list[ImaginedEpisode]:
    """Write a video of what happened (left) and of what the world model predicted (right).

    Every ``horizon`` steps the prediction starts again from the true observation; in between it follows the actions
    that were really taken and sees nothing. For the picture a decoder learns to read observations from the latents of
    recorded steps (:func:`sb3_pwm.video.decoder.fit_decoder`); the model does not change. What the observation leaves
    out, the root's x (and y), starts from the truth and follows the predicted velocity.

    :param model: the model; its policy acts deterministically.
    :param env: id, or function that makes a Gymnasium MuJoCo environment with ``render_mode="rgb_array"`` whose
        observation holds its state, see :func:`sb3_pwm.simulator.mujoco_state.state_layout`.
    :param path: file that ends in ``.mp4`` or ``.gif``; its folder is created.
    :param horizon: steps H until the prediction starts again.
    :param n_episodes: number of episodes.
    :param seed: of the environment.
    :param max_steps: end an episode after this many steps.
    :param dataset: replay buffer from which the decoder learns; None for the model's, and if that holds fewer than
        1,000 steps (a loaded model's is empty), for steps that the stochastic policy takes now.
    :param decoder_updates: gradient steps of the decoder.
    :return: one result per episode.
    :raises TypeError: if an argument is of the wrong kind.
    :raises ValueError: if a number is out of range, the observation does not hold the state, or the spaces differ.
    :raises RuntimeError: if the environment cannot be rendered on this machine.
    """
    path = check_video_path(path)
    check_model_and_env(model, env)
    for name, value in (("horizon", horizon), ("n_episodes", n_episodes), ("max_steps", max_steps)):
        check_integer(name, value, 1)
    check_integer("decoder_updates", decoder_updates, 1)
    with ExitStack() as stack:
        real, imagined = (stack.enter_context(rendered_env(env)) for _ in range(2))
        stack.enter_context(acting(model))
        check_spaces(model, real)
        layout = state_layout(real)
        imagined.reset()
        render(imagined)  # before the decoder learns: is there a renderer?
        path.parent.mkdir(parents=True, exist_ok=True)  # and a folder?
        fitted = fit_latent_decoder(model, env, dataset, decoder_updates)
        writer = stack.enter_context(VideoWriter(path, fps_of(real)))
        episodes = []
        for episode in range(n_episodes):
            observation, _ = real.reset(seed=seed if episode == 0 else None)
            prediction = DrawnOpenLoop(model, fitted, layout, real, imagined)
            episodes.append(_record(prediction, observation, horizon, max_steps, writer.append))
        return episodes


def check_model_and_env(model: PWM, env: EnvFactory) -> None:
    """Check that there is a world model, and that several environments can be made.

    :raises TypeError: if not.
    """
    if not isinstance(model, PWM):
        raise TypeError(f"model must be a PWM, which has a world model, not {type(model).__name__}")
    if isinstance(env, gym.Env):
        raise TypeError("env must be an id or a function that makes an environment: two of them are needed")


class OpenLoop:
    """A world model's open-loop prediction, read as observations.

    :param model: the model.
    :param fitted: reads observations from latents.
    """

    latents: torch.Tensor
    """(1, Z) predicted latents."""
    decoded: np.ndarray
    """(D,) observation that is read from them."""
    ending: float | None = None
    """Predicted probability in [0, 1] that the newest step ends the episode; None without a termination head."""

    def __init__(self, model: PWM, fitted: FittedDecoder) -> None:
        self.model, self.fitted = model, fitted

    def synchronize(self, observation: np.ndarray) -> None:
        """Start again from the true (D,) observation."""
        self.ahead = 0
        self._decode(encode(self.model, observation[None]))

    @torch.no_grad()
    def step(self, action: np.ndarray) -> float:
        """Predict one step; return its predicted reward in the environment's units."""
        policy, normalizer = self.model.policy, self.model.get_vec_normalize_env()
        actions = policy.actions_for_networks(np.asarray(action)[None])
        rewards = (policy.world_model.rewards(self.latents, actions) * policy.reward_scale.scale).cpu().numpy()
        self._decode(policy.world_model.next_latents(self.latents, actions, self.ahead))
        self.ahead += 1
        if self.model.termination_coef > 0:
            self.ending = 1 - float(policy.world_model.continuations(self.latents)[0])
        return float((rewards if normalizer is None else normalizer.unnormalize_reward(rewards))[0])

    def _decode(self, latents: torch.Tensor) -> None:
        self.latents = latents
        self.decoded = self.fitted.decoder(latents)[0].cpu().numpy()


class DrawnOpenLoop(OpenLoop):
    """The model's open-loop prediction in one environment beside the truth in another."""

    def __init__(
        self,
        model: PWM,
        fitted: FittedDecoder,
        layout: StateLayout,
        real: gym.Env[Any, Any],
        imagined: gym.Env[Any, Any],
    ) -> None:
        super().__init__(model, fitted)
        self.layout, self.real, self.imagined = layout, real, imagined
        self.dt: float = real.unwrapped.dt  # type: ignore[attr-defined]
        shown = torch.arange(layout.size, device=model.device)
        self.varying = shown[fitted.decoder.std[: layout.size] > 0]

    def synchronize(self, observation: np.ndarray) -> None:
        """Start again from the truth, also in the picture."""
        super().synchronize(observation)
        self.skipped = skipped_positions(self.real, self.layout)
        self._show()

    def step(self, action: np.ndarray) -> float:
        """Predict one step and draw it; return its predicted reward in the environment's units."""
        before = self._root_velocity()
        reward = super().step(action)
        self.skipped = self.skipped + self.dt * (before + self._root_velocity()) / 2
        self._show()
        return reward

    def _show(self) -> None:
        set_observed_state(self.imagined, self.layout, self.decoded, self.skipped)

    def _root_velocity(self) -> np.ndarray:
        """Return the velocities of the positions that the observation leaves out."""
        start = self.layout.positions
        return self.decoded[start : start + self.layout.skipped]

    def error(self, observation: np.ndarray) -> float:
        """Compare with the true observation; the decoder's own error is in both and falls out."""
        standardized = self.fitted.decoder.standardized
        difference = standardized(self.latents) - standardized(encode(self.model, observation[None]))
        return float(difference[0, self.varying].square().mean().sqrt())


def encode(model: PWM, observations: np.ndarray) -> torch.Tensor:
    """Return the (N, Z) latents of (N, D) observations as the environment gives them."""
    normalizer = model.get_vec_normalize_env()
    seen = observations if normalizer is None else normalizer.normalize_obs(observations)
    with torch.no_grad():
        parts = [model.policy.world_model.encode(model.policy.obs_to_tensor(part)[0]) for part in _batches(seen)]
    return torch.cat(parts)


def _batches(rows: Any) -> Iterator[Any]:
    for start in range(0, len(rows), BATCH_ROWS):
        yield rows[start : start + BATCH_ROWS]


def fit_latent_decoder(
    model: PWM, env: EnvFactory, dataset: ReplayBuffer | None = None, updates: int = 2_000
) -> FittedDecoder:
    """Fit a decoder to a model's latents of recorded observations; the model does not change.

    :param model: the model.
    :param env: id, or function that makes an environment, for the case that there are too few recorded steps.
    :param dataset: as for :func:`record_imagination`.
    :param updates: gradient steps.
    :return: the decoder, from latents to observations in the environment's units, and its held-out R^2.
    :raises TypeError: if ``dataset`` is not a replay buffer.
    :raises ValueError: if its spaces are not the model's or it holds fewer than 1,000 steps.
    """
    if dataset is not None:
        buffer = model._checked_buffer(dataset, "observation_space", "action_space")
        if buffer.n_transitions < MIN_STEPS:
            raise ValueError(f"dataset holds {buffer.n_transitions} steps; allowed: {MIN_STEPS} or more")
        observations = _recorded_observations(buffer)
    elif model.replay_buffer is not None and model.sequences.n_transitions >= MIN_STEPS:
        observations = _recorded_observations(model.sequences)
    else:
        observations = _policy_observations(model, env)
    latents = encode(model, observations)
    return fit_decoder(latents, torch.as_tensor(observations, device=latents.device), updates=updates)


def _recorded_observations(buffer: SequenceReplayBuffer) -> np.ndarray:
    observations = buffer.statistics_sample()
    return cast(torch.Tensor, observations).cpu().numpy()  # Dict observations hold no state to draw


def _policy_observations(model: PWM, env: EnvFactory) -> np.ndarray:
    """Return the (N, D) observations that the stochastic policy meets, always the same ones."""
    observations: list[np.ndarray] = []
    seed = 0
    with closing(make_env(env)) as made, untouched_generators():
        torch.manual_seed(0)
        while len(observations) < POLICY_STEPS:
            observations.append(made.reset(seed=seed)[0])
            left = POLICY_STEPS - len(observations)
            observations += [step.observation for step in play(model, made, observations[-1], left, False)]
            seed += 1
    return np.asarray(observations)


def _record(
    prediction: DrawnOpenLoop,
    observation: np.ndarray,
    horizon: int,
    max_steps: int,
    append: Callable[[np.ndarray], None],
) -> ImaginedEpisode:
    """Play an episode and show it beside its prediction."""
    total, predicted, errors = 0.0, 0.0, []

    def show(step: int, ahead: int, error: float) -> None:
        real = overlay(render(prediction.real), f"real, step {step}", f"return {total:.1f}")
        ahead_of = f"imagined, {ahead} of {horizon} steps ahead"
        text = (ahead_of, f"return {predicted:.1f}   error {error:.2f} std")
        append(beside(real, overlay(render(prediction.imagined), *text)))

    prediction.synchronize(observation)
    show(0, 0, 0.0)
    for count, step in enumerate(play(prediction.model, prediction.real, observation, max_steps, True)):
        ahead = count % horizon
        if ahead == 0:
            prediction.synchronize(observation)
        predicted += prediction.step(step.action)
        total += step.reward
        observation = step.observation
        errors.append(prediction.error(observation))
        show(count + 1, ahead + 1, errors[-1])
    return ImaginedEpisode(total, predicted, np.array(errors), prediction.fitted.r2.cpu().numpy())
