"""Files with flipped bits, holes and missing ends: refused with one kind of error, or read as they were written."""

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from dataset_toys import ACTIONS, OBSERVATIONS, THREE, flat
from helpers import flat_state, make, space_envs
from stable_baselines3 import SAC
from tensordict import TensorDict
from test_datasets import minari_dataset

from sb3_pwm import PWM
from sb3_pwm.datasets import from_minari, from_npz, from_replay_buffer, from_tdmpc2

FAST, SLOW = 20, 500


def flip(content: bytearray, rng: np.random.Generator) -> bytearray:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return content


def cut(content: bytearray, rng: np.random.Generator) -> bytearray:
    return content[: rng.integers(len(content))]


def overwrite(content: bytearray, rng: np.random.Generator) -> bytearray:
    start = rng.integers(len(content))
    block = rng.integers(0, 256, rng.integers(1, 600), np.uint8).tobytes()
    content[start : start + len(block)] = block[: len(content) - start]
    return content


def zero(content: bytearray, rng: np.random.Generator) -> bytearray:
    start = rng.integers(len(content))
    length = min(rng.integers(1, 5_000), len(content) - start)
    content[start : start + length] = bytes(length)
    return content


def mutate(path: Path, seed: int) -> None:
    """Damage a file; in every fifth zip file two parts change places."""
    rng = np.random.default_rng(seed)
    if seed % 5 == 4 and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {info.filename: archive.read(info) for info in archive.infolist()}
        first, second = rng.choice(sorted(parts), 2, replace=False)
        parts[first], parts[second] = parts[second], parts[first]
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
        return
    change = (flip, flip, cut, overwrite, zero)[seed % 5]
    path.write_bytes(change(bytearray(path.read_bytes()), rng))


def numbers_of(buffer: Any) -> dict[str, torch.Tensor]:
    """Return everything that a buffer holds."""
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "pos", "full")
    return {name: torch.as_tensor(np.asarray(getattr(buffer, name))) for name in names}


class ModelFile:
    """A model, loaded in the usual way and without pickles."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.zip"
        make().learn(40).save(self.path)

    def load(self) -> list[dict[str, Any]]:
        models = [PWM.load(self.path, device="cpu", weights_only=weights_only) for weights_only in (False, True)]
        arguments = [{k: v for k, v in vars(m).items() if isinstance(v, int | float | str)} for m in models]
        return [flat_state(models[0].get_parameters()), flat_state(models[1].get_parameters()), *arguments]


class WorldModelFile:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "world.pt"
        make().learn(40).save_world_model(self.path)

    def load(self) -> dict[str, Any]:
        model = make(seed=7).load_world_model(self.path)
        return flat_state([model.get_parameters()["policy"], model.n_model_updates])


class BufferFile:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "buffer.pkl"
        make().learn(40).save_replay_buffer(self.path)

    def load(self) -> list[dict[str, torch.Tensor]]:
        model = make()
        model.load_replay_buffer(self.path)
        return [numbers_of(model.replay_buffer), numbers_of(from_replay_buffer(self.path))]


class SacBufferFile(BufferFile):
    """SB3's own have no checksum; a damaged pickle may be one of another object."""

    checksum = False
    errors = (ValueError, TypeError)

    def __init__(self, folder: Path) -> None:
        self.path = folder / "buffer.pkl"
        model = SAC("MlpPolicy", space_envs(), learning_starts=100, buffer_size=100, device="cpu", seed=0).learn(40)
        model.save_replay_buffer(self.path)


class NpzFile:
    """Every part has a checksum, but no part says which one it is."""

    knows_parts = False

    def __init__(self, folder: Path, save: Callable[..., Any] = np.savez) -> None:
        self.path = folder / "data.npz"
        save(self.path, **flat(THREE))

    def load(self) -> dict[str, torch.Tensor]:
        return numbers_of(from_npz(self.path, OBSERVATIONS, ACTIONS))


class CompressedNpzFile(NpzFile):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, np.savez_compressed)


class Tdmpc2File:
    knows_parts = False

    def __init__(self, folder: Path) -> None:
        self.path = folder / "chunk.pt"
        rng = torch.Generator().manual_seed(0)
        rows = {
            "obs": torch.rand(3, 6, 3, generator=rng),
            "action": torch.rand(3, 6, 2, generator=rng),
            "reward": torch.rand(3, 6, generator=rng),
            "task": torch.zeros(3, 6),
        }
        rows["reward"][:, 0] = torch.nan
        torch.save(TensorDict(rows, batch_size=(3, 6)), self.path)

    def load(self) -> dict[str, torch.Tensor]:
        return numbers_of(from_tdmpc2(self.path))


class MinariFolder:
    """Two files without checksums: what is not refused may hold other numbers, but none that cannot be learnt from."""

    checksum = False

    def __init__(self, folder: Path) -> None:
        minari_dataset("test/three-v0", THREE, OBSERVATIONS)
        data = folder / "test" / "three-v0" / "data"
        self.paths = [data / "main_data.hdf5", data / "metadata.json"]

    def choose(self, seed: int) -> None:
        self.path = self.paths[seed % 7 == 0]

    def load(self) -> dict[str, torch.Tensor]:
        return numbers_of(from_minari("test/three-v0"))


KINDS = [ModelFile, WorldModelFile, BufferFile, SacBufferFile, NpzFile, CompressedNpzFile, Tdmpc2File, MinariFolder]


def equal(first: Any, second: Any) -> bool:
    first, second = flat_state(first), flat_state(second)
    return first.keys() == second.keys() and all(
        torch.equal(a, second[k]) if isinstance(a, torch.Tensor) else a == second[k] for k, a in first.items()
    )


def attack(kind: Any, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Load ``count`` damaged files; return how many were refused, how many read as written, how many read otherwise."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    file = kind(folder)
    expected = file.load()
    refused = whole = changed = unnamed = 0
    for seed in range(count):
        if hasattr(file, "choose"):
            file.choose(seed)
        good = file.path.with_name("good")
        shutil.copy(file.path, good)
        mutate(file.path, seed)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="minari|h5py")
                found = file.load()
        except getattr(kind, "errors", ValueError) as error:
            refused += 1
            unnamed += not any(name in str(error) for name in (file.path.name, "test/three-v0"))
        else:
            whole, changed = (whole + 1, changed) if equal(found, expected) else (whole, changed + 1)
            known = getattr(kind, "checksum", True) and (seed % 5 != 4 or getattr(kind, "knows_parts", True))
            assert equal(found, expected) or not known, seed
        finally:
            shutil.move(good, file.path)
    assert equal(file.load(), expected)
    assert unnamed == 0
    return refused, whole, changed


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, _, _ = attack(kind, FAST, tmp_path, monkeypatch)
    assert refused >= FAST // 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, whole, changed = attack(kind, SLOW, tmp_path, monkeypatch)
    print(f"{kind.__name__}: {SLOW} damaged, {refused} refused, {whole} read as written, {changed} changed")
    assert refused + whole + changed == SLOW


def test_missing_files_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    load: Callable[..., Any]
    for load in (PWM.load, make().set_parameters, make().load_replay_buffer, make().load_world_model, from_npz):
        with pytest.raises(FileNotFoundError):
            load(str(tmp_path / "none"))
    for load in (from_replay_buffer, from_tdmpc2):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError):
        from_minari("test/none-v0")
    assert minari.list_local_datasets() == {}
