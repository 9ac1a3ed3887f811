"""What an image file holds, before it is decoded, and functions that the readers of several formats share."""
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

ORIENTATION = 274  # the tag of TIFF and EXIF
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")


@dataclass(frozen=True)
class Picture:
    """An image file after reading its header. `ids` is None if it cannot be a label, `rgb` if it cannot be an image."""

    what: str                                # "4-bit grey PNG"
    size: tuple[int, int]                    # (width, height) as stored
    orientation: int                         # 1..8: row and column of the first sample, as EXIF and TIFF number them
    ids: Callable[[], np.ndarray] | None     # integers [H, W] as stored
    rgb: Callable[[], np.ndarray] | None     # uint8 [H, W, 3] as displayed, but for the orientation
    colours: int = 3                         # 1: grey, so that the three channels of `rgb` are equal
    channels: int = 3                        # of the file, with alpha and others that are not displayed
    samples: Callable[[], np.ndarray] | None = None  # [H, W] or [H, W, channels] as stored; None: no values
    deep: bool = False                       # `samples` are not unsigned 8-bit: their range is unknown


def require_size(width: int, height: int) -> None:
    """Raise ValueError if a picture of width x height has no pixels, or more than Pillow's limit."""
    if not 0 < width * height <= Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{width}x{height} pixels, expected 1 to {Image.MAX_IMAGE_PIXELS}")


def unpacked(rows: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Unpack rows of bytes uint8 [H, n] into samples uint8 [H, width] of 1, 2 or 4 bits, the first in the high bits."""
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (rows[:, :, None] >> shifts & (2**bits - 1)).reshape(len(rows), -1)[:, :width]


def indices(ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The indices [H, W] into a palette uint8 [n, 3], if the indices are the label ids.

    They are if the palette has colours, one grey for several indices, or greys that only display the indices: equal to
    them, their complements, or an even scale from black to white. But programs that shrink or convert a grey file
    number its greys by size or frequency. Then the grey is the id, not the index. Raises ValueError for such a palette.
    """
    if (palette != palette[:, :1]).any():
        return ids
    used, every, greys = np.flatnonzero(np.bincount(ids.ravel())), np.arange(len(palette)), palette[:, 0].astype(int)
    if used[-1] >= len(palette) or len(set(greys[used])) < len(used):
        return ids
    last = np.flatnonzero(greys)[-1] if greys.any() else 0  # the rest of the palette may be filled with black
    scales = [every, *(every * 255 / max(1, end) for end in (used[-1], last))]
    if any((abs(greys - scale)[used] < 1).all() for scale in scales) or len(every) > 1 and (greys == 255 - every).all():
        return ids
    first = used[greys[used] != used][0]
    raise ValueError(f"its palette is of greys other than their indices, grey {greys[first]} at index {first}, as in a "
                     "grey file that a program has shrunk or converted: save whichever are the ids as a grey PNG")


def xmp_orientation(xmp: object) -> int:
    """The orientation, 1..8, in XMP metadata: text or bytes, or, if damaged, anything. 1 if there is none."""
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    match = _XMP_ORIENTATION.search(xmp) if isinstance(xmp, bytes) else None
    return int(match[1]) if match else 1
