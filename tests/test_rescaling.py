"""What networks compute stays the same when the scales of observations and rewards are taken anew."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import SMALL, SMALL_POLICY, TruthEnv
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_pwm import PWM
from sb3_pwm.nn.rescaling import change_of_units, put_out, take_inputs
from sb3_pwm.nn.scales import RewardScale
from sb3_pwm.policies import MultiInputPolicy
from sb3_pwm.replay import statistics


def test_change_of_units_by_hand() -> None:
    old = torch.tensor([1.0, 0, 0, 5]), torch.tensor([2.0, 1, 1, 1])
    new = torch.tensor([3.0, 0, 0, 50]), torch.tensor([4.0, 20, 0.05, 1])
    factor, shift = change_of_units(old, new)
    assert factor.tolist() == [2, 1, 1, 1]  # 20 times and a twentieth, and 45 units away: not followed
    assert shift.tolist() == [1, 0, 0, 0]
    value = 7.0
    assert (value - 1) / 2 == factor[0] * (value - 3) / 4 + shift[0]


def test_a_layer_takes_other_inputs_and_puts_out_other_units() -> None:
    layer = nn.Linear(3, 2)
    x, factor, shift = torch.randn(5, 3), torch.tensor([2.0, 0.5]), torch.tensor([1.0, -3])
    old = layer(torch.cat([factor * x[:, :2] + shift, x[:, 2:]], -1))
    take_inputs(layer, factor, shift)  # the third input stays
    torch.testing.assert_close(layer(x), old)
    put_out(layer, factor, shift)
    torch.testing.assert_close(layer(x), factor * old + shift)


def answers(model: PWM, observations: Any) -> dict[str, torch.Tensor]:
    """What the networks say of observations, in the environment's units."""
    policy: Any = model.policy
    scale, world_model = policy.reward_scale.scale, policy.world_model
    with torch.no_grad():
        latents = world_model.encode(observations)
        actions = policy.actor.mode(latents)
        found = {"latents": latents, "actions": actions, "return scale": policy.return_scale.variance.sqrt() * scale}
        found["entropy"] = policy.entropy_coefficient.log_ent_coef.exp() * scale
        if policy.q_critic:
            found["values"] = policy.critics(latents, actions) * scale
            found["targets"] = policy.critics_target(latents, actions) * scale
            found["behaviour"] = policy.behaviour_value(latents) * scale
        else:
            found["values"] = policy.critics(latents) * scale
        if not policy.reward_bins:
            found["rewards"] = world_model.rewards(latents, actions) * scale
        mean, unit = policy.features.means_and_units()
        found["observations"] = world_model.observation(latents) * unit + mean
    return found


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "v": {"critic": "v"},
    "bins": {"policy_kwargs": {"reward_bins": 11}},
    "dict": {"policy": "MultiInputPolicy"},
}


@pytest.mark.parametrize("case", CASES)
def test_scales_move_and_answers_stay(case: str) -> None:
    kwargs: dict[str, Any] = {"policy": "MlpPolicy", "train_freq": 4} | CASES[case]
    kwargs["policy_kwargs"] = SMALL_POLICY | kwargs.get("policy_kwargs", {})
    model = PWM(kwargs.pop("policy"), TruthEnv(as_dict=case == "dict"), **(SMALL | kwargs)).learn(76)
    policy, buffer = model.policy, model.sequences
    assert policy.statistics_size == 40
    observations = buffer.statistics_sample()
    before, scale = answers(model, observations), policy.reward_scale.scale.clone()
    means = policy.features.means_and_units()[0].clone()
    assert statistics.take_scales(policy, buffer, None, weigh_observations=False, same_units=True)
    assert policy.statistics_size == 76
    assert (policy.features.means_and_units()[0] - means).abs().max() > 10
    assert abs(policy.reward_scale.scale / scale - 1) > 0.1
    for name, values in answers(model, observations).items():
        torch.testing.assert_close(values, before[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_first_reward_changes_no_network() -> None:
    """While all rewards were 0 their scale was a placeholder, and nothing was learnt in units of it."""
    model = PWM("MlpPolicy", TruthEnv(), policy_kwargs=SMALL_POLICY, **(SMALL | {"train_freq": 4}))
    model.learn(40)
    policy, rewards = model.policy, model.sequences.rewards.copy()
    model.sequences.rewards[:] = 0
    policy.reward_scale = RewardScale()
    policy.reward_scale.set_statistics(model.sequences.all_rewards(None))
    assert not policy.reward_scale.is_known
    assert policy.reward_scale.scale == 1
    model.sequences.rewards[:] = 1e-3 * rewards
    before = answers(model, model.sequences.statistics_sample())
    assert statistics.take_scales(policy, model.sequences, None, weigh_observations=False, same_units=True)
    scale = policy.reward_scale.scale
    assert policy.reward_scale.is_known
    assert scale < 0.1
    for name, values in answers(model, model.sequences.statistics_sample()).items():
        unit = scale if name in ("return scale", "entropy", "values", "targets", "behaviour", "rewards") else 1.0
        torch.testing.assert_close(values / unit, before[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_measured_scale_is_not_taken_for_the_placeholder() -> None:
    scale = RewardScale()
    scale.set_statistics(torch.tensor([1.0, -1.0]))
    assert scale.is_known
    assert abs(scale.scale - 1) < 2e-7


def test_learning_keeps_answers_and_a_new_normalizer_does_not() -> None:
    """Behind another ``VecNormalize`` the same numbers mean something else."""
    seen: list[bool] = []

    def watch(*args: Any, same_units: bool, **kwargs: Any) -> bool:
        seen.append(same_units)
        return take(*args, same_units=same_units, **kwargs)

    take = statistics.take_scales
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "take_scales", watch)
        model = PWM("MlpPolicy", TruthEnv(), policy_kwargs=SMALL_POLICY, **(SMALL | {"train_freq": 4})).learn(40)
        assert seen == [False, True]
        env: Any = VecNormalize(model.get_env())  # type: ignore[arg-type]
        env.obs_rms.count = env.ret_rms.count = 1_000
        model.set_env(env)
        model.learn(8, reset_num_timesteps=False)
        assert seen[2:] == [False]


def test_other_extractors_are_left_alone() -> None:
    """Where a network stands in front of the encoder, nobody knows which feature is which entry."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 64, 64), np.uint8), "vector": spaces.Box(-1, 1, (2,))})
    policy = MultiInputPolicy(space, spaces.Box(-1, 1, (1,)), lambda _: 1e-3)
    assert policy.features.means_and_units() is None
