"""PWM as a Stable-Baselines3 algorithm."""

import math
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule, configure_logger
from tqdm.auto import tqdm

from sb3_pwm.buffers import ALL, SequenceReplayBuffer, check_replay_buffer, sequence_buffer_class
from sb3_pwm.calibration import StartValues, follow_episodes
from sb3_pwm.checks import (
    check_arguments,
    check_float_actions,
    check_precision,
    check_torch_compile,
    check_train_freq,
)
from sb3_pwm.compilation import TorchCompile
from sb3_pwm.learner import Learner, observation_weight
from sb3_pwm.multitask_algorithm import MultiTaskAlgorithm, storable
from sb3_pwm.multitask_policies import MultiTaskPolicy
from sb3_pwm.parallel import Part, own_part, share_from_first
from sb3_pwm.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, PWMPolicy
from sb3_pwm.precision import Precision
from sb3_pwm.sequence_algorithm import close_progress_bars
from sb3_pwm.type_aliases import SequenceSamples
from sb3_pwm.updates import at_steps

SelfPWM = TypeVar("SelfPWM", bound="PWM")

# High at the start, because there is one update for two environment steps; falling linearly, as the paper's rates do.
DEFAULT_LEARNING_RATE = LinearSchedule(1e-3, 1e-4, end_fraction=1.0)
CALIBRATION_EPISODES = 10
PREDICTABILITY_STEPS = 10_000  # from which it is taken how well observations can be foretold


