"""PWM as a Stable-Baselines3 algorithm."""

import functools
import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, configure_logger
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_pwm import offline
from sb3_pwm.actions import action_codes
from sb3_pwm.buffers import ALL, SequenceReplayBuffer, check_replay_buffer
from sb3_pwm.checks import (
    check_action_noise,
    check_arguments,
    check_capacity,
    check_integer,
    check_target_entropy,
    check_train_freq,
    constructor_parameters,
    initial_ent_coef,
    random_steps,
    target_lengths,
)
from sb3_pwm.compute.compilation import TorchCompile
from sb3_pwm.compute.distributed import Part, own_part
from sb3_pwm.compute.optimizers import set_learning_rate
from sb3_pwm.compute.precision import PrecisionChoice
from sb3_pwm.compute.progress import let_go, live_progress, say, warn_that_nothing_was_learnt
from sb3_pwm.compute.random_state import put_back_if_seeded
from sb3_pwm.diagnostics import evaluation, fitted_q
from sb3_pwm.diagnostics.start_values import StartValues, follow_episodes
from sb3_pwm.files import world_models
from sb3_pwm.learner import Learner
from sb3_pwm.multitask import adding, extraction
from sb3_pwm.multitask.data import Source
from sb3_pwm.multitask.policies import MultiTaskPolicy
from sb3_pwm.observations import cut_windows
from sb3_pwm.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, PWMPolicy, check_policy_class
from sb3_pwm.replay import statistics
from sb3_pwm.replay.her import chosen_buffer_class
from sb3_pwm.sac_names import SAC_POLICY_ARGUMENTS, check_sac_arguments, of_policy, without_sac_arguments
from sb3_pwm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_pwm.type_aliases import SequenceSamples

SelfPWM = TypeVar("SelfPWM", bound="PWM")

# High at the start, because there is one update for two environment steps; falling linearly, as the paper's rates do.
DEFAULT_LEARNING_RATE = LinearSchedule(1e-3, 1e-4, end_fraction=1.0)
ENTROPY_RATE = 4.0  # times the actor's: the coefficient must follow a policy that changes within hundreds of updates
CALIBRATION_EPISODES = 10


