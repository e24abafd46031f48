"""Acting by planning, to compare with acting by the policy."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_pwm.checks import check_action_space, check_integer, check_number
from sb3_pwm.diagnostics.start_values import StartValues
from sb3_pwm.networks import Actor
from sb3_pwm.planning.mppi import MPPISettings, mppi, policy_sequences, sequence_returns
from sb3_pwm.pwm import PWM
from sb3_pwm.world_model import WorldModel


class Planner:
    """Act by TD-MPC2's MPPI (arXiv 2310.16828) in a model's world model, with its actor and critics.

    Every action is the first of a sequence that is searched for anew: drawn sequences are scored by their imagined
    return, ended by the critics' value, and a Gaussian is fitted to the best ones, several times over. As with
    ``predict`` of an SB3 algorithm, observations are those that the model was trained on: of its ``VecNormalize``, if
    it has one. The networks are the model's at the time of the call, so a planner stays up to date as the model learns.

    The defaults are TD-MPC2's, which has 8 iterations where there are 20 action dimensions or more. Its published code
    acts by one of the elites, drawn by weight; here it is their mean. ``termination_coef`` and ``gamma`` are the
    model's: with ``termination_coef=0`` imagined episodes never end.

    :param model: model whose world model has been trained.
    :param horizon: number H of imagined steps before the critics value what follows.
    :param n_samples: number N of sequences in each iteration.
    :param n_elites: number of best sequences to which the Gaussian is fitted.
    :param n_policy_trajectories: number of sequences, of the N, that the actor draws.
    :param n_iterations: number of times that the Gaussian is fitted.
    :param temperature: weight of a sequence's return, in reward scales, in the logarithm of its weight: the higher, the
        more only the best sequences count.
    :param min_std: lowest standard deviation of the Gaussian; actions are in [-1, 1].
    :param max_std: highest one, from which every search starts.
    :param seed: of the random numbers, the only hidden state: planners with the same seed act alike. Or a generator on
        the model's device.
    :raises TypeError: if an argument is of the wrong kind.
    :raises ValueError: if a number is out of its range, or the model's actions are discrete.
    """

    def __init__(
        self,
        model: PWM,
        *,
        horizon: int = 3,
        n_samples: int = 512,
        n_elites: int = 64,
        n_policy_trajectories: int = 24,
        n_iterations: int = 6,
        temperature: float = 0.5,
        min_std: float = 0.05,
        max_std: float = 2.0,
        seed: int | torch.Generator = 0,
    ) -> None:
        if not isinstance(model, PWM):
            raise TypeError(f"model must be a PWM, which has a world model, not {type(model).__name__}")
        if not isinstance(model.action_space, spaces.Box):
            raise ValueError(f"planning searches among numbers, not in {model.action_space}: act by the model itself")
        check_integer("horizon", horizon, 1)
        check_integer("n_samples", n_samples, 1)
        check_integer("n_elites", n_elites, 1, n_samples)
        check_integer("n_policy_trajectories", n_policy_trajectories, 0, n_samples)
        check_integer("n_iterations", n_iterations, 1)
        check_number("temperature", temperature, 0, closed=False)
        check_number("max_std", max_std, 0, closed=False)
        check_number("min_std", min_std, 0, max_std)
        if not isinstance(seed, torch.Generator):
            check_integer("seed", seed, 0)
            seed = torch.Generator(model.device).manual_seed(seed)
        self.model = model
        self.horizon = horizon
        self.n_samples = n_samples
        self.n_policy_trajectories = n_policy_trajectories
        self.n_iterations = n_iterations
        self.settings = MPPISettings(n_elites, temperature, min_std, max_std)
        self.generator = seed

    @torch.no_grad()
    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions, and the state from which the next search starts.

        :param observation: one observation, or one for each of n_envs environments.
        :param state: what the previous call returned: the (n_envs, H, A) mean of its plan, one step on. None starts
            from zeros.
        :param episode_start: (n_envs,) whether an episode starts, where the search starts from zeros too. None: none
            does.
        :param deterministic: take the mean of the plan's first step; else draw from its Gaussian.
        :return: (n_envs, *action_shape) actions of the action space's type within its bounds, without the first axis
            for one observation; and the state.
        :raises ValueError: if there is no world model or it has not been trained, ``state`` or ``episode_start`` has
            another shape, or the observation or ``state`` is not finite.
        """
        if not isinstance(self.model.policy.world_model, WorldModel):
            raise ValueError("planning searches in a learnt world model; this one was made by TrueDynamicsPWM or SHAC")
        if not self.model.n_model_updates:
            raise ValueError(
                "planning needs a trained world model, and this one has had no update: call learn(), pretrain() or "
                "load_world_model() first"
            )
        policy = self.model.policy
        policy.set_training_mode(False)
        observations, vectorized = policy.obs_to_tensor(observation)
        for part in observations.values() if isinstance(observations, dict) else [observations]:
            _check_finite("the observation", part)
        latents = policy.world_model.encode(observations)
        mean, std = self._plan(latents, self._start(latents, state, episode_start))
        first = mean[0]
        if not deterministic:
            first = first + self._actor.without_padding(std[0] * self._draw(*first.shape), latents)
        space = check_action_space(policy.action_space)
        actions = policy.unscale_action(first.clamp(-1, 1).cpu().numpy().reshape(-1, *space.shape))
        actions = actions.clip(space.low, space.high)  # rounding may go beyond
        following = torch.cat([mean[1:], torch.zeros_like(mean[:1])]).transpose(0, 1)
        return actions if vectorized else actions[0], (following.cpu().numpy(),)

    def _start(
        self, latents: torch.Tensor, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None
    ) -> torch.Tensor:
        """Return the (H, E, A) mean from which the search starts in (E, Z) latents."""
        actor = self._actor
        shape = len(latents), self.horizon, actor.action_dim
        mean = np.zeros(shape, np.float32) if state is None else np.array(state[0], np.float32)
        if mean.shape != shape:
            raise ValueError(f"state has the shape {mean.shape}; allowed: {shape}, or None")
        if episode_start is not None:
            starts = np.reshape(episode_start, -1).astype(bool)
            if len(starts) != len(latents):
                raise ValueError(f"episode_start has {len(starts)} entries; allowed: {len(latents)}, or None")
            mean[starts] = 0
        plan = torch.as_tensor(mean, device=latents.device)
        _check_finite("state", plan)
        return actor.without_padding(plan.transpose(0, 1), latents)

    def _plan(self, latents: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (H, E, A) mean and standard deviation of the sequences found from (E, Z) latents."""
        model, policy = self.model, self.model.policy
        _, n_envs, action_dim = start.shape
        proposals = self._draw(self.horizon, n_envs, self.n_policy_trajectories, action_dim)
        n_drawn = self.n_samples - self.n_policy_trajectories
        noise = self._draw(self.n_iterations, self.horizon, n_envs, n_drawn, action_dim)
        score = functools.partial(
            sequence_returns,
            policy.world_model,
            self._actor,
            policy.critics,
            latents,
            gamma=model.gamma,
            terminations=model.termination_coef > 0,
            q_critic=policy.q_critic,
        )
        return mppi(
            score,
            start,
            self._actor.without_padding(noise, latents.unsqueeze(1)),
            policy_sequences(policy.world_model, self._actor, latents, proposals),
            self.settings,
        )

    @property
    def _actor(self) -> Actor:
        return cast(Actor, self.model.policy.actor)  # of a Box, as the constructor has seen

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.generator.device)


def _check_finite(what: str, values: torch.Tensor) -> None:
    """Check (E, ...) values of E environments, which a search would pass on to its plan, and so to the next one."""
    finite = values.float().isfinite().reshape(len(values), -1).all(1)
    if not finite.all():
        index = int((~finite).nonzero()[0])
        raise ValueError(f"{what} of environment {index} is not finite as float32; nothing can be planned from it")


class PlanningPWM(PWM):
    """:class:`sb3_pwm.PWM` whose ``predict`` plans; it learns exactly as PWM does.

    The steps that it learns from are the policy's, and so are those of ``value_calibration`` and ``model_gap``, whose
    critics value the policy. Before the first update of the world model the policy acts. It loads what PWM has saved.

    :param args: PWM's.
    :param planner_kwargs: arguments of :class:`Planner` but the model; its seed is this model's, or 0.
    :param kwargs: PWM's.
    :raises TypeError: as PWM, or if the planner has no such argument.
    :raises ValueError: as PWM, or as the planner.
    """

    _by_policy = False

    def __init__(self, *args: Any, planner_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.planner_kwargs = planner_kwargs
        super().__init__(*args, **kwargs)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed all random generators, also the planner's."""
        super().set_random_seed(seed)
        # Not the planner, which owns its model: the other way round too, neither would be freed
        self._generator = Planner(self, **({"seed": seed or 0} | self._planner_arguments)).generator

    @property
    def _planner_arguments(self) -> dict[str, Any]:
        if not isinstance(self.planner_kwargs, dict | None):
            raise TypeError(f"planner_kwargs must be a dictionary of Planner's arguments, not {self.planner_kwargs!r}")
        return self.planner_kwargs or {}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_generator", "_by_policy"]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return planned actions, see :meth:`Planner.predict`."""
        if not self.n_model_updates or self._by_policy:
            return super().predict(observation, state, episode_start, deterministic)
        planner = Planner(self, **(self._planner_arguments | {"seed": self._generator}))
        return planner.predict(observation, state, episode_start, deterministic)

    @contextlib.contextmanager
    def _acting_by_policy(self) -> Iterator[None]:
        self._by_policy = True
        try:
            yield
        finally:
            self._by_policy = False

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        with self._acting_by_policy():
            return super()._sample_action(learning_starts, action_noise, n_envs)

    def _evaluated_start_values(self, env: GymEnv | VecEnv, n_episodes: int, deterministic: bool) -> StartValues:
        with self._acting_by_policy():
            return super()._evaluated_start_values(env, n_episodes, deterministic)
