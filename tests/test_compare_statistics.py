from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy")

from sb3_pwm.benchmark.statistics import (
    bootstrap_interval,
    first_reaching,
    interquartile_mean,
    mean_interval,
    performance_profile,
    probability_interval,
    probability_of_improvement,
    profile_interval,
    resample,
)

scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=5).map(np.array)
strata = st.lists(scores, min_size=1, max_size=3)


def test_the_interquartile_mean_leaves_out_a_quarter_on_either_side() -> None:
    assert interquartile_mean(np.array([100.0, 3, 1, -50])) == 2  # of 1 and 3
    assert interquartile_mean(np.arange(8.0)) == 3.5  # of 2, 3, 4, 5
    assert np.array_equal(interquartile_mean(np.array([[0.0, 1, 1, 9], [4, 4, 4, 4]])), [1, 4])


def test_a_quarter_is_rounded_down_to_whole_scores() -> None:
    """So does rliable, with which users compare their numbers."""
    assert interquartile_mean(np.array([1.0, 2, 6])) == 3  # none left out
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 9])) == 2  # of 1, 2, 3
    assert interquartile_mean(np.array([90.0, 4, 3, 2, 1, 0])) == 2.5  # of 1, 2, 3, 4
    assert interquartile_mean(np.array([-9.0, 1, 2, 3, 4, 5, 90])) == 3  # of 1 to 5


def test_the_interval_of_a_mean() -> None:
    # Of two values, a resample's mean is one of them in a quarter of the cases each: both are within 95 %.
    mean, low, high = mean_interval(np.array([[1.0, 5], [3.0, 5]]))
    assert np.array_equal([mean, low, high], [[2, 5], [1, 5], [3, 5]])
    mean, low, high = mean_interval(np.array([7.0]))
    assert mean == 7
    assert np.isnan([low, high]).all()
    mean, low, high = mean_interval(np.tile([0.0, 1], 200))  # the standard error is 0.025
    assert [mean, low, high] == pytest.approx([0.5, 0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025], abs=0.004)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6).map(np.array))
def test_the_interval_of_a_mean_stays_within_the_values(values: Any) -> None:
    _, low, high = mean_interval(values, n_resamples=50)
    assert values.min() <= low <= high <= values.max()


def test_resampling_stays_within_an_environment() -> None:
    drawn = resample([np.array([1.0, 2]), np.array([10.0, 20, 30])], 50, np.random.default_rng(0))
    assert [each.shape for each in drawn] == [(50, 2), (50, 3)]
    assert set(drawn[0].flat) == {1, 2}
    assert set(drawn[1].flat) == {10, 20, 30}


def test_bootstrap_of_a_mean_is_what_can_be_counted() -> None:
    def mean(values: np.ndarray) -> Any:
        return values.mean(axis=-1)

    # Of two values, a resample's mean is 0 or 1 in a quarter of the cases each: both are within 95 %.
    assert bootstrap_interval([np.array([0.0, 1])], mean) == (0, 1)
    # One value in each environment: nothing to draw.
    assert bootstrap_interval([np.array([2.0]), np.array([4.0])], mean) == (3, 3)
    # 400 zeros and ones: the standard error is 0.025
    low, high = bootstrap_interval([np.tile([0.0, 1], 200)], mean)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.004)
    assert bootstrap_interval([np.arange(5.0)], mean, seed=1) == bootstrap_interval([np.arange(5.0)], mean, seed=1)


def test_probability_of_improvement_counts_pairs() -> None:
    assert probability_of_improvement([np.array([3.0, 1])], [np.array([2.0])]) == 0.5
    assert probability_of_improvement([np.array([2.0, 1])], [np.array([2.0])]) == 0.25  # a tie and a loss
    assert probability_of_improvement([np.array([9.0]), np.array([0.0])], [np.array([1.0]), np.array([1.0])]) == 0.5
    # 2 above both, 1 above one of two: 3 of 4
    assert probability_of_improvement([np.array([2.0, 1])], [np.array([0.0, 1.5])]) == 0.75


@given(strata, st.data())
def test_probability_of_improvement_is_mann_whitneys(first: list[Any], data: st.DataObject) -> None:
    from scipy.stats import mannwhitneyu

    second = [data.draw(scores) for _ in first]
    expected = np.mean([mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(first, second, strict=True)])
    assert probability_of_improvement(first, second) == pytest.approx(expected)
    assert probability_of_improvement(second, first) == pytest.approx(1 - expected)


def test_interval_of_the_probability() -> None:
    better, worse = [np.array([5.0, 6, 7])], [np.array([1.0, 2, 3])]
    assert probability_interval(better, worse) == (1, 1)
    low, high = probability_interval([np.array([1.0, 2])], [np.array([1.0, 2])])
    assert (low, high) == (0, 1)


def test_performance_profile() -> None:
    thresholds = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    fractions = performance_profile(np.array([0.0, 1, 1, 2]), thresholds)
    assert np.array_equal(fractions, [1, 0.75, 0.75, 0.25, 0])
    low, high = profile_interval([np.array([0.0, 1]), np.array([1.0, 2])], thresholds)
    assert np.all(low <= fractions)
    assert np.all(fractions <= high)
    assert (low[0], high[0], low[-1], high[-1]) == (1, 1, 0, 0)
    # at 0.5 the second environment's runs are above, of the first none, one or both: 0.5, 0.75 or 1
    assert (low[2], high[2]) == (0.5, 1)


def test_first_reaching() -> None:
    assert first_reaching([1, 3, 2, 5], 3) == 1
    assert first_reaching([1, 3], 3.5) is None
