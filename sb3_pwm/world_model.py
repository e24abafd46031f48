"""The latent world model: encoder, dynamics, reward and termination (TD-MPC2, arXiv 2310.16828, with terminations)."""

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from sb3_pwm.compute.streams import side_by_side
from sb3_pwm.nn.layers import SimNorm, mlp, truncated_normal_init
from sb3_pwm.nn.predictability import linear_predictability
from sb3_pwm.nn.task_context import TaskContext
from sb3_pwm.nn.two_hot import two_hot, two_hot_inv
from sb3_pwm.observations import to_each_step
from sb3_pwm.type_aliases import Observations

SKIP_OFFSET = 0.1  # keeps the logarithm of residual dynamics, and its slope, bounded where a latent is nearly 0
OBSERVATION_COEF = 2.0  # weight of the observation head's error, by default
READ_FEATURES = 1_000  # of observations, at most, by default: more take too much time
READ_TOGETHER = 30.0  # fully predictable dimensions that share a weight of 1; of more, each has a 30th
TWO_HOT_RANGE = 10.0  # the bins cover symlog(reward) in [-10, 10]: rewards up to 22,025 reward scales


class WorldModel(nn.Module):
    """Predict latents, rewards and terminations from actions.

    Where nothing in front of the encoder is trained, as with observations that are vectors, a linear head reads the
    observations back from the latents. Nothing uses what it reads: it keeps in the latents what rewards do not show.
    Unpredictable dimensions (contact forces, say) would fill the latents with noise, so :meth:`weigh_observations`
    gives them small weights.

    :param features: module that turns observations into (N, features_dim) features, trained with the model. A model of
        several tasks has one that knows them, see :class:`sb3_pwm.nn.task_context.TaskFeatures`.
    :param features_dim: number of features.
    :param action_dim: number of action dimensions A.
    :param latent_dim: number of latents Z, a multiple of ``simnorm_dim``.
    :param simnorm_dim: size of a SimNorm group.
    :param encoder: hidden sizes of the encoder.
    :param dynamics: hidden sizes of the dynamics.
    :param reward: hidden sizes of the reward head.
    :param termination: hidden sizes of the termination head.
    :param activation_fn: class of the activation.
    :param reward_bins: number of two-hot bins of the reward head; 0 for a scalar head with squared error.
    :param residual_dynamics: predict the change of the latents, see :meth:`next_latents`.
    :param latent_layer_norm: put LayerNorm in front of SimNorm, behind the last layers of encoder and dynamics.
    :param n_dynamics: number K of dynamics networks, which differ by their start values only.
    :param context: of models of several tasks: module that turns observations into (N, C) features of their tasks, see
        :class:`sb3_pwm.nn.task_context.TaskContext`. They go into the encoder and, as the last C of Z latents, into
        every network; no step changes them.
    """

    bins: torch.Tensor
    observation_weights: torch.Tensor

    def __init__(
        self,
        features: nn.Module,
        features_dim: int,
        action_dim: int,
        *,
        latent_dim: int,
        simnorm_dim: int,
        encoder: Sequence[int],
        dynamics: Sequence[int],
        reward: Sequence[int],
        termination: Sequence[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        reward_bins: int = 0,
        residual_dynamics: bool = True,
        latent_layer_norm: bool = False,
        n_dynamics: int = 1,
        context: TaskContext | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.context = context
        self.features_dim = features_dim
        self.action_dim = action_dim
        self.own_dim = latent_dim
        context_dim = context.size if context else 0
        self.latent_dim = latent_dim + context_dim
        self.residual_dynamics = residual_dynamics
        self.simnorm = SimNorm(simnorm_dim)
        # Both end in SimNorm, which forgives rounding.
        latent_mlp = functools.partial(
            mlp, activation_fn=activation_fn, full_precision_output=False, norm_output=latent_layer_norm
        )
        self.encoder = nn.Sequential(latent_mlp(features_dim + context_dim, encoder, latent_dim), self.simnorm)
        self.dynamics = nn.ModuleList(
            latent_mlp(self.latent_dim + action_dim, dynamics, latent_dim) for _ in range(n_dynamics)
        )
        self.reward = mlp(self.latent_dim + action_dim, reward, max(1, reward_bins), activation_fn)
        self.termination = mlp(self.latent_dim, termination, 1, activation_fn)
        # What is trained could become anything that is easy to read.
        is_fixed = next(features.parameters(), None) is None
        self.observation = mlp(self.latent_dim, (), features_dim) if is_fixed else None
        if is_fixed:
            self.register_buffer("observation_weights", torch.full((features_dim,), 1 / features_dim))
        self.register_buffer("bins", torch.linspace(-TWO_HOT_RANGE, TWO_HOT_RANGE, reward_bins), persistent=False)
        heads = [self.reward, self.termination, *([] if self.observation is None else [self.observation])]
        for network in (self.encoder, self.dynamics, *heads):
            truncated_normal_init(network)
        for head in (*heads, *(self.dynamics if residual_dynamics else [])):
            nn.init.zeros_(head[-1].weight)  # of residual dynamics the last layer may be a LayerNorm: this is its gain

    def encode(self, observations: Observations) -> torch.Tensor:
        """Encode (N, *obs_shape) observations, as the environment gives them, to (N, Z) latents."""
        features = self.features(observations)
        if self.context is None:
            latents: torch.Tensor = self.encoder(features)
            return latents
        context = self.context(observations)
        return torch.cat([self.encoder(torch.cat([features, context], -1)), context], -1)

    def next_latents(self, latents: torch.Tensor, actions: torch.Tensor, step: int = 0) -> torch.Tensor:
        r"""Return the (..., B, Z) latents after taking (..., B, A) actions in (..., B, Z) latents.

        .. math:: z' = \mathrm{SimNorm}(f(z, a) + \log(z + 0.1))

        Without the logarithm (``residual_dynamics=False``) it is TD-MPC2's (arXiv 2310.16828, eq. 3) and the paper's
        form. Where one step changes little, that form errs by more than the change for thousands of updates.

        With K dynamics networks, network ``(i + step) % K`` predicts the i-th of K parts of the rows B: a rollout that
        counts its steps meets all of them, and a policy gains nothing from the errors of one.

        :param latents: latents.
        :param actions: actions in [-1, 1].
        :param step: number of the step in its rollout.
        """
        count = len(self.dynamics)
        if count == 1:
            return self._next_latents(0, latents, actions)
        parts = zip(latents.chunk(count, -2), actions.chunk(count, -2), strict=True)
        return torch.cat([self._next_latents((i + step) % count, *part) for i, part in enumerate(parts)], -2)

    def all_next_latents(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return what each of K dynamics networks predicts for its own (K, B, Z) latents and the same (B, A) actions.

        :return: (K, B, Z) latents.
        """
        works = [functools.partial(self._next_latents, k, own, actions) for k, own in enumerate(latents)]
        return torch.stack(side_by_side(works, latents.device))

    def _next_latents(self, k: int, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        logits = self.dynamics[k](self._inputs(latents, actions))
        own, context = latents[..., : self.own_dim], latents[..., self.own_dim :]
        if self.residual_dynamics:
            logits = logits + (own.clamp(min=0) + SKIP_OFFSET).log()  # inferred noise may lead below 0
        following: torch.Tensor = self.simnorm(logits)
        return following if self.context is None else torch.cat([following, context], -1)

    def _inputs(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        padding = self.action_dim - actions.shape[-1]  # where one task of several is served, with its own actions
        return torch.cat([latents, F.pad(actions, (0, padding)) if padding else actions], -1)

    def latent_error(self, latents: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the (...) mean squared error of (..., Z) latents, but for their context."""
        return (latents - targets)[..., : self.own_dim].square().mean(-1)

    def observation_error(self, latents: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the (...) weighted squared error of (..., D) features, as they are read from (..., Z) latents.

        :raises RuntimeError: if the features are trained: then there is no such head.
        """
        if self.observation is None:
            raise RuntimeError("features that are trained are not read from latents")
        squares: torch.Tensor = (self.observation(latents) - features).square()
        return (squares * self.observation_weights).sum(-1)

    def observation_weight(self, coefficient: float | Literal["auto"]) -> float:
        """Return the weight of :meth:`observation_error` in the loss.

        :param coefficient: as given by the user; ``"auto"`` for 2, and for 0 where observations have more than 1,000
            dimensions.
        :return: the weight; 0 where there is no observation head.
        """
        if self.observation is None:
            return 0.0
        if isinstance(coefficient, str):
            return OBSERVATION_COEF if self.features_dim <= READ_FEATURES else 0.0
        return coefficient

    @torch.no_grad()
    def weigh_observations(self, observations: Observations, actions: torch.Tensor, following: Observations) -> None:
        """Weight each dimension's error by how predictable it is.

        That is the share of its variance that a linear model predicts one step ahead, see
        :func:`sb3_pwm.nn.predictability.linear_predictability`. The weights are the shares divided by their sum S, but
        at least by 1 and at most by 30.

        :param observations: (N, *obs_shape) observations.
        :param actions: (N, A) actions.
        :param following: (N, *obs_shape) next observations.
        """
        shares = linear_predictability(self.features(observations), actions, self.features(following))
        self.observation_weights.copy_(shares / shares.sum().clamp(1, READ_TOGETHER))

    def rewards(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return the (...) rewards, in reward scales, of taking (..., A) actions in (..., Z) latents."""
        output: torch.Tensor = self.reward(self._inputs(latents, actions))
        return two_hot_inv(output, self.bins) if len(self.bins) else output.squeeze(-1)

    def outcomes(
        self, latents: torch.Tensor, actions: torch.Tensor, *, terminations: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the heads predict along a rollout.

        :param latents: (H + 1, ..., Z) latents, from the start states to the last ones.
        :param actions: (H, ..., A) actions taken in all but the last.
        :param terminations: ask the termination head; False: episodes never end.
        :return: (H, ...) rewards in reward scales, and (H, ...) probabilities in [0, 1] that a step does not end the
            episode.
        """
        heads = [functools.partial(self.rewards, latents[:-1], actions)]
        if terminations:
            heads.append(functools.partial(self.continuations, latents[1:]))
        rewards, *continuations = side_by_side(heads, latents.device)
        return rewards, continuations[0] if terminations else torch.ones_like(rewards)

    def reward_error(self, latents: torch.Tensor, actions: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """Return the (...) error of the reward head: the squared error, or the cross-entropy of its bins."""
        output: torch.Tensor = self.reward(self._inputs(latents, actions))
        if len(self.bins):
            return -(two_hot(rewards, self.bins) * output.log_softmax(-1)).sum(-1)
        return (output.squeeze(-1) - rewards).square()

    def termination_logits(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (...) log-odds that the episode has ended on reaching (..., Z) latents."""
        logits: torch.Tensor = self.termination(latents).squeeze(-1)
        return logits

    def continuations(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (...) probability in [0, 1] that the episode goes on from (..., Z) latents."""
        return torch.sigmoid(-self.termination_logits(latents))

    def termination_error(self, latents: torch.Tensor, terminations: torch.Tensor) -> torch.Tensor:
        """Return the (...) binary cross-entropy of the termination head."""
        return F.binary_cross_entropy_with_logits(self.termination_logits(latents), terminations, reduction="none")


def encode_windows(world_model: WorldModel, observations: Observations) -> torch.Tensor:
    """Encode (T, B, *obs_shape) observations to (T, B, Z) latents."""
    return to_each_step(world_model.encode, observations)
