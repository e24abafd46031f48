"""Exported policies against the models that they come from."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers import make, space_envs
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import VecNormalize
from test_multitask import TASKS
from test_multitask import TINY as TASKS_TINY

from sb3_pwm import PWM, task_vec_env
from sb3_pwm.cli.main import COMMANDS
from sb3_pwm.cli.subcommands import run_command_line
from sb3_pwm.files.export import DeployedPolicy, export_policy

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TINY: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [16], "latent_dim": 16},
    "learning_starts": 30,
    "train_freq": 10,
    "pretrain_steps": 3,
    "batch_size": 8,
    "critic_batch_size": 8,
    "buffer_size": 200,
    "device": "cpu",
    "seed": 0,
}


class Mixed(gym.Env[Any, Any]):
    """Dict observations of several kinds, actions of two axes."""

    observation_space = spaces.Dict(
        {
            "b": spaces.Box(-5, 5, (2,), np.float32),
            "a": spaces.Discrete(3),
            "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
        }
    )
    action_space = spaces.Box(np.array([[-2.0, 0.0]], np.float32), np.array([[1.0, 5.0]], np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), float(action.sum()), False, self.np_random.random() < 0.2, {}


def run_onnx(path: Path, inputs: dict[str, Any]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == list(inputs)
    (actions,) = session.run(["action"], inputs)
    return actions


@pytest.fixture(scope="module")
def pendulum() -> PWM:
    return PWM("MlpPolicy", "Pendulum-v1", **TINY).learn(60)


@pytest.fixture(scope="module")
def exported(pendulum: PWM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert export_policy(pendulum, folder / "policy.onnx") == ["observation"]
    export_policy(pendulum, folder / "policy.pt", format="torchscript")
    return folder


@pytest.mark.parametrize("n", [1, 5])
def test_the_same_actions(pendulum: PWM, exported: Path, n: int) -> None:
    observations = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    expected = pendulum.predict(observations, deterministic=True)[0]
    actions = run_onnx(exported / "policy.onnx", {"observation": observations})
    traced = torch.jit.load(exported / "policy.pt")(torch.as_tensor(observations)).numpy()
    for found in (actions, traced):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_drawn_actions_follow_the_noise(pendulum: PWM, tmp_path: Path) -> None:
    observations = np.random.default_rng(0).normal(size=(2_000, 3)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(2_000, 1)).astype(np.float32)
    assert export_policy(pendulum, tmp_path / "p.onnx", deterministic=False) == ["observation", "noise"]
    inputs = {"observation": observations, "noise": noise}
    latents = pendulum.policy.world_model.encode(torch.as_tensor(observations))
    actor: Any = pendulum.policy.actor
    expected = 2 * actor.sample(latents, torch.as_tensor(noise)).detach().numpy()
    np.testing.assert_allclose(run_onnx(tmp_path / "p.onnx", inputs), expected, atol=1e-5)
    zero = run_onnx(tmp_path / "p.onnx", inputs | {"noise": 0 * noise})
    np.testing.assert_allclose(zero, pendulum.predict(observations, deterministic=True)[0], atol=1e-5)


def test_dict_observations_and_actions_of_several_axes(tmp_path: Path) -> None:
    env = Mixed()
    model = PWM("MultiInputPolicy", env, **TINY).learn(40)
    names = export_policy(model, tmp_path / "p.onnx")
    assert names == ["a", "b", "image"]
    parts: Any = model.observation_space
    batch = {key: np.stack([space.sample() for _ in range(3)]) for key, space in parts.items()}
    found = run_onnx(tmp_path / "p.onnx", {name: batch[name] for name in names})
    np.testing.assert_allclose(found, model.predict(batch, deterministic=True)[0], atol=1e-5)
    assert found.shape == (3, 1, 2)


def test_extracted_policies_take_any_number_of_observations(tmp_path: Path) -> None:
    model = PWM("MultiTaskPolicy", task_vec_env(TASKS, seed=0), **(TINY | {"policy_kwargs": TASKS_TINY})).learn(40)
    policy = model.extract("large", 1)
    export_policy(policy, tmp_path / "p.pt", format="torchscript")  # ONNX shows the same, and takes seconds
    for n in (1, 5):  # exporters see two
        observations = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
        expected = policy.predict(observations, deterministic=True)[0]
        found = torch.jit.load(tmp_path / "p.pt")(torch.as_tensor(observations)).numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_discrete_actions_are_integers(tmp_path: Path) -> None:
    model = PWM("MlpPolicy", "CartPole-v1", **TINY).learn(50)
    export_policy(model, tmp_path / "p.onnx")
    observations = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    found = run_onnx(tmp_path / "p.onnx", {"observation": observations})
    np.testing.assert_array_equal(found, model.predict(observations, deterministic=True)[0])
    with pytest.raises(ValueError, match="only actions that are numbers"):
        export_policy(model, tmp_path / "p.onnx", deterministic=False)


def test_the_statistics_of_vec_normalize_are_inside(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    model = PWM("MlpPolicy", env, **TINY).learn(60)
    raw = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    expected = model.predict(env.normalize_obs(raw), deterministic=True)[0]
    export_policy(model, tmp_path / "own.pt", format="torchscript")
    own = torch.jit.load(tmp_path / "own.pt")(torch.as_tensor(raw)).numpy()
    np.testing.assert_allclose(own, expected, atol=1e-5)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "statistics.pkl"))
    command = ["export", str(tmp_path / "model.zip"), "--vec-normalize", str(tmp_path / "statistics.pkl")]
    assert run_command_line(COMMANDS, command) == 0
    np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", {"observation": raw}), expected, atol=1e-5)


def test_the_command(pendulum: PWM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pendulum.save(tmp_path / "model")
    assert run_command_line(COMMANDS, ["export", str(tmp_path / "model.zip"), "--format", "torchscript"]) == 0
    assert capsys.readouterr().out.endswith("model.pt: observation -> action\n")
    assert (tmp_path / "model.pt").exists()
    with pytest.raises(SystemExit, match="2"):
        run_command_line(COMMANDS, ["export", str(tmp_path / "nothing.zip")])
    assert "nothing.zip" in capsys.readouterr().err


def test_the_model_is_not_overwritten(
    pendulum: PWM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pendulum.save("rate_0.5.zip")
    pendulum.save("model.pt")
    for command in (["rate_0.5", "--out", "rate_0.5.zip"], ["model.pt"]):
        with pytest.raises(SystemExit, match="2"):
            run_command_line(COMMANDS, ["export", *command, "--format", "torchscript"])
        assert "is the model, which would be lost" in capsys.readouterr().err
        PWM.load(command[0])
    assert run_command_line(COMMANDS, ["export", "rate_0.5", "--format", "torchscript"]) == 0
    assert Path("rate_0.5.pt").exists()  # not rate_0.pt, which another model's may be


def test_the_model_stays_as_it_is(pendulum: PWM) -> None:
    before = {name: value.clone() for name, value in pendulum.policy.state_dict().items()}
    DeployedPolicy(pendulum, None, True)
    assert all(torch.equal(value, before[name]) for name, value in pendulum.policy.state_dict().items())
    assert all(parameter.requires_grad for parameter in pendulum.policy.actor.parameters())


def test_errors(pendulum: PWM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="format='h5': allowed are"):
        export_policy(pendulum, tmp_path / "p", format="h5")  # type: ignore[arg-type]
    (tmp_path / "statistics.pkl").write_bytes(b"no pickle")
    pendulum.save(tmp_path / "model")
    command = ["export", str(tmp_path / "model.zip"), "--vec-normalize", str(tmp_path / "statistics.pkl")]
    with pytest.raises(SystemExit, match="2"):
        run_command_line(COMMANDS, command)
    assert "statistics.pkl holds no VecNormalize" in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


def test_observations_with_the_name_of_an_output(tmp_path: Path) -> None:
    space = spaces.Dict({"action": spaces.Box(-1, 1, (2,)), "noise": spaces.Box(-1, 1, (1,))})
    model = make(space_envs(observation_space=space), "MultiInputPolicy")
    (tmp_path / "old.onnx").write_text("old")
    for deterministic in (True, False):
        with pytest.raises(ValueError, match="the observation 'action' has the name of another input or output"):
            export_policy(model, tmp_path / "old.onnx", deterministic=deterministic)
    assert (tmp_path / "old.onnx").read_text() == "old"
    assert export_policy(model, tmp_path / "new.pt", format="torchscript") == ["action", "noise"]


def test_hindsight_replay_needs_no_environment_here(tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=4, continuous=True)
    model = PWM("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **TINY)
    model.save(tmp_path / "model")
    assert run_command_line(COMMANDS, ["export", str(tmp_path / "model.zip"), "--format", "torchscript"]) == 0
