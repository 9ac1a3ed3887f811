"""The log of a run: lines on the console, a JSON-lines file, TensorBoard scalars and pictures."""
import contextlib
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from utils import distributed, progress
from utils.errors import UserError


class RunLog:
    """Writes `<folder>/<stage>.jsonl`, one event a line in strictly valid JSON (NaN becomes null).

    tensorboard: also write scalars and pictures for TensorBoard below `<folder>/<stage>/`. A stage that is run again
    starts a new log. A resumed one gives the saved `state_dict` and its step; the log goes on from there, and later
    events are dropped.
    Nothing on the disk changes before `open`, or the first event. Of several processes only the first writes.
    """

    def __init__(self, folder: str | Path, stage: str, tensorboard: bool, saved: dict | None = None,
                 step: int | None = None):
        self._path, self._board = Path(folder) / f"{stage}.jsonl", Path(folder) / stage
        self._start, self._said, self._writes = time.time(), set(), distributed.is_main()
        self._writer, self._tensorboard, self._step = None, tensorboard and self._writes, step
        self._kept = saved["bytes"] if saved else 0
        self._events: TextIO | None = None

    def open(self) -> None:
        """Start the log, or go on with that of a resumed stage. Does nothing if it is open."""
        if self._events or not self._writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        resumed = self._step is not None and self._path.exists()
        self._events = open(self._path, "r+" if resumed else "w", encoding="utf-8")
        self._events.truncate(min(self._kept, self._events.seek(0, 2)))
        self._events.seek(0, 2)
        if self._step is None:
            for old in self._board.glob("events.out.tfevents.*"):
                old.unlink()

    def state_dict(self) -> dict:
        """{"bytes": length of the JSON-lines file so far}. Process 0 saves it."""
        return {"bytes": self._events.tell() if self._writes else 0}

    def say(self, text: str) -> None:
        """Print a line on the console, above any progress bar."""
        progress.say(text)

    def say_once(self, text: str) -> None:
        """`say`, unless the same text has been said before."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def event(self, kind: str, step: int, /, **values: Any) -> None:
        """Log numbers, or nested dicts of numbers, at a step; None: not defined. In TensorBoard they become scalars
        `kind/key/...`. Raises UserError if the file cannot be written."""
        self.open()
        if not self._writes:
            return
        record = {"event": kind, "step": step, "seconds": round(time.time() - self._start, 2), **values}
        try:
            self._events.write(json.dumps(_jsonable(record)) + "\n")
            self._events.flush()
        except OSError as error:
            raise UserError(f"{self._events.name}: cannot be written ({error.strerror}): make room, or choose another "
                            "log folder.") from None
        if self._tensorboard:
            self._to_board(lambda board: [board.add_scalar(tag, value, step) for tag, value in _flatten(kind, values)])

    def picture(self, tag: str, step: int, draw: Callable[[], Image.Image | None]) -> None:
        """Show a picture, RGB, in TensorBoard. draw: makes it, None if there is nothing to show; it is called only if
        the picture is wanted."""
        self.open()
        if self._tensorboard and (picture := draw()):
            self._to_board(lambda board: board.add_image(tag, np.asarray(picture), step, dataformats="HWC"))

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # `event` has reported it
            if self._events:
                self._events.close()
        with contextlib.suppress(OSError):
            if self._writer:
                self._writer.close()

    def _to_board(self, write):
        """Write something for TensorBoard, write(SummaryWriter). It repeats what is elsewhere, so the run goes on if it
        cannot be written."""
        try:
            if self._writer is None:  # imported late: the import takes as long as a training step
                from torch.utils.tensorboard import SummaryWriter
                threading.excepthook = _without_disk_errors
                self._writer = SummaryWriter(self._board, purge_step=None if self._step is None else self._step + 1)
            write(self._writer)
            self._writer.flush()
        except OSError as error:
            self._tensorboard = False
            self.say(f"warning: {self._board}: TensorBoard's scalars cannot be written ({error}) and end here.")


def _without_disk_errors(failed):
    """A `threading.excepthook` without the traceback of TensorBoard's own thread on a full disk: `flush` raises that
    error again."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)


def _jsonable(value):
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _flatten(prefix, values):
    for key, value in values.items():
        tag = f"{prefix}/{key}"
        if isinstance(value, dict):
            yield from _flatten(tag, value)
        elif isinstance(value, (int, float)) and math.isfinite(value):
            yield tag, value
