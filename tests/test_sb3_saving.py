import copy
import inspect
import io
import pathlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import MIXED, SMALL, SMALL_POLICY, count_updates, flat_state, same, space_envs
from helpers import make_by_fours as make
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_pwm import PWM, CnnPolicy, MlpPolicy, MultiInputPolicy

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
POLICIES = {
    "MlpPolicy": (MlpPolicy, None),
    "CnnPolicy": (CnnPolicy, IMAGE),
    "MultiInputPolicy": (MultiInputPolicy, MIXED),
}


def envs(observation_space: spaces.Space[Any] | None = None, n_envs: int = 1) -> DummyVecEnv:
    return space_envs(n_envs) if observation_space is None else space_envs(n_envs, observation_space)


def observations_of(model: PWM, count: int = 5) -> Any:
    """Return observations as a VecEnv gives them: with the channels of images first."""
    space = model.observation_space
    space.seed(1)
    samples = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def trained(policy: str = "MlpPolicy", **kwargs: Any) -> PWM:
    features = {"features_extractor_kwargs": {"features_dim": 8}} if policy == "CnnPolicy" else {}
    features = {"features_extractor_kwargs": {"cnn_output_dim": 8}} if policy == "MultiInputPolicy" else features
    return make(envs(POLICIES[policy][1]), policy, **({"policy_kwargs": features} | kwargs)).learn(40)


@pytest.fixture(scope="module", params=POLICIES)
def any_model(request: pytest.FixtureRequest) -> PWM:
    return trained(request.param)


@pytest.fixture(scope="module")
def model() -> PWM:
    return trained()


def check_equal(first: Any, second: Any) -> None:
    assert same(first.get_parameters(), second.get_parameters())
    for observation in (observations_of(first), observations_of(first, 1)):
        best = [model.predict(observation, deterministic=True)[0] for model in (first, second)]
        np.testing.assert_array_equal(*best)
        actions = []
        for model in (first, second):
            torch.manual_seed(3)
            actions.append(model.predict(observation)[0])
        np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("kind", ["str", "pathlib", "BytesIO"])
def test_loaded_model_is_equal_and_continues(any_model: PWM, tmp_path: Path, kind: str) -> None:
    files: dict[str, Any] = {"str": str(tmp_path / "model"), "pathlib": tmp_path / "model", "BytesIO": io.BytesIO()}
    file = files[kind]
    any_model.save(file)
    if kind == "BytesIO":
        file.seek(0)
    else:
        assert pathlib.Path(f"{file}.zip").exists()
    loaded = PWM.load(file, env=envs(any_model.observation_space), device="cpu")
    check_equal(any_model, loaded)
    for name in ("num_timesteps", "_n_updates", "n_model_updates", "policy_kwargs", "policy_class", "seed"):
        assert getattr(loaded, name) == getattr(any_model, name)
    loaded.learn(24, reset_num_timesteps=False)
    assert loaded.num_timesteps == any_model.num_timesteps + 24
    assert loaded._n_updates == any_model._n_updates + 2  # 20 steps for the new buffer come first
    assert not same(any_model.get_parameters(), loaded.get_parameters())


def test_parameters_include_every_optimizer(model: PWM) -> None:
    parameters = model.get_parameters()
    optimizers = ("actor", "critic", "model", "entropy")
    assert set(parameters) == {"policy", *(f"policy.{name}_optimizer" for name in optimizers)}
    for name in optimizers:
        steps = [v for k, v in flat_state(parameters[f"policy.{name}_optimizer"]).items() if k.endswith("/step")]
        assert steps
        assert all(step > 0 for step in steps)
    other = make(seed=9)
    assert not same(other.get_parameters(), parameters)
    other.set_parameters(copy.deepcopy(parameters))
    check_equal(model, other)
    other.learn(40)
    assert not same(other.get_parameters(), parameters)


