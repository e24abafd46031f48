"""Everything that is written is whole or not there: after errors, on full disks and after kill -9."""

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import FORK
from helpers import SMALL_POLICY, make, same
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pwm import PWM
from sb3_pwm.benchmark.results import write_json
from sb3_pwm.benchmark.segments import save_model
from sb3_pwm.files import atomic
from sb3_pwm.files.atomic import opened_whole, whole_file, write_text
from sb3_pwm.video.frames import VideoWriter, frame_strip, read_video

FRAMES = [np.full((64, 64, 3), 5 * i, np.uint8) for i in range(20)]
NOISE = np.random.default_rng(0).integers(0, 256, (10, 128, 128, 3), np.uint8)


def write_video(path: Path, frames: Iterable[np.ndarray] = FRAMES) -> None:
    with VideoWriter(path, 20) as writer:
        for frame in frames:
            writer.append(frame)


def writers() -> dict[str, Callable[[Path], Any]]:
    """Return what writes each kind of file, large enough that no buffer hides a full disk."""
    model = make(policy_kwargs=SMALL_POLICY | {"net_arch": [256, 256], "latent_dim": 128}).learn(40)
    return {
        "model.zip": model.save,
        "buffer.pkl": model.save_replay_buffer,
        "world.pt": model.save_world_model,
        "policy.pt": model.policy.save,
        "video.mp4": lambda path: write_video(path, NOISE),
        "video.gif": lambda path: write_video(path, [np.repeat(np.repeat(f[:32, :32], 2, 0), 2, 1) for f in NOISE]),
        "strip.png": lambda path: frame_strip(NOISE, path, width=64),
        "run.json": lambda path: write_json(path, list(range(10_000))),
    }


NAMES = ["model.zip", "buffer.pkl", "world.pt", "policy.pt", "video.mp4", "video.gif", "strip.png", "run.json"]


