"""A buffer of tensors: written once, read back in order; in memory while it is small, else in a file on disk."""
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError


class TensorBuffer:
    """A first-in, first-out store of int16 CPU tensors that takes at most `budget` bytes of memory.

    Once it is larger, all of it moves to an unnamed temporary file in `folder`. The operating system removes that file
    when the process ends, even if it crashes. Use the buffer in a `with` block.
    """

    def __init__(self, budget: int, folder: Path):
        self._folder, self._shapes = folder, []
        # max_size 0 would mean: never to disk.
        self._file = tempfile.SpooledTemporaryFile(max_size=max(1, budget), dir=str(folder))

    def append(self, tensor: Tensor) -> None:
        """Add an int16 CPU tensor of any shape. Raises UserError if the file on disk cannot be written."""
        try:
            self._file.write(memoryview(tensor.contiguous().numpy()).cast("B"))
        except OSError as error:
            raise UserError(f"{self._folder}: the scratch file of the score maps cannot be written ({error}): make "
                            "room, choose another plabel folder or raise score_budget.") from None
        self._shapes.append(tensor.shape)

    def __iter__(self) -> Iterator[Tensor]:
        """The tensors from the first on, in order."""
        self._file.seek(0)
        for shape in self._shapes:
            tensor = torch.empty(shape, dtype=torch.int16)
            data = self._file.read(2 * math.prod(shape))
            tensor.numpy().reshape(-1).data.cast("B")[:] = data
            yield tensor

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
