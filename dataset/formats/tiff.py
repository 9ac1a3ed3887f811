"""TIFF files (TIFF 6.0 specification), decoded by libtiff."""
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import TiffImagePlugin

from dataset.formats.picture import ORIENTATION, Picture, indices, require_size, xmp_orientation

_LARGEST = 2**32  # bytes of the decoded samples
_LOSSLESS = {1: "uncompressed", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 8: "deflate",
             32771: "CCITT RLE", 32773: "PackBits", 32946: "deflate", 34925: "LZMA", 50000: "Zstandard"}
_LOSSY = {6: "old JPEG", 7: "JPEG", 34712: "JPEG 2000", 34887: "LERC", 50001: "WebP", 50002: "JPEG XL"}
_PHOTOMETRIC = {0: "grey (WhiteIsZero)", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_SAMPLES = {1: "", 2: "signed ", 3: "floating-point ", 4: "", 5: "complex ", 6: "complex "}


def tiff(file: BinaryIO) -> Picture:
    """The picture of the first page. Further pages are allowed only if they are smaller versions of it."""
    first, *others = _tiff_pages(file)

    def tags(number, default):
        value = first.get(number, default)
        return value if isinstance(value, tuple) else (value,)

    def tag(number, default):
        return tags(number, default)[0]

    width, height, channels = tag(256, None), tag(257, None), tag(277, 1)
    require_size(width, height)
    require_size(tag(322, 1), tag(323, 1))  # of a tile
    bits, code, sampling = tag(258, 1), tag(259, 1), tag(339, 1)
    if width * height * channels * bits > 8 * _LARGEST:
        raise ValueError(f"{width}x{height} pixels of {channels} channels of {bits} bits: cut it into pieces")
    colour, extra = tag(262, 1 if channels < 3 else 2), tag(338, 0)
    pages = 1 + sum(not page.get(254, 0) & 1 for page in others)  # 1: the first one again, smaller
    mixed = len(set(tags(258, 1))) > 1 or len(set(tags(339, 1))) > 1  # channels of several kinds
    # Rows that are packed together, against the specification, would be shifted without an error of libtiff.
    unsure = code == 32773 and bits not in (8, 16, 32, 64)
    what = (_kind("/".join(map(str, tags(258, 1))) if mixed else bits, sampling, colour, code)
            + (f" of {channels} channels" if channels > 1 else "") + (", multiplied by alpha" if extra == 1 else "")
            + (f" of {pages} pages" if pages > 1 else "") + (", whose rows may be packed together" if unsure else ""))
    samples = partial(_tiff_samples, file, (height, width), channels, tag(284, 1) == 2)
    palette = _palette(first.get(320), bits) if colour == 3 else None
    ids = rgb = values = None
    if pages == 1 and not mixed and not unsure and channels <= 16:
        if channels == 1 and _are_ids(bits, sampling, colour, code):
            ids = samples if palette is None else lambda: indices(samples(), palette)
        if sampling in (1, 4) and code in (*_LOSSLESS, 7) and extra != 1:
            rgb = _tiff_rgb(samples, bits, colour, code, palette)
        if 1 not in tags(338, 0) and _are_values(bits, sampling, colour, code):  # 1: multiplied by alpha
            values = samples
    orientation = tag(ORIENTATION, None)
    if orientation is None:
        orientation = xmp_orientation(tag(700, b""))
    colours = 1 if colour in (0, 1) else 3
    return Picture(what, (width, height), orientation if orientation in range(1, 9) else 1, ids, rgb, colours,
                   3 if colour == 3 and channels == 1 else channels, values, bits > 8 or sampling in (2, 3))


def _kind(depth, sampling, colour, code):
    """The kind of a file in words, such as "16-bit grey TIFF (LZW)"."""
    compression = {**_LOSSLESS, **{c: f"{name}, lossy" for c, name in _LOSSY.items()}}.get(code, f"compression {code}")
    photometric = _PHOTOMETRIC.get(colour, f"photometric {colour}")
    return f"{depth}-bit {_SAMPLES.get(sampling, '')}{photometric} TIFF ({compression})"


def _are_ids(bits, sampling, colour, code):
    """Whether one channel of such samples can be label ids."""
    return colour in (0, 1, 3) and code in _LOSSLESS and sampling in (1, 2, 4) and bits in (1, 2, 4, 8, 12, 16, 32)


def _are_values(bits, sampling, colour, code):
    """Whether such samples can be the values of bands."""
    whole = (8, 12, 16, 32, 64)
    depths = {1: whole, 2: whole, 3: (16, 32, 64), 4: whole}.get(sampling, ())
    return colour in (1, 2) and bits in depths and (code in _LOSSLESS or code == 7 and bits == 8)


def _tiff_pages(file):
    """The tags of every page, by Pillow's reader for tags; its reader for images refuses pixels that it cannot show."""
    head = file.read(8)
    head += file.read(8) if head[2:4] in (b"+\0", b"\0+") else b""  # BigTIFF
    pages, at = {}, TiffImagePlugin.ImageFileDirectory_v2(head).next
    while at:
        if at in pages:
            raise ValueError("pages that lead back to one another")
        pages[at] = page = TiffImagePlugin.ImageFileDirectory_v2(head)
        page.next = None
        file.seek(at)
        page.load(file)  # returns early, with a warning, where the file ends
        if page.next is None:
            raise ValueError("TIFF cut short within its tags")
        at = page.next
    if not pages or not {256, 257} <= set(next(iter(pages.values()))):
        raise ValueError("TIFF without the size of a picture, perhaps cut short")
    return pages.values()


def _tiff_samples(file, shape, channels, planar):
    import imagecodecs  # late, as for PNG
    file.seek(0)
    samples = imagecodecs.tiff_decode(file.read(), index=0)
    if planar and channels > 1:
        samples = np.moveaxis(samples, 0, 2)
    if samples.shape != (shape if channels == 1 else (*shape, channels)):
        raise ValueError(f"samples {samples.shape}, expected {shape} of {channels} channels")
    return samples


def _palette(colour_map, bits):
    """The palette uint8 [2^bits, 3]; None if there is none of that size."""
    if bits > 8 or not colour_map or len(colour_map) != 3 * 2**bits:
        return None
    table = np.array(colour_map).reshape(3, -1).T
    return (table >> 8 if table.max() > 255 else table).astype(np.uint8)  # some writers store 8 bits


def _tiff_rgb(samples, bits, colour, code, palette):
    """A function that returns the colours uint8 [H, W, 3]; None if the tags do not define them."""
    if colour in (0, 1) and bits <= 8:
        table = np.rint(np.arange(2**bits) * (255 / (2**bits - 1))).astype(np.uint8)
        table = (table[::-1] if colour == 0 else table)[:, None].repeat(3, 1)
    elif palette is not None:
        table = palette
    elif (colour == 2 or colour == 6 and code == 7) and bits in (8, 16):
        return lambda: np.ascontiguousarray(samples()[:, :, :3] >> (bits - 8), np.uint8)
    else:
        return None

    def rgb():
        values = samples()
        return table[(values[:, :, 0] if values.ndim == 3 else values).astype(np.uint8)]
    return rgb
