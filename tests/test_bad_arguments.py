import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import ACTIONS, BOX, count_updates, make, same, space_envs
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm import PWM
from sb3_pwm.checks import random_steps

DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})


BAD_VALUES: list[tuple[str, list[Any], str]] = [
    ("gamma", [0, -0.1, 1.1, math.nan, math.inf], r"\(0, 1\]"),
    *[(name, [-0.1, 1.1, math.nan], r"\[0, 1\]") for name in ("td_lambda", "pessimism", "tau")],
    *[
        (name, [-1, math.nan, math.inf], r"\[0, inf\)")
        for name in ("consistency_coef", "reward_coef", "termination_coef", "bc_coef")
    ],
    *[
        (name, [-1, math.nan, math.inf, "automatic"], r"\"auto\" or a number in \[0, inf\)")
        for name in ("ent_coef", "observation_coef")
    ],
    (
        "ent_coef",
        ["auto_0", "auto_-1", "auto_nan", "auto_inf", "auto_", "auto_x", "Auto", "0.1", "x_1"],
        r"\"auto_\" with .* \(0, inf\)",
    ),
    ("observation_coef", ["auto_0.1"], r"\"auto\" or a number in \[0, inf\)"),
    ("target_entropy", [math.nan, math.inf, -math.inf, "none"], r"\"auto\" or a number in \(-inf, inf\)"),
    ("policy_updates", [0, -1, math.inf], r"\(0, inf\)"),
    *[
        (name, [0, -3], "1 or more")
        for name in (
            *("sequence_length", "batch_size", "critic_batch_size", "critic_updates"),
            "actor_batch_size",
            *("buffer_size", "train_freq"),
        )
    ],
    ("n_steps", [0, -1], "1 or more"),
    ("n_steps", [(), []], "a number of steps, or several"),
    ("learning_starts", [-1], '"auto" or 0 or more'),
    ("horizon", [-1], "0 or more"),
    ("pretrain_steps", [-1], "0 or more"),
    ("gradient_steps", [-2], "-1 or more"),
    *[
        (name, [-1e-3, math.nan, math.inf], r"\[0, inf\)")
        for name in ("learning_rate", "critic_learning_rate", "model_learning_rate")
    ],
    ("critic", ["w"], '"q" and "v"'),
    ("stats_window_size", [0, -1], "1 or more"),
    ("train_freq", [(0, "step"), (4, "epoch")], "episode"),
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"), [(name, value, allowed) for name, values, allowed in BAD_VALUES for value in values]
)
def test_arguments_out_of_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.*allowed.*{allowed}") as error:
        make(**{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("gamma", "tau", "policy_updates") for value in ("auto", True, None)],
        *[(name, value) for name in ("ent_coef", "target_entropy", "observation_coef") for value in ([1], True, None)],
        *[(name, value) for name in ("horizon", "batch_size", "gradient_steps") for value in (2.5, "3", True, None)],
        *[(name, value) for name in ("learning_rate", "critic_learning_rate") for value in ("3e-4", True, [1])],
        *[("infer_noise", value) for value in (1, "yes", None)],
        *[("n_steps", value) for value in (2.5, "3", True, None)],
        ("stats_window_size", 2.5),
        ("action_noise", 3),
        ("replay_buffer_kwargs", 5),
        ("replay_buffer_class", "her"),
        ("train_freq", "episode"),
        ("train_freq", (2.5, "step")),
        ("train_freq", (1, "episode", 2)),
        ("replay_buffer_class", ReplayBuffer),
        ("policy", SAC.policy_aliases["MlpPolicy"]),
    ],
)
def test_arguments_of_the_wrong_kind(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name) as error:
        make(**{name: value})
    assert (value.__name__ if isinstance(value, type) else repr(value)) in str(error.value)


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        ({"net_arch": {"vf": [8]}}, r"net_arch has unknown keys \['vf'\]; allowed: .*'qf'"),
        ({"latent_dim": 12}, "latent_dim=12 must be a positive multiple of simnorm_dim=8"),
        ({"reward_bins": 1}, "reward_bins=1: allowed"),
        ({"n_critics": 0}, "n_critics=0"),
        ({"n_dynamics": 0}, "n_dynamics=0"),
        ({"latent_dim": 0}, "latent_dim=0 .*1 or more"),
        ({"simnorm_dim": 0}, "simnorm_dim=0 .*1 or more"),
        ({"simnorm_dim": -8}, "simnorm_dim=-8 .*1 or more"),
        ({"net_arch": {"pi": [0]}}, r"a size in net_arch\['pi'\]=0 .*1 or more"),
        ({"net_arch": [8, 0]}, "a size in net_arch=0 .*1 or more"),
        ({"critic": "v"}, "critic.* argument of PWM"),
    ],
)
def test_policy_arguments_out_of_range(policy_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(policy_kwargs=policy_kwargs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 1.5) for name in ("latent_dim", "simnorm_dim", "n_critics", "n_dynamics", "reward_bins")],
        *[(name, True) for name in ("n_critics", "n_dynamics")],
        *[(name, "no") for name in ("residual_dynamics", "normalize_images", "standardize", "state_dependent_std")],
        *[("net_arch", value) for value in (32, {"pi": 32}, [2.5])],
    ],
)
def test_policy_arguments_of_the_wrong_kind(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}.* must be"):
        make(policy_kwargs={name: value})


