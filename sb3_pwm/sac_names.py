"""What SAC's scripts expect: its arguments, where PWM has none, and its networks, which take observations."""

import operator
import pathlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sb3_pwm.networks import CriticEnsemble, LatentActor
from sb3_pwm.type_aliases import Observations

NO_GSDE = "PWM has no state-dependent exploration (gSDE); use ent_coef, target_entropy or action_noise"
# What SAC has and PWM has not: name -> values that SAC's scripts may give, SAC's default first; why there is no other
SAC_ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "optimize_memory_usage": (
        (False,),
        "PWM learns from the observations that end episodes, which this would drop; use a smaller buffer_size",
    ),
    "target_update_interval": (
        (1,),
        "PWM moves its target critics at every update of the critics; use a smaller tau",
    ),
    "use_sde": ((False,), NO_GSDE),
    "sde_sample_freq": ((-1,), NO_GSDE),
    "use_sde_at_warmup": ((False,), NO_GSDE),
}
SAC_POLICY_ARGUMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "share_features_extractor": ((False, True), "PWM's world model has the only features extractor"),
    "use_sde": ((False,), NO_GSDE),
    "log_std_init": ((-3,), NO_GSDE),
    "use_expln": ((False,), NO_GSDE),
    "clip_mean": ((2.0,), NO_GSDE),
}


def without_sac_arguments(
    given: Mapping[str, Any], known: Iterable[str], table: Mapping[str, tuple[tuple[Any, ...], str]]
) -> dict[str, Any]:
    """Leave out arguments that SAC has and PWM has not, so that SAC's scripts run as they are.

    :param given: arguments by name.
    :param known: names of those that are taken; they stay, whatever ``table`` says.
    :param table: ``SAC_ARGUMENTS`` or ``SAC_POLICY_ARGUMENTS``.
    :return: the others.
    :raises ValueError: if one that is left out has another value than changes nothing.
    """
    left_out = {name: table[name] for name in given.keys() & table.keys() - set(known)}
    for name, (allowed, reason) in left_out.items():
        if given[name] not in allowed:
            values = " or ".join(map(repr, allowed))
            raise ValueError(f"{name}={given[name]!r}: {reason}, and leave {name} out; allowed: {values}")
    return {name: value for name, value in given.items() if name not in left_out}


def check_sac_arguments(kind: type, given: Mapping[str, Any]) -> None:
    """Check the further keywords of a constructor.

    :raises TypeError: if SAC does not have one either.
    :raises ValueError: if one has another value than changes nothing.
    """
    unknown = without_sac_arguments(given, (), SAC_ARGUMENTS)
    if unknown:
        raise TypeError(f"{kind.__name__}.__init__() got an unexpected keyword argument {next(iter(unknown))!r}")


class ActorOfObservations(LatentActor):
    """An actor that takes observations when it is called, as SAC's does.

    The encoder belongs to the policy, which is not part of this module: it is neither among its parameters nor in its
    ``state_dict``, and a copy of the actor alone has none.
    """

    def join(self, policy: Any, *, keep: bool = False) -> None:
        """Take the policy that this is the actor of, and keep it if nobody else does.

        The policy owns its actor: if the actor always owned its policy too, neither would be freed.
        """
        self._policy: Callable[[], Any] = (lambda: policy) if keep else weakref.ref(policy)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_policy"}

    @property
    def has_policy(self) -> bool:
        """Whether the policy that this is the actor of is there."""
        return "_policy" in self.__dict__ and self._policy() is not None

    @property
    def policy(self) -> Any:
        """The policy that this is the actor of."""
        policy = self._policy() if self.has_policy else None
        if policy is None:
            raise ReferenceError("this actor has no policy any more, and needs its world model to read observations")
        return policy

    @property
    def features_extractor(self) -> nn.Module:
        """SB3's features extractor, of the policy's world model."""
        return self.policy.features.extractor  # type: ignore[no-any-return]

    def forward(self, observations: Observations, deterministic: bool = False) -> torch.Tensor:
        """Return the actions of (N, *obs_shape) observations: (N, A) in [-1, 1], or integers of discrete spaces."""
        return self.policy(observations, deterministic)  # type: ignore[no-any-return]

    def action_log_prob(self, observations: Observations) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (N, A) drawn actions of (N, *obs_shape) observations, and their (N,) log-probabilities."""
        return self.sample_with_log_prob(self.policy.world_model.encode(observations))

    def predict(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return what the policy predicts, see :meth:`stable_baselines3.common.policies.BasePolicy.predict`."""
        return self.policy.predict(*args, **kwargs)  # type: ignore[no-any-return]

    def set_training_mode(self, mode: bool) -> None:
        """Put the actor into training or evaluation mode."""
        self.train(mode)

    def save(self, path: str | pathlib.Path) -> None:
        """Save the policy: without its world model the actor can do nothing."""
        self.policy.save(path)


class CriticOfObservations:
    """A policy's critics, or its target critics, that take observations and actions, as SAC's do.

    :param policy: the policy.
    :param critics: its critics of latents.
    """

    def __init__(self, policy: Any, critics: CriticEnsemble) -> None:
        self.policy, self.critics = policy, critics

    @property
    def features_extractor(self) -> nn.Module:
        """SB3's features extractor, of the policy's world model."""
        return self.policy.features.extractor  # type: ignore[no-any-return]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The critics' optimizer."""
        return self.policy.critic_optimizer  # type: ignore[no-any-return]

    def __call__(self, observations: Observations, actions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each critic's (N, 1) values of (N, *obs_shape) observations and (N, A) actions in [-1, 1].

        They are in the units of the environment's rewards; V critics do not look at the actions.

        :param observations: observations.
        :param actions: as the replay buffer holds them; discrete ones are integers.
        :raises ValueError: if discrete actions are not in their space.
        """
        latents = self.policy.world_model.encode(observations)
        inputs = (latents, self.policy.encode_actions(actions)) if self.policy.q_critic else (latents,)
        values = self.critics(*inputs)
        scale = self.policy.reward_scale.of(self.policy.tasks_of(observations))
        return tuple((values * scale)[..., None])

    def q1_forward(self, observations: Observations, actions: torch.Tensor) -> torch.Tensor:
        """Return the first critic's (N, 1) values, see :meth:`__call__`."""
        return self(observations, actions)[0]

    def set_training_mode(self, mode: bool) -> None:
        """Put the critics into training or evaluation mode."""
        self.critics.train(mode)

    def __getattr__(self, name: str) -> Any:
        if name == "critics":  # not there yet, in a copy that is being made
            raise AttributeError(name)
        return getattr(self.critics, name)  # such as parameters, state_dict, train


def of_policy(path: str, doc: str) -> property:
    """Return a property of a model that is found in its policy; what belongs to a fixed ``ent_coef`` is None.

    :param path: names of attributes, joined by dots.
    :param doc: docstring.
    """
    of_coefficient = path.startswith("entropy")

    def get(model: Any) -> Any:
        learnt = isinstance(model.ent_coef, str)
        return operator.attrgetter(path)(model.policy) if learnt or not of_coefficient else None

    return property(get, doc=doc)
