"""A copy of a ring buffer on a device, from which windows are gathered there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sb3_pwm.replay.windows import newest_rows

WORD_BYTES = 8
SENT_BYTES = 2**26  # at most, in one copy to the device: as much pinned memory is needed


class DeviceCopy:
    """Copy of a ring buffer's steps on a device, brought up to date when it is asked to be.

    All fields of a step lie in one record of 8-byte words: new steps travel in one copy, and one operation gathers all
    fields of a window, however many there are.

    :param record: type of a step, see :func:`record_type`.
    :param capacity: number of rows.
    :param n_columns: number of steps in a row, one per environment.
    :param device: where the copy lies.
    :param n_stale: number of newest rows that differ from the copy, which is all zeros at first.
    :raises torch.OutOfMemoryError: if there is no room.
    """

    def __init__(
        self, record: np.dtype[Any], capacity: int, n_columns: int, device: torch.device, *, n_stale: int
    ) -> None:
        self.device = device
        self.n_stale = n_stale
        """Whoever changes the newest rows, or adds some, says so here."""
        self.n_ahead = 0
        """Number of newest rows that have been written here alone; only while none is stale."""
        self._record = record
        kinds = {name: record[name].base for name in record.names or ()}
        self._dtypes = {name: torch.from_numpy(np.empty(0, kind)).dtype for name, kind in kinds.items()}
        n_words = record.itemsize // WORD_BYTES
        self._words = torch.zeros(capacity, n_columns, n_words, dtype=torch.int64, device=device)

    def bring_up_to_date(self, end: int, read: Callable[[slice], Mapping[str, NDArray[Any]]]) -> None:
        """Send the rows that have changed.

        :param end: row behind the newest one.
        :param read: returns the fields of k rows: (k, n_columns, *shape) arrays by name.
        """
        capacity, n_columns, _ = self._words.shape
        at_once = max(1, SENT_BYTES // (n_columns * self._record.itemsize))
        for rows in newest_rows(min(self.n_stale, capacity), end, capacity, at_once):
            records = np.zeros((rows.stop - rows.start, n_columns), self._record)
            for name, values in read(rows).items():
                records[name] = values
            words = records.view(np.int64).reshape(*records.shape, -1)
            self._words[rows].copy_(staged(words, self.device), non_blocking=True)
        self.n_stale = 0

    def write(self, row: int, fields: Mapping[str, Any]) -> None:
        """Write a row.

        :param fields: all fields by name, (n_columns, *shape) tensors; those on the device do not leave it.
        """
        row_bytes = self._words[row].view(torch.uint8)
        for name, dtype in self._dtypes.items():
            field, place = self._record.fields[name][:2]  # type: ignore[index]
            own = torch.as_tensor(fields[name]).to(self.device, dtype).reshape(len(row_bytes), -1).contiguous()
            row_bytes[:, place : place + field.itemsize] = own.view(torch.uint8)

    def fetch(self, end: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write into arrays what only the copy has.

        :param end: row behind the newest one.
        :param arrays: (capacity, n_columns, *shape) arrays by name.
        """
        capacity, n_columns, _ = self._words.shape
        at_once = max(1, SENT_BYTES // (n_columns * self._record.itemsize))
        for rows in newest_rows(min(self.n_ahead, capacity), end, capacity, at_once):
            records = self._words[rows].cpu().numpy().view(self._record)[..., 0]
            for name, values in arrays.items():
                values[rows] = records[name]
        self.n_ahead = 0

    def gather(self, places: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return fields of some steps.

        :param places: (T, B) numbers on the device, row * n_columns + column of each step.
        :param names: of fields that follow each other in the record.
        :return: (T, B, *shape) tensors by name.
        """
        fields = {name: self._record.fields[name][:2] for name in names}  # type: ignore[index]
        start = fields[names[0]][1]
        last, last_start = fields[names[-1]]
        words = slice(start // WORD_BYTES, -(-(last_start + last.itemsize) // WORD_BYTES))
        gathered = self._words.flatten(0, 1)[:, words][places].view(torch.uint8)
        result = {}
        for name, (field, place) in fields.items():
            own = gathered[..., place - start : place - start + field.itemsize]
            result[name] = own.view(self._dtypes[name]).reshape(*places.shape, *field.shape)
        return result


class Fetched:
    """An array of a buffer that is brought up to date, by the buffer's ``fetch``, when it is read.

    It is kept under its own name in the object's dictionary, as any attribute is.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, buffer: Any, owner: type | None = None) -> Any:
        if buffer is None:
            return self
        buffer.fetch()
        try:
            return vars(buffer)[self._name]
        except KeyError:
            raise AttributeError(f"{type(buffer).__name__} has no {self._name}") from None

    def __set__(self, buffer: Any, values: Any) -> None:
        vars(buffer)[self._name] = values

    def __delete__(self, buffer: Any) -> None:
        del vars(buffer)[self._name]


def record_type(fields: Mapping[str, NDArray[Any]]) -> np.dtype[Any]:
    """Return the type of the record of a step.

    :param fields: (k, n_columns, *shape) arrays by name, k may be 0.
    :return: structured type with a field for each, which starts at a whole word.
    """
    formats: list[Any] = []
    offsets: list[int] = []
    size = 0
    for values in fields.values():
        formats.append((values.dtype, values.shape[2:]))
        offsets.append(size)
        size += -(-np.dtype(formats[-1]).itemsize // WORD_BYTES) * WORD_BYTES
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": size})


def staged(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor from which a copy to the device need not wait.

    From other than pinned memory the host would wait for the last update before it could copy to a GPU.
    """
    tensor = torch.as_tensor(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def free_memory(device: torch.device) -> int:
    """Return the number of bytes that can still be allocated on a GPU, torch's own reserve included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
