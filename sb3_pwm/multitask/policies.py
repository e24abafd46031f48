"""Policies for several tasks with one world model, and for one of these tasks alone."""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from sb3_pwm.checks import check_integer
from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.nn.task_context import TaskContext, TaskFeatures, task_ids
from sb3_pwm.observations import at_steps
from sb3_pwm.policies import Parts, PWMPolicy
from sb3_pwm.type_aliases import Observations, SequenceSamples

TASK_EMBEDDING_DIM = 32


class MultiTaskPolicy(PWMPolicy):
    """:class:`PWMPolicy` that acts in several tasks; world model, actor and critics know the task.

    Observations are those of :class:`sb3_pwm.multitask.envs.PaddedTaskEnv`. Every task has its own scales of
    observations, rewards and imagined returns, and its own entropy coefficient.

    :param observation_space: Dict of a Box ``observation`` and a Discrete ``task``.
    :param action_space: Box of A actions.
    :param lr_schedule: as for :class:`PWMPolicy`.
    :param task_set: the tasks, or what ``TaskSet.to_dict`` gives of them.
    :param task_embedding_dim: size of a task's trained embedding.
    :param kwargs: further arguments of :class:`PWMPolicy`; a features extractor is not used.
    :raises ValueError: if the spaces are not the task set's, or actions are discrete.
    """

    task_key = "task"

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        task_set: TaskSet | Mapping[str, Any],
        task_embedding_dim: int = TASK_EMBEDDING_DIM,
        **kwargs: Any,
    ) -> None:
        self.task_set = without_envs(task_set)
        check_integer("task_embedding_dim", task_embedding_dim, 1)
        self.task_embedding_dim = task_embedding_dim
        check_numbers(action_space)
        found = (observation_space, action_space.shape)
        expected = (self.task_set.observation_space, (self.task_set.action_size,))
        if found != expected:
            raise ValueError(f"the spaces are not those of the task set: {found}; allowed: {expected}")
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_parts(self) -> Parts:
        tasks = self.task_set
        context = TaskContext(torch.as_tensor(tasks.action_masks), self.task_embedding_dim)
        features = TaskFeatures(len(tasks), tasks.observation_size, standardize=self.standardize)
        return Parts(features, tasks.observation_size, tasks.action_size, context, len(tasks))

    @property
    def n_tasks(self) -> int:
        """Number of tasks that the policy acts in."""
        return len(self.task_set)

    @property
    def model_settings(self) -> dict[str, Any]:
        """As those of :class:`PWMPolicy`, with the tasks."""
        return super().model_settings | {"task_set": self.task_set.to_dict()}

    def tasks_of(self, observations: Observations) -> torch.Tensor | None:
        """Return the (N,) tasks of (N, ...) observations."""
        return task_ids(observations, None)

    def for_networks(self, samples: SequenceSamples) -> SequenceSamples:
        """Return windows whose padded action dimensions, which random actions fill too, are 0."""
        masks = torch.as_tensor(self.task_set.action_masks, device=self.device)
        return samples._replace(actions=samples.actions * masks[task_ids(at_steps(samples.observations, 0), None)])

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"task_set": self.task_set.to_dict(), "task_embedding_dim": self.task_embedding_dim}
        return super()._get_constructor_parameters() | own


class ExtractedPolicy(PWMPolicy):
    """:class:`PWMPolicy` for one task of a set, in this task's own spaces, with the set's world model.

    :param observation_space: Box of the task's own observations.
    :param action_space: Box of the task's own actions.
    :param lr_schedule: as for :class:`PWMPolicy`.
    :param task: name of the task.
    :param task_set: the tasks, or what ``TaskSet.to_dict`` gives of them.
    :param task_embedding_dim: of the set's world model.
    :param kwargs: further arguments of :class:`PWMPolicy`; the world model's sizes must be the set's.
    :raises ValueError: if there is no such task, the spaces have other sizes, or actions are discrete.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        task: str,
        task_set: TaskSet | Mapping[str, Any],
        task_embedding_dim: int = TASK_EMBEDDING_DIM,
        **kwargs: Any,
    ) -> None:
        self.task, self.task_set, self.task_embedding_dim = task, without_envs(task_set), task_embedding_dim
        check_numbers(action_space)
        own = self.task_set[self.task_set.task_id(task)]
        expected = ((own.observation_size,), (own.action_size,))
        if (observation_space.shape, action_space.shape) != expected:
            raise ValueError(
                f"observations and actions have the shapes {observation_space.shape} and {action_space.shape}; those "
                f"of task {task!r} have {expected[0]} and {expected[1]}"
            )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_parts(self) -> Parts:
        tasks = self.task_set
        number = tasks.task_id(self.task)
        context = TaskContext(torch.as_tensor(tasks.action_masks), self.task_embedding_dim, number)
        features = TaskFeatures(len(tasks), tasks.observation_size, number, standardize=self.standardize)
        return Parts(features, tasks.observation_size, tasks.action_size, context)

    @property
    def model_settings(self) -> dict[str, Any]:
        """As those of :class:`PWMPolicy`, with the task and its set."""
        return super().model_settings | {"task": self.task, "task_set": self.task_set.to_dict()}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "task": self.task,
            "task_set": self.task_set.to_dict(),
            "task_embedding_dim": self.task_embedding_dim,
        }


def without_envs(task_set: TaskSet | Mapping[str, Any]) -> TaskSet:
    """Return a task set without environments, which can always be saved."""
    return TaskSet.from_dict(task_set.to_dict() if isinstance(task_set, TaskSet) else task_set)


def check_numbers(action_space: spaces.Space[Any]) -> None:
    """Check that actions are numbers, as those of all tasks are.

    :raises ValueError: if they are discrete.
    """
    if not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"policies of several tasks have Box actions, not {action_space}; learn a task with discrete actions alone"
        )
