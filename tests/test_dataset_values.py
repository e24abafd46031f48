"""Values that a data set may not hold, and those that it may."""

import numpy as np
import pytest
from dataset_toys import ACTIONS, episode, flat
from gymnasium import spaces

from sb3_pwm.datasets import from_arrays


@pytest.mark.parametrize("timeouts", [False, True])
@pytest.mark.parametrize("space", [np.float32, np.float64])
@pytest.mark.parametrize(("first", "following"), [(np.float64, np.float32), (np.float32, np.float64)])
def test_observations_of_two_precisions_follow_each_other(first, following, space, timeouts):
    """One episode of five steps, then one of three, whose observations are rounded in one of the two fields."""
    data = flat([episode(0, 5), episode(1, 3)])
    exact = {name: data[name].astype(np.float64) + 0.1 for name in ("observations", "next_observations")}
    data["observations"] = exact["observations"].astype(first)
    data["next_observations"] = exact["next_observations"].astype(following)
    if not timeouts:
        del data["timeouts"]
    buffer = from_arrays(data, spaces.Box(-np.inf, np.inf, (3,), space), ACTIONS)
    assert np.flatnonzero(buffer.dones).tolist() == [4, 7]


def test_whole_numbers_are_compared_as_they_are():
    """Where nothing is a float nothing is rounded: 2**24 and 2**24 + 1 are one float32."""
    steps = np.array([[0], [2**24], [2**24 + 2]])
    data = {
        "observations": steps,
        "next_observations": np.array([[2**24 + 1], [2**24 + 2], [7]]),
        "actions": np.zeros((3, 1)),
        "rewards": np.zeros(3),
        "terminals": np.zeros(3),
    }
    buffer = from_arrays(data, spaces.Box(0, 2**30, (1,), np.int64))
    assert np.flatnonzero(buffer.dones).tolist() == [0, 2]
