"""Loading without pickles: ``weights_only=True``."""

import base64
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import MIXED, SMALL_POLICY, flat_state, make, same, space_envs
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from test_sb3_saving import observations_of

from sb3_pwm import PWM
from sb3_pwm.files.models import RECORD, STATE
from sb3_pwm.files.plain import build, describe
from sb3_pwm.multitask.envs import task_vec_env
from sb3_pwm.multitask.policies import ExtractedPolicy
from sb3_pwm.multitask.tasks import Task, TaskSet


class Effect:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def rewritten(source: Path, target: Path, change: Callable[..., Any]) -> Path:
    """Copy a zip file; ``change`` maps the parts, by name, to what is written instead."""
    with zipfile.ZipFile(source) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(target, "w") as new:
        for name, content in change(parts).items():
            new.writestr(name, content)
    return target


def without_record(parts: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in parts.items() if name != RECORD}


def saved(tmp_path: Path, model: PWM) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model.zip"


MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "images": lambda: {
        "env": space_envs(2, spaces.Box(0, 255, (36, 36, 3), np.uint8)),
        "policy": "CnnPolicy",
        "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}},
    },
    "keys": lambda: {
        "env": space_envs(1, MIXED),
        "policy": "MultiInputPolicy",
        "policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 8}},
    },
    "arguments": lambda: {
        "learning_rate": 1e-3,
        "critic_learning_rate": LinearSchedule(1e-3, 1e-4, 0.5),
        "model_learning_rate": ConstantSchedule(1e-3),
        "train_freq": (1, "episode"),
        "policy_kwargs": {
            "activation_fn": torch.nn.ELU,
            "features_extractor_class": FlattenExtractor,
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": {"betas": (0.8, 0.9), "weight_decay": 0.1},
        },
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_without_pickles_is_the_same_model(tmp_path: Path, kind: Any) -> None:
    arguments = MODELS[kind]()
    model = make(**arguments).learn(40)
    path = saved(tmp_path, model)
    usual: Any = PWM.load(path, device="cpu")
    # Every pickle in the file is one with an effect
    infect(path, tmp_path / "infected.zip", tmp_path / "effect")
    safe: Any = PWM.load(tmp_path / "infected.zip", device="cpu", weights_only=True)
    assert not (tmp_path / "effect").exists()
    assert same(safe.get_parameters(), usual.get_parameters())
    assert safe.policy_class is usual.policy_class
    assert vars(safe).keys() == vars(usual).keys()
    for name, value in vars(usual).items():
        if not name.startswith("_") and isinstance(value, int | float | str | dict | tuple | spaces.Space | type):
            assert getattr(safe, name) == value, name
    assert str(safe.lr_schedule) == str(usual.lr_schedule)
    assert str(safe.critic_learning_rate) == str(usual.critic_learning_rate)
    assert list(safe.ep_info_buffer) == list(usual.ep_info_buffer)
    for key, values in flat_state(usual._last_obs).items():
        np.testing.assert_array_equal(flat_state(safe._last_obs)[key], values)
    observations = observations_of(model)
    np.testing.assert_array_equal(
        safe.predict(observations, deterministic=True)[0], usual.predict(observations, deterministic=True)[0]
    )
    for loaded in (usual, safe):
        loaded.set_env(MODELS[kind]().get("env") or space_envs())
        loaded.set_random_seed(3)
        loaded.learn(24, reset_num_timesteps=False)
    assert same(safe.get_parameters(), usual.get_parameters())


def infect(source: Path, target: Path, effect: Any) -> Path:
    """Put a pickle with an effect into the place of every pickle in a model's file; the record is made to agree."""
    code = base64.b64encode(pickle.dumps(Effect(effect))).decode()

    def change(parts: dict[str, bytes]) -> dict[str, bytes]:
        data = json.loads(parts["data"])
        pickled = [value for value in data.values() if isinstance(value, dict) and ":serialized:" in value]
        assert pickled
        for value in pickled:
            value[":serialized:"] = code
        parts["data"] = json.dumps(data).encode()
        if RECORD in parts:
            record = json.loads(parts[RECORD])
            record["crc32"]["data"] = zlib.crc32(parts["data"])
            parts[RECORD] = json.dumps(record).encode()
        return parts

    return rewritten(source, target, change)


def test_the_usual_way_runs_code_and_says_so(tmp_path: Path) -> None:
    path = infect(saved(tmp_path, make()), tmp_path / "infected.zip", tmp_path / "effect")
    with pytest.raises((ValueError, TypeError)):
        PWM.load(path)
    assert (tmp_path / "effect").exists()
    door: Any
    for door in (PWM.load, PWM.load_replay_buffer, PWM("MlpPolicy", space_envs()).policy.save):
        assert "runs code" in door.__doc__ or "run code" in door.__doc__


@pytest.mark.parametrize("part", ["policy", "policy.actor_optimizer", "policy.model_optimizer", "pytorch_variables"])
def test_tensor_parts_run_nothing(tmp_path: Path, part: str) -> None:
    """A pickle in the place of tensors, with and without a record, through both ways of loading."""
    path = saved(tmp_path, make())
    torch.save(Effect(tmp_path / "effect"), tmp_path / "evil.pth")
    evil = {f"{part}.pth": (tmp_path / "evil.pth").read_bytes()}
    old = rewritten(path, tmp_path / "old.zip", lambda parts: without_record(parts) | evil)
    new = rewritten(path, tmp_path / "new.zip", lambda parts: parts | evil)
    for file, weights_only in ((old, False), (new, False), (new, True)):
        with pytest.raises(ValueError, match=file.name):
            PWM.load(file, weights_only=weights_only)
    with pytest.raises(ValueError, match=r"old\.zip"):
        make().set_parameters(old)
    assert not (tmp_path / "effect").exists()


def test_world_models_run_nothing(tmp_path: Path) -> None:
    torch.save({"world_model": Effect(tmp_path / "effect")}, tmp_path / "world.pt")
    with pytest.raises(ValueError, match="could run code"):
        make().load_world_model(tmp_path / "world.pt")
    assert not (tmp_path / "effect").exists()


def test_files_of_earlier_revisions_say_what_is_missing(tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path, make()), tmp_path / "old.zip", without_record)
    with pytest.raises(ValueError, match=r"old\.zip is of an earlier revision.* no action_space, learning_rate, obs.*"):
        PWM.load(path, weights_only=True)
    own = make()
    names = ("action_space", "observation_space", "policy_class", "replay_buffer_class", "train_freq")
    objects = {name: getattr(own, name) for name in names}
    loaded = PWM.load(path, weights_only=True, custom_objects=objects, learning_rate=1e-3)
    assert same(loaded.get_parameters(), own.get_parameters())
    assert same(PWM.load(path).get_parameters(), own.get_parameters())


