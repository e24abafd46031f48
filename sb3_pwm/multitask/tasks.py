"""Task sets: what the tasks of a multi-task model are called, in which order they come and how large they are."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_pwm.checks import check_action_bounds, check_integer

EnvFactory = str | Callable[..., gym.Env[Any, Any]]


@dataclass(frozen=True)
class Task:
    """One task.

    :param name: unique within its set.
    :param env: id of a Gymnasium environment, or a function that makes one. The function gets ``render_mode=...`` only
        where one is asked for. None for a task without environment, such as one read from a file. Not compared.
    :param observation_size: number of observations, all axes and Dict keys in a row.
    :param action_size: number of action dimensions.
    :param episode_length: steps after which an episode is truncated; None leaves that to the environment.
    :raises TypeError: if name or numbers are of the wrong kind.
    :raises ValueError: if the name is empty or a number is below 1.
    """

    name: str
    env: EnvFactory | None = field(compare=False)
    observation_size: int
    action_size: int
    episode_length: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"the name of a task must be a string, not {self.name!r}")
        if not self.name:
            raise ValueError("the name of a task must not be empty")
        for argument in ("observation_size", "action_size", "episode_length"):
            if getattr(self, argument) is not None or argument != "episode_length":
                check_integer(f"{argument} of task {self.name!r}", getattr(self, argument), 1)

    @classmethod
    def from_env(cls, name: str, env: EnvFactory) -> "Task":
        """Read the sizes and the episode length from an environment, which is made and closed.

        :param name: name of the task.
        :param env: as in :class:`Task`.
        :return: the task.
        :raises TypeError: if a space is not a Box (observations: or Dict of Boxes) with one axis.
        :raises ValueError: if actions cannot be rescaled from their bounds.
        """
        instance = _make(name, env, None)
        try:
            limit = instance.spec.max_episode_steps if instance.spec else None
            return cls(name, env, *space_sizes(name, instance), limit)
        finally:
            instance.close()

    def make_env(self, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Make the task's own environment, neither padded nor rescaled, truncated after ``episode_length`` steps.

        :param render_mode: of the environment.
        :return: the environment.
        :raises ValueError: if the task has no environment, or one of other sizes.
        """
        env = _make(self.name, self.env, render_mode)
        sizes = space_sizes(self.name, env)
        if sizes != (self.observation_size, self.action_size):
            env.close()
            raise ValueError(
                f"the environment of task {self.name!r} has {sizes[0]} observations and {sizes[1]} actions, but the "
                f"task was declared with {self.observation_size} and {self.action_size}"
            )
        return env if self.episode_length is None else gym.wrappers.TimeLimit(env, self.episode_length)


