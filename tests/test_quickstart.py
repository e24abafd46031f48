"""examples/quickstart.py runs as a user runs it."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "quickstart.py"
TABLE = re.compile(
    r"^policy +return mean +std +env steps +seconds\n"
    r"PWM +-?\d+\.\d +\d+\.\d +\d+ +\d+\nrandom +-?\d+\.\d +\d+\.\d +0 +0$",
    re.M,
)


def command(out: Path, env_id: str, steps: int) -> list[str]:
    return [sys.executable, str(SCRIPT), "--env", env_id, "--steps", str(steps), "--episodes", "1", "--out", str(out)]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"} | changes


def load_script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trains_prints_a_table_and_records(tmp_path: Path) -> None:
    result = subprocess.run(
        command(tmp_path / "out", "Pendulum-v1", 300),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert TABLE.search(result.stdout), result.stdout
    assert (tmp_path / "out" / "model.zip").stat().st_size > 0
    video = tmp_path / "out" / "episode.mp4"
    if video.exists():
        assert video.stat().st_size > 1_000
        assert "video of one episode" in result.stdout
    else:
        assert "no video: cannot render Pendulum-v1" in result.stdout


def test_succeeds_where_nothing_can_be_rendered(tmp_path: Path) -> None:
    result = subprocess.run(
        command(tmp_path / "out", "InvertedPendulum-v5", 300),
        cwd=tmp_path,
        env=environment(MUJOCO_GL="disabled"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert TABLE.search(result.stdout), result.stdout
    assert "no video: cannot render InvertedPendulum-v5" in result.stdout
    assert not (tmp_path / "out" / "episode.mp4").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_saves_the_model(tmp_path: Path) -> None:
    script = load_script()
    out = tmp_path / "out"
    with subprocess.Popen(
        command(out, "Pendulum-v1", 700),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "  learning  " in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 130, rest
    assert "the model so far" in rest
    model = script.PWM.load(out / "model.zip", device="cpu")
    assert 0 < model.num_timesteps < 700


@pytest.mark.parametrize("arguments", [["--steps", "299"], ["--episodes", "0"]])
def test_refuses_too_little(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        load_script().main(arguments)
    assert error.value.code == 2
    assert f"{arguments[0]} must be at least" in capsys.readouterr().err
