import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import ACTION_DIM, LATENT_DIM
from helpers import make
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from sb3_pwm import PWM
from sb3_pwm.compute.precision import FullPrecisionLinear, arithmetic, faster_precision, usable_precision
from sb3_pwm.nn.layers import SimNorm, mlp
from sb3_pwm.world_model import WorldModel

CPU = torch.device("cpu")


@pytest.fixture
def every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the machine had every precision; what it has not it emulates."""
    monkeypatch.setattr("sb3_pwm.compute.precision.supports", lambda device, precision: True)


def test_bfloat16_rounds_products_and_float32_does_not() -> None:
    x, layer = torch.randn(64, 200), nn.Linear(200, 50)
    exact = layer(x)
    with arithmetic(CPU, "float32"):
        assert torch.equal(layer(x), exact)
    with arithmetic(CPU, "bfloat16"):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    assert 1e-4 < (rounded.float() - exact).abs().max() < 0.05


def test_outputs_that_are_values_are_not_rounded() -> None:
    x, layer = torch.randn(64, 200), FullPrecisionLinear(200, 1)
    exact = layer(x)
    with arithmetic(CPU, "bfloat16"):
        assert torch.equal(layer(x), exact)
        assert layer(x.bfloat16()).dtype == torch.float32
        assert mlp(200, [30], 1)(x).dtype == torch.float32
        assert mlp(200, [30], 8, full_precision_output=False)(x).dtype == torch.bfloat16
        latents = SimNorm(8)(layer(x).expand(64, 16).bfloat16())
    assert_close(latents.unflatten(-1, (8, -1)).sum(-2), torch.ones(64, 2))


def test_changed_parameters_are_seen_the_next_time() -> None:
    x, weight = torch.randn(4, 8), nn.Parameter(torch.randn(3, 8))
    with arithmetic(CPU, "bfloat16"):
        before = F.linear(x, weight)
    weight.data.mul_(2)
    with arithmetic(CPU, "bfloat16"):
        assert_close(F.linear(x, weight), 2 * before)


def test_tf32_is_set_inside_only() -> None:
    before = torch.get_float32_matmul_precision()
    with arithmetic(CPU, "tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_a_device_without_it_falls_back_with_a_warning() -> None:
    with pytest.warns(UserWarning, match='cpu has no precision="tf32"') as caught:
        fallen_back = make(precision="tf32").learn(40)
    assert len([warning for warning in caught if "precision" in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_precision(CPU, "float32") == "float32"
        plain = make().learn(40)
    for ours, theirs in zip(fallen_back.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_precision_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="precision='float16'; allowed: 'auto', 'float32', 'tf32', 'bfloat16'"):
        make(precision="float16")


@pytest.mark.parametrize(
    ("in_float32", "in_bfloat16", "chosen"), [(2.75, 2.0, "bfloat16"), (2.5, 2.0, "float32"), (2.0, 9.0, "float32")]
)
@pytest.mark.usefixtures("every_precision")
def test_the_faster_precision_is_chosen(
    in_float32: float, in_bfloat16: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    seen: list[torch.dtype] = []

    def work() -> None:
        precision = layer(x).dtype
        clock[0] += in_bfloat16 if precision == torch.bfloat16 else in_float32
        seen.append(precision)

    x, layer = torch.randn(4, 8), nn.Linear(8, 3)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert faster_precision(CPU, work) == chosen
    assert set(seen) == {torch.float32, torch.bfloat16}


def test_nothing_is_measured_where_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_pwm.compute.precision.supports", lambda device, precision: precision == "float32")
    assert faster_precision(CPU, pytest.fail) == "float32"


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
@pytest.mark.usefixtures("every_precision")
def test_an_automatic_precision_is_that_precision(
    chosen: Literal["float32", "bfloat16"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring changes nothing else, and a file says "auto": the next machine measures again."""

    def parameters(precision: Literal["auto", "float32", "bfloat16"]) -> list[torch.Tensor]:
        model = make(precision=precision).learn(60)
        model.save(tmp_path / precision)
        return list(model.policy.parameters())

    known = parameters(chosen)
    times = {"float32": 2.0, "bfloat16": 1.0 if chosen == "bfloat16" else 3.0}
    monkeypatch.setattr("sb3_pwm.compute.precision.seconds", lambda device, precision, work: work() or times[precision])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parameters("auto"), known, strict=True))
    assert PWM.load(tmp_path / "auto").precision == "auto"


@pytest.mark.parametrize(
    "settings", [{"critic": "v"}, {"critic_batch_size": 1, "policy_kwargs": {"n_dynamics": 3}}, {"horizon": 0}]
)
@pytest.mark.usefixtures("every_precision")
def test_what_is_measured_has_no_effect(settings: dict[str, Any]) -> None:
    model = make(**settings)
    drawn = torch.get_rng_state()
    model._learner._value_and_differentiate()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.policy.parameters())


@pytest.mark.parametrize("critic", ["q", "v"])
@pytest.mark.usefixtures("every_precision")
def test_updates_in_bfloat16_are_those_in_float32_within_rounding(critic: Literal["q", "v"]) -> None:
    """One update of everything by plain gradient descent: the steps have the same direction and length."""
    steps = {}
    for precision in ("float32", "bfloat16"):
        policy_kwargs = {"optimizer_class": torch.optim.SGD, "net_arch": [64, 64], "latent_dim": 32}
        model = make(precision=precision, critic=critic, policy_kwargs=policy_kwargs, critic_updates=1)
        model.learn(model.learning_starts)
        before = {name: value.clone() for name, value in model.policy.named_parameters()}
        torch.manual_seed(0)
        samples = model.sequences.spread_sequences(64, model.sequence_length)
        transitions = model.sequences.spread_sequences(64, model.n_steps)
        model._learner.update_policy(samples, (transitions,), model._learner.update_model(samples))
        after = dict(model.policy.named_parameters())
        assert all(value.dtype == torch.float32 for value in after.values())
        steps[precision] = {
            part: torch.cat([(after[name] - before[name]).flatten() for name in before if name.startswith(part)])
            for part in ("world_model", "actor", "critics.")
        }
    for part, exact in steps["float32"].items():
        rounded = steps["bfloat16"][part]
        assert exact.norm() > 0
        assert not torch.equal(rounded, exact)
        assert (rounded - exact).norm() < 0.1 * exact.norm(), part


@pytest.mark.usefixtures("every_precision")
def test_learning_saving_and_loading_in_bfloat16(tmp_path: Path) -> None:
    model = make(precision="bfloat16").learn(60)
    assert model.n_skipped_updates == 0
    assert {parameter.dtype for parameter in model.policy.parameters()} == {torch.float32}
    model.save(tmp_path / "model")
    loaded = PWM.load(tmp_path / "model", env=model.env)
    assert loaded.precision == "bfloat16"
    loaded.learn(40)


def test_imagined_latents_stay_float32(world_model: WorldModel) -> None:
    with arithmetic(CPU, "bfloat16"):
        latents = world_model.next_latents(torch.rand(5, LATENT_DIM), torch.zeros(5, ACTION_DIM))
    assert latents.dtype == torch.float32
