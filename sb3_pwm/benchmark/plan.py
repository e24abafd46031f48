"""What a benchmark is: runs of algorithms on environments with seeds, checked before the first one starts."""

import difflib
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pwm.benchmark.settings import Hyperparameters, find_hyperparameters, interpret
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

    def folder(self, results: Path) -> Path:
        """Return the run's folder in a results folder."""
        return results / as_file_name(self.env) / as_file_name(self.algo) / str(self.seed)

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


def check_env(env_id: str) -> None:
    """Check that an environment can be made.

    :param env_id: Gymnasium id, or ``"module:id"`` for one that importing ``module`` registers.
    :raises ValueError: if there is none of this id, or it cannot be made.
    """
    try:
        gym.make(env_id).close()
    except gym.error.NameNotFound:
        module, colon, _ = env_id.rpartition(":")
        raise unknown_name("environment", env_id, (f"{module}{colon}{name}" for name in gym.registry)) from None
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

    :param hyperparameters: own files of hyperparameters by algorithm.
    :raises ValueError: if a name is unknown, a number out of range, or hyperparameters do not fit an algorithm.
    :raises TypeError: if a number or an algorithm is of the wrong kind.
    :raises ImportError: if a package is missing.
    """
    numbers = {
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
    stray = sorted(set(hyperparameters) - set(algos))
    if stray:
        raise ValueError(f"hyperparameters are given for {stray}, which do not run; algorithms: {list(algos)}")
    for env in envs:
        check_env(env)
    found = {}
    for algo in algos:
        algorithm = find_algorithm(algo)
        for env in envs:
            source, values = find_hyperparameters(algo, env, hyperparameters.get(algo))
            interpret(values, algorithm)
            found[env, algo] = source, values
    return [
        RunSpec(env=env, algo=algo, seed=seed, device=device, hyperparameters=values, source=source, **numbers)
        for seed in dict.fromkeys(seeds)
        for (env, algo), (source, values) in found.items()
    ]
