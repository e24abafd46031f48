"""PWM in the RL-Zoo, with a stand-in for the Zoo: it is not among what tests install."""

import argparse
import importlib
import runpy
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sb3_pwm import PWM


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The Zoo as far as it matters here."""
    rl_zoo3: Any = ModuleType("rl_zoo3")
    hyperparams_opt: Any = ModuleType("rl_zoo3.hyperparams_opt")
    rl_zoo3.ALGOS = {}
    rl_zoo3.hyperparams_opt = hyperparams_opt
    hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER = {}, {}
    hyperparams_opt.sample_her_params = lambda trial, sampled, kwargs: sampled | {"replay_buffer_kwargs": kwargs}
    monkeypatch.setitem(sys.modules, "rl_zoo3", rl_zoo3)
    monkeypatch.setitem(sys.modules, "rl_zoo3.hyperparams_opt", hyperparams_opt)
    monkeypatch.delitem(sys.modules, "sb3_pwm.rl_zoo", raising=False)
    yield rl_zoo3
    sys.modules.pop("sb3_pwm.rl_zoo", None)


@pytest.fixture
def module(zoo: ModuleType) -> ModuleType:
    return importlib.import_module("sb3_pwm.rl_zoo")


def lowest() -> SimpleNamespace:
    """A trial that takes the lowest of everything."""
    return SimpleNamespace(
        suggest_float=lambda name, low, high, log=False: low,
        suggest_int=lambda name, low, high: low,
        suggest_categorical=lambda name, choices: choices[0],
    )


def test_the_zoo_knows_pwm(zoo: ModuleType, module: ModuleType) -> None:
    assert zoo.ALGOS["pwm"] is PWM
    assert zoo.hyperparams_opt.HYPERPARAMS_SAMPLER["pwm"] is module.sample_pwm_params
    assert zoo.hyperparams_opt.HYPERPARAMS_CONVERTER["pwm"] is module.convert_pwm_params


def test_drawn_settings_make_a_model(module: ModuleType) -> None:
    drawn = module.sample_pwm_params(lowest(), 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
    model = PWM("MlpPolicy", "Pendulum-v1", device="cpu", **drawn)
    assert model.gamma == 0.998
    assert (model.lr_schedule(1), model.lr_schedule(0)) == pytest.approx((3e-4, 3e-5))
    assert (model.horizon, model.pessimism, model.critic_updates) == (1, 0.0, 1)
    arch: Any = model.policy.net_arch
    assert arch["dynamics"] == [96, 96]
    hindsight = {"using_her_replay_buffer": True, "her_kwargs": {"n_sampled_goal": 3}}
    assert module.sample_pwm_params(lowest(), 1, 1, hindsight)["replay_buffer_kwargs"] == {"n_sampled_goal": 3}


def test_the_zoos_settings_are_the_constructors_defaults(module: ModuleType) -> None:
    assert {"default", "Pendulum-v1"} <= set(module.hyperparams)
    assert all(entry.keys() == {"n_timesteps", "policy"} for entry in module.hyperparams.values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train --algo pwm --env A-v0", "--conf-file sb3_pwm.rl_zoo --algo pwm --env A-v0"),
        ("train --algo=pwm --env A-v0", "--conf-file sb3_pwm.rl_zoo --algo=pwm --env A-v0"),
        ("train --algo sac --env A-v0", "--algo sac --env A-v0"),
        ("enjoy --algo pwm --env A-v0", "--algo pwm --env A-v0"),
    ],
)
def test_commands(module: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: str, expected: str) -> None:
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **kwargs: ran.append((name, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["test"])
    module.main(arguments.split())
    assert ran == [(f"rl_zoo3.{arguments.split()[0]}", expected.split())]


@pytest.mark.parametrize("own", ["-conf own.yml", "--conf-file own.yml", "--conf-file=own.yml", "-c own.yml", ""])
def test_a_file_of_ones_own_counts(module: ModuleType, monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    """The option as the Zoo's train.py has it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--algo")
    parser.add_argument("-conf", "--conf-file", type=str)
    found = []
    monkeypatch.setattr(runpy, "run_module", lambda *_, **__: found.append(parser.parse_args()))
    monkeypatch.setattr(sys, "argv", ["test"])
    module.main(["train", *own.split(), "--algo", "pwm"])
    assert found[0].conf_file == ("own.yml" if own else "sb3_pwm.rl_zoo")


def test_unknown_commands_are_refused(module: ModuleType) -> None:
    with pytest.raises(SystemExit, match="usage: python -m sb3_pwm"):
        module.main(["fly"])


def test_without_the_zoo_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sb3_pwm.rl_zoo", raising=False)
    monkeypatch.setitem(sys.modules, "rl_zoo3", None)
    with pytest.raises(ImportError, match=r"pip install .*'\.\[rl-zoo\]'"):
        importlib.import_module("sb3_pwm.rl_zoo")
