"""Messages on single files, of a pass that processes share."""
from dataclasses import dataclass, field

from utils import distributed

MOST = 1000  # messages of a pass that are kept; further ones are counted


@dataclass
class Messages:
    """Lines about single files: (number, line) of the first ones, and how many there are."""

    first: list[tuple[int, str]] = field(default_factory=list)
    count: int = 0

    def add(self, number: int, line: str) -> None:
        """Add a line; number: where it stands among those of all processes."""
        self.count += 1
        if len(self.first) < MOST:
            self.first.append((number, line))

    def merged(self) -> "Messages":
        """Those of all processes, in order. Collective."""
        every = distributed.gathered(self)
        return Messages(sorted(line for one in every for line in one.first)[:MOST], sum(one.count for one in every))

    def lines(self) -> list[str]:
        """The lines, and how many more there are."""
        more = self.count - len(self.first)
        return [line for _, line in self.first] + ([f"and {more} more like these"] if more else [])
