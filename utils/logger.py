"""One run's record: lines on the console, a JSON-lines file, TensorBoard scalars."""
import contextlib
import json
import math
import threading
import time
from pathlib import Path

from utils import progress
from utils.errors import UserError


class RunLog:
    """Writes `<folder>/<stage>.jsonl` (one event a line, strictly valid JSON: NaN becomes null) and, if asked,
    TensorBoard scalars below `<folder>/<stage>/`. A stage that is run again starts a new record; a resumed one goes on
    where the saved state had it (saved: `state_dict`; step), and what came after is dropped. Nothing on the disk
    changes before `open`, or the first event."""

    def __init__(self, folder: str | Path, stage: str, tensorboard: bool, saved: dict | None = None,
                 step: int | None = None):
        self._path, self._board = Path(folder) / f"{stage}.jsonl", Path(folder) / stage
        self._start, self._said = time.time(), set()
        self._writer, self._tensorboard, self._step = None, tensorboard, step
        self._kept, self._events = saved["bytes"] if saved else 0, None

    def open(self) -> None:
        """Begin the record, or go on with it. No effect when it is open."""
        if self._events:
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
        """bytes: length of the JSON lines so far."""
        return {"bytes": self._events.tell()}

    def say(self, text: str) -> None:
        """A line on the console, above any progress bar."""
        progress.say(text)

    def say_once(self, text: str) -> None:
        """`say`, unless this record has said the very same before."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def event(self, kind: str, step: int, /, **values) -> None:
        """Record numbers at a step: nested dicts of numbers (None: not defined) become scalars `kind/key/...`."""
        self.open()
        record = {"event": kind, "step": step, "seconds": round(time.time() - self._start, 2), **values}
        try:
            self._events.write(json.dumps(_jsonable(record)) + "\n")
            self._events.flush()
        except OSError as error:
            raise UserError(f"{self._events.name}: cannot be written ({error.strerror}): make room, or choose another "
                            "log folder.") from None
        if self._tensorboard:
            self._to_board(kind, step, values)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `event` has said so
            if self._events:
                self._events.close()
        with contextlib.suppress(OSError):
            if self._writer:
                self._writer.close()

    def _to_board(self, kind, step, values):
        """Scalars for TensorBoard, which repeat what the JSON lines have: a disk that refuses them ends no run."""
        try:
            if self._writer is None:  # its import costs as much as a step, so not before the first
                from torch.utils.tensorboard import SummaryWriter
                threading.excepthook = _but_for_disks
                self._writer = SummaryWriter(self._board, purge_step=None if self._step is None else self._step + 1)
            for tag, value in _flatten(kind, values):
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()
        except OSError as error:
            self._tensorboard = False
            self.say(f"warning: {self._board}: TensorBoard's scalars cannot be written ({error}) and end here.")


def _but_for_disks(failed):
    """What TensorBoard's own thread cannot write is raised again here, by `flush`: no traceback beside that."""
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
