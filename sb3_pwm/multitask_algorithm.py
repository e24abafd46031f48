"""From one model of many tasks to a policy for one of them."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_integer
from sb3_pwm.multitask_policies import ExtractedPolicy, MultiTaskPolicy
from sb3_pwm.offline_algorithm import OfflineAlgorithm
from sb3_pwm.tasks import TaskSet, space_sizes

SelfMultiTask = TypeVar("SelfMultiTask", bound="MultiTaskAlgorithm")

EXTRACTION_UPDATES = 10_000  # the paper's
INHERITED = (
    "learning_rate",
    "critic_learning_rate",
    "model_learning_rate",
    "batch_size",
    "sequence_length",
    "horizon",
    "critic",
    "critic_updates",
    "critic_batch_size",
    "gamma",
    "td_lambda",
    "tau",
    "ent_coef",
    "target_entropy",
    "consistency_coef",
    "reward_coef",
    "termination_coef",
    "bc_coef",
    "precision",
    "torch_compile",
    "verbose",
    "seed",
    "device",
)


class MultiTaskAlgorithm(OfflineAlgorithm):
    """Algorithm whose world model may serve several tasks."""

    def extract(
        self: SelfMultiTask,
        task: str,
        total_updates: int = EXTRACTION_UPDATES,
        *,
        env: gym.Env[Any, Any] | None = None,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
        policy_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> SelfMultiTask:
        """Learn a policy for one task in this model's world model, as the paper does (arXiv 2407.02466).

        The policy starts from nothing; windows come from what this model's replay buffer holds of the task. The result
        is a model of its own, in the task's own spaces: it predicts in the task's environment, can be saved, and goes
        on learning there after ``set_env``.

        :param task: name of the task.
        :param total_updates: policy updates, see :meth:`learn_offline`; 0 for an untrained policy.
        :param env: the task's environment, for its spaces; None: observations without bounds, actions in [-1, 1].
        :param callback: as for :meth:`learn_offline`.
        :param progress_bar: as for :meth:`learn_offline`.
        :param policy_kwargs: sizes of actor and critics, see :class:`PWMPolicy`; the others are this model's.
        :param kwargs: constructor arguments that differ from this model's.
        :return: the new model.
        :raises TypeError: if this model has one task only.
        :raises ValueError: if there is no such task, no data of it, or ``env`` has other sizes.
        """
        policy = self.policy
        if not isinstance(policy, MultiTaskPolicy):
            raise TypeError(f'extract() needs a model with "MultiTaskPolicy", not {type(policy).__name__}')
        check_integer("total_updates", total_updates, 0)
        own_spaces = spaces_of_task(policy.task_set, task, env)
        dataset = of_task(self.sequences, policy.task_set, task, *own_spaces)
        shared = {"task": task, "task_set": policy.task_set.to_dict(), "n_dynamics": policy.n_dynamics}
        model = type(self).from_dataset(
            dataset,
            ExtractedPolicy,
            policy_kwargs={**(self.policy_kwargs or {}), **(policy_kwargs or {}), **shared},
            **({name: getattr(self, name) for name in INHERITED} | {"pretrain_steps": 0} | kwargs),
        )
        extracted = model.policy
        extracted.world_model.load_state_dict(copy.deepcopy(policy.world_model.state_dict()))
        extracted.reward_scale.scale.copy_(policy.reward_scale.scale[policy.task_set.task_id(task)])
        model.n_model_updates = self.n_model_updates
        model._steps_since_statistics = 0  # the world model knows these scales
        return model.learn_offline(total_updates, pretrain_steps=0, callback=callback, progress_bar=progress_bar)


def storable(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the policy's arguments without a task set's environments: not all of them can be saved."""
    task_set = policy_kwargs.get("task_set")
    return {**policy_kwargs, "task_set": task_set.to_dict()} if isinstance(task_set, TaskSet) else policy_kwargs


def spaces_of_task(
    task_set: TaskSet, name: str, env: gym.Env[Any, Any] | None
) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Return the spaces of a task's own observations and actions.

    :raises TypeError: if the environment's observations are no Box.
    :raises ValueError: if there is no such task, or the environment has other sizes.
    """
    task = task_set[task_set.task_id(name)]
    sizes = (task.observation_size, task.action_size)
    if env is None:
        return spaces.Box(-np.inf, np.inf, sizes[:1], np.float32), spaces.Box(-1, 1, sizes[1:], np.float32)
    if space_sizes(name, env) != sizes:
        raise ValueError(f"env has {space_sizes(name, env)} observations and actions; task {name!r} has {sizes}")
    if not isinstance(env.observation_space, spaces.Box):
        raise TypeError(f"env has {env.observation_space}; put gymnasium.wrappers.FlattenObservation around it")
    return env.observation_space, env.action_space


def of_task(
    buffer: SequenceReplayBuffer,
    task_set: TaskSet,
    name: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
) -> SequenceReplayBuffer:
    """Return what a padded buffer holds of one task, in the task's own spaces.

    :param buffer: buffer with observations of :attr:`TaskSet.observation_space`, each column of one task.
    :param task_set: the tasks.
    :param name: name of the task.
    :param observation_space: Box of the task's own observations.
    :param action_space: Box of the task's own actions.
    :return: a copy, with as many environments as there are columns of the task.
    :raises ValueError: if there are no data of the task, or a column holds several tasks.
    """
    stored: Any = buffer.observations
    tasks = stored["task"][: buffer.size()].reshape(buffer.size(), buffer.n_envs)
    has_task = tasks == task_set.task_id(name)
    columns = np.flatnonzero(has_task.any(0))
    if not len(columns):
        raise ValueError(f"the replay buffer holds no data of task {name!r}")
    if not has_task[:, columns].all():
        raise ValueError(f"task {name!r} shares an environment's column of the replay buffer with other tasks")
    own = SequenceReplayBuffer(
        buffer.buffer_size * len(columns), observation_space, action_space, buffer.device, n_envs=len(columns)
    )
    task = task_set[task_set.task_id(name)]
    for key in ("observations", "next_observations"):
        setattr(own, key, getattr(buffer, key)["observation"][:, columns, : task.observation_size])
    own.actions = buffer.actions[:, columns, : task.action_size]
    for key in ("rewards", "dones", "timeouts"):
        setattr(own, key, getattr(buffer, key)[:, columns])
    own.pos, own.full = buffer.pos, buffer.full
    return own
