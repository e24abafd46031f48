"""Clear errors for bad input, raised before anything is changed."""

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise

from sb3_pwm.compute.precision import PRECISIONS
from sb3_pwm.nn.action_codes import ActionCodes
from sb3_pwm.observations import on_host

# name -> (lowest, highest, whether the lowest itself is allowed)
REAL_RANGES: dict[str, tuple[float, float, bool]] = {
    "gamma": (0, 1, False),
    "td_lambda": (0, 1, True),
    "pessimism": (0, 1, True),
    "tau": (0, 1, True),
    "consistency_coef": (0, math.inf, True),
    "reward_coef": (0, math.inf, True),
    "termination_coef": (0, math.inf, True),
    "policy_updates": (0, math.inf, False),
    "bc_coef": (0, math.inf, True),
}
# name -> lowest, instead of which "auto" may be given
LOWEST_OR_AUTO: dict[str, float] = {"target_entropy": -math.inf, "observation_coef": 0}
LOWEST_INTEGERS: dict[str, int] = {
    "horizon": 0,
    "sequence_length": 1,
    "batch_size": 1,
    "critic_batch_size": 1,
    "critic_updates": 1,
    "buffer_size": 1,
    "pretrain_steps": 0,
    "gradient_steps": -1,
}
LOWEST_POLICY_INTEGERS = {"latent_dim": 1, "simnorm_dim": 1, "n_critics": 1, "n_dynamics": 1, "reward_bins": 0}
POLICY_SWITCHES = (
    *("residual_dynamics", "latent_layer_norm", "state_dependent_std"),
    *("norm_after_activation", "normalize_images", "standardize"),
)
# Arguments whose values a model keeps under another name, so that its attributes are those of SB3's algorithms
ATTRIBUTES = {"stats_window_size": "_stats_window_size", "critic": "critic_kind"}
MOST_RANDOM_STEPS = 5_000
LEARNING_RATES = ("learning_rate", "critic_learning_rate", "model_learning_rate")


def check_arguments(arguments: dict[str, Any]) -> None:
    """Check the numbers that configure the algorithm.

    :param arguments: values by the names that ``ATTRIBUTES`` gives arguments; other names are ignored.
    :raises TypeError: if a value is not a number of the right kind.
    :raises ValueError: if a value is out of its range.
    """
    for name, (low, high, closed) in REAL_RANGES.items():
        check_number(name, arguments[name], low, high, closed=closed)
    for name, lowest in LOWEST_INTEGERS.items():
        check_integer(name, arguments[name], lowest)
    for name, low in LOWEST_OR_AUTO.items():
        check_number_or_auto(name, arguments[name], low)
    if arguments["learning_starts"] != "auto":
        check_integer("learning_starts", arguments["learning_starts"], 0, or_auto=True)
    if initial_ent_coef(arguments["ent_coef"]) is None:
        check_number_or_auto("ent_coef", arguments["ent_coef"], 0)
    for name in LEARNING_RATES:
        check_learning_rate(name, arguments[name])
    if arguments["critic_kind"] not in ("q", "v"):
        raise ValueError(f'critic={arguments["critic_kind"]!r}: allowed are "q" and "v"')
    if arguments["critic_kind"] == "v" and not arguments["horizon"]:
        raise ValueError('horizon=0 with critic="v": V(latents) knows no actions; use critic="q" or 1 or more')
    if arguments["actor_batch_size"] is not None:
        check_integer("actor_batch_size", arguments["actor_batch_size"], 1)
    check_boolean("infer_noise", arguments["infer_noise"])
    check_integer("stats_window_size", arguments["_stats_window_size"], 1)
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        if not isinstance(arguments[name], dict):
            raise TypeError(f"{name} must be a dictionary of arguments, not {arguments[name]!r}")
    for length in target_lengths(arguments["n_steps"]):
        check_integer("n_steps", length, 1)
    check_precision(arguments["precision"])
    check_torch_compile(arguments["torch_compile"])


