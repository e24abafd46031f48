"""Policies for several tasks with one world model, and for one of these tasks alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from sb3_pwm.multitask import TaskContext, TaskFeatures, task_ids
from sb3_pwm.policies import Parts, PWMPolicy
from sb3_pwm.type_aliases import Observations, SequenceSamples
from sb3_pwm.updates import first_step

TASK_EMBEDDING_DIM = 32


class MultiTaskPolicy(PWMPolicy):
    """:class:`PWMPolicy` that acts in several tasks; world model, actor and critics know the task.

    Observations are ``{"observation": (O,), "task": integer}``, padded with zeros, see
    :class:`sb3_pwm.task_envs.PaddedTaskEnv`. Observations, rewards, imagined returns and the entropy have scales, and a
    coefficient, of each task's own.

    :param observation_space: Dict of a Box ``observation`` and a Discrete ``task``.
    :param action_space: Box of A actions.
    :param lr_schedule: as for :class:`PWMPolicy`.
    :param action_masks: (n_tasks, A) 1 for every action dimension that a task has, 0 for padding;
        :attr:`sb3_pwm.tasks.TaskSet.action_masks`. None: every task has all.
    :param task_embedding_dim: size of a task's trained embedding.
    :param kwargs: further arguments of :class:`PWMPolicy`; a features extractor is not used.
    :raises TypeError: if the observation space is another.
    :raises ValueError: if the masks do not fit the spaces.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        action_masks: Sequence[Sequence[float]] | np.ndarray | None = None,
        task_embedding_dim: int = TASK_EMBEDDING_DIM,
        **kwargs: Any,
    ) -> None:
        self.action_masks = check_masks(observation_space, action_space, action_masks)
        self.task_embedding_dim = task_embedding_dim
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_parts(self) -> Parts:
        space: Any = self.observation_space
        n_tasks, size = int(space["task"].n), space["observation"].shape[0]
        context = TaskContext(torch.as_tensor(self.action_masks), self.task_embedding_dim)
        return Parts(TaskFeatures(n_tasks, size), size, self.action_space.shape[0], context, n_tasks)  # type: ignore[index]

    def tasks_of(self, observations: Observations) -> torch.Tensor | None:
        """Return the (N,) tasks of (N, ...) observations."""
        return task_ids(observations, None)

    def without_padding(self, samples: SequenceSamples) -> SequenceSamples:
        """Return windows whose padded action dimensions, which random actions fill too, are 0."""
        masks = torch.as_tensor(self.action_masks, device=self.device)[task_ids(first_step(samples), None)]
        return samples._replace(actions=samples.actions * masks)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"action_masks": self.action_masks, "task_embedding_dim": self.task_embedding_dim}
        return super()._get_constructor_parameters() | own


class ExtractedPolicy(PWMPolicy):
    """:class:`PWMPolicy` for one task of a set, in this task's own spaces, with the set's world model.

    :param observation_space: Box of the task's own observations.
    :param action_space: Box of the task's own actions.
    :param lr_schedule: as for :class:`PWMPolicy`.
    :param task: number of the task.
    :param observation_size: number of padded observations of the set.
    :param action_masks: (n_tasks, A) of the set.
    :param task_embedding_dim: of the set's world model.
    :param kwargs: further arguments of :class:`PWMPolicy`; the world model's sizes must be the set's.
    :raises ValueError: if the spaces do not fit the task.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        task: int,
        observation_size: int,
        action_masks: Sequence[Sequence[float]] | np.ndarray,
        task_embedding_dim: int = TASK_EMBEDDING_DIM,
        **kwargs: Any,
    ) -> None:
        masks = np.asarray(action_masks, np.float32)
        n_actions, n_observations = int(masks[task].sum()), (observation_space.shape or (0,))[0]
        if action_space.shape != (n_actions,):
            raise ValueError(f"task {task} has {n_actions} action dimensions, the action space {action_space.shape}")
        if n_observations > observation_size:
            raise ValueError(
                f"the observation space has {n_observations} dimensions, more than the {observation_size} of the tasks "
                "that the world model was made for"
            )
        self.task, self.observation_size = task, observation_size
        self.action_masks, self.task_embedding_dim = masks, task_embedding_dim
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _make_parts(self) -> Parts:
        n_tasks, n_actions = self.action_masks.shape
        context = TaskContext(torch.as_tensor(self.action_masks), self.task_embedding_dim, self.task)
        features = TaskFeatures(n_tasks, self.observation_size, self.task)
        return Parts(features, self.observation_size, n_actions, context)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "task": self.task,
            "observation_size": self.observation_size,
            "action_masks": self.action_masks,
            "task_embedding_dim": self.task_embedding_dim,
        }


def check_masks(
    observation_space: spaces.Space[Any],
    action_space: spaces.Box,
    action_masks: Sequence[Sequence[float]] | np.ndarray | None,
) -> np.ndarray:
    """Return the (n_tasks, A) action masks of multi-task spaces; None stands for all ones.

    :raises TypeError: if the observation space is not that of padded tasks.
    :raises ValueError: if the masks do not fit it.
    """
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
    task, observation = parts.get("task"), parts.get("observation")
    if set(parts) != {"task", "observation"} or not isinstance(task, spaces.Discrete) or task.start != 0:
        raise TypeError(
            "MultiTaskPolicy needs Dict observations with a Box 'observation' and a Discrete 'task' from 0, see "
            f"sb3_pwm.task_envs; found {observation_space}"
        )
    if not isinstance(observation, spaces.Box) or len(observation.shape) != 1 or len(action_space.shape) != 1:
        raise TypeError(f"MultiTaskPolicy needs flat observations and actions; found {observation} and {action_space}")
    shape = (int(task.n), action_space.shape[0])
    masks = np.ones(shape, np.float32) if action_masks is None else np.asarray(action_masks, np.float32)
    # Padding is at the end: a policy of one task alone has the first dimensions.
    if masks.shape != shape or not np.isin(masks, (0, 1)).all() or (np.diff(masks, axis=1) > 0).any():
        raise ValueError(
            f"action_masks must be {shape} zeros and ones, ones first, for {shape[0]} tasks and {shape[1]} action "
            f"dimensions; found the shape {masks.shape}"
        )
    if not masks[:, 0].all():
        raise ValueError(f"action_masks: task {int(np.argmin(masks[:, 0]))} has no action dimension")
    return masks
