"""How predictable features are, on data whose answer is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sb3_pwm.nn.predictability import linear_predictability


def test_shares_of_known_data() -> None:
    features, actions, noise = torch.randn(4_000, 3), torch.rand(4_000, 2) * 2 - 1, torch.randn(4_000, 2)
    following = torch.stack(
        [
            2 * features[:, 0] - 5 * actions[:, 1] + 7,  # all of it
            features[:, 1] + noise[:, 0],  # half of the variance
            noise[:, 1],  # nothing
        ],
        1,
    )
    shares = linear_predictability(features, actions, following)
    assert_close(shares, torch.tensor([1.0, 0.5, 0.0]), atol=0.05, rtol=0)


def test_shares_do_not_depend_on_unit_or_offset() -> None:
    features, actions = torch.randn(500, 2).double(), torch.rand(500, 1)
    following = features @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double() + torch.randn(500, 2)
    expected = linear_predictability(features, actions, following)
    for unit, offset in ((1e-5, 0), (1, 5e7), (1e6, -1.7e9)):
        shares = linear_predictability(unit * features + offset, actions, unit * following + offset)
        assert_close(shares, expected, rtol=0, atol=1e-4)


def test_what_is_learnt_by_heart_does_not_count() -> None:
    # as many coefficients as rows to fit them to
    shares = linear_predictability(torch.randn(80, 38), torch.rand(80, 2), torch.randn(80, 38))
    assert shares.mean() < 0.05


def test_constants_count_nothing() -> None:
    features = torch.randn(50, 3)
    following = torch.stack([torch.zeros(50), torch.full((50,), 9.0), features[:, 2]], 1)
    shares = linear_predictability(features, torch.rand(50, 1), following)
    assert_close(shares[:2], torch.zeros(2))
    assert shares[2] > 0.99


@pytest.mark.parametrize("n_rows", range(4))
def test_too_few_rows_say_nothing(n_rows: int) -> None:
    assert_close(
        linear_predictability(torch.ones(n_rows, 2), torch.ones(n_rows, 1), torch.ones(n_rows, 2)), torch.zeros(2)
    )


@given(n_rows=st.integers(4, 30), n_features=st.integers(1, 12), seed=st.integers(0, 1_000))
def test_shares_are_shares(n_rows: int, n_features: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, following = torch.randn(2, n_rows, n_features, generator=generator)
    shares = linear_predictability(features, torch.zeros(n_rows, 1), following)
    assert shares.shape == (n_features,)
    assert ((shares >= 0) & (shares <= 1)).all()
