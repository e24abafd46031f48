"""The actor and the critics; both see latents only."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from sb3_pwm.compute.streams import side_by_side
from sb3_pwm.nn.action_codes import ActionCodes
from sb3_pwm.nn.layers import mlp, orthogonal_init

DEFAULT_NET_ARCH = {
    "encoder": [192],
    "dynamics": [192, 192],
    "reward": [192, 192],
    "termination": [192],
    "pi": [192, 192],
    "qf": [192, 192],
}
LOG_STD_RANGE = (-5.0, 2.0)
LOG_STD_INIT = -1.0  # of the state-independent standard deviation, with its floor (the paper's values)
LOG_STD_FLOOR = -1.427
ENT_COEF_INIT = 0.2
MIN_ENT_COEF = 1e-5  # next to nothing; from much less the way back would take longer than most runs
VALUE_UNIT = 10.0  # of the critics' outputs, in reward scales; see CriticEnsemble
LOG_NORMALIZER = 0.5 * math.log(2 * math.pi) + 2 * math.log(2)
TARGET_ENTROPY = 0.15  # of discrete actions, by default, as a share of the largest; see CategoricalActor.target_entropy
MOST_ENUMERATED = 20  # discrete actions whose values are all computed, at a cost; of more one is drawn


class LatentActor(nn.Module, ABC):
    """A stochastic policy over latents: what rollouts and losses need of it.

    Actions are as networks take them: numbers in [-1, 1], or codes of discrete actions.
    """

    optimizer: torch.optim.Optimizer
    """Set by the policy."""
    action_dim: int
    """Size A of an action."""

    @abstractmethod
    def sample(self, latents: torch.Tensor) -> torch.Tensor:
        """Draw (..., A) actions in (..., Z) latents, differentiable in the parameters."""

    @abstractmethod
    def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw (..., A) actions in (..., Z) latents; return them and (...) numbers with the mean of log pi."""

    @abstractmethod
    def mode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (..., A) deterministic actions of (..., Z) latents."""

    @abstractmethod
    def target_entropy(self, latents: torch.Tensor) -> torch.Tensor | float:
        """Return the entropy, in nats, that ``"auto"`` aims at: one number, or (...) in (..., Z) latents."""

    @abstractmethod
    def distance(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return how far the policy in (..., Z) latents is from (..., A) recorded actions: (...) numbers."""

    def all_actions(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the (K, A) actions there are, and their (..., K) log-probabilities in (..., Z) latents.

        :return: None if there are too many.
        """
        return None


class Actor(LatentActor):
    """Tanh-Gaussian policy over latents.

    :param latent_dim: number of latents Z.
    :param action_dim: number of action dimensions A.
    :param hidden: hidden sizes.
    :param activation_fn: class of the activation.
    :param state_dependent_std: predict the standard deviation from the latents; else one learnt vector.
    :param norm_after_activation: order of the hidden layers, see :func:`sb3_pwm.nn.layers.mlp`.
    :param masked: the last A of the Z latents say which action dimensions exist (1) and which are padding (0); padding
        is always 0 and has no density.
    :param latent_scale: what the network sees of the latents, see :class:`sb3_pwm.nn.scales.LatentScale`.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        *,
        state_dependent_std: bool = True,
        norm_after_activation: bool = False,
        masked: bool = False,
        latent_scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.masked = masked
        self.latent_scale = latent_scale or nn.Identity()
        outputs = 2 * action_dim if state_dependent_std else action_dim
        self.net = mlp(latent_dim, hidden, outputs, activation_fn, norm_after_activation=norm_after_activation)
        self.log_std = None if state_dependent_std else nn.Parameter(torch.full((action_dim,), LOG_STD_INIT))

    def distribution(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (..., A) mean and log standard deviation, before tanh, in (..., Z) latents."""
        outputs = self.net(self.latent_scale(latents))
        if self.log_std is not None:
            return outputs, self.log_std.clamp(min=LOG_STD_FLOOR).expand_as(outputs)
        mean, log_std = outputs.chunk(2, -1)
        low, high = LOG_STD_RANGE
        return mean, low + 0.5 * (high - low) * (torch.tanh(log_std) + 1)

    def sample(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Draw (..., A) actions in [-1, 1] in (..., Z) latents, differentiable in the parameters.

        :param latents: (..., Z) latents.
        :param noise: (..., A) standard normal numbers; None draws them.
        """
        mean, log_std = self.distribution(latents)
        noise = torch.randn_like(mean) if noise is None else noise
        return self.without_padding(torch.tanh(mean + log_std.exp() * noise), latents)

    def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Draw actions as :meth:`sample` does, and return their log-probabilities too.

        .. math:: a = \tanh u,\ u = \mu + \sigma \epsilon,\quad
            \log p(a) = \sum_i \log N(u_i; \mu_i, \sigma_i) - \log(1 - \tanh^2 u_i)

        (SAC, arXiv 1812.05905, appendix C.)

        :param latents: (..., Z) latents.
        :return: (..., A) actions in [-1, 1] and their (...) log-probabilities.
        """
        mean, log_std = self.distribution(latents)
        noise = torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which stays finite for large |u|
        log_prob = -0.5 * noise.square() - log_std + 2 * (u + F.softplus(-2 * u)) - LOG_NORMALIZER
        return self.without_padding(torch.tanh(u), latents), self.without_padding(log_prob, latents).sum(-1)

    def mode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (..., A) deterministic actions in [-1, 1] of (..., Z) latents."""
        means = self.net(self.latent_scale(latents))[..., : self.action_dim]  # no standard deviations: acting is faster
        return self.without_padding(torch.tanh(means), latents)

    def target_entropy(self, latents: torch.Tensor) -> torch.Tensor | float:
        """Return minus half the number of action dimensions, in (..., Z) latents."""
        return -self.n_actions(latents) / 2

    def distance(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return the (...) mean squared distances of the deterministic actions in (..., Z) latents to (..., A) ones."""
        return (self.mode(latents) - actions).square().sum(-1) / self.n_actions(latents)

    def n_actions(self, latents: torch.Tensor) -> torch.Tensor | int:
        """Return the number of action dimensions that are not padding: A, or (...) numbers in (..., Z) latents."""
        return latents[..., -self.action_dim :].sum(-1) if self.masked else self.action_dim

    def without_padding(self, per_action: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return (..., A) numbers, one per action dimension, with 0 for what is padding in (..., Z) latents."""
        return per_action * latents[..., -self.action_dim :] if self.masked else per_action


class CategoricalActor(LatentActor):
    r"""Policy over latents that chooses a category for each of C components; its actions are codes.

    Drawn actions are one-hot, and their gradient is that of the probabilities:

    .. math:: a = \mathrm{onehot}(k) + p - sg(p), \quad k \sim p

    (the straight-through gradients of DreamerV2, arXiv 2010.02193, algorithm 1). The mean gradient is exact where what
    follows is linear in the code; else it takes the slope at the drawn action for the difference to the others.

    :param latent_dim: number of latents Z.
    :param codes: the components and their categories; a code has A numbers.
    :param hidden: hidden sizes.
    :param activation_fn: class of the activation.
    :param norm_after_activation: order of the hidden layers, see :func:`sb3_pwm.nn.layers.mlp`.
    :param latent_scale: what the network sees of the latents, see :class:`sb3_pwm.nn.scales.LatentScale`.
    """

    joint_codes: torch.Tensor

    def __init__(
        self,
        latent_dim: int,
        codes: ActionCodes,
        hidden: Sequence[int],
        activation_fn: type[nn.Module] = nn.SiLU,
        *,
        norm_after_activation: bool = False,
        latent_scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.codes = codes
        self.action_dim = codes.size
        self.latent_scale = latent_scale or nn.Identity()
        self.net = mlp(latent_dim, hidden, codes.size, activation_fn, norm_after_activation=norm_after_activation)
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)  # every action is as likely as the others at first
        self.is_enumerated = codes.n_joint <= MOST_ENUMERATED
        joint = codes.all_codes() if self.is_enumerated else torch.empty(0, codes.size)
        self.register_buffer("joint_codes", joint, persistent=False)

    def distribution(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (..., A) log-probabilities of every component's categories in (..., Z) latents."""
        logits = self.net(self.latent_scale(latents))
        return torch.cat([group.log_softmax(-1).flatten(-2) for group in self.codes.groups(logits)], -1)

    def sample(self, latents: torch.Tensor) -> torch.Tensor:
        """Draw (..., A) codes in (..., Z) latents, with straight-through gradients."""
        return self._drawn(self.distribution(latents))

    def sample_with_log_prob(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Draw codes as :meth:`sample` does, and return the mean of log pi over all actions, not the drawn one's.

        .. math:: E[\log \pi] = \sum_c \sum_k p_{c,k} \log p_{c,k}

        It is minus the entropy, is differentiable as it is, and has no noise.

        :param latents: (..., Z) latents.
        :return: (..., A) codes, and (...) means.
        """
        log_probs = self.distribution(latents)
        return self._drawn(log_probs), (log_probs.exp() * log_probs).sum(-1)

    def log_prob(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return the (...) log-probabilities of (..., A) codes in (..., Z) latents."""
        return (self.distribution(latents) * actions).sum(-1)

    def mode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the (..., A) codes of the most likely actions in (..., Z) latents."""
        return self._highest(self.distribution(latents))

    def target_entropy(self, latents: torch.Tensor) -> torch.Tensor | float:
        """Return 15 % of the largest entropy, which is the sum of the logarithms of the numbers of categories.

        Of two actions the better one then has 98 %. With half of the largest entropy it has 89 %: one wrong action in
        nine is too many for a pole. The 98 % of SAC-discrete (arXiv 1910.07207) leave two actions at 58 and 42 %, which
        a policy hardly keeps to where actions matter: the coefficient then grows on and on.
        """
        return TARGET_ENTROPY * self.codes.max_entropy

    def distance(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Return minus the (...) log-probabilities of (..., A) codes in (..., Z) latents, per component, in nats."""
        return -self.log_prob(latents, actions) / len(self.codes.sizes)

    def all_actions(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the (K, A) codes there are, and their (..., K) log-probabilities in (..., Z) latents.

        :return: None if there are more than ``MOST_ENUMERATED``.
        """
        if not self.is_enumerated:
            return None
        return self.joint_codes, self.distribution(latents) @ self.joint_codes.T

    def _drawn(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Draw (..., A) codes from (..., A) log-probabilities."""
        # The largest of log p - log E, with E exponentially distributed, is k with probability p_k.
        noise = torch.empty_like(log_probs).exponential_().log()
        probs = log_probs.exp()
        return self._highest(log_probs.detach() - noise) + (probs - probs.detach())  # exactly 0 or 1

    def _highest(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the (..., A) codes of the categories with the highest of (..., A) scores."""
        parts = [
            torch.zeros_like(group).scatter(-1, group.argmax(-1, keepdim=True), 1.0).flatten(-2)
            for group in self.codes.groups(scores)
        ]
        return torch.cat(parts, -1)


class EntropyCoefficient(nn.Module):
    """Weight of the entropy bonus, as a parameter: learnt where ``ent_coef="auto"``.

    :param n_tasks: number of tasks with a weight each; None for one weight.
    """

    def __init__(self, n_tasks: int | None = None) -> None:
        super().__init__()
        self.log_ent_coef = nn.Parameter(torch.full(() if n_tasks is None else (n_tasks,), math.log(ENT_COEF_INIT)))

    def start_from(self, weight: float) -> None:
        """Set the weight, of every task."""
        with torch.no_grad():
            self.log_ent_coef.fill_(math.log(weight))

    @torch.no_grad()
    def bound(self) -> None:
        """Raise weights below ``MIN_ENT_COEF`` to it."""
        self.log_ent_coef.clamp_(min=math.log(MIN_ENT_COEF))

    def of(self, tasks: torch.Tensor | None) -> torch.Tensor:
        """Return the logarithm of the () weight, or of the (...) weights of (...) tasks."""
        return self.log_ent_coef if tasks is None else self.log_ent_coef[tasks]


class CriticEnsemble(nn.Module):
    """Independent value functions of the same inputs: latents, or latents and actions.

    Values are sums of some hundred rewards, and a step of Adam moves what a network puts out by about as much whatever
    its loss is. So the networks put out values in units of ``VALUE_UNIT``, and come to their size in fewer steps.

    :param in_features: Z for V(latents), Z + A for Q(latents, actions).
    :param hidden: hidden sizes of each critic.
    :param n_critics: number of critics.
    :param activation_fn: class of the activation.
    :param norm_after_activation: order of the hidden layers, see :func:`sb3_pwm.nn.layers.mlp`.
    :param latent_scale: what the networks see of their inputs, see :class:`sb3_pwm.nn.scales.LatentScale`.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        n_critics: int,
        activation_fn: type[nn.Module] = nn.SiLU,
        *,
        norm_after_activation: bool = False,
        latent_scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.latent_scale = latent_scale or nn.Identity()
        self.critics = nn.ModuleList(
            mlp(in_features, hidden, 1, activation_fn, norm_after_activation=norm_after_activation)
            for _ in range(n_critics)
        )
        for critic in self.critics:
            orthogonal_init(critic, last_gain=0.1)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the (n_critics, ...) values of (..., Z) latents, or of (..., Z) latents and (..., A) actions."""
        x = self.latent_scale(torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0])
        # One by one: on a CPU faster than batched matrices at these sizes.
        works = [functools.partial(critic, x) for critic in self.critics]
        return VALUE_UNIT * torch.stack(side_by_side(works, x.device)).squeeze(-1)


def resolve_net_arch(net_arch: list[int] | dict[str, list[int]] | None) -> dict[str, list[int]]:
    """Return the hidden sizes of every network.

    :param net_arch: see :class:`sb3_pwm.policies.PWMPolicy`.
    :return: a list for each of the keys ``encoder``, ``dynamics``, ``reward``, ``termination``, ``pi``, ``qf``.
    :raises ValueError: if a key is unknown.
    """
    if net_arch is None:
        return DEFAULT_NET_ARCH
    if not isinstance(net_arch, dict):
        return {name: list(net_arch) for name in DEFAULT_NET_ARCH}
    unknown = sorted(set(net_arch) - set(DEFAULT_NET_ARCH))
    if unknown:
        raise ValueError(f"net_arch has unknown keys {unknown}; allowed: {sorted(DEFAULT_NET_ARCH)}")
    return DEFAULT_NET_ARCH | {name: list(sizes) for name, sizes in net_arch.items()}