def test_parameters_from_a_file(model: PWM, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    other = make(seed=9)
    other.set_parameters(str(tmp_path / "model"))
    check_equal(model, other)
    third = make(seed=10)
    third.set_parameters({"policy": model.get_parameters()["policy"]}, exact_match=False)
    assert same(dict(third.policy.state_dict()), dict(model.policy.state_dict()))


def test_targets_and_scales_are_saved(model: PWM, tmp_path: Path) -> None:
    policy = model.policy
    assert not same(dict(policy.critics.state_dict()), dict(policy.critics_target.state_dict()))
    assert policy.features.standardizers[0].std.ne(1).all()
    assert policy.reward_scale.scale != 1
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model").policy
    assert same(dict(loaded.state_dict()), dict(policy.state_dict()))
    assert not any(p.requires_grad for p in loaded.critics_target.parameters())


def test_loading_changes_arguments(model: PWM, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    changes: dict[str, Any] = {
        "learning_rate": 0.25,
        "model_learning_rate": lambda progress: 0.5 * progress,
        "train_freq": (1, "episode"),
        "gamma": 0.5,
        "horizon": 1,
        "stats_window_size": 3,
        "buffer_size": 70,
        "learning_starts": 15,
    }
    loaded = PWM.load(tmp_path / "model", env=envs(), **changes)
    counts = count_updates(loaded)
    loaded.learn(30)  # episodes of 7 steps; updates from 21 steps on
    assert loaded.gamma == loaded._start_values.gamma == 0.5
    assert loaded.ep_info_buffer.maxlen == 3
    assert len(loaded.replay_buffer.dones) == 70
    assert counts == {"model": 3, "policy": 3}
    assert loaded.num_timesteps == 35
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in loaded.policy.optimizers.items()}
    assert rates == {"actor": 0.25, "entropy": 1.0, "critic": 0.25, "model": pytest.approx(0.5 * (1 - 35 / 30))}


class Handing(PWM):
    """Hands on whatever it gets."""

    def __init__(self, *args: Any, mine: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mine = mine


def test_loading_a_subclass_changes_inherited_arguments(tmp_path: Path) -> None:
    Handing("MlpPolicy", envs(), mine=3, policy_kwargs=SMALL_POLICY, **SMALL).save(tmp_path / "model")
    loaded = Handing.load(tmp_path / "model", gamma=0.5)
    assert (loaded.gamma, loaded.mine) == (0.5, 3)
    assert Handing.load(tmp_path / "model", mine=4).mine == 4
    for name in ("gama", "args", "kwargs", "self", "env_"):
        keywords: dict[str, Any] = {name: 1}
        with pytest.raises(TypeError, match=rf"unknown keywords \['{name}'\]"):
            Handing.load(tmp_path / "model", **keywords)


def test_custom_objects_and_schedules(tmp_path: Path) -> None:
    model = trained(learning_rate=lambda progress: 1e-3 * progress, critic_learning_rate=lambda progress: 1e-2)
    model.save(tmp_path / "model")
    assert PWM.load(tmp_path / "model")._rate("critic", 0.5) == 1e-2
    loaded = PWM.load(tmp_path / "model", custom_objects={"learning_rate": 0.125, "lr_schedule": lambda _: 0.125})
    assert loaded._rate("actor", 0.5) == loaded._rate("model", 0.5) == 0.125


def test_exclude_and_include(model: PWM, tmp_path: Path) -> None:
    model.save(tmp_path / "model", exclude=["learning_starts", "gamma"], include=["replay_buffer"])
    loaded = PWM.load(tmp_path / "model", env=envs())
    for name in ("learning_starts", "gamma"):
        assert getattr(loaded, name) == inspect.signature(PWM).parameters[name].default
    np.testing.assert_array_equal(loaded.replay_buffer.actions, model.replay_buffer.actions)
    assert same(loaded.get_parameters(), model.get_parameters())
    loaded.learn(8, reset_num_timesteps=False)
    assert loaded.replay_buffer.dones[39] == loaded.replay_buffer.timeouts[39] == 1  # the reset behind the old steps


def test_model_without_environment_predicts(model: PWM, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model")
    assert loaded.get_env() is None
    check_equal(model, loaded)
    loaded.set_env(envs())
    loaded.learn(24)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        PWM.load(tmp_path / "model", env=space_envs(observation_space=spaces.Box(-1, 1, (7,))))


def test_loading_for_another_number_of_environments(model: PWM, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=envs(n_envs=3)).learn(48)
    assert loaded.replay_buffer.dones.shape == (500 // 3, 3)
    assert loaded._n_updates > model._n_updates


@pytest.mark.parametrize("method", ["model", "algorithm"])
def test_loaded_copies_train_alike(model: PWM, tmp_path: Path, method: str) -> None:
    """Optimizer states and counters are complete: two loaded copies stay equal to each other."""
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    copies = []
    for _ in range(2):
        loaded = PWM.load(tmp_path / "model", env=envs())
        loaded.load_replay_buffer(tmp_path / "buffer")
        loaded.pretrain(3) if method == "model" else loaded.train(3, 8)
        copies.append(loaded)
    assert same(copies[0].get_parameters(), copies[1].get_parameters())
    assert not same(copies[0].get_parameters(), model.get_parameters())


def test_replay_buffer_round_trip(any_model: PWM, tmp_path: Path) -> None:
    any_model.save_replay_buffer(tmp_path / "buffer")
    before = any_model.replay_buffer
    policy_class: Any = any_model.policy_class
    other = make(envs(any_model.observation_space), policy_class, policy_kwargs=any_model.policy_kwargs)
    other.load_replay_buffer(tmp_path / "buffer")
    after = other.replay_buffer
    assert type(after) is type(before)
    assert (after.pos, after.full, after.n_transitions) == (before.pos, before.full, 40)
    np.testing.assert_array_equal(after.rewards, before.rewards)
    parts = before.next_observations.items() if isinstance(before.next_observations, dict) else []
    for key, values in parts:
        np.testing.assert_array_equal(after.next_observations[key], values)


def test_policy_round_trip(any_model: PWM, tmp_path: Path) -> None:
    any_model.policy.save(tmp_path / "policy")
    loaded = type(any_model.policy).load(str(tmp_path / "policy"), device="cpu")
    assert same(dict(loaded.state_dict()), dict(any_model.policy.state_dict()))
    observations = observations_of(any_model)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0], any_model.predict(observations, deterministic=True)[0]
    )


class Doubled(FlattenExtractor):
    def __init__(self, observation_space: spaces.Space[Any], factor: int = 2) -> None:
        super().__init__(observation_space)
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.factor * super().forward(observations)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"features_extractor_class": Doubled, "features_extractor_kwargs": {"factor": 3}},
        {"activation_fn": torch.nn.Tanh, "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        {"reward_bins": 7, "n_critics": 2, "n_dynamics": 2, "residual_dynamics": False, "norm_after_activation": True},
        {"net_arch": {"encoder": [], "pi": [8, 4]}, "simnorm_dim": 4},
        {"latent_layer_norm": True, "standardize": False},
    ],
)
@pytest.mark.parametrize("critic", ["q", "v"])
def test_policy_arguments_are_saved(tmp_path: Path, policy_kwargs: dict[str, Any], critic: Literal["q", "v"]) -> None:
    model = make(policy_kwargs=policy_kwargs, critic=critic).learn(24)
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=envs())
    assert loaded.policy_kwargs == SMALL_POLICY | policy_kwargs
    check_equal(model, loaded)
    loaded.learn(24)
    model.policy.save(tmp_path / "policy")
    assert same(dict(MlpPolicy.load(str(tmp_path / "policy")).state_dict()), dict(model.policy.state_dict()))
    PWM.load(tmp_path / "model", policy_kwargs=model.policy_kwargs)
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        PWM.load(tmp_path / "model", policy_kwargs={})


