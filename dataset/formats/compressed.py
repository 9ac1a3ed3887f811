"""PNG (specification, third edition), JPEG and WebP files, decoded by Pillow and libpng."""
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataset.formats.picture import ORIENTATION, Picture, indices, xmp_orientation

_XMP = b"http://ns.adobe.com/xap/1.0/"  # what its segment of a JPEG begins with
_PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGB and alpha"}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


def png(file: BinaryIO) -> Picture:
    """The picture of a PNG file.

    Ids: grey or palette (the index) of 1 to 16 bits, or 16-bit RGB (the first channel). Colours: all but 16-bit grey,
    where white may be 4095 as well as 65535.
    """
    data, image = file.read(), pillow(file, "PNG")
    chunks = list(_png_chunks(data))
    names = [name for name, _ in chunks]
    if names[0] != b"IHDR" or names.count(b"IHDR") != 1:  # two decoders would see different images
        raise ValueError("PNG of several headers, or with something before it")
    depth, colour, pictures = data[24], data[25], _pictures(image)
    what = f"{depth}-bit {_PNG_COLOURS[colour]} PNG" + (f" of {pictures} pictures" if pictures > 1 else "")
    # Metadata may follow the pixels, so Pillow decodes these to find it. Done only where the chunks have some.
    tagged = any(name == b"eXIf" or text.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp"))
                 for name, text in chunks)
    ids = rgb = None
    if pictures == 1 and colour == 0:
        ids = partial(_png_greys, image, depth)
    elif pictures == 1 and colour == 3:
        ids = partial(_png_indices, image, dict(chunks).get(b"PLTE", b""))
    elif pictures == 1 and (depth, colour) == (16, 2):
        ids = partial(_png_first_channel, data)
    if pictures == 1 and (depth, colour) not in ((16, 0), (16, 4)):
        plain = (depth, colour) == (8, 2) and not tagged and b"tRNS" not in names
        rgb = partial(_decode_png, data) if plain else partial(pillow_rgb, image)
    samples = None
    if pictures == 1 and depth >= 8 and colour != 3 and b"tRNS" not in names:
        samples = partial(_decode_png, data)
    if tagged:
        image.load()
    return Picture(what, image.size, _orientation(image) if tagged else 1, ids, rgb, 1 if colour in (0, 4) else 3,
                   _PNG_CHANNELS[colour], samples, depth == 16)


def _png_chunks(data):
    """Yields (name, content) of every chunk; of a long one the first 768 bytes, the size of the largest palette."""
    at, name = 8, b""
    while at + 8 <= len(data) and name != b"IEND":
        name = data[at + 4:at + 8]
        size = int.from_bytes(data[at:at + 4], "big")
        yield name, data[at + 8:at + 8 + min(size, 768)]
        at += 12 + size


def _png_greys(image, depth):
    ids = np.asarray(image)  # bool for 1 bit; 2 and 4 bits are stretched to 0..255, which divides without remainder
    return ids // (255 // (2**depth - 1)) if depth in (2, 4) else ids


def _png_indices(image, palette):
    return indices(np.asarray(image), np.frombuffer(palette, np.uint8, len(palette) // 3 * 3).reshape(-1, 3))


def _png_first_channel(data):
    return _decode_png(data)[:, :, 0]


def _decode_png(data):
    """Pixels [H, W] or [H, W, channels] as the file holds them, uint8 or uint16.

    Takes two thirds of Pillow's time. Pillow would also keep only the high bytes of 16-bit colours.
    """
    import imagecodecs  # late: not loaded if all images are JPEGs
    try:
        return imagecodecs.png_decode(data)
    except RuntimeError as error:  # libpng's words
        raise ValueError("truncated" if "too small" in str(error) else error) from None


def jpeg(file: BinaryIO) -> Picture:
    """The picture of a JPEG file: colours only. Of several pictures (MPO: depth, stereo) the first is the photo."""
    image = pillow(file, "JPEG")
    return Picture(f"JPEG of mode {image.mode} (lossy: ids would change along every edge)", image.size,
                   _orientation(image), None, partial(pillow_rgb, image), *((1, 1) if image.mode == "L" else ()))


def webp(file: BinaryIO) -> Picture:
    """The picture of a WebP file: colours only, since the format has no other samples."""
    image = pillow(file, "WEBP")
    pictures = _pictures(image)
    return Picture(f"WebP of {pictures} pictures" if pictures > 1 else "WebP (it stores colours, lossless or not)",
                   image.size, _orientation(image), None, partial(pillow_rgb, image) if pictures == 1 else None)


def pillow(file: BinaryIO, name: str) -> Image.Image:
    """Pillow's image of an open file of format `name`, after reading the header. Raises ValueError, or another error of
    Pillow, for damaged files."""
    file.seek(0)
    try:
        return Image.open(file, formats=(name,))
    except UnidentifiedImageError:
        raise ValueError(f"damaged {name}, or of an unknown kind") from None


def pillow_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of Pillow's image as RGB, uint8 [H, W, 3]."""
    return np.array(image.convert("RGB"))


def _pictures(image):
    return getattr(image, "n_frames", 1)


def _orientation(image):
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # damaged metadata is ignored, as in viewers
        value = None
    if value is None:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b"".join(
            content for _, content in getattr(image, "applist", ()) if content.startswith(_XMP))  # Pillow below 11
        return xmp_orientation(xmp)
    return value if value in range(1, 9) else 1