def check_policy_arguments(arguments: dict[str, Any]) -> None:
    """Check the numbers and switches that configure a policy's networks.

    :param arguments: values by name; other names are ignored.
    :raises TypeError: if a value is of the wrong kind.
    :raises ValueError: if a value is out of its range.
    """
    for name, lowest in LOWEST_POLICY_INTEGERS.items():
        if name != "latent_dim" or arguments[name] is not None:
            check_integer(name, arguments[name], lowest)
    if arguments["reward_bins"] == 1:
        raise ValueError("reward_bins=1: allowed are 0 (scalar head) and 2 or more")
    for name in POLICY_SWITCHES:
        check_boolean(name, arguments[name])
    if arguments["critic"] not in ("q", "v"):
        raise ValueError(f'critic={arguments["critic"]!r}: allowed are "q" and "v"')
    net_arch = arguments["net_arch"]
    if net_arch is not None and not isinstance(net_arch, list | tuple | dict):
        raise TypeError(f"net_arch must be a list of sizes or a dictionary of such lists, not {net_arch!r}")
    lists = {f"net_arch[{name!r}]": sizes for name, sizes in net_arch.items()} if isinstance(net_arch, dict) else {}
    for name, sizes in (lists or {"net_arch": net_arch or []}).items():
        if not isinstance(sizes, list | tuple):
            raise TypeError(f"{name} must be a list of sizes, not {sizes!r}")
        for size in sizes:
            check_integer(f"a size in {name}", size, 1)


def check_target_entropy(value: float | str, codes: ActionCodes | None) -> None:
    """Check that a policy of discrete actions can have an entropy; ``"auto"`` passes.

    :param value: in nats.
    :param codes: how its actions are coded; None for numbers, whose entropy has no bounds.
    :raises ValueError: if it is out of reach.
    """
    if codes is not None and not isinstance(value, str):
        check_number("target_entropy", value, 0, codes.max_entropy)


def initial_ent_coef(value: Any) -> float | None:
    """Return the number that a learnt ``ent_coef="auto_<number>"`` starts from; None for all other values.

    :raises ValueError: if it is not a positive number.
    """
    if not isinstance(value, str) or value == "auto":
        return None
    prefix, _, number = value.partition("_")
    try:
        start = float(number) if prefix == "auto" else math.nan
    except ValueError:
        start = math.nan
    if not 0 < start < math.inf:
        raise ValueError(
            f'ent_coef={value!r}; allowed: "auto" or a number in [0, inf), or "auto_" with a number in (0, inf)'
        )
    return start


def target_lengths(n_steps: Any) -> tuple[int, ...]:
    """Return the argument ``n_steps``, a number or a sequence of numbers, as a tuple.

    :raises ValueError: if the sequence is empty.
    """
    lengths = tuple(n_steps) if isinstance(n_steps, Sequence) and not isinstance(n_steps, str) else (n_steps,)
    if not lengths:
        raise ValueError(f"n_steps={n_steps!r} is empty; allowed: a number of steps, or several")
    return lengths


