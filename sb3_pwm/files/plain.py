"""Objects described in JSON, and made again from their description without running what a file says.

JSON's own values stand for themselves; everything else is ``{"kind": ..., ...}``. Classes are found by their names in
:data:`CLASSES`, never by importing what a file names.
"""

import base64
import pathlib
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from torch import nn

from sb3_pwm.buffers import DictSequenceReplayBuffer, SequenceReplayBuffer
from sb3_pwm.multitask.policies import ExtractedPolicy, MultiTaskPolicy
from sb3_pwm.nn.layers import Mish
from sb3_pwm.policies import CnnPolicy, MultiInputPolicy, PWMPolicy
from sb3_pwm.replay.her import SequenceHerReplayBuffer

OWN = (PWMPolicy, CnnPolicy, MultiInputPolicy, MultiTaskPolicy, ExtractedPolicy)
OWN_PARTS = (SequenceReplayBuffer, DictSequenceReplayBuffer, SequenceHerReplayBuffer, Mish)
CLASSES: dict[str, type] = {
    **{f"torch.nn.{name}": getattr(nn, name) for name in (*nn.modules.activation.__all__, "Identity")},
    **{
        f"torch.optim.{name}": kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    },
    **{f"stable_baselines3.{kind.__name__}": kind for kind in (CombinedExtractor, FlattenExtractor, NatureCNN)},
    **{f"sb3_pwm.{kind.__name__}": kind for kind in (*OWN, *OWN_PARTS)},
}
NAMES = {kind: name for name, kind in CLASSES.items()}
FIELDS: dict[type, tuple[str, ...]] = {  # constructor arguments, which are attributes too
    LinearSchedule: ("start", "end", "end_fraction"),
    ConstantSchedule: ("val",),
    FloatSchedule: ("value_schedule",),
    spaces.Box: ("low", "high", "dtype"),
    spaces.Discrete: ("n", "start"),
    spaces.MultiDiscrete: ("nvec", "dtype", "start"),
    spaces.MultiBinary: ("n",),
    spaces.Dict: ("spaces",),
}
OBJECTS = {kind.__name__: kind for kind in FIELDS}
NUMBERS = "biuf"  # kinds of arrays: booleans, integers, floats


def describe(value: Any) -> Any:
    """Describe an object in JSON values.

    :raises TypeError: if there is no description for it; says which part.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [describe(each) for each in value]
    if kind in (dict, OrderedDict):
        return {"kind": "dict", "items": [[describe(key), describe(each)] for key, each in value.items()]}
    if kind is deque:
        return {"kind": "deque", "items": [describe(each) for each in value], "maxlen": value.maxlen}
    if kind is TrainFreq:
        return {"kind": "tuple", "items": [value.frequency, value.unit.value]}
    if kind is tuple:
        return {"kind": "tuple", "items": [describe(each) for each in value]}
    if kind is GoalSelectionStrategy:
        return {"kind": "goals", "name": value.name}
    if isinstance(value, pathlib.Path):
        return {"kind": "path", "name": str(value)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in NUMBERS:
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        scalar = isinstance(value, np.generic)
        return {"kind": "array", "dtype": value.dtype.str, "shape": value.shape, "scalar": scalar, "base64": content}
    if isinstance(value, np.dtype) and value.kind in NUMBERS:
        return {"kind": "dtype", "name": value.str}
    if isinstance(value, type) and value in NAMES:
        return {"kind": "class", "name": NAMES[value]}
    if kind in FIELDS:
        return {"kind": kind.__name__, "fields": {name: describe(getattr(value, name)) for name in FIELDS[kind]}}
    raise TypeError(f"{value!r} of {kind.__module__}.{kind.__qualname__}")


def build(description: Any) -> Any:
    """Make what :func:`describe` described; a wrong description raises any error, and runs nothing."""
    if isinstance(description, list):
        return [build(each) for each in description]
    if not isinstance(description, dict):
        return description
    kind = description["kind"]
    if kind == "dict":
        return {build(key): build(each) for key, each in description["items"]}
    if kind == "deque":
        return deque(map(build, description["items"]), maxlen=description["maxlen"])
    if kind == "tuple":
        return tuple(build(each) for each in description["items"])
    if kind == "array":
        content = np.frombuffer(base64.b64decode(description["base64"]), numeric(description["dtype"]))
        array = content.reshape(description["shape"]).copy()
        return array[()] if description["scalar"] else array
    if kind == "dtype":
        return numeric(description["name"])
    if kind == "goals":
        return GoalSelectionStrategy[description["name"]]
    if kind == "path":
        return pathlib.Path(description["name"])
    if kind == "class":
        return CLASSES[description["name"]]
    fields = {name: build(each) for name, each in description["fields"].items()}
    if kind == "Dict":
        return spaces.Dict(list(fields["spaces"].items()))  # of a dictionary the keys would be sorted
    return OBJECTS[kind](**fields)


def numeric(name: str) -> np.dtype[Any]:
    """Return a type of numbers.

    :raises ValueError: if it is none.
    """
    found = np.dtype(name)
    if found.kind not in NUMBERS:
        raise ValueError(f"{name} is not a type of numbers")
    return found