class Own(FlattenExtractor):
    """Nothing that the package knows."""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"learning_rate": lambda progress: 1e-3}, "learning_rate"),
        ({"policy_kwargs": {"features_extractor_class": Own}}, "policy_kwargs"),
        ({"action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}, "action_noise"),
    ],
)
def test_what_has_no_description_must_be_given(tmp_path: Path, arguments: dict[str, Any], name: str) -> None:
    model = make(**arguments)
    path = saved(tmp_path, model)
    with pytest.raises(ValueError, match=rf"model\.zip holds what has no description.* there is no {name}\. Give"):
        PWM.load(path, weights_only=True)
    for gap in ({name: getattr(model, name)}, {"custom_objects": {name: getattr(model, name)}}):
        loaded = PWM.load(path, weights_only=True, **gap)
        assert same(loaded.get_parameters(), model.get_parameters())
        assert getattr(loaded, name) is getattr(model, name) or getattr(loaded, name) == getattr(model, name)


def test_a_replay_buffer_in_a_model_is_not_dropped_silently(tmp_path: Path) -> None:
    model = make().learn(24)
    model.save(tmp_path / "model", include=["replay_buffer"])
    with pytest.raises(ValueError, match="there is no replay_buffer"):
        PWM.load(tmp_path / "model", weights_only=True)
    assert PWM.load(tmp_path / "model").replay_buffer.n_transitions == 24


def test_models_of_many_tasks(tmp_path: Path) -> None:
    tasks = TaskSet([Task("a", "Pendulum-v1", 3, 1, 10), Task("b", "Pendulum-v1", 3, 1, 10)])
    policy_kwargs = SMALL_POLICY | {"task_embedding_dim": 4, "task_set": tasks}
    model = make(task_vec_env(tasks, seed=0), "MultiTaskPolicy", policy_kwargs=policy_kwargs).learn(40)
    extracted = model.extract("b", 1)
    for each in (model, extracted):
        each.save(tmp_path / "model")
        loaded = PWM.load(tmp_path / "model", weights_only=True)
        assert same(loaded.get_parameters(), each.get_parameters())
    assert type(loaded.policy) is ExtractedPolicy


def test_descriptions_keep_everything() -> None:
    space = spaces.Dict([("z", spaces.Box(-1, np.inf, (2, 3))), ("a", spaces.MultiDiscrete([2, 3], start=[1, -1]))])
    values = [space, spaces.MultiBinary((2, 2)), spaces.Discrete(3, start=-1), (1, 2.5, None), {1: "a", "b": [np.inf]}]
    values += [GoalSelectionStrategy.FINAL, Path("logs"), torch.optim.Adagrad, torch.nn.Identity, torch.nn.SiLU]
    for value in [*values, np.float32(0.1), np.arange(3, dtype=np.int8), np.dtype("uint8"), 10**30]:
        again = build(json.loads(json.dumps(describe(value))))
        assert type(again) is type(value)
        np.testing.assert_array_equal(again, value)
    assert list(build(describe(space)).spaces) == ["z", "a"]  # in which observations are put in a row
    for value in (lambda: 0, Own, object(), np.array([object()]), {"a": [Own]}, type("Box", (spaces.Box,), {})(0, 1)):
        with pytest.raises(TypeError):
            describe(value)


@pytest.mark.parametrize(
    "description",
    [
        {"kind": "class", "name": "os.system"},
        {"kind": "system", "fields": {"command": "true"}},
        {"kind": "array", "dtype": "O", "shape": [1], "scalar": False, "base64": ""},
        {"kind": "dtype", "name": "O"},
        {"kind": "array", "dtype": "<f4", "shape": [2**40], "scalar": False, "base64": ""},
        {},
        {"kind": []},
    ],
)
def test_damaged_descriptions(tmp_path: Path, description: dict[str, Any]) -> None:
    def change(parts: dict[str, bytes]) -> dict[str, bytes | str]:
        record = json.loads(parts[RECORD])
        record["descriptions"]["action_space"] = description
        return parts | {RECORD: json.dumps(record)}

    path = rewritten(saved(tmp_path, make()), tmp_path / "bad.zip", change)
    with pytest.raises(ValueError, match=r"bad\.zip is damaged: its descriptions cannot be read"):
        PWM.load(path, weights_only=True)
    assert "action_space" not in STATE