def test_policy_kwargs_are_a_dictionary() -> None:
    with pytest.raises(TypeError, match=r"policy_kwargs must be a dictionary of arguments, not \[1\]"):
        PWM("MlpPolicy", space_envs(), policy_kwargs=[1])  # type: ignore[arg-type]


def test_a_schedule_gives_numbers() -> None:
    with pytest.raises(TypeError, match="learning_rate must give numbers, not 'a'"):
        make(learning_rate=lambda _: "a")


@pytest.mark.parametrize(("log_interval", "kind"), [(0, ValueError), ("a", TypeError)])
def test_log_intervals_are_checked(log_interval: Any, kind: type[Exception]) -> None:
    model = make()
    with pytest.raises(kind, match="log_interval"):
        model.learn(40, log_interval=log_interval)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("target", [-0.1, 5.0])
def test_discrete_actions_cannot_have_any_entropy(target: float) -> None:
    """Three actions have ln 3 = 1.1 at most; the coefficient of an entropy out of reach would grow for ever."""
    env = space_envs(action_space=spaces.Discrete(3))
    with pytest.raises(ValueError, match=rf"target_entropy={target} is out of range; allowed: \[0, 1\.098"):
        make(env, target_entropy=target)
    make(env, target_entropy=1.0)


def test_unknown_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"PWM.__init__\(\) got an unexpected keyword argument 'typo'"):
        make(typo=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'typo'"):
        make(policy_kwargs={"typo": True})
    make().save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"unknown keywords \['typo'\]; allowed: .*'gamma'"):
        PWM.load(tmp_path / "model", typo=True)


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", 2), ("horizon", -1), ("learning_rate", -1.0), ("train_freq", 0), ("batch_size", 0)]
)
def test_bad_arguments_of_load(tmp_path: Path, name: str, value: Any) -> None:
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        PWM.load(tmp_path / "model", **{name: value})


@pytest.mark.parametrize(
    ("learning_starts", "total_timesteps", "expected"),
    [("auto", 400, 100), ("auto", 20_000, 1_000), ("auto", 100_000, 5_000), ("auto", 10**7, 5_000), (7, 10**7, 7)],
)
def test_a_twentieth_of_a_run_is_random(learning_starts: str | int, total_timesteps: int, expected: int) -> None:
    assert random_steps(learning_starts, total_timesteps) == expected


def test_rollouts_of_no_steps_need_a_value_of_actions() -> None:
    with pytest.raises(ValueError, match='horizon=0 with critic="v"'):
        make(horizon=0, critic="v")


def test_one_episode_needs_one_environment() -> None:
    with pytest.raises(ValueError, match=r"train_freq=\(1, 'episode'\).* 2 environments"):
        make(space_envs(2), train_freq=(1, "episode"))


def test_infinite_action_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension 0 goes from -inf to inf: allowed: finite bounds"):
        make(space_envs(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32)))


def test_integer_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="action_space has the type int32; allowed: float"):
        make(space_envs(action_space=spaces.Box(-3, 3, (2,), np.int32)))


def test_dict_observations_need_multi_input_policy() -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make(space_envs(observation_space=DICT))


