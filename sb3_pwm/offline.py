"""Learning without an environment: from data alone, and the world model's pre-training."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tqdm.auto import tqdm

from sb3_pwm.buffers import check_replay_buffer
from sb3_pwm.checks import check_integer, random_steps
from sb3_pwm.compute.distributed import own_part, share_from_first
from sb3_pwm.compute.live import LiveProgress
from sb3_pwm.compute.progress import let_go, timed
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.replay.statistics import check_normalizer_known

if TYPE_CHECKING:
    from sb3_pwm.pwm import PWM

SelfPWM = TypeVar("SelfPWM", bound="PWM")
Shown: TypeAlias = Callable[[Iterable[int]], Iterable[int]]

PRETRAIN_STEPS = 10_000  # for each task: nothing improves the world model afterwards
# No environment corrects a policy that exploits the errors of one network, or values that promise too much.
POLICY_ARGUMENTS = {"n_dynamics": 3, "n_critics": 3}
# What learning from data was measured with: observations were not read from latents.
ARGUMENTS = {"batch_size": 128, "observation_coef": 0.0, "gamma": 0.995, "pessimism": 1.0}


class SpacesOnlyEnv(gym.Env[Any, Any]):
    """Stands where SB3 wants an environment while a model learns from data; it cannot be acted in.

    :param observation_space: space of the observations.
    :param action_space: space of the actions.
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Refuse.

        :raises RuntimeError: always.
        """
        raise RuntimeError("this model was made from data and has no environment to act in; call set_env(env) first")

    def step(self, action: Any) -> Any:
        """Refuse.

        :raises RuntimeError: always.
        """
        return self.reset()


def spaces_only(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int) -> DummyVecEnv:
    """Return ``n_envs`` environments that have spaces and nothing else."""
    return DummyVecEnv([lambda: SpacesOnlyEnv(observation_space, action_space)] * n_envs)


def arguments_for(dataset: ReplayBuffer, wrap: Callable[[GymEnv], VecEnv], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of a model that learns from a data set.

    :param dataset: replay buffer.
    :param wrap: wraps an environment as SB3's algorithms do.
    :param given: what differs from the defaults of :meth:`sb3_pwm.PWM.from_dataset`.
    :raises TypeError: if ``dataset`` is not a replay buffer, or ``given`` holds what the data set decides.
    :raises ValueError: if windows cannot be drawn from it, or its images have their channels last.
    """
    check_replay_buffer(dataset)
    decided = sorted({"env", "buffer_size"} & set(given))
    if decided:
        raise TypeError(f"from_dataset() takes {' and '.join(decided)} from the data set; leave out the argument")
    env = wrap(spaces_only(dataset.observation_space, dataset.action_space, dataset.n_envs))
    if env.observation_space != dataset.observation_space:  # SB3 has put VecTransposeImage around it
        raise ValueError(
            f"the data set's images have their channels last, {dataset.observation_space}; SB3's networks want "
            f"them first: give the importer np.moveaxis(images, -1, -3) and the space {env.observation_space}"
        )
    policy_kwargs = POLICY_ARGUMENTS | (given.get("policy_kwargs") or {})
    size = dataset.buffer_size * dataset.n_envs
    return {**ARGUMENTS, **given, "policy_kwargs": policy_kwargs, "env": env, "buffer_size": size}


def model_of(
    kind: type[SelfPWM], dataset: ReplayBuffer, policy: str | type[PWMPolicy], given: Mapping[str, Any]
) -> SelfPWM:
    """Make a model for a data set, without an environment.

    :param kind: class of the model.
    :param dataset: replay buffer, see :mod:`sb3_pwm.datasets`; the model goes on with it, it is not copied.
    :param policy: as for the constructor.
    :param given: constructor arguments; ``env`` and ``buffer_size`` are the data set's, the default of
        ``pretrain_steps`` is 10,000 for each task, that of ``batch_size`` is 128, that of ``observation_coef`` 0,
        those of ``gamma`` and ``pessimism`` are 0.995 and 1, and those of ``n_dynamics`` and ``n_critics`` in
        ``policy_kwargs`` are 3.
    :return: the model; :meth:`sb3_pwm.PWM.learn_offline` trains it, ``set_env`` and ``learn`` go on in an environment.
    :raises TypeError: if ``dataset`` is not a replay buffer, or ``given`` holds what the data set decides.
    :raises ValueError: if windows cannot be drawn from it, or its images have their channels last.
    """
    arguments = arguments_for(dataset, kind._wrap_env, given)
    model = kind(policy, **(arguments | {"_init_setup_model": False}))
    model.replay_buffer = dataset  # so that no other of its size is made
    model._setup_model()
    model._take_over_buffer(dataset)
    if "pretrain_steps" not in given:
        model.pretrain_steps = PRETRAIN_STEPS * model.policy.n_tasks
    return model


