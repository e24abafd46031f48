import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from sb3_pwm.nn.scales import LATENT_STD_FLOOR, LatentScale, ReturnScale, RewardScale, Standardizer, mean_and_std


def test_standardizer_by_hand() -> None:
    standardizer = Standardizer((2,))
    standardizer.set_statistics(torch.tensor([[-1.0, 0.1], [3.0, -0.1]]))
    # (5 - 1) / 2 and (0.5 - 0) / 0.1
    assert_close(standardizer(torch.tensor([[5.0, 0.5]])), torch.tensor([[2.0, 5.0]]))


def test_standardizer_starts_as_the_identity_and_clips() -> None:
    x = torch.tensor([-1e9, -3.0, 0.0, 3.0, 1e9])
    assert_close(Standardizer(())(x), torch.tensor([-10.0, -3, 0, 3, 10]))


def test_a_constant_observation_is_harmless() -> None:
    standardizer = Standardizer((3,))
    # constant; constant but for rounding; computed anew from what else is there
    standardizer.set_statistics(torch.tensor([[4.0, 0.1 + 0.2, 1e-14], [4.0, 0.3, -1e-14], [4.0, 0.3, 0.0]]).double())
    assert_close(standardizer.std, torch.zeros(3).double())
    assert_close(standardizer(torch.tensor([4.0, 0.3, 0.0]).double()), torch.zeros(3))
    assert_close(standardizer(torch.tensor([9.0, 1.6, 99.0]).double()), torch.tensor([1.0, 1.0, 10.0]))  # 5 / (1 + 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rounding_of_a_large_constant_is_not_blown_up(dtype: Any) -> None:
    value = torch.tensor(1e4, dtype=dtype)
    step = torch.finfo(dtype).eps * 2**13  # between numbers of this size
    observations = torch.stack([value - step, value, value + step, value]).to(dtype)[:, None]
    standardizer = Standardizer((1,))
    standardizer.set_statistics(observations)
    assert standardizer(observations).abs().max() < 2e-3
    several = torch.stack([value - 20 * step, value + 20 * step]).to(dtype)[:, None]
    standardizer.set_statistics(several)
    assert_close(standardizer(several), torch.tensor([[-1.0], [1.0]]), rtol=0.05, atol=0)


def test_booleans_are_standardized() -> None:
    standardizer = Standardizer((1,))
    observations = torch.tensor([[True], [False]])
    standardizer.set_statistics(observations)
    assert_close(standardizer(observations), torch.tensor([[1.0], [-1.0]]))


