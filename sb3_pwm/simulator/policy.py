"""The policies of algorithms whose dynamics are the true ones."""

from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from sb3_pwm.nn.scales import LatentScale
from sb3_pwm.policies import Parts, PWMPolicy
from sb3_pwm.simulator.dynamics import SeenFeatures, TrueDynamics
from sb3_pwm.simulator.steps import MujocoSteps


class TrueDynamicsPolicy(PWMPolicy):
    """:class:`PWMPolicy` with a simulator in the place of the world model; actor and critics see observations.

    :param simulator: specification of the environment, as ``env.spec.to_json()`` gives it; the algorithm sets it.
    :param kwargs: arguments of :class:`PWMPolicy`; those of the world model are not used.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        simulator: str,
        **kwargs: Any,
    ) -> None:
        self.simulator = simulator
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_world_model(self, parts: Parts, latent_dim: int, arch: dict[str, list[int]]) -> Any:
        return TrueDynamics(parts.features, parts.features_dim, MujocoSteps(self.simulator), self.reward_scale)

    def _make_latent_scale(self, latent_dim: int, action_dim: int) -> LatentScale:
        return SeenFeatures(self.world_model.features_dim, latent_dim)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"simulator": self.simulator}


class SHACPolicy(TrueDynamicsPolicy):
    """:class:`TrueDynamicsPolicy` whose gradient also flows through observations, as in SHAC."""

    through_observations: ClassVar[bool] = True
