"""Data of tasks, padded to those of their set, and of a task that joins a set."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pwm.buffers import DictSequenceReplayBuffer, SequenceReplayBuffer, check_replay_buffer
from sb3_pwm.files.replay_buffers import as_sequences
from sb3_pwm.multitask.envs import PaddedTaskEnv
from sb3_pwm.multitask.tasks import Task, TaskSet, space_sizes
from sb3_pwm.replay.checks import check_timeouts_told, check_values
from sb3_pwm.replay.columns import lost_beginnings, with_columns
from sb3_pwm.replay.watched_env import WatchedEnv

Source = gym.Env[Any, Any] | ReplayBuffer


def check_own_spaces(name: str, data: ReplayBuffer) -> None:
    """Check that a task's data are numbers, in a row.

    :param name: name of the task.
    :param data: its replay buffer.
    :raises TypeError: if it is not a replay buffer.
    :raises ValueError: if a space is not a Box with one axis.
    """
    check_replay_buffer(data, f"the data of task {name!r}")
    check_timeouts_told(data, f"the data of task {name!r}")
    parts = (data.observation_space, data.action_space)
    if not all(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in parts):
        raise ValueError(
            f"the data of task {name!r} have the spaces {parts[0]} and {parts[1]}; allowed is a Box with one axis "
            "each, the task's own"
        )


def task_of(name: str, source: Source) -> Task:
    """Return a task of the sizes that its environment or data have, without an environment.

    :param name: its name.
    :param source: its environment, or a replay buffer with its own spaces.
    :return: the task.
    :raises TypeError: if the name is not a string, the source is neither, or the environment's spaces are of another
        kind.
    :raises ValueError: if the data have other spaces.
    """
    if isinstance(source, gym.Env):
        limit = source.spec.max_episode_steps if source.spec else None
    elif isinstance(source, ReplayBuffer):
        limit = None
        check_own_spaces(name, source)
    else:
        raise TypeError(f"source must be a Gymnasium environment, such as gym.make(id), or a ReplayBuffer: {source!r}")
    return Task(name, None, *space_sizes(name, source), limit)  # type: ignore[arg-type]


def task_set_with(task_set: TaskSet, name: str, source: Source, *, may_grow: bool) -> TaskSet:
    """Return a task set with one task more, the last, of the sizes that its environment or data have.

    :param task_set: the tasks before.
    :param name: name of the new task.
    :param source: its environment, or a replay buffer with its own spaces.
    :param may_grow: allow larger observations and actions than those of the other tasks.
    :return: a new set, without environments.
    :raises TypeError: as :func:`task_of`.
    :raises ValueError: as :func:`task_of`, or if the name is there already or the task is too large.
    """
    if name in task_set.names:
        raise ValueError(f"the model has a task {name!r} already; allowed are other names than {task_set.names}")
    task = task_of(name, source)
    sizes = (task_set.observation_size, task_set.action_size)
    if not may_grow and (task.observation_size > sizes[0] or task.action_size > sizes[1]):
        raise ValueError(
            f"task {name!r} has {task.observation_size} observations and {task.action_size} actions; a frozen world "
            f"model takes at most its own {sizes[0]} and {sizes[1]}; freeze_world_model=False lets it grow"
        )
    return TaskSet([*task_set, task], min_observation_size=sizes[0], min_action_size=sizes[1])


def data_of_newest(task_set: TaskSet, source: Source, n_steps: int, seed: int | None) -> DictSequenceReplayBuffer:
    """Return the data of a set's last task, padded, in one column.

    :param task_set: the tasks.
    :param source: the last one's environment, or a replay buffer with its own spaces; neither is changed, but that the
        environment is stepped.
    :param n_steps: random steps to take in an environment.
    :param seed: of these steps.
    :return: a new buffer without free rows.
    :raises ValueError: if there are no data, or what cannot be learnt from.
    """
    task = task_set[-1]
    if isinstance(source, gym.Env):
        sizes = (len(task_set), task_set.observation_size, task_set.action_size)
        return random_steps(PaddedTaskEnv(source, task.name, len(task_set) - 1, *sizes), n_steps, seed)
    name = f"the data of task {task.name!r}"
    own = as_sequences(source, name)
    if own.size() == 0:
        raise ValueError(f"{name} are empty")
    own = with_columns(own, 1)
    padded = new_buffer(task_set, own.size(), 1)
    fill(padded, slice(0, 1), own, len(task_set) - 1)
    return padded


def random_steps(env: PaddedTaskEnv, n_steps: int, seed: int | None) -> DictSequenceReplayBuffer:
    """Return steps with uniformly random actions.

    :raises ValueError: if the environment gives what cannot be learnt from.
    """
    vec_env = WatchedEnv(DummyVecEnv([lambda: env]))
    buffer = DictSequenceReplayBuffer(n_steps, env.observation_space, env.action_space, "cpu")
    rng = np.random.default_rng(seed)
    vec_env.seed(seed)
    observations: Any = vec_env.reset()
    for _ in range(n_steps):
        actions = rng.uniform(-1, 1, (1, *(env.action_space.shape or ()))).astype(np.float32)
        vec_env.expect_step()
        following, rewards, dones, infos = vec_env.step(actions)
        buffer.add(observations, vec_env.next_observations(), actions, rewards, dones, infos)
        observations = following
    buffer.end_trajectories()
    check_values(buffer, f"the steps in the environment of task {env.name!r}")
    return buffer


def beside(buffer: SequenceReplayBuffer, task_set: TaskSet, newest: SequenceReplayBuffer) -> DictSequenceReplayBuffer:
    """Return the columns of a padded buffer, padded to a larger set, and behind them that of the set's last task.

    What is shorter is repeated from its start, as in :func:`sb3_pwm.datasets.from_tasks`.

    :param buffer: the data of the other tasks; it is not changed.
    :param task_set: the tasks with the last one.
    :param newest: the last one's data, padded, in one column.
    :return: a new buffer with room for as many steps of every environment as before, or more if there are more.
    """
    n_rows = max(buffer.size(), newest.size())
    n_old = buffer.n_envs if buffer.size() else 0
    merged = new_buffer(task_set, max(buffer.buffer_size, n_rows) if n_old else n_rows, n_old + 1)
    if n_old:
        fill(merged, slice(0, n_old), buffer, None, n_rows)
    fill(merged, slice(n_old, n_old + 1), newest, None, n_rows)
    return merged


def new_buffer(task_set: TaskSet, n_rows: int, n_columns: int) -> DictSequenceReplayBuffer:
    """Return an empty buffer for padded steps."""
    actions = spaces.Box(-1, 1, (task_set.action_size,), np.float32)
    return DictSequenceReplayBuffer(n_rows * n_columns, task_set.observation_space, actions, "cpu", n_envs=n_columns)


def fill(target: Any, columns: slice, source: Any, task_id: int | None, n_rows: int | None = None) -> None:
    """Copy a buffer's steps, oldest first, into columns of a padded buffer.

    :param target: an empty padded buffer, or one whose other columns have as many steps.
    :param columns: as many columns as ``source`` has.
    :param source: padded buffer; or one of a single task, with its own observations.
    :param task_id: number of that single task.
    :param n_rows: number of steps, repeated from the oldest; None for as many as there are.
    """
    size = source.size()
    ages = np.arange(n_rows or size) % size
    rows, order = np.arange(len(ages)), (source.oldest + ages) % source.buffer_size
    for name in ("observations", "next_observations"):
        stored = getattr(source, name)
        values = stored["observation"] if task_id is None else stored
        getattr(target, name)["observation"][rows, columns, : values.shape[-1]] = values[order]
        getattr(target, name)["task"][rows, columns] = stored["task"][order] if task_id is None else task_id
    target.actions[rows, columns, : source.actions.shape[-1]] = source.actions[order]
    for name in ("rewards", "dones", "timeouts"):
        getattr(target, name)[rows, columns] = getattr(source, name)[order]
    for age, column in lost_beginnings(source):
        target.lost_beginnings += tuple((row, columns.start + column) for row in rows[ages == age].tolist())
    last = rows[ages == size - 1]  # what comes next is repeated from the oldest step, or new
    running = target.dones[last, columns] == 0
    target.dones[last, columns] = 1
    target.timeouts[last, columns] = np.where(running, 1, target.timeouts[last, columns])
    target.pos, target.full = len(rows) % target.buffer_size, len(rows) == target.buffer_size
