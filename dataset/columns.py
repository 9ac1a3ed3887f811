"""Many texts in one block of bytes, and their hashes."""
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # of the polynomial that is a text's key: odd, its bits without a pattern
_BLOCK = 1 << 14            # texts whose keys are computed together


@dataclass(frozen=True)
class Column:
    """Texts in one block of bytes: number i is before + data[starts[i]:ends[i]] + behind, or None if it would end
    before it starts. Forked processes do not copy it; they copy Python strings, by counting references to them."""

    data: bytes | bytearray
    starts: np.ndarray
    ends: np.ndarray
    before: str = ""
    behind: str = ""

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> "Column":
        """The column of these texts."""
        data, starts, ends = bytearray(), [], []
        for text in texts:
            starts.append(len(data) + (text is None))
            data += (text or "").encode("utf-8", "surrogatepass")
            ends.append(len(data))
        return cls(data, np.array(starts, np.int64), np.array(ends, np.int64))

    def __len__(self):
        return len(self.starts)

    def text(self, number: int) -> str | None:
        """The text of that number."""
        start, end = int(self.starts[number]), int(self.ends[number])
        if end < start:
            return None
        return f"{self.before}{self.data[start:end].decode('utf-8', 'surrogatepass')}{self.behind}"

    def keys(self) -> np.ndarray:
        """uint64 [n]: a hash of each text (none is None), the same in all columns: sum of byte j times _BASE**j, modulo
        2**64. So the sums of all texts are differences of one running sum over the bytes."""
        block = range(0, len(self), _BLOCK)
        spans = [(int(self.starts[i]), int(self.ends[min(i + _BLOCK, len(self)) - 1])) for i in block]
        most = max((end - start for start, end in spans), default=0) + 1
        powers, inverse = _powers(_BASE, most), _powers(pow(_BASE, -1, 2**64), most)
        (before, length), (behind, _) = _key(self.before), _key(self.behind)
        bytes_, keys = np.frombuffer(self.data, np.uint8), np.empty(len(self), np.uint64)
        for i, (low, high) in zip(block, spans):
            sums = np.zeros(high - low + 1, np.uint64)
            np.cumsum(bytes_[low:high] * powers[: high - low], out=sums[1:])
            start, end = (at[i: i + _BLOCK].astype(np.int64) - low for at in (self.starts, self.ends))
            own = (sums[end] - sums[start]) * inverse[start] + powers[end - start] * np.uint64(behind)
            keys[i: i + _BLOCK] = np.uint64(before) + np.uint64(pow(_BASE, length, 2**64)) * own
        return keys


def _powers(base, count):
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _key(text):
    """(key, number of bytes) of one text."""
    data = text.encode("utf-8", "surrogatepass")
    return sum(byte * pow(_BASE, j, 2**64) for j, byte in enumerate(data)) % 2**64, len(data)


def sha256(*parts: str | bytes | bytearray) -> str:
    """Hexadecimal SHA-256 of the parts, each with its length in front."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(b"%d:" % len(content))
        digest.update(content)
    return digest.hexdigest()
