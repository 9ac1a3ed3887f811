"""Image files with their samples as they are stored, and a description of each file in words.

Pillow stretches grey of fewer than 8 bits and Netpbm files with another maximum, inverts WhiteIsZero and PBM, takes
signed samples for unsigned ones, and so on. That is right for a picture and wrong for label ids, hence these readers.
Each format is one function from an open file to a `Picture`, which decodes the pixels only when it is asked to.
"""
import logging
import re
from typing import BinaryIO

from dataset.formats.bitmaps import bmp, netpbm
from dataset.formats.compressed import jpeg, png, webp
from dataset.formats.picture import Picture
from dataset.formats.tiff import tiff

for _library in ("imagecodecs", "PIL"):  # remarks on metadata, again for each reading of a file; errors are raised
    logging.getLogger(_library).setLevel(logging.CRITICAL)

_FORMATS = (  # what a file begins with, name, reader; None: not read, named in the error
    (rb"\x89PNG\r\n\x1a\n", "PNG", png), (rb"\xff\xd8\xff", "JPEG", jpeg), (rb"RIFF....WEBP", "WebP", webp),
    (rb"BM", "BMP", bmp), (rb"P[1-6]\s", "Netpbm", netpbm), (rb"II[*+]\0|MM\0[*+]", "TIFF", tiff),
    (rb"P7\s", "PAM", None), (rb"P[fF]\s", "floating-point PFM", None), (rb"GIF8", "GIF", None),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000", None), (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", None),
    (rb"....ftypavi[fs]", "AVIF", None), (rb"....ftyp", "HEIF, or a video", None), (rb"8BPS", "Photoshop", None),
    (rb"\x76\x2f\x31\x01", "OpenEXR", None), (rb"\x89HDF", "HDF5 or MATLAB", None), (rb"\x93NUMPY", "NumPy", None),
    (rb"PK", "ZIP or NumPy", None), (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript", None), (rb"%PDF", "PDF", None),
)


def read_header(file: BinaryIO) -> Picture:
    """The picture in an open file, which must stay open until the pixels are decoded.

    Raises what Pillow raises for damaged files.
    """
    start = file.read(16)
    file.seek(0)
    for magic, name, reader in _FORMATS:
        if re.match(magic, start, re.DOTALL):
            return reader(file) if reader else Picture(name, (0, 0), 1, None, None)
    return Picture("no image format that is known" if start else "an empty file", (0, 0), 1, None, None)
