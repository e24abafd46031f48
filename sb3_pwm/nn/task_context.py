"""What several tasks share a world model by: task embeddings, action masks, and scales of each task's own.

Observations of many tasks are dictionaries, ``{"observation": (N, obs_size), "task": (N, 1) integers}``, padded with
zeros. A model that serves one task of a set (``task=i``) takes that task's own (N, n) observations instead.
"""

import torch
from torch import nn
from torch.nn import functional as F

from sb3_pwm.nn.scales import Statistics, mean_and_std, standardize
from sb3_pwm.type_aliases import Observations

EMBEDDING_INIT = 0.02  # bound of the uniform start values, TD-MPC2's


def task_ids(observations: Observations, task: int | None) -> torch.Tensor:
    """Return the (N,) tasks of (N, ...) observations: what they say themselves, or ``task`` for each."""
    if isinstance(observations, dict):
        return observations["task"].long().flatten()
    # Not len(), which would be a constant in an exported policy.
    return torch.full((observations.shape[0],), 0 if task is None else task, device=observations.device)


class TaskContext(nn.Module):
    """What every network is told of a task: a trained embedding, and which action dimensions the task has.

    :param action_masks: (n_tasks, A) 1 for every action dimension of each task, 0 for padding.
    :param embedding_dim: size E of the embedding.
    :param task: the task of observations that do not say theirs.
    """

    masks: torch.Tensor

    def __init__(self, action_masks: torch.Tensor, embedding_dim: int, task: int | None = None) -> None:
        super().__init__()
        self.task = task
        self.embedding = nn.Parameter(torch.empty(len(action_masks), embedding_dim))
        nn.init.uniform_(self.embedding, -EMBEDDING_INIT, EMBEDDING_INIT)
        self.register_buffer("masks", action_masks.float())

    @property
    def size(self) -> int:
        """Number of features E + A."""
        return self.embedding.shape[1] + self.masks.shape[1]

    def forward(self, observations: Observations) -> torch.Tensor:
        """Return the (N, E + A) context of (N, ...) observations; embeddings are at most 1 long (TD-MPC2)."""
        tasks = task_ids(observations, self.task)
        embedding = self.embedding[tasks]
        embedding = embedding / embedding.norm(dim=-1, keepdim=True).clamp(min=1)
        return torch.cat([embedding, self.masks[tasks]], -1)


class TaskFeatures(Statistics):
    """Standardise and pad observations with each task's own statistics; clipped to [-10, 10].

    :param n_tasks: number of tasks.
    :param observation_size: number of padded observations.
    :param task: the task of observations that do not say theirs.
    :param standardize: False leaves observations as they are, but for the padding.
    """

    def __init__(
        self, n_tasks: int, observation_size: int, task: int | None = None, *, standardize: bool = True
    ) -> None:
        super().__init__((n_tasks, observation_size) if standardize else None)
        self.task = task
        self.observation_size = observation_size
        self.standardize = standardize

    def forward(self, observations: Observations) -> torch.Tensor:
        """Return the (N, observation_size) features of (N, ...) observations."""
        values = observations["observation"] if isinstance(observations, dict) else observations
        padded = F.pad(values, (0, self.observation_size - values.shape[-1]))
        if not self.standardize:
            return padded.float()
        tasks = task_ids(observations, self.task)
        return standardize(padded, self.mean[tasks], self.std[tasks])

    def set_statistics(self, observations: Observations) -> None:
        """Take each task's mean and standard deviation from (N, ...) observations; a task without any keeps its own."""
        tasks = task_ids(observations, self.task)
        values = observations["observation"] if isinstance(observations, dict) else observations
        for task in set(tasks.tolist()):
            own = F.pad(values[tasks == task], (0, self.observation_size - values.shape[-1]))
            self.mean[task], self.std[task] = mean_and_std(own)
