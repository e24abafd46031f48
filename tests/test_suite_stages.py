"""``sb3-pwm suite``: five stages whose files follow from each other."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import suite_toys
import torch

from sb3_pwm import PWM, Task, TaskSet, presets
from sb3_pwm.cli import suite as command
from sb3_pwm.cli.main import COMMANDS
from sb3_pwm.cli.subcommands import run_command_line
from sb3_pwm.datasets import from_arrays, from_tasks
from sb3_pwm.multitask.extraction import spaces_of_task
from sb3_pwm.suites import records, stages
from sb3_pwm.suites.stages import find_suite


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


SMALL = settings('policy_kwargs={"net_arch":[16],"latent_dim":16}', "batch_size=8")
OPTIONS = {
    "collect": ["--steps", "60", *SMALL, *settings("learning_starts=20", "pretrain_steps=2", "train_freq=8")],
    "train": ["--updates", "12", "--checkpoint-every", "5", *SMALL],
    "extract": ["--updates", "3"],
    "baselines": [],
    "evaluate": ["--episodes", "2", "--methods", *stages.METHODS],
}


def run(stage: Any, out: Any, *options: Any, suite: Any = "suite_toys:toys") -> Any:
    own = [*OPTIONS[stage], *map(str, options)]
    return run_command_line(COMMANDS, ["suite", stage, "--suite", suite, "--out", str(out), *own])


@pytest.fixture(autouse=True, scope="module")
def few_timed_actions() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "TIMED_ACTIONS", 2)
        yield


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry out units in this process: to start one takes longer than the work."""
    monkeypatch.setattr(command, "run_jobs", carry_out_here)


def carry_out_here(jobs: Any, *_: Any) -> Any:
    for job in jobs:
        Path(job["folder"]).mkdir(parents=True, exist_ok=True)
        stages.carry_out(job)
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any) -> Any:
    out = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_jobs", carry_out_here)
        assert [run(stage, out) for stage in OPTIONS] == [0] * 5
    return out


def rows_of(out: Any, method: Any = "extracted") -> Any:
    """What table.csv says of a method, by task, without its times."""
    rows = [row for row in csv.DictReader((out / "table.csv").open()) if row["method"] == method]
    return {row["task"]: {name: row[name] for name in row if name != "ms_per_action"} for row in rows}


