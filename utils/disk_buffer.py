"""A buffer of tensors: written once, read back in order; in memory while it is small, else in a file on disk."""
import math
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError


class TensorBuffer:
    """A first-in, first-out store of int16 CPU tensors, each with some whole numbers. It takes at most `budget` bytes
    of memory, however many there are.

    Once it is larger, all of it moves to an unnamed temporary file in `folder`. The operating system removes that file
    when the process ends, even if it crashes. Use the buffer in a `with` block.
    """

    def __init__(self, budget: int, folder: Path):
        self._folder, self._count = folder, 0
        # max_size 0 would mean: never to disk.
        self._file = tempfile.SpooledTemporaryFile(max_size=max(1, budget), dir=str(folder))

    def append(self, tensor: Tensor, *numbers: int) -> None:
        """Add an int16 CPU tensor of any shape, and numbers. Raises UserError if the file on disk cannot be written."""
        head = struct.pack(f"<{2 + tensor.dim() + len(numbers)}q", tensor.dim(), len(numbers), *tensor.shape, *numbers)
        try:
            self._file.write(head)
            self._file.write(memoryview(tensor.contiguous().numpy()).cast("B"))
        except OSError as error:
            raise UserError(f"{self._folder}: the scratch file of the score maps cannot be written ({error}): make "
                            "room, choose another plabel folder or raise score_budget.") from None
        self._count += 1

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """The tensors from the first on, in order, each with its numbers."""
        self._file.seek(0)
        for _ in range(self._count):
            dim, count = self._read("<2q")
            shape, numbers = self._read(f"<{dim}q"), self._read(f"<{count}q")
            tensor = torch.empty(shape, dtype=torch.int16)
            data = self._file.read(2 * math.prod(shape))
            tensor.numpy().reshape(-1).data.cast("B")[:] = data
            yield tensor, numbers

    def _read(self, form):
        return struct.unpack(form, self._file.read(struct.calcsize(form)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
