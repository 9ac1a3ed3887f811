"""Which images of a folder of predictions are done: a file that lets a prediction go on where it was stopped."""
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.outputs import output_path
from dataset.segmentation import Sample
from utils import distributed
from utils.checkpoint import RunLock, remove_unfinished, write_atomically
from utils.errors import ConfigError, naming

MANIFEST = "predict.jsonl"
_VERSION = 1


class Manifest:
    """Which images are done, in the output's `predict.jsonl`: a line of settings, then one of each image, written when
    its pictures are. It survives a process that is killed at any moment.

    Of several processes the first writes that file, and each other one `predict.<rank>.jsonl`, without settings. Lines
    of these are moved to the former when all is done, or by the next call, whatever its number of processes.

    Entering its `with` block locks the folder and reads the files; entering and leaving are collective. Raises
    ConfigError if the folder is in use, if its pictures were made with other settings or, under a name, of another
    image, or if pictures lie there that no manifest names, unless `overwrite`.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], overwrite: bool, samples: list[Sample],
                 settings: dict[str, Any]):
        self.folder, self.kinds, self.overwrite, self.samples = folder, kinds, overwrite, samples
        self.settings = {"version": _VERSION, **settings}
        self.path = folder / MANIFEST
        self._done: dict[str, dict] = {}
        self._states: dict[str, list[int] | None] = {}
        self._writing = threading.Lock()
        self._lock: RunLock | None = None  # of the first process

    def waiting(self) -> list[Sample]:
        """The samples of which not all pictures asked for are there, made from the file as it is now. To be asked
        before images are read: a file that changes afterwards is not taken for the one that was predicted. Each process
        looks at its share, and all get the whole list. Collective."""
        looked = [(state := _state(sample.image), self._done_from(sample, state))
                  for sample in distributed.share(self.samples)]
        found = list(zip(self.samples, distributed.collected(looked)))
        self._states = {sample.name: state for sample, (state, done) in found if not done}
        return [sample for sample, (_, done) in found if not done]

    def _done_from(self, sample, state):
        """Whether all pictures are there, made from a file with this state."""
        entry = self._done.get(sample.name, {})
        written = entry.get("written", {})
        return entry.get("source") == state and all(
            kind in written and written[kind] == _size(output_path(self.folder, kind, sample.name))
            for kind in self.kinds)

    def add(self, sample: Sample, sizes: dict[str, int]) -> None:
        """Note that the pictures of an image are written. sizes: bytes of each."""
        with self._writing, naming(self.path):
            self._file.write(_line({"name": sample.name, "image": os.path.realpath(sample.image),
                                    "source": self._states[sample.name], "written": sizes}))
            self._file.flush()

    def __enter__(self):
        distributed.from_main(self._begin)
        rank = distributed.rank()
        if rank and not self.overwrite:
            self._done = _by_name(_entries(self.path)[1:])
        self._file = open(self.folder / f"predict.{rank}.jsonl" if rank else self.path, "ab")
        return self

    def _begin(self):
        """Lock the folder, read what is done, and write it to one file."""
        self._read()
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = RunLock(self.folder)
        except ConfigError:
            raise ConfigError(f"--output: {str(self.folder)!r} is in use by another process: wait for it, or choose "
                              "another folder.") from None
        self._read()  # again, as it may have changed before the lock
        for kind in self.kinds:
            remove_unfinished(self.folder / kind)
        if self.overwrite:  # first, that nobody takes their lines for those of this call
            self._remove_parts()
        lines = [self.settings, *({"name": name, **entry} for name, entry in self._done.items())]
        write_atomically(self.path, lambda file: file.writelines(map(_line, lines)))
        self._remove_parts()

    def __exit__(self, kind, *_):
        self._file.close()
        try:
            if kind is None:
                distributed.wait()  # until all have closed their files
                distributed.from_main(self._merge)
        finally:
            if self._lock:
                self._lock.release()

    def _merge(self):
        """Move the lines of the other processes' files to the first's."""
        with naming(self.path), open(self.path, "ab") as file:
            for part in self._parts():
                file.write(part.read_bytes())
        self._remove_parts()

    def _parts(self):
        return sorted(self.folder.glob("predict.*.jsonl"))

    def _remove_parts(self):
        for part in self._parts():
            part.unlink()

    def _read(self):
        """Read the file, if there is one that counts. Raises ConfigError as the class says."""
        if self.overwrite:
            return
        choose = "choose another --output, or predict all again with --overwrite"
        try:
            lines = _entries(self.path, *self._parts())
        except FileNotFoundError:
            there = (path for sample in self.samples for kind in self.kinds
                     if (path := output_path(self.folder, kind, sample.name)).exists())
            if path := next(there, None):
                raise ConfigError(f"--output: {path} is there already, and no {MANIFEST} says how it was made: "
                                  f"{choose}.") from None
            return
        before, now = lines[0] if lines else {}, json.loads(_line(self.settings))
        for name in now:
            if before.get(name) != now[name]:
                raise ConfigError(f"--output: the predictions in {str(self.folder)!r} were made with other {name} "
                                  f"({_short(before.get(name))}; now {_short(now[name])}): {choose}.")
        self._done = _by_name(lines[1:])
        for sample in self.samples:
            entry = self._done.get(sample.name, {})
            other = entry.get("image", path := os.path.realpath(sample.image))
            if other != path and entry.get("source") != _state(sample.image):
                raise ConfigError(f"--output: {str(self.folder)!r} holds the prediction of another image named "
                                  f"{sample.name!r}, {other}: {choose}.")


def _line(entry):
    return json.dumps(entry).encode() + b"\n"


def _entries(*paths):
    return [entry for path in paths for line in path.read_bytes().splitlines() if (entry := _parsed(line))]


def _by_name(entries):
    """The entries of images; of several of one image the last."""
    return {entry.pop("name"): entry for entry in entries if "name" in entry}


def _parsed(line):
    """A line's entry, or None for the torn last line of a process that was killed."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _state(path):
    """Size and time of change of an image file: those of another content are others."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _size(path):
    try:
        return path.stat().st_size
    except OSError:
        return None


def _short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
