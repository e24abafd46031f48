import functools

import torch

from sb3_pwm.compute.streams import side_by_side


def test_results_come_in_the_order_of_the_works() -> None:
    works = [functools.partial(torch.full, (2,), float(i)) for i in range(3)]
    results = side_by_side(works, torch.device("cpu"))
    assert [result.tolist() for result in results] == [[0, 0], [1, 1], [2, 2]]
