"""What a benchmark is: runs of algorithms on environments with seeds, checked before the first one starts."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pwm.benchmark.settings import find_hyperparameters, interpret, newest_version
from sb3_pwm.benchmark.specs import ALGORITHMS, RunSpec, as_file_name, named_algorithms, unknown_name
from sb3_pwm.checks import check_integer
from sb3_pwm.extras import missing_extra

MAX_SEED = 2**32 - 1  # NumPy's


def registered_id(env_id: str) -> str:
    """Return the id under which Gymnasium knows an environment: with its version, without its module.

    :param env_id: Gymnasium id, ``"module:id"`` for one that importing ``module`` registers, or an id without its
        version for the newest one.
    :raises ValueError: if there is none of this id.
    """
    module, colon, name = env_id.rpartition(":")
    try:
        if colon:
            importlib.import_module(module)
        return gym.spec(newest_version(name, gym.registry) or name).id
    except gym.error.NameNotFound:
        known = (f"{module}{colon}{name}" for name in gym.registry)
        own = "" if colon else f"; one of your own is mymodule:{name}, with the module that registers it"
        raise unknown_name("environment", env_id, known, own) from None
    except Exception as error:  # whatever a foreign module answers with
        raise ValueError(f"cannot make environment {env_id!r}: {error}") from error


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """Return an algorithm class.

    :param name: short name such as ``"sac"``, or import path ``"package.module:Class"`` of an SB3-style class.
    :raises ValueError: if there is no such short name, or nothing at the import path.
    :raises TypeError: if what is there is no SB3 algorithm class.
    :raises ImportError: if the package of a short name is not installed.
    """
    module_name, colon, attribute = ALGORITHMS.get(name, name).partition(":")
    if not colon:
        raise unknown_name("algorithm", name, ALGORITHMS)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        if name in ALGORITHMS:
            raise missing_extra(name, module_name, "benchmark") from error
        raise ValueError(f"cannot import algorithm {name!r}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"cannot import algorithm {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, BaseAlgorithm)):
        raise TypeError(f"algorithm {name!r} must be a class derived from SB3's BaseAlgorithm, not {found!r}")
    return found


def check_env(env_id: str, **kwargs: Any) -> None:
    """Check that an environment can be made.

    :param env_id: see :func:`registered_id`.
    :param kwargs: its arguments.
    :raises ValueError: if there is none of this id, or it cannot be made.
    """
    registered_id(env_id)
    try:
        gym.make(env_id, **kwargs).close()
    except Exception as error:  # whatever a foreign environment answers with
        raise ValueError(f"cannot make environment {env_id!r}: {error}") from error


def check_plain(values: dict[str, Any]) -> None:
    """Check that a run's process, and whoever reads its record, gets the same hyperparameters.

    :raises ValueError: if JSON does not hold them as they are.
    :raises TypeError: if it does not hold them at all, such as YAML's dates.
    """
    for name, value in values.items():
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except ValueError:  # not a number, or infinite
            same = False
        if not same:
            raise ValueError(
                f"{name}: {value!r} does not come back from JSON as it is; allowed: mappings whose keys are strings, "
                'lists and finite numbers, or a text such as "dict(bonus={3: 10.0})"'
            )


def make_plan(
    envs: Sequence[str],
    algos: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    eval_every: int,
    eval_episodes: int,
    checkpoint_every: int,
    threads: int,
    device: str,
    hyperparameters: dict[str, Path],
) -> list[RunSpec]:
    """Return every combination of environments, algorithms and seeds, seeds outermost; all are checked.

    :param algos: names or import paths of algorithms, also of the form ``LABEL=NAME``.
    :param hyperparameters: own files of hyperparameters by label or algorithm; a label without one has its algorithm's.
    :raises ValueError: if a name is unknown, a number out of range, or hyperparameters do not fit an algorithm.
    :raises TypeError: if a number or an algorithm is of the wrong kind.
    :raises ImportError: if a package is missing.
    """
    numbers: dict[str, Any] = {
        "steps": steps,
        "eval_every": eval_every,
        "eval_episodes": eval_episodes,
        "checkpoint_every": checkpoint_every,
        "threads": threads,
    }
    for name, value in numbers.items():
        check_integer(name, value, 1)
    for seed in seeds:
        check_integer("seed", seed, 0, MAX_SEED)
    named = named_algorithms(algos)
    stray = sorted(set(hyperparameters) - set(named) - set(named.values()))
    if stray:
        raise ValueError(f"hyperparameters are given for {stray}, which do not run; algorithms: {list(algos)}")
    ids = {env: registered_id(env) for env in envs}
    if len({as_file_name(env) for env in ids}) < len(ids):
        raise ValueError(f"two of the environments {list(ids)} would have the same folder")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    arguments: dict[str, dict[str, Any]] = {}
    for name, algo in named.items():
        algorithm = find_algorithm(algo)
        label = None if name == algo else name
        for env, registered in ids.items():
            file = hyperparameters.get(name, hyperparameters.get(algo))
            source, values = find_hyperparameters(algo, env, registered, file=file)
            try:
                check_plain(values)
                given = interpret(values, algorithm).env_kwargs
                check_env(env, **given)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name} in {env}: {error}") from error
            arguments.setdefault(env, {})[name] = given
            found[env, name] = {"algo": algo, "label": label, "hyperparameters": values, "source": source}
    for env, by_name in arguments.items():
        first, *others = by_name.values()
        if any(other != first for other in others):
            raise ValueError(f"{env}: the algorithms have different env_kwargs, so they cannot be compared: {by_name}")
    return [
        RunSpec(env=env, seed=seed, device=device, **numbers, **settings)
        for seed in dict.fromkeys(seeds)
        for (env, _), settings in found.items()
    ]
