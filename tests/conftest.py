import os

os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")

import gc
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from forked import ForkedWorker
from hypothesis import settings
from torch import nn

from sb3_pwm import PWM, offline
from sb3_pwm.benchmark import engines
from sb3_pwm.networks import Actor, CriticEnsemble
from sb3_pwm.video.rendering import render, rendered_env
from sb3_pwm.world_model import WorldModel

torch.set_num_threads(1)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci")

OBS_DIM, LATENT_DIM, ACTION_DIM, N_CRITICS = 3, 8, 2, 3
HIDDEN: dict[str, Any] = {"encoder": [10], "dynamics": [10], "reward": [10], "termination": [10]}


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what has been imported need not be searched for garbage again and again


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def quick_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the default updates few and small, and episodes short, for scripts that run as printed; all else stays."""
    arguments: Any = PWM.__init__.__kwdefaults__
    for name, value in {"pretrain_steps": 20, "batch_size": 8, "critic_batch_size": 16, "train_freq": 25}.items():
        monkeypatch.setitem(arguments, name, value)
    for env_id in ("Pendulum-v1", "HalfCheetah-v5"):
        monkeypatch.setattr(gym.spec(env_id), "max_episode_steps", 20)
    monkeypatch.setitem(offline.ARGUMENTS, "batch_size", 8)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines fork this process instead of starting Python anew."""
    importlib.import_module("torch._dynamo")  # or each of them would, with its first optimizer
    monkeypatch.setattr(engines, "start_worker", ForkedWorker)


@pytest.fixture
def make_world_model() -> Callable[..., WorldModel]:
    """Tiny world models whose weights are large enough for every output to depend visibly on every input."""

    def make(features: nn.Module | None = None, **kwargs: Any) -> WorldModel:
        sizes: dict[str, Any] = {"latent_dim": LATENT_DIM, "simnorm_dim": 4, **HIDDEN}
        model = _enlarge(WorldModel(features or nn.Identity(), OBS_DIM, ACTION_DIM, **(sizes | kwargs)))
        if model.observation is not None:
            model.observation_weights.uniform_()
        return model

    return make


@pytest.fixture
def world_model(make_world_model: Callable[..., WorldModel]) -> WorldModel:
    return make_world_model()


@pytest.fixture
def actor() -> Actor:
    return _enlarge(Actor(LATENT_DIM, ACTION_DIM, [10]))


@pytest.fixture
def q_critics() -> CriticEnsemble:
    return _enlarge(CriticEnsemble(LATENT_DIM + ACTION_DIM, [10], N_CRITICS))


@pytest.fixture
def v_critics() -> CriticEnsemble:
    return _enlarge(CriticEnsemble(LATENT_DIM, [10], N_CRITICS))


def _enlarge(network: nn.Module) -> Any:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.7)
    return network


@pytest.fixture(scope="session")
def mujoco_renderer() -> None:
    """Skip where MuJoCo cannot render."""
    try:
        with rendered_env("InvertedPendulum-v5") as env:
            env.reset()
            render(env)
    except RuntimeError as error:
        pytest.skip(str(error))
