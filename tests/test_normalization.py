import math

import pytest
import torch
from torch.testing import assert_close

from sb3_pwm.nn.scales import LATENT_STD_FLOOR, LatentScale, ReturnScale, RewardScale, Standardizer


def test_standardizer_by_hand():
    standardizer = Standardizer((2,))
    standardizer.set_statistics(torch.tensor([1.0, 0.0]), torch.tensor([1.999, 0.099]))
    # (5 - 1) / (1.999 + 0.001) and (0.5 - 0) / (0.099 + 0.001)
    assert_close(standardizer(torch.tensor([[5.0, 0.5]])), torch.tensor([[2.0, 5.0]]))


def test_standardizer_starts_as_nearly_the_identity_and_clips():
    x = torch.tensor([-1e9, -3.0, 0.0, 3.0, 1e9])
    assert_close(Standardizer(())(x), torch.tensor([-10, -3 / 1.001, 0, 3 / 1.001, 10]))


def test_a_constant_observation_stays_finite():
    standardizer = Standardizer(())
    standardizer.set_statistics(torch.tensor(4.0), torch.tensor(0.0))
    assert_close(standardizer(torch.tensor([4.0, 5.0])), torch.tensor([0.0, 10.0]))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_standardized_observations_have_mean_0_and_deviation_1(shape):
    observations = 5 + 3 * torch.randn(5_000, *shape)
    standardizer = Standardizer(shape)
    standardizer.set_statistics(observations.mean(0), observations.std(0))
    standardized = standardizer(observations)
    assert_close(standardized.mean(0), torch.zeros(shape), atol=1e-4, rtol=0)
    assert_close(standardized.std(0), torch.ones(shape), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("rewards", "scale"),
    [
        ((1.0, 3.0), 1.0),  # deviation 1 > 0.25 * sqrt(5)
        ((1.0, 1.0), 0.25),  # deviation 0, root mean square 1
        ((7.0, 9.0), 0.25 * math.sqrt(65)),  # deviation 1 < 0.25 * sqrt((49 + 81) / 2) = 2.02
        ((-2.0, 2.0), 2.0),
        ((0.0, 0.0), 1.0),
        ((5.0,), 1.25),
    ],
)
def test_reward_scale_by_hand(rewards, scale):
    reward_scale = RewardScale()
    reward_scale.set_statistics(torch.tensor(rewards))
    assert_close(reward_scale.scale, torch.tensor(scale))
    assert_close(reward_scale(torch.tensor(rewards)), torch.tensor(rewards) / scale)


def test_a_reward_of_zero_stays_zero():
    reward_scale = RewardScale()
    reward_scale.set_statistics(torch.randn(100) + 3)
    assert reward_scale(torch.zeros(2, 3)).eq(0).all()


def test_latent_scale_by_hand():
    scale = LatentScale(2, 1, decay=0.9)
    x = torch.tensor([[0.3, 0.5, -1.0]])
    assert_close(scale(x), x)  # the identity at first
    scale.update(torch.tensor([[[0.1, 0.5]], [[0.3, 0.5]]]))
    assert_close(scale.mean, torch.tensor([0.2, 0.5, 0.0]))  # the first update replaces the initial values
    assert_close(scale.std, torch.tensor([0.1, LATENT_STD_FLOOR, 1.0]))
    # (0.3 - 0.2) / 0.1; nothing; an action as it is
    assert_close(scale(x), torch.tensor([[1.0, 0.0, -1.0]]))
    assert_close(scale(x[:, :2]), torch.tensor([[1.0, 0.0]]))
    assert_close(scale(torch.tensor([[1.5, 0.0]])), torch.tensor([[10.0, -10.0]]))
    scale.update(torch.tensor([[0.2, 0.1], [0.8, 0.5]]))
    assert_close(scale.mean, torch.tensor([0.9 * 0.2 + 0.1 * 0.5, 0.9 * 0.5 + 0.1 * 0.3, 0.0]))
    assert_close(scale.std, torch.tensor([0.9 * 0.1 + 0.1 * 0.3, 0.9 * LATENT_STD_FLOOR + 0.1 * 0.2, 1.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_not_finite_change_nothing(bad):
    scale = LatentScale(2)
    poisoned = torch.tensor([[0.1, bad], [0.2, 0.5]])
    scale.update(poisoned)
    assert_close((scale.mean, scale.std), (torch.zeros(2), torch.ones(2)))
    assert not scale.initialized
    scale.update(torch.tensor([[0.1, 0.5], [0.3, 0.7]]))
    known = scale.mean.clone(), scale.std.clone()
    scale.update(poisoned)
    assert_close((scale.mean, scale.std), known)


def test_return_scale_by_hand():
    scale = ReturnScale(decay=0.9)
    scale.update(torch.tensor([1.0, 5.0]))
    assert_close(scale.variance, torch.tensor(4.0))  # the first update replaces the initial value
    scale.update(torch.tensor([1.0, 3.0]))
    assert_close(scale.variance, torch.tensor(0.9 * 4 + 0.1 * 1))
    assert_close(scale.scale, torch.tensor(math.sqrt(3.7 + 1e-5)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_returns_that_are_not_finite_change_nothing(bad):
    scale = ReturnScale(decay=0.9)
    scale.update(torch.tensor([bad, 1.0]))
    assert scale.scale.isfinite()
    scale.update(torch.tensor([1.0, 5.0]))
    scale.update(torch.tensor([bad, 1.0]))
    assert_close(scale.variance, torch.tensor(4.0))


def test_the_scale_of_equal_returns_is_positive():
    scale = ReturnScale()
    scale.update(torch.full((4,), 3.0))
    assert 0 < scale.scale < 0.01


def test_return_scale_needs_no_gradient():
    scale = ReturnScale()
    scale.update(torch.tensor([1.0, 2.0], requires_grad=True))
    assert not scale.variance.requires_grad


@pytest.mark.parametrize("make", [lambda: Standardizer((2,)), lambda: LatentScale(2), RewardScale, ReturnScale])
def test_statistics_travel_with_the_state_dict(make):
    module, other = make(), make()
    if isinstance(module, Standardizer):
        module.set_statistics(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    elif isinstance(module, RewardScale):
        module.set_statistics(torch.tensor([1.0, 5.0]))
    elif isinstance(module, LatentScale):
        module.update(torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
    else:
        module.update(torch.tensor([1.0, 5.0]))
    assert any((a != b).any() for a, b in zip(module.buffers(), other.buffers(), strict=True))
    other.load_state_dict(module.state_dict())
    assert_close(dict(other.named_buffers()), dict(module.named_buffers()))
    assert not list(module.parameters())
