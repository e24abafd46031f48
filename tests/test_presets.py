"""The presets build, learn, save and load."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from sb3_pwm import PWM, presets
from sb3_pwm.nn.layers import Mish

SMALL_SIZES: dict[str, Any] = {
    "net_arch": {key: [16] for key in ("encoder", "dynamics", "reward", "termination", "pi", "qf")},
    "latent_dim": 16,
}
SMALL: dict[str, Any] = {
    "learning_starts": 40,
    "batch_size": 8,
    "critic_updates": 2,
    "critic_batch_size": 16,
    "buffer_size": 1_000,
    "sequence_length": 4,
    "horizon": 3,
}


def small_preset() -> dict[str, Any]:
    preset = presets.paper_single_task
    return preset | SMALL | {"policy_kwargs": preset["policy_kwargs"] | SMALL_SIZES}


def test_paper_preset_builds_the_papers_networks() -> None:
    before = copy.deepcopy(presets.paper_single_task["policy_kwargs"])
    model = PWM("MlpPolicy", "Pendulum-v1", device="cpu", **presets.paper_single_task)
    policy = model.policy

    def widths(network: nn.Module) -> list[int]:
        return [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]

    assert widths(policy.world_model.encoder) == [256, 512]
    assert widths(policy.world_model.dynamics) == [512, 512, 512]
    assert widths(policy.world_model.reward) == [512, 512, 1]
    assert widths(policy.actor) == [400, 200, 100, 1]
    assert [widths(critic) for critic in policy.critics.critics] == [[400, 200, 1]] * 3
    critic: Any = policy.critics.critics[0]
    assert critic[0].in_features == 512  # V of latents, not Q
    dynamics: Any = policy.world_model.dynamics[0]
    assert [type(layer) for layer in list(policy.actor.net)[:3]] == [nn.Linear, Mish, nn.LayerNorm]
    assert [type(layer) for layer in list(dynamics)[:3]] == [nn.Linear, nn.LayerNorm, Mish]
    assert not policy.world_model.residual_dynamics
    assert policy.actor.log_std is not None
    actor: Any = policy.actor
    torch.testing.assert_close(actor.log_std.detach(), torch.full((1,), -1.0))
    assert all(optimizer.defaults["betas"] == (0.7, 0.95) for optimizer in policy.optimizers.values())
    assert presets.paper_single_task["policy_kwargs"] == before


@pytest.mark.parametrize(("name", "start"), [("actor", 5e-4), ("critic", 5e-4), ("model", 3e-4)])
def test_paper_preset_rates_fall_linearly(name: str, start: float) -> None:
    model = PWM("MlpPolicy", "Pendulum-v1", device="cpu", **small_preset())
    assert model._rate(name, 1.0) == pytest.approx(start)
    assert model._rate(name, 0.5) == pytest.approx((start + 1e-5) / 2)
    assert model._rate(name, 0.0) == pytest.approx(1e-5)


def test_shrunken_paper_preset_learns_saves_and_loads(tmp_path: Path) -> None:
    model = PWM("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **small_preset())
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(90)
    # After the warm-up: 16 steps per collection, 8 model updates and one actor update each
    collections = model._n_updates // 8
    assert collections >= 3
    assert model.n_model_updates == model._n_updates == 8 * collections
    for part in ("world_model", "actor", "critics."):
        names = [name for name in before if name.startswith(part)]
        assert names
        assert any(not torch.equal(before[name], model.policy.get_parameter(name)) for name in names)
    assert model.n_skipped_updates == 0

    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=gym.make("Pendulum-v1"), device="cpu")
    observation = np.array([0.5, 0.5, 0.1], dtype=np.float32)
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
    assert loaded.critic_kind == "v"
    assert loaded._rate("model", 1.0) == pytest.approx(3e-4)
    loaded.learn(40)


def test_large_networks_learn_on_any_device() -> None:
    before = copy.deepcopy(presets.large)
    small: dict[str, Any] = {"learning_starts": 20, "pretrain_steps": 2, "buffer_size": 1_000}
    model = PWM("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **presets.large | small).learn(20)
    assert (model._n_updates, model.n_skipped_updates) == (1, 0)
    critic: Any = model.policy.critics.critics[0]
    assert critic[0].out_features == 512
    assert model.policy.world_model.latent_dim == 512
    assert presets.large == before
