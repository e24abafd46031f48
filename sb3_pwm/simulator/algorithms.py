"""First-order gradients through the true simulator: PWM's policy update, and SHAC's."""

import copy
import pathlib
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    unwrap_vec_normalize,
)

from sb3_pwm.buffers import ALL
from sb3_pwm.compute.compilation import TorchCompile
from sb3_pwm.compute.distributed import Part
from sb3_pwm.pwm import DEFAULT_LEARNING_RATE, PWM
from sb3_pwm.replay.watched_env import WatchedEnv
from sb3_pwm.simulator.policy import SHACPolicy, TrueDynamicsPolicy
from sb3_pwm.type_aliases import SequenceSamples

SHAC_LEARNING_RATE = LinearSchedule(2e-3, 1e-5, end_fraction=1.0)
# Which change neither step nor reward; those of gymnasium and SB3
OWN_WRAPPERS = {"Monitor", "TimeLimit", "OrderEnforcing", "PassiveEnvChecker"}


class TrueDynamicsPWM(PWM):
    """PWM whose imagined steps are the simulator's own: the paper's comparison, in its cleanest form.

    Actor, critics, objective and loop are PWM's. Rollouts start in replayed states and go through
    :class:`sb3_pwm.simulator.steps.MujocoSteps`, whose derivatives are finite differences; actor and critics see
    observations, because there are no latents. ``train/simulated_steps`` counts the simulator's steps, those for
    derivatives too.

    :param policy: ``"MlpPolicy"`` or a :class:`sb3_pwm.simulator.policy.TrueDynamicsPolicy` class.
    :param env: Gymnasium MuJoCo environment whose observation shows its state, without wrappers, or its id, or a VecEnv
        of such.
    :param learning_rate: as for PWM.
    :param pretrain_steps: 0: there is no world model.
    :param torch_compile: False: a simulator's steps cannot be compiled.
    :param kwargs: arguments of :class:`sb3_pwm.PWM`; those of the world model are not used.
    :raises ValueError: if the environment cannot be differentiated: it says why.
    """

    policy: TrueDynamicsPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TrueDynamicsPolicy}

    def __init__(
        self,
        policy: str | type[TrueDynamicsPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = DEFAULT_LEARNING_RATE,
        *,
        pretrain_steps: Literal[0] = 0,
        torch_compile: TorchCompile = False,
        infer_noise: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            pretrain_steps=pretrain_steps,
            torch_compile=torch_compile,
            infer_noise=infer_noise,
            **kwargs,
        )

    def _setup_model(self) -> None:
        if self.pretrain_steps or self.torch_compile or self.infer_noise:
            raise ValueError(
                f"pretrain_steps={self.pretrain_steps}, torch_compile={self.torch_compile}, infer_noise="
                f"{self.infer_noise}: the true dynamics are not trained, not compiled and miss nothing; allowed: 0 and "
                "False"
            )
        if self.env is not None:
            self.policy_kwargs = self.policy_kwargs | {"simulator": self._checked_simulator(self.env)}
        super()._setup_model()

    def set_env(self, env: GymEnv | VecEnv, force_reset: bool = True) -> None:
        """Set the environment, see :meth:`sb3_pwm.PWM.set_env`; id and arguments must be the same."""
        self._checked_simulator(self._wrap_env(env, monitor_wrapper=False))
        super().set_env(env, force_reset)

    def _checked_simulator(self, env: VecEnv) -> str:
        """Return the specification of an environment's simulator, which must be the one that is known, if one is."""
        spec = simulator_of(env)
        known = self.policy_kwargs.get("simulator")
        if known is not None and _bare(EnvSpec.from_json(known)).to_json() != spec:
            raise ValueError("the environment is not the one whose steps this model learns through")
        return spec

    def _learn_dynamics(self, samples: SequenceSamples) -> torch.Tensor | None:
        return None

    def dump_logs(self) -> None:
        """Write the log, with the number of simulated steps."""
        self.logger.record("train/simulated_steps", self.policy.world_model.steps.n_steps)  # type: ignore[union-attr]
        super().dump_logs()

    def _has_no_world_model(self) -> NoReturn:
        raise ValueError(f"{type(self).__name__} has no world model: it learns through the true dynamics")

    def pretrain(self, *args: Any, **kwargs: Any) -> NoReturn:
        """There is no world model.

        :raises ValueError: always.
        """
        self._has_no_world_model()

    def save_world_model(self, path: str | pathlib.Path) -> NoReturn:
        """There is no world model.

        :raises ValueError: always.
        """
        self._has_no_world_model()

    def load_world_model(self, path: str | pathlib.Path) -> NoReturn:
        """There is no world model.

        :raises ValueError: always.
        """
        self._has_no_world_model()

    def model_errors(self, *args: Any, **kwargs: Any) -> NoReturn:
        """There is no world model.

        :raises ValueError: always.
        """
        self._has_no_world_model()

    def extract(self, *args: Any, **kwargs: Any) -> NoReturn:
        """There is no world model.

        :raises ValueError: always.
        """
        self._has_no_world_model()


class SHAC(TrueDynamicsPWM):
    """Short-Horizon Actor-Critic (SHAC, arXiv 2204.07137) through any MuJoCo simulator.

    Each update differentiates ``horizon`` steps of the simulator from the ``batch_size`` newest states of the
    environments, with the gradient flowing through observations too, and fits V critics to TD(lambda) targets of these
    rollouts. In the paper the rollouts are also what the environments go through; here these take ``train_freq`` steps
    with the policy between updates, and rollouts start anew from where they have been.

    :param policy: ``"MlpPolicy"`` or a :class:`sb3_pwm.simulator.policy.SHACPolicy` class.
    :param env: as for :class:`TrueDynamicsPWM`.
    :param learning_rate: of the actor; falls linearly, as in the paper.
    :param batch_size: number of states that rollouts start from.
    :param horizon: number of steps in a rollout.
    :param learning_starts: environment steps with random actions before the first update.
    :param train_freq: environment steps between updates.
    :param critic_updates: critic updates per actor update.
    :param critic_batch_size: states per critic update.
    :param gamma: discount.
    :param td_lambda: lambda of the critics' targets.
    :param pessimism: 0: the targets are the critics' mean.
    :param ent_coef: 0: SHAC has no entropy bonus.
    :param tau: weight of the critics in each Polyak update of the target critics.
    :param kwargs: arguments of :class:`TrueDynamicsPWM`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": SHACPolicy}

    def __init__(
        self,
        policy: str | type[SHACPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = SHAC_LEARNING_RATE,
        *,
        batch_size: int = 64,
        horizon: int = 32,
        learning_starts: int | Literal["auto"] = "auto",
        train_freq: int | tuple[int, str] = 64,
        critic_updates: int = 16,
        critic_batch_size: int = 512,
        gamma: float = 0.99,
        td_lambda: float = 0.95,
        pessimism: float = 0.0,
        ent_coef: float | str = 0.0,
        tau: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size=batch_size,
            sequence_length=1,
            horizon=horizon,
            learning_starts=learning_starts,
            train_freq=train_freq,
            critic="v",
            critic_updates=critic_updates,
            critic_batch_size=critic_batch_size,
            gamma=gamma,
            td_lambda=td_lambda,
            pessimism=pessimism,
            ent_coef=ent_coef,
            tau=tau,
            **kwargs,
        )

    def _sample(self, batch_size: int, part: Part = ALL, *, length: int | None = None) -> SequenceSamples:
        """Return windows at the newest steps, instead of random ones."""
        self.sequences.check_not_empty()
        behind = np.arange(batch_size) // self.n_envs % self.sequences.size()
        columns = np.arange(batch_size) % self.n_envs
        return self.sequences.sequences_at(self.sequences.size() - 1 - behind, columns, length or self.sequence_length)


def simulator_of(env: VecEnv) -> str:
    """Return the specification of the simulator in training environments, as JSON.

    :raises ValueError: if they have no specification, differ, or are wrapped in what may change steps or rewards.
    """
    if unwrap_vec_normalize(env) is not None:
        raise ValueError("the true dynamics read the state from observations, which VecNormalize changes; leave it out")
    inner = env
    while isinstance(inner, VecMonitor | WatchedEnv):
        inner = inner.venv
    if not isinstance(inner, DummyVecEnv | SubprocVecEnv):
        raise ValueError(
            f"the environment is wrapped in {type(inner).__name__}, which its simulator knows nothing of; allowed: "
            "DummyVecEnv, SubprocVecEnv, VecMonitor"
        )
    specs = env.get_attr("spec")
    if any(spec is None for spec in specs):
        raise ValueError("the environment has no specification from which its simulator could be made; use gym.make")
    for wrapper in (wrapper for spec in specs for wrapper in spec.additional_wrappers):
        package = wrapper.entry_point.partition(".")[0]
        if wrapper.name not in OWN_WRAPPERS or package not in ("gymnasium", "stable_baselines3"):
            raise ValueError(
                f"the environment is wrapped in {wrapper.name} of {wrapper.entry_point.partition(':')[0]}, which its "
                "simulator knows nothing of"
            )
    if any(callable(spec.entry_point) for spec in specs):
        raise ValueError('the environment is registered by a class; register it by its name, "module:Class"')
    bare = {_bare(spec).to_json() for spec in specs}
    if len(bare) > 1:
        raise ValueError("the environments differ in their ids or arguments; true dynamics are those of one simulator")
    return bare.pop()


def _bare(spec: EnvSpec) -> EnvSpec:
    """Return a specification without wrappers, time limit, and how it is drawn: what steps depend on."""
    spec = copy.deepcopy(spec)
    spec.max_episode_steps = None
    spec.additional_wrappers = ()
    kwargs = {name: value for name, value in spec.kwargs.items() if name not in ("render_mode", "width", "height")}
    spec.kwargs = {name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()}
    return spec
