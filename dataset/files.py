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


def read_image(path: Path) -> Image.Image:
    """The image as RGB, decoded. Raises DataError."""
    with _opened(path, "an image", IMAGE_FORMATS) as image:
        if image.mode.startswith(("I", "F")):  # conversion would clip every value above 255
            raise ValueError(f"mode {image.mode}, expected 8 bits per channel")
        return image.convert("RGB")


def read_label_ids(path: Path) -> np.ndarray:
    """Label ids uint8 or uint16 [H, W] as the file holds them: 8-bit grey or palette (the index is the id), 16-bit grey,
    or 16-bit RGB in a PNG (the id is in the first channel, as in SYNTHIA). Raises DataError."""
    with _opened(path, "a label", LABEL_FORMATS) as image:
        if image.mode in ("L", "P"):
            return np.asarray(image)
        if image.mode in ("I;16", "I;16B", "I"):
            ids = np.asarray(image)
            if ids.min() < 0 or ids.max() > 65535:
                raise ValueError(f"ids {ids.min()}..{ids.max()}, expected 0..65535")
            return ids.astype(np.uint16)
        with open(path, "rb") as file:
            header = file.read(26)
        if image.format != "PNG" or header[24:] != b"\x10\x02":  # bit depth 16, colour type RGB
            raise ValueError(f"{image.format} of mode {image.mode}, expected one channel, or 16-bit RGB in a PNG")
        if struct.unpack(">II", header[16:24]) != image.size:  # the two decoders would see different images
            raise ValueError("two headers that differ in size")
        image.verify()  # checksums: libpng would write a line of its own to stderr about a damaged file
        return _first_channel(path)


def read_label(path: Path, table: np.ndarray) -> np.ndarray:
    """Train ids uint8 [H, W]: the file's ids looked up in `table` (`labels.lookup_table`). Raises DataError."""
    return table[read_label_ids(path)]


def require_same_size(image_path: Path, image: Image.Image, label_path: Path, label: np.ndarray) -> None:
    """Raise DataError unless the label [H, W] has the image's size."""
    if label.shape != (image.height, image.width):
        raise DataError(f"{label_path}: label is {label.shape[1]}x{label.shape[0]}, its image {image_path} is "
                        f"{image.width}x{image.height}: mend it or take the pair out of the list.")


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


def _first_channel(path: Path) -> np.ndarray:
    """First channel [H, W] of a 16-bit RGB PNG. Pillow keeps only the high bytes of such a file."""
    import cv2  # late: only SYNTHIA needs it
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError("damaged")
    return pixels[:, :, 2]  # OpenCV's order is blue, green, red
