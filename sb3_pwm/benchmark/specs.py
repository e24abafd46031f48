"""What is known of runs without torch: their specifications and the names of algorithms."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ALGORITHMS = {
    "pwm": "sb3_pwm.pwm:PWM",
    "sac": "stable_baselines3:SAC",
    "td3": "stable_baselines3:TD3",
    "ddpg": "stable_baselines3:DDPG",
    "dqn": "stable_baselines3:DQN",
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
    hyperparameters: dict[str, Any]
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


def unknown_name(what: str, name: str, known: Iterable[str], advice: str = "") -> ValueError:
    """Return an error that names the known names nearest to an unknown one, and ends with the advice."""
    known = sorted(known)
    by_lower = {each.lower(): each for each in known}
    nearest = [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}; {hint}{advice}")


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
            raise ValueError(f"algorithm {text!r}: {label!r} is not a label; allowed: {allowed}")
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
