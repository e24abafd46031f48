"""examples/quickstart.py does what it promises."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from forked import FORK

from sb3_pwm import PWM

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "quickstart.py"
TABLE = re.compile(
    r"^policy +return mean +std +env steps +seconds\n"
    r"PWM +-?\d+\.\d +\d+\.\d +\d+ +\d+\nrandom +-?\d+\.\d +\d+\.\d +0 +0$",
    re.M,
)


def arguments(out: Path, env_id: str) -> list[str]:
    return ["--env", env_id, "--steps", "300", "--episodes", "1", "--out", str(out)]


def load_script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("quick_defaults")
def test_trains_prints_a_table_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert load_script().main(arguments(tmp_path / "out", "Pendulum-v1")) == 0
    printed = capsys.readouterr().out
    assert TABLE.search(printed), printed
    assert (tmp_path / "out" / "model.zip").stat().st_size > 0
    video = tmp_path / "out" / "episode.mp4"
    if video.exists():
        assert video.stat().st_size > 1_000
        assert "video of one episode" in printed
    else:
        assert "no video: cannot render Pendulum-v1" in printed


@pytest.mark.usefixtures("quick_defaults")
def test_succeeds_where_nothing_can_be_rendered(tmp_path: Path) -> None:
    def run() -> None:
        os.environ["MUJOCO_GL"] = "disabled"
        with (tmp_path / "printed").open("w") as file, contextlib.redirect_stdout(file):
            sys.exit(load_script().main(arguments(tmp_path / "out", "InvertedPendulum-v5")))

    process = FORK.Process(target=run)  # which keeps the variable, and what MuJoCo makes of it, to itself
    process.start()
    process.join()
    assert process.exitcode == 0
    printed = (tmp_path / "printed").read_text()
    assert TABLE.search(printed), printed
    assert "no video: cannot render InvertedPendulum-v5" in printed
    assert not (tmp_path / "out" / "episode.mp4").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_saves_the_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments(out, "Pendulum-v1")],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"},
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "  world model  " in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 130, rest
    assert "the model so far" in rest
    model = PWM.load(out / "model.zip", device="cpu")
    assert 0 < model.num_timesteps < 300


@pytest.mark.parametrize("options", [["--steps", "299"], ["--episodes", "0"]])
def test_refuses_too_little(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        load_script().main(options)
    assert error.value.code == 2
    assert f"{options[0]} must be at least" in capsys.readouterr().err
