"""Hyperparameters in the layout of the RL Baselines3 Zoo: YAML in, constructor arguments out.

Strings such as ``dict(net_arch=[64, 64], activation_fn=nn.ReLU)`` and ``HerReplayBuffer`` are read, never evaluated.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_pwm.checks import constructor_parameters
from sb3_pwm.extras import missing_extra

SCHEDULED = ("learning_rate", "critic_learning_rate", "model_learning_rate", "clip_range", "clip_range_vf")
EXPRESSIONS = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "normalize", "env_kwargs")
NOISES: dict[str, type[NormalActionNoise | OrnsteinUhlenbeckActionNoise]] = {
    "normal": NormalActionNoise,
    "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise,
}
# What is not an argument of a constructor.
RUN_KEYS = {"n_timesteps", "policy", "n_envs", "normalize", "noise_type", "noise_std", "env_kwargs"}
RUN_ARGUMENTS = {"policy", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"}

Hyperparameters = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a run is built from.

    :param policy: name of the policy.
    :param n_envs: number of environments.
    :param env_kwargs: arguments of the environment.
    :param normalize: arguments of ``VecNormalize``; None for no ``VecNormalize``.
    :param noise: kind and standard deviation of the action noise; None for none.
    :param arguments: further arguments of the algorithm's constructor.
    """

    policy: str
    n_envs: int
    env_kwargs: dict[str, Any]
    normalize: dict[str, Any] | None
    noise: tuple[str, float] | None
    arguments: dict[str, Any]

    def action_noise(self, action_space: spaces.Space[Any]) -> ActionNoise | None:
        """Return the action noise for an action space."""
        if self.noise is None:
            return None
        kind, std = self.noise
        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"noise_type={kind!r} needs an action space of numbers, not {action_space}")
        size = int(np.prod(action_space.shape))
        return NOISES[kind](np.zeros(size), std * np.ones(size))


def parse_expression(text: str) -> Any:
    """Read a Python literal in which ``dict(name=value)``, the classes of ``torch.nn`` and HerReplayBuffer may occur.

    :param text: such as ``"dict(net_arch=[64, 64], activation_fn=nn.ReLU)"``.
    :return: its value.
    :raises ValueError: if anything else occurs in it.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"cannot read {text!r}: {error}; allowed: literals, dict(...), classes of torch.nn and HerReplayBuffer"
        ) from None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(k.arg for k in keywords):
            return {str(keyword.arg): _value(keyword.value) for keyword in keywords}
        case ast.Dict(keys=keys, values=values) if all(keys):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.Name(id="HerReplayBuffer"):
            return HerReplayBuffer
        case (
            ast.Attribute(value=ast.Name(id="nn"), attr=name)
            | ast.Attribute(value=ast.Attribute(value=ast.Name(id="torch" | "th"), attr="nn"), attr=name)
        ):
            found = getattr(nn, name, None)
            if isinstance(found, type) and issubclass(found, nn.Module):
                return found
            raise ValueError(f"torch.nn has no class {name!r}")
    return ast.literal_eval(node)


def parse_schedule(value: Any) -> Any:
    """Read ``lin_3e-4``: a rate that falls linearly to 0; other values pass.

    :raises ValueError: if it is another string.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"lin_(.+)", value)
    try:
        return LinearSchedule(float(match[1]), 0.0, 1.0) if match else float(value)
    except ValueError:
        raise ValueError(
            f"{value!r} is not a schedule; allowed: a number, or lin_ and a number such as lin_3e-4"
        ) from None


