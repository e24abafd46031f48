"""What a benchmark is: runs of algorithms on environments with seeds, checked before the first one starts."""

import difflib
import importlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pwm.benchmark.settings import Hyperparameters, find_hyperparameters, interpret, newest_version
from sb3_pwm.checks import check_integer

ALGORITHMS = {
    "pwm": "sb3_pwm.pwm:PWM",
    "sac": "stable_baselines3:SAC",
    "td3": "stable_baselines3:TD3",
    "ddpg": "stable_baselines3:DDPG",
    "ppo": "stable_baselines3:PPO",
    "a2c": "stable_baselines3:A2C",
    "tqc": "sb3_contrib:TQC",
    "crossq": "sb3_contrib:CrossQ",
    "trpo": "sb3_contrib:TRPO",
}


@dataclass(frozen=True)
class RunSpec:
    """The specification of one run; two runs of equal specification are the same run.

    :param env: Gymnasium id.
    :param algo: short name or import path of the algorithm.
    :param seed: of everything random.
    :param steps: environment steps.
    :param eval_every: environment steps between evaluations.
    :param eval_episodes: episodes per evaluation.
    :param checkpoint_every: environment steps of a segment, after which the run goes on from files.
    :param threads: of torch and the libraries below it.
    :param device: torch device.
    :param hyperparameters: in the RL Baselines3 Zoo's layout.
    :param source: where the hyperparameters come from.
    :param label: the algorithm's name in this benchmark; None for ``algo`` itself.
    """

    env: str
    algo: str
    seed: int
    steps: int
    eval_every: int
    eval_episodes: int
    checkpoint_every: int
    threads: int
    device: str
    hyperparameters: Hyperparameters
    source: str = field(compare=False)
    label: str | None = None

    @property
    def name(self) -> str:
        """What the algorithm is called in folders, tables and legends."""
        return self.label or self.algo

    def folder(self, results: Path) -> Path:
        """Return the run's folder in a results folder."""
        return results / as_file_name(self.env) / as_file_name(self.name) / str(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return asdict(self)

    def differences(self, other: "RunSpec") -> list[str]:
        """Say in which entries two specifications differ."""
        mine, others = self.to_dict(), other.to_dict()
        names = [name for name in mine if name != "source" and mine[name] != others[name]]
        return [f"{name} is {others[name]!r} there, {mine[name]!r} here" for name in names]


def as_file_name(name: str) -> str:
    """Return the name of an environment or algorithm as one part of a path."""
    return name.replace("/", "-").replace(":", "-")


def unknown_name(what: str, name: str, known: Iterable[str]) -> ValueError:
    """Return an error that names the known names nearest to an unknown one."""
    known = sorted(known)
    by_lower = {each.lower(): each for each in known}
    nearest = [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}; {hint}")


def named_algorithms(given: Iterable[str]) -> dict[str, str]:
    """Read algorithms of the form ``NAME`` or ``LABEL=NAME``.

    :param given: such as ``["pwm", "wide=pwm"]``: two settings of one algorithm.
    :return: algorithm by label, or by its own name if it has none.
    :raises ValueError: if a label cannot name a folder, is another algorithm's name, or stands for two algorithms.
    """
    named: dict[str, str] = {}
    for text in given:
        label, equals, algo = text.rpartition("=")
        if equals and not re.fullmatch(r"[^\W_][\w.-]*", label):
            # Legends leave out what begins with an underscore.
            allowed = "letters, digits, '_', '-' and '.', the first a letter or a digit"
            raise ValueError(f"algorithm {text!r}: {label!r} is no label; allowed: {allowed}")
        if not equals and algo.startswith("_"):
            raise ValueError(f"algorithm {text!r} begins with an underscore: give it a label, such as mine={text}")
        if label in ALGORITHMS and label != algo:
            raise ValueError(f"{label!r} is an algorithm's name and cannot be a label of {algo}")
        name = label or algo
        if named.setdefault(name, algo) != algo:
            raise ValueError(f"{name!r} is the label of {named[name]} and of {algo}")
    if len({as_file_name(name) for name in named}) < len(named):
        raise ValueError(f"two of the algorithms {list(named)} would have the same folder; give one another label")
    return named


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
        raise unknown_name("environment", env_id, (f"{module}{colon}{name}" for name in gym.registry)) from None
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
            raise ImportError(f"{name} needs {module_name}: pip install 'sb3-pwm[benchmark]'") from error
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
        check_integer("seed", seed, 0)
    named = named_algorithms(algos)
    stray = sorted(set(hyperparameters) - set(named) - set(named.values()))
    if stray:
        raise ValueError(f"hyperparameters are given for {stray}, which do not run; algorithms: {list(algos)}")
    ids = {env: registered_id(env) for env in envs}
    if len({as_file_name(env) for env in ids}) < len(ids):
        raise ValueError(f"two of the environments {list(ids)} would have the same folder")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, algo in named.items():
        algorithm = find_algorithm(algo)
        label = None if name == algo else name
        for env, registered in ids.items():
            file = hyperparameters.get(name, hyperparameters.get(algo))
            source, values = find_hyperparameters(algo, env, registered, file=file)
            try:
                json.dumps(values)  # as the run's process gets them; YAML has dates
                check_env(env, **interpret(values, algorithm).env_kwargs)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name} in {env}: {error}") from error
            found[env, name] = {"algo": algo, "label": label, "hyperparameters": values, "source": source}
    return [
        RunSpec(env=env, seed=seed, device=device, **numbers, **settings)
        for seed in dict.fromkeys(seeds)
        for (env, _), settings in found.items()
    ]
