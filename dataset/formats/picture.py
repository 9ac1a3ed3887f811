"""What a file holds, before it is decoded, and what the readers of several formats share."""
import re
from dataclasses import dataclass
from typing import Callable

import numpy as np
from PIL import Image

ORIENTATION = 274  # the tag of TIFF and EXIF
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")


@dataclass(frozen=True)
class Picture:
    """A file whose header has been read. `ids` or `rgb` is None where the file cannot serve as a label or an image."""

    what: str                                # "4-bit grey PNG"
    size: tuple[int, int]                    # (width, height) as stored
    orientation: int                         # 1..8: row and column of the first sample, as EXIF and TIFF number them
    ids: Callable[[], np.ndarray] | None     # integers [H, W] as stored
    rgb: Callable[[], np.ndarray] | None     # uint8 [H, W, 3] as displayed, but not turned
    colours: int = 3                         # 1: grey, so that the three channels of `rgb` are equal
    channels: int = 3                        # of the file, alpha and others that are not displayed included
    samples: Callable[[], np.ndarray] | None = None  # [H, W] or [H, W, channels] as stored, where they are values
    deep: bool = False                       # `samples` are not unsigned of 8 bits: their range is not known


def require_size(width: int, height: int) -> None:
    """Raise ValueError where nothing or too much would be decoded."""
    if not 0 < width * height <= Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{width}x{height} pixels, expected 1 to {Image.MAX_IMAGE_PIXELS}")


def unpacked(rows: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Samples uint8 [H, width] of rows of bytes, the first in the high bits."""
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (rows[:, :, None] >> shifts & (2**bits - 1)).reshape(len(rows), -1)[:, :width]


def indices(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The indices [H, W] into a palette uint8 [n, 3], where it is they that the file means.

    It is they where the palette is of colours, of one grey for several indices, or of greys that merely show them: the
    indices themselves, their complements, or an even scale from black to white. Programs that shrink or convert a grey
    file number its greys by size or frequency: there the grey is the id, and the index another's. Raises ValueError for
    such a palette.
    """
    if (palette != palette[:, :1]).any():
        return ids
    used, every, greys = np.flatnonzero(np.bincount(ids.ravel())), np.arange(len(palette)), palette[:, 0].astype(int)
    if used[-1] >= len(palette) or len(set(greys[used])) < len(used):
        return ids
    last = np.flatnonzero(greys)[-1] if greys.any() else 0  # behind the palette's end there may be black
    scales = [every, *(every * 255 / max(1, end) for end in (used[-1], last))]
    if any((abs(greys - scale)[used] < 1).all() for scale in scales) or len(every) > 1 and (greys == 255 - every).all():
        return ids
    first = used[greys[used] != used][0]
    raise ValueError(f"its palette is of greys other than their indices, grey {greys[first]} at index {first}, as in a "
                     "grey file that a program has shrunk or converted: save whichever are the ids as a grey PNG")


def xmp_orientation(xmp: object) -> int:
    """1..8, 1 where XMP metadata says nothing; it comes as text or bytes, or, damaged, as anything."""
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    match = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
    return int(match[1]) if match else 1