def test_vec_normalize_is_saved_beside_the_model(tmp_path: Path) -> None:
    env = VecNormalize(space_envs(2))
    model = make(env).learn(60)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics"))
    model.save_replay_buffer(tmp_path / "buffer")
    other_env = VecNormalize.load(str(tmp_path / "statistics"), space_envs(2))
    loaded = PWM.load(tmp_path / "model", env=other_env)
    assert loaded.get_vec_normalize_env() is other_env
    loaded.load_replay_buffer(tmp_path / "buffer")
    raw = observations_of(model)
    np.testing.assert_array_equal(
        loaded.predict(other_env.normalize_obs(raw), deterministic=True)[0],
        model.predict(env.normalize_obs(raw), deterministic=True)[0],
    )
    draws: list[Any] = []
    for each in (model, loaded):
        np.random.seed(0)
        draws.append(each._sample(8))
    assert torch.equal(draws[0].observations, draws[1].observations)
    assert torch.equal(draws[0].rewards, draws[1].rewards)
    loaded.learn(20, reset_num_timesteps=False)


def test_compiled_policy_is_saved(tmp_path: Path) -> None:
    model = trained()
    parameters = copy.deepcopy(model.get_parameters())
    compiled: Any = torch.compile(model.policy, backend="eager")
    model.policy = compiled
    assert same(model.get_parameters(), parameters)
    model.learn(8, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    assert not same(model.get_parameters(), parameters)
    check_equal(model, PWM.load(tmp_path / "model"))


def test_deep_copy_is_independent() -> None:
    copy.deepcopy(SAC("MlpPolicy", envs(), policy_kwargs={"net_arch": [4]}, device="cpu"))  # SB3 supports it
    model = trained()
    twin = copy.deepcopy(model)
    check_equal(model, twin)
    before = copy.deepcopy(model.get_parameters())
    twin.train(2, 8)
    assert same(model.get_parameters(), before)
    assert not same(twin.get_parameters(), before)
    assert twin._n_updates == model._n_updates + 2
    twin.learn(8, reset_num_timesteps=False)


def test_a_file_of_earlier_defaults_goes_on_with_its_own(tmp_path: Path) -> None:
    """Files hold the values of all arguments, so defaults may change; those from before an argument existed lack it."""
    earlier: dict[str, Any] = {"gamma": 0.995, "pessimism": 1.0, "critic_batch_size": 128, "learning_starts": 15}
    make(**earlier).learn(20).save(tmp_path / "model", exclude=["n_steps", "actor_batch_size", "infer_noise"])
    loaded = PWM.load(tmp_path / "model", env=space_envs())
    assert {name: getattr(loaded, name) for name in earlier} == earlier
    assert loaded.n_steps == 1
    assert loaded.actor_batch_size is None
    assert not loaded.infer_noise
    assert PWM.load(tmp_path / "model", actor_batch_size=5).actor_batch_size == 5
    assert loaded.learn(20).n_skipped_updates == 0
