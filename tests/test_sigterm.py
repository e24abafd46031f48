"""Rendering does not swallow SIGTERM, with which ``timeout``, Slurm and containers end a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make

SCRIPT = '''
import os, signal, sys, time
import gymnasium as gym
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
    make(gym.make("Pendulum-v1")).learn(20, RecordVideoCallback("Ended-v0", sys.argv[2], 10, max_steps=5))


def command():
    path = sys.argv[2]
    code = run_command_line({"record": record}, ["record", path, "--env", "Ended-v0", "--out", path + ".mp4"])
    print("code", code)


def own_handler():
    """A handler that the user has installed is called."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    callback()


globals()[sys.argv[1]]()
'''


@pytest.mark.parametrize(
    ("name", "code"), [("training_env", -15), ("callback", -15), ("command", -15), ("own_handler", 7)]
)
def test_sigterm_ends_what_renders(tmp_path: Path, name: str, code: int) -> None:
    pytest.importorskip("pygame")
    make("Pendulum-v1").save(tmp_path / "model.zip")
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(tmp_path / "model.zip" if name == "command" else tmp_path)],
        cwd=Path(__file__).parent,
        env={k: v for k, v in os.environ.items() if k not in ("SDL_NO_SIGNAL_HANDLERS", "SDL_VIDEODRIVER")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (code, "")
    if name != "training_env":  # which draws in its own way
        assert ended.stderr == ""
