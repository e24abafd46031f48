"""One task more for a trained model of many tasks."""

from typing import TYPE_CHECKING

import torch
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_pwm import offline
from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_boolean, check_integer, check_train_freq
from sb3_pwm.compute.optimizers import set_learning_rate
from sb3_pwm.compute.progress import say
from sb3_pwm.compute.random_state import put_back_if_seeded
from sb3_pwm.multitask import growth
from sb3_pwm.multitask.data import Source, beside, data_of_newest
from sb3_pwm.multitask.extraction import check_has_own_scales, check_is_pretrained
from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.replay.statistics import take_weights

if TYPE_CHECKING:
    from sb3_pwm.pwm import PWM

ADDING_UPDATES = 10_000  # as many as a world model learns from data for each of its tasks
LOG_INTERVAL = 100


def add_task(
    model: "PWM",
    task: str,
    source: Source,
    total_updates: int,
    freeze_world_model: bool,
    env_steps: int,
    callback: MaybeCallback,
    progress_bar: bool,
) -> None:
    """Take one task more into a trained model of many tasks; ``extract`` then gives a policy for it.

    Networks, optimizers and replay buffer grow if the task has more observations or actions than the others, and are
    the same functions of the other tasks as before. The new task's embedding starts from that of the task with which
    the world model predicts the new data best. Then the world model learns the new task from its data, and replays the
    others'; a policy of all tasks that has been trained (not only pre-trained) learns with it.

    The model is left without an environment, because that of before lacks the task; ``set_env`` gives it one.

    If it is interrupted before the first update, the model is as it was. After that the task stays in it, and the same
    call goes on where it was cut, also after the model and its replay buffer were saved and loaded.

    :param model: the model; it is changed.
    :param task: name of the new task, which becomes the last of ``model.policy.task_set``.
    :param source: its environment, in which random steps are taken, or a replay buffer with its own spaces, see
        :mod:`sb3_pwm.datasets`.
    :param total_updates: of the world model, over which its learning rate follows its schedule.
    :param freeze_world_model: learn nothing but the new embedding. All other tasks stay exactly as they are, and their
        data are not needed.
    :param env_steps: random steps to take, if ``source`` is an environment.
    :param callback: as for :meth:`sb3_pwm.PWM.pretrain`.
    :param progress_bar: show progress.
    :raises TypeError: if the model has one task only, or ``task`` or ``source`` are of the wrong kind.
    :raises ValueError: if the model has a task of this name (unless it was interrupted), the data have other spaces,
        are empty or cannot be learnt from, the task is too large for a frozen world model, data to replay are missing,
        the world model has not been trained, or the model learns behind a ``VecNormalize``; nothing is changed then.
    """
    check_boolean("freeze_world_model", freeze_world_model)
    for name, number, low in (("total_updates", total_updates, 0), ("env_steps", env_steps, 1)):
        check_integer(name, number, low)
    check_has_own_scales(model, "add_task()")
    done = 0
    if model._adding is not None and task == model._adding[0]:
        done = model._adding[1]
        task_set = growth.unfinished_task_set(model.policy, model.sequences, source, frozen=freeze_world_model)
        data = data_of_newest(task_set, source, env_steps, model.seed)
    else:
        settings = {"frozen": freeze_world_model, "has_noise": model.action_noise is not None}
        task_set = growth.checked_task_set(model.policy, model.sequences, task, source, **settings)
        check_is_pretrained(model, "add_task()", total_updates)
        data = data_of_newest(task_set, source, env_steps, model.seed)
        buffer = beside(model.sequences, task_set, data)
        check_train_freq(model.train_freq, buffer.n_envs)
        _grow(model, task_set, buffer, data, frozen=freeze_world_model)
    data.device = model.device
    optimizer = torch.optim.Adam([growth.embedding_of(model.policy)]) if freeze_world_model else None
    offline.run_beside(
        model,
        max(0, total_updates - done),
        callback,
        LOG_INTERVAL,
        "PWM_add_task",
        progress_bar,
        first=done,
        what=f"task {task}",
        prepare=model._prepare_updates,
        update=lambda: _update_newest_task(model, task, data, optimizer),
    )
    if model._adding is not None and model._adding[1] >= total_updates:
        model._adding = None  # not if a callback has stopped it


def _grow(
    model: "PWM", task_set: TaskSet, buffer: SequenceReplayBuffer, data: SequenceReplayBuffer, *, frozen: bool
) -> None:
    """Build everything for more tasks, with all that was learnt, and start the newest; as a whole or not at all."""
    known, former = dict(model.__dict__), model.policy
    try:
        own = {"task_set": task_set.to_dict(), "latent_dim": former.latent_dim}
        model.policy_kwargs = (model.policy_kwargs or {}) | own
        model.observation_space, model.action_space = buffer.observation_space, buffer.action_space
        model.n_envs, model.buffer_size = buffer.n_envs, buffer.buffer_size * buffer.n_envs
        model.env = offline.spaces_only(model.observation_space, model.action_space, model.n_envs)
        model._last_obs = model._last_original_obs = model._last_episode_starts = model._watched = None
        model.replay_buffer = buffer
        with put_back_if_seeded(model.seed):
            model._setup_model()
        growth.take_over(former, model.policy)
        model._statistics_from, model._steps_until_statistics = buffer.identity, buffer.n_transitions
        data.device = buffer.device = model.device
        nearest = growth.start_task(model.policy, model._learner, data, model.sequence_length)
        if model._learner.observation_coef > 0 and not frozen:
            take_weights(model.policy, buffer, None)
        names = task_set.names
        say(f"Task {names[-1]!r} starts from {names[nearest]!r}, the nearest", shown=model.verbose > 0)
        model._adding = names[-1], 0
    except BaseException:
        model.__dict__ = known
        raise


def _update_newest_task(
    model: "PWM", task: str, data: SequenceReplayBuffer, optimizer: torch.optim.Optimizer | None
) -> None:
    """Update the embedding of the last task, or the world model and a policy that has been trained."""
    model._prepare_updates()
    sizes = (model.batch_size, model.sequence_length)
    if optimizer is not None:
        rate = model._rate("model", model._current_progress_remaining)
        set_learning_rate(optimizer, rate, on_device=model.device.type == "cuda")
        model._learner.update_embedding(model.policy.for_networks(data.sample_sequences(*sizes)), optimizer)
    else:
        samples = growth.mixed_windows(model.policy, model.sequences, data, *sizes)
        latents = model._learn_dynamics(samples)
        if model._n_updates > 0:
            model._learner.update_policy(samples, model._critic_samples(), latents, bc_coef=model.bc_coef)
            model._n_updates += 1
    model._adding = task, model.num_timesteps + 1  # run() counts it next
