import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import LATENT_DIM, OBS_DIM
from helpers import NoHostReads
from torch import nn
from torch.testing import assert_close

from sb3_pwm.compute.metrics import RunningMeans
from sb3_pwm.compute.optimizers import apply_gradients, move_average, set_learning_rate
from sb3_pwm.learner import minibatches
from sb3_pwm.observations import at_steps
from sb3_pwm.world_model import WorldModel, encode_windows

CPU = torch.device("cpu")


class Concatenate(nn.Module):
    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([observations["a"].flatten(1), observations["b"]], -1)


def test_minibatches_cover_all_rows_before_any_returns() -> None:
    rows = minibatches(12, 4, 6, CPU)
    assert rows.shape == (6, 4)
    assert sorted(rows[:3].flatten().tolist()) == list(range(12))
    assert sorted(rows[3:].flatten().tolist()) == list(range(12))
    assert (rows[:3] != rows[3:]).any()


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "count"), [(10, 3, 2), (10, 3, 4), (10, 5, 2), (3, 8, 1), (3, 8, 5), (1, 4, 2), (7, 1, 1)]
)
def test_minibatches_use_every_row_equally_often(n_rows: int, batch_size: int, count: int) -> None:
    rows = minibatches(n_rows, batch_size, count, CPU)
    assert rows.shape == (count, batch_size)
    uses = torch.bincount(rows.flatten(), minlength=n_rows)
    assert len(uses) == n_rows
    assert uses.max() - uses.min() <= 1


def test_encode_windows_is_encoding_step_by_step(world_model: WorldModel) -> None:
    observations = torch.randn(4, 5, OBS_DIM)
    latents = encode_windows(world_model, observations)
    assert latents.shape == (4, 5, LATENT_DIM)
    assert_close(latents, torch.stack([world_model.encode(step) for step in observations]))


def test_encode_windows_of_dict_observations(make_world_model: Callable[..., WorldModel]) -> None:
    model = make_world_model(features=Concatenate())
    observations = {"a": torch.randn(4, 5, 2, 1), "b": torch.randn(4, 5, OBS_DIM - 2)}
    latents = encode_windows(model, observations)
    assert latents.shape == (4, 5, LATENT_DIM)
    single = [model.encode({key: values[t] for key, values in observations.items()}) for t in range(4)]
    assert_close(latents, torch.stack(single))


@pytest.mark.parametrize(("start", "stop", "expected"), [(0, 1, [0]), (1, None, [1, 2, 3]), (1, 3, [1, 2])])
def test_at_steps(start: int, stop: int | None, expected: list[int]) -> None:
    observations = torch.arange(4.0)[:, None, None].expand(4, 5, 2)
    found: Any = at_steps(observations, slice(start, stop))
    assert found[:, 0, 0].tolist() == expected
    parts: Any = at_steps({"a": observations, "b": observations[..., 0]}, slice(start, stop))
    assert {key: values.shape for key, values in parts.items()} == {
        "a": (len(expected), 5, 2),
        "b": (len(expected), 5),
    }


@pytest.mark.parametrize(("max_norm", "length"), [(1.0, 1.0), (5.0, 5.0), (100.0, 5.0)])
def test_gradients_are_clipped_by_their_total_norm(max_norm: float, length: float) -> None:
    a, b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    assert apply_gradients(optimizer, 3 * a + 4 * b, [a, b], max_norm)
    # the gradient (3, 4) has norm 5
    assert_close(torch.stack([a, b]).detach(), torch.tensor([-0.6, -0.8]) * length, rtol=1e-4, atol=0)


def test_only_the_named_parameters_get_gradients() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
    before = copy.deepcopy(second.state_dict())
    assert apply_gradients(optimizer, second(first(torch.ones(1, 2))).sum(), first.parameters(), 1.0)
    assert all(p.grad is None for p in second.parameters())
    assert_close(second.state_dict(), before, rtol=0, atol=0)


def test_old_gradients_do_not_add_up() -> None:
    x = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([x], lr=1.0)
    for _ in range(2):
        assert apply_gradients(optimizer, 3 * x, [x], 100.0)
    assert x.item() == -6


def test_frozen_parameters_stay_frozen() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.Adam(layer.parameters())
    assert apply_gradients(optimizer, layer(torch.ones(1, 2)).sum(), layer.parameters(), 1.0)
    assert (layer.weight == before["weight"]).all()
    assert (layer.bias != before["bias"]).all()


def test_a_frozen_network_stays_as_it_is() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.Adam(layer.parameters())
    x = torch.ones(1, 2, requires_grad=True)
    assert apply_gradients(optimizer, layer(x).sum(), layer.parameters(), 1.0)
    assert not apply_gradients(optimizer, layer(x).sum() * math.nan, layer.parameters(), 1.0)
    assert all((layer.state_dict()[name] == before[name]).all() for name in before)


