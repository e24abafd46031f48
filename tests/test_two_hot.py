import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sb3_pwm.nn.two_hot import symexp, symlog, two_hot, two_hot_inv

BINS = torch.linspace(-2, 2, 5, dtype=torch.float64)  # one apart
scalars = st.floats(-1e4, 1e4)


def doubles(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("x", "expected"), [(0.0, 0.0), (math.e - 1, 1.0), (1 - math.e, -1.0), (math.e**3 - 1, 3.0)])
def test_symlog_and_symexp_by_hand(x: float, expected: Any) -> None:
    assert_close(symlog(doubles(x)), doubles(expected))
    assert_close(symexp(doubles(expected)), doubles(x))


@given(scalars)
def test_symexp_inverts_symlog(x: float) -> None:
    assert_close(symexp(symlog(doubles(x))), doubles(x))


@pytest.mark.parametrize(
    ("symlog_x", "expected"),
    [
        (0.0, (0, 0, 1, 0, 0)),
        (0.25, (0, 0, 0.75, 0.25, 0)),
        (-1.5, (0.5, 0.5, 0, 0, 0)),
        (2.0, (0, 0, 0, 0, 1)),
        (-2.0, (1, 0, 0, 0, 0)),
        (7.0, (0, 0, 0, 0, 1)),
        (-math.inf, (1, 0, 0, 0, 0)),
    ],
)
def test_two_hot_by_hand(symlog_x: float, expected: Any) -> None:
    assert_close(two_hot(symexp(doubles(symlog_x)), BINS), doubles(expected))


@given(st.lists(scalars, min_size=1, max_size=5), st.integers(2, 101), st.floats(0.5, 12))
def test_two_hot_is_a_distribution_over_two_neighbours_with_the_right_mean(
    xs: list[float], n_bins: int, edge: float
) -> None:
    bins = torch.linspace(-edge, edge, n_bins, dtype=torch.float64)
    weights = two_hot(doubles(*xs), bins)
    assert weights.shape == (len(xs), n_bins)
    assert (weights >= 0).all()
    assert_close(weights.sum(-1), torch.ones(len(xs)).double())
    for row in weights:
        places = row.nonzero().flatten()
        assert len(places) == 1 or (len(places) == 2 and places[1] - places[0] == 1)
    assert_close((weights * bins).sum(-1), symlog(doubles(*xs)).clamp(-edge, edge))


@given(st.floats(-7, 7))
def test_two_hot_inv_reads_back_what_two_hot_wrote(x: float) -> None:
    # |x| <= 7 lies inside the bins: log(8) = 2.08 needs edges beyond 2
    bins = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert_close(two_hot_inv(two_hot(doubles(x), bins).log(), bins), doubles(x))


def test_two_hot_inv_by_hand() -> None:
    # weights 1/4 and 3/4 on the bins 0 and 1: symexp(0.75)
    logits = doubles(-math.inf, -math.inf, 0, math.log(3), -math.inf)
    assert_close(two_hot_inv(logits, BINS), doubles(math.exp(0.75) - 1)[0])


@pytest.mark.parametrize("shape", [(), (3,), (4, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    assert two_hot(x, BINS.float()).shape == (*shape, 5)
    assert two_hot_inv(torch.zeros(*shape, 5), BINS.float()).shape == shape
