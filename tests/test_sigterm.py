"""Rendering does not swallow SIGTERM, with which ``timeout``, Slurm and containers end a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import make

SCRIPT = '''
import json, os, signal, sys, time
import gymnasium as gym
import torch._dynamo  # or every process would do it, with its first optimizer
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from helpers import make
from sb3_pwm.video import RecordVideoCallback
from sb3_pwm.cli.subcommands import run_command_line
from sb3_pwm.cli import record


class Ended(PendulumEnv):
    """Pendulum that is ended from outside in its third step, between frames."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            print("still there", flush=True)
        return super().step(action)


gym.register("Ended-v0", Ended, max_episode_steps=20)


class Rendered(Ended):
    """The same, which draws itself at every step."""

    def __init__(self):
        super().__init__(render_mode="rgb_array")

    def step(self, action):
        self.render()
        return super().step(action)


def training_env():
    make(gym.wrappers.TimeLimit(Rendered(), 20)).learn(20)


def callback():
    make(gym.make("Pendulum-v1")).learn(20, RecordVideoCallback("Ended-v0", sys.argv[1], 10, max_steps=5))


def command():
    path = sys.argv[1] + "/model.zip"
    code = run_command_line({"record": record}, ["record", path, "--env", "Ended-v0", "--out", path + ".mp4"])
    print("code", code)


def own_handler():
    """A handler that the user has installed is called."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    callback()


def outcome(case):
    """Exit code and output of a case in a process of its own, which need not import everything again."""
    files = [os.path.join(sys.argv[1], f"{case.__name__}.{i}") for i in (1, 2)]
    pid = os.fork()
    if not pid:
        for i, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), i)
        case()
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, *(open(file).read() for file in files)


print(json.dumps({case.__name__: outcome(case) for case in (training_env, callback, command, own_handler)}))
'''


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("pygame")
    folder = tmp_path_factory.mktemp("ended")
    make("Pendulum-v1").save(folder / "model.zip")
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=Path(__file__).parent,
        env={k: v for k, v in os.environ.items() if k not in ("SDL_NO_SIGNAL_HANDLERS", "SDL_VIDEODRIVER")},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "code"), [("training_env", -15), ("callback", -15), ("command", -15), ("own_handler", 7)]
)
def test_sigterm_ends_what_renders(outcomes: dict[str, Any], name: str, code: int) -> None:
    assert outcomes[name][:2] == [code, ""]
    if name != "training_env":  # which draws in its own way
        assert outcomes[name][2] == ""
