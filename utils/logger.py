"""One run's record: lines on the console, a JSON-lines file, TensorBoard scalars."""
import json
import math
import time
from pathlib import Path

from tqdm import tqdm


class RunLog:
    """Writes `<folder>/<stage>.jsonl` (one event a line, strictly valid JSON: NaN becomes null) and, if asked,
    TensorBoard scalars below `<folder>/<stage>/`. A stage run again starts its record anew."""

    def __init__(self, folder: str | Path, stage: str, tensorboard: bool):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._events = open(folder / f"{stage}.jsonl", "w", encoding="utf-8")
        self._start = time.time()
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # costs over a second, so only where it is wanted
            board = folder / stage
            for old in board.glob("events.out.tfevents.*"):
                old.unlink()
            self._writer = SummaryWriter(board)

    def say(self, text: str) -> None:
        """A line on the console, above any progress bar."""
        tqdm.write(text)

    def event(self, kind: str, step: int, **values) -> None:
        """Record numbers at a step: nested dicts of numbers (None: not defined) become scalars `kind/key/...`."""
        record = {"event": kind, "step": step, "seconds": round(time.time() - self._start, 2), **values}
        self._events.write(json.dumps(_jsonable(record)) + "\n")
        self._events.flush()
        if self._writer:
            for tag, value in _flatten(kind, values):
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def close(self) -> None:
        self._events.close()
        if self._writer:
            self._writer.close()


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
