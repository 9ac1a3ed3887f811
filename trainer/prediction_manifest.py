"""Which images of a folder of predictions are done: a file that lets a prediction go on where it was stopped."""
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.outputs import output_path
from dataset.segmentation import Sample
from utils.checkpoint import RunLock, remove_unfinished, write_atomically
from utils.errors import ConfigError, naming

MANIFEST = "predict.jsonl"
_VERSION = 1


class Manifest:
    """Which images are done, in the output's `predict.jsonl`: a line of settings, then one of each image, written when
    its pictures are. It survives a process that is killed at any moment.

    Entering its `with` block locks the folder and reads the file. Raises ConfigError if the folder is in use, if its
    pictures were made with other settings or, under a name, of another image, or if pictures lie there that no manifest
    names, unless `overwrite`.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], overwrite: bool, samples: list[Sample],
                 settings: dict[str, Any]):
        self.folder, self.kinds, self.overwrite, self.samples = folder, kinds, overwrite, samples
        self.settings = {"version": _VERSION, **settings}
        self.path = folder / MANIFEST
        self._done: dict[str, dict] = {}
        self._states: dict[str, list[int] | None] = {}
        self._writing = threading.Lock()

    def done(self, sample: Sample) -> bool:
        """Whether all pictures asked for are there, made from the file as it is now. To be asked before it is read: a
        file that changes afterwards is not taken for the one that was predicted."""
        state = self._states[sample.name] = _state(sample.image)
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
        lines = [self.settings, *({"name": name, **entry} for name, entry in self._done.items())]
        write_atomically(self.path, lambda file: file.writelines(map(_line, lines)))
        self._file = open(self.path, "ab")
        return self

    def __exit__(self, *_):
        self._file.close()
        self._lock.release()

    def _read(self):
        """Read the file, if there is one that counts. Raises ConfigError as the class says."""
        if self.overwrite:
            return
        choose = "choose another --output, or predict all again with --overwrite"
        try:
            lines = [entry for line in self.path.read_bytes().splitlines() if (entry := _parsed(line))]
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
        self._done = {entry.pop("name"): entry for entry in lines[1:] if "name" in entry}
        for sample in self.samples:
            entry = self._done.get(sample.name, {})
            other = entry.get("image", path := os.path.realpath(sample.image))
            if other != path and entry.get("source") != _state(sample.image):
                raise ConfigError(f"--output: {str(self.folder)!r} holds the prediction of another image named "
                                  f"{sample.name!r}, {other}: {choose}.")


def _line(entry):
    return json.dumps(entry).encode() + b"\n"


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
