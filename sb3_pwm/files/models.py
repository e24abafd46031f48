"""Zip files of models: SB3's, with a record that says what the parts are and describes them without pickles."""

import binascii
import contextlib
import io
import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import torch
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from sb3_pwm.files.archives import check_archive, opened
from sb3_pwm.files.atomic import Path, opened_whole, saved_path
from sb3_pwm.files.plain import build, describe
from sb3_pwm.files.tensors import reason
from sb3_pwm.nn.observation_features import channels_first

RECORD = "sb3_pwm.json"
PICKLE = ":serialized:"  # SB3's key of what its JSON holds as a pickle
# What a model can do without: learning starts an episode and its statistics anew, the schedule follows from the rate.
STATE = (
    *("_last_obs", "_last_original_obs", "_last_episode_starts"),
    *("ep_info_buffer", "ep_success_buffer", "lr_schedule"),
)
BEFORE_THEY_EXISTED: dict[str, Any] = {"actor_batch_size": None, "infer_noise": False}
DAMAGE = (  # what wrong content raises in SB3's and torch's code; others are of wrong arguments
    *(KeyError, AttributeError, IndexError, EOFError, ImportError, AssertionError, RuntimeError),
    *(pickle.UnpicklingError, json.JSONDecodeError, UnicodeDecodeError, binascii.Error, zipfile.BadZipFile),
)


def save_model(path: Path | io.BufferedIOBase, write: Callable[[Any], None], values: Mapping[str, Any]) -> None:
    """Write a model's zip file whole or not at all; see :func:`sb3_pwm.files.atomic.whole_file`.

    :param path: file, ``.zip`` if it has no suffix; or an open file.
    :param write: writes SB3's zip file into an open file.
    :param values: the model's attributes.
    """
    if isinstance(path, str | pathlib.Path):
        with opened_whole(saved_path(path, "zip")) as file:
            write(file)
            add_record(file, values)
        return
    memory = io.BytesIO()  # the user's file may be one that cannot be read
    write(memory)
    add_record(memory, values)
    open_path(path, "w").write(memory.getbuffer())


def add_record(file: BinaryIO, values: Mapping[str, Any]) -> None:
    """Add to a zip file the checksums of its parts, and descriptions of what SB3 has pickled in it."""
    with zipfile.ZipFile(file, "a") as archive:
        descriptions = {}
        for name in pickled(json.loads(archive.read("data"))):
            with contextlib.suppress(TypeError):  # only who loads without pickles needs it
                descriptions[name] = describe(values[name])
        sums = {part.filename: part.CRC for part in archive.infolist()}
        archive.writestr(RECORD, json.dumps({"crc32": sums, "descriptions": descriptions}))


def pickled(data: Mapping[str, Any]) -> list[str]:
    """Return the names of what SB3's JSON holds as pickles."""
    return [name for name, value in data.items() if isinstance(value, dict) and PICKLE in value]


@contextlib.contextmanager
def opened_model(path: Path | io.BufferedIOBase) -> Iterator[tuple[BinaryIO, str]]:
    """Open a model's zip file for SB3, after every part has been compared with its checksum.

    :param path: file, with or without ``.zip``; or an open file.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or what is read from it in the context is not what it should be.
    """
    with opened(path, "zip") as (file, name):
        check_archive(file, name)
        check_record(file, name)
        file.seek(0)
        try:
            yield file, name
        except torch.OutOfMemoryError:
            raise
        except DAMAGE as error:
            if isinstance(error, KeyError) and error.args == ("policy.optimizer",) and error.__context__ is not None:
                # SB3 answers any mismatch of the parameters' names by looking for DQN's optimizer.
                raise ValueError(f"cannot load {name}: {error.__context__}") from error
            # torch's advice on unpickling is not for this door; names of wrong tensors are.
            text = reason(error) if isinstance(error, pickle.UnpicklingError) else str(error)
            raise ValueError(f"cannot load {name}: {text or type(error).__name__}") from error


def read_record(archive: zipfile.ZipFile, name: str) -> dict[str, Any] | None:
    """Return the record of a model's file; None for one of an earlier revision.

    :raises ValueError: if it is not a record.
    """
    if RECORD not in archive.namelist():
        return None
    try:
        record = json.loads(archive.read(RECORD))
        return {key: dict(record[key]) for key in ("crc32", "descriptions")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name} is damaged: its part {RECORD!r} is not a record ({error!r})") from error


def check_record(file: BinaryIO, name: str) -> None:
    """Check that the parts of a model's file are those that were written.

    :raises ValueError: if one is missing, another was put in its place, or nothing says what the model is.
    """
    with zipfile.ZipFile(file) as archive:
        record = read_record(archive, name)
        sums = {part.filename: part.CRC for part in archive.infolist() if part.filename != RECORD}
        if "data" not in sums:
            raise ValueError(f"{name} is not a model: it has no part 'data'")
    if record is not None and record["crc32"] != sums:
        wrong = sorted(part for part in {*sums, *record["crc32"]} if sums.get(part) != record["crc32"].get(part))
        raise ValueError(f"{name} is damaged: {', '.join(wrong)} are missing or not what was saved")


def missing_arguments(file: BinaryIO) -> dict[str, Any]:
    """Return the arguments that did not exist when a model's file was saved, with the values that do as it did.

    :param file: the open file; its position is its start afterwards.
    """
    with zipfile.ZipFile(file) as archive:
        names = json.loads(archive.read("data"))
    file.seek(0)
    return {name: value for name, value in BEFORE_THEY_EXISTED.items() if name not in names}


def without_pickles(file: BinaryIO, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return objects to load in the place of all that a model's file holds as pickles.

    :param file: the open file; its position is its start afterwards.
    :param name: of the file, for messages.
    :param given: objects of the caller by name, which come first.
    :raises ValueError: if something is neither given nor described.
    """
    with zipfile.ZipFile(file) as archive:
        names = pickled(json.loads(archive.read("data")))
        record = read_record(archive, name)
    descriptions = record["descriptions"] if record else {}
    file.seek(0)
    missing = sorted(n for n in names if n not in given and n not in descriptions and n not in STATE)
    if missing:
        why = "is of an earlier revision" if record is None else "holds what has no description"
        raise ValueError(
            f"{name} {why}: without its pickles there is no {', '.join(missing)}. Give these as arguments or in "
            "custom_objects; or, if you trust the file, load it with weights_only=False and save it again"
        )
    try:
        built = {n: build(descriptions[n]) if n in descriptions else None for n in names if n not in given}
    except Exception as error:
        raise ValueError(f"{name} is damaged: its descriptions cannot be read ({error!r})") from error
    return dict(given) | built


def load_normalizer(path: str | pathlib.Path, venv: VecEnv, owner: str) -> VecNormalize:
    """Read what ``VecNormalize.save`` wrote; a pickle, which runs code.

    :param path: file.
    :param venv: environments of the same spaces; a ``VecTransposeImage`` is put around it if the file is of one.
    :param owner: what the statistics are for, for messages.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file holds something else, or its spaces differ.
    """
    try:
        try:
            return VecNormalize.load(str(path), venv)
        except AssertionError:  # other shapes
            if channels_first(venv.observation_space) == venv.observation_space:
                raise
            return VecNormalize.load(str(path), VecTransposeImage(venv))
    except (pickle.UnpicklingError, EOFError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} holds no VecNormalize for {owner}: {error}") from error
