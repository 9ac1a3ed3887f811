"""The files of a round's pseudo labels: one PNG file for each image, or tar files of many (`dataset.shards`), and a
manifest with the SHA-256 hash of each file.

Several processes fill one folder. Each writes the files of its own share; process 0 then writes the manifest, and the
index of tar files, from what all have noted. No memory is needed that grows with the number of images.
"""
import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dataset.samples import Samples
from dataset.segmentation import Sample
from dataset.shards import INDEX, PLACE, ShardIndex, shard_name, write_index
from trainer.label_writers import DIGEST, PngWriter, TarWriter
from utils import distributed
from utils.background import Background
from utils.checkpoint import write_atomically

MANIFEST = "manifest.jsonl"
_WRITERS = 2
_CHUNK = 2**20  # bytes that are hashed at once
_OURS = re.compile(r"\d{6,}\.tar|\..*\.tmp")  # tar files, and what a killed process may leave


class Dealt(Sequence[int]):
    """The numbers of this process's share of `count` items: of the blocks of `block` items, the last may be shorter,
    every P-th of P processes."""

    def __init__(self, count: int, block: int):
        self._block = block
        self._first, self._step = _place()
        mine = range(self._first, -(-count // block), self._step)
        missing = max(0, (mine[-1] + 1) * block - count) if mine else 0
        self._indices = range(len(mine) * block - missing)

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in self._indices[index]]
        block, within = divmod(self._indices[index], self._block)
        return (self._first + block * self._step) * self._block + within


class Share(Sequence[Sample]):
    """The samples with some numbers."""

    def __init__(self, samples: Sequence[Sample], numbers: Sequence[int]):
        self.samples, self.numbers = samples, numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Share(self.samples, self.numbers[index])
        return self.samples[self.numbers[index]]


def labelled(folder: Path, samples: Sequence[Sample], tarred: bool) -> Sequence[Sample]:
    """The samples with the pseudo labels in a folder as their labels. tarred: whether these are in tar files."""
    return Samples.of(samples).with_labels(functools.partial(_member, ShardIndex(folder)) if tarred else
                                           functools.partial(_png_file, folder))


def labelled_now(folder: Path, samples: Sequence[Sample]) -> Sequence[Sample]:
    """As `labelled`, of a folder whose files say by themselves what they are."""
    return labelled(folder, samples, (folder / INDEX).exists())


class LabelFolder:
    """Writes the pseudo labels of samples to a folder. shard: the number of images in a tar file; 0: one PNG file for
    each image.

    share: the samples whose labels this process writes: of tar files whole ones, so that the bytes of all files are the
    same for any number of processes.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], shard: int):
        self.folder, self.samples, self.shard = folder, samples, shard
        self.share = Share(samples, Dealt(len(samples), shard or 1))

    def clear(self) -> None:
        """Make the folder, without manifest and tar files of an earlier call. Collective."""
        self.folder.mkdir(parents=True, exist_ok=True)
        distributed.from_main(self._clear)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[int, str, Callable[[], Tensor]], None]]:
        """Within the block, write(index, name, label) writes the labels of the share in its order, in the background.
        label: uint8 [H, W], as `host_copy` returns it."""
        writer = (TarWriter(self.folder, self.share.numbers, self.shard, self._notes) if self.shard else
                  PngWriter(self.folder, self._notes))
        with writer, Background(1 if self.shard else _WRITERS) as background:
            yield lambda *given: background.submit(writer.write, *given)

    def finish(self, **facts: object) -> str:
        """Write the manifest, when all processes have written their share: `facts`, then the name and hash of each
        file, in the order of the samples; one JSON object a line. Returns the manifest's SHA-256. Collective."""
        return distributed.from_main(lambda: self._finished(facts))

    def _clear(self):
        with os.scandir(self.folder) as there:  # one by one, as there may be millions
            old = [entry.path for entry in there if entry.name in (MANIFEST, INDEX) or _OURS.fullmatch(entry.name)]
        for path in old:
            os.unlink(path)

    def _finished(self, facts):
        digest = hashlib.sha256()

        def write(file):
            for line in self._lines(facts):
                digest.update(line)
                file.write(line)
        if self.shard:
            write_atomically(self.folder / INDEX, lambda file: write_index(file, len(self.samples), self._places()))
        write_atomically(self.folder / MANIFEST, write)
        for kind in ("digests", "places"):
            for rank in range(_place()[1]):
                self._notes(kind, rank).unlink(missing_ok=True)
        return digest.hexdigest()

    def _lines(self, facts):
        yield _line({**facts, "shard": self.shard})
        with self._opened("digests") as notes:
            for number, name in enumerate(_file_names(self.samples, self.shard)):
                noted = name != INDEX and notes[number % len(notes)].read(DIGEST).hex()
                yield _line({"name": name, "sha256": noted or _sha256(self.folder / INDEX)})

    def _places(self):
        with self._opened("places") as notes:
            for number, _ in enumerate(range(0, len(self.samples), self.shard)):
                size = min(self.shard, len(self.samples) - number * self.shard)
                yield np.frombuffer(notes[number % len(notes)].read(size * PLACE.itemsize), PLACE)

    @contextlib.contextmanager
    def _opened(self, kind):
        """The notes of all processes, open."""
        with contextlib.ExitStack() as files:
            yield [files.enter_context(open(self._notes(kind, rank), "rb")) for rank in range(_place()[1])]

    def _notes(self, kind: str, rank: int | None = None) -> Path:
        """A file in which a process, this one by default, notes facts about what it has written, for process 0."""
        return self.folder / f".{kind}.{_place()[0] if rank is None else rank}.tmp"


def intact(folder: Path, samples: Sequence[Sample], manifest: str | None) -> bool:
    """Whether a folder holds the very files of the manifest that has the SHA-256 hash `manifest`, and these are of the
    samples. Collective: each process reads its share of the files."""
    try:
        same = _sha256(folder / MANIFEST) == manifest and _agrees(folder, samples)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        same = False
    return not distributed.any_of(not same)


def _agrees(folder, samples):
    """Whether the manifest names the files of the samples, and those of this process's share have its hashes."""
    first, step = _place()
    with open(folder / MANIFEST, "rb") as lines:
        shard = json.loads(next(lines))["shard"]
        for number, (line, name) in enumerate(zip(lines, _file_names(samples, shard), strict=True)):
            entry = json.loads(line)
            if entry["name"] != name or number % step == first and _sha256(folder / name) != entry["sha256"]:
                return False
    return True


def _file_names(samples: Sequence[Sample], shard: int) -> Iterator[str]:
    """The names of the files below the folder, in the order of the samples."""
    if not shard:
        yield from (f"{sample.name}.png" for sample in samples)
        return
    yield from map(shard_name, range(-(-len(samples) // shard)))
    yield INDEX


def _png_file(folder, number, sample):
    return folder / f"{sample.name}.png"


def _member(index, number, sample):
    return index.member(number, sample.name)


def _place():
    """(number of this process, number of processes)."""
    return (distributed.rank(), distributed.size()) if distributed.joined() else (0, 1)


def _line(entry):
    return (json.dumps(entry) + "\n").encode()


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
