import importlib
import pickle
import re
import runpy
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import sb3_pwm.suites
from sb3_pwm.benchmark.plan import check_env
from sb3_pwm.multitask.tasks import TaskSet
from sb3_pwm.suites import mt10, mt30, mt50, mt80
from sb3_pwm.suites.simulators import check_render_mode

DOCS = Path(__file__).resolve().parents[1] / "docs"
DOCUMENT, TABLE = DOCS / "many-tasks.md", DOCS / "research" / "many-tasks.md"

# Places in TD-MPC2's MT80, counted in its file: published data and checkpoints go by them.
PLACES = {
    "walker-stand": 0,
    "cheetah-run": 3,
    "pendulum-swingup": 7,
    "cup-catch": 12,
    "fish-swim": 16,
    "hopper-hop": 18,
    "walker-walk-backwards": 19,
    "cheetah-jump": 24,
    "hopper-hop-backwards": 25,
    "pendulum-spin": 29,
    "mw-assembly": 30,
    "mw-button-press": 34,
    "mw-door-open": 41,
    "mw-faucet-open": 45,
    "mw-lever-pull": 52,
    "mw-pick-place": 56,
    "mw-push": 63,
    "mw-reach": 65,
    "mw-stick-pull": 70,
    "mw-window-close": 74,
    "mw-bin-picking": 75,
    "mw-hand-insert": 79,
}


@pytest.mark.parametrize(
    ("make", "n_tasks", "observation_size", "action_size"),
    [(mt10, 10, 39, 4), (mt30, 30, 24, 6), (mt50, 50, 39, 4), (mt80, 80, 39, 6)],
)
def test_sizes(make: Callable[[], TaskSet], n_tasks: int, observation_size: int, action_size: int) -> None:
    task_set = make()
    assert (len(task_set), task_set.observation_size, task_set.action_size) == (n_tasks, observation_size, action_size)
    assert pickle.loads(pickle.dumps(task_set)) == task_set  # also the functions that make environments


def test_order() -> None:
    names = mt80().names
    assert {name: names.index(name) for name in PLACES} == PLACES
    assert names == mt30().names + mt50().names
    assert set(mt10().names) < set(mt50().names)
    assert mt10().names[0] == "mw-reach"


def test_episode_lengths() -> None:
    assert {task.episode_length for task in mt30()} == {500}
    assert {task.episode_length for task in mt50()} == {100}


def test_every_task_has_an_id_and_the_episode_length_of_the_set() -> None:
    limits = {name: spec.max_episode_steps for name, spec in gym.registry.items() if spec.namespace == "mt80"}
    assert limits == {f"mt80/{task.name}-v0": task.episode_length for task in mt80()}
    assert (limits["mt80/cheetah-run-v0"], limits["mt80/mw-reach-v0"]) == (500, 100)


def test_ids_are_registered_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Gymnasium warns of ids that are there
        importlib.reload(sb3_pwm.suites)


def versions(monkeypatch: pytest.MonkeyPatch, **installed: Any) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("sb3_pwm.suites.simulators.metadata.version", version)


@pytest.mark.parametrize(("name", "package"), [("walker-run", "dm_control"), ("mw-reach", "metaworld")])
@pytest.mark.parametrize(
    ("mujoco", "message"),
    [
        (None, "needs {package}, of the extra 'multitask': make install-multitask"),
        ("4.0.0", "{package} does not work with MuJoCo 4.0.0, it needs mujoco<4: make install-multitask"),
    ],
)
def test_without_the_simulators(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, mujoco: str | None, message: str
) -> None:
    versions(monkeypatch, **({package: "1.0", "mujoco": mujoco} if mujoco else {"mujoco": "3.3.0"}))
    task_set = mt80()
    with pytest.raises(ImportError, match=message.format(package=package)):
        task_set[task_set.task_id(name)].make_env()
    with pytest.raises(ImportError, match=message.format(package=package)):
        gym.make(f"sb3_pwm.suites:mt80/{name}-v0")
    with pytest.raises(ValueError, match="cannot make environment.*" + message.format(package=package)):
        check_env(f"sb3_pwm.suites:mt80/{name}-v0")


def test_render_modes() -> None:
    check_render_mode("rgb_array")
    with pytest.raises(ValueError, match="render_mode='human'"):
        check_render_mode("human")
    with pytest.raises(ValueError, match="render_mode='human'"):
        gym.make("mt80/mw-reach-v0", render_mode="human")  # before the simulator is asked


def test_the_listing(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("sb3_pwm.suites", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 82
    assert lines[2] == "| 0 | walker-stand | 24 | 6 | 500 |"
    assert lines[-1] == "| 79 | mw-hand-insert | 39 | 4 | 100 |"


def test_the_documented_list(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("sb3_pwm.suites", run_name="__main__")
    assert TABLE.read_text().endswith("\n\n" + capsys.readouterr().out)


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)[0]
    names: dict[str, Any] = {}
    short = example.replace("2_000", "300").replace('extract("swing", env', 'extract("swing", 3, env')
    short = short.replace('{"task_set": tasks})', '{"task_set": tasks}, learning_starts=290, pretrain_steps=2)')
    assert (short.count('swing", 3'), short.count("learning_starts=290")) == (1, 1)
    exec(short, names)
    assert names["model"].num_timesteps >= 300
    assert names["swing"].num_timesteps == 3
    assert (tmp_path / "swing.zip").exists()
