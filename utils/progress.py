"""Progress of a long loop: a bar on a terminal, and plain lines where the output is no terminal."""
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from tqdm import tqdm

from utils import distributed


class _Bar(tqdm):
    monitor_interval = 0  # no monitor thread, which every fork would copy; with miniters=1 it has nothing to do


class SizedIterable(Protocol):
    """Something to iterate over that has a length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator: ...


class Progress:
    """Iterates over `items` (which have a length) and shows the progress.

    The bar is on stderr, if that is a terminal and `screen` is True. Where there is no bar, or stdout is no terminal, a
    line is printed on stdout after each `every` items:

        thresholds: 200/2975 images, 11.4 images/s, 04:03 left

    every=0: lines are printed by `report` alone. first: items that an earlier process has done; they count as done, but
    not in the rate. Of several processes, only the first shows anything, its own share.
    """

    def __init__(self, items: SizedIterable, title: str, every: int, screen: bool, unit: str = "image", first: int = 0):
        self.items, self.title, self.every, self.unit, self.first = items, title, every, unit, first
        self.done, self.total = first, first + len(items)
        # disable=None: no bar unless stderr is a terminal. nrows: a bar hides where a terminal does not know its size.
        self.bar = _Bar(total=self.total, desc=title, unit=unit, initial=first, leave=False, nrows=20, miniters=1,
                        disable=None if screen and distributed.is_main() else True)
        self.lines = self.bar.disable or not (sys.stdout and sys.stdout.isatty())
        self._start = time.monotonic()

    def __iter__(self) -> Iterator:
        self._start = time.monotonic()
        try:
            for item in self.items:
                self.done += 1
                yield item
                self.bar.update()
                if self.every and self.done % self.every == 0:
                    self.report()
        finally:
            self.bar.close()

    def report(self, **facts: str) -> None:
        """Show `facts` (name -> text) with the progress; the current item counts as done.

        Call it where numbers are read from the device anyway: only then has the device finished the work that is timed.
        """
        if facts:
            self.bar.set_postfix(facts)
        if self.lines:
            rate = (self.done - self.first) / max(time.monotonic() - self._start, 1e-9)
            shown = "".join(f", {name} {value}" for name, value in facts.items())
            say(f"{self.title}: {self.done}/{self.total} {self.unit}s{shown}, {rate:.3g} {self.unit}s/s, "
                f"{tqdm.format_interval((self.total - self.done) / rate)} left")


def say(text: str, everywhere: bool = False) -> None:
    """Print a line on stdout at once, above any bar. Of several processes only the first prints, or all that call this
    with `everywhere`, with their number in front."""
    if not distributed.is_main() and not everywhere:
        return
    line = text if distributed.is_main() else f"process {distributed.rank()}: {text}"
    tqdm.write(f"{line}\n", end="")  # in one piece, as other processes write lines at the same time
    if sys.stdout:
        sys.stdout.flush()