# --- too little data ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"buffer_size": 8, "sequence_length": 9}, "sequence_length=9 .*buffer_size=8 .* is 8; windows .* shorter"),
        ({"buffer_size": 7}, "batch_size=8 .*buffer_size=7 .* is 7; windows .* drawn several times"),
        ({"buffer_size": 11, "batch_size": 10, "n_envs": 3}, "batch_size=10 .* 3 environments, which is 9"),
    ],
)
def test_buffer_is_too_small_for_a_batch(kwargs: dict[str, Any], message: str) -> None:
    """As in SB3 it is not an error; what can be learnt from it is learnt."""
    env = space_envs(kwargs.pop("n_envs", 1))
    with pytest.warns(UserWarning, match=message):
        model = make(env, **kwargs)
    assert model.learn(40)._n_updates > 0
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("pretrain_steps", [0, 3])
@pytest.mark.parametrize("train_freq", [1, 4])
def test_learning_starts_with_fewer_steps_than_a_batch(n_envs: int, pretrain_steps: int, train_freq: int) -> None:
    """As in SB3: windows are drawn with replacement, and what does not exist yet is masked."""
    model = make(space_envs(n_envs), learning_starts=0, train_freq=train_freq, pretrain_steps=pretrain_steps)
    counts = count_updates(model)
    model.learn(train_freq * n_envs)
    assert counts == {"model": pretrain_steps + 1, "policy": 1}
    samples = model._sample(8)
    assert samples.mask[0].all()
    assert not samples.mask[train_freq:].any()
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_stored_steps_count_as_data() -> None:
    model = make(learning_starts=0, batch_size=12, pretrain_steps=0, gradient_steps=0).learn(12)
    model.gradient_steps = 1
    model.learn(4)
    assert model._n_updates == 1


@pytest.mark.parametrize("method", [lambda m: m.pretrain(1), lambda m: m.train(1, 8)])
def test_updates_need_data(method: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"replay buffer .*empty"):
        method(make())


# --- foreign files ---


def buffer_file(path: Path, space: spaces.Space[Any] = BOX, n_envs: int = 1, **kwargs: Any) -> None:
    buffer = ReplayBuffer(50, space, ACTIONS, n_envs=n_envs, **kwargs)
    with open(path, "wb") as file:
        pickle.dump(buffer, file)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"space": spaces.Box(-1, 1, (4,))}, r"observation_space is Box\(.*\(4,\).* model's is Box\(.*\(3,\)"),
        ({"optimize_memory_usage": True, "handle_timeout_termination": False}, "optimize_memory_usage=True"),
        ({"handle_timeout_termination": False}, "handle_timeout_termination=False"),
        (None, "not dict"),
    ],
)
def test_buffers_that_do_not_fit(tmp_path: Path, kwargs: dict[str, Any] | None, message: str) -> None:
    path = tmp_path / "buffer.pkl"
    if kwargs is None:
        path.write_bytes(pickle.dumps({"a": 1}))
    else:
        buffer_file(path, **kwargs)
    model = make().learn(20)
    buffer, dones = model.replay_buffer, model.replay_buffer.dones.copy()
    with pytest.raises(TypeError if kwargs is None else ValueError, match=message):
        model.load_replay_buffer(path)
    assert model.replay_buffer is buffer
    np.testing.assert_array_equal(buffer.dones, dones)
    model.learn(40, reset_num_timesteps=False)


def test_who_asks_for_it_learns_that_time_outs_end_everything(tmp_path: Path) -> None:
    model = make(replay_buffer_kwargs={"handle_timeout_termination": False}).learn(40)
    samples = model.sequences.spread_sequences(40, 1)
    assert samples.terminations.sum() == model.replay_buffer.dones[:40].sum() > 0
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.size() == 40


@pytest.mark.parametrize("algorithm", [SAC, TD3, PPO])
def test_models_of_other_algorithms(tmp_path: Path, algorithm: Any) -> None:
    algorithm("MlpPolicy", space_envs(), policy_kwargs={"net_arch": [4]}, device="cpu").save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"policy .*PWMPolicy"):
        PWM.load(tmp_path / "model")


@pytest.mark.parametrize("kwargs", [{"critic": "v"}, {"custom_objects": {"policy_kwargs": {"latent_dim": 8}}}])
def test_models_of_other_sizes(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"cannot load .*policy/\S*weight .* has the shape"):
        PWM.load(tmp_path / "model", **kwargs)


def test_parameters_of_other_shapes_change_nothing() -> None:
    model = make()
    parameters = model.get_parameters()
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    other = {name: value + 1 for name, value in before.items()}
    other[next(reversed(other))] = torch.zeros(3, 2, 1)
    with pytest.raises(ValueError, match=r"has the shape \(3, 2, 1\), not"):
        model.set_parameters(parameters | {"policy": other})
    assert same(before, dict(model.policy.state_dict()))


def test_missing_parameters_are_named() -> None:
    model = make()
    parameters = model.get_parameters()
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    del parameters["policy.model_optimizer"]
    with pytest.raises(ValueError, match=r"policy\.model_optimizer"):
        model.set_parameters(parameters)
    assert same(before, dict(model.policy.state_dict()))
