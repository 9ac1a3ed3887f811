"""The lines of a list of very many images, as bytes that are checked all at once."""
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

LONG = 100_000  # more lines make a list long
_BLOCK = 1 << 20  # bytes or lines that are looked at together
_OTHERWISE = "is not written as others are"


class NotPlain(Exception):
    """The lines of a long list are not of one form; the argument says why."""


@dataclass(frozen=True)
class Lines:
    """The lines of a list that are not empty: number i is data[starts[i]:ends[i]]. gaps: there are empty ones."""

    data: bytearray
    starts: np.ndarray
    ends: np.ndarray
    gaps: bool = False

    def __len__(self):
        return len(self.starts)

    def text(self, index: int) -> str:
        """A line."""
        return self.data[int(self.starts[index]): int(self.ends[index])].decode()

    def number(self, index: int) -> int:
        """The number of a line in the file, from 1."""
        return 1 + (self.data.count(b"\n", 0, int(self.starts[index])) if self.gaps else index)

    def require(self, right: Any, what: str = _OTHERWISE) -> None:
        """Raise NotPlain for the first line of which `right`, bool [n], is False."""
        if not right.all():
            raise NotPlain(f"line {self.number(int(right.argmin()))} {what}")

    def require_one(self, index: int, right: bool) -> None:
        """Raise NotPlain for a line unless `right`."""
        if not right:
            raise NotPlain(f"line {self.number(index)} {_OTHERWISE}")

    def bytes_at(self, at: np.ndarray) -> np.ndarray:
        """The bytes at these places; they must not be negative."""
        return np.frombuffer(self.data, np.uint8)[at]

    def holds(self, text: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """bool [n]: whether each data[start:end] begins with the text."""
        wanted, found = np.frombuffer(text.encode(), np.uint8), starts.astype(np.int64) + len(text.encode()) <= ends
        if not len(wanted) or not found.any():
            return found
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(self.data, np.uint8), len(wanted))
        for low in range(0, len(starts), _BLOCK):
            block = slice(low, low + _BLOCK)
            at = np.where(found[block], starts[block], 0)
            found[block] &= (windows[at] == wanted).all(1)
        return found

    def places(self, byte: bytes) -> np.ndarray:
        """Where a byte occurs."""
        return np.concatenate([np.flatnonzero(block == byte[0]).astype(self.starts.dtype) + self.starts.dtype.type(at)
                               for at, block in _blocks(self.data)])


def read_lines(path: str) -> Lines | None:
    """The lines of a long list; None if it is short or cannot be read. Raises NotPlain if it holds characters that only
    a reading line by line understands."""
    try:
        if not os.path.isfile(path) or (size := os.path.getsize(path)) < 2 * LONG:
            return None
        data = bytearray(size)
        with open(path, "rb") as file:
            if file.readinto(data) != size or data.count(b"\n") < LONG:
                return None
    except OSError:
        return None
    whole = np.array([0, size], np.uint32 if size < 2**32 else np.int64)
    breaks = Lines(data, whole[:1], whole[1:]).places(b"\n")
    kind = breaks.dtype.type
    starts, ends = np.append(kind(0), breaks + kind(1)), np.append(breaks, kind(size))
    starts[0] = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    returns = data.count(b"\r")
    if returns:  # each before a line feed
        ended = (np.frombuffer(data, np.uint8)[np.maximum(ends, kind(1)) - kind(1)] == ord("\r")) & (ends > starts)
        if ended.sum() != returns:
            raise NotPlain("a line ends with a carriage return alone")
        ends -= ended
    filled = ends > starts
    gaps = not filled[:-1].all()
    if not filled.all():
        starts, ends = starts[filled], ends[filled]
    lines = Lines(data, starts, ends, gaps)
    controls = sum(int(np.count_nonzero(block < ord(" "))) for _, block in _blocks(data))
    if controls != len(breaks) + returns + data.count(b"\t") or b"\x7f" in data or b"\\" in data:
        raise NotPlain("it holds backslashes or control characters")
    if not data.isascii():
        _require_composed(lines)
    return lines if len(lines) > LONG else None


def _blocks(data: bytearray) -> Iterator[tuple[int, np.ndarray]]:
    whole = np.frombuffer(data, np.uint8)
    for at in range(0, len(whole), _BLOCK):
        yield at, whole[at: at + _BLOCK]


def _require_composed(lines):
    """Raise NotPlain unless the text is UTF-8, its letters are composed, and its blanks the usual ones."""
    many = _BLOCK // 64
    for low in range(0, len(lines), many):
        high = min(low + many, len(lines)) - 1
        try:
            text = lines.data[int(lines.starts[low]): int(lines.ends[high])].decode()
        except UnicodeDecodeError:
            raise NotPlain("it is no text in UTF-8") from None
        if not unicodedata.is_normalized("NFC", text) or re.search(r"[^\S \t\r\n]", text):
            raise NotPlain("it holds accents that are characters of their own, or unusual blanks")
