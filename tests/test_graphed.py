"""examples/research/graphed.py updates as sb3-contrib's algorithms do."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from sb3_contrib import TQC, CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch.distributions import Distribution

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "research"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("algorithm", "policy_delay"), [(CrossQ, 3), (TQC, 1)])
def test_updates_and_actions_are_those_of_sb3_contrib(
    algorithm: type[OffPolicyAlgorithm], policy_delay: int, device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)  # put back what the class changes
    graphed = getattr(importlib.import_module("graphed"), f"Graphed{algorithm.__name__}")
    models = []
    for one in (algorithm, graphed):
        arguments: dict[str, Any] = {"learning_starts": 30, "batch_size": 16, "policy_kwargs": {"net_arch": [32, 32]}}
        model = one("MlpPolicy", "Pendulum-v1", seed=0, device=device, **arguments)
        model.learn(70)
        models.append(model)
    theirs, own = (model.policy.state_dict() for model in models)
    assert models[1]._n_updates == 40
    exact = device == "cpu" and algorithm is TQC
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}
    for name, value in theirs.items():
        torch.testing.assert_close(own[name], value, **tolerance)

    models[1].save(tmp_path / "model.zip")
    again = graphed.load(tmp_path / "model.zip", env=models[1].get_env(), device=device)
    observation: Any = models[0].get_env().reset()
    expected = models[0].predict(observation, deterministic=True)[0]
    assert again.predict(observation, deterministic=True)[0] == pytest.approx(expected, abs=1e-3)
    again.learn(50, reset_num_timesteps=False)
    assert again._n_updates == 90
    assert again.ent_coef_optimizer.state_dict()["state"][0]["step"] == 90 // policy_delay


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_a_batch_renorm_within_its_warm_up(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    batch_norm = importlib.import_module("graphed").batch_norm
    torch.manual_seed(0)
    layers = [BatchRenorm1d(3).double().train(training) for _ in range(2)]
    x = torch.randn(7, 3, dtype=torch.float64) * torch.tensor([0.02, 1.0, 5.0])
    weights = torch.randn(7, 3, dtype=torch.float64)
    results = []
    layer: Any
    for layer, forward in zip(layers, (BatchRenorm1d.forward, batch_norm), strict=True):
        with torch.no_grad():
            layer.scale.copy_(torch.tensor([0.5, 2.0, -1.0]))
            layer.ra_var.fill_(0.3)
        inputs = x.clone().requires_grad_()
        outputs = forward(layer, inputs)
        (outputs * weights).sum().backward()
        buffers = [layer.ra_mean, layer.ra_var, layer.steps]
        results.append([outputs, inputs.grad, layer.scale.grad, layer.bias.grad, *buffers])
    for theirs, own in zip(*results, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)
