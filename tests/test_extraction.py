import hashlib
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import SMALL, SpaceEnv
from test_multitask import TASKS, model_of

from sb3_pwm import PWM
from sb3_pwm.cli.main import COMMANDS
from sb3_pwm.cli.subcommands import run_command_line


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = model_of(steps=60)
    model.save(folder / "model.zip")
    model.save_replay_buffer(folder / "data.pkl")
    return folder


def extract(files: Path, out: Path, *options: Any) -> int:
    arguments = ["extract", str(files / "model.zip"), "--data", str(files / "data.pkl"), "--out", str(out), *options]
    return run_command_line(COMMANDS, arguments)


@pytest.mark.usefixtures("forked_workers")
def test_all_tasks_in_processes(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract(files, tmp_path, "--updates", "3", "--jobs", "2") == 0
    direct = PWM.load(files / "model.zip")
    direct.load_replay_buffer(files / "data.pkl")
    for task in TASKS:
        policy = PWM.load(tmp_path / task.name / "model.zip")
        assert policy.action_space.shape == (task.action_size,)
        observation = np.linspace(-1, 1, task.observation_size, dtype=np.float32)
        expected = direct.extract(task.name, 3, seed=0)
        np.testing.assert_array_equal(
            policy.predict(observation, deterministic=True)[0], expected.predict(observation, deterministic=True)[0]
        )
        record = json.loads((tmp_path / task.name / "extraction.json").read_text())
        assert (record["task"], record["updates"], record["seed"]) == (task.name, 3, 0)
    before = (tmp_path / "small" / "model.zip").stat().st_mtime_ns
    assert extract(files, tmp_path, "--updates", "3") == 0  # all there
    assert "2 of them extracted before" in capsys.readouterr().out
    assert (tmp_path / "small" / "model.zip").stat().st_mtime_ns == before


def test_a_policy_gets_its_environments_spaces(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = "MountainCarContinuous-v0"  # two observations and one action, as the task
    options = ["--tasks", "small", "--updates", "1"]
    assert extract(files, tmp_path, *options, "--env", f"small={env}") == 0
    policy = PWM.load(tmp_path / "small" / "model.zip", env=gym.make(env))
    assert policy.observation_space == gym.make(env).observation_space
    for own, message in (
        ([], f"env is {env!r} there, None here"),
        *((["--env", wrong], f"env: {wrong!r} is not NAME=ID") for wrong in ("small", "small=", f"large={env}")),
        (["--env", f"small={env}", f"small={env}"], "env: more than one environment for the task 'small'"),
    ):
        with pytest.raises(SystemExit):
            extract(files, tmp_path, *options, *own)
        assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def other_files(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model and data but for what a later training would change."""
    folder = tmp_path_factory.mktemp("other")
    model = PWM.load(files / "model.zip")
    model.num_timesteps += 1
    model.save(folder / "model.zip")
    (folder / "data.pkl").write_bytes((files / "data.pkl").read_bytes() + b".")
    return folder


@pytest.mark.usefixtures("forked_workers")
def test_policies_of_other_settings_are_refused(
    files: Path, other_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tasks", "large", "--updates", "1"]
    assert extract(files, tmp_path, *options) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    model, data = ([sha256(folder / name) for folder in (files, other_files)] for name in ("model.zip", "data.pkl"))
    for changed, message in (
        (["--updates", "2"], "updates is 1 there, 2 here"),
        (["--seed", "7", "--tasks", "all"], "seed is 0 there, 7 here"),  # nor is the other task begun
        (
            ["--data", str(other_files / "data.pkl")],
            "data_sha256 is {!r} there, {!r} here".format(*data),
        ),
    ):
        assert_refused(files, tmp_path, [*options, *changed], message, capsys)
    message = "model_sha256 is {!r} there, {!r} here".format(*model)
    assert_refused(other_files, tmp_path, [*options, "--data", str(files / "data.pkl")], message, capsys)
    (tmp_path / "large" / "extraction.json").unlink()
    before.pop(tmp_path / "large" / "extraction.json")
    before[tmp_path / "large"] = (tmp_path / "large").stat().st_mtime_ns
    assert_refused(files, tmp_path, options, "updates is None there, 1 here", capsys)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def assert_refused(
    files: Path, out: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        extract(files, out, *options)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert f"{out / 'large'} holds a policy of other settings" in printed
    assert message in printed


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@pytest.mark.usefixtures("forked_workers")
def test_a_task_that_fails(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.pkl").write_bytes(b"no pickle")
    options = ["--data", str(tmp_path / "data.pkl"), "--tasks", "large", "--updates", "1"]
    assert extract(files, tmp_path / "out", *options) == 1
    told = capsys.readouterr().err
    assert "large: failed; see " in told
    assert "data.pkl" in told  # the last line of the log says what is wrong
    assert "Traceback" in (tmp_path / "out" / "large" / "log.txt").read_text()
    assert not (tmp_path / "out" / "large" / "model.zip").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "larg"], "unknown task 'larg'; nearest of the 2 names: 'large'"),
        (["--jobs", "0"], "jobs=0"),
        (["--tasks", "large", "--env", "large=Nope-v0"], "unknown environment 'Nope-v0'"),
        (["--updates", "-1"], "updates=-1"),
        (["--data", "nowhere.pkl"], "there is no file nowhere.pkl"),
    ],
)
def test_bad_input(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        extract(files, tmp_path / "out", *options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_one_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = PWM("MlpPolicy", SpaceEnv(), policy_kwargs={"net_arch": [16], "latent_dim": 16}, **SMALL)
    model.save(tmp_path / "model.zip")
    (tmp_path / "data.pkl").touch()
    with pytest.raises(SystemExit):
        extract(tmp_path, tmp_path / "out")
    assert "MultiTaskPolicy" in capsys.readouterr().err