@pytest.fixture
def copied(finished: Any, tmp_path: Path) -> Any:
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_suite_runs_through_all_stages(finished: Any, here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(finished)
    assert list(rows) == ["right", "left", "deadly", "mean"]
    for column in ("return_mean", "success_rate", "success_once_rate"):
        values = [float(rows[task][column]) for task in suite_toys.toys().names]
        assert float(rows["mean"][column]) == pytest.approx(np.mean(values), abs=1e-3)
    policy = PWM.load(finished / "extract" / "left" / "model.zip")
    assert policy.observation_space.shape == (2,)
    assert not list((finished / "train").glob("checkpoint*"))
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.*") if path.name != "table.csv"}
    assert [run(stage, finished) for stage in OPTIONS] == [0] * 5  # all there
    printed = capsys.readouterr().out
    assert "extract: 3 to do, 3 of them finished before" in printed
    assert "evaluate: 15 to do, 15 of them finished before" in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_another_command_has_finished_meanwhile_is_not_made_again(
    copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(copied / "collect" / "left", copied / "elsewhere")

    def finished_first(jobs: Any, *_: Any) -> Any:
        shutil.move(copied / "elsewhere", copied / "collect" / "left")
        return carry_out_here(jobs)

    known = {path: path.stat().st_mtime_ns for path in (copied / "elsewhere").iterdir()}
    monkeypatch.setattr(command, "run_jobs", finished_first)
    assert run("collect", copied) == 0
    found = {path.name: path.stat().st_mtime_ns for path in (copied / "collect" / "left").iterdir()}
    assert {path.name: known[path] for path in known}.items() <= found.items()


def test_a_killed_stage_goes_on_and_gives_the_same_table(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for task in ("right", "left"):
        shutil.copytree(finished / "collect" / task, tmp_path / "collect" / task)
    (tmp_path / "armed").touch()
    monkeypatch.setenv(suite_toys.KILL_FOLDER, str(tmp_path))
    assert run("collect", tmp_path) == 1
    printed = capfd.readouterr()
    assert re.search(r"^deadly +killed \(-9\)", printed.out, re.M)
    assert "deadly: killed (-9); see " in printed.err
    assert not (tmp_path / "armed").exists()
    monkeypatch.setattr(command, "run_jobs", carry_out_here)
    assert run("collect", tmp_path) == 0
    assert "3 to do, 2 of them finished before" in capfd.readouterr().out
    assert [run(stage, tmp_path) for stage in ("train", "extract")] == [0] * 2
    assert run("evaluate", tmp_path, "--methods", "extracted") == 0
    known, again = rows_of(finished), rows_of(tmp_path)
    assert again == {task: {name: row[name] for name in again[task]} for task, row in known.items()}


@pytest.mark.parametrize(
    ("folder", "what", "figures"),
    [
        ("collect/left", "60 / 60 steps", ["return"]),
        ("train", "12 / 12 updates", ["model loss"]),
        ("extract/left", "3 / 3 updates", ["imagined return"]),
        ("baselines/single/left", "7 / 7 updates", ["imagined return"]),
        ("evaluate/planner/left", "2 / 2 episodes", ["return", "success"]),
    ],
)
def test_every_stage_notes_how_far_it_is(finished: Any, folder: str, what: str, figures: Any) -> None:
    noted = json.loads((finished / folder / "progress.json").read_text())
    assert f"{noted['done']} / {noted['total']} {noted['what']}" == what
    assert list(noted["figures"]) == figures


def test_baselines_have_the_same_model_and_as_many_updates(finished: Any) -> None:
    shared = PWM.load(finished / "train" / "model.zip").policy.world_model.state_dict()
    for method in ("prior", "cloning"):
        policy = PWM.load(finished / "baselines" / method / "left" / "model.zip")
        assert policy._n_updates == 3
        own = policy.policy.world_model.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in shared.items())
    single = PWM.load(finished / "baselines" / "single" / "left" / "model.zip")
    assert (single.n_model_updates, single._n_updates) == (12 // 3, 3)
    assert single.policy.world_model.latent_dim == 16  # the settings of the model of all tasks
    actions = {method: rows_of(finished, method)["left"]["return_mean"] for method in stages.METHODS}
    assert len(set(actions.values())) == 5  # also the planner's and the prior's, which are of the same model


def test_recorded_actions_are_cloned_though_others_have_more_reward() -> None:
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (301, 2)).astype(np.float32)
    actions = 0.8 * np.sign(observations[:-1, :1])
    data: dict[str, Any] = {
        "observations": observations[:-1],
        "next_observations": observations[1:],
        "actions": actions,
    }
    data |= {"rewards": -5 * actions[:, 0], "terminals": np.zeros(300, bool), "timeouts": np.arange(300) % 10 == 9}
    task_set = TaskSet([Task("only", None, 2, 1, 10)])
    own = from_arrays(data, *spaces_of_task(task_set, "only", None))
    settings: Any = {"policy_kwargs": {"net_arch": [32], "latent_dim": 16, "task_set": task_set}, "batch_size": 64}
    model = PWM.from_dataset(from_tasks(task_set, {"only": own}), "MultiTaskPolicy", seed=0, device="cpu", **settings)
    model.pretrain(50)
    cloned = model.extract("only", 150, seed=0, learning_rate=3e-3, **stages.BASELINES["cloning"])
    found = cloned.predict(observations[:-1], deterministic=True)[0]
    clear = np.abs(observations[:-1, 0]) > 0.3
    np.testing.assert_allclose(found[clear], actions[clear], atol=0.3)


def test_the_table_compares_with_the_single_task(tmp_path: Path) -> None:
    returns = {"a": {"extracted": 9.0, "single": 10.0}, "b": {"extracted": 5.0, "single": -1.0}}
    for task, found in returns.items():
        for method, value in found.items():
            folder = tmp_path / "evaluate" / method / task
            folder.mkdir(parents=True)
            (folder / "evaluation.json").write_text(json.dumps({"return_mean": value}))
    rows = command.table_rows(tmp_path, ["a", "b"], ["extracted", "single"])
    assert rows["a", "extracted"] == {"return_mean": 9.0, "of_single": 0.9}
    assert rows["b", "extracted"] == {"return_mean": 5.0}  # a share of a loss would mislead
    assert rows["mean", "extracted"] == {"return_mean": 7.0, "of_single": 0.9}
    assert "of_single" not in command.table_rows(tmp_path, ["a"], ["extracted"])["a", "extracted"]


def test_a_baseline_that_is_missing_or_of_another_revision_is_refused(
    copied: Any, here: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "baselines" / "prior" / "left")
    evaluated = refused(capsys, "evaluate", copied, "--methods", "planner")
    assert "prior/left has not finished; carry out the stage baselines first" in evaluated
    jobs: Any = []
    monkeypatch.setattr(command, "run_jobs", lambda found, *_: jobs.extend(found) or [])
    assert run("baselines", copied) == 0
    assert [job["folder"] for job in jobs] == [str(copied / "baselines" / "prior" / "left")]  # the others are there
    with monkeypatch.context() as patch:
        for module in (records, command):
            patch.setattr(module, "revision", lambda: "other")
        assert "is of revision" in refused(capsys, "baselines", copied)
    model = copied / "baselines" / "single" / "left" / "model.zip"
    model.write_bytes(model.read_bytes() + b".")
    assert f"{model} has the checksum" in refused(capsys, "baselines", copied)


def test_ray_carries_out_a_stage(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    known = (copied / "extract" / "left" / "record.json").read_text()
    shutil.rmtree(copied / "extract" / "left")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert run("extract", copied, "--engine", "ray") == 0
    finally:
        ray.shutdown()
    again = (copied / "extract" / "left" / "record.json").read_text()
    assert json.loads(again)["origin"] == json.loads(known)["origin"]
    assert PWM.load(copied / "extract" / "left" / "model.zip")._n_updates == 3


def test_an_interrupted_training_goes_on_from_its_checkpoint(
    copied: Any, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = PWM.load(copied / "train" / "model.zip")
    shutil.rmtree(copied / "train")
    with monkeypatch.context() as patch:
        update = PWM._update_model_alone

        def interrupted(model: Any, progress: Any) -> None:
            if model.n_model_updates == 8:
                raise KeyboardInterrupt
            update(model, progress)

        patch.setattr(PWM, "_update_model_alone", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stages.carry_out(first_job(copied, "train"))
    assert [path.name for path in (copied / "train").glob("checkpoint*")] == ["checkpoint-5.zip"]
    assert run("train", copied) == 0
    model = PWM.load(copied / "train" / "model.zip")
    assert model.n_model_updates == 12
    for name, tensor in known.policy.state_dict().items():
        assert torch.equal(tensor, model.policy.state_dict()[name]), name


def first_job(out: Any, stage: Any) -> Any:
    """The job that a command would carry out first."""
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_jobs", lambda found, *_: jobs.extend(found) or [])
        run(stage, out)
    Path(jobs[0]["folder"]).mkdir(parents=True, exist_ok=True)
    return jobs[0]


def refused(capsys: pytest.CaptureFixture[str], stage: Any, out: Any, *options: Any, **kwargs: Any) -> Any:
    with pytest.raises(SystemExit) as ended:
        run(stage, out, *options, **kwargs)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_files_of_something_else_are_refused(
    copied: Any, here: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "steps is 60 there, 70 here; choose another --out" in refused(capsys, "collect", copied, "--steps", "70")
    assert "seed is 0 there, 1 here" in refused(capsys, "extract", copied, "--seed", "1")
    with monkeypatch.context() as patch:
        for module in (records, command):
            patch.setattr(module, "revision", lambda: "other")
        assert "revision is " in refused(capsys, "collect", copied)
        assert "this is 'other'; go on with that one, or start anew" in refused(capsys, "train", copied)
    data = copied / "collect" / "left" / "data.pkl"
    data.write_bytes(data.read_bytes() + b".")
    assert f"{data} has the checksum" in refused(capsys, "train", copied)
    assert f"{data} has the checksum" in refused(capsys, "collect", copied)
    data.unlink()
    assert f"{data} is missing; remove {data.parent}" in refused(capsys, "extract", copied)


def test_what_follows_from_files_that_were_made_again_is_refused(
    copied: Any, here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied / "train")
    assert "train has not finished; carry out the stage train first" in refused(capsys, "extract", copied)
    assert run("train", copied) == 0
    assert "follows from train/model.zip as it was before" in refused(capsys, "evaluate", copied)
    assert "inputs is {'train/model.zip'" in refused(capsys, "extract", copied)


@pytest.mark.parametrize(
    ("options", "updates", "widths", "batch_size"),
    [
        ([], 25_000, None, None),
        (["--size", "large"], 30_000, [512, 512], 256),
        (["--size", "large", "--updates", "7", "--set", "batch_size=9"], 7, [512, 512], 9),
        (["--size", "large", "--set", 'policy_kwargs={"net_arch":[8]}'], 30_000, [8], 256),
    ],
)
def test_sizes(
    copied: Any, monkeypatch: pytest.MonkeyPatch, options: Any, updates: int, widths: Any, batch_size: Any
) -> None:
    shutil.rmtree(copied / "train")
    jobs: Any = []
    monkeypatch.setattr(command, "run_jobs", lambda found, *_: jobs.extend(found) or [])
    monkeypatch.setitem(OPTIONS, "train", [])
    monkeypatch.setitem(command.MOST_UPDATES, "small", 25_000)
    assert run("train", copied, *options) == 0
    origin = json.loads(json.dumps(jobs[0]))["origin"]
    settings = origin["settings"]
    sizes = settings.get("policy_kwargs", {}).get("net_arch")
    found = sizes["dynamics"] if isinstance(sizes, dict) else sizes
    assert (origin["updates"], found, settings.get("batch_size")) == (updates, widths, batch_size)
    assert settings.get("policy_kwargs", {}).get("latent_dim") == (512 if "large" in options else None)
    assert command.SIZES["large"] is presets.large


def test_a_record_that_is_none(copied: Any, here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "train" / "record.json").write_text(json.dumps({"origin": 3}))
    assert "record.json is not a record of a stage" in refused(capsys, "extract", copied)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("mt31", "there is no suite 'mt31'; allowed: mt10, mt30, mt50, mt80, or module:function"),
        ("suite_toys:KILL_FOLDER", "must be a function that returns a TaskSet"),
        ("suite_toys:nothing", "suite_toys:nothing must be a function that returns a TaskSet"),
        ("no_such_module:toys", "No module named 'no_such_module'"),
    ],
)
def test_bad_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str], suite: Any, message: str) -> None:
    assert message in refused(capsys, "collect", tmp_path, suite=suite)
    assert find_suite("mt10").names[0] == "mw-reach"


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("collect", ["--steps", "0"], "steps=0"),
        ("train", ["--checkpoint-every", "0"], "checkpoint_every=0"),
        ("evaluate", ["--episodes", "0"], "episodes=0"),
        ("extract", ["--jobs", "0"], "jobs=0"),
        ("collect", ["--set", "gamma"], "invalid setting value: 'gamma'"),
    ],
)
def test_bad_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: Any, options: Any, message: str
) -> None:
    assert message in refused(capsys, stage, tmp_path, *options)
    assert not list(tmp_path.iterdir())
