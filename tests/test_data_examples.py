"""Examples that collect data and learn from them."""

import argparse
import csv
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import SMALL, SMALL_POLICY, TruthEnv, flat_state
from stable_baselines3 import SAC

from sb3_pwm import PWM, TaskSet
from sb3_pwm.benchmark.evaluate import Successes
from sb3_pwm.datasets import from_arrays, from_npz, from_replay_buffer, from_tasks
from sb3_pwm.suites.experts import noisy_expert, record_episode

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "research"
SETTINGS = [
    f"--set={name}={json.dumps(value)}"
    for name, value in (SMALL | {"policy_kwargs": SMALL_POLICY}).items()
    if name not in ("buffer_size", "seed", "device")
]


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), *SETTINGS])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_from_single_tasks_to_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect from two tasks, learn from one of them alone, then from both."""
    for env in ("Pendulum-v1", "MountainCarContinuous-v0"):
        run(monkeypatch, "collect.py", "--env", env, "--steps", 64, "--episodes", 1, "--out", tmp_path / env)
        (row,) = rows_of(tmp_path / f"{env}.csv")
        assert (row["environment"], row["env_steps"], row["episodes"]) == (env, "64", "1")
    pendulum, car = (from_replay_buffer(tmp_path / f"{env}.pkl") for env in ("Pendulum-v1", "MountainCarContinuous-v0"))
    assert (pendulum.size(), pendulum.buffer_size, car.size()) == (64, 64, 64)

    updates = ["--updates", 4, "--every", 2, "--episodes", 1]
    data = ["--data", tmp_path / "Pendulum-v1.pkl", "--transitions", 50]
    run(monkeypatch, "offline_curve.py", *data, "--env", "Pendulum-v1", *updates, "--out", tmp_path / "one.csv")
    single = rows_of(tmp_path / "one.csv")
    assert [(row["updates"], row["transitions"], row["data"]) for row in single] == [
        ("2", "50", "Pendulum-v1"),
        ("4", "50", "Pendulum-v1"),
    ]

    tasks = [f"--task={env}={tmp_path / env}.pkl" for env in ("Pendulum-v1", "MountainCarContinuous-v0")]
    kept = ["--prior", "--save", tmp_path / "models", "--model-updates", 3, "--out", tmp_path / "many.csv"]
    run(monkeypatch, "multitask_offline.py", *tasks, *updates, *kept)
    many = rows_of(tmp_path / "many.csv")
    assert [(row["environment"], row["algorithm"], row["updates"]) for row in many] == [
        (env, method, updates)
        for env in ("Pendulum-v1", "MountainCarContinuous-v0")
        for method in ("pwm-multitask", "pwm-multitask-prior")
        for updates in ("2", "4")
    ]
    assert {row["success_rate"] for row in many} == {""}
    policy = PWM.load(tmp_path / "models" / "pwm-multitask-prior" / "1.zip", device="cpu")
    assert policy.predict(np.zeros(2, np.float32))[0].shape == (1,)

    # From the model that was kept, and with another setting.
    kept = ["--model", tmp_path / "models", "--out", tmp_path / "again.csv"]
    run(monkeypatch, "multitask_offline.py", *tasks, *updates, *kept)
    again = rows_of(tmp_path / "again.csv")
    figures = [
        [(row["environment"], row["updates"], row["return_mean"], row["imagined_return"]) for row in rows]
        for rows in (again, [row for row in many if not row["algorithm"].endswith("prior")])
    ]
    assert figures[0] == figures[1]
    run(monkeypatch, "multitask_offline.py", *tasks, *updates, *kept, "--set=gamma=0.1")
    assert rows_of(tmp_path / "again.csv")[0]["imagined_return"] != again[0]["imagined_return"]
    with pytest.raises(SystemExit, match="has the tasks Pendulum-v1, MountainCarContinuous-v0, in this order"):
        run(monkeypatch, "multitask_offline.py", *reversed(tasks), *updates, *kept)

    # Two at a time in processes of their own: the same figures, as they come.
    script = [
        EXAMPLES / "multitask_offline.py",
        *tasks,
        *updates,
        "--prior",
        "--jobs",
        2,
        "--model-updates",
        3,
        *SETTINGS,
    ]
    subprocess.run([sys.executable, *map(str, script), "--out", str(tmp_path / "jobs.csv")], check=True)
    key = ("environment", "algorithm", "updates", "return_mean", "value_calibration", "imagined_return")
    tables: Any = (many, rows_of(tmp_path / "jobs.csv"))
    compared = [sorted([row[name] for name in key] for row in rows) for rows in tables]
    assert compared[0] == compared[1]


def test_data_of_another_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SAC's buffer, its evaluations while it learns and the best of them; PWM learns from its first steps."""
    arguments = ["--algo", "sac", "--env", "Pendulum-v1", "--steps", 120, "--every", 40, "--episodes", 1, "--npz"]
    script = [*map(str, arguments), "--set=learning_starts=100", "--set=batch_size=8", "--out", str(tmp_path / "sac")]
    monkeypatch.setattr(sys, "argv", ["collect.py", *script])
    runpy.run_path(str(EXAMPLES / "collect.py"), run_name="__main__")
    rows = rows_of(tmp_path / "sac.csv")
    assert [(row["algorithm"], row["env_steps"], row["value_calibration"]) for row in rows] == [
        ("sac", "40", ""),
        ("sac", "80", ""),
        ("sac", "120", ""),
    ]
    assert json.loads(rows[0]["settings"]) == {"learning_starts": 100, "batch_size": 8}
    best = max(rows, key=lambda row: float(row["return_mean"]))
    assert f"best evaluation: {best['return_mean']} after {best['env_steps']} steps" in capsys.readouterr().out
    data = from_replay_buffer(tmp_path / "sac.pkl")
    assert (data.size(), data.buffer_size) == (120, 120)

    arrays = np.load(tmp_path / "sac.npz")
    assert np.abs(arrays["actions"]).max() > 1  # in the environment's units, up to 2
    assert {name: arrays[name].dtype for name in ("terminals", "timeouts")} == {"terminals": bool, "timeouts": bool}
    env = gym.make("Pendulum-v1")
    again = from_npz(tmp_path / "sac.npz", env.observation_space, env.action_space)
    for name in ("observations", "next_observations", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
    np.testing.assert_allclose(again.actions, data.actions, atol=1e-6)

    learn = ["--data", tmp_path / "sac.pkl", "--transitions", 80, "--updates", 2, "--every", 2, "--episodes", 1]
    run(monkeypatch, "offline_curve.py", *learn, "--env", "Pendulum-v1", "--out", tmp_path / "pwm.csv")
    (row,) = rows_of(tmp_path / "pwm.csv")
    assert (row["data"], row["transitions"], row["updates"]) == ("sac", "80", "2")


def test_data_are_read_by_their_kind(tmp_path: Path) -> None:
    read_data = importlib.import_module("offline_curve").read_data
    env = gym.make("Pendulum-v1")
    sac = SAC("MlpPolicy", env, learning_starts=50, buffer_size=30, device="cpu", seed=0).learn(40)
    sac.save_replay_buffer(tmp_path / "sac.pkl")
    buffer = read_data(tmp_path / "sac.pkl", env)
    assert buffer.size() == 30
    np.testing.assert_array_equal(buffer.rewards[:, 0], np.roll(sac.replay_buffer.rewards[:, 0], 20))
    names = ("observations", "next_observations")
    arrays: dict[str, Any] = {name: getattr(buffer, name)[:, 0] for name in names} | {
        "actions": 2 * buffer.actions[:, 0]
    }
    arrays |= {"rewards": buffer.rewards[:, 0], "terminals": np.zeros(30), "timeouts": buffer.timeouts[:, 0]}
    np.savez(tmp_path / "sac.npz", **arrays)
    again = read_data(tmp_path / "sac.npz", env)
    np.testing.assert_allclose(again.actions, buffer.actions, atol=1e-6)  # rescaled from [-2, 2]


def test_first_steps() -> None:
    """Rewards count steps; what is left out is gone, and an episode that it belonged to is cut off there."""
    module = importlib.import_module("offline_curve")
    for n_steps, capacity in ((30, 40), (12, 12), (12, 20)):
        env = TruthEnv()
        data = from_arrays(module.random_data(env, 30, seed=0), env.observation_space, env.action_space)
        first = module.first_steps(data, n_steps, capacity)
        assert (first.size(), first.buffer_size) == (n_steps, capacity)
        assert first.rewards[:n_steps, 0].tolist() == list(range(1, n_steps + 1))
        assert first.dones[n_steps - 1, 0] == 1


@pytest.fixture
def many() -> PWM:
    """A model of two tasks with a little data of each."""
    module = importlib.import_module("offline_curve")
    envs = {name: gym.make(name) for name in ("Pendulum-v1", "MountainCarContinuous-v0")}
    tasks = TaskSet.from_envs({name: name for name in envs})
    data = {n: from_arrays(module.random_data(e, 60, 0), e.observation_space, e.action_space) for n, e in envs.items()}
    policy_kwargs = SMALL_POLICY | {"task_set": tasks}
    settings: dict[str, Any] = {name: value for name, value in SMALL.items() if name != "buffer_size"}
    model = PWM.from_dataset(from_tasks(tasks, data), "MultiTaskPolicy", policy_kwargs=policy_kwargs, **settings)
    return model.pretrain(3)


def test_the_prior_leaves_the_world_model_alone_and_never_asks_its_dynamics(
    many: PWM, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("multitask_offline")
    start = many.extract("Pendulum-v1", 0)
    monkeypatch.setattr("sb3_pwm.world_model.WorldModel.next_latents", None)
    monkeypatch.setattr("sb3_pwm.world_model.WorldModel.rewards", None)
    with pytest.raises(TypeError, match="NoneType"):
        many.extract("Pendulum-v1", 1)
    prior = module.extract_prior(many, "Pendulum-v1", 5)
    assert (prior.num_timesteps, prior.n_skipped_updates) == (5, 0)
    before, after = (flat_state(model.policy.state_dict()) for model in (start, prior))
    changed = {name.strip("/").split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    learnt = {"actor", "critics", "critics_target", "behaviour_value"}
    assert changed == learnt | {"entropy_coefficient", "return_scale", "latent_scale"}


def test_success_at_the_end_of_an_episode_and_at_any_step() -> None:
    successes = Successes()
    assert successes.rates == {}
    for done, info in (
        (False, {"success": 1.0}),
        (True, {"success": 1.0}),
        (True, {"success": 0.0}),
        (True, {"is_success": True, "success": 0.0}),
        (True, {}),
        (False, {"success": 1.0}),
        (True, {"success": 0.0}),
    ):
        successes({"done": done, "info": info}, {})
    assert successes.rates == {"success_rate": 0.5, "success_once_rate": 0.75}


def test_settings_of_the_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module("learning_curve").add_settings(parser)
    args = parser.parse_args(["--set", "gamma=0.9", "--set", 'policy_kwargs={"a": [1]}', "--set", 'critic="v"'])
    assert dict(args.set) == {"gamma": 0.9, "policy_kwargs": {"a": [1]}, "critic": "v"}
    for wrong in ("gamma", "critic=v"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--set", wrong])
        assert f"argument --set: invalid setting value: '{wrong}'" in capsys.readouterr().err


def test_noise_of_scripted_experts() -> None:
    expert = SimpleNamespace(get_action=lambda observation: np.array([0.5, -0.5, 3.0, observation[0]]))
    observation, rng = np.full(39, 0.25, np.float32), np.random.default_rng(0)
    assert noisy_expert(expert, 0.0, rng)(observation).tolist() == [0.5, -0.5, 1, 0.25]
    noisy = np.array([noisy_expert(expert, 0.1, rng)(observation) for _ in range(400)])
    assert noisy.dtype == np.float32
    np.testing.assert_allclose(noisy[:, [0, 1, 3]].mean(0), [0.5, -0.5, 0.25], atol=0.02)  # four standard errors
    np.testing.assert_allclose(noisy[:, [0, 1, 3]].std(0), 0.1, atol=0.015)
    assert noisy.max() == 1
    uniform = np.array([noisy_expert(expert, None, rng)(observation) for _ in range(400)])
    np.testing.assert_allclose(uniform.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(uniform.std(0), 3**-0.5, atol=0.05)


def test_recorded_episodes_are_in_the_d4rl_layout() -> None:
    env, rows = TruthEnv(), []
    for _ in range(2):  # of 5 steps with a termination, and of 6 with a time-out
        own, successes = record_episode(env, lambda observation: np.array([0.5], np.float32))
        assert successes == [False] * len(own)
        rows.extend(own)
    data = {column: np.array([row[column] for row in rows]) for column in rows[0]}
    assert np.flatnonzero(data["terminals"]).tolist() == [4]
    assert np.flatnonzero(data["timeouts"]).tolist() == [10]
    buffer = from_arrays(data, env.observation_space, env.action_space)
    assert buffer.rewards[:, 0].tolist() == list(range(1, 12))
    assert (buffer.observations[:, 0, 1] + 1 == buffer.next_observations[:, 0, 1]).all()
