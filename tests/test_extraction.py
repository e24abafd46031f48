import json

import numpy as np
import pytest
from helpers import SMALL, SpaceEnv
from test_multitask import TASKS, model_of

from sb3_pwm import PWM
from sb3_pwm.cli import COMMANDS
from sb3_pwm.subcommands import run_command_line


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = model_of(steps=60)
    model.save(folder / "model.zip")
    model.save_replay_buffer(folder / "data.pkl")
    return folder


def extract(files, out, *options):
    arguments = ["extract", str(files / "model.zip"), "--data", str(files / "data.pkl"), "--out", str(out), *options]
    return run_command_line(COMMANDS, arguments)


def test_all_tasks_in_processes(files, tmp_path, capsys):
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
        assert (record["task"], record["updates"]) == (task.name, 3)
    before = (tmp_path / "small" / "model.zip").stat().st_mtime_ns
    assert extract(files, tmp_path, "--updates", "3") == 0  # all there
    assert "2 of them extracted before" in capsys.readouterr().out
    assert (tmp_path / "small" / "model.zip").stat().st_mtime_ns == before


def test_a_task_that_fails(files, tmp_path, capsys):
    (tmp_path / "data.pkl").write_bytes(b"no pickle")
    options = ["--data", str(tmp_path / "data.pkl"), "--tasks", "large", "--updates", "1"]
    assert extract(files, tmp_path / "out", *options) == 1
    assert "large failed" in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "out" / "large" / "log.txt").read_text()
    assert not (tmp_path / "out" / "large" / "model.zip").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "larg"], "unknown task 'larg'; nearest of the 2 names: 'large'"),
        (["--jobs", "0"], "jobs=0"),
        (["--updates", "-1"], "updates=-1"),
        (["--data", "nowhere.pkl"], "there is no file nowhere.pkl"),
    ],
)
def test_bad_input(files, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        extract(files, tmp_path / "out", *options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_one_task(tmp_path, capsys):
    model = PWM("MlpPolicy", SpaceEnv(), policy_kwargs={"net_arch": [16], "latent_dim": 16}, **SMALL)
    model.save(tmp_path / "model.zip")
    (tmp_path / "data.pkl").touch()
    with pytest.raises(SystemExit):
        extract(tmp_path, tmp_path / "out")
    assert "MultiTaskPolicy" in capsys.readouterr().err
