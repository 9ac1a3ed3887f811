"""Reading image and label files. What is missing, damaged, of another kind or too large raises a DataError that names
the file and what it is; sizes are checked in the header, before anything is decoded or allocated."""
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import numpy as np
from PIL import Image

from dataset import formats
from utils.errors import DataError


def read_image(path: Path) -> np.ndarray:
    """The image's pixels as a viewer shows them, RGB, uint8 [H, W, 3], turned as its EXIF orientation says; alpha is
    left out. Raises DataError."""
    with _opened(path, "an image") as picture:
        _require_colours(path, picture)
        return _turned(picture.rgb(), picture.orientation)


def read_label_ids(path: Path) -> np.ndarray:
    """Label ids uint8 or uint16 [H, W] as the file stores them, turned as its orientation tag says, if it has one.

    One lossless channel of up to 16 bits (or of 32 with ids up to 65535): grey or palette (the index is the id) in PNG,
    BMP, TIFF, PGM or PBM; or 16-bit RGB in a PNG (the id is in the first channel, as in SYNTHIA). Raises DataError.
    """
    with _opened(path, "a label") as picture:
        if picture.ids is None:
            raise DataError(f"{path}: cannot be read as a label ({picture.what}, expected one lossless channel of ids, "
                            "or 16-bit RGB in a PNG): save the ids as a grey PNG of 8 or 16 bits.")
        ids = picture.ids()
        if ids.dtype not in (np.uint8, np.uint16):
            if ids.min() < 0 or ids.max() > 65535:
                raise ValueError(f"{picture.what} of ids {ids.min()}..{ids.max()}, expected 0..65535")
            ids = ids.astype(np.uint8 if ids.dtype == bool else np.uint16)
        return _turned(ids, picture.orientation)


def read_label(path: Path, table: np.ndarray) -> np.ndarray:
    """Train ids uint8 [H, W]: the file's ids looked up in `table` (`labels.lookup_table`). Raises DataError."""
    return table.take(read_label_ids(path))


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as `read_image` gives it, without decoding the pixels. Raises DataError."""
    with _opened(path, "an image") as picture:
        _require_colours(path, picture)
        return picture.size[::-1] if picture.orientation > 4 else picture.size


def require_same_size(image_path: Path, size: tuple[int, int], label_path: Path, label: np.ndarray) -> None:
    """Raise DataError unless the label [H, W] has the image's size (width, height)."""
    if label.shape != size[::-1]:
        raise DataError(f"{label_path}: label is {label.shape[1]}x{label.shape[0]}{_as_displayed(label_path)}, its "
                        f"image {image_path} is {size[0]}x{size[1]}{_as_displayed(image_path)}: fix it or take the "
                        "pair out of the list.")


def _require_colours(path, picture):
    if picture.rgb is None:
        raise DataError(f"{path}: cannot be read as an image ({picture.what}): save it as a PNG or JPEG of one "
                        "picture, grey or RGB, 8 bits per channel.")


def _as_displayed(path):
    with _opened(path, "a file") as picture:
        return f" (as displayed: its EXIF orientation is {picture.orientation})" if picture.orientation > 1 else ""


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, ...] as displayed: the orientation (EXIF 2.3) says where row 0 and column 0 of the file belong."""
    if orientation == 1:
        return pixels
    pixels = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    rows, columns = (-1 if orientation in group else 1 for group in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::rows, ::columns])


@contextmanager
def _opened(path, kind) -> Iterator[formats.Picture]:
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe that nobody writes to is never open
            raise OSError("not a file")
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # remarks on metadata that nobody uses
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield formats.read_header(file)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: {kind.split()[1]} not found: restore it or take it out of the list.") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        why = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read as {kind} ({why}): replace it or take it out of the list.") from None