def check_capacity(buffer_size: int, n_envs: int, lengths: dict[str, int], batch_size: int) -> None:
    """Warn if a replay buffer of a size cannot hold a window, or not as many steps as a batch has windows.

    :param buffer_size: capacity over all environments.
    :param n_envs: their number.
    :param lengths: numbers of steps in a window, by argument.
    :param batch_size: number of windows.
    """
    rows = max(buffer_size // n_envs, 1)
    limits = [(name, length, rows, "shorter") for name, length in lengths.items()]
    for name, value, most, consequence in (*limits, ("batch_size", batch_size, rows * n_envs, "drawn several times")):
        if value > most:
            warnings.warn(
                f"{name}={value} is more than buffer_size={buffer_size} can hold with {n_envs} environments, which is "
                f"{most}; windows will be {consequence}",
                stacklevel=2,
            )


def random_steps(learning_starts: int | str, total_timesteps: int) -> int:
    """Return how many random steps a run starts with: for ``"auto"`` 5 % of it, at least 100 and at most 5,000.

    With 1,000 of them, some runs of 100,000 steps stay with the first behaviour that works.

    :param learning_starts: as given by the user.
    :param total_timesteps: length of the run.
    """
    if isinstance(learning_starts, str):
        return min(max(total_timesteps // 20, 100), MOST_RANDOM_STEPS)
    return learning_starts


def name_of(env: gym.Env[Any, Any]) -> str:
    """Return an environment's id, or its class where it has none."""
    return env.spec.id if env.spec else str(env)


def check_integer(name: str, value: Any, lowest: int, highest: int | None = None, *, or_auto: bool = False) -> None:
    """Check an integer between two bounds; ``or_auto`` only tells the reader that ``"auto"`` would do."""
    auto = '"auto" or ' if or_auto else ""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be {auto}an integer, not {value!r}")
    if value < lowest or (highest is not None and value > highest):
        to = "or more" if highest is None else f"to {highest}"
        raise ValueError(f"{name}={value!r} is out of range; allowed: {auto}{lowest} {to}")


def check_boolean(name: str, value: Any) -> None:
    """Check a switch."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, closed: bool = True) -> None:
    """Check a finite number between ``low`` and ``high``; ``closed`` says whether ``low`` itself is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, not {value!r}")
    # An upper bound of infinity is itself not allowed
    if not (low <= value <= high) or math.isinf(value) or (value == low and not closed):
        allowed = f"{'[' if closed else '('}{low}, {high}{')' if math.isinf(high) else ']'}"
        raise ValueError(f"{name}={value!r} is out of range; allowed: {allowed}")


def check_number_or_auto(name: str, value: Any, low: float) -> None:
    """Check a finite number of at least ``low``; ``"auto"`` passes."""
    allowed = f'"auto" or a number in {"(" if math.isinf(low) else "["}{low:g}, inf)'
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"{name}={value!r}; allowed: {allowed}")
    if isinstance(value, bool) or not isinstance(value, str | int | float | np.number):
        raise TypeError(f"{name} must be {allowed}, not {value!r}")
    if not isinstance(value, str) and not (low <= value < math.inf and value > -math.inf):
        raise ValueError(f"{name}={value!r} is out of range; allowed: {allowed}")


def check_precision(value: Any) -> None:
    """Check the name of a number format."""
    allowed = ("auto", *PRECISIONS)
    if value not in allowed:
        raise ValueError(f"precision={value!r}; allowed: {', '.join(map(repr, allowed))}")


def check_torch_compile(value: Any) -> None:
    """Check whether to compile updates."""
    if not (isinstance(value, bool) or value == "auto"):
        raise ValueError(f'torch_compile={value!r}; allowed: True, False, "auto"')


def check_action_noise(noise: ActionNoise | None, n_envs: int, action_space: spaces.Space[Any]) -> None:
    """Check that there are numbers to add noise to, and that noise already spread over environments is for these.

    :raises ValueError: if not.
    """
    if noise is not None and not isinstance(noise, ActionNoise):
        raise TypeError(f"action_noise must be an ActionNoise, such as NormalActionNoise, not {noise!r}")
    if noise is not None and not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"action_noise cannot be added to discrete actions, {action_space}: leave it out; ent_coef and "
            "target_entropy say how much the policy explores"
        )
    if isinstance(noise, VectorizedActionNoise) and noise.n_envs != n_envs:
        raise ValueError(
            f"action_noise is for {noise.n_envs} environments, the model has {n_envs}; give the noise of one "
            "environment, which is copied for each"
        )


def check_train_freq(value: Any, n_envs: int) -> None:
    """Check how much to collect between updates, which SB3 would only do in the middle of ``learn``.

    :param value: number of steps, or a tuple of a number and its unit.
    :param n_envs: number of environments.
    :raises TypeError: if it is neither.
    :raises ValueError: if it is out of range.
    """
    allowed = 'allowed: n, (n, "step") or, with one environment, (n, "episode"); n is an integer of 1 or more'
    frequency, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    unit = getattr(unit, "value", unit)  # of SB3's enumeration
    if isinstance(frequency, bool) or not isinstance(frequency, int | np.integer):
        raise TypeError(f"train_freq={value!r} is not a number of steps; {allowed}")
    if frequency < 1 or unit not in ("step", "episode"):
        raise ValueError(f"train_freq={value!r} is out of range; {allowed}")
    if unit == "episode" and n_envs > 1:
        raise ValueError(f"train_freq={value!r} does not work with {n_envs} environments; {allowed}")


def check_action_space(action_space: spaces.Space[Any]) -> spaces.Box:
    """Return an action space, now known to be a Box of floats that can be rescaled to [-1, 1].

    :raises TypeError: if it is not a Box.
    :raises ValueError: if it holds no floats (others would be stored as what was not taken), or as
        :func:`check_action_bounds` says.
    """
    if not isinstance(action_space, spaces.Box):
        raise TypeError(f"action_space must be a Box, not {action_space}")
    if not np.issubdtype(action_space.dtype, np.floating):
        raise ValueError(f"action_space has the type {action_space.dtype}; allowed: float, such as float32")
    check_action_bounds(action_space)
    return action_space


def check_action_bounds(action_space: spaces.Box, owner: str = "") -> None:
    """Check that actions can be rescaled from the bounds to [-1, 1] and back.

    :param action_space: Box of any type and number of axes.
    :param owner: start of the message, such as ``"task 'x': "``.
    :raises ValueError: if a dimension is unbounded, holds but one value, or is wider than its type can hold; the
        message names the first such dimension.
    """
    low, high = action_space.low, action_space.high
    with np.errstate(over="ignore", invalid="ignore"):
        width = high - low if low.dtype.kind == "f" else np.subtract(high, low, dtype=np.float64)
    bad = np.argwhere(~(np.isfinite(width) & (low < high)))
    if not len(bad):
        return
    place = tuple(bad[0].tolist())
    if not np.isfinite([low[place], high[place]]).all():
        advice = (
            "allowed: finite bounds, such as those of useful actions, for example by a wrapper: "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(-1, 1, shape))"
        )
    elif low[place] < high[place]:
        advice = f"{low.dtype} cannot hold the difference; give it narrower bounds"
    else:
        advice = "there is nothing to choose; give it low < high, or drop the dimension and set its value in a wrapper"
    dimension = place[0] if len(place) == 1 else place
    raise ValueError(
        f"{owner}action_space: dimension {dimension} goes from {low[place]!s} to {high[place]!s}: {advice}"
    )


