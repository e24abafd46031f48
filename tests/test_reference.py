"""The fast updates against the plain ones, in float64, where rounding cannot hide a difference."""

from functools import partial
from typing import Any

import pytest
import torch
from helpers import make, truth_envs
from torch.testing import assert_close

from sb3_pwm import PWM
from sb3_pwm.nn.layers import SimNorm
from sb3_pwm.speed.reference import ReferenceLearner, neighbouring_simnorm
from sb3_pwm.type_aliases import SequenceSamples


def strided_simnorm(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """The package's order of features, by way of the plain form."""
    neighbours = x.unflatten(-1, (group_size, -1)).mT.flatten(-2)
    return neighbouring_simnorm(neighbours, group_size).unflatten(-1, (-1, group_size)).mT.flatten(-2)


def test_simnorm() -> None:
    x = torch.randn(3, 4, 24)
    assert_close(strided_simnorm(x, 8), SimNorm(8)(x))


def to_float64(model: PWM) -> PWM:
    model.policy.double()
    model.policy.features.register_forward_hook(lambda module, inputs, features: features.double())
    for optimizer in model.policy.optimizers.values():
        for state in optimizer.state.values():
            state.update({name: value.double() for name, value in state.items() if name != "step"})
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_steps": 4, "horizon": 0},
        {"n_steps": (1, 3, 5)},
        {"actor_batch_size": 130},
        {"actor_batch_size": None, "horizon": 3},
        {"infer_noise": False},
        {"critic": "v", "horizon": 5, "td_lambda": 0.9, "pessimism": 0.2},
        {"ent_coef": 0.1, "termination_coef": 0.0, "critic_updates": 7, "pessimism": 0.5},
        {"target_entropy": -3.0, "policy_kwargs": {"reward_bins": 11, "residual_dynamics": False, "n_critics": 2}},
    ],
)
def test_every_update_is_that_of_the_reference(settings: dict[str, Any]) -> None:
    settings = {
        "learning_starts": 60,
        "batch_size": 40,
        "sequence_length": 5,
        "critic_batch_size": 100,
    } | settings
    # Episodes of up to seven steps, some of which terminate: most windows are masked somewhere.
    model = to_float64(make(**settings).learn(100))
    reference = ReferenceLearner(model, strided_simnorm)
    start = {name: value.clone() for name, value in model.policy.state_dict().items()}
    samples = model._sample(model.batch_size)
    assert 0 < samples.mask.mean() < 1
    assert samples.terminations.sum() > 0
    samples, *transitions = (
        SequenceSamples(*(part.double() for part in each)) for each in (samples, *model._critic_samples())
    )
    for learner in (model._learner, reference):
        torch.manual_seed(0)
        for _ in range(3):
            learner.update_policy(samples, tuple(transitions), learner.update_model(samples))
    assert model.n_skipped_updates == 0
    expected = reference.policy.state_dict()
    for name, value in model.policy.state_dict().items():
        assert_close(value, expected[name], rtol=1e-7, atol=1e-9, msg=partial("{}: {}".format, name))
    for part in (
        "world_model.encoder",
        "world_model.dynamics",
        "world_model.reward",
        "actor.",
        "critics.",
        "critics_t",
    ):
        assert any(name.startswith(part) and not torch.equal(value, start[name]) for name, value in expected.items())


def test_the_reference_leaves_the_model_alone() -> None:
    model = make(truth_envs(1)).learn(60)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    reference = ReferenceLearner(model)
    samples = model._sample(model.batch_size)
    reference.update_policy(samples, model._critic_samples(), reference.update_model(samples))
    assert set(reference.losses) == {"model", "actor", "critic", "entropy"}
    assert all(torch.equal(value, before[name]) for name, value in model.policy.state_dict().items())
