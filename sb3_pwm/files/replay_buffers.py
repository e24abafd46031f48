"""Files of replay buffers: SB3's pickles, with a checksum that SB3 does not see.

SB3 reads them as its own: the mark at the start is a string that the pickle throws away at once, and what follows the
end of a pickle is not read.
"""

import io
import pickle
import zlib
from typing import Any, BinaryIO

from stable_baselines3.common.buffers import ReplayBuffer

from sb3_pwm.buffers import SequenceReplayBuffer, check_replay_buffer
from sb3_pwm.files.archives import opened
from sb3_pwm.files.atomic import Path, opened_saved
from sb3_pwm.replay.checks import check_values, find_breaks

MARK = b"sb3_pwm crc32"
HEAD = pickle.PROTO + b"\x05" + pickle.SHORT_BINUNICODE + bytes([len(MARK)]) + MARK + pickle.POP
TAIL_LENGTH = len(MARK) + 8
BLOCK_BYTES = 2**20


class SummingWriter:
    """Writes into a file and sums up what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, 0

    def write(self, data: Any) -> int:
        """Write bytes."""
        self.sum = zlib.crc32(data, self.sum)
        return self.file.write(data)


def save_replay_buffer(buffer: ReplayBuffer, path: Path | io.BufferedIOBase) -> None:
    """Pickle a replay buffer; see :func:`sb3_pwm.files.atomic.whole_file`.

    :param path: file, ``.pkl`` if it has no suffix; or an open file.
    :raises OSError: if it cannot be written.
    """
    with opened_saved(path, "pkl") as file:
        writer = SummingWriter(file)
        writer.write(HEAD)
        pickle.dump(buffer, writer, protocol=pickle.HIGHEST_PROTOCOL)
        file.write(MARK + b"%08x" % writer.sum)


def read_replay_buffer(path: Path | io.BufferedIOBase) -> SequenceReplayBuffer:
    """Unpickle a replay buffer, which runs code, and check what it holds.

    :param path: file that :func:`save_replay_buffer` or SB3 wrote, with or without ``.pkl``; or an open file.
    :return: the buffer; what was none of this package's ends episodes where steps do not follow each other.
    :raises FileNotFoundError: if there is no such file.
    :raises TypeError: if the file holds something else.
    :raises ValueError: if it is damaged, or what it holds cannot be learnt from; names file and field.
    """
    with opened(path, "pkl") as (file, name):
        check_sum(file, name)
        try:
            buffer = pickle.load(file)
        except Exception as error:  # a damaged pickle may raise any
            raise ValueError(f"cannot read {name} as a replay buffer: {error or type(error).__name__}") from error
    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"{name} must hold a stable_baselines3 ReplayBuffer, not {type(buffer).__name__}")
    return as_sequences(buffer, name)


def as_sequences(buffer: ReplayBuffer, name: str) -> SequenceReplayBuffer:
    """Return a buffer as one that gives windows, with the same arrays, after everything in it has been checked.

    :param buffer: an SB3 replay buffer.
    :param name: what it is, for messages.
    :raises ValueError: if it cannot give windows, or holds what :func:`sb3_pwm.replay.checks.check_values` or
        :func:`sb3_pwm.replay.checks.find_breaks` refuse.
    """
    check_replay_buffer(buffer, name)
    check_values(buffer, name)
    sequences = SequenceReplayBuffer.from_replay_buffer(buffer)
    if not isinstance(buffer, SequenceReplayBuffer):  # models and importers say where episodes end
        sequences.end_episodes(find_breaks(sequences, name))
    return sequences


def check_sum(file: BinaryIO, name: str) -> None:
    """Compare a file with its checksum, if it has one; its position stays.

    :raises ValueError: if the file is damaged.
    """
    start = file.tell()
    stop = file.seek(0, io.SEEK_END) - TAIL_LENGTH
    marked = stop >= start
    if marked:
        file.seek(stop)
        tail = file.read()
        file.seek(start)
        marked = tail.startswith(MARK)
        if not marked and file.read(len(HEAD)) == HEAD:
            raise ValueError(f"{name} is damaged: its end is missing")
    file.seek(start)
    if not marked:
        return  # SB3's, or of an earlier revision
    found, left = 0, stop - start
    while left:
        block = file.read(min(left, BLOCK_BYTES))
        found, left = zlib.crc32(block, found), left - len(block)
    if tail != MARK + b"%08x" % found:
        raise ValueError(f"{name} is damaged: its checksum is wrong")
    file.seek(start)