def learn_offline(
    model: "PWM",
    total_updates: int,
    pretrain_steps: int | None,
    callback: MaybeCallback,
    log_interval: int | None,
    tb_log_name: str,
    progress_bar: bool,
    reset_num_timesteps: bool,
) -> None:
    """Learn from the present replay buffer: the world model first, then the policy in imagination.

    No environment is reset or stepped, and the world model no longer changes while the policy learns. In callbacks,
    schedules and the log ``num_timesteps`` counts policy updates. :meth:`sb3_pwm.PWM.learn` goes on from here.

    :param model: the model.
    :param total_updates: policy updates.
    :param pretrain_steps: world-model updates before them; None for what is left of the model's ``pretrain_steps``,
        with the learning rate that an interruption left.
    :param callback: SB3 callback, list of callbacks or function.
    :param log_interval: policy updates between logs; None for no logs.
    :param tb_log_name: name of the run in TensorBoard.
    :param progress_bar: show progress.
    :param reset_num_timesteps: start counting anew; False continues, as if ``total_updates`` more had been asked for at
        first.
    :raises ValueError: if a number is out of range, the replay buffer holds too little, or the environment's
        ``VecNormalize`` has not seen what it holds.
    """
    check_integer("total_updates", total_updates, 0)
    _check_log_interval(log_interval)
    done = model.n_model_updates if pretrain_steps is None else 0
    if pretrain_steps is None:
        pretrain_steps = max(0, model.pretrain_steps - done)
    check_integer("pretrain_steps", pretrain_steps, 0)
    wanted = done + pretrain_steps
    model.sequences.check_not_empty()
    _check_normalizer(model)
    if model.env is None:
        model.env = spaces_only(model.observation_space, model.action_space, model.n_envs)
    bar = progress_bar and own_part().rank == 0
    shown = functools.partial(tqdm, desc="world model", disable=not bar, leave=False)
    if reset_num_timesteps:
        model.num_timesteps = model._episode_num = 0
        model.ep_info_buffer = None
    run(
        model,
        total_updates,
        callback,
        log_interval,
        tb_log_name,
        progress_bar,
        first=model.num_timesteps,
        what="policy",
        prepare=lambda: pretrain_within(model, pretrain_steps, shown, lambda n: 1 - (done + n) / wanted),
        update=model._update_policy_offline,
    )


def pretrain(
    model: "PWM",
    gradient_steps: int,
    progress_bar: bool,
    callback: MaybeCallback,
    log_interval: int | None,
    tb_log_name: str,
    reset_num_timesteps: bool,
) -> None:
    """Update the world model alone, on the present replay buffer.

    Its learning rate follows its schedule over these updates, as if they were a whole run; later updates have the rate
    of their own time. Meanwhile ``num_timesteps`` counts them, in callbacks and the log.

    In a process group of ``torch.distributed`` every process takes its own part of each batch, ``batch_size`` windows,
    and all end with the same world model; give all of them the same seed and data.

    :param model: the model.
    :param gradient_steps: number of updates.
    :param progress_bar: show progress.
    :param callback: SB3 callback, list of callbacks or function.
    :param log_interval: updates between logs; None for no logs.
    :param tb_log_name: name of the run in TensorBoard.
    :param reset_num_timesteps: start counting anew; False goes on from ``n_model_updates``, where an interrupted
        pre-training has stopped: with its count, and with its learning rate if ``gradient_steps`` are what was left.
    :raises ValueError: if a number is out of range, the replay buffer holds too little, or the environment's
        ``VecNormalize`` has not seen what it holds.
    """
    check_integer("gradient_steps", gradient_steps, 0)
    _check_log_interval(log_interval)
    _check_normalizer(model)
    with _told(model, gradient_steps):
        run_beside(
            model,
            gradient_steps,
            callback,
            log_interval,
            tb_log_name,
            progress_bar and own_part().rank == 0,
            first=0 if reset_num_timesteps else model.n_model_updates,
            what="world model",
            prepare=lambda: _prepare_pretraining(model, gradient_steps),
            update=lambda: model._update_model_alone(model._current_progress_remaining),
        )


