"""From one model of many tasks to a policy for one of them."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import check_integer
from sb3_pwm.multitask_policies import ExtractedPolicy, MultiTaskPolicy
from sb3_pwm.offline_algorithm import OfflineAlgorithm
from sb3_pwm.policies import resolve_net_arch
from sb3_pwm.tasks import TaskSet, space_sizes

SelfMultiTask = TypeVar("SelfMultiTask", bound="MultiTaskAlgorithm")

EXTRACTION_UPDATES = 10_000  # the paper's
INHERITED = (
    "learning_rate",
    "critic_learning_rate",
    "model_learning_rate",
    "learning_starts",
    "train_freq",
    "gradient_steps",
    "policy_updates",
    "batch_size",
    "sequence_length",
    "horizon",
    "critic",
    "critic_updates",
    "critic_batch_size",
    "gamma",
    "td_lambda",
    "pessimism",
    "tau",
    "ent_coef",
    "target_entropy",
    "consistency_coef",
    "reward_coef",
    "termination_coef",
    "observation_coef",
    "bc_coef",
    "precision",
    "torch_compile",
    "tensorboard_log",
    "verbose",
    "seed",
    "device",
)
POLICY_ONLY = ("n_critics", "state_dependent_std", "norm_after_activation", "optimizer_class", "optimizer_kwargs")
WORLD_MODEL_NETWORKS = ("encoder", "dynamics", "reward", "termination")


class MultiTaskAlgorithm(OfflineAlgorithm):
    """Algorithm whose world model may serve several tasks."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_tasks_of(self.env)

    def set_env(self, env: GymEnv | VecEnv, force_reset: bool = True) -> None:
        """Set the environment, see :meth:`stable_baselines3.common.base_class.BaseAlgorithm.set_env`.

        :raises ValueError: if its tasks are not the model's; nothing is changed then.
        """
        self._check_tasks_of(env)
        super().set_env(env, force_reset)

    def _check_tasks_of(self, env: GymEnv | VecEnv | None) -> None:
        """Check that environments of :class:`sb3_pwm.task_envs.PaddedTaskEnv` number the tasks as the model does.

        :raises ValueError: if they do not; their spaces do not tell.
        """
        if not isinstance(self.policy, MultiTaskPolicy) or env is None:
            return
        vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
        if not (vec_env.has_attr("name") and vec_env.has_attr("task_id")):
            return
        names = dict(enumerate(self.policy.task_set.names))
        for name, number in zip(vec_env.get_attr("name"), vec_env.get_attr("task_id"), strict=True):
            own = names.get(number)
            if own != name:
                raise ValueError(f"task {number} of the environment is {name!r}; task {number} of the model is {own!r}")

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
        is a model of its own, in the task's own spaces: it predicts in the task's environment, can be saved, and, made
        with ``env``, goes on learning there after ``set_env``. It has this model's settings but for the action noise,
        which is made for all tasks' actions.

        :param task: name of the task.
        :param total_updates: policy updates, see :meth:`learn_offline`; 0 for an untrained policy.
        :param env: the task's environment, for its spaces; None: observations without bounds, actions in [-1, 1].
        :param callback: as for :meth:`learn_offline`.
        :param progress_bar: as for :meth:`learn_offline`.
        :param policy_kwargs: arguments of :class:`PWMPolicy` for actor and critics, such as ``{"net_arch": {"pi":
            [256]}}``; everything else is this model's.
        :param kwargs: constructor arguments that differ from this model's.
        :return: the new model.
        :raises TypeError: if this model has one task only, or ``env`` is no environment.
        :raises ValueError: if there is no such task, no data of it, ``env`` has other sizes, ``policy_kwargs`` change
            the world model, the world model has not been trained, or this model learns behind a ``VecNormalize``.
        """
        policy = self.policy
        if not isinstance(policy, MultiTaskPolicy):
            raise TypeError(f'extract() needs a model with "MultiTaskPolicy", not {type(policy).__name__}')
        check_integer("total_updates", total_updates, 0)
        if env is not None and not isinstance(env, gym.Env):
            raise TypeError(f"env must be a Gymnasium environment, such as gym.make(id), not {env!r}")
        if self._vec_normalize_env is not None:
            raise ValueError(
                "extract() cannot give a task's environment the statistics of this model's VecNormalize; train without "
                "it: every task has its own scales of observations and rewards in the model"
            )
        own_kwargs = policy_kwargs_for_extraction(policy, self.policy_kwargs or {}, policy_kwargs or {})
        own_spaces = spaces_of_task(policy.task_set, task, env)
        dataset = of_task(self.sequences, policy.task_set, task, *own_spaces)
        if total_updates and self.pretrain_steps and not self.n_model_updates:
            raise ValueError(
                "extract() learns in the world model as it is, and this one has not been trained; call pretrain() or "
                "load_world_model() first"
            )
        shared = {"task": task, "task_set": policy.task_set.to_dict(), "n_dynamics": policy.n_dynamics}
        inherited = {name: getattr(self, name) for name in INHERITED}
        inherited |= {"pretrain_steps": 0, "stats_window_size": self._stats_window_size}
        model = type(self).from_dataset(
            dataset,
            ExtractedPolicy,
            policy_kwargs=own_kwargs | shared,
            **(inherited | kwargs),
        )
        extracted = cast(ExtractedPolicy, model.policy)
        extracted.world_model.load_state_dict(copy.deepcopy(policy.world_model.state_dict()))
        extracted.reward_scale.scale.copy_(policy.reward_scale.scale[policy.task_set.task_id(task)])
        extracted.statistics_size.copy_(policy.statistics_size.clamp(max=dataset.n_transitions))
        model.n_model_updates = self.n_model_updates
        return model.learn_offline(total_updates, pretrain_steps=0, callback=callback, progress_bar=progress_bar)


def policy_kwargs_for_extraction(
    policy: MultiTaskPolicy, own: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Put together the arguments of a policy in an existing world model.

    :param policy: the policy that the world model comes from.
    :param own: its arguments, as far as they were given.
    :param given: what is to differ for actor and critics.
    :return: arguments of :class:`PWMPolicy`.
    :raises ValueError: if ``given`` holds what would change the world model.
    """
    networks = resolve_net_arch(policy.net_arch)
    if isinstance(given.get("net_arch"), Mapping):
        resolve_net_arch(given["net_arch"])  # checks the keys
        wanted = networks | given["net_arch"]
    else:
        wanted = networks if given.get("net_arch") is None else resolve_net_arch(given["net_arch"])
    changed = [f"net_arch[{name!r}]" for name in WORLD_MODEL_NETWORKS if wanted[name] != networks[name]]
    present = policy._get_constructor_parameters()
    changed += [
        name
        for name, value in storable(dict(given)).items()
        if name not in ("net_arch", *POLICY_ONLY) and not (name in present and value == present[name])
    ]
    if changed:
        raise ValueError(
            f"policy_kwargs would change {', '.join(changed)} of the world model, which stays as it is; allowed: "
            f"net_arch with 'pi' and 'qf', {', '.join(POLICY_ONLY)}"
        )
    return {**own, **given, "net_arch": wanted}


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
