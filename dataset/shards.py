"""Labels in tar files ("shards"), as the webdataset convention has them: members in the order of the samples, each
named by its sample. An index, a NumPy file that is mapped into memory, says where each member is, so that they can be
read in any order."""
import functools
import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import DataError, naming

INDEX = "index.npy"
PLACE = np.dtype([("shard", "<i8"), ("offset", "<i8"), ("size", "<i8"), ("name", "<u8")])  # of a sample's member
_BLOCK = 512  # bytes; headers and contents begin at multiples of it


@dataclass(frozen=True)
class Member:
    """A file in a tar file: its content is `size` bytes from `offset` on."""

    shard: Path
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Its content as an open file. Raises OSError."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{self.shard} ends before it")
        return io.BytesIO(content)

    def is_file(self) -> bool:
        """Whether its tar file is there."""
        return self.shard.is_file()

    def __str__(self):
        return str(self.shard / self.name)


def shard_name(number: int) -> str:
    """The file name of a shard: 000000.tar is the first."""
    return f"{number:06d}.tar"


class ShardWriter:
    """Writes a tar file (POSIX.1-2001) whose bytes depend on names and contents alone: no time, no owner."""

    def __init__(self, path: Path):
        self.path, self._hash = path, hashlib.sha256()
        self._file = open(path, "wb")

    def add(self, name: str, content: bytes | memoryview) -> int:
        """Append a file. Returns the offset of its content."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        offset = self._file.tell() + len(header)
        self._write(header, content, bytes(-len(content) % _BLOCK))
        return offset

    def finish(self) -> bytes:
        """Write the end and close the file. Returns its SHA-256."""
        self._write(bytes(2 * _BLOCK))
        with naming(self.path):
            self._file.close()
        return self._hash.digest()

    def close(self) -> None:
        """Close the file, whether it is whole or not."""
        self._file.close()

    def _write(self, *parts):
        for part in parts:
            self._hash.update(part)
            with naming(self.path):
                self._file.write(part)


def name_key(name: str) -> int:
    """64 bits of a sample's name, by which an index is known to be of these samples."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def write_index(file: BinaryIO, count: int, blocks: Iterable[np.ndarray]) -> None:
    """Write the index of `count` samples. blocks: arrays of PLACE, together that many, in the order of the samples."""
    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(PLACE), "fortran_order": False,
                                                "shape": (count,)})
    for block in blocks:
        file.write(block.tobytes())


class ShardIndex:
    """The labels of samples in the shards of a folder, found by the folder's index. A copy in another process maps the
    file itself."""

    def __init__(self, folder: Path):
        self.folder = folder

    def member(self, number: int, name: str) -> Member:
        """The member of the sample of that number and name. Raises DataError if the index is damaged or another
        list's."""
        try:
            shard, offset, size, key = self._places[number].tolist()
            found = key == name_key(name)
        except (OSError, EOFError, ValueError, IndexError):
            found = False
        if not found:
            raise DataError(f"{self.folder / INDEX}: has no pseudo label of {name!r} as number {number} of the list: "
                            "it is damaged, or was written for another list; label the images again.")
        return Member(self.folder / shard_name(shard), f"{name}.png", offset, size)

    @functools.cached_property
    def _places(self) -> np.ndarray:
        places = np.load(self.folder / INDEX, mmap_mode="r")
        if places.dtype != PLACE or places.ndim != 1:
            raise ValueError("no index")
        return places

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}
