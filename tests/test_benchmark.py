import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sb3_pwm import PWM
from sb3_pwm.speed import measure as speed
from sb3_pwm.speed.matmuls import Product, counts_of, floor_seconds, flops_of, seconds_of, seconds_of_each

CPU = torch.device("cpu")


def test_products_of_a_linear_layer_forward_and_backward() -> None:
    layer, x = nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)
    forward = counts_of(lambda: layer(x)).products
    assert forward == {Product(1, 7, 3, 5, (False, True), torch.float32): 1}
    assert flops_of(forward) == 2 * 7 * 3 * 5
    # backward: the gradients of the weight and of the input
    assert flops_of(counts_of(lambda: layer(x).sum().backward()).products) == 3 * flops_of(forward)
    assert flops_of(counts_of(lambda: layer(x).sum().backward(inputs=[x])).products) == 2 * flops_of(forward)


def test_products_of_batched_matrices() -> None:
    a, b = torch.randn(4, 2, 3), torch.randn(4, 3, 5)
    counts = counts_of(lambda: [torch.bmm(a, b) for _ in range(6)]).products
    assert counts == {Product(4, 2, 3, 5, (False, False), torch.float32): 6}
    assert flops_of(counts) == 6 * 4 * 2 * 2 * 3 * 5
    addition = counts_of(lambda: a + 1)
    assert (len(addition.products), addition.operations) == (0, 1)


def test_a_frozen_networks_weight_gradients_are_not_computed() -> None:
    """The floor of a policy update counts what the update does; this is what it must not do."""
    model = speed.make_model(speed.SHAPES["default"], "cpu")
    samples, transitions = model._sample(model.batch_size), model._critic_samples()
    latents = model._learner.update_model(samples)
    flops = flops_of(counts_of(lambda: model._learner.update_policy(samples, transitions, latents)).products)
    hidden, latent, action = 192, 96, 6
    dynamics = hidden * (latent + action) + hidden * hidden + latent * hidden
    reward = hidden * (latent + action) + hidden * hidden + hidden
    termination = hidden * latent + hidden
    pi = hidden * latent + hidden * hidden + 2 * action * hidden
    qf = hidden * (latent + action) + hidden * hidden + hidden
    batch, horizon, critic_rows, n_critics = 256, 1, 2 * 256, 2
    encoder = hidden * 17 + latent * hidden
    # Forward once; backward once more for inputs, and for weights only where they are trained. The actor's input and
    # the critics' need no gradient in their own updates, and z_0 none at all.
    rollout = batch * horizon * (2 * dynamics + 2 * reward + 2 * termination)
    noise = batch * dynamics
    actor = batch * (horizon + 1) * (3 * pi - hidden * latent)
    bootstrap = batch * n_critics * 2 * qf
    critics = n_critics * critic_rows * (3 * qf - hidden * (latent + action))
    targets = critic_rows * (2 * encoder + pi + n_critics * qf)
    bound = 2 * (noise + rollout + actor + bootstrap + critics + targets)
    # The last action's gradient and the first latents' are not needed either: a little less than the sum.
    assert 0.93 * bound < flops <= bound


def test_floor_and_times_are_those_of_work() -> None:
    counts = counts_of(lambda: torch.randn(64, 64) @ torch.randn(64, 64)).products
    floor = floor_seconds(counts, CPU)
    assert floor > 0
    assert floor_seconds(type(counts)({product: 2 * n for product, n in counts.items()}), CPU) > floor
    calls = []
    assert seconds_of(lambda: calls.append(1), CPU, at_least=1e-4, rounds=2) > 0
    assert len(calls) >= 4


def test_works_take_turns() -> None:
    calls = []
    seconds_of_each([lambda: calls.append("a"), lambda: calls.append("b")], CPU, at_least=0, rounds=3)
    assert calls == ["a", "a", "b", "b", *3 * ["a", "b"]]


def test_the_command_prints_and_writes_every_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "seconds_of_each", lambda works, device: [0.25, 0.5][: len(works)])
    monkeypatch.setattr(speed, "floor_seconds", lambda counts, device: 0.125)
    monkeypatch.setattr(speed, "peak_rate", lambda device, *dtype: 1e9)
    speed.main(["--shapes", "default", "--steps", "40", "--json", str(tmp_path / "new" / "speed.json")])
    result = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert {row["phase"]: row["efficiency"] for row in result["phases"]} == dict.fromkeys(
        ("sampling", "model update", "policy update", "model and policy update", "acting"), 0.5
    )
    ratios = {row["phase"]: row["reference_ratio"] for row in result["phases"]}
    assert ratios == dict.fromkeys(ratios) | {"model update": 2, "policy update": 2}
    assert result["acting"]["ratio"] == 0.5
    assert result["learning"]["pwm_updates_per_second"] > 0
    printed = capsys.readouterr().out
    assert "| default | model update | 250 |" in printed
    assert "cpu ratio" in printed


@pytest.mark.parametrize("name", sorted(speed.SHAPES))
def test_shapes_are_valid_settings(name: str) -> None:
    shape = speed.SHAPES[name]
    env = speed.RandomEnv(shape.observation_dim, shape.action_dim)
    with torch.device("meta"):  # no memory for the large ones
        PWM("MlpPolicy", env, device="cpu", _init_setup_model=False, **shape.settings)


def test_extraction_is_timed() -> None:
    result = speed.measure_extraction("cpu", 1, "float32", size="1M")
    assert result["seconds"] > 0
    assert result["updates"] == 1
