import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import same
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pwm import PWM
from sb3_pwm.benchmark import segments, worker
from sb3_pwm.benchmark.engines import LocalEngine, RayEngine, make_job, run_worker
from sb3_pwm.benchmark.evaluate import evaluate, make_evaluation_env
from sb3_pwm.benchmark.jobs import Lines
from sb3_pwm.benchmark.plan import find_algorithm
from sb3_pwm.benchmark.results import (
    FAILED,
    FINISHED,
    IN_USE,
    IN_USE_CODE,
    RUNNING,
    CurveRow,
    InUseError,
    locked,
    read_run,
    read_runs,
    unfinished,
    write_curve,
    write_json,
)
from sb3_pwm.benchmark.runner import Runs, run_plan
from sb3_pwm.benchmark.segments import check_models, make_model, segment_seed
from sb3_pwm.benchmark.specs import RunSpec
from sb3_pwm.benchmark.worker import packages_of, run_job
from sb3_pwm.cli import benchmark as command
from sb3_pwm.cli.subcommands import run_command_line
from sb3_pwm.compute.random_state import untouched_generators

TINY = {
    "sac": {"learning_starts": 50, "train_freq": 5, "batch_size": 16, "policy_kwargs": "dict(net_arch=[16])"},
    "pwm": {
        "learning_starts": 50,
        "pretrain_steps": 5,
        "train_freq": 5,
        "sequence_length": 4,
        "horizon": 3,
        "batch_size": 8,
        "critic_batch_size": 16,
        "policy_kwargs": "dict(net_arch=[16], latent_dim=16)",
    },
    "ppo": {"n_steps": 32, "n_envs": 2, "n_epochs": 2, "normalize": True, "learning_rate": "lin_1e-3"},
}


def spec_of(algo: str = "sac", env: str = "compare_toys:Global-v0", **changes: Any) -> RunSpec:
    numbers: dict[str, Any] = {
        "seed": 3,
        "steps": 300,
        "eval_every": 80,
        "eval_episodes": 2,
        "checkpoint_every": 100,
        "threads": 1,
    }
    settings: dict[str, Any] = {"device": "cpu", "hyperparameters": TINY[algo], "source": "test"}
    return RunSpec(env=env, algo=algo, **numbers | settings | changes)


