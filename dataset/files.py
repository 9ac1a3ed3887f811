"""Reading image and label files.

A file that is missing, damaged, of another kind or too large raises a DataError that names it and says what it is.
Sizes are checked in the header, before anything is decoded or allocated.
"""
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from dataset import formats
from dataset.shards import Member
from utils.errors import DataError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Bands:
    """How many channels the images of a data set have, and how their values become 8-bit.

    count: channels, 1..16. value_range: (low, high) for all of them, or low, high of each one after the other: the
    values that become 0 and 255 in files of more than 8 bits; None: such files are refused. section: the data set's
    name, for messages.
    """

    count: int = 3
    value_range: tuple[float, ...] | None = None
    section: str = ""

    def key(self, name: str) -> str:
        """The full name of the configuration key `bands` or `value_range`."""
        return f"{self.section}.{name}" if self.section else name


RGB = Bands()


def read_image(path: Path, bands: Bands = RGB) -> np.ndarray:
    """The image's pixels uint8 [H, W, bands.count], rotated and flipped as its orientation tag says.

    A grey or colour file of up to 8 bits is read as a viewer shows it: with 3 bands as RGB, also if it is grey; with 1
    band as grey. An alpha channel is left out, unless there are as many bands as channels. Files with other numbers
    of channels are read as they are stored. Values of more than 8 bits, signed and floating-point ones are mapped to
    0..255 by `to_8_bits`; without a range, of 16-bit RGB the high bytes are taken, and others are refused. Raises
    DataError, also if the file has another number of bands.
    """
    with _opened(path, "an image") as picture:
        return _turned(_pixels_of(path, picture, bands)(), picture.orientation)


def to_8_bits(samples: np.ndarray, value_range: tuple[float, ...]) -> np.ndarray:
    """Map integers or floats [H, W, K] to uint8: round((v - low) * 255 / (high - low)) of v clipped to low..high.

    value_range: low, high for all bands, or low, high of each. Computed in float64, ties rounded to even. Raises
    ValueError for NaN and infinity.
    """
    limits = np.resize(np.asarray(value_range, float), (samples.shape[2], 2))
    result = np.empty(samples.shape, np.uint8)
    for band, (low, high) in enumerate(limits.tolist()):
        values = samples[:, :, band]
        if values.dtype in (np.uint16, np.int16):
            result[:, :, band] = _table(values.dtype.char, low, high).take(values.view(np.uint16))
        else:
            if not np.isfinite(values).all():
                raise ValueError(f"band {band + 1} holds NaN or infinity: write a value of value_range there")
            result[:, :, band] = _mapped(values, low, high)
    return result


def read_label_ids(path: Path | Member) -> np.ndarray:
    """Label ids uint8 or uint16 [H, W] as the file stores them, rotated and flipped as its orientation tag says.

    The file has one lossless channel of up to 16 bits (or of 32 with ids up to 65535): grey or palette (the index is
    the id) in PNG, BMP, TIFF, PGM or PBM; or it is a 16-bit RGB PNG (the id is in the first channel, as in SYNTHIA).
    Raises DataError for other files.
    """
    with _opened(path, "a label") as picture:
        ids = _ids_of(path, picture)()
        if ids.dtype not in (np.uint8, np.uint16):
            if ids.min() < 0 or ids.max() > 65535:
                raise ValueError(f"{picture.what} of ids {ids.min()}..{ids.max()}, expected 0..65535")
            ids = ids.astype(np.uint8 if ids.dtype == bool else np.uint16)
        return _turned(ids, picture.orientation)


def read_label(path: Path | Member, table: np.ndarray) -> np.ndarray:
    """Train ids uint8 [H, W]: the file's ids looked up in `table` (`labels.lookup_table`). Raises DataError."""
    return table.take(read_label_ids(path))


def read_size(path: Path, bands: Bands = RGB) -> tuple[int, int]:
    """(width, height) of an image as `read_image` returns it, without decoding the pixels. Raises DataError."""
    with _opened(path, "an image") as picture:
        _pixels_of(path, picture, bands)
        return picture.size[::-1] if picture.orientation > 4 else picture.size


def read_label_size(path: Path | Member) -> tuple[int, int]:
    """(width, height) of a label as `read_label_ids` returns it, without decoding the ids. Raises DataError."""
    with _opened(path, "a label") as picture:
        _ids_of(path, picture)
        return picture.size[::-1] if picture.orientation > 4 else picture.size


def look(path: Path, read: Callable[[formats.Picture], Result]) -> Result:
    """read(picture) of a file's picture, whose pixels can be decoded within the call. Raises DataError."""
    with _opened(path, "an image") as picture:
        return read(picture)