def check_learning_rate(name: str, value: Any) -> None:
    """Check a learning rate or its schedule at the start of training; ``None`` passes."""
    if value is None:
        return
    if isinstance(value, bool) or not (callable(value) or isinstance(value, int | float | np.number)):
        raise TypeError(f"{name} must be a number or a schedule, not {value!r}")
    rate = value(1.0) if callable(value) else value
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
        raise TypeError(f"{name} must give numbers, not {rate!r}")
    if not (0 <= rate < math.inf):
        raise ValueError(f"{name}={rate!r} is out of range; allowed: [0, inf)")


def is_finite_float32(array: np.ndarray) -> np.ndarray:
    """Return where an array is finite as what networks compute with, which is float32."""
    with np.errstate(over="ignore"):
        return np.isfinite(array.astype(np.float32, copy=False))


def check_finite(what: str, values: Any, step: int, first_env: int = 0) -> None:
    """Check what an environment gave or got.

    :param what: name for the message, such as ``"observation"``.
    :param values: (n_envs, ...) array or tensor, or one per key.
    :param step: number of environment steps so far, for the message.
    :param first_env: index of the environment to which the first row belongs.
    :raises ValueError: if a value is not finite in float32; names the environment and the step.
    """
    if isinstance(values, list):  # of one observation
        first = on_host(values[0])
        values = {key: np.asarray(part)[None] for key, part in first.items()} if isinstance(first, dict) else [first]
    for key, array in values.items() if isinstance(values, dict) else [("", values)]:
        if isinstance(array, torch.Tensor) and array.float().isfinite().all():  # one number to the host
            continue
        array = np.asarray(on_host(array))
        if not np.issubdtype(array.dtype, np.floating):
            continue
        finite = is_finite_float32(array)
        if finite.all():
            continue
        bad = ~finite.reshape(len(array), -1)
        index = int(np.flatnonzero(bad.any(1))[0])
        value = array.reshape(len(array), -1)[index][bad[index]][0]
        raise ValueError(
            f"the {what}{f' {key!r}' if key else ''} of environment {first_env + index} at step {step} is {value}, "
            "not a finite float32 number; it was not stored"
        )


def constructor_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return a class's constructor arguments by name, those of its base classes too that ``**kwargs`` hands on.

    ``**sac_arguments`` are checked and handed on to none.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        found = {n: p for n, p in own.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} | found
        if not any(p.kind == p.VAR_KEYWORD and p.name != "sac_arguments" for p in own.values()):
            break
    return {name: parameter for name, parameter in found.items() if name != "self"}
