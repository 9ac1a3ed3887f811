"""Reading image and label files. What is missing, damaged, of another kind or too large raises a DataError that names
the file; sizes are checked in the header, before anything is decoded or allocated."""
import struct
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import DataError

# Pillow knows forty more, of which EPS runs a program on the file.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
LABEL_FORMATS = ("PNG", "BMP", "TIFF", "PPM")  # lossless: JPEG invents ids along every edge
_RGB8, _RGB16 = b"\x08\x02", b"\x10\x02"     # bit depth and colour type of PNG


def read_image(path: Path) -> np.ndarray:
    """The image's pixels, RGB, uint8 [H, W, 3]. Raises DataError."""
    with _opened(path, "an image", IMAGE_FORMATS) as image:
        if _png_kind(path, image) == _RGB8 and "transparency" not in image.info:
            return _decode_png(path)
        if image.mode.startswith(("I", "F")):  # conversion would clip every value above 255
            raise ValueError(f"mode {image.mode}, expected 8 bits per channel")
        return np.array(image.convert("RGB"))


def read_label_ids(path: Path) -> np.ndarray:
    """Label ids uint8 or uint16 [H, W] as the file holds them: 8-bit grey or palette (the index is the id), 16-bit
    grey, or 16-bit RGB in a PNG (the id is in the first channel, as in SYNTHIA). Raises DataError."""
    with _opened(path, "a label", LABEL_FORMATS) as image:
        if image.mode in ("L", "P"):
            return np.asarray(image)
        if image.mode in ("I;16", "I;16B", "I"):
            ids = np.asarray(image)
            if ids.min() < 0 or ids.max() > 65535:
                raise ValueError(f"ids {ids.min()}..{ids.max()}, expected 0..65535")
            return ids.astype(np.uint16)
        if _png_kind(path, image) != _RGB16:
            raise ValueError(f"{image.format} of mode {image.mode}, expected one channel, or 16-bit RGB in a PNG")
        return _decode_png(path)[:, :, 0]


def read_label(path: Path, table: np.ndarray) -> np.ndarray:
    """Train ids uint8 [H, W]: the file's ids looked up in `table` (`labels.lookup_table`). Raises DataError."""
    return table.take(read_label_ids(path))


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image, from its header alone. Raises DataError."""
    with _opened(path, "an image", IMAGE_FORMATS) as image:
        return image.size


def require_same_size(image_path: Path, size: tuple[int, int], label_path: Path, label: np.ndarray) -> None:
    """Raise DataError unless the label [H, W] has the image's size (width, height)."""
    if label.shape != size[::-1]:
        raise DataError(f"{label_path}: label is {label.shape[1]}x{label.shape[0]}, its image {image_path} is "
                        f"{size[0]}x{size[1]}: mend it or take the pair out of the list.")


@contextmanager
def _opened(path, kind, formats):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata that nobody uses
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                yield image
    except FileNotFoundError:
        raise DataError(f"{path}: {kind.split()[1]} not found: restore it or take it out of the list.") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        what = f"not a {', '.join(formats)} file" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: cannot be read as {kind} ({what}): replace it or take it out of the list.") from None


def _png_kind(path: Path, image: Image.Image) -> bytes | None:
    """Bit depth and colour type in a PNG's header, None for other formats."""
    if image.format != "PNG":
        return None
    with open(path, "rb") as file:
        header = file.read(26)
    if struct.unpack(">II", header[16:24]) != image.size:  # the two decoders would see different images
        raise ValueError("two headers that differ in size")
    return header[24:]


def _decode_png(path: Path) -> np.ndarray:
    """Pixels [H, W, 3] as the file holds them, uint8 or uint16, in two thirds of Pillow's time (`python -m bench
    sample`); Pillow would also keep but the high bytes of 16-bit colours."""
    import imagecodecs  # late: who only evaluates JPEGs need not have it loaded
    try:
        return imagecodecs.png_decode(Path(path).read_bytes())
    except RuntimeError as error:  # libpng's words
        raise ValueError("truncated" if "too small" in str(error) else error) from None