def pretrain_within(
    model: "PWM", gradient_steps: int, shown: Shown, progress_remaining: Callable[[int], float]
) -> None:
    """Pre-train within other learning.

    :param model: the model.
    :param gradient_steps: number of updates of the world model.
    :param shown: gives the numbers of the updates that it is given, and shows progress.
    :param progress_remaining: what each update, of which it is given the number, has for its learning rate's schedule.
    """
    _prepare_pretraining(model, gradient_steps)
    with _told(model, gradient_steps):
        for update in shown(range(gradient_steps)):
            model._update_model_alone(progress_remaining(update))


def finish_pretraining(model: "PWM", view: LiveProgress | None) -> None:
    """Do what is left of a model's ``pretrain_steps``, within :meth:`sb3_pwm.PWM.learn`, which shows its progress."""
    left = model.pretrain_steps - model.n_model_updates
    if left > 0:
        shown: Shown = iter if view is None else functools.partial(view.track, name="world model")
        pretrain_within(model, left, shown, lambda _: model._current_progress_remaining)


def _prepare_pretraining(model: "PWM", gradient_steps: int) -> None:
    model._prepare_updates()
    if gradient_steps > 0 or model.policy.statistics_size == 0:
        # Never for the policy's updates alone: the world model knows the old scales.
        model._take_scales()
    if own_part().n_processes > 1:
        share_from_first(model.policy.world_model)
        share_from_first(model.policy.reward_scale)


def _told(model: "PWM", gradient_steps: int) -> AbstractContextManager[None]:
    """Tell a user with ``verbose=1`` of pre-training."""
    what = f"Training the world model alone: {gradient_steps:,} updates"
    return timed(what, shown=model.verbose > 0 and gradient_steps > 0 and own_part().rank == 0)


def _check_log_interval(log_interval: int | None) -> None:
    if log_interval is not None:
        check_integer("log_interval", log_interval, 1)


def _check_normalizer(model: "PWM") -> None:
    steps_to_know = random_steps(model.learning_starts, model._total_timesteps)
    check_normalizer_known(model.sequences, model._vec_normalize_env, steps_to_know)


def run_beside(model: OffPolicyAlgorithm, *args: Any, **kwargs: Any) -> None:
    """Do as :func:`run` does; the steps of what else is learnt stay counted as they are."""
    known = model.num_timesteps, model._current_progress_remaining
    try:
        run(model, *args, **kwargs)
    finally:
        model.num_timesteps, model._current_progress_remaining = known


def run(
    model: OffPolicyAlgorithm,
    total_timesteps: int,
    callback: MaybeCallback,
    log_interval: int | None,
    tb_log_name: str,
    progress_bar: bool,
    *,
    first: int,
    what: str,
    prepare: Callable[[], object],
    update: Callable[[], None],
) -> None:
    """Call ``update`` as SB3's loop calls ``train``: with callbacks, schedules and log, but no environment.

    :param model: the model.
    :param total_timesteps: number of updates.
    :param callback: SB3 callback, list of callbacks or function.
    :param log_interval: updates between logs; None for no logs.
    :param tb_log_name: name of the run in TensorBoard.
    :param progress_bar: show progress.
    :param first: number of updates that have been before, and count too.
    :param what: is learnt, for the progress bar.
    :param prepare: called once before the first update.
    :param update: one update.
    """
    callback = _set_up(model, total_timesteps, callback, tb_log_name, first)
    total = max(1, model._total_timesteps)
    model._update_current_progress_remaining(first, total)
    found_by_callbacks = {"self": model, "total_timesteps": total_timesteps, "tb_log_name": tb_log_name}
    callback.on_training_start(found_by_callbacks, globals())
    try:
        prepare()
        # SB3's own bar would count a step of every environment at each update.
        for _ in tqdm(range(total_timesteps), what, disable=not progress_bar):
            update()
            model.num_timesteps += 1
            model._update_current_progress_remaining(model.num_timesteps, total)
            if not callback.on_step():
                break
            if log_interval is not None and model.num_timesteps % log_interval == 0:
                model.dump_logs()
        callback.on_training_end()
    finally:
        let_go(callback)


def _set_up(
    model: OffPolicyAlgorithm, total_updates: int, callback: MaybeCallback, tb_log_name: str, first: int
) -> BaseCallback:
    """Do what SB3 does before learning, but for the reset of the environment."""
    model.start_time = time.time_ns()
    model.num_timesteps = model._num_timesteps_at_start = first
    model._total_timesteps = first + total_updates
    if model.ep_info_buffer is None:
        model.ep_info_buffer = deque(maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    if not model._custom_logger:
        model._logger = configure_logger(model.verbose, model.tensorboard_log, tb_log_name, first == 0)
    return model._init_callback(callback)
