import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import ACTIONS, SpaceEnv, make, make_by_fours
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import nn
from torch.testing import assert_close

from sb3_pwm import PWM, learner
from sb3_pwm.pwm import ENTROPY_RATE


def rates_of(model: PWM) -> dict[str, float]:
    return {name: optimizer.param_groups[0]["lr"] for name, optimizer in model.policy.optimizers.items()}


def all_rates(rate: float) -> dict[str, float]:
    return {"actor": rate, "critic": rate, "model": rate, "entropy": ENTROPY_RATE * rate}


def test_three_schedules() -> None:
    model = make(
        learning_rate=lambda progress: 1e-3 * progress,
        critic_learning_rate=LinearSchedule(2e-3, 1e-3, 1.0),
        model_learning_rate=5e-3,
        learning_starts=80,
    )
    model.learn(80)
    assert rates_of(model) == pytest.approx({"actor": 0.0, "entropy": 0.0, "critic": 1e-3, "model": 5e-3}, abs=1e-12)
    model.learn(40, reset_num_timesteps=False)  # 80 of 120 steps done, 40 of them now
    assert rates_of(model)["actor"] == pytest.approx(0, abs=1e-12)
    model.learn(4, reset_num_timesteps=True)
    assert rates_of(model)["model"] == 5e-3


def test_rates_follow_the_actors_unless_given() -> None:
    model = make_by_fours(learning_rate=LinearSchedule(1e-2, 0, 1.0)).learn(
        40, callback=lambda local, _: local["self"].num_timesteps < 30
    )
    assert rates_of(model) == pytest.approx(all_rates(1e-2 * (1 - 28 / 40)))
    assert rates_of(make_by_fours(learning_rate=1e-5).learn(24)) == all_rates(1e-5)


@pytest.mark.filterwarnings("ignore:nothing was learnt")
def test_pretraining_at_the_start_of_a_run_has_the_rate_of_its_start(tmp_path: Path) -> None:
    make(learning_starts=100).learn(100).save_replay_buffer(tmp_path / "buffer")
    model = make(learning_rate=LinearSchedule(1e-2, 0, 1.0), learning_starts=100).learn(40)  # ends at rate 0
    model.load_replay_buffer(tmp_path / "buffer")
    rates = []
    own: Any = model._learner
    own.update_model = lambda *_, **__: rates.append(rates_of(model)["model"])
    model.learn(0)
    assert rates == [1e-2] * 3


@pytest.mark.parametrize("name", ["actor", "critic", "model"])
def test_rate_zero_freezes_one_network(name: str) -> None:
    rates = {"actor": "learning_rate", "critic": "critic_learning_rate", "model": "model_learning_rate"}
    zero: dict[str, Any] = {rates[n]: 0.0 if n == name else 1e-2 for n in rates}
    model = make(**zero)
    networks = {"actor": model.policy.actor, "critic": model.policy.critics, "model": model.policy.world_model}
    entropy_coefficient = model.policy.entropy_coefficient.log_ent_coef
    coefficient_before = entropy_coefficient.item()
    before = {n: [p.clone() for p in network.parameters()] for n, network in networks.items()}
    model.learn(40)
    for n, network in networks.items():
        unchanged = [torch.equal(p, q) for p, q in zip(network.parameters(), before[n], strict=True)]
        assert all(unchanged) == (n == name)
    assert (entropy_coefficient.item() == coefficient_before) == (name == "actor")


@pytest.mark.parametrize(("target", "sign"), [(-50.0, -1), (2.0, 1)])
def test_the_entropy_coefficient_moves_towards_the_target(target: float, sign: int) -> None:
    model = make(target_entropy=target)
    before = model.policy.entropy_coefficient.log_ent_coef.item()
    model.learn(40)
    after = model.policy.entropy_coefficient.log_ent_coef.item()
    assert np.sign(after - before) == sign


def test_the_entropy_target_is_minus_half_the_action_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = []
    loss = vars(learner)["entropy_coefficient_loss"]
    monkeypatch.setattr(learner, "entropy_coefficient_loss", lambda *args: targets.append(args[-1]) or loss(*args))
    model = make().learn(40)
    space: Any = model.action_space
    assert set(targets) == {-space.shape[0] / 2}


@pytest.mark.parametrize("ent_coef", [0, 0.1])
def test_a_given_entropy_coefficient_stays(ent_coef: float) -> None:
    model = make(ent_coef=ent_coef)
    before = model.policy.entropy_coefficient.log_ent_coef.item()
    model.learn(40)
    assert model.policy.entropy_coefficient.log_ent_coef.item() == before
    assert model.ent_coef == ent_coef


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"alpha": 0.9}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"betas": (0.7, 0.95), "fused": False}),
        (torch.optim.Adam, {"foreach": True}),
    ],
)
def test_optimizers(optimizer: type[torch.optim.Optimizer], kwargs: dict[str, Any]) -> None:
    model = make(policy_kwargs={"optimizer_class": optimizer, "optimizer_kwargs": kwargs})
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(24)
    for each in model.policy.optimizers.values():
        assert type(each) is optimizer
        assert all(each.param_groups[0][name] == value for name, value in kwargs.items())
    assert not all(torch.equal(p, q) for p, q in zip(model.policy.parameters(), before, strict=True))
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


# --- networks ---


def hidden_sizes(network: nn.Module) -> list[int]:
    return [layer.out_features for layer in network.modules() if isinstance(layer, torch.nn.Linear)][:-1]


