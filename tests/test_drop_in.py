"""What scripts written for SAC find in PWM: its arguments, its networks, its numbers."""

import copy
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import MIXED, make, make_by_fours, same, space_envs
from stable_baselines3 import SAC
from test_multitask import model_of
from torch.testing import assert_close

from sb3_pwm import PWM
from sb3_pwm.datasets import from_replay_buffer
from sb3_pwm.networks import MIN_ENT_COEF
from sb3_pwm.policies import PWMPolicy
from sb3_pwm.sac_names import SAC_ARGUMENTS, SAC_POLICY_ARGUMENTS

DEFAULTS: dict[str, Any] = {name: values[0] for name, (values, _) in SAC_ARGUMENTS.items()}
POLICY_DEFAULTS = {name: values[0] for name, (values, _) in SAC_POLICY_ARGUMENTS.items()}
OTHERS = {
    "optimize_memory_usage": (True, "smaller buffer_size"),
    "target_update_interval": (2, "smaller tau"),
    "use_sde": (True, "ent_coef, target_entropy or action_noise"),
    "sde_sample_freq": (4, "gSDE"),
    "use_sde_at_warmup": (True, "gSDE"),
}
POLICY_OTHERS = {"use_sde": True, "log_std_init": -2.0, "use_expln": True, "clip_mean": 0.0}


def taken(kind: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults of a constructor's arguments."""
    return {name: each.default for name, each in inspect.signature(kind).parameters.items()}


# --- arguments ---


def test_the_tables_are_what_sac_has_and_pwm_has_not() -> None:
    sac = taken(SAC)
    assert DEFAULTS.keys() == sac.keys() - taken(PWM).keys()
    assert {name: sac[name] for name in DEFAULTS} == DEFAULTS
    sac = taken(SAC.policy_aliases["MlpPolicy"])
    assert POLICY_DEFAULTS.keys() == sac.keys() - taken(PWMPolicy).keys()
    assert {name: sac[name] for name in POLICY_DEFAULTS} == POLICY_DEFAULTS


def test_defaults_of_sac_change_nothing(tmp_path: Path) -> None:
    model = make(**DEFAULTS, policy_kwargs=POLICY_DEFAULTS).learn(40)
    plain = make().learn(40)
    assert same(model.policy.state_dict(), plain.policy.state_dict())
    assert vars(model).keys() == vars(plain).keys()
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=space_envs(), **DEFAULTS, policy_kwargs=model.policy_kwargs)
    assert same(loaded.policy.state_dict(), plain.policy.state_dict())
    buffer: Any = plain.replay_buffer
    data = from_replay_buffer(buffer)
    assert PWM.from_dataset(data, batch_size=8, **DEFAULTS, policy_kwargs=POLICY_DEFAULTS).replay_buffer is not None
    assert make(policy_kwargs={"share_features_extractor": True}).policy_kwargs["share_features_extractor"]


def test_defaults_of_sac_in_extraction() -> None:
    model = model_of(40)
    extracted = model.extract("small", 1, **DEFAULTS, policy_kwargs=POLICY_DEFAULTS | {"net_arch": {"pi": [8]}})
    assert extracted._n_updates == 1


@pytest.mark.parametrize(("name", "value", "advice"), [(name, *other) for name, other in OTHERS.items()])
def test_other_values_are_refused_in_one_sentence(tmp_path: Path, name: str, value: Any, advice: str) -> None:
    message = rf"{name}={value!r}: .*{advice}.* leave {name} out; allowed: {DEFAULTS[name]!r}$"
    data: Any = make().replay_buffer
    with pytest.raises(ValueError, match=message):
        make(**{name: value})
    with pytest.raises(ValueError, match=message):
        PWM.from_dataset(data, **{name: value})
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        PWM.load(tmp_path / "model", **{name: value})


@pytest.mark.parametrize(("name", "value"), POLICY_OTHERS.items())
def test_other_values_in_policy_kwargs_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}={value!r}: .*gSDE.*; allowed: {POLICY_DEFAULTS[name]!r}$"):
        make(policy_kwargs={name: value})