def outcome(folder: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return all that must not depend on a kill: evaluations without their times, and the final model."""
    run = read_run(folder)
    assert run.state == FINISHED, run.record["traceback"]
    rows = [replace(row, wall_seconds=0, cpu_seconds=0) for row in run.rows]
    model = find_algorithm(run.spec.algo).load(folder / "model.zip", device="cpu")
    return repr(rows), model.get_parameters()


def assert_same_outcome(first: Path, second: Path) -> None:
    (rows, parameters), (other_rows, other_parameters) = outcome(first), outcome(second)
    assert rows == other_rows
    assert same(parameters, other_parameters)


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("algo", ["pwm", pytest.param("sac", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_numbers(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(algo, "compare_toys:Killed-v0", eval_episodes=1)
    assert run_job(spec, tmp_path / "whole", "")

    folder = tmp_path / "killed"
    monkeypatch.setenv("COMPARE_TOYS_KILL", str(folder))
    job = make_job(spec, tmp_path, "") | {"folder": str(folder)}
    assert run_worker(job) == -signal.SIGKILL
    run = read_run(folder)
    assert run.state == RUNNING
    assert [row.env_steps for row in run.rows] == [0, 80, 160]
    earlier = {"command": "first", "versions": {"torch": "1"}, "git_revision": "abc", "processor": "old", "gpu": None}
    write_json(folder / "run.json", run.record | earlier)
    assert run_job(spec, folder, "")
    assert read_run(folder).record["earlier"] == [earlier]
    assert "earlier" not in read_run(tmp_path / "whole").record
    assert_same_outcome(tmp_path / "whole", folder)
    assert [row.env_steps for row in read_run(folder).rows] == [0, 80, 160, 240, 300]
    left = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert left == ["curve.csv", "lock", "model.zip", "run.json"]


def test_success_is_recorded_at_the_last_step_and_at_any(tmp_path: Path) -> None:
    assert run_job(spec_of(env="compare_toys:Succeeding-v0", steps=80), tmp_path, "")
    logged = read_run(tmp_path).rows[-1].logged
    assert (logged["eval/success_rate"], logged["eval/success_once_rate"]) == (0, 1)


def test_vec_normalize_and_schedules_survive_segments(tmp_path: Path) -> None:
    """The second segment's results depend on what the first one handed over."""
    spec = spec_of("ppo")
    assert run_job(spec, tmp_path / "a", "")
    assert run_job(spec, tmp_path / "b", "")
    assert_same_outcome(tmp_path / "a", tmp_path / "b")
    run = read_run(tmp_path / "a")
    # 64 steps per rollout: the last evaluation is at 300, the last update at 320
    assert [row.env_steps for row in run.rows] == [0, 80, 160, 240, 300]
    model = find_algorithm("ppo").load(tmp_path / "a" / "model.zip")
    assert model.num_timesteps == 320
    # before its last rollout 256 steps of 300 were done
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0
    assert run.record["model"]["normalize"]["norm_obs"]
    assert (tmp_path / "a" / "vec_normalize.pkl").exists()


@pytest.mark.parametrize("algo", ["pwm", "sac"])
def test_hindsight_survives_segments(algo: str, tmp_path: Path) -> None:
    entry = {"policy": "MultiInputPolicy", "learning_starts": 20, "replay_buffer_class": "HerReplayBuffer"}
    entry |= {"replay_buffer_kwargs": "dict(n_sampled_goal=2, goal_selection_strategy='final')"}
    spec = spec_of(algo, "compare_toys:FlipToGoal-v0", steps=60, eval_every=30, checkpoint_every=30)
    spec = replace(spec, hyperparameters=TINY[algo] | entry)
    assert run_job(spec, tmp_path, "")
    run = read_run(tmp_path)
    assert [row.env_steps for row in run.rows] == [0, 30, 60], run.record["traceback"]
    model: Any = find_algorithm(algo).load(tmp_path / "model.zip", env=gym.make("compare_toys:FlipToGoal-v0"))
    assert isinstance(model.replay_buffer, HerReplayBuffer)
    assert model.replay_buffer.n_sampled_goal == 2


@pytest.mark.parametrize("algo", ["pwm", "sac"])
def test_learning_does_not_depend_on_evaluations(algo: str, tmp_path: Path) -> None:
    often, seldom = (spec_of(algo, steps=150, eval_every=every, eval_episodes=1) for every in (30, 150))
    for spec in (often, seldom):
        assert run_job(spec, tmp_path / str(spec.eval_every), "")
    first, second = (read_run(tmp_path / name).rows for name in ("30", "150"))
    assert len(first) == 6
    assert first[-1].return_mean == second[-1].return_mean
    assert first[-1].train_return == second[-1].train_return
    assert same(outcome(tmp_path / "30")[1], outcome(tmp_path / "150")[1])


def test_a_run_of_one_segment_is_a_plain_sb3_run(tmp_path: Path) -> None:
    spec = spec_of("sac", steps=150, checkpoint_every=1_000, eval_every=150)
    assert run_job(spec, tmp_path / "run", "")
    sac = find_algorithm("sac")
    env = DummyVecEnv([lambda: gym.make(spec.env)])
    arguments: dict[str, Any] = TINY["sac"] | {"policy_kwargs": {"net_arch": [16]}}
    model = sac("MlpPolicy", env, seed=3, device="cpu", **arguments).learn(150)
    assert same(outcome(tmp_path / "run")[1], model.get_parameters())


def test_generators_are_put_back() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with untouched_generators():
        np.random.seed(5)
        torch.manual_seed(5)
    assert (np.random.rand(), torch.rand(1)) == expected


def test_segments_have_seeds_of_their_own() -> None:
    seeds = [segment_seed(seed, segment) for seed in range(3) for segment in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert [segment_seed(seed, 0) for seed in range(3)] == [0, 1, 2]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_record_of_a_run(tmp_path: Path) -> None:
    assert run_job(spec_of(steps=60, eval_every=60), tmp_path / "run", "the command")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["command"] == "the command"
    assert record["specification"]["hyperparameters"] == TINY["sac"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["model"]["batch_size"] == 16
    assert record["model"]["policy_kwargs"]["net_arch"] == [16]
    assert record["model"]["buffer_size"] == 60  # SAC's million would only make checkpoints large
    assert record["random_return"] < 0
    assert record["gpu"] is None
    untrained, row = read_run(tmp_path / "run").rows
    assert (row.env_steps, row.episodes, row.episode_length_mean) == (60, 2, 60)
    assert row.cpu_seconds > 0
    assert (untrained.env_steps, untrained.episodes) == (0, 2)
    assert untrained.cpu_seconds < row.cpu_seconds
    assert (untrained.logged["train/n_updates"], row.logged["train/n_updates"]) == (0, 1)  # after 55 steps


def test_the_first_evaluation_is_of_the_untrained_policy(tmp_path: Path) -> None:
    spec = spec_of("pwm", "Pendulum-v1", steps=60, eval_every=60, eval_episodes=1)
    assert run_job(spec, tmp_path / "run", "")
    untrained = make_model(spec)
    returns, *_ = evaluate(untrained, make_evaluation_env(spec.env, {}), spec.eval_episodes)
    assert read_run(tmp_path / "run").rows[0].return_mean == pytest.approx(returns.mean())


def test_what_the_algorithm_logs_is_kept_beside_its_evaluations(tmp_path: Path) -> None:
    short = {"n_timesteps": 900, "policy": "MlpPolicy", "batch_size": 16, "learning_starts": 10, "train_freq": 20}
    spec = spec_of(env="Pendulum-v1", hyperparameters=short | {"policy_kwargs": "dict(net_arch=[16])"}, steps=900)
    assert run_job(
        replace(spec, eval_every=450, eval_episodes=1, checkpoint_every=900), tmp_path / "run", "the command"
    )
    _, first, last = read_run(tmp_path / "run").rows
    assert first.logged.keys() == {"train/n_updates"}  # SB3 logs every four episodes of 200 steps
    assert last.logged["rollout/ep_len_mean"] == 200
    assert np.isfinite(last.logged["train/critic_loss"])
    assert not any(name.startswith("time/") for name in last.logged)


def test_the_version_of_an_environments_package_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages_of("Pendulum-v1", {}) == ["gymnasium"]
    assert packages_of("compare_toys:Global-v0", {}) == []
    monkeypatch.setattr("sb3_pwm.benchmark.worker.PACKAGES", ("gymnasium",))
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"compare_toys": ["pytest"]})
    assert run_job(spec_of(env="compare_toys:Global-v0", steps=60, eval_every=60), tmp_path / "run", "")
    assert read_run(tmp_path / "run").record["versions"]["pytest"] == pytest.__version__


@pytest.mark.usefixtures("forked_workers")
def test_a_failing_run_is_recorded_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: dict[str, Any] = {"steps": 150, "eval_every": 150, "eval_episodes": 1}
    plan = [spec_of(env="compare_toys:Failing-v0", **numbers), spec_of(**numbers)]
    failed = run_plan(plan, tmp_path, lambda: LocalEngine(1), "")
    assert failed == [(plan[0], FAILED)]
    first, second = (read_run(spec.folder(tmp_path)) for spec in plan)
    assert (first.state, second.state) == (FAILED, FINISHED)
    assert "RuntimeError: the pendulum broke" in first.record["traceback"]
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "2 runs, 0 of them finished before"
    assert lines[1].split() == ["environment", "algorithm", "seed", "state", "steps", "return", "CPU", "s"]
    assert any("Failing-v0" in line and "failed" in line for line in lines)
    assert any("Global-v0" in line and re.search(r"finished +150 / 150 \(100 %\)", line) for line in lines)
    # what has finished is not started again
    monkeypatch.setattr(LocalEngine, "start", lambda self, job: pytest.fail(f"started {job}"))
    assert run_plan(plan[1:], tmp_path, lambda: LocalEngine(1), "") == []


def test_without_a_terminal_every_evaluation_is_a_line_below_a_header(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [spec_of(), spec_of(env="Pendulum-v1")]
    rows = [CurveRow(steps, 0.0, 10.0 * steps, 1.0 * steps, 1.0, 50.0, 5, 0.0) for steps in (0, 80, 160)]
    first, second = (spec.folder(tmp_path.resolve()) for spec in plan)
    for folder in (first, second):
        folder.mkdir(parents=True)
    write_curve(first, rows[:1])  # of before an interruption: not printed again
    board = Runs(plan, tmp_path, plan)
    lines = Lines(board)
    board.states[str(first)] = RUNNING
    lines.show(str(first))
    write_curve(first, rows)
    lines.show(None)
    lines.show(None)
    write_curve(second, rows[:1])
    board.states[str(second)] = FINISHED
    lines.show(str(second))
    assert capsys.readouterr().out.splitlines() == [
        "environment             algorithm  seed  state                      steps     return    CPU s",
        "compare_toys:Global-v0  sac        3     running            0 / 300 (0 %)        0.0        0",
        "compare_toys:Global-v0  sac        3     running          80 / 300 (26 %)       80.0      800",
        "compare_toys:Global-v0  sac        3     running         160 / 300 (53 %)      160.0    1,600",
        "Pendulum-v1             sac        3     running            0 / 300 (0 %)        0.0        0",
        "Pendulum-v1             sac        3     finished           0 / 300 (0 %)        0.0        0",
    ]


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("code", [0, 3])
def test_an_environment_that_exits_is_a_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("COMPARE_TOYS_EXIT", str(code))
    plan = [spec_of(env="compare_toys:Exiting-v0", steps=150, eval_every=150, eval_episodes=1)]
    assert run_plan(plan, tmp_path, lambda: LocalEngine(1), "") == [(plan[0], FAILED)]
    assert "SystemExit" in read_run(plan[0].folder(tmp_path)).record["traceback"]


def test_a_device_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    spec = spec_of(steps=60, eval_every=60, device="cuda")
    assert not run_job(spec, tmp_path / "run", "")
    assert "RuntimeError: device 'cuda' cannot be used here" in read_run(tmp_path / "run").record["traceback"]
    assert run_job(replace(spec, device="auto"), tmp_path / "other", "")


def test_other_runs_in_the_folder_are_refused(tmp_path: Path) -> None:
    spec = spec_of(steps=60, eval_every=60)
    folder = spec.folder(tmp_path)
    assert run_job(spec, folder, "")
    assert unfinished([spec, replace(spec, seed=4)], tmp_path) == [replace(spec, seed=4)]
    assert unfinished([replace(spec, source="elsewhere")], tmp_path) == []
    with pytest.raises(ValueError, match="steps is 60 there, 90 here"):
        unfinished([replace(spec, steps=90)], tmp_path)
    with pytest.raises(ValueError, match="hyperparameters is"):
        unfinished([replace(spec, hyperparameters={})], tmp_path)

    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(ValueError, match="results format 99, this version reads and writes format 1"):
        unfinished([spec], tmp_path)
    with pytest.raises(ValueError, match="results format 99"):
        read_runs(tmp_path)
    without = {name: value for name, value in record.items() if name != "processor"}
    unknown = record | {"specification": record["specification"] | {"new": 1}}
    for text in ("{", "[]", '{"format": 1}', json.dumps(without), json.dumps(unknown)):
        (folder / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json does not describe a run"):
            read_runs(tmp_path)


def test_one_process_at_a_time_has_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(steps=60, eval_every=60)
    job = make_job(spec, tmp_path, "")
    folder = Path(job["folder"])
    folder.mkdir(parents=True)
    monkeypatch.setattr(worker, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(worker, "end_with_input", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job) + "\n"))
    with locked(folder, 0.1), pytest.raises(SystemExit) as ended:
        worker.main()
    assert ended.value.code == IN_USE_CODE
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert run_job(spec, folder, "")
    # whoever waited for the lock finds the run finished, and keeps it
    before = (folder / "run.json").stat().st_mtime_ns
    assert run_job(spec, folder, "")
    assert (folder / "run.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds another run: steps is 60 there, 90 here"):
        run_job(replace(spec, steps=90), folder, "")


def test_the_lock_is_waited_for(tmp_path: Path) -> None:
    """The process of a command that was killed takes a moment to end."""
    with locked(tmp_path, 0), pytest.raises(InUseError, match="another process is at work in"), locked(tmp_path, 0):
        pass
    with contextlib.ExitStack() as first:
        first.enter_context(locked(tmp_path, 0))
        threading.Timer(0.3, first.close).start()
        with locked(tmp_path, 60):
            pass


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked"), locked(tmp_path, 0):
        pass


def test_the_command_says_that_a_run_is_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(LocalEngine):
        def start(self, job: Any) -> None:
            self.job = job

        def poll(self) -> list[tuple[Any, int]]:
            return [(self.job, IN_USE_CODE)]

    monkeypatch.setattr(command, "LocalEngine", Busy)
    arguments = ["--env", "Pendulum-v1", "--algo", "sac", "--seeds", "0", "--steps", "10", "--out", str(tmp_path)]
    assert run_command_line({"benchmark": command}, ["benchmark", *arguments]) == 1
    printed = capsys.readouterr()
    assert f"{tmp_path / 'Pendulum-v1/sac/0'}: {IN_USE}" in printed.err
    assert IN_USE in printed.out


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    assert run_job(spec, tmp_path / "whole", "")
    sac: Any = find_algorithm("sac")
    save = sac.save_replay_buffer

    def full(model: PWM, path: Path) -> None:
        if model.num_timesteps > 150:
            raise OSError("no space left on device")
        save(model, path)

    monkeypatch.setattr(sac, "save_replay_buffer", full)
    assert not run_job(spec, tmp_path / "full", "")
    assert "no space left" in read_run(tmp_path / "full").record["traceback"]
    assert [path.name for path in (tmp_path / "full").glob("checkpoint*")] == ["checkpoint-1"]
    monkeypatch.undo()
    assert run_job(spec, tmp_path / "full", "")
    assert_same_outcome(tmp_path / "whole", tmp_path / "full")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_runs_die_with_the_benchmark(tmp_path: Path) -> None:
    arguments = ["--env", "compare_toys:Global-v0", "--algo", "sac", "--seeds", "0", "--out", str(tmp_path)]
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_pwm.benchmark", *arguments], env=os.environ | {"PYTHONPATH": paths}
    )
    record = tmp_path / "compare_toys-Global-v0" / "sac" / "0" / "progress.json"
    wait_until(record.exists)
    assert writes_log(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not writes_log(tmp_path))


def writes_log(folder: Path) -> bool:
    """Return whether a process has its log in the folder."""
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if str(folder) in os.readlink(link):
                return True
        except OSError:  # has ended meanwhile
            continue
    return False


def wait_until(condition: Callable[[], bool], seconds: int = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--env", "Pendlum-v1"], "did you mean Pendulum-v1"),
        (["--env", "Pendulum-v1", "--algo", "sacc"], "did you mean sac"),
        (["--env", "Pendulum-v1", "--jobs", "0"], "jobs=0"),
        (["--env", "Pendulum-v1", "--seeds", "4294967296", "0"], "seed=4294967296"),
    ):
        with pytest.raises(SystemExit) as error:
            run_command_line({"benchmark": command}, ["benchmark", *arguments, "--out", str(tmp_path)])
        assert error.value.code == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("env", "algo", "entry", "messages"),
    [
        ("Pendulum-v1", "pwm", "horizon: 4.5", ["PWM's horizon must be int, not 4.5"]),
        ("Pendulum-v1", "pwm", "critic_learning_rate: [1]", ["critic_learning_rate must be a number", "not [1]"]),
        ("Pendulum-v1", "wide=pwm", "policy_kwargs: {latent_dim: 12}", ["latent_dim=12 must be"]),
        ("Pendulum-v1", "ppo", "policy_kwargs: {net_ach: [8]}", ["net_ach"]),
        ("Pendulum-v1", "sac", "env_kwargs: {gravity: 9.8}", ["gravity"]),
        (
            "Pendulum-v1",
            "sac",
            "env_kwargs: [9.8]",
            ["env_kwargs=[9.8]; allowed: arguments of the environment by name"],
        ),
        ("Pendulum-v1", "sac", "env_kwargs: {g: 2026-01-01}", ["date is not JSON serializable"]),
        ("Pendulum-v1", "sac", "env_kwargs: {g: {3: 10.0}}", ["env_kwargs: {'g': {3: 10.0}} does not come back from"]),
        ("Pendulum-v1", "sac", "env_kwargs: {g: .inf}", ["env_kwargs: {'g': inf} does not come back from JSON"]),
        ("Pendulum-v1", "sac", "gamma: .nan", ["gamma: nan does not come back from JSON"]),
        ("CartPole-v1", "sac", "{}", ["Box", "Discrete(2)"]),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_first_run(
    env: str, algo: str, entry: str, messages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("yaml")
    file, out = tmp_path / "mine.yml", tmp_path / "results"
    file.write_text(f"default: {{ {entry} }}" if entry != "{}" else "default: {}")
    arguments = ["--env", env, "--algo", algo, "--seeds", "0", "--hyperparameters", str(file), "--out", str(out)]
    with pytest.raises(SystemExit) as error:
        run_command_line({"benchmark": command}, ["benchmark", *arguments])
    assert error.value.code == 2
    printed = capsys.readouterr().err
    for message in [f"error: {algo.partition('=')[0]} in {env}: ", *messages]:
        assert message in printed
    assert not out.exists()


def test_algorithms_in_different_environments_are_refused_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("yaml")
    for name, entry in (("sac", "{g: 5.0}"), ("td3", "dict(g=5.0)"), ("ppo", "{g: 6.0}")):
        (tmp_path / f"{name}.yml").write_text(
            f"default: {{env_kwargs: '{entry}'}}".replace("'{", "{").replace("}'", "}")
        )
    arguments = ["--env", "Pendulum-v1", "--seeds", "0", "--steps", "0", "--out", str(tmp_path / "out")]
    files = [f"--hyperparameters={name}={tmp_path}/{name}.yml" for name in ("sac", "td3")]
    with pytest.raises(SystemExit):  # equal, in two forms: refused for its steps alone
        run_command_line({"benchmark": command}, ["benchmark", *arguments, "--algo", "sac", "td3", *files])
    assert "steps=0" in capsys.readouterr().err
    arguments[arguments.index("0", 4)] = "10"
    for algos in (["sac", "ppo"], ["sac", "ddpg"]):
        files = [f"--hyperparameters={name}={tmp_path}/{name}.yml" for name in algos if name != "ddpg"]
        with pytest.raises(SystemExit):
            run_command_line({"benchmark": command}, ["benchmark", *arguments, "--algo", *algos, *files])
        assert "Pendulum-v1: the algorithms have different env_kwargs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_that_are_only_checked_are_small_and_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Noting(SAC):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.itself = self  # as models and their parts refer to each other
            made.append((weakref.ref(self), self.buffer_size))

    monkeypatch.setattr(segments, "find_algorithm", lambda name: Noting)
    check_models([spec_of(algo="sac", steps=1_000_000, seed=seed) for seed in (0, 1)])
    assert [(model(), size) for model, size in made] == [(None, 10_000)]


def test_ray_runs_the_same_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        spec = spec_of(steps=150, eval_every=150)
        assert run_plan([spec], tmp_path, RayEngine, "") == []
        assert run_job(spec, tmp_path / "here", "")
        assert_same_outcome(spec.folder(tmp_path), tmp_path / "here")
    finally:
        ray.shutdown()
