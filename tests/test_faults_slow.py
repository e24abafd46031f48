"""200 times Ctrl-C and 50 times kill -9 at random moments: nothing finished is lost, and nothing false is stored."""

import csv
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fault_toys import false_steps
from helpers import SMALL, SMALL_POLICY, TruthEnv, make, truth_envs
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_pwm import PWM

pytestmark = pytest.mark.slow
CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def ctrl_c_counts() -> Iterator[None]:
    """A shell lets its background processes ignore Ctrl-C, and so their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def with_ctrl_c(action: Callable[[], Any], delay: float, children: Iterable[int] = ()) -> None:
    """Call ``action``, which goes on for ever, until Ctrl-C comes after a time; a swallowed one fails the test.

    As in a terminal, it goes to the processes ``children`` too, whose end may be noticed first.
    """
    sent = []

    def send(late: bool = False) -> None:
        sent.append(late)
        for process in (*children, os.getpid()):
            os.kill(process, signal.SIGINT)

    timers = threading.Timer(delay, send), threading.Timer(delay + 60, send, [True])
    try:
        for timer in timers:  # the first may be over before the second has started
            timer.start()
        while True:
            action()
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:
        if not (children and "has ended" in str(error)):
            raise
    finally:
        timers[1].cancel()
    assert sent == [False]


def check_usable(model: PWM, path: Path, reset: bool) -> None:
    """Whatever was interrupted: the model saves, loads and learns, and its buffer holds nothing false."""
    assert false_steps(model.sequences) == 0
    model.save(path / "usable")
    model.save_replay_buffer(path / "usable_buffer")
    loaded = PWM.load(path / "usable")
    loaded.replay_buffer = None
    loaded.load_replay_buffer(path / "usable_buffer")
    assert loaded.num_timesteps == model.num_timesteps
    assert false_steps(loaded.sequences) == 0
    model.learn(24, reset_num_timesteps=reset)
    assert false_steps(model.sequences) == 0


def learning(model: PWM, path: Path) -> None:
    model.learn(10**6, CheckpointCallback(100, str(path), save_replay_buffer=True), reset_num_timesteps=False)


def learning_offline(model: PWM, path: Path) -> None:
    model.learn_offline(10**6, pretrain_steps=5)


def saving(model: PWM, path: Path) -> None:
    model.save(path / "again")
    model.save_replay_buffer(path / "again_buffer")


def processes(n_envs: int) -> SubprocVecEnv:
    return SubprocVecEnv([partial(TruthEnv, i) for i in range(n_envs)], start_method="fork")


DOORS: dict[str, tuple[Callable[[PWM, Path], None], Callable[[], Any]]] = {
    "learn": (learning, truth_envs),
    "learn in two environments": (learning, partial(truth_envs, 2)),
    "learn in two processes": (learning, partial(processes, 2)),
    "learn offline": (learning_offline, truth_envs),
    "save": (saving, truth_envs),
}


@pytest.mark.parametrize("door", DOORS)
def test_forty_interrupts(tmp_path: Path, door: str) -> None:
    action, envs = DOORS[door]
    numbers = random.Random(door)
    model = make(envs(), buffer_size=300, action_noise=None).learn(60)
    saving(model, tmp_path)
    for i in range(40):
        with_ctrl_c(partial(action, model, tmp_path), numbers.uniform(0, 0.6))
        check_usable(model, tmp_path, reset=i % 4 == 0)
        files = [tmp_path / "again.zip", *tmp_path.glob("rl_model_*.zip")]
        buffers = [tmp_path / "again_buffer.pkl", *tmp_path.glob("rl_model_*.pkl")]
        PWM.load(max(files, key=os.path.getmtime))
        model.load_replay_buffer(max(buffers, key=os.path.getmtime))
        assert false_steps(model.sequences) == 0
    model.env.close()


@pytest.mark.parametrize(("start_method", "times"), [("fork", 8), ("forkserver", 2)])
def test_interrupts_that_end_the_processes_too(tmp_path: Path, start_method: str, times: int) -> None:
    numbers = random.Random(start_method)
    model = make(truth_envs(2), buffer_size=300).learn(60)
    for i in range(times):
        env = SubprocVecEnv([partial(TruthEnv, 1_000 * j) for j in range(2)], start_method=start_method)
        model.set_env(env)
        workers = [process.pid for process in env.processes]
        with_ctrl_c(partial(learning, model, tmp_path), numbers.uniform(0, 0.5), workers)
        with pytest.raises(RuntimeError, match="make the environments anew"):
            model.learn(10)
        model.set_env(truth_envs(2))
        check_usable(model, tmp_path, reset=i % 2 == 0)


def save_for_ever(path: Path, counter: Any) -> None:
    model = make(truth_envs(2)).learn(60)
    while True:
        model.num_timesteps = counter.value + 1
        model.save(path / "model")
        model.save_replay_buffer(path / "buffer")
        model.save_world_model(path / "world_model.pt")
        counter.value += 1


def test_thirty_kills_while_saving(tmp_path: Path) -> None:
    numbers = random.Random(0)
    counter = CONTEXT.Value("i", 0)
    for _ in range(30):
        before = counter.value
        process = CONTEXT.Process(target=save_for_ever, args=(tmp_path, counter))
        process.start()
        while counter.value == before:
            time.sleep(0.01)
        time.sleep(numbers.uniform(0, 0.3))
        process.kill()
        process.join()
        model = PWM.load(tmp_path / "model", env=truth_envs(2))
        assert model.num_timesteps >= counter.value
        model.load_replay_buffer(tmp_path / "buffer")
        model.load_world_model(tmp_path / "world_model.pt")
        assert false_steps(model.sequences) == 0


def benchmark(out: Path) -> subprocess.Popen[bytes]:
    files = out.parent / "small.yml"
    files.write_text(f"Pendulum-v1:\n  n_timesteps: 300\n  policy_kwargs: {SMALL_POLICY}\n" + settings())
    options = "--env Pendulum-v1 --algo pwm --seeds 0 1 2 --steps 300 --eval-every 100 --eval-episodes 1"
    options += f" --checkpoint-every 60 --jobs 3 --out {out} --hyperparameters {files}"
    return subprocess.Popen(
        [sys.executable, "-m", "sb3_pwm.cli.main", "benchmark", *options.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def settings() -> str:
    names = ("learning_starts", "pretrain_steps", "train_freq", "batch_size", "sequence_length", "horizon")
    return "".join(f"  {name}: {SMALL[name]}\n" for name in names)


def curves(out: Path) -> dict[Path, list[list[str]]]:
    return {path: list(csv.reader(path.open())) for path in sorted(out.rglob("curve.csv"))}


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 20), (signal.SIGINT, 10)])
def test_a_benchmark_that_is_ended_again_and_again(tmp_path: Path, number: int, times: int) -> None:
    numbers = random.Random(int(number))
    out = tmp_path / "results"
    known: dict[Path, list[list[str]]] = {}
    for _ in range(times):
        process = benchmark(out)
        time.sleep(numbers.uniform(2, 12))
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        now = curves(out)
        for path, rows in known.items():
            reached = [row for row in now[path] if row in rows]
            assert len(reached) >= 1  # the header; rows since the last checkpoint may come again
        finished = {path for path, rows in known.items() if rows[-1][0] == "300"}
        assert all(now[path] == known[path] for path in finished)
        known = now
    process = benchmark(out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert [rows[-1][0] for rows in curves(out).values()] == ["300"] * 3
