"""How far a long loop is: a bar on a terminal, elsewhere a plain line now and then."""
import sys
import time
from typing import Iterable, Iterator

from tqdm import tqdm


class _Bar(tqdm):
    monitor_interval = 0  # no thread, which would be there at every fork; with miniters=1 it has nothing to do


class Progress:
    """Iterates over `items` (which have a length) and shows the pace.

    The bar stands on stderr if that is a terminal and `screen` is True. Where no bar is seen, because there is none or
    because stdout goes elsewhere, a line on stdout each `every` items has the count, the rate and the time left:

        thresholds: 200/2975 images, 11.4 images/s, 04:03 left

    every=0: lines come by `report` alone. first: items done by an earlier process; they count, but not in the rate.
    """

    def __init__(self, items: Iterable, title: str, every: int, screen: bool, unit: str = "image", first: int = 0):
        self.items, self.title, self.every, self.unit, self.first = items, title, every, unit, first
        self.done, self.total = first, first + len(items)
        # disable=None: unless stderr is a terminal; nrows: on one that does not know its own size a bar hides itself.
        self.bar = _Bar(total=self.total, desc=title, unit=unit, initial=first, leave=False, nrows=20, miniters=1,
                        disable=None if screen else True)
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
        """Show facts beside the pace; the item that came last counts as done. Call it where numbers are read from the
        device anyway: only then does the clock stand at the work's end."""
        if facts:
            self.bar.set_postfix(facts)
        if self.lines:
            rate = (self.done - self.first) / max(time.monotonic() - self._start, 1e-9)
            shown = "".join(f", {name} {value}" for name, value in facts.items())
            say(f"{self.title}: {self.done}/{self.total} {self.unit}s{shown}, {rate:.3g} {self.unit}s/s, "
                f"{tqdm.format_interval((self.total - self.done) / rate)} left")


def say(text: str) -> None:
    """A line on stdout, above any bar, at once."""
    tqdm.write(text)
    if sys.stdout:
        sys.stdout.flush()