class PWM(SequenceOffPolicyAlgorithm):
    """Policy learning with large World Models (PWM, arXiv 2407.02466).

    Fits a smooth latent world model to replayed windows, improves a stochastic actor by first-order gradients through
    imagined rollouts in that model, and ends each rollout with the value of a critic ensemble.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"MultiTaskPolicy"`` or a
        :class:`PWMPolicy` class.
    :param env: Gymnasium environment, its id, or an SB3 VecEnv; actions are Box, Discrete, MultiDiscrete, MultiBinary.
    :param learning_rate: of the actor; a number or a schedule of the remaining progress (1 to 0).
    :param buffer_size: capacity of the replay buffer, over all environments.
    :param learning_starts: environment steps with random actions before the first update; ``"auto"`` for 5 % of a
        run's steps, from 100 to 5,000. Stored steps count, if a learning ``VecNormalize`` has seen them.
    :param pretrain_steps: updates of the world model alone before the first update of the policy.
    :param batch_size: number B of windows per update.
    :param sequence_length: number T of steps in a window over which the model predicts open-loop.
    :param model_learning_rate: of the world model; None for the actor's. Encoders that see images have 0.3 of it.
    :param consistency_coef: weight of the model's latent error.
    :param reward_coef: weight of the model's reward error.
    :param termination_coef: weight of the model's termination error; with 0 imagined episodes never end.
    :param observation_coef: weight of the error of observations that a linear head reads from latents; there is no such
        head for pictures. ``"auto"`` for 2, and for 0 where observations are more than 1,000 numbers.
    :param actor_batch_size: imagined rollouts per actor update, from the windows' first steps on; None: ``batch_size``.
    :param horizon: number H of imagined steps before the critics value what follows. With 0 the actor follows the Q
        critics at replayed states, as SAC's does; the world model then only gives the latents.
    :param infer_noise: add what the model missed in the recorded step to the first imagined one, so that the actor
        learns from rare outcomes too; see :func:`sb3_pwm.imagination.inferred_noise`.
    :param ent_coef: weight of the entropy bonus: reward scales that one nat is worth; 0 for none; ``"auto"`` learns
        it, so that the policy's entropy is ``target_entropy``; ``"auto_0.1"`` starts from 0.1, instead of 0.2.
    :param target_entropy: in nats; ``"auto"`` for minus half the number of action dimensions, and of discrete actions
        for 15 % of the largest entropy.
    :param bc_coef: in :meth:`learn_offline` and :meth:`add_task` only: weight, in sizes of the imagined return, of the
        actor's distance to replayed actions that are better than average, see
        :func:`sb3_pwm.losses.behaviour_loss`; 0 for none.
    :param critic: ``"q"``: Q(latents, actions), of replayed steps; ``"v"``: the paper's V(latents), of imagined ones.
    :param critic_learning_rate: of the critics; None for the actor's.
    :param critic_updates: critic updates per actor update. Each of a Q critic has its own batch from the replay buffer
        and targets of the present networks; those of a V critic are minibatches of the imagined states.
    :param critic_batch_size: transitions per critic update.
    :param n_steps: recorded rewards in a Q critic's target; of several numbers, a batch's transitions take turns.
    :param gamma: discount in (0, 1].
    :param td_lambda: lambda in [0, 1] of the V critics' targets in imagined rollouts; 0 for one-step targets.
    :param pessimism: in [0, 1]: where the critics' targets are between the mean of the critics (0) and the lowest (1).
    :param tau: weight in [0, 1] of the critics in each Polyak update of the target critics; 0 never moves these.
    :param train_freq: collect this many steps (or ``(n, "episode")``) between updates.
    :param gradient_steps: world-model updates after each collection; -1 for as many as steps were collected.
    :param policy_updates: actor updates per world-model update; 0.125 is one after every eighth.
    :param precision: of matrix products in updates: ``"float32"``, ``"bfloat16"``, on GPUs ``"tf32"``, or ``"auto"``:
        bfloat16 where a measurement finds it faster, see :func:`sb3_pwm.compute.precision.arithmetic`.
    :param torch_compile: ``"auto"``: updates as CUDA graphs on GPUs, as they are on CPUs; True: their objectives also
        through ``torch.compile``, on any device; False: neither.
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    :param seed: of all random generators.
    :param verbose: 0 for nothing, 1 for training information, 2 for debugging.
    :param tensorboard_log: folder for TensorBoard; None for none.
    :param stats_window_size: number of episodes over which the logged training return is averaged.
    :param action_noise: added to the actions that are taken in the environment, if these are numbers.
    :param replay_buffer_class: a :class:`SequenceReplayBuffer` class; None for the one that fits the observations.
        SB3's ``HerReplayBuffer`` stands for :class:`SequenceHerReplayBuffer`.
    :param replay_buffer_kwargs: its further arguments.
    :param policy_kwargs: arguments of :class:`PWMPolicy`: network sizes, activation, extractor, optimizer.
    :param _init_setup_model: build the networks at once.
    :param sac_arguments: what SAC has and PWM has not, such as ``use_sde``: SAC's default is accepted and not used. So
        are SAC's arguments in ``policy_kwargs``, and those that :meth:`load` is given.
    :raises ValueError: if a number is out of its range, or an argument of SAC has another value than its default.
    :raises TypeError: if an argument is of the wrong kind.
    """

    policy: PWMPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "MultiTaskPolicy": MultiTaskPolicy,
    }
    actor = of_policy("actor", "The actor, which takes observations as SAC's does.")
    critic = of_policy("critic", "The critics, which take observations and actions as SAC's do.")
    critic_target = of_policy("critic_target", "The target critics, likewise.")
    log_ent_coef = of_policy("entropy_coefficient.log_ent_coef", "Logarithm of ``ent_coef``; None if it is not learnt.")
    ent_coef_optimizer = of_policy("entropy_optimizer", "Optimizer of ``ent_coef``; None if it is not learnt.")
    _adding: tuple[str, int] | None = None  # the task of an add_task() that is not finished, and its updates so far

    def __init__(
        self,
        policy: str | type[PWMPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = DEFAULT_LEARNING_RATE,
        *,
        # replay
        buffer_size: int = 1_000_000,
        learning_starts: int | Literal["auto"] = "auto",
        pretrain_steps: int = 1_000,
        batch_size: int = 64,
        sequence_length: int = 4,
        # world model
        model_learning_rate: float | Schedule | None = None,
        consistency_coef: float = 20.0,
        reward_coef: float = 1.0,
        termination_coef: float = 1.0,
        observation_coef: float | Literal["auto"] = "auto",
        # actor
        actor_batch_size: int | None = 256,
        horizon: int = 1,
        infer_noise: bool = True,
        ent_coef: float | str = "auto",
        target_entropy: float | Literal["auto"] = "auto",
        bc_coef: float = 3.0,
        # critics
        critic: Literal["q", "v"] = "q",
        critic_learning_rate: float | Schedule | None = None,
        critic_updates: int = 2,
        critic_batch_size: int = 256,
        n_steps: int | Sequence[int] = 1,
        gamma: float = 0.99,
        td_lambda: float = 0.5,
        pessimism: float = 0.5,
        tau: float = 0.05,
        # schedule
        train_freq: int | tuple[int, str] = 2,
        gradient_steps: int = 1,
        policy_updates: float = 1.0,
        # system
        precision: PrecisionChoice = "float32",
        torch_compile: TorchCompile = "auto",
        device: torch.device | str = "auto",
        seed: int | None = None,
        verbose: int = 0,
        tensorboard_log: str | None = None,
        stats_window_size: int = 100,
        # extensions
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[SequenceReplayBuffer] | type[HerReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **sac_arguments: Any,
    ) -> None:
        check_sac_arguments(type(self), sac_arguments)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,  # type: ignore[arg-type]
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            support_multi_env=True,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        if action_noise is not None:
            check_action_noise(action_noise, self.n_envs, self.action_space)
        self.critic_learning_rate = critic_learning_rate
        self.model_learning_rate = model_learning_rate
        self.pretrain_steps = pretrain_steps
        self.sequence_length = sequence_length
        self.actor_batch_size = actor_batch_size
        self.horizon = horizon
        self.infer_noise = infer_noise
        self.critic_kind = critic
        self.critic_updates = critic_updates
        self.critic_batch_size = critic_batch_size
        self.n_steps = n_steps  # type: ignore[assignment]  # SB3 knows one number only
        self.td_lambda = td_lambda
        self.pessimism = pessimism
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.consistency_coef = consistency_coef
        self.reward_coef = reward_coef
        self.termination_coef = termination_coef
        self.observation_coef = observation_coef
        self.policy_updates = policy_updates
        self.bc_coef = bc_coef
        self.precision = precision
        self.torch_compile = torch_compile
        self.n_model_updates = 0
        self.n_skipped_updates = 0
        self._steps_until_statistics = 0  # due at the first update
        self._statistics_from: str | None = None  # the replay buffer's identity
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_policy_class(self.policy_class)
        self.critic_kind = self.__dict__.pop("critic", self.critic_kind)  # from load() or an old file
        check_arguments(self.__dict__)
        check_target_entropy(self.target_entropy, action_codes(self.action_space))
        check_train_freq(self.train_freq, self.n_envs)
        if "critic" in self.policy_kwargs:
            raise ValueError("critic is an argument of PWM itself; leave it out of policy_kwargs")
        self.replay_buffer_class = chosen_buffer_class(self.replay_buffer_class, self.observation_space)
        lengths = {"sequence_length": self.sequence_length, "n_steps": max(target_lengths(self.n_steps))}
        check_capacity(self.buffer_size, self.n_envs, lengths, self.batch_size)
        # The kind of critic is an argument of the algorithm; the policy's own arguments stay what the user gave.
        policy_kwargs = extraction.storable(self.policy_kwargs)
        taken = without_sac_arguments(policy_kwargs, constructor_parameters(self.policy_class), SAC_POLICY_ARGUMENTS)
        self.policy_kwargs = taken | {"critic": self.critic_kind}
        if self.env is None and self.replay_buffer is None and issubclass(self.replay_buffer_class, HerReplayBuffer):
            # SB3 wants an environment for it, which predictions do not need; set_env gives it one.
            sizes = self.buffer_size, self.observation_space, self.action_space
            own: dict[str, Any] = self.replay_buffer_kwargs | {"env": None, "device": self.device}
            self.replay_buffer = self.replay_buffer_class(*sizes, n_envs=self.n_envs, **own)
        n_steps, self.n_steps = self.n_steps, 1  # SB3 warns that it cannot do it
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs, self.n_steps = policy_kwargs, n_steps
        self._take_changes({"ent_coef": self.ent_coef})
        check_replay_buffer(self.replay_buffer)
        extraction.check_tasks_of(self.env, self.policy)
        self._learner = Learner(self)
        self._start_values = StartValues(self.gamma, self.n_envs, CALIBRATION_EPISODES)

    def _take_changes(self, arguments: dict[str, Any]) -> None:
        start = initial_ent_coef(arguments.get("ent_coef"))
        if start is not None:
            self.policy.entropy_coefficient.start_from(start)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_learner", "_schedules", "_start_values"]

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        own = {"actor": None, "critic": self.critic_learning_rate, "model": self.model_learning_rate, "entropy": None}
        self._schedules = {name: None if rate is None else FloatSchedule(rate) for name, rate in own.items()}

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{name}_optimizer" for name in self._schedules)], []

    def set_env(self, env: GymEnv | VecEnv, force_reset: bool = True) -> None:
        """Set the environment, see :meth:`stable_baselines3.common.base_class.BaseAlgorithm.set_env`.

        Another ``VecNormalize`` is made up for at the next update, if the replay buffer still holds what the present
        scales of observations and rewards were taken from.

        It may be for another number of environments: what the replay buffer holds is then divided among them.

        :param env: the environment.
        :param force_reset: reset it before the next step.
        :raises ValueError: if its spaces or tasks are not the model's, or ``train_freq`` or ``buffer_size`` do not go
            with its number of environments; nothing is changed then.
        """
        extraction.check_tasks_of(env, self.policy)
        known = self._vec_normalize_env
        super().set_env(env, force_reset)
        self._give_env()
        if self._vec_normalize_env is not known:  # which may have other units
            self._steps_until_statistics, self._statistics_from = 0, None

    def _take_over_buffer(self, buffer: ReplayBuffer) -> None:
        super()._take_over_buffer(buffer)
        self._give_env()
        wanted = self.replay_buffer_class or type(buffer)
        if issubclass(wanted, HerReplayBuffer) and not isinstance(buffer, HerReplayBuffer):
            warnings.warn("this replay buffer was not filled for hindsight: its goals stay as recorded", stacklevel=3)
        if self.sequences.identity != self._statistics_from:
            self._steps_until_statistics = 0

    def _give_env(self) -> None:
        """Let a buffer that computes rewards anew ask the present environment."""
        if isinstance(self.replay_buffer, HerReplayBuffer):
            self.replay_buffer.env = self.env

    def _sample(self, batch_size: int, part: Part = ALL, *, length: int | None = None) -> SequenceSamples:
        own, buffer = length or self.sequence_length, self.sequences
        self._give_env()  # also a buffer that was copied with the model, or assigned
        samples = buffer.sample_sequences(batch_size, own, self._vec_normalize_env, part)
        return self.policy.for_networks(samples)

    def _critic_samples(self) -> tuple[SequenceSamples, ...]:
        """Return a batch for each update of the Q critics that follows an update of the actor."""
        count = self.critic_updates if self.policy.q_critic else 0
        steps = target_lengths(self.n_steps)
        return tuple(cut_windows(self._sample(self.critic_batch_size, length=max(steps)), steps) for _ in range(count))

    def _on_env_reset(self) -> None:
        super()._on_env_reset()
        self._start_values = StartValues(self.gamma, self.n_envs, CALIBRATION_EPISODES)

    def _on_transition(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[Any]) -> None:
        self._steps_until_statistics -= self.n_envs
        start_value = functools.partial(evaluation.start_value, self.policy)
        follow_episodes(self._start_values, start_value, observations, rewards, dones, infos)

    def learn(
        self: SelfPWM,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "PWM",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPWM:
        """Collect, pre-train the world model once, then alternate between collecting and updating.

        :param total_timesteps: environment steps.
        :param callback: SB3 callback, list of callbacks or function.
        :param log_interval: episodes between logs.
        :param tb_log_name: name of the run in TensorBoard.
        :param reset_num_timesteps: start counting (and an episode) anew; False continues.
        :param progress_bar: show progress, see :class:`sb3_pwm.compute.live.LiveProgress`.
        :return: the model.
        """
        if log_interval is not None:
            check_integer("log_interval", log_interval, 1)
        known = statistics.n_known_transitions(self.sequences, self._vec_normalize_env)
        learning_starts = random_steps(self.learning_starts, total_timesteps)
        warm_up = max(0, learning_starts - known) if known < self.sequences.buffer_size * self.n_envs else 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        # Pre-training may come before the first step, at which SB3 updates the progress.
        self._update_current_progress_remaining(self.num_timesteps, max(1, self._total_timesteps))
        warm_up_end = self.num_timesteps + warm_up
        # A policy that has learnt fills an empty buffer with its own actions, not with random ones.
        random_until = warm_up_end if self._n_updates == 0 else 0
        updates_before = self.n_model_updates
        view = live_progress(callback)
        what = f"{warm_up:,}{' random' if random_until else ''} steps"
        say(f"Collecting {what} before the first update", shown=self.verbose > 0 and warm_up > 0)
        try:
            callback.on_training_start(locals(), globals())
            if self.num_timesteps >= warm_up_end and known > 0:
                offline.finish_pretraining(self, view)
            while self.num_timesteps < total_timesteps:
                rollout = self.collect_rollouts(
                    self.env,  # type: ignore[arg-type]  # not None: it has been set up
                    train_freq=self.train_freq,
                    action_noise=self.action_noise,
                    callback=callback,
                    learning_starts=random_until,
                    replay_buffer=self.sequences,
                    log_interval=log_interval,
                )
                if not rollout.continue_training:
                    break
                if self.num_timesteps >= warm_up_end:
                    offline.finish_pretraining(self, view)
                    steps = self.gradient_steps if self.gradient_steps >= 0 else rollout.episode_timesteps
                    if steps > 0:
                        self.train(gradient_steps=steps, batch_size=self.batch_size)
        except BaseException:
            # Also Ctrl-C: whatever step was under way, the environment must be reset before the next one.
            self._last_obs = None
            raise
        else:
            callback.on_training_end()
        finally:
            self._acted_on = None
            let_go(callback)
        due = self.gradient_steps != 0 or self.n_model_updates < self.pretrain_steps
        finished = self.num_timesteps >= total_timesteps
        if due and finished and self._n_updates == 0 and self.n_model_updates == updates_before:
            warn_that_nothing_was_learnt(self.num_timesteps, learning_starts, self.sequences.n_transitions)
        return self

    def pretrain(
        self: SelfPWM,
        gradient_steps: int,
        progress_bar: bool = False,
        *,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        tb_log_name: str = "PWM_pretrain",
        reset_num_timesteps: bool = True,
    ) -> SelfPWM:
        """Update the world model alone, see :func:`sb3_pwm.offline.pretrain`; return the model."""
        offline.pretrain(self, gradient_steps, progress_bar, callback, log_interval, tb_log_name, reset_num_timesteps)
        return self

    def _update_model_alone(self, progress_remaining: float) -> None:
        self._set_learning_rate("model", progress_remaining)
        part = own_part()
        self._learner.update_model(self._sample(self.batch_size, part), n_processes=part.n_processes)
        self.n_model_updates += 1

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """Update world model, actor and critics on the present replay buffer.

        :param gradient_steps: number of world-model updates.
        :param batch_size: number of windows per update; None for the model's.
        """
        batch_size = batch_size or self.batch_size
        self._prepare_updates()
        if self._steps_until_statistics <= 0:
            self._take_scales()
        for _ in range(gradient_steps):
            samples = self._sample(batch_size)
            latents = self._learn_dynamics(samples)
            self._n_updates += 1
            due = math.floor(self._n_updates * self.policy_updates)
            for i in range(due - math.floor((self._n_updates - 1) * self.policy_updates)):
                if i == 0:
                    self._learner.update_policy(samples, self._critic_samples(), latents)
                else:  # on fresh windows, as the present world model sees them
                    self._learner.update_policy(self._sample(batch_size), self._critic_samples())

    def _learn_dynamics(self, samples: SequenceSamples) -> torch.Tensor | None:
        """Update the world model; return the windows' (T + 1, B, Z) latents, or None for those of the present one."""
        latents = self._learner.update_model(samples)
        self.n_model_updates += 1
        return latents

    def _take_scales(self) -> None:
        """Take the scales of observations and rewards, and the observation head's weights, from the replay buffer."""
        if statistics.take_scales(
            self.policy,
            self.sequences,
            self._vec_normalize_env,
            weigh_observations=self._learner.observation_coef > 0,
            same_units=self._statistics_from is not None,
        ):
            self._steps_until_statistics = self.sequences.n_transitions
            self._statistics_from = self.sequences.identity

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        """Set each optimizer's own rate; the argument is SB3's and names no rates, so it is not used."""
        for name in self._schedules:
            rate = self._set_learning_rate(name, self._current_progress_remaining)
            self.logger.record("train/learning_rate" if name == "actor" else f"train/{name}_learning_rate", rate)

    def _rate(self, name: str, progress_remaining: float) -> float:
        schedule = self._schedules[name] or self.lr_schedule  # which callbacks may replace
        return schedule(progress_remaining) * (ENTROPY_RATE if name == "entropy" else 1.0)

    def _set_learning_rate(self, name: str, progress_remaining: float) -> float:
        rate = self._rate(name, progress_remaining)
        set_learning_rate(self.policy.optimizers[name], rate, on_device=self.device.type == "cuda")
        return rate

    def _prepare_updates(self) -> None:
        """Bring learning rates up to date; make a logger if neither ``learn`` nor the user has made one."""
        if not hasattr(self, "_logger"):
            self._logger = configure_logger(self.verbose, self.tensorboard_log, "PWM", True)
        self.policy.set_training_mode(True)
        self._update_learning_rate([])

    def dump_logs(self) -> None:
        """Write the log: SB3's figures, and the losses' means since the last time."""
        for name, mean in self._learner.pop_metrics().items():
            self.logger.record(f"train/{name}", mean)
        if self.n_model_updates or self._n_updates:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/n_skipped_updates", self.n_skipped_updates)
            self.logger.record("train/value_calibration", self._start_values.ratio)
        super().dump_logs()

    @classmethod
    def from_dataset(
        cls: type[SelfPWM], dataset: ReplayBuffer, policy: str | type[PWMPolicy] = "MlpPolicy", **kwargs: Any
    ) -> SelfPWM:
        """Make a model for a data set, without an environment; see :func:`sb3_pwm.offline.model_of`."""
        return offline.model_of(cls, dataset, policy, kwargs)

    def learn_offline(
        self: SelfPWM,
        total_updates: int,
        *,
        pretrain_steps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        tb_log_name: str = "PWM_offline",
        progress_bar: bool = False,
        reset_num_timesteps: bool = True,
    ) -> SelfPWM:
        """Learn from the present replay buffer, see :func:`sb3_pwm.offline.learn_offline`; return the model."""
        settings = callback, log_interval, tb_log_name, progress_bar, reset_num_timesteps
        offline.learn_offline(self, total_updates, pretrain_steps, *settings)
        return self

    def _update_policy_offline(self) -> None:
        self._prepare_updates()
        self._learner.update_policy(self._sample(self.batch_size), self._critic_samples(), bc_coef=self.bc_coef)
        self._n_updates += 1

    def save_world_model(self, path: str | pathlib.Path) -> None:
        """Save the world model without the policy, see :func:`sb3_pwm.files.world_models.save`."""
        world_models.save(self.policy, path, self.termination_coef, self.n_model_updates)

    def load_world_model(self: SelfPWM, path: str | pathlib.Path) -> SelfPWM:
        """Take over a saved or published world model, see :func:`sb3_pwm.files.world_models.load`; return the model."""
        trained = world_models.load(self.policy, path, self.termination_coef)
        self.n_model_updates = max(self.n_model_updates, self.pretrain_steps, 1) if trained is None else trained
        return self

    def model_errors(self, dataset: ReplayBuffer, horizon: int = 16, n_windows: int = 2_000) -> dict[str, np.ndarray]:
        """Measure how far ahead the world model predicts, see :func:`sb3_pwm.diagnostics.evaluation.model_errors`."""
        buffer = self._to_evaluate(dataset)
        return evaluation.model_errors(self.policy, buffer, self._vec_normalize_env, horizon, n_windows)

    def estimate_return(
        self,
        dataset: ReplayBuffer,
        *,
        n_updates: int | None = None,
        deterministic: bool = True,
        seed: int = 0,
        progress_bar: bool = False,
    ) -> fitted_q.ReturnEstimate:
        """Estimate from data what the policy would earn, see :func:`sb3_pwm.diagnostics.fitted_q.estimate_return`."""
        settings = self.gamma, n_updates, deterministic, seed, progress_bar
        return fitted_q.estimate_return(self.policy, self._to_evaluate(dataset), self._vec_normalize_env, *settings)

    def value_calibration(self, env: GymEnv | VecEnv, n_episodes: int = 10, deterministic: bool = False) -> float:
        """Return the critics' mean value of start states over the mean discounted return of evaluation episodes.

        :return: 1 is right; above 1 the critics promise too much, or with negative returns below 1. Arguments and
            errors are those of :func:`sb3_pwm.diagnostics.evaluation.evaluated_start_values`.
        """
        return self._evaluated_start_values(env, n_episodes, deterministic).ratio

    def model_gap(self, env: GymEnv | VecEnv, n_episodes: int = 10) -> float:
        """Return how far the present policy's imagined return lies above its real one: in [-1, 1], 0 is right.

        Near 1, the policy exploits errors of the model; :class:`sb3_pwm.ModelGapCallback` watches it. Arguments and
        errors are those of :func:`sb3_pwm.diagnostics.evaluation.evaluated_start_values`.
        """
        return self._evaluated_start_values(env, n_episodes, deterministic=False).gap

    def _evaluated_start_values(self, env: GymEnv | VecEnv, n_episodes: int, deterministic: bool) -> StartValues:
        own, normalizer = self._wrap_env(env, monitor_wrapper=False), self._vec_normalize_env
        return evaluation.evaluated_start_values(self, own, normalizer, n_episodes, deterministic)

    def extract(
        self: SelfPWM,
        task: str,
        total_updates: int = extraction.EXTRACTION_UPDATES,
        *,
        env: gym.Env[Any, Any] | None = None,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
        policy_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> SelfPWM:
        """Learn a policy for one task in this model, see :func:`sb3_pwm.multitask.extraction.extract`; return it."""
        with put_back_if_seeded(kwargs.get("seed", self.seed)):
            model = extraction.extract(self, task, env, policy_kwargs or {}, kwargs, trains=total_updates)
            return model.learn_offline(total_updates, pretrain_steps=0, callback=callback, progress_bar=progress_bar)

    def add_task(
        self: SelfPWM,
        task: str,
        source: Source,
        total_updates: int = adding.ADDING_UPDATES,
        *,
        freeze_world_model: bool = False,
        env_steps: int = 10_000,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
    ) -> SelfPWM:
        """Take one task more into this trained model, see :func:`sb3_pwm.multitask.adding.add_task`; return it."""
        adding.add_task(self, task, source, total_updates, freeze_world_model, env_steps, callback, progress_bar)
        return self