@pytest.mark.parametrize(
    "bad_loss",
    [
        lambda x: x.sum() * math.nan,
        lambda x: x.sum() + math.inf,
        lambda x: (x - 2).sum() / 0.0,
        lambda x: (x - x.detach()).abs().sqrt().sum(),  # 0, with an infinite gradient
    ],
    ids=["loss nan", "loss inf, gradient finite", "both inf", "loss finite, gradient inf"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_what_is_not_finite_changes_nothing(bad_loss: Callable[..., Any], fused: bool) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)

    def good_update(network: nn.Module, network_optimizer: Any) -> torch.Tensor:
        loss = network(torch.ones(1, 3)).square().sum()
        return apply_gradients(network_optimizer, loss, network.parameters(), 1.0)

    assert good_update(layer, optimizer)
    untouched = copy.deepcopy(layer)
    untouched_optimizer = torch.optim.Adam(untouched.parameters(), lr=0.1, fused=fused)
    untouched_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    assert not apply_gradients(optimizer, bad_loss(layer.weight) + layer.bias.sum(), layer.parameters(), 1.0)
    assert_close(layer.state_dict(), untouched.state_dict(), rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in layer.parameters())
    # nor does the optimizer remember it
    assert good_update(layer, optimizer)
    assert good_update(untouched, untouched_optimizer)
    assert_close(layer.state_dict(), untouched.state_dict(), rtol=0, atol=0)


def test_a_fused_optimizer_takes_the_same_steps_without_being_read() -> None:
    layers = {fused: nn.Linear(3, 2) for fused in (True, False)}
    layers[True].load_state_dict(layers[False].state_dict())
    for fused, layer in layers.items():
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)
        for step in range(4):  # the third is skipped, the others' gradients have different lengths
            loss = layer(torch.ones(1, 3)).square().sum() * 10.0**step / (step != 2)
            if fused:
                with NoHostReads():
                    finite = apply_gradients(optimizer, loss, layer.parameters(), 5.0)
            else:
                finite = apply_gradients(optimizer, loss, layer.parameters(), 5.0)
            assert bool(finite) == (step != 2)
        assert not hasattr(optimizer, "found_inf")
    for ours, theirs in zip(*(layer.parameters() for layer in layers.values()), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("start", [0.5, torch.tensor(0.5)])
def test_learning_rates_on_the_device_and_off(start: float | torch.Tensor) -> None:
    x = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.Adam([x], lr=start, fused=True)
    set_learning_rate(optimizer, 0.25, on_device=True)
    (group,) = optimizer.param_groups
    in_graph = group["lr"]
    assert group["capturable"]
    set_learning_rate(optimizer, 0.125, on_device=True)
    assert group["lr"] is in_graph  # a captured step reads this very tensor
    assert in_graph == 0.125
    assert apply_gradients(optimizer, x, [x], 1.0)
    assert_close(x.detach(), torch.tensor(-0.125))
    set_learning_rate(optimizer, 0.25, on_device=False)
    assert (group["lr"], group["capturable"]) == (0.25, False)
    assert apply_gradients(optimizer, x, [x], 1.0)
    assert_close(x.detach(), torch.tensor(-0.375))


def test_running_means() -> None:
    means, yes, no = RunningMeans(), torch.tensor(True), torch.tensor(False)
    assert means.pop() == {}
    for value, counts in ((1.0, yes), (3.0, yes), (math.nan, no)):
        means.add({"a": torch.tensor(value), "b": torch.tensor(2 * value)}, counts)
    means.add({"b": torch.tensor(9.0), "c": torch.tensor(5.0)}, yes)
    means.add({"d": torch.tensor(1.0)}, no)
    assert means.pop() == {"a": 2.0, "b": (2 + 6 + 9) / 3, "c": 5.0}
    assert means.pop() == {}
    means.add({"a": torch.tensor(7.0), "b": torch.tensor(8.0)}, yes)
    assert means.pop() == {"a": 7.0, "b": 8.0}


def test_move_average() -> None:
    average, network = nn.Linear(2, 1).requires_grad_(False), nn.Linear(2, 1)
    for module, weight, bias in ((average, [[1.0, 2.0]], [4.0]), (network, [[2.0, 0.0]], [0.0])):
        module.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    move_average(list(average.parameters()), list(network.parameters()), 0.75)
    assert_close(average.state_dict(), {"weight": torch.tensor([[1.25, 1.5]]), "bias": torch.tensor([3.0])})
    assert_close(network.state_dict(), {"weight": torch.tensor([[2.0, 0.0]]), "bias": torch.tensor([0.0])})