class TaskSet(Sequence[Task]):
    """Tasks in a fixed order; the place of a task is its id.

    Observations and actions of smaller tasks are padded to the largest one. Two sets are equal if their tasks have the
    same names, sizes and episode lengths in the same order and are padded to the same sizes.

    :param tasks: at least one task, with unique names.
    :param min_observation_size: pad observations at least to this size, to leave room for tasks to come.
    :param min_action_size: pad actions at least to this size.
    :raises TypeError: if something else than a task is given.
    :raises ValueError: if there is no task or a name comes twice.
    """

    def __init__(self, tasks: Sequence[Task], *, min_observation_size: int = 1, min_action_size: int = 1) -> None:
        check_integer("min_observation_size", min_observation_size, 1)
        check_integer("min_action_size", min_action_size, 1)
        foreign = [task for task in tasks if not isinstance(task, Task)]
        if foreign:
            raise TypeError(f"tasks must be Task objects, not {foreign[0]!r}; see also TaskSet.from_envs")
        if not tasks:
            raise ValueError("a task set needs at least one task")
        names = [task.name for task in tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"names of tasks must be unique; more than once: {repeated}")
        self._tasks = tuple(tasks)
        self._ids = {name: task_id for task_id, name in enumerate(names)}
        self.observation_size = max(min_observation_size, *(task.observation_size for task in tasks))
        self.action_size = max(min_action_size, *(task.action_size for task in tasks))

    @classmethod
    def from_envs(
        cls, envs: Mapping[str, EnvFactory], *, min_observation_size: int = 1, min_action_size: int = 1
    ) -> "TaskSet":
        """Make a set from environments, each of which is made once to read its sizes.

        :param envs: environment ids or functions that make environments, by task name.
        :param min_observation_size: as in :class:`TaskSet`.
        :param min_action_size: as in :class:`TaskSet`.
        :return: the set, in the order of ``envs``.
        :raises TypeError: if a space is not a Box (observations: or Dict of Boxes) with one axis; names the task.
        :raises ValueError: if actions cannot be rescaled from their bounds.
        """
        if not isinstance(envs, Mapping):
            raise TypeError(f"envs must be a dictionary of environments by task name, not {envs!r}")
        tasks = [Task.from_env(name, env) for name, env in envs.items()]
        return cls(tasks, min_observation_size=min_observation_size, min_action_size=min_action_size)

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: Any) -> Any:
        return self._tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, TaskSet) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._tasks, self.observation_size, self.action_size))

    def __repr__(self) -> str:
        return f"TaskSet({len(self)} tasks, observation_size={self.observation_size}, action_size={self.action_size})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(self._ids)

    @property
    def observation_space(self) -> spaces.Dict:
        """Space of padded observations: ``{"observation": (observation_size,) float32, "task": integer}``."""
        return padded_observation_space(len(self), self.observation_size)

    @property
    def observation_masks(self) -> np.ndarray:
        """(n_tasks, observation_size) float32: 1 where a task has an observation, 0 where it is padded."""
        return _masks([task.observation_size for task in self], self.observation_size)

    @property
    def action_masks(self) -> np.ndarray:
        """(n_tasks, action_size) float32: 1 where a task has an action dimension, 0 where it is padded."""
        return _masks([task.action_size for task in self], self.action_size)

    def task_id(self, name: str) -> int:
        """Return the place of a task.

        :param name: its name.
        :return: integer in [0, n_tasks).
        :raises ValueError: if there is no such task; says which names are nearest.
        """
        if name in self._ids:
            return self._ids[name]
        near = difflib.get_close_matches(str(name), self.names, n=3, cutoff=0.5) or self.names[:3]
        raise ValueError(f"unknown task {name!r}; nearest of the {len(self)} names: {', '.join(map(repr, near))}")

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the set as plain dictionaries, lists, strings and integers, without environments."""
        keys = ("name", "observation_size", "action_size", "episode_length")
        return {
            "tasks": [{key: getattr(task, key) for key in keys} for task in self],
            "observation_size": self.observation_size,
            "action_size": self.action_size,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], envs: Mapping[str, EnvFactory] | None = None) -> "TaskSet":
        """Make a set from what :meth:`to_dict` gave.

        :param data: plain dictionaries.
        :param envs: environments of some or all tasks by name; tasks without one cannot be stepped.
        :return: the set.
        :raises ValueError: if a task has more dimensions than the set was built for, an entry is missing or unknown, or
            ``envs`` has an unknown name.
        """
        envs = envs or {}
        try:
            tasks = [Task(**{"env": envs.get(entry["name"]), **entry}) for entry in data["tasks"]]
            sizes = {f"min_{key}": data[key] for key in ("observation_size", "action_size")}
        except (KeyError, TypeError) as error:
            raise ValueError(f"these dictionaries describe no task set ({error})") from error
        task_set = cls(tasks, **sizes)
        for task in tasks:
            check_fits(task.name, task.observation_size, task.action_size, *sizes.values())
        for name in envs:
            task_set.task_id(name)
        return task_set


def padded_observation_space(n_tasks: int, observation_size: int) -> spaces.Dict:
    """Return the space of padded observations and the number of their task.

    :param n_tasks: number of tasks.
    :param observation_size: number of padded observations.
    """
    # Discrete: the replay buffer keeps one integer per step, SB3's preprocessing makes it one-hot for networks that do
    # not know tasks, and VecNormalize insists on leaving it alone (norm_obs_keys=["observation"]); a one-hot Box would
    # be stored in full and standardised as if it were a measurement.
    observation = spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
    return spaces.Dict({"observation": observation, "task": spaces.Discrete(n_tasks)})


def check_fits(name: str, observations: int, actions: int, observation_size: int, action_size: int) -> None:
    """Check that a task is no larger than what a set was built for.

    :param name: name of the task.
    :param observations: number of its observations.
    :param actions: number of its action dimensions.
    :param observation_size: number of observations of the set.
    :param action_size: number of action dimensions of the set.
    :raises ValueError: if it is larger.
    """
    if observations > observation_size or actions > action_size:
        raise ValueError(
            f"task {name!r} has {observations} observations and {actions} actions, more than the task set was built "
            f"for: at most {observation_size} and {action_size} (min_observation_size, min_action_size leave more room)"
        )


def space_sizes(name: str, env: gym.Env[Any, Any]) -> tuple[int, int]:
    """Return the number of observations and action dimensions of an environment.

    :param name: name of the task, for messages.
    :param env: environment.
    :return: the two numbers.
    :raises TypeError: if a space is not a Box (observations: or Dict of Boxes) with at most one axis.
    :raises ValueError: if actions cannot be rescaled from their bounds.
    """
    observation_space, action_space = env.observation_space, env.action_space
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    if not all(isinstance(part, spaces.Box) and len(part.shape) <= 1 for part in parts):
        raise TypeError(
            f"task {name!r}: the observation space must be a Box with one axis or a Dict of such Boxes, not "
            f"{observation_space}"
        )
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise TypeError(f"task {name!r}: the action space must be a Box with one axis, not {action_space}")
    check_action_bounds(action_space, f"task {name!r}: ")
    return sum(int(np.prod(part.shape or ())) for part in parts), action_space.shape[0]


def _make(name: str, env: EnvFactory | None, render_mode: str | None) -> gym.Env[Any, Any]:
    """Make an environment from its id or its function."""
    if env is None:
        raise ValueError(f"task {name!r} has no environment; give it one, see TaskSet.from_dict")
    if not (isinstance(env, str) or callable(env)):
        raise TypeError(f"task {name!r}: env must be the id of an environment or a function, not {env!r}")
    kwargs: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    instance: Any = gym.make(env, **kwargs) if isinstance(env, str) else env(**kwargs)
    if not isinstance(instance, gym.Env):
        raise TypeError(f"the function of task {name!r} must make a Gymnasium environment, not {instance!r}")
    return instance


def _masks(sizes: list[int], size: int) -> np.ndarray:
    """Return (n, size) float32 rows that begin with as many ones as ``sizes`` says."""
    return (np.arange(size) < np.array(sizes)[:, None]).astype(np.float32)


def check_folder_names(names: Iterable[str], taken: str | None = None) -> None:
    """Check that each task's files can lie in a folder of its name.

    :param names: names of the tasks.
    :param taken: a name that stands for something else.
    :raises ValueError: if a name would lead elsewhere.
    """
    for name in names:
        if name in (".", "..", taken) or set(name) & set("/\\\0"):
            raise ValueError(f"the task {name!r} needs another name: its files are kept in a folder that is called so")
