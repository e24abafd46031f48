"""From one model of many tasks to a policy for one of them."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pwm.buffers import SequenceReplayBuffer
from sb3_pwm.checks import ATTRIBUTES, check_integer, constructor_parameters
from sb3_pwm.multitask.policies import ExtractedPolicy, MultiTaskPolicy
from sb3_pwm.multitask.tasks import TaskSet, space_sizes
from sb3_pwm.networks import resolve_net_arch
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.replay.columns import lost_beginnings
from sb3_pwm.sac_names import SAC_POLICY_ARGUMENTS, without_sac_arguments

if TYPE_CHECKING:
    from sb3_pwm.pwm import PWM

SelfPWM = TypeVar("SelfPWM", bound="PWM")

EXTRACTION_UPDATES = 10_000  # the paper's
# Constructor arguments that an extracted policy does not take over from its model: they belong to the data, to all
# tasks' actions, or are put together anew.
NOT_INHERITED = {
    "policy",
    "env",
    "buffer_size",
    "pretrain_steps",
    "action_noise",
    "replay_buffer_class",
    "replay_buffer_kwargs",
    "policy_kwargs",
    "_init_setup_model",
}
POLICY_ONLY = ("n_critics", "state_dependent_std", "norm_after_activation", "optimizer_class", "optimizer_kwargs")
WORLD_MODEL_NETWORKS = ("encoder", "dynamics", "reward", "termination")


def check_tasks_of(env: GymEnv | VecEnv | None, policy: PWMPolicy) -> None:
    """Check that environments of :class:`sb3_pwm.multitask.envs.PaddedTaskEnv` have the policy's tasks.

    :raises ValueError: if their numbers or sizes are others; their spaces do not tell.
    """
    if not isinstance(policy, MultiTaskPolicy) or env is None:
        return
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    attributes = ("name", "task_id", "n_observations", "n_actions")
    if not all(map(vec_env.has_attr, attributes)):
        return
    tasks = dict(enumerate(policy.task_set))
    for name, number, *sizes in zip(*map(vec_env.get_attr, attributes), strict=True):
        own = tasks[number].name if number in tasks else None
        if own != name:
            raise ValueError(f"task {number} of the environment is {name!r}; task {number} of the model is {own!r}")
        known = [tasks[number].observation_size, tasks[number].action_size]
        if sizes != known:
            raise ValueError(
                f"task {name!r} of the environment has {sizes[0]} observations and {sizes[1]} actions; that of the "
                f"model has {known[0]} and {known[1]}"
            )


def extract(
    model: SelfPWM,
    task: str,
    env: gym.Env[Any, Any] | None,
    policy_kwargs: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    *,
    trains: int,
) -> SelfPWM:
    """Make a model for one task out of a model of many tasks, as the paper does (arXiv 2407.02466).

    Its policy starts from nothing, and learns in the many-task model's world model; windows come from what the replay
    buffer holds of the task. It is a separate model, in the task's own spaces: it predicts in the task's environment,
    can be saved, and, made with ``env``, goes on learning there after ``set_env``. It has the many-task model's
    settings but for the action noise, which is made for all tasks' actions.

    :param model: model of many tasks; it is not changed.
    :param task: name of the task.
    :param env: the task's environment, for its spaces; None: observations without bounds, actions in [-1, 1].
    :param policy_kwargs: arguments of :class:`sb3_pwm.PWMPolicy` for actor and critics, such as ``{"net_arch": {"pi":
        [256]}}``; everything else is the model's.
    :param kwargs: constructor arguments that differ from the model's.
    :param trains: policy updates to come, see :meth:`sb3_pwm.PWM.learn_offline`; 0 for an untrained policy.
    :return: the new model.
    :raises TypeError: if ``model`` has one task only, or ``env`` is not an environment.
    :raises ValueError: if there is no such task, no data of it, ``env`` has other sizes, ``policy_kwargs`` change the
        world model, the world model has not been trained, or the model learns behind a ``VecNormalize``.
    """
    check_integer("total_updates", trains, 0)
    check_has_own_scales(model, "extract()")
    given = without_sac_arguments(policy_kwargs, (), SAC_POLICY_ARGUMENTS)
    dataset, own_kwargs = data_and_policy_kwargs(
        model.policy, model.sequences, task, env, model.policy_kwargs or {}, given
    )
    check_is_pretrained(model, "extract()", trains)
    names = {name: ATTRIBUTES.get(name, name) for name in constructor_parameters(type(model)).keys() - NOT_INHERITED}
    inherited = {name: getattr(model, attribute) for name, attribute in names.items() if hasattr(model, attribute)}
    inherited["pretrain_steps"] = 0
    own = type(model).from_dataset(dataset, ExtractedPolicy, policy_kwargs=own_kwargs, **(inherited | dict(kwargs)))
    copy_world_model(model.policy, own.policy, task, dataset.n_transitions)
    own.n_model_updates = model.n_model_updates
    return own


def check_has_own_scales(model: "PWM", method: str) -> None:
    """Check that no ``VecNormalize`` stands between a model and its environments.

    :raises ValueError: if one does.
    """
    if model._vec_normalize_env is not None:
        raise ValueError(
            f"{method} cannot give a task's environment the statistics of this model's VecNormalize; train without "
            "it: every task has its own scales of observations and rewards in the model"
        )


def check_is_pretrained(model: "PWM", method: str, total_updates: int) -> None:
    """Check that a world model, in which ``total_updates`` are to be made, has been trained.

    :raises ValueError: if it has not.
    """
    if total_updates and model.pretrain_steps and not model.n_model_updates:
        raise ValueError(
            f"{method} learns in the world model as it is, and this one has not been trained; call pretrain() or "
            "load_world_model() first"
        )


def data_and_policy_kwargs(
    policy: PWMPolicy,
    buffer: SequenceReplayBuffer,
    task: str,
    env: gym.Env[Any, Any] | None,
    own: Mapping[str, Any],
    given: Mapping[str, Any],
) -> tuple[SequenceReplayBuffer, dict[str, Any]]:
    """Return what :meth:`sb3_pwm.PWM.extract` makes a task's model of.

    :param policy: the policy of all tasks.
    :param buffer: the model's replay buffer.
    :param task: name of the task.
    :param env: the task's environment; None: observations without bounds, actions in [-1, 1].
    :param own: the policy's arguments, as far as they were given.
    :param given: what is to differ for actor and critics.
    :return: the task's data, and the arguments of an :class:`sb3_pwm.multitask.policies.ExtractedPolicy`.
    :raises TypeError: if the policy has one task only, or ``env`` is not an environment.
    :raises ValueError: if there is no such task or no data of it, ``env`` has other sizes, or ``given`` would change
        the world model.
    """
    if not isinstance(policy, MultiTaskPolicy):
        raise TypeError(f'extract() needs a model with "MultiTaskPolicy", not {type(policy).__name__}')
    if env is not None and not isinstance(env, gym.Env):
        raise TypeError(f"env must be a Gymnasium environment, such as gym.make(id), not {env!r}")
    policy_kwargs = policy_kwargs_for_extraction(policy, own, given)
    dataset = of_task(buffer, policy.task_set, task, *spaces_of_task(policy.task_set, task, env))
    shared = {"task": task, "task_set": policy.task_set.to_dict(), "n_dynamics": policy.n_dynamics}
    return dataset, policy_kwargs | shared


def copy_world_model(policy: PWMPolicy, extracted: PWMPolicy, task: str, n_transitions: int) -> None:
    """Give an extracted policy a copy of the world model, and the scales of its task.

    :param policy: the :class:`sb3_pwm.multitask.policies.MultiTaskPolicy` of all tasks.
    :param extracted: the policy of one task; it is changed.
    :param task: name of the task.
    :param n_transitions: how many transitions of the task there are.
    """
    task_set = cast(MultiTaskPolicy, policy).task_set
    extracted.world_model.load_state_dict(copy.deepcopy(policy.world_model.state_dict()))
    extracted.reward_scale.scale.copy_(policy.reward_scale.scale[task_set.task_id(task)])
    extracted.statistics_size.copy_(policy.statistics_size.clamp(max=n_transitions))


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

    :raises TypeError: if the environment's observations are not a Box.
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

    :param buffer: buffer with observations of :attr:`TaskSet.observation_space`.
    :param task_set: the tasks.
    :param name: name of the task.
    :param observation_space: Box of the task's own observations.
    :param action_space: Box of the task's own actions.
    :return: a copy, with as many environments as there are columns of the task; with one, if a column holds other
        tasks too, as after ``set_env`` with the tasks in another order.
    :raises ValueError: if there are no data of the task.
    """
    stored: Any = buffer.observations
    tasks = stored["task"][: buffer.size()].reshape(buffer.size(), buffer.n_envs)
    has_task = tasks == task_set.task_id(name)
    columns = np.flatnonzero(has_task.any(0))
    if not len(columns):
        raise ValueError(f"the replay buffer holds no data of task {name!r}")
    task = task_set[task_set.task_id(name)]
    if has_task[:, columns].all():
        rows: Any = slice(None)
        capacity, pos, full, n_envs = buffer.buffer_size, buffer.pos, buffer.full, len(columns)
        number = {column: i for i, column in enumerate(columns.tolist())}
        lost = [(row, number[column]) for row, column in buffer.lost_beginnings if column in number]
    else:  # in one column, one environment's steps behind the other's
        order = (buffer.oldest + np.arange(buffer.size())) % buffer.buffer_size
        places, ages = np.nonzero(has_task[order].T)
        rows, columns = order[ages][:, None], places[:, None]
        capacity, pos, full, n_envs = len(rows), 0, True, 1
        without = lost_beginnings(buffer)
        lost = [(i, 0) for i, place in enumerate(zip(ages.tolist(), places.tolist(), strict=True)) if place in without]
    own = SequenceReplayBuffer(capacity * n_envs, observation_space, action_space, buffer.device, n_envs=n_envs)
    for key in ("observations", "next_observations"):
        setattr(own, key, getattr(buffer, key)["observation"][rows, columns, : task.observation_size])
    own.actions = buffer.actions[rows, columns, : task.action_size]
    for key in ("rewards", "dones", "timeouts"):
        setattr(own, key, getattr(buffer, key)[rows, columns])
    own.pos, own.full, own.lost_beginnings = pos, full, tuple(lost)
    if not isinstance(rows, slice):
        goes_on = (np.diff(places, append=-1) == 0) & (np.diff(ages, append=-1) == 1)
        own.timeouts[~goes_on & (own.dones[:, 0] == 0), 0] = 1
        own.dones[~goes_on, 0] = 1
    return own