def test_rounding_noise_beside_other_entries_is_constant() -> None:
    observations = torch.randn(500, 3).double() * torch.tensor([1.0, 1.0, 1e-14])
    assert (mean_and_std(observations)[1] > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("unit", [1e-30, 1e-5, 1e-3, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_observations_of_any_unit_are_standardized(shape: tuple[int, ...], unit: float) -> None:
    observations = unit * (5 + 3 * torch.randn(5_000, *shape).double())
    standardizer = Standardizer(shape)
    standardizer.set_statistics(observations)
    standardized = standardizer(observations)
    assert standardized.dtype == torch.float32
    assert_close(standardized.mean(0), torch.zeros(shape), atol=1e-4, rtol=0)
    assert_close(standardized.std(0), torch.ones(shape), atol=1e-3, rtol=0)


@pytest.mark.parametrize("offset", [5e7, -1.7e9])
def test_an_offset_leaves_all_differences(offset: float) -> None:
    observations = torch.randn(100, 2).double()
    plain, shifted = Standardizer((2,)), Standardizer((2,))
    plain.set_statistics(observations)
    shifted.set_statistics(observations + offset)
    assert_close(shifted(observations + offset), plain(observations), rtol=0, atol=1e-5)


def test_entries_of_very_different_units_are_all_standardized() -> None:
    units = torch.tensor([1e5, 1.0, 1e-5]).double()
    observations = torch.randn(5_000, 3) * units
    assert_close(mean_and_std(observations)[1] / units, torch.ones(3).double(), rtol=0.05, atol=0)


def test_statistics_of_earlier_files_mean_the_same() -> None:
    """They were float32, and 0.001 was added to each standard deviation."""
    standardizer = Standardizer((2,))
    standardizer.load_state_dict({"mean": torch.tensor([1.0, 4.0]), "std": torch.tensor([1.999, 0.0])})
    assert_close(standardizer(torch.tensor([5.0, 4.002])), torch.tensor([2.0, 2.0]), rtol=1e-3, atol=0)
    again = Standardizer((2,))
    again.load_state_dict(standardizer.state_dict())
    assert_close(again.std, standardizer.std)


@pytest.mark.parametrize(
    ("rewards", "scale"),
    [
        ((1.0, 3.0), 1.0),  # deviation 1 > 0.25 * sqrt(5)
        ((1.0, 1.0), 0.25),  # deviation 0, root mean square 1
        ((7.0, 9.0), 0.25 * math.sqrt(65)),  # deviation 1 < 0.25 * sqrt((49 + 81) / 2) = 2.02
        ((-2.0, 2.0), 2.0),
        ((1e-7, 3e-7), 1e-7),
        ((1e-18, 3e-18), 1.0),  # as good as 0
        ((0.0, 0.0), 1.0),
        ((5.0,), 1.25),
    ],
)
def test_reward_scale_by_hand(rewards: tuple[float, ...], scale: float) -> None:
    reward_scale = RewardScale()
    reward_scale.set_statistics(torch.tensor(rewards))
    assert_close(reward_scale.scale, torch.tensor(scale))
    assert_close(reward_scale(torch.tensor(rewards)), torch.tensor(rewards) / scale)


def test_rewards_of_zero_keep_the_scale_that_others_had() -> None:
    reward_scale = RewardScale()
    reward_scale.set_statistics(torch.tensor([0.0, 4.0]))
    reward_scale.set_statistics(torch.zeros(9))
    assert_close(reward_scale.scale, torch.tensor(2.0))


def test_a_reward_of_zero_stays_zero() -> None:
    reward_scale = RewardScale()
    reward_scale.set_statistics(torch.randn(100) + 3)
    assert reward_scale(torch.zeros(2, 3)).eq(0).all()


def test_latent_scale_by_hand() -> None:
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
def test_latents_that_are_not_finite_change_nothing(bad: float) -> None:
    scale = LatentScale(2)
    poisoned = torch.tensor([[0.1, bad], [0.2, 0.5]])
    scale.update(poisoned)
    assert_close((scale.mean, scale.std), (torch.zeros(2), torch.ones(2)))
    assert not scale.initialized
    scale.update(torch.tensor([[0.1, 0.5], [0.3, 0.7]]))
    known = scale.mean.clone(), scale.std.clone()
    scale.update(poisoned)
    assert_close((scale.mean, scale.std), known)


def test_return_scale_by_hand() -> None:
    scale = ReturnScale(decay=0.9)
    scale.update(torch.tensor([1.0, 5.0]))
    assert_close(scale.variance, torch.tensor(4.0))  # the first update replaces the initial value
    scale.update(torch.tensor([1.0, 3.0]))
    assert_close(scale.variance, torch.tensor(0.9 * 4 + 0.1 * 1))
    assert_close(scale.scale, torch.tensor(math.sqrt(3.7 + 1e-5)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_returns_that_are_not_finite_change_nothing(bad: float) -> None:
    scale = ReturnScale(decay=0.9)
    scale.update(torch.tensor([bad, 1.0]))
    assert scale.scale.isfinite()
    scale.update(torch.tensor([1.0, 5.0]))
    scale.update(torch.tensor([bad, 1.0]))
    assert_close(scale.variance, torch.tensor(4.0))


def test_the_scale_of_equal_returns_is_positive() -> None:
    scale = ReturnScale()
    scale.update(torch.full((4,), 3.0))
    assert 0 < scale.scale < 0.01


def test_return_scale_needs_no_gradient() -> None:
    scale = ReturnScale()
    scale.update(torch.tensor([1.0, 2.0], requires_grad=True))
    assert not scale.variance.requires_grad


@pytest.mark.parametrize("make", [lambda: Standardizer((2,)), lambda: LatentScale(2), RewardScale, ReturnScale])
def test_statistics_travel_with_the_state_dict(make: Callable[[], Any]) -> None:
    module, other = make(), make()
    if isinstance(module, Standardizer):
        module.set_statistics(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
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
