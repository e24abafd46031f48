"""Data sets of several tasks in one replay buffer."""

from collections.abc import Mapping

from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm.buffers import DictSequenceReplayBuffer
from sb3_pwm.checks import check_integer
from sb3_pwm.datasets.sb3 import from_replay_buffer
from sb3_pwm.multitask.data import check_own_spaces, fill, new_buffer
from sb3_pwm.multitask.tasks import Task, TaskSet


def from_tasks(
    task_set: TaskSet, datasets: Mapping[str, ReplayBuffer], *, buffer_size: int | None = None
) -> DictSequenceReplayBuffer:
    """Put the data of every task into one replay buffer, padded, with one column per task.

    Shorter data sets are repeated from their start until they are as long as the longest, so that windows of all tasks
    are drawn equally often and nothing is left out.

    :param task_set: the tasks.
    :param datasets: a replay buffer with the task's own spaces for every task, by name, see :mod:`sb3_pwm.datasets`.
    :param buffer_size: capacity in steps of each task; None for the length of the longest data set.
    :return: replay buffer with as many environments as there are tasks, in the order of the set.
    :raises TypeError: if one is not a replay buffer, or ``buffer_size`` no integer.
    :raises ValueError: if a task has no data, there are data of an unknown task, spaces have other sizes, or
        ``buffer_size`` is too small.
    """
    if buffer_size is not None:
        check_integer("buffer_size", buffer_size, 1)
    for name in datasets:
        task_set.task_id(name)
    missing = [name for name in task_set.names if name not in datasets]
    if missing:
        raise ValueError(f"no data set for {len(missing)} of {len(task_set)} tasks: {missing[:5]}")
    for task in task_set:
        check_sizes(task, datasets[task.name])
    own = {name: from_replay_buffer(dataset) for name, dataset in datasets.items()}
    n_rows = max(buffer.size() for buffer in own.values())
    if buffer_size is not None and buffer_size < n_rows:
        raise ValueError(f"buffer_size={buffer_size} is less than the {n_rows} steps of the longest data set")
    merged = new_buffer(task_set, buffer_size or n_rows, len(task_set))
    for column, name in enumerate(task_set.names):
        fill(merged, slice(column, column + 1), own[name], column, n_rows)
    return merged


def check_sizes(task: Task, dataset: ReplayBuffer) -> None:
    """Check that a data set has a task's own sizes.

    :raises TypeError: if it is not a replay buffer.
    :raises ValueError: if it has other sizes, or spaces that are not a Box.
    """
    check_own_spaces(task.name, dataset)
    shapes = (dataset.observation_space.shape, dataset.action_space.shape)
    if shapes != ((task.observation_size,), (task.action_size,)):
        raise ValueError(
            f"the data of task {task.name!r} have observations and actions of the shapes {shapes}; the task has "
            f"{task.observation_size} observations and {task.action_size} actions"
        )