def require_same_size(image_path: Path, size: tuple[int, int], label_path: Path | Member, label: np.ndarray) -> None:
    """Raise DataError unless the label [H, W] has the image's size (width, height)."""
    if label.shape != size[::-1]:
        raise DataError(f"{label_path}: label is {label.shape[1]}x{label.shape[0]}{_as_displayed(label_path)}, its "
                        f"image {image_path} is {size[0]}x{size[1]}{_as_displayed(image_path)}: fix it or take the "
                        "pair out of the list.")


def _ids_of(path: Path | Member, picture: formats.Picture) -> Callable[[], np.ndarray]:
    """A function that decodes the ids. Raises DataError if the header already shows that they cannot be read."""
    if picture.ids is None:
        raise DataError(f"{path}: cannot be read as a label ({picture.what}, expected one lossless channel of ids, or "
                        "16-bit RGB in a PNG): save the ids as a grey PNG of 8 or 16 bits.")
    return picture.ids


def _pixels_of(path: Path, picture: formats.Picture, bands: Bands) -> Callable[[], np.ndarray]:
    """A function that decodes the pixels, uint8 [H, W, bands.count]. Raises DataError if the header already shows that
    they cannot be read."""
    unread, count = f"{path}: cannot be read as an image ({picture.what}):", bands.count
    if picture.rgb is None and picture.samples is None:
        raise DataError(f"{unread} save it as a " + (
            "PNG or JPEG of one picture, grey or RGB, 8 bits per channel." if count in (1, 3) else
            f"TIFF of one page of {count} channels, grey or RGB and extra ones, compressed without loss."))
    whole = count == picture.channels
    shown = picture.channels <= picture.colours + 1 and count in (picture.colours, 3)  # 1: an alpha channel, left out
    if not (whole or shown):
        raise DataError(f"{path}: has {picture.channels} bands ({picture.what}), expected {count}: take it out, or set "
                        f"{bands.key('bands')} to what all files have.")
    as_stored = whole and picture.channels != picture.colours
    if picture.deep and bands.value_range and picture.samples:
        return lambda: to_8_bits(_stacked(picture.samples(), count, whole), bands.value_range)
    if picture.deep and picture.samples and (picture.rgb is None or as_stored):
        raise DataError(f"{unread} set {bands.key('value_range')} to the low and high value that become 0 and 255, or "
                        "save it with 8 bits per channel.")
    if picture.samples is None and (as_stored or picture.deep and bands.value_range):
        raise DataError(f"{unread} save it as a TIFF of {count} channels, 8 or more bits per channel.")
    if as_stored:
        return lambda: np.ascontiguousarray(picture.samples())
    return picture.rgb if count == 3 else lambda: np.ascontiguousarray(picture.rgb()[:, :, :1])


def _stacked(samples, count, whole):
    """Samples [H, W] or [H, W, channels] -> [H, W, count]: all of them, or the colours alone, grey repeated."""
    samples = samples if samples.ndim == 3 else samples[:, :, None]
    return samples if whole else samples[:, :, np.arange(count) if samples.shape[2] > 2 else [0] * count]


@functools.lru_cache(64)
def _table(kind, low, high):
    """uint8 [65536]: the 8-bit value of each 16-bit pattern. kind: numpy's letter of the 16-bit type."""
    return _mapped(np.arange(65536, dtype=np.uint16).view(kind), low, high)


def _mapped(values, low, high):
    return np.rint((np.clip(values.astype(np.float64), low, high) - low) * 255 / (high - low)).astype(np.uint8)


def _as_displayed(path):
    with _opened(path, "a file") as picture:
        return f" (as displayed: its EXIF orientation is {picture.orientation})" if picture.orientation > 1 else ""


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, ...] as displayed; the orientation (EXIF 2.3) says where row 0 and column 0 of the file belong."""
    if orientation == 1:
        return pixels
    pixels = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    rows, columns = (-1 if orientation in group else 1 for group in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _open(path: Path | Member) -> BinaryIO:
    if isinstance(path, Member):
        return path.open()
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe without a writer never returns
        raise OSError("not a file")
    return open(path, "rb")


@contextmanager
def _opened(path: Path | Member, kind: str) -> Iterator[formats.Picture]:
    """The picture in a file, open within the block. Errors of opening and decoding become a DataError."""
    try:
        with warnings.catch_warnings(), _open(path) as file:
            warnings.simplefilter("ignore")  # on metadata that is not used here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield formats.read_header(file)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: {kind.split()[1]} not found: restore it or take it out.") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        why = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read as {kind} ({why}): replace it or take it out.") from None