def test_a_subclass_may_take_an_argument_of_sac(tmp_path: Path) -> None:
    class Policy(PWMPolicy):
        def __init__(self, *args: Any, log_std_init: float = 0.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seen = log_std_init

    class Algorithm(PWM):
        def __init__(self, *args: Any, target_update_interval: int = 1, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.target_update_interval = target_update_interval

    model = make(policy=Policy, policy_kwargs={"log_std_init": -1.0})
    assert model.policy.seen == -1
    own = Algorithm("MlpPolicy", space_envs(), target_update_interval=5, use_sde=False)
    own.save(tmp_path / "model")
    assert Algorithm.load(tmp_path / "model").target_update_interval == 5
    assert Algorithm.load(tmp_path / "model", target_update_interval=6, gamma=0.9).target_update_interval == 6


@pytest.mark.parametrize(("ent_coef", "start"), [("auto", 0.2), ("auto_0.1", 0.1), ("auto_3", 3.0)])
def test_the_entropy_coefficient_starts_from_a_number(tmp_path: Path, ent_coef: str, start: float) -> None:
    model = make(ent_coef=ent_coef, learning_rate=1e-2)
    assert math.exp(model.log_ent_coef.item()) == pytest.approx(start)
    model.learn(40)
    learnt = model.log_ent_coef.item()
    assert learnt != pytest.approx(math.log(start))
    model.save(tmp_path / "model")
    assert PWM.load(tmp_path / "model").log_ent_coef.item() == learnt
    anew = PWM.load(tmp_path / "model", ent_coef="auto_7")
    assert math.exp(anew.log_ent_coef.item()) == pytest.approx(7)
    assert_close(model_of(ent_coef=ent_coef).log_ent_coef.exp(), torch.full((2,), start))


def test_the_entropy_coefficient_can_come_back() -> None:
    """However long entropy was above its target."""
    model = make(target_entropy=-100.0)
    model.learn(40)
    assert model.log_ent_coef is not None
    with torch.no_grad():
        model.log_ent_coef.fill_(math.log(1e-19))  # reached on LunarLander-v3 after 60,000 steps without a bound
    model.learn(10)
    assert math.exp(model.log_ent_coef.item()) == pytest.approx(MIN_ENT_COEF)
    model.target_entropy = 100.0
    model.learn(10)
    assert math.exp(model.log_ent_coef.item()) > MIN_ENT_COEF


def test_targets_that_never_move() -> None:
    model = make(tau=0.0)
    before = [parameter.clone() for parameter in model.critic_target.parameters()]
    assert_close(list(model.learn(40).critic_target.parameters()), before, rtol=0, atol=0)


# --- networks ---

CASES = {
    "q": lambda: make(),
    "v": lambda: make(critic="v"),
    "mixed": lambda: make(space_envs(2, MIXED), "MultiInputPolicy"),
    "tasks": lambda: model_of(),
}


@pytest.fixture(params=CASES)
def model_and_batch(request: pytest.FixtureRequest) -> tuple[PWM, Any, Any]:
    model = CASES[request.param]().learn(40)
    observation: Any = model.env.reset()
    return model, model.policy.obs_to_tensor(observation)[0], observation


def test_networks_take_observations_as_those_of_sac(model_and_batch: Any) -> None:
    model, batch, observation = model_and_batch
    actions = model.actor(batch, deterministic=True)
    assert_close(actions, model.policy(batch, deterministic=True))
    assert actions.shape == (model.n_envs, *model.action_space.shape)
    drawn, log_probs = model.policy.actor.action_log_prob(batch)
    assert (drawn.shape, log_probs.shape) == (actions.shape, (model.n_envs,))
    predicted = model.actor.predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(predicted, model.predict(observation, deterministic=True)[0])
    for critics in (model.critic, model.critic_target, model.policy.critic, model.policy.critic_target):
        values = critics(batch, actions)
        assert [value.shape for value in values] == [(model.n_envs, 1)] * 2
        assert_close(critics.q1_forward(batch, actions), values[0])
    if model.critic_kind == "v":
        assert_close(torch.cat(model.critic(batch, actions), 1).mean(1), model.policy.predict_values(batch))


def test_critics_have_the_units_of_rewards() -> None:
    model = make().learn(40)
    model.policy.reward_scale.scale.fill_(7.0)
    batch, actions = torch.rand(5, 3), torch.rand(5, 2)
    latents = model.policy.world_model.encode(batch)
    assert_close(torch.cat(model.critic(batch, actions), 1).T, 7 * model.policy.critics(latents, actions))
    assert_close(torch.cat(model.critic_target(batch, actions), 1).T, 7 * model.policy.critics_target(latents, actions))


def test_networks_have_their_own_parameters_and_optimizers() -> None:
    model = make().learn(40)
    policy = model.policy
    assert [id(p) for p in model.critic.parameters()] == [id(p) for p in policy.critics.parameters()]
    assert [id(p) for p in model.critic_target.parameters()] == [id(p) for p in policy.critics_target.parameters()]
    assert sum(p.numel() for p in model.actor.parameters()) == sum(p.numel() for p in policy.actor.net.parameters())
    assert model.actor.optimizer is policy.actor_optimizer
    assert model.critic.optimizer is policy.critic_optimizer
    assert model.ent_coef_optimizer is policy.entropy_optimizer
    assert model.actor.features_extractor is model.critic.features_extractor is policy.features.extractor
    for networks, parts in ((model.actor, model.actor), (model.critic, policy.critics)):
        for mode in (False, True):
            networks.set_training_mode(mode)
            assert parts.training == mode
    fixed = make(ent_coef=0.1)
    assert fixed.log_ent_coef is None
    assert fixed.ent_coef_optimizer is None


def test_names_of_sac_add_nothing_to_files(tmp_path: Path) -> None:
    model = make().learn(40)
    first_words = {name.split(".")[0] for name in model.policy.state_dict()}
    assert not first_words & {"critic", "critic_target", "policy", "optimizer", "features_extractor"}
    assert not [name for name in model.policy.actor.state_dict() if not name.startswith(("net", "latent_scale"))]
    copied = copy.deepcopy(model.policy)
    assert copied.actor.policy is copied
    model.actor.save(tmp_path / "actor.pkl")
    loaded = type(model.actor).load(tmp_path / "actor.pkl")
    observation = np.zeros(3, np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize("given", [None, "q"])
def test_files_that_have_the_critics_kind_under_its_old_name(tmp_path: Path, given: str | None) -> None:
    model = make(critic="v")
    vars(model)["critic"] = vars(model).pop("critic_kind")
    model.save(tmp_path / "model")
    if given is None:
        loaded = PWM.load(tmp_path / "model", env=space_envs())
        assert loaded.critic_kind == "v"
        assert same(loaded.policy.state_dict(), model.policy.state_dict())
        loaded.learn(40).save(tmp_path / "again")
        assert PWM.load(tmp_path / "again").critic_kind == "v"
    else:
        with pytest.raises(ValueError, match=r"critics.* has the shape"):
            PWM.load(tmp_path / "model", critic=given)


# --- numbers ---


@pytest.mark.parametrize("case", CASES)
def test_state_dicts_hold_floats_alone(case: Any) -> None:
    """Scripts that average or compare policies treat every entry as a float."""
    state = CASES[case]().policy.state_dict()
    assert {name: value.dtype for name, value in state.items() if not value.is_floating_point()} == {}


def test_files_with_integers_and_booleans_load(tmp_path: Path) -> None:
    """Those of earlier versions."""
    model = make_by_fours().learn(40)
    old = model.get_parameters()
    state = old["policy"]
    state["statistics_size"] = state["statistics_size"].long()
    for name in [name for name in state if name.endswith("initialized")]:
        state[name] = state[name].bool()
    fresh = make_by_fours()
    fresh.set_parameters(old)
    assert same(fresh.policy.state_dict(), model.policy.state_dict())
    assert fresh.policy.statistics_size == 40
    assert fresh.policy.latent_scale.initialized
    assert fresh.policy.return_scale.initialized


def test_a_gymnasium_environment_and_sacs_own_defaults() -> None:
    """The whole of SAC's signature, by name, but for what PWM is given as a schedule."""
    given: dict[str, Any] = {name: value for name, value in taken(SAC).items() if name not in ("policy", "env")}
    model = PWM("MlpPolicy", gym.make("Pendulum-v1"), **given | {"buffer_size": 500, "learning_starts": 20})
    model.pretrain_steps = 2
    assert model.learn(24)._n_updates == 5
