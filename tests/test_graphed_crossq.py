"""examples/graphed_crossq.py updates as sb3-contrib's CrossQ does."""

import importlib
from pathlib import Path

import pytest
import torch
from sb3_contrib import CrossQ
from torch.distributions import Distribution

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_updates_and_actions_are_those_of_crossq(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)  # put back what the class changes
    graphed = importlib.import_module("graphed_crossq").GraphedCrossQ
    models = []
    for algorithm in (CrossQ, graphed):
        arguments = {"learning_starts": 30, "batch_size": 16, "policy_kwargs": {"net_arch": [32, 32]}}
        model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, device=device, **arguments)
        model.learn(70)
        models.append(model)
    theirs, own = (model.policy.state_dict() for model in models)
    assert models[1]._n_updates == 40
    tolerance = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-3, "atol": 1e-4}
    for name, value in theirs.items():
        torch.testing.assert_close(own[name].to(value.device), value, **tolerance)

    models[1].save(tmp_path / "model.zip")
    again = graphed.load(tmp_path / "model.zip", env=models[1].get_env(), device=device)
    observation = models[0].get_env().reset()
    expected = models[0].predict(observation, deterministic=True)[0]
    assert again.predict(observation, deterministic=True)[0] == pytest.approx(expected, abs=1e-3)
    again.learn(50, reset_num_timesteps=False)
    assert again._n_updates == 90
    assert again.ent_coef_optimizer.state_dict()["state"][0]["step"] == 30
