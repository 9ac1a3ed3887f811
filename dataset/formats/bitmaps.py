"""BMP and Netpbm files (specifications: BITMAPINFOHEADER; pbm, pgm, ppm)."""
import math
import re
import struct
from functools import partial
from typing import BinaryIO

import numpy as np

from dataset.formats.compressed import pillow, pillow_rgb
from dataset.formats.picture import Picture, indices, require_size, unpacked


def bmp(file: BinaryIO) -> Picture:
    """The picture of a BMP file, its colour indices as stored. Pillow would change them: of a palette of two greys it
    makes one bit a pixel."""
    data, image = file.read(), pillow(file, "BMP")
    start, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, entry = 0, 3
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        entry = 4
    used = 2**bits if header == 12 else struct.unpack_from("<I", data, 46)[0] or 2**min(bits, 8)
    indexed = bits in (1, 4, 8) and compression == 0
    if indexed and start < 14 + header + entry * used:
        raise ValueError("pixels that begin within the palette")
    what = (f"{bits}-bit {'palette' if bits <= 8 else 'colour'} BMP"
            f"{', run-length encoded' if compression in (1, 2) else ''}")
    if not indexed:
        return Picture(what, image.size, 1, None, partial(pillow_rgb, image) if bits > 8 else None)

    def samples():
        stride = (width * bits + 31) // 32 * 4
        rows = np.frombuffer(data, np.uint8, abs(height) * stride, start).reshape(abs(height), stride)
        return unpacked(rows, bits, width)[::-1 if height > 0 else 1]

    def colours():
        table = np.frombuffer(data, np.uint8, entry * used, 14 + header)
        return table.reshape(-1, entry)[:, 2::-1]  # stored as blue, green, red

    kinds = 1 if (colours() == colours()[:, :1]).all() else 3  # in BMP, grey is a palette of greys
    return Picture(what, image.size, 1, lambda: indices(samples(), colours()), lambda: _looked_up(colours(), samples()),
                   kinds, kinds)


def _looked_up(colours, indices):
    if indices.max() >= len(colours):
        raise ValueError(f"colour {indices.max()} of a palette of {len(colours)}")
    return colours[indices]


_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NETPBM = re.compile(rb"P(?:([14])|([2356]))%b(\d{1,9})%b(\d{1,9})(?(2)%b(\d{1,9}))(?:#[^\r\n]*)?\s"
                     % (_GAP, _GAP, _GAP))


def netpbm(file: BinaryIO) -> Picture:
    """The picture of a PBM, PGM or PPM file: samples of PBM and PGM as stored, colours with the maximum as white."""
    data = file.read()
    header = _NETPBM.match(data)
    if not header:
        raise ValueError("damaged header")
    kind, width, height, maxval = int(header[1] or header[2]), *(int(v or 1) for v in header.group(3, 4, 5))
    require_size(width, height)
    if not 1 <= maxval <= 65535:
        raise ValueError(f"maximum {maxval}, expected 1..65535")
    name = {1: "PBM", 2: "PGM", 3: "PPM"}[kind if kind <= 3 else kind - 3]
    shape = (height, width, 3) if name == "PPM" else (height, width)
    samples = partial(_netpbm_samples, data, header.end(), kind, shape, maxval)

    def rgb():
        table = np.rint(np.arange(maxval + 1) * (255 / maxval)).astype(np.uint8)
        shown = (table[::-1] if name == "PBM" else table)[samples()]  # PBM stores ink: 1 is black
        return shown if name == "PPM" else shown[:, :, None].repeat(3, 2)

    colours, deep = 3 if name == "PPM" else 1, maxval > 255
    return Picture(f"{name} (P{kind}, maximum {maxval})", (width, height), 1, samples if colours == 1 else None, rgb,
                   colours, colours, samples if deep else None, deep)


def _netpbm_samples(data, start, kind, shape, maxval):
    count = math.prod(shape)
    if kind == 4:
        stride = -(-shape[1] // 8)
        size = shape[0] * stride
        samples = unpacked(np.frombuffer(data, np.uint8, size, start).reshape(-1, stride), 1, shape[1])
    elif kind > 4:
        dtype = np.dtype(np.uint8 if maxval < 256 else ">u2")
        size = count * dtype.itemsize
        samples = np.frombuffer(data, dtype, count, start)
    else:
        words = re.sub(rb"#[^\r\n]*", b"", data[start:]).split()
        if kind > 1 and max(map(len, words), default=0) > 9:  # numpy reserves the longest word's size for each
            raise ValueError("a sample of more than 9 digits")
        samples = (np.frombuffer(b"".join(words), np.uint8) - ord("0") if kind == 1 else
                   np.array(words, "S").astype(np.int64))
        size = len(data) - start
        if len(samples) != count:
            raise ValueError(f"{len(samples)} samples, expected {count}")
    if len(data) > start + size:  # also if two characters end the header's last line, which would shift all samples
        raise ValueError(f"{len(data) - start - size} bytes more than one picture")
    if samples.min() < 0 or samples.max() > maxval:
        raise ValueError(f"samples {samples.min()}..{samples.max()} beyond the maximum {maxval} in its header")
    return samples.reshape(shape).astype(np.uint8 if maxval < 256 else np.uint16)