@pytest.fixture(scope="module")
def write() -> dict[str, Callable[[Path], Any]]:
    return writers()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_full_disk_leaves_the_old_file(
    write: dict[str, Callable[[Path], Any]], tmp_path: Path, name: str, share: float
) -> None:
    path = tmp_path / name
    write[name](path)
    before = path.read_bytes()
    with limited_file_size(int(share * len(before))), pytest.raises(OSError, match=r"."):
        write[name](path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [name]


@contextlib.contextmanager
def limited_file_size(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, also those of child processes."""
    resource = pytest.importorskip("resource")
    known = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, known[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, known)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fails_at_the_end_leaves_the_old_file(
    write: dict[str, Callable[[Path], Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "new folder" / name
    write[name](path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write[name](path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [name]


def test_the_encoder_of_a_video_that_dies_is_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4")
    before = (tmp_path / "video.mp4").read_bytes()

    def frames() -> Iterator[np.ndarray]:
        yield from NOISE[:5]
        (encoder,) = children()
        os.kill(encoder, signal.SIGKILL)

    with pytest.raises(OSError, match=r"video\.mp4"):
        write_video(tmp_path / "video.mp4", frames())
    assert (tmp_path / "video.mp4").read_bytes() == before
    assert os.listdir(tmp_path) == ["video.mp4"]


def children() -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    lines = [line.split(maxsplit=1) for line in found.stdout.splitlines()]
    return [int(pid) for pid, command in lines if "ffmpeg" in command]


def interrupted() -> Iterator[np.ndarray]:
    yield FRAMES[0]
    raise KeyboardInterrupt


def test_an_error_while_frames_are_made_leaves_the_old_video(tmp_path: Path) -> None:
    for name in ("video.mp4", "video.gif"):
        write_video(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(KeyboardInterrupt):
            write_video(tmp_path / name, interrupted())
        assert (tmp_path / name).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["video.gif", "video.mp4"]


def test_results_of_other_algorithms_are_whole_too(tmp_path: Path) -> None:
    inner: Any = make().get_env()
    env = VecNormalize(inner)
    model = SAC("MlpPolicy", env, buffer_size=10, policy_kwargs={"net_arch": [64]}, device="cpu")
    save_model(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"model.zip", "vec_normalize.pkl"}
    with limited_file_size(1_000), pytest.raises(OSError, match=r"."):
        save_model(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_permissions_links_and_folders(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_text(tmp_path / "a" / "b" / "new", "1")
        assert (tmp_path / "a" / "b" / "new").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(umask)
    (tmp_path / "a" / "b" / "new").chmod(0o604)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "new")
    write_text(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "b" / "new").read_text() == "2"
    assert (tmp_path / "a" / "b" / "new").stat().st_mode & 0o777 == 0o604
    write_text("/dev/null", "3")
    assert not Path("/dev/null").is_file()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "a", "4")
    long = tmp_path / ("x" * 250)
    write_text(long, "5")
    assert long.read_text() == "5"


def test_a_file_that_is_read_only_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "1")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="read-only"):
        write_text(tmp_path / "file", "2")
    assert (tmp_path / "file").read_text() == "1"


def test_what_killed_processes_left_is_removed_an_hour_later(tmp_path: Path) -> None:
    for name, age in ((".a[1].zip.0.part", 2), (".a[1].zip.1.part", 0), (".b.zip.0.part", 2), ("a[1].zip.0.part", 2)):
        (tmp_path / name).write_text("")
        then = time.time() - age * atomic.ABANDONED_SECONDS
        os.utime(tmp_path / name, (then, then))
    write_text(tmp_path / "a[1].zip", "")
    assert sorted(os.listdir(tmp_path)) == [".a[1].zip.1.part", ".b.zip.0.part", "a[1].zip", "a[1].zip.0.part"]


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    with opened_whole(tmp_path / "file") as first, opened_whole(tmp_path / "file") as second:
        first.write(b"1")
        second.write(b"2")
    assert (tmp_path / "file").read_bytes() == b"1"  # whose context ended last
    with contextlib.suppress(ValueError), whole_file(tmp_path / "file") as part:
        part.write_bytes(b"3")
        raise ValueError
    assert (tmp_path / "file").read_bytes() == b"1"


def test_names_are_those_of_sb3(tmp_path: Path) -> None:
    model = make().learn(24)
    model.save(tmp_path / "a")
    model.save(tmp_path / "b.c")
    model.save_replay_buffer(str(tmp_path / "new" / "d"))
    (tmp_path / "e.zip").mkdir()
    with pytest.warns(UserWarning, match=r"e\.zip is a folder"):
        model.save(tmp_path / "e")
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "b.c", "e.zip", "e.zip_2", "new"]
    assert os.listdir(tmp_path / "new") == ["d.pkl"]
    with (tmp_path / "f.zip").open("wb") as file:  # which cannot be read
        model.save(file)
    with (tmp_path / "f.zip").open("rb") as file:
        assert same(PWM.load(file).get_parameters(), model.get_parameters())
    with (tmp_path / "g.pkl").open("wb") as file:
        model.save_replay_buffer(file)
    with (tmp_path / "g.pkl").open("rb") as file:
        model.load_replay_buffer(file)
    with pytest.raises(TypeError):
        model.save(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        model.save_replay_buffer(3)  # type: ignore[arg-type]


def save_for_ever(folder: Path, finished: Any) -> None:
    """Save everything with a number, tell it, and go on with the next one."""
    model = make(policy_kwargs=SMALL_POLICY | {"net_arch": [128]}).learn(40)
    for number in itertools.count(1):
        model.num_timesteps = number
        model.replay_buffer.rewards[:] = number
        model.policy.reward_scale.scale.fill_(number)
        model.save(folder / "model")
        model.save_replay_buffer(folder / "buffer")
        model.save_world_model(folder / "world.pt")
        write_json(folder / "run.json", [number] * 10_000)
        write_video(folder / "video.mp4", [np.full((64, 64, 3), number % 10 * 20, np.uint8)] * 5)
        finished.send(number)


def kill_while_saving(folder: Path, seconds: float, model: PWM) -> int:
    """Start a process that saves in a loop, kill it, and check what it leaves."""
    receiving, sending = FORK.Pipe(duplex=False)
    process = FORK.Process(target=save_for_ever, args=(folder, sending))
    process.start()
    sending.close()
    known = receiving.recv()  # every file is there
    time.sleep(seconds)
    process.kill()
    process.join()
    with contextlib.suppress(EOFError):
        while True:
            known = receiving.recv()
    found = PWM.load(folder / "model", device="cpu")
    model.load_replay_buffer(folder / "buffer")
    model.load_world_model(folder / "world.pt")
    fps, frames = read_video(folder / "video.mp4")
    brightness = {round(float(np.mean(frame)) / 20) for frame in frames}
    assert (fps, len(brightness)) == (20, 1)
    numbers = [
        found.num_timesteps,
        *np.unique(model.replay_buffer.rewards),
        float(model.policy.reward_scale.scale),
        *set(json.loads((folder / "run.json").read_text())),
    ]
    assert len(numbers) == 4
    assert all(number in (known, known + 1) for number in numbers), (numbers, known)
    assert brightness <= {known % 10, (known + 1) % 10}
    return sum(path.name.endswith((".part", ".part.mp4")) for path in folder.iterdir())


def test_kill_9_while_saving(tmp_path: Path) -> None:
    model = make(policy_kwargs=SMALL_POLICY | {"net_arch": [128]})
    kill_while_saving(tmp_path, 0.5, model)


@pytest.mark.slow
def test_many_kills_while_saving(tmp_path: Path) -> None:
    model = make(policy_kwargs=SMALL_POLICY | {"net_arch": [128]})
    left = [kill_while_saving(tmp_path, seconds, model) for seconds in np.random.default_rng(1).uniform(0, 1, 50)]
    print(f"50 kills: every file whole; {max(left)} parts left at most")


def interrupted_writer(path: Path) -> None:
    with whole_file(path) as part:
        part.write_bytes(b"half")
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch's writer when it is left


def test_ctrl_c_within_torchs_writer_stays_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_writer(path)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
