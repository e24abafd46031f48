"""The policy: every network, normaliser and optimizer of PWM, and how to act with them."""

import copy
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import is_vectorized_observation
from torch import nn

from sb3_pwm.actions import action_codes
from sb3_pwm.checks import check_policy_arguments, constructor_parameters
from sb3_pwm.compute.optimizers import RATE_SCALE
from sb3_pwm.files.tensors import save_tensors
from sb3_pwm.losses import state_values
from sb3_pwm.networks import Actor, CategoricalActor, CriticEnsemble, EntropyCoefficient, resolve_net_arch
from sb3_pwm.nn.observation_features import ObservationFeatures
from sb3_pwm.nn.scales import LatentScale, ReturnScale, RewardScale
from sb3_pwm.nn.task_context import TaskContext
from sb3_pwm.observations import are_tensors, at_steps
from sb3_pwm.sac_names import ActorOfObservations, CriticOfObservations
from sb3_pwm.type_aliases import Observations, SequenceSamples
from sb3_pwm.world_model import WorldModel

WORLD_MODEL_SETTINGS = (  # arguments that change what a world model's tensors mean, but not their shapes
    "simnorm_dim",
    "residual_dynamics",
    "activation_fn",
    "features_extractor_class",
    "normalize_images",
    "standardize",
)
# Times the model's learning rate, for encoders that see images, as in TD-MPC2 for all. At the whole rate they lose part
# of what rewards do not show: on Pendulum, whose rewards are the same on both sides, on which side it is.
IMAGE_RATE = 0.3
MANY_FEATURES = 64  # of more, 96 latents hold too little: Ant-v5 has 105, Humanoid-v5 348


class Parts(NamedTuple):
    """What the networks of one kind of policy differ by from those of another."""

    features: nn.Module
    """(N, ...) observations -> (N, features_dim); ``set_statistics`` takes observations' statistics."""
    features_dim: int
    action_dim: int
    """Of the world model."""
    context: TaskContext | None = None
    n_tasks: int | None = None
    """Of policies that act in several tasks."""


