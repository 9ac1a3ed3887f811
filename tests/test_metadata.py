"""Orientation tags turn images and labels as viewers turn them; other metadata changes nothing, and no library's remark
on it reaches the user."""
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from imagefiles import COLOUR, GREY, RGB, SMOOTH, SMOOTH_IMAGE, chunk, ids_below, png, saved, tiff
from PIL import ImageFile

from dataset import files
from utils.errors import DataError

ROOT = Path(__file__).resolve().parents[1]

# ---- orientation -----------------------------------------------------------------------------------------------------

SIDES = {1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"), 5: ("left", "top"),
         6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom")}  # where row 0 and column 0 are seen


def displayed(array, orientation):
    """The pixels as displayed, computed one by one from the definition in the EXIF standard."""
    row_side, column_side = SIDES[orientation]
    height, width = array.shape[:2]
    out = np.zeros((height, width) if row_side in ("top", "bottom") else (width, height), array.dtype)
    out = out if array.ndim == 2 else out[:, :, None].repeat(3, 2)
    for row in range(height):
        for column in range(width):
            distance = {row_side: row, column_side: column}
            y = distance["top"] if "top" in distance else out.shape[0] - 1 - distance["bottom"]
            x = distance["left"] if "left" in distance else out.shape[1] - 1 - distance["right"]
            out[y, x] = array[row, column]
    return out


def exif(orientation):
    return b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHHI", 274, 3, 1, orientation, 0, 0)


def profile(orientation):
    data = b"Exif\0\0" + exif(orientation)
    return f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()


def xmp(orientation, form='tiff:Orientation="{}"'):
    return (f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
            f'{form.format(orientation)}/></x:xmpmeta>').encode()


def segment(content):
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


JPEG = saved(SMOOTH_IMAGE, "JPEG", quality=95)
PNG_TAGS = {
    "eXIf": lambda o: chunk(b"eXIf", exif(o)),
    "text profile": lambda o: chunk(b"tEXt", b"Raw profile type exif\0" + profile(o)),
    "compressed profile": lambda o: chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile(o))),
    "XMP": lambda o: chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o)),
    "compressed XMP": lambda o: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(o))),
}
PHOTOS = {  # name -> orientation -> bytes of a file of SMOOTH
    "JPEG EXIF": lambda o: JPEG[:2] + segment(b"Exif\0\0" + exif(o)) + JPEG[2:],
    "JPEG XMP": lambda o: JPEG[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0" + xmp(o)) + JPEG[2:],
    "JPEG XMP element": lambda o: JPEG[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0" + xmp(
        o, "/><a><tiff:Orientation>{}</tiff:Orientation></a><b")) + JPEG[2:],
    "JPEG XMP, single quotes": lambda o: JPEG[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0" + xmp(
        o, "tiff:Orientation = '{}'")) + JPEG[2:],
    **{f"PNG {name} {place}": lambda o, t=tag, p=place: png(SMOOTH, 8, 2, **{p: t(o)})
       for name, tag in PNG_TAGS.items() for place in ("before", "after")},
    "PNG RGBA eXIf": lambda o: png(np.concatenate([SMOOTH, SMOOTH[..., :1]], 2), 8, 6, before=chunk(b"eXIf", exif(o))),
    "WebP EXIF": lambda o: saved(SMOOTH_IMAGE, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(o)),
    "WebP XMP": lambda o: saved(SMOOTH_IMAGE, "WEBP", lossless=True, xmp=xmp(o)),
    **{f"TIFF {name}": lambda o, p=options: tiff(SMOOTH, 8, 2, tags=[(274, 3, [o])], **p) for name, options in {
        "little-endian": {}, "big-endian": {"order": ">"}, "in tiles": {"tile": 16}, "planar": {"planar": 2},
        "deflate": {"compression": 8, "encode": zlib.compress}}.items()},
    **{f"TIFF XMP of type {kind}": lambda o, k=kind: tiff(SMOOTH, 8, 2, tags=[(700, k, xmp(o))]) for kind in (1, 2, 7)},
}
TURNED = ids_below(16, (5, 9))
TURNED_LABELS = {
    **{f"PNG {name} {place}": lambda o, t=tag, p=place: png(TURNED, 4, 0, **{p: t(o)})
       for name, tag in PNG_TAGS.items() for place in ("before", "after")},
    "PNG palette": lambda o: png(TURNED, 8, 3, before=chunk(b"eXIf", exif(o))),
    "PNG RGB, 16 bits": lambda o: png(np.stack([TURNED] * 3, 2), 16, 2, after=chunk(b"eXIf", exif(o))),
    "TIFF": lambda o: tiff(TURNED, 8, tags=[(274, 3, [o])]), "TIFF, 4 bits": lambda o: tiff(
        TURNED, 4, 0, ">", 8, zlib.compress, tags=[(274, 3, [o])]),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_photographs_are_turned_as_viewers_turn_them(tmp_path, name):
    for orientation in SIDES:
        (tmp_path / "x").write_bytes(PHOTOS[name](orientation))
        got, expected = files.read_image(tmp_path / "x"), displayed(SMOOTH, orientation)
        assert got.shape == expected.shape and abs(got.astype(int) - expected).max() <= 12 * ("JPEG" in name)
        assert got.flags.c_contiguous and files.read_size(tmp_path / "x") == got.shape[1::-1]


@pytest.mark.parametrize("name", TURNED_LABELS)
def test_labels_are_turned_as_their_own_tag_says(tmp_path, name):
    for orientation in SIDES:
        (tmp_path / "x").write_bytes(TURNED_LABELS[name](orientation))
        got, expected = files.read_label_ids(tmp_path / "x"), displayed(TURNED, orientation)
        assert got.shape == expected.shape and (got == expected).all() and min(got.strides) > 0


@pytest.mark.parametrize("damage", [
    lambda c: c.replace(b"II*\0", b"II!\0"), lambda c: c.replace(b"\x08\0\0\0", b"\xff" * 4),
    lambda c: c.replace(b"\3\0\1\0\0\0", b"\x0c\0\xff\xff\0\0"), None, 0, 9, 65535])
def test_damaged_and_unknown_tags_turn_nothing(tmp_path, damage):
    content = exif(damage if isinstance(damage, int) else 6)
    content = damage(content) if callable(damage) else content[:9] if damage is None else content
    for name, data in (("x.jpg", JPEG[:2] + segment(b"Exif\0\0" + content) + JPEG[2:]),
                       ("x.png", png(SMOOTH, 8, 2, after=chunk(b"eXIf", content)))):
        (tmp_path / name).write_bytes(data)
        assert abs(files.read_image(tmp_path / name).astype(int) - SMOOTH).max() <= 12
        assert files.read_size(tmp_path / name) == (56, 40)


def test_the_size_error_names_the_orientation(tmp_path):
    (tmp_path / "i.jpg").write_bytes(PHOTOS["JPEG EXIF"](6))
    (tmp_path / "l.png").write_bytes(png(ids_below(2, (40, 56)), 1, 0))
    (tmp_path / "t.png").write_bytes(png(ids_below(2, (56, 40)), 1, 0, after=chunk(b"eXIf", exif(8))))
    size = files.read_size(tmp_path / "i.jpg")
    assert size == (40, 56)
    for label, said in (("l.png", "label is 56x40, its image"),
                        ("t.png", "label is 56x40 (as displayed: its EXIF orientation is 8), its image")):
        with pytest.raises(DataError) as error:
            files.require_same_size(tmp_path / "i.jpg", size, tmp_path / label, files.read_label_ids(tmp_path / label))
        assert said in str(error.value)
        assert "i.jpg is 40x56 (as displayed: its EXIF orientation is 6): " in str(error.value)
    (tmp_path / "j.png").write_bytes(png(SMOOTH, 8, 2))
    with pytest.raises(DataError, match="j.png is 56x40: "):
        files.require_same_size(tmp_path / "j.png", (56, 40), tmp_path / "l.png", np.zeros((1, 1), np.uint8))


def test_a_plain_png_is_decoded_once(tmp_path, monkeypatch):
    """Pillow would decode a PNG a second time to look for EXIF behind its pixels."""
    (tmp_path / "x.png").write_bytes(png(SMOOTH, 8, 2, before=chunk(b"tEXt", b"Software\0x")))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded by Pillow"))
    assert files.read_size(tmp_path / "x.png") == (56, 40)
    assert (files.read_image(tmp_path / "x.png") == SMOOTH).all()


# ---- remarks ---------------------------------------------------------------------------------------------------------

BAD_PROFILE = chunk(b"iCCP", b"ICC\0\0" + zlib.compress(b"x" * 200))
NOISY = {
    "iccp.png": png(COLOUR, 8, 2, before=BAD_PROFILE), "grey_iccp.png": png(GREY, 8, 0, before=BAD_PROFILE),
    "srgb.png": png(COLOUR, 8, 2, before=chunk(b"sRGB", b"\x09")),
    "gama.png": png(COLOUR, 8, 2, before=chunk(b"gAMA", struct.pack(">I", 0))),
    "chrm.png": png(COLOUR, 8, 2, before=chunk(b"cHRM", b"\xff" * 32)),
    "crc.png": png(COLOUR, 8, 2, before=chunk(b"tEXt", b"a\0b")[:-1] + b"!"),
    "deep.png": png(np.stack([GREY] * 3, 2), 16, 2, before=BAD_PROFILE),
    "exif.png": png(COLOUR, 8, 2, before=chunk(b"eXIf", b"nonsense")),
    "tags.tif": tiff(GREY, 8, tags=[(65000, 3, [7]), (65001, 4, [1, 2, 3]), (305, 2, b"no end"), (282, 3, [1])]),
    "colour.tif": tiff(COLOUR, 8, 2, tags=[(65000, 3, [7]), (34675, 7, b"profile"), (296, 4, [1, 2, 3])]),
    "extra.jpg": JPEG[:-2] + b"\0\0\0\0" + JPEG[-2:],
    "before.jpg": JPEG[:2] + b"\0\0\0" + JPEG[2:],
    "exif.jpg": JPEG[:2] + segment(b"Exif\0\0" + exif(6)[:9]) + JPEG[2:],
    "mpf.jpg": JPEG[:2] + b"\xff\xe2\0\x10MPF\0II*\0\xff\xff\xff\xff\0\0" + JPEG[2:],
    "cut.tif": saved(RGB, "TIFF", compression="tiff_lzw")[:-9], "cut.jpg": JPEG[:-99],
    "cut.png": png(COLOUR, 8, 2)[:-40],
}


def test_the_libraries_say_nothing(tmp_path):
    """In a subprocess, as for a user: for every file that is read or refused, only this project prints."""
    for name, content in NOISY.items():
        (tmp_path / name).write_bytes(content)
    code = ("import sys\nfrom pathlib import Path\nfrom dataset import files\nfrom utils.errors import DataError\n"
            "read = 0\nfor path in sorted(Path(sys.argv[1]).iterdir()):\n"
            "    for reader in (files.read_image, files.read_label_ids, files.read_size):\n"
            "        try: reader(path); read += 1\n        except DataError: pass\nprint(read)")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.strip().isdigit()
    assert int(done.stdout) >= 20
