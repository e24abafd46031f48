"""Models are freed when they are deleted, and hold no more than they need."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import SpaceEnv, make, space_envs
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback

from sb3_pwm import PWM
from sb3_pwm.datasets import from_replay_buffer
from sb3_pwm.multitask.envs import single_task_env
from sb3_pwm.multitask.policies import MultiTaskPolicy
from sb3_pwm.multitask.tasks import TaskSet


def constructed(path: Path) -> PWM:
    return make()


def learnt(path: Path) -> PWM:
    return make().learn(60)


def learnt_twice(path: Path) -> PWM:
    return make(space_envs(2)).learn(60).learn(40, reset_num_timesteps=False)


def learnt_with_callbacks(path: Path) -> PWM:
    callbacks = [CheckpointCallback(30, str(path)), EvalCallback(space_envs(), eval_freq=30, verbose=0)]
    return make().learn(60, callbacks)


def learnt_with_a_function(path: Path) -> PWM:
    return make().learn(60, lambda *_: True)


def learnt_offline(path: Path) -> PWM:
    return make().learn(40).learn_offline(5, pretrain_steps=3)


def learnt_from_data(path: Path) -> PWM:
    buffer: Any = make().learn(40).replay_buffer
    data = from_replay_buffer(buffer)
    return PWM.from_dataset(data, batch_size=8, device="cpu").learn_offline(2, pretrain_steps=2)


def saved(path: Path) -> PWM:
    model = make().learn(40)
    model.save(path / "model")
    model.save_replay_buffer(path / "buffer")
    return model


def loaded(path: Path) -> PWM:
    saved(path)
    model = PWM.load(path / "model", env=space_envs())
    model.load_replay_buffer(path / "buffer")
    return model


def interrupted(path: Path) -> PWM:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    model = make()
    with pytest.raises(KeyboardInterrupt):
        model.learn(40, interrupt)
    return model


@pytest.fixture
def no_collector() -> Iterator[None]:
    make()  # what torch imports at the first optimizer keeps frames
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def of_tasks(path: Path) -> PWM:
    task_set = TaskSet.from_envs({"one": SpaceEnv})
    return make(single_task_env(task_set, "one"), MultiTaskPolicy, policy_kwargs={"task_set": task_set}).learn(40)


def extracted_from(path: Path) -> PWM:
    model = of_tasks(path)
    model.extract("one", 3)
    return model


def extracted(path: Path) -> PWM:
    return of_tasks(path).extract("one", 3)


def copied(path: Path) -> PWM:
    return copy.deepcopy(make().learn(40))


STATES = [
    constructed,
    learnt,
    learnt_twice,
    learnt_with_callbacks,
    learnt_with_a_function,
    learnt_offline,
    learnt_from_data,
    saved,
    loaded,
    copied,
]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("state", [*STATES, interrupted])
def test_a_deleted_model_is_freed_at_once(tmp_path: Path, state: Callable[[Path], Any]) -> None:
    model = state(tmp_path)
    alive = {
        "model": weakref.ref(model),
        "policy": weakref.ref(model.policy),
        "buffer": weakref.ref(model.replay_buffer),
        "env": weakref.ref(model.env),
    }
    del model
    assert [name for name, reference in alive.items() if reference() is not None] == []