def interpret(hyperparameters: Hyperparameters, algorithm: type[BaseAlgorithm]) -> Settings:
    """Turn hyperparameters in the Zoo's layout into what a run is built from.

    :param hyperparameters: one entry of such a file; ``n_timesteps`` is ignored, the plan says how long a run is.
    :param algorithm: SB3 algorithm class.
    :raises ValueError: if a key is not an argument of the algorithm, or a value cannot be read or is of the wrong type.
    """
    values = dict(hyperparameters)
    for name in EXPRESSIONS:
        if isinstance(values.get(name), str):
            values[name] = parse_expression(values[name])
    for name in SCHEDULED:
        if name in values:
            try:
                values[name] = parse_schedule(values[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    if isinstance(values.get("train_freq"), list):
        values["train_freq"] = tuple(values["train_freq"])
    parameters = constructor_parameters(algorithm)
    allowed = (set(parameters) - RUN_ARGUMENTS) | RUN_KEYS
    unknown = sorted(set(values) - allowed)
    if unknown:
        raise ValueError(f"{algorithm.__name__} has no hyperparameters {unknown}; allowed: {sorted(allowed)}")
    for name in set(values) - RUN_KEYS:
        _check_type(algorithm, name, values[name], parameters[name].annotation)
    return Settings(
        policy=values.get("policy", "MlpPolicy"),
        n_envs=_n_envs(values.get("n_envs", 1)),
        env_kwargs=_env_kwargs(values.get("env_kwargs") or {}),
        normalize=_normalize(values.get("normalize"), values.get("gamma", default_of(parameters, "gamma"))),
        noise=_noise(values),
        arguments={name: value for name, value in values.items() if name not in RUN_KEYS},
    )


def env_arguments(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return the arguments of the environment that hyperparameters in the Zoo's layout hold."""
    value = hyperparameters.get("env_kwargs") or {}
    return _env_kwargs(parse_expression(value) if isinstance(value, str) else value)


def default_of(parameters: Mapping[str, inspect.Parameter], name: str) -> Any:
    """Return the default of a parameter; None if it has none."""
    default = parameters[name].default if name in parameters else None
    return None if default is inspect.Parameter.empty else default


def _check_type(algorithm: type[BaseAlgorithm], name: str, value: Any, annotation: Any) -> None:
    """Check a value whose argument is one number or truth value; SB3 itself does not, or in the middle of a run."""
    accepted = {bool: bool, int: int, float: int | float}.get(annotation)
    if accepted is None or (isinstance(value, accepted) and (annotation is bool or not isinstance(value, bool))):
        return
    hint = "; YAML reads 5e-3 as text and 5.0e-3 as a number" if isinstance(value, str) else ""
    raise ValueError(f"{algorithm.__name__}'s {name} must be {annotation.__name__}, not {value!r}{hint}")


def _n_envs(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"n_envs={value!r}; allowed: integers from 1")
    return value


def _env_kwargs(value: Any) -> dict[str, Any]:
    if not (isinstance(value, dict) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"env_kwargs={value!r}; allowed: arguments of the environment by name")
    return value


def _normalize(value: Any, gamma: float | None) -> dict[str, Any] | None:
    if not value:
        return None
    if value is not True and not isinstance(value, dict):
        raise ValueError(f"normalize={value!r}; allowed: true, false, or arguments of VecNormalize")
    discount = {} if gamma is None else {"gamma": gamma}
    return discount | (value if isinstance(value, dict) else {})


def _noise(values: Hyperparameters) -> tuple[str, float] | None:
    kind = values.get("noise_type")
    if kind is None:
        return None
    if kind not in NOISES:
        raise ValueError(f"noise_type={kind!r}; allowed: {', '.join(NOISES)}")
    return kind, float(values.get("noise_std", 0.1))


def read_entry(text: str, *env_ids: str) -> tuple[str, Hyperparameters] | None:
    """Find an environment's entry in a file of the Zoo's layout.

    :param text: YAML, a mapping from environment ids to hyperparameters.
    :param env_ids: the entry of the first of these ids that has one; else the newest entry of the last one in another
        version; else the entry ``default``.
    :return: the entry's name and its hyperparameters; None if there is no such entry.
    :raises ImportError: if PyYAML is not installed.
    :raises ValueError: if it is no such mapping.
    """
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("a file of hyperparameters", "PyYAML", "benchmark") from error
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError("must map environment ids to hyperparameters")
    names = (*env_ids, newest_version(env_ids[-1].rpartition("-v")[0], entries), "default")
    name = next((name for name in names if name in entries), None)
    return None if name is None else (name, entries[name])


def newest_version(stem: str, names: Iterable[str]) -> str | None:
    """Return the newest of the names that are ``stem`` and a version; None if none is."""
    versions = [int(name[len(stem) + 2 :]) for name in names if stem and re.fullmatch(re.escape(stem) + r"-v\d+", name)]
    return f"{stem}-v{max(versions)}" if versions else None


def find_hyperparameters(algo: str, *env_ids: str, file: Path | None = None) -> tuple[str, Hyperparameters]:
    """Return where hyperparameters come from, and the hyperparameters themselves.

    :param algo: name of the algorithm; the baselines have settings of the RL Baselines3 Zoo.
    :param env_ids: names of the environment, see :func:`read_entry`.
    :param file: own file in the Zoo's layout; None for what is shipped, or else the constructor's defaults.
    :raises ImportError: if a file is to be read and PyYAML is not installed.
    :raises ValueError: if the own file has no entry for the environment.
    """
    shipped = resources.files("sb3_pwm.benchmark") / "hyperparameters" / f"{algo}.yml"
    if file is None and (":" in algo or not shipped.is_file()):
        return "constructor's defaults", {}
    try:
        entry = read_entry((file or shipped).read_text(encoding="utf-8"), *env_ids)
    except ValueError as error:
        raise ValueError(f"{file or algo}: {error}") from error
    if entry is None:
        raise ValueError(
            f"{file or algo} has no entry for {env_ids[0]}, none for another version of it, and no 'default'"
        )
    name, hyperparameters = entry
    return f"{file.name if file else f'RL Baselines3 Zoo, {algo}.yml'}: {name}", hyperparameters