def test_net_arch() -> None:
    policy = make(policy_kwargs={"net_arch": [7, 5]}).policy
    networks = {
        "encoder": policy.world_model.encoder,
        "dynamics": policy.world_model.dynamics,
        "reward": policy.world_model.reward,
        "termination": policy.world_model.termination,
        "pi": policy.actor,
        "qf": policy.critics.critics[0],
    }
    assert all(hidden_sizes(network) == [7, 5] for network in networks.values())
    policy = make(policy_kwargs={"net_arch": {"pi": [3], "encoder": []}}).policy
    assert hidden_sizes(policy.actor) == [3]
    assert hidden_sizes(policy.world_model.encoder) == []
    assert len(hidden_sizes(policy.world_model.dynamics)) > 0


class Halves(FlattenExtractor):
    """An extractor with parameters of its own."""

    def __init__(self, observation_space: spaces.Space[Any], features_dim: int = 5) -> None:
        super().__init__(observation_space)
        self._features_dim = features_dim
        self.linear = torch.nn.Linear(3, features_dim)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.linear(super().forward(observations))


@pytest.mark.parametrize("critic", ["q", "v"])
@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"features_extractor_class": Halves, "features_extractor_kwargs": {"features_dim": 6}},
        {"activation_fn": torch.nn.ReLU, "n_critics": 1},
        {"reward_bins": 101, "n_critics": 4},
        {"state_dependent_std": False, "norm_after_activation": True, "latent_dim": 8, "simnorm_dim": 2},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_policy_arguments(policy_kwargs: dict[str, Any], critic: Literal["q", "v"]) -> None:
    # Not random observations: of these there would be nothing to be read.
    model = make("Pendulum-v1", policy_kwargs=policy_kwargs, critic=critic)
    policy = model.policy
    unused = ("critics_target.", "behaviour_value.")  # the second learns from data alone
    before = {name: p.clone() for name, p in policy.named_parameters() if not name.startswith(unused)}
    model.learn(60)
    assert model.n_skipped_updates == 0
    unchanged = [name for name, p in policy.named_parameters() if name in before and torch.equal(p, before[name])]
    assert unchanged == []
    assert len(policy.critics.critics) == policy_kwargs.get("n_critics", 2)
    first: Any = policy.critics.critics[0]
    assert policy.latent_dim is not None
    assert first[0].in_features == policy.latent_dim + (1 if critic == "q" else 0)
    assert policy.world_model.reward[-1].out_features == max(1, policy_kwargs.get("reward_bins", 0))
    activation = policy_kwargs.get("activation_fn", torch.nn.SiLU)
    assert any(isinstance(module, activation) for module in policy.modules())
    assert "critic" not in model.policy_kwargs


@pytest.mark.parametrize(
    ("policy", "space", "latents"),
    [
        ("MlpPolicy", spaces.Box(-1, 1, (64,)), 96),
        ("MlpPolicy", spaces.Box(-1, 1, (5, 13)), 256),
        ("MultiInputPolicy", spaces.Dict({"a": spaces.Box(-1, 1, (40,)), "b": spaces.Discrete(25)}), 256),
    ],
    ids=["64", "65", "40+25"],
)
def test_the_default_number_of_latents_follows_the_observations(
    policy: str, space: spaces.Space[Any], latents: int, tmp_path: Path
) -> None:
    model = make(SpaceEnv(space), policy=policy, policy_kwargs={"latent_dim": None})
    assert model.policy.latent_dim == latents
    assert model.predict(space.sample())[0].shape == ACTIONS.shape
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model").policy
    assert loaded.world_model.encode(loaded.obs_to_tensor(space.sample())[0]).shape == (1, latents)
    assert make(SpaceEnv(space), policy=policy, policy_kwargs={"latent_dim": 8}).policy.latent_dim == 8


def test_training_mode_reaches_every_module() -> None:
    policy = make().policy
    for mode in (False, False, True, True, False):
        policy.set_training_mode(mode)
        assert {module.training for module in policy.modules()} == {mode}


@pytest.mark.parametrize("critic", ["q", "v"])
def test_actor_and_all_critics_share_one_scale_of_latents(critic: Literal["q", "v"], tmp_path: Path) -> None:
    """Also in copies and loaded models; the world model sees its latents as they are."""
    model = make("Pendulum-v1", critic=critic).learn(60)
    model.save(tmp_path / "model")
    for policy in (model.policy, copy.deepcopy(model.policy), PWM.load(tmp_path / "model").policy):
        networks: list[Any] = [policy.actor, policy.critics, policy.critics_target]
        networks += [policy.behaviour_value] if critic == "q" else []
        assert all(network.latent_scale is policy.latent_scale for network in networks)
        assert policy.latent_scale.initialized
        assert_close(policy.latent_scale.mean, model.policy.latent_scale.mean)
        latents, actions = torch.rand(5, policy.world_model.latent_dim), torch.rand(5, 1)
        inputs = [latents, actions] if critic == "q" else [latents]
        scaled = policy.latent_scale(torch.cat(inputs, -1))
        assert_close(policy.critics(*inputs)[0], 10 * policy.critics.critics[0](scaled).squeeze(-1))
        mean, _ = policy.actor.net(policy.latent_scale(latents)).chunk(2, -1)
        assert_close(policy.actor.distribution(latents)[0], mean)


def test_the_device_of_a_policy_is_that_of_its_networks() -> None:
    policy = make().policy
    assert policy.device == next(policy.parameters()).device
    assert copy.deepcopy(policy).to("meta").device.type == "meta"
