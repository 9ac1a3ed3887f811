"""What a run takes, from what a few images of it took: its time as a sum of parts, its disk, and both as text."""
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Part:
    """A part of a run: what is done, how often, and the seconds that each takes."""

    title: str
    count: int
    seconds: float

    @property
    def total(self) -> float:
        """Seconds of all of them."""
        return self.count * self.seconds


@dataclass(frozen=True)
class Files:
    """Files that a run writes: what they are, where, and their bytes at most. kept: whether they stay afterwards."""

    title: str
    folder: str
    size: float
    kept: bool = True


# ---- how often -------------------------------------------------------------------------------------------------------

def looks(steps: int, every: int | None, trains: bool) -> int:
    """How often a round of so many steps looks at candidates: each `every` steps (None: a quarter of the round) and at
    its end; a method that does not train at its end alone."""
    return 1 + (steps - 1) // (every or -(-steps // 4)) if trains else 1


def validations(rounds: Sequence[int], every: int) -> int:
    """How often a run validates: after each `every` steps, and after each round. rounds: their steps."""
    return len({*range(every, sum(rounds) + 1, every), *accumulate(rounds)}) if rounds else 1


def most_weights(rounds: Sequence[int], begun: int, added: int, spared: int, keep_all: bool) -> int:
    """How many candidates have weights on the disk at most. rounds: looks of each. begun: references. added: candidates
    of each look. spared: the most that a round's end leaves beside the references."""
    most = held = begun
    for count in rounds:
        held += count * added
        most = max(most, held)
        held = held if keep_all else min(held, begun + spared)
    return most


# ---- in words --------------------------------------------------------------------------------------------------------

def duration(seconds: float) -> str:
    """Seconds as text with two or three digits that count, such as `85 ms`, `1.9 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def amount(size: float) -> str:
    """Bytes as text, such as `1.5 GiB`."""
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.3g} {_UNITS[power]}"


def time_table(parts: Sequence[Part]) -> list[str]:
    """Lines of the parts with their count, the time of each, and the total, with the sum in the last line."""
    rows = [(p.title, str(p.count), duration(p.seconds), duration(p.total)) for p in parts]
    return _table([("time", "count", "each", "all"), *rows,
                   ("whole run", "", "", duration(sum(p.total for p in parts)))])


def disk_table(files: Sequence[Files]) -> list[str]:
    """Lines of what is written, and a warning for each disk that has no room for it."""
    rows = [(f.title, amount(f.size), "" if f.kept else "while it runs", f.folder) for f in files]
    lines = _table([("disk", "at most", "", "below"), *rows])
    disks: dict[int, list[Files]] = {}
    for f in files:
        disks.setdefault(existing(f.folder).stat().st_dev, []).append(f)
    for on_disk in disks.values():
        needed, free = sum(f.size for f in on_disk), shutil.disk_usage(existing(on_disk[0].folder)).free
        where = " and ".join(dict.fromkeys(f.folder for f in on_disk))
        lines.append(f"{amount(needed)} at most, {amount(free)} are free below {where}")
        if needed > free:
            lines.append(f"warning: the disk below {where} has no room for that: make room, or choose other folders")
    return lines


def existing(folder: str | Path) -> Path:
    """The folder, or, where it is not there yet, the nearest one above it that is."""
    path = Path(folder).absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _table(rows):
    """The first column is flush left, and the last if it is not a number's; the others are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) if i in (0, 3) and not cell[:1].isdigit() else cell.rjust(w)
                      for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]