class PWMPolicy(BasePolicy):
    """World model, actor, critics, entropy coefficient, their scales and their optimizers.

    :param observation_space: space of the observations.
    :param action_space: Box with finite bounds, Discrete, MultiDiscrete or MultiBinary.
    :param lr_schedule: learning rate of all optimizers at the start; PWM then sets each one's.
    :param net_arch: hidden sizes, one list for every network, or a dict with any of the keys ``encoder``,
        ``dynamics``, ``reward``, ``termination``, ``pi`` (actor) and ``qf`` (critics).
    :param activation_fn: class of the activation.
    :param latent_dim: size of a latent state, a multiple of ``simnorm_dim``. None: 96, or 256 where the encoder sees
        more than 64 features; without a features extractor these are the numbers of an observation.
    :param simnorm_dim: number of features that share a softmax.
    :param reward_bins: 0 predicts rewards by squared error; K >= 2 as symlog two-hot over K bins.
    :param residual_dynamics: the dynamics predict the change of the latents, not the next ones from nothing.
    :param latent_layer_norm: put LayerNorm in front of SimNorm in encoder and dynamics, as TD-MPC2 does.
    :param n_dynamics: number of dynamics networks; more than one for policies that the environment does not correct,
        see :meth:`sb3_pwm.PWM.from_dataset`.
    :param critic: ``"q"`` for Q(latents, actions), ``"v"`` for V(latents); PWM sets it from its own argument.
    :param n_critics: number of critics; with any ``pessimism`` more are more pessimistic.
    :param state_dependent_std: predict the policy's standard deviation from the latents; discrete actions have none.
    :param norm_after_activation: put LayerNorm behind the activation in actor and critics, as the paper does.
    :param features_extractor_class: SB3 features extractor in front of the encoder, trained with the world model.
    :param features_extractor_kwargs: its arguments.
    :param normalize_images: divide images by 255.
    :param standardize: standardise observations and scale rewards by their statistics in the replay buffer; False
        leaves both as the environment gives them.
    :param optimizer_class: class of the optimizers.
    :param optimizer_kwargs: their arguments but the learning rate.
    """

    task_key: ClassVar[str | None] = None
    """Entry of Dict observations that holds the task, where there are several."""
    through_observations: ClassVar[bool] = False
    """Whether the actor's gradient also flows through what it sees in imagined rollouts."""
    statistics_size: torch.Tensor
    """() number of transitions that the scales of observations and rewards stand for."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.SiLU,
        latent_dim: int | None = None,
        simnorm_dim: int = 8,
        reward_bins: int = 0,
        residual_dynamics: bool = True,
        latent_layer_norm: bool = False,
        n_dynamics: int = 1,
        critic: Literal["q", "v"] = "q",
        n_critics: int = 2,
        state_dependent_std: bool = True,
        norm_after_activation: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        standardize: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_policy_arguments(locals())
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=isinstance(action_space, spaces.Box),
        )
        self.net_arch = net_arch
        self.activation_fn = activation_fn
        self.latent_dim = latent_dim
        self.simnorm_dim = simnorm_dim
        self.reward_bins = reward_bins
        self.residual_dynamics = residual_dynamics
        self.latent_layer_norm = latent_layer_norm
        self.n_dynamics = n_dynamics
        self.critic_kind = critic
        self.n_critics = n_critics
        self.state_dependent_std = state_dependent_std
        self.norm_after_activation = norm_after_activation
        self.standardize = standardize
        self.action_codes = action_codes(action_space)
        """How discrete actions are coded; None for numbers."""
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        """Create networks, scales and optimizers."""
        arch = resolve_net_arch(self.net_arch)
        action_dim = self.action_dim
        parts = self._make_parts()
        if self.latent_dim is None:
            self.latent_dim = 256 if parts.features_dim > MANY_FEATURES else 96
        if self.latent_dim % self.simnorm_dim:
            raise ValueError(
                f"latent_dim={self.latent_dim} must be a positive multiple of simnorm_dim={self.simnorm_dim}"
            )
        self.reward_scale = RewardScale(parts.n_tasks)
        self.world_model = self._make_world_model(parts, self.latent_dim, arch)
        self.latent_scale = self._make_latent_scale(self.world_model.latent_dim, action_dim)
        seen = self.latent_scale.latent_dim
        self.actor = self._make_actor(seen, arch["pi"], masked=parts.n_tasks is not None)
        critic_inputs = seen + (action_dim if self.q_critic else 0)
        self.actor.join(self)
        self.critics = self._make_critics(critic_inputs, arch["qf"], self.n_critics)
        # All networks share one scale: a copy of the critics has the scale itself, not a copy of it.
        self.critics_target = copy.deepcopy(self.critics, {id(self.latent_scale): self.latent_scale})
        self.critics_target.requires_grad_(False)
        self.behaviour_value = self._make_behaviour_value(arch["qf"]) if self.q_critic else None
        self.entropy_coefficient = EntropyCoefficient(parts.n_tasks)
        self.return_scale = ReturnScale(n_tasks=parts.n_tasks)
        self.register_buffer("statistics_size", torch.zeros((), dtype=torch.float64))  # exact, as all integers here
        slow = [parts.features, self.world_model.encoder] if getattr(parts.features, "has_images", False) else []
        self.model_optimizer = self._make_optimizer(self.world_model, lr_schedule, slow)
        self.actor.optimizer = self.actor_optimizer = self._make_optimizer(self.actor, lr_schedule)
        self.critic_optimizer = self._make_optimizer(self.all_critics, lr_schedule)
        self.entropy_optimizer = self._make_optimizer(self.entropy_coefficient, lr_schedule)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not self.actor.has_policy:  # a shallow copy has the same actor, which stays the first one's
            self.actor.join(self)

    def _make_world_model(self, parts: "Parts", latent_dim: int, arch: dict[str, list[int]]) -> WorldModel:
        """Return the world model."""
        return WorldModel(
            parts.features,
            parts.features_dim,
            parts.action_dim,
            latent_dim=latent_dim,
            simnorm_dim=self.simnorm_dim,
            encoder=arch["encoder"],
            dynamics=arch["dynamics"],
            reward=arch["reward"],
            termination=arch["termination"],
            activation_fn=self.activation_fn,
            reward_bins=self.reward_bins,
            residual_dynamics=self.residual_dynamics,
            latent_layer_norm=self.latent_layer_norm,
            n_dynamics=self.n_dynamics,
            context=parts.context,
        )

    def _make_latent_scale(self, latent_dim: int, action_dim: int) -> LatentScale:
        """Return what stands between latents, and the networks of actor and critics."""
        return LatentScale(latent_dim, action_dim)

    def _make_actor(self, latent_dim: int, hidden: list[int], *, masked: bool) -> "AnyActor":
        shared: dict[str, Any] = {
            "hidden": hidden,
            "activation_fn": self.activation_fn,
            "norm_after_activation": self.norm_after_activation,
            "latent_scale": self.latent_scale,
        }
        if self.action_codes is not None:
            return CategoricalPolicyActor(latent_dim, self.action_codes, **shared)
        std = self.state_dependent_std
        return PolicyActor(latent_dim, self.action_dim, state_dependent_std=std, masked=masked, **shared)

    def _make_critics(self, in_features: int, hidden: list[int], number: int) -> CriticEnsemble:
        return CriticEnsemble(
            in_features,
            hidden,
            number,
            self.activation_fn,
            norm_after_activation=self.norm_after_activation,
            latent_scale=self.latent_scale,
        )

    def _make_behaviour_value(self, hidden: list[int]) -> CriticEnsemble:
        """Return V(latents) of the policy that recorded the data; only learning from data uses it."""
        with torch.random.fork_rng(devices=[]):  # what never uses it has the same random numbers with and without it
            return self._make_critics(self.latent_scale.latent_dim, hidden, 1)

    def _make_parts(self) -> "Parts":
        """Return what the networks of this kind of policy differ by."""
        extractor = self.make_features_extractor()
        features = ObservationFeatures(self.observation_space, extractor, self.normalize_images, self.standardize)
        return Parts(features, extractor.features_dim, self.action_dim)

    @property
    def action_dim(self) -> int:
        """Size A of an action as networks take it."""
        return get_action_dim(self.action_space) if self.action_codes is None else self.action_codes.size

    def tasks_of(self, observations: Observations) -> torch.Tensor | None:
        """Return the (N,) tasks of (N, *obs_shape) observations, or None where there is only one."""
        return None

    def _make_optimizer(
        self, module: nn.Module, lr_schedule: Schedule, slow: Sequence[nn.Module] = ()
    ) -> torch.optim.Optimizer:
        """Return an optimizer of a module's parameters; those of its ``slow`` parts have a lower learning rate."""
        kwargs = dict(self.optimizer_kwargs)
        if issubclass(self.optimizer_class, torch.optim.Adam) and "foreach" not in kwargs:
            kwargs.setdefault("fused", True)  # four times faster than the default on a CPU
        apart = {parameter for part in slow for parameter in part.parameters()}
        groups: list[dict[str, Any]] = [{"params": [each for each in module.parameters() if each not in apart]}]
        if apart:
            groups.append({"params": [each for each in module.parameters() if each in apart], RATE_SCALE: IMAGE_RATE})
        return self.optimizer_class(groups, lr=lr_schedule(1), **kwargs)  # type: ignore[call-arg]

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers of ``actor``, ``critic``, (world) ``model`` and ``entropy`` coefficient."""
        return {
            "actor": self.actor_optimizer,
            "critic": self.critic_optimizer,
            "model": self.model_optimizer,
            "entropy": self.entropy_optimizer,
        }

    @property
    def all_critics(self) -> nn.ModuleList:
        """The critics and, with Q critics, the value of the data's behaviour: what the critics' optimizer holds."""
        return nn.ModuleList([self.critics] if self.behaviour_value is None else [self.critics, self.behaviour_value])

    @property
    def n_tasks(self) -> int:
        """Number of tasks that the policy acts in."""
        return 1

    @property
    def q_critic(self) -> bool:
        """Whether the critics are Q functions."""
        return self.critic_kind == "q"

    @property
    def critic(self) -> CriticOfObservations:
        """The critics as SAC's scripts use them."""
        return CriticOfObservations(self, self.critics)

    @property
    def critic_target(self) -> CriticOfObservations:
        """The target critics as SAC's scripts use them."""
        return CriticOfObservations(self, self.critics_target)

    def scaled_rewards(self, samples: SequenceSamples) -> torch.Tensor:
        """Return windows' (T, B) rewards in reward scales."""
        rewards: torch.Tensor = self.reward_scale(samples.rewards, self.tasks_of(at_steps(samples.observations, 0)))
        return rewards

    def for_networks(self, samples: SequenceSamples) -> SequenceSamples:
        """Return stored windows with actions as networks take them: discrete ones as codes, and 0 for padding."""
        codes = self.action_codes
        return samples if codes is None else samples._replace(actions=codes.encode(samples.actions))

    def encode_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Return actions, as a replay buffer or :meth:`forward` gives them, as networks take them.

        :param actions: (N, A) in [-1, 1]; or integers of a discrete space, (N, C) of C components or (N,) of one.
        :return: (N, A) actions.
        :raises ValueError: if discrete actions are not in their space.
        """
        if self.action_codes is None:
            return actions
        count = len(self.action_codes.sizes)
        encoded = self.action_codes.encode(actions.reshape(-1, count)) if actions.shape[1:] in ((), (count,)) else None
        if encoded is None or (encoded.sum(-1) != count).any():
            raise ValueError(
                f"actions of shape {tuple(actions.shape)} are not integers of {self.action_space}: {actions}"
            )
        return encoded

    def actions_for_networks(self, actions: np.ndarray) -> torch.Tensor:
        """Return (N, *action_shape) actions of the environment as networks take them, (N, A) on the policy's device."""
        if isinstance(self.action_space, spaces.Box):
            actions = self.scale_action(actions)
            return torch.as_tensor(actions, dtype=torch.float32, device=self.device).flatten(1)
        return self.encode_actions(torch.as_tensor(actions, device=self.device))

    @property
    def model_settings(self) -> dict[str, Any]:
        """What else than the shapes of its tensors another world model must share with this one to take its place."""
        actions = "numbers" if self.action_codes is None else f"choices among {self.action_codes.sizes}"
        return {name: getattr(self, name) for name in WORLD_MODEL_SETTINGS} | {"actions": actions}

    @property
    def features(self) -> Any:
        """The part of the world model in front of its encoder."""
        return self.world_model.features

    def set_statistics(
        self, observations: Observations, rewards: torch.Tensor, tasks: torch.Tensor | None = None
    ) -> None:
        """Take the scales of observations and rewards.

        :param observations: (N, *obs_shape) observations.
        :param rewards: (M,) rewards, on the host.
        :param tasks: (M,) tasks of the rewards, if there are several.
        """
        if not self.standardize:
            return
        self.features.set_statistics(observations)
        self.reward_scale.set_statistics(rewards, tasks)

    @property
    def device(self) -> torch.device:
        """Device of the networks. SB3 asks for it at every action, and walks through all modules to find it."""
        return self.return_scale.variance.device

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """Return observations as tensors on the policy's device, for which ``predict`` asks too.

        :param observation: (n_envs, *obs_shape) observations or a single one, as arrays or as tensors, which do not
            travel over the host; or a dictionary of them. Tensors of images have their channels first.
        :return: (n_envs, *obs_shape) tensor, or one per key, and whether there were several observations.
        :raises ValueError: if the shape is another, or a discrete value is below its space's ``start``.
        """
        if not are_tensors(observation):
            if getattr(self.features, "shifted", None):
                self.features.check_categories(observation)
            return super().obs_to_tensor(observation)
        several = is_vectorized_observation(observation, self.observation_space)
        if isinstance(self.observation_space, spaces.Dict):
            parts = [(key, space.shape or ()) for key, space in self.observation_space.items()]
            return {key: self._batch(observation[key], shape) for key, shape in parts}, several
        return self._batch(observation, self.observation_space.shape or ()), several

    def _batch(self, values: Any, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.as_tensor(values, device=self.device).reshape(-1, *shape)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> torch.Tensor:
        """Return the actions of (N, *obs_shape) observations: (N, A) in [-1, 1], or integers of discrete spaces."""
        return self._predict(observation, deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """Put all networks into training or evaluation mode.

        SB3 asks for it at every action; walking through all modules then costs more than the action itself.
        """
        if mode != self.training:
            super().set_training_mode(mode)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> torch.Tensor:
        latents = self.world_model.encode(observation)
        actions = self.actor.mode(latents) if deterministic else self.actor.sample(latents)
        return actions if self.action_codes is None else self.decode_actions(actions)

    def decode_actions(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the (N, *action_shape) integers of (N, A) codes, of the space's type, as environments take them.

        :raises RuntimeError: if actions are numbers, which have no codes.
        """
        if self.action_codes is None:
            raise RuntimeError(f"actions of {self.action_space} have no codes")
        dtype = torch.from_numpy(np.empty(0, self.action_space.dtype)).dtype
        return self.action_codes.decode(codes).to(dtype).reshape(-1, *(self.action_space.shape or ()))

    @torch.no_grad()
    def predict_values(self, observation: PyTorchObs) -> torch.Tensor:
        """Estimate the value of observations under the stochastic policy.

        :param observation: (N, *obs_shape) observations.
        :return: (N,) discounted returns, in the units of the environment's rewards.
        """
        latents = self.world_model.encode(observation)
        values, _ = state_values(self.critics, self.actor, latents, q_critic=self.q_critic)
        return values * self.reward_scale.of(self.tasks_of(observation))

    def save(self, path: str | pathlib.Path) -> None:
        """Save the policy; an old file stays until the new one is whole.

        ``load`` reads it as a pickle, which runs code: load only files that you trust.

        :param path: file; missing folders are made.
        :raises OSError: if it cannot be written.
        """
        save_tensors(path, {"state_dict": self.state_dict(), "data": self._get_constructor_parameters()})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        given = constructor_parameters(PWMPolicy).keys() - data.keys() - {"lr_schedule", "critic"}
        data.update({name: getattr(self, name) for name in given}, critic=self.critic_kind)
        data["lr_schedule"] = self._dummy_schedule  # the optimizers' rates are set by whoever trains
        return data


MlpPolicy = PWMPolicy


class CnnPolicy(PWMPolicy):
    """:class:`PWMPolicy` with SB3's NatureCNN in front of the encoder."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class MultiInputPolicy(PWMPolicy):
    """:class:`PWMPolicy` with SB3's CombinedExtractor in front of the encoder, for Dict observations."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class SavedActor(ActorOfObservations):
    """An actor that is saved and loaded with its policy."""

    @classmethod
    def load(cls, path: str, device: torch.device | str = "auto") -> Any:
        """Load the actor of a policy that :meth:`save` wrote; this runs code, see :meth:`PWMPolicy.load`."""
        policy = PWMPolicy.load(path, device)
        policy.actor.join(policy, keep=True)
        return policy.actor


class PolicyActor(SavedActor, Actor):
    """The actor of a :class:`PWMPolicy`."""


class CategoricalPolicyActor(SavedActor, CategoricalActor):
    """The actor of a :class:`PWMPolicy` with discrete actions."""

    def action_log_prob(self, observations: Observations) -> tuple[torch.Tensor, torch.Tensor]:
        """Return drawn actions of (N, *obs_shape) observations, as integers, and their (N,) log-probabilities."""
        latents = self.policy.world_model.encode(observations)
        codes = self.sample(latents)
        return self.policy.decode_actions(codes), self.log_prob(latents, codes)


AnyActor: TypeAlias = PolicyActor | CategoricalPolicyActor


def check_policy_class(policy_class: type[BasePolicy]) -> None:
    """Raise ``TypeError`` for a policy without a world model."""
    if not issubclass(policy_class, PWMPolicy):
        raise TypeError(
            f"policy must be a PWMPolicy class, not {policy_class.__name__}; if it comes from a file, another "
            "algorithm has saved it"
        )