class PWM(MultiTaskAlgorithm):
    """Policy learning with large World Models (PWM, arXiv 2407.02466).

    Fits a smooth latent world model to replayed windows, improves a stochastic actor by first-order gradients through
    imagined rollouts in that model, and ends each rollout with the value of a critic ensemble.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"MultiTaskPolicy"`` or a
        :class:`PWMPolicy` class.
    :param env: Gymnasium environment with a Box action space, its id, or an SB3 VecEnv.
    :param learning_rate: of the actor; a number or a schedule of the remaining progress (1 to 0).
    :param critic_learning_rate: of the critics; None for the actor's.
    :param model_learning_rate: of the world model; None for the actor's. Encoders that see images have 0.3 of it.
    :param buffer_size: capacity of the replay buffer, over all environments.
    :param learning_starts: environment steps with random actions before the first update; steps already in the replay
        buffer count, and a full one is enough; those that a learning ``VecNormalize`` has not seen do not count.
    :param pretrain_steps: updates of the world model alone before the first update of the policy.
    :param batch_size: number B of windows per update, and of imagined rollouts.
    :param sequence_length: number T of steps in a window over which the model predicts open-loop.
    :param horizon: number H of imagined steps.
    :param critic: ``"q"``: Q(latents, actions) learnt from replayed windows; ``"v"``: the paper's V(latents)
        learnt from imagined rollouts.
    :param critic_updates: critic updates per actor update.
    :param critic_batch_size: transitions per critic update.
    :param gamma: discount in (0, 1].
    :param td_lambda: lambda in [0, 1] of the critics' targets; 0 for one-step targets.
    :param pessimism: in [0, 1]: where the critics' targets are between the mean of the critics (0) and the lowest (1).
    :param tau: weight in (0, 1] of the critics in each Polyak update of the target critics.
    :param ent_coef: weight of the entropy bonus: reward scales that one nat is worth; 0 for none; ``"auto"`` learns
        it, so that the policy's entropy is ``target_entropy``.
    :param target_entropy: in nats; ``"auto"`` for minus half the number of action dimensions.
    :param consistency_coef: weight of the model's latent error.
    :param reward_coef: weight of the model's reward error.
    :param termination_coef: weight of the model's termination error; 0 trains no termination head, and imagined
        episodes never end.
    :param observation_coef: weight of the error of observations as a linear head reads them from the model's latents;
        nothing reads them where features in front of the encoder are trained, as with pictures. ``"auto"`` for 2, and
        for 0 where observations are more than 1,000 numbers.
    :param train_freq: collect this many steps (or ``(n, "episode")``) between updates.
    :param gradient_steps: world-model updates after each collection; -1 for as many as steps were collected.
    :param policy_updates: actor updates per world-model update; 0.125 is one after every eighth.
    :param bc_coef: in :meth:`learn_offline` only: weight of the squared distance to replayed actions, those better than
        the data's average in their state, in the actor's loss, in sizes of the imagined return; 0 for none.
    :param precision: of matrix products in updates: ``"float32"``; ``"bfloat16"``, several times faster where the
        hardware has it and the networks are large; ``"tf32"``, on GPUs only. See
        :func:`sb3_pwm.precision.arithmetic`.
    :param torch_compile: ``"auto"``: updates as CUDA graphs on GPUs, as they are on CPUs; True: their objectives also
        through ``torch.compile``, on any device; False: neither.
    :param action_noise: added to the actions that are taken in the environment.
    :param replay_buffer_class: a :class:`SequenceReplayBuffer` class; None for the one that fits the observations.
    :param replay_buffer_kwargs: its further arguments.
    :param policy_kwargs: arguments of :class:`PWMPolicy`: network sizes, activation, extractor, optimizer.
    :param stats_window_size: number of episodes over which the logged training return is averaged.
    :param tensorboard_log: folder for TensorBoard; None for none.
    :param verbose: 0 for nothing, 1 for training information, 2 for debugging.
    :param seed: of all random generators.
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    :param _init_setup_model: build the networks at once.
    :raises ValueError: if a number is out of its range.
    :raises TypeError: if an argument is of the wrong kind.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "MultiTaskPolicy": MultiTaskPolicy,
    }

    def __init__(
        self,
        policy: str | type[PWMPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = DEFAULT_LEARNING_RATE,
        *,
        critic_learning_rate: float | Schedule | None = None,
        model_learning_rate: float | Schedule | None = None,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1_000,
        pretrain_steps: int = 1_000,
        batch_size: int = 64,
        sequence_length: int = 4,
        horizon: int = 4,
        critic: Literal["q", "v"] = "q",
        critic_updates: int = 2,
        critic_batch_size: int = 128,
        gamma: float = 0.995,
        td_lambda: float = 0.5,
        pessimism: float = 1.0,
        tau: float = 0.05,
        ent_coef: float | Literal["auto"] = "auto",
        target_entropy: float | Literal["auto"] = "auto",
        consistency_coef: float = 20.0,
        reward_coef: float = 1.0,
        termination_coef: float = 1.0,
        observation_coef: float | Literal["auto"] = "auto",
        train_freq: int | tuple[int, str] = 2,
        gradient_steps: int = 1,
        policy_updates: float = 1.0,
        bc_coef: float = 3.0,
        precision: Precision = "float32",
        torch_compile: TorchCompile = "auto",
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[SequenceReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
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
            supported_action_spaces=(spaces.Box,),
        )
        self.critic_learning_rate = critic_learning_rate
        self.model_learning_rate = model_learning_rate
        self.pretrain_steps = pretrain_steps
        self.sequence_length = sequence_length
        self.horizon = horizon
        self.critic = critic
        self.critic_updates = critic_updates
        self.critic_batch_size = critic_batch_size
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
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, PWMPolicy):
            raise TypeError(
                f"policy must be a PWMPolicy class, not {self.policy_class.__name__}; if it comes from a file, another "
                "algorithm has saved it"
            )
        check_arguments(self.__dict__)
        check_precision(self.precision)
        check_torch_compile(self.torch_compile)
        check_train_freq(self.train_freq, self.n_envs)
        check_float_actions(self.action_space)
        if "critic" in self.policy_kwargs:
            raise ValueError("critic is an argument of PWM itself; leave it out of policy_kwargs")
        if self.replay_buffer_class is None:
            self.replay_buffer_class = sequence_buffer_class(self.observation_space)
        if not issubclass(self.replay_buffer_class, SequenceReplayBuffer):
            raise TypeError(
                f"replay_buffer_class must be a SequenceReplayBuffer, not {self.replay_buffer_class.__name__}"
            )
        rows = max(self.buffer_size // self.n_envs, 1)
        for name, allowed in (("sequence_length", rows), ("batch_size", rows * self.n_envs)):
            if getattr(self, name) > allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)} is more than buffer_size={self.buffer_size} can hold "
                    f"with {self.n_envs} environments; allowed: at most {allowed}"
                )
        # The kind of critic is an argument of the algorithm; the policy's own arguments stay what the user gave.
        policy_kwargs = storable(self.policy_kwargs)
        self.policy_kwargs = policy_kwargs | {"critic": self.critic}
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs = policy_kwargs
        check_replay_buffer(self.replay_buffer)
        self._learner = Learner(self)
        self._start_values = StartValues(self.gamma, self.n_envs, CALIBRATION_EPISODES)

    def _excluded_save_params(self) -> list[str]:
        derived = ["_learner", "_schedules", "_start_values", "_steps_since_statistics"]
        return [*super()._excluded_save_params(), *derived]

    def _refresh_statistics(self, *, at_once: bool = False) -> bool:
        refreshed = super()._refresh_statistics(at_once=at_once)
        world_model = self.policy.world_model
        if refreshed and observation_weight(world_model, self.observation_coef) > 0:
            steps = self.sequences.spread_sequences(PREDICTABILITY_STEPS, 1, self._vec_normalize_env)
            observations, actions, *_ = self.policy.without_padding(steps)
            world_model.weigh_observations(at_steps(observations, 0), actions[0], at_steps(observations, 1))
        return refreshed

    def _sample(self, batch_size: int, part: Part = ALL) -> SequenceSamples:
        samples = self.sequences.sample_sequences(batch_size, self.sequence_length, self._vec_normalize_env, part)
        return self.policy.without_padding(samples)

    def _check_first_update(self, warm_up: int, new_timesteps: int) -> None:
        """Refuse before the first step what the first update would refuse after ``warm_up`` steps."""
        frequency, unit = self.train_freq  # type: ignore[misc]
        pretraining = self.n_model_updates < self.pretrain_steps
        steps = 0  # of each environment until then
        if warm_up > 0 or not pretraining:
            steps = frequency * max(1, math.ceil(warm_up / (frequency * self.n_envs)))
            reached = (steps - frequency) * self.n_envs < new_timesteps
            if unit == TrainFrequencyUnit.EPISODE or not reached or (self.gradient_steps == 0 and not pretraining):
                return  # how many steps an episode has is not known
        self.sequences.check_size(self.batch_size, self.sequence_length, steps)

    def _on_env_reset(self) -> None:
        super()._on_env_reset()
        self._start_values = StartValues(self.gamma, self.n_envs, CALIBRATION_EPISODES)

    def _on_transition(self, observations: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[Any]) -> None:
        super()._on_transition(observations, rewards, dones, infos)
        follow_episodes(self._start_values, self._start_value, observations, rewards, dones, infos)

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
        :param progress_bar: show progress with tqdm and rich.
        :return: the model.
        """
        known, capacity = self._n_known_transitions, self.sequences.buffer_size * self.n_envs
        warm_up = max(0, self.learning_starts - known) if known < capacity else 0
        self._check_first_update(warm_up, total_timesteps)
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        # Pre-training may come before the first step, at which SB3 updates the progress.
        self._update_current_progress_remaining(self.num_timesteps, max(1, self._total_timesteps))
        callback.on_training_start(locals(), globals())
        warm_up_end = self.num_timesteps + warm_up
        # A policy that has learnt fills an empty buffer with its own actions, not with random ones.
        random_until = warm_up_end if self._n_updates == 0 else 0
        try:
            if self.num_timesteps >= warm_up_end:
                self._finish_pretraining(progress_bar)
            while self.num_timesteps < total_timesteps:
                rollout = self.collect_rollouts(
                    self.env,  # type: ignore[arg-type]
                    train_freq=self.train_freq,  # type: ignore[arg-type]
                    action_noise=self.action_noise,
                    callback=callback,
                    learning_starts=random_until,
                    replay_buffer=self.sequences,
                    log_interval=log_interval,
                )
                if not rollout.continue_training:
                    # SB3 has taken a step without storing it: the next stored step would not follow the newest one.
                    self._last_obs = None
                    break
                if self.num_timesteps >= warm_up_end:
                    self._finish_pretraining(progress_bar)
                    steps = self.gradient_steps if self.gradient_steps >= 0 else rollout.episode_timesteps
                    if steps > 0:
                        self.train(gradient_steps=steps, batch_size=self.batch_size)
        except BaseException:
            # Also Ctrl-C: whatever step was under way, the environment must be reset before the next one.
            self._last_obs = None
            close_progress_bars(callback)
            raise
        callback.on_training_end()
        return self

    def _finish_pretraining(self, progress_bar: bool) -> None:
        if self.n_model_updates < self.pretrain_steps:
            self._pretrain(self.pretrain_steps - self.n_model_updates, progress_bar, rate_falls=False)

    def pretrain(self: SelfPWM, gradient_steps: int, progress_bar: bool = False) -> SelfPWM:
        """Update the world model alone, on the present replay buffer.

        Its learning rate follows its schedule over these updates, as if they were a whole run; later updates have the
        rate of their own time.

        In a process group of ``torch.distributed`` every process takes its own part of each batch, ``batch_size``
        windows, and all end with the same world model; give all of them the same seed and data.

        :param gradient_steps: number of updates.
        :param progress_bar: show progress.
        :return: the model.
        :raises ValueError: if the replay buffer holds too little, or the environment's ``VecNormalize`` has not seen
            what it holds.
        """
        self._check_normalizer_known()
        self._pretrain(gradient_steps, progress_bar, rate_falls=True)
        return self

    def _pretrain(self, gradient_steps: int, progress_bar: bool, *, rate_falls: bool) -> None:
        self._prepare_updates()
        if gradient_steps > 0 or self.policy.statistics_size == 0:
            # Never for the policy's updates alone: the world model knows the old scales.
            self._refresh_statistics(at_once=True)
        part = own_part()
        if part.n_processes > 1:
            share_from_first(self.policy.world_model)
            share_from_first(self.policy.reward_scale)
        updates = range(gradient_steps)
        for update in tqdm(updates, "world model", disable=not progress_bar or part.rank > 0, leave=False):
            if rate_falls:
                self._set_learning_rate("model", 1 - update / gradient_steps)
            self._learner.update_model(self._sample(self.batch_size, part), part.n_processes)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Update world model, actor and critics on the present replay buffer.

        :param gradient_steps: number of world-model updates.
        :param batch_size: number of windows per update.
        """
        self._prepare_updates()
        self._refresh_statistics()
        for _ in range(gradient_steps):
            samples = self._sample(batch_size)
            latents = self._learner.update_model(samples)
            self._n_updates += 1
            due = math.floor(self._n_updates * self.policy_updates)
            for i in range(due - math.floor((self._n_updates - 1) * self.policy_updates)):
                if i == 0:
                    self._learner.update_policy(samples, latents)
                else:
                    self._update_policy(batch_size)

    def _train_offline(self) -> None:
        self._prepare_updates()
        self._update_policy(self.batch_size, bc_coef=self.bc_coef)
        self._n_updates += 1

    def _update_policy(self, batch_size: int, *, bc_coef: float = 0.0) -> None:
        """Update actor and critics on fresh windows, as the present world model sees them."""
        self._learner.update_policy(self._sample(batch_size), bc_coef=bc_coef)

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
        if self.n_model_updates:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/n_skipped_updates", self.n_skipped_updates)
            self.logger.record("train/value_calibration", self._start_values.ratio)
        super().dump_logs()
