from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sb3_pwm.returns import continuation_weights, imagined_returns, lambda_returns, n_step_returns

probabilities = st.floats(0, 1)


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(H, B) rewards, (H, B) probabilities and (H, B) values, in double precision."""
    horizon, batch = draw(st.integers(1, 6)), draw(st.integers(1, 3))

    def matrix(elements: st.SearchStrategy[float]) -> torch.Tensor:
        rows = st.lists(elements, min_size=batch, max_size=batch)
        return torch.tensor(draw(st.lists(rows, min_size=horizon, max_size=horizon)), dtype=torch.float64)

    return matrix(st.floats(-10, 10)), matrix(probabilities), matrix(st.floats(-10, 10))


def column(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def n_step_return(
    t: int, n: int, rewards: torch.Tensor, discounts: torch.Tensor, next_values: torch.Tensor
) -> torch.Tensor:
    total: Any = 0.0
    product: Any = 1.0
    for k in range(t, t + n):
        total = total + product * rewards[k]
        product = product * discounts[k]
    return total + product * next_values[t + n - 1]


def mixture(
    rewards: torch.Tensor, discounts: torch.Tensor, next_values: torch.Tensor, td_lambda: float
) -> torch.Tensor:
    """Sutton and Barto, eq. 12.3: the weighted mean of all n-step returns."""
    horizon = len(rewards)
    targets: list[Any] = []
    for t in range(horizon):
        longest = horizon - t
        returns = [n_step_return(t, n, rewards, discounts, next_values) for n in range(1, longest + 1)]
        shares = [(1 - td_lambda) * td_lambda ** (n - 1) for n in range(1, longest)] + [td_lambda ** (longest - 1)]
        targets.append(sum(share * value for share, value in zip(shares, returns, strict=True)))
    return torch.stack(targets)


def test_continuation_weights_by_hand() -> None:
    # 1, then 1 * 0.5, then 0.5 * 0.2, then 0.1 * 0
    assert_close(continuation_weights(column(0.5, 0.2, 0.0)), column(1, 0.5, 0.1, 0))


def test_imagined_returns_by_hand() -> None:
    # 1 * 1 * 1  +  0.5 * 0.5 * 2  +  0.5^2 * 0.25 * 8
    result = imagined_returns(column(1, 2), column(1, 0.5, 0.25), column(8)[0], 0.5)
    assert_close(result, column(1 + 0.5 + 0.5)[0])


def test_a_rollout_that_ends_on_its_last_step_keeps_that_reward_and_loses_the_value() -> None:
    weights = continuation_weights(column(1, 0))
    assert_close(imagined_returns(column(1, 10), weights, column(100)[0], 1.0), column(11)[0])
    assert_close(lambda_returns(column(1, 10), column(1, 0), column(50, 100), 1.0), column(11, 10))


def test_the_value_of_the_last_state_is_discounted_once_per_step() -> None:
    # the reference code discounts it once more
    assert_close(imagined_returns(column(0, 0, 0), torch.ones(4, 1).double(), column(8)[0], 0.5), column(1)[0])


def test_n_step_returns_by_hand() -> None:
    """Three windows: whole, ended by a termination in the second step, cut by a time-out after the first."""
    rewards = torch.tensor([[1.0, 1, 1], [2, 2, 7], [4, 7, 7]])
    discounts = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0.5]])
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0]])
    expected = torch.tensor([1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 8)), 1 + 0.5 * 2, 1 + 0.5 * 8])
    assert_close(n_step_returns(rewards, discounts, torch.tensor([8.0, 8, 8]), mask), expected)
    assert_close(n_step_returns(rewards[:1], discounts[:1], torch.tensor([8.0, 8, 8]), mask[:1]), torch.full((3,), 5.0))


def test_lambda_returns_by_hand() -> None:
    # G_2 = 3 + 0.5 * (0.5 * 8 + 0.5 * 8)    = 7
    # G_1 = 2 + 0.5 * (0.5 * 6 + 0.5 * 7)    = 5.25
    # G_0 = 1 + 0.5 * (0.5 * 4 + 0.5 * 5.25) = 3.3125
    result = lambda_returns(column(1, 2, 3), column(0.5, 0.5, 0.5), column(4, 6, 8), 0.5)
    assert_close(result, column(3.3125, 5.25, 7))


@pytest.mark.parametrize(
    ("td_lambda", "expected"),
    [
        (0.0, (1 + 0.5 * 4, 2 + 0.5 * 6, 3 + 0.5 * 8)),
        (1.0, (1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 8)), 2 + 0.5 * (3 + 0.5 * 8), 3 + 0.5 * 8)),
    ],
    ids=["one-step targets", "all rewards and the last value"],
)
def test_lambda_returns_at_the_extremes(td_lambda: float, expected: tuple[float, ...]) -> None:
    result = lambda_returns(column(1, 2, 3), column(0.5, 0.5, 0.5), column(4, 6, 8), td_lambda)
    assert_close(result, column(*expected))


@given(rollouts(), probabilities)
def test_lambda_returns_are_the_mixture_of_n_step_returns(
    rollout: tuple[torch.Tensor, torch.Tensor, torch.Tensor], td_lambda: float
) -> None:
    assert_close(lambda_returns(*rollout, td_lambda), mixture(*rollout, td_lambda))


@given(rollouts(), probabilities)
def test_imagined_returns_are_the_brute_force_sum(
    rollout: tuple[torch.Tensor, torch.Tensor, torch.Tensor], gamma: float
) -> None:
    rewards, continuations, next_values = rollout
    weights = continuation_weights(continuations)
    result = imagined_returns(rewards, weights, next_values[-1], gamma)
    running: Any = 1.0
    expected: Any = 0.0
    for t in range(len(rewards)):
        expected = expected + gamma**t * running * rewards[t]
        running = running * continuations[t]
    assert_close(result, expected + gamma ** len(rewards) * running * next_values[-1])
    # the same sum, by the recursion
    assert_close(result, lambda_returns(rewards, gamma * continuations, next_values, 1.0)[0])


@given(rollouts())
def test_continuation_weights_never_rise(rollout: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    _, continuations, _ = rollout
    weights = continuation_weights(continuations)
    assert weights.shape == (len(continuations) + 1, continuations.shape[1])
    assert (weights[0] == 1).all()
    assert (weights.diff(dim=0) <= 0).all()
    assert (weights >= 0).all()


@given(st.floats(0, 0.99), probabilities, st.integers(1, 6))
def test_the_true_value_of_a_constant_reward_is_a_fixed_point(gamma: float, td_lambda: float, horizon: int) -> None:
    ones = torch.ones(horizon, 1, dtype=torch.float64)
    value = ones / (1 - gamma)
    assert_close(lambda_returns(ones, gamma * ones, value, td_lambda), value)


@given(rollouts(), st.floats(-3, 3), probabilities)
def test_returns_are_linear_in_rewards_and_values(
    rollout: tuple[torch.Tensor, torch.Tensor, torch.Tensor], factor: float, td_lambda: float
) -> None:
    rewards, discounts, values = rollout
    scaled = lambda_returns(factor * rewards, discounts, factor * values, td_lambda)
    assert_close(scaled, factor * lambda_returns(rewards, discounts, values, td_lambda))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types_are_kept(dtype: Any) -> None:
    rewards = torch.ones(5, 3, dtype=dtype)
    weights = continuation_weights(rewards)
    returns = imagined_returns(rewards, weights, rewards[0], 0.9)
    targets = lambda_returns(rewards, rewards, rewards, 0.9)
    assert (weights.shape, returns.shape, targets.shape) == ((6, 3), (3,), (5, 3))
    assert weights.dtype == returns.dtype == targets.dtype == dtype
